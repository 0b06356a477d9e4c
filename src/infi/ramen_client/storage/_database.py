"""One database file as this process holds it: its connections, their errors, and what happens to them at a fork.

Invariants:

- A connection is used by one thread at a time. They are kept in a pool, not by thread, so that threads that come and go leave
  nothing behind: there are as many connections as were ever needed at once.
- No connection lives across a fork. Before it, running transactions end and every connection and lock descriptor is closed;
  parent and child open their own when they next need one. A fork that no hook saw is noticed by the process id: everything
  raises ``QueueForked`` then, and nothing is written.
- No connection creates the file. It is opened under the identity (device, inode) that it had when this object was made; when
  the path leads elsewhere, ``QueueGone``.
- There is one ``Database`` for each file in a process, shared by its writers and readers (``shared_database``), since two of
  them would not see each other's thread locks.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

import apsw

from infi.ramen_client.errors import (
    DiskFull,
    QueueBusy,
    QueueError,
    QueueForked,
    QueueGone,
    QueueUnusable,
)

from . import _statements as sql
from ._locks import WritersLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OLDEST_SAFE_SQLITE = (3, 51, 3)
"""Before it, a checkpoint by one connection while another writes can lose committed data (the WAL-reset race)."""

BUSY_TIMEOUT_SECONDS = 60
"""As 1.x: a 1.x writer at its limit can hold the file for long."""

_JOURNAL_SIZE_LIMIT_BYTES = 4 * 1024 * 1024

_MAX_IDLE_CONNECTIONS = 2
"""A kind's connections that stay open while nobody uses them; more were a burst of threads."""


def refuse_unsafe_sqlite(version: str = apsw.sqlite_lib_version()) -> None:
    """Raise ``QueueUnusable`` when the SQLite in use has the WAL-reset race."""
    if tuple(int(part) for part in version.split(".")) < OLDEST_SAFE_SQLITE:
        oldest = ".".join(map(str, OLDEST_SAFE_SQLITE))
        raise QueueUnusable(
            f"apsw brings SQLite {version}, which can lose data when two processes use a file. "
            f"Install a newer apsw (SQLite {oldest} or later)."
        )


class Kind(Enum):
    """What a connection is for, named by its ``synchronous`` setting where that matters."""

    FULL = "FULL"
    """Commits are on the platter when they return."""
    NORMAL = "NORMAL"
    """Commits survive a killed process, not a power cut."""
    WATCH = "WATCH"
    """Looks for other connections' commits and writes nothing; its ``data_version`` compares with itself alone."""


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours, which say what to do."""
    try:
        yield
    except apsw.BusyError as error:
        raise QueueBusy(
            f"{path}: another process held the queue for more than {BUSY_TIMEOUT_SECONDS} s; nothing was stored. Try again."
        ) from error
    except apsw.FullError as error:
        raise DiskFull(
            f"{path}: the disk (or a quota) is full; nothing was stored. Free some space."
        ) from error
    except (apsw.ReadOnlyError, apsw.PermissionsError, apsw.CantOpenError) as error:
        raise QueueUnusable(
            f"{path}: cannot be opened for writing ({error}). Check the owner and mode of the file and its directory."
        ) from error
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise QueueUnusable(
            f"{path}: is damaged or not a queue ({error}). Move it away to start afresh."
        ) from error
    except (apsw.IOError, apsw.Error) as error:
        raise QueueError(
            f"{path}: SQLite reports {type(error).__name__}: {error}. Check the disk."
        ) from error


class _WalGauge:
    """How many frames the WAL held after the last commit of this process.

    An object of its own, since SQLite's hook must not hold the ``Database`` alive.
    """

    def __init__(self) -> None:
        self.frames = 0

    def note(self, _connection: apsw.Connection, _name: str, frames: int) -> int:
        self.frames = frames
        return apsw.SQLITE_OK


class Database:
    """A queue's file in this process. Made by ``shared_database`` alone."""

    def __init__(self, path: Path, identity: tuple[int, int], lock_mode: int) -> None:
        self.path = path
        self.identity = identity
        self.writers_lock = WritersLock(path.with_name(path.name + ".writers"), lock_mode)
        self._wal = _WalGauge()
        self._pid = os.getpid()
        self._generation = 0
        # Guards everything below. Held by the forking thread over a fork.
        self._gate = threading.Condition()
        self._idle: dict[Kind, list[apsw.Connection]] = {kind: [] for kind in Kind}
        self._fork_pending = False
        self._at_work: list[int] = []  # the threads inside, once for each nesting
        self._wakers: list[Callable[[], None]] = []

    def __del__(self) -> None:
        if self._pid == os.getpid():
            self._close_idle()
            self.writers_lock.close()

    def check_in_place(self) -> None:
        """Raise ``QueueGone`` when the path does not lead to this file any more (one ``stat``)."""
        try:
            found = os.stat(self.path, follow_symlinks=False)  # noqa: PTH116 - on the path of every push
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self.identity:
            raise QueueGone(
                f"{self.path}: the queue's file was deleted or replaced under this program; nothing was stored. "
                "Build a new writer or reader."
            )

    @property
    def wal_frames(self) -> int:
        """Frames in the WAL after this process's last commit or checkpoint."""
        return self._wal.frames

    @contextmanager
    def _work(self) -> Iterator[None]:
        """Whoever holds a connection or the writers' turn is inside this, so that a fork can wait for the end of it."""
        me = threading.get_ident()
        with self._gate:
            self._check_process()
            while self._fork_pending and me not in self._at_work:
                self._gate.wait()
            self._at_work.append(me)
        try:
            yield
        finally:
            with self._gate:
                self._at_work.remove(me)
                if self._fork_pending:
                    self._gate.notify_all()

    @contextmanager
    def connection(self, kind: Kind) -> Iterator[apsw.Connection]:
        """Lend a connection to the calling thread."""
        with self._work(), plain_errors(self.path):
            try:
                connection = self._idle[kind].pop()
            except IndexError:
                connection = self._connect(kind)
            try:
                yield connection
            finally:
                if len(self._idle[kind]) < _MAX_IDLE_CONNECTIONS:
                    self._idle[kind].append(connection)
                else:
                    connection.close()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise QueueForked(
                f"{self.path}: this process was forked in a way that Python did not see, so writing could destroy the "
                "queue; nothing was stored. Fork by os.fork() or multiprocessing, or build the writer after the fork."
            )

    def _connect(self, kind: Kind) -> apsw.Connection:
        self.check_in_place()
        connection = open_connection(self.path)
        # Between the check and the opening the path may have been replaced.
        self.check_in_place()
        connection.pragma("synchronous", "FULL" if kind is Kind.FULL else "NORMAL")
        connection.set_wal_hook(self._wal.note)
        return connection

    @contextmanager
    def transaction(self, kind: Kind) -> Iterator[apsw.Connection]:
        """Take the writers' turn and hold one write transaction; an exception rolls it back."""
        with self._work(), self.writers_lock.turn(), self.connection(kind) as connection:
            connection.execute(sql.BEGIN)
            try:
                yield connection
                connection.execute(sql.COMMIT)
            except BaseException:
                if connection.in_transaction:
                    connection.execute(sql.ROLLBACK)
                raise

    def checkpoint(self) -> None:
        """Copy the WAL into the file: nearly all of it without the lock, the last frames with it.

        Without the second step steady writers would let the WAL grow for ever, since it starts anew only when everything in
        it was copied (measured: 562 MB in 4 s instead of 6). The pushes since the last time are entered into the books first,
        so that a tail of the file that gets damaged cannot hide more than these.
        """
        with self.transaction(Kind.NORMAL) as connection:
            connection.execute(sql.ENTER_PUSHES)
        with self.connection(Kind.NORMAL) as connection:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            with self.writers_lock.turn():
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._wal.frames = 0

    def change_mark(self) -> tuple[int, int]:
        """A value that changes when another connection, here or in another process, has committed.

        It may also change without a commit (after a fork).
        """
        with self.connection(Kind.WATCH) as connection:
            return self._generation, connection.execute(sql.DATA_VERSION).get

    def add_waker(self, wake: Callable[[], None]) -> None:
        """Have ``wake`` called after each push of this process."""
        with self._gate:
            self._wakers = [*self._wakers, wake]

    def remove_waker(self, wake: Callable[[], None]) -> None:
        """Undo ``add_waker``."""
        with self._gate:
            self._wakers = [other for other in self._wakers if other != wake]

    def wake_readers(self) -> None:
        """Call this after a push."""
        for wake in self._wakers:
            wake()

    def prepare_fork(self) -> None:
        """Let other threads' transactions end, keep new ones from beginning, close everything."""
        self._gate.acquire()
        me = threading.get_ident()
        self._fork_pending = True
        while any(thread != me for thread in self._at_work):
            self._gate.wait()
        self._close_idle()
        self.writers_lock.close()
        self._generation += 1

    def resume_in_parent(self) -> None:
        """After a fork, in the parent."""
        self._fork_pending = False
        self._gate.notify_all()
        self._gate.release()

    def resume_in_child(self) -> None:
        """After a fork, in the child, where no other thread exists."""
        interrupted = bool(self._at_work)
        self._gate = threading.Condition()
        self._fork_pending = False
        self._wakers = []
        self.writers_lock.reset_in_child()
        # A fork out of the middle of our own transaction (from a signal handler) left its connection open: the child keeps
        # the parent's process id on record, so that it refuses to work instead of writing through it.
        if not interrupted:
            self._pid = os.getpid()

    def _close_idle(self) -> None:
        for connections in self._idle.values():
            while connections:
                connections.pop().close()


def open_connection(path: Path) -> apsw.Connection:
    """Open an existing file with the settings that every connection has, but for ``synchronous``, which stays FULL."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW)
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_SECONDS * 1000)
        connection.wal_autocheckpoint(0)
        persistent = ctypes.c_int(1)
        connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(persistent))
        # Closing is on the path of a fork; checkpoints have their owner.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.pragma("journal_size_limit", _JOURNAL_SIZE_LIMIT_BYTES)
        connection.pragma("secure_delete", 0)
        connection.pragma("synchronous", "FULL")
    except BaseException:
        connection.close()
        raise
    return connection


_shared: weakref.WeakValueDictionary[Path, Database] = weakref.WeakValueDictionary()
_shared_guard = (
    threading.RLock()
)  # guards _shared and _everything; held while a file is opened, and over a fork


@contextmanager
def no_fork_meanwhile() -> Iterator[None]:
    """For connections outside the pool, while a file is made: a fork waits for the end of it."""
    with _shared_guard:
        yield


def shared_database(path: Path, lock_mode: int) -> Database:
    """This process's ``Database`` for the file that is at ``path`` now; the file must exist."""
    found = path.stat(follow_symlinks=False)
    identity = (found.st_dev, found.st_ino)
    with _shared_guard:
        database = _shared.get(path)
        if database is None or database.identity != identity:
            database = _shared[path] = Database(path, identity, lock_mode)
            _everything.add(database)
        return database


_everything: weakref.WeakSet[Database] = weakref.WeakSet()
"""All living databases, also those whose path leads to another file by now."""

_forking: list[Database] = []


def _before_fork() -> None:
    _shared_guard.acquire()
    _forking[:] = list(_everything)
    for database in _forking:
        database.prepare_fork()


def _after_fork_in_parent() -> None:
    for database in _forking:
        database.resume_in_parent()
    _forking.clear()
    _shared_guard.release()


def _after_fork_in_child() -> None:
    global _shared_guard  # noqa: PLW0603
    _shared_guard = threading.RLock()
    for database in _forking:
        database.resume_in_child()
    _forking.clear()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
