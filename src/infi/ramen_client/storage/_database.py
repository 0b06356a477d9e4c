"""One database file as this process holds it: its connections and transactions, and what happens to them at a fork.

Invariants:

- A connection is used by one thread at a time. They are kept in a pool, not by thread, so that threads that come and go leave
  nothing behind: there are as many connections as were ever needed at once.
- No connection lives across a fork. Before it, running transactions end and every connection and lock descriptor is closed;
  parent and child open their own when they next need one. A fork that no hook saw is noticed by the process id: everything
  raises ``QueueForked`` then, and nothing is written.
- No connection creates the file. It is opened under the identity (device, inode) that it had when this object was made, and only
  while it says the same queue id, since an inode's number is used again; else ``QueueGone``. But where it was found damaged and put
  aside, this object goes on with the file that took its place (``_aside``).
- A write transaction looks whether its file is still at the path after its ``BEGIN``. Whoever puts a file aside holds SQLite's own
  lock on it if that is possible, so what is committed to a file that is put aside was committed before.
- Every write transaction sees a change of the schema before it writes: a newer version that raised ``min_writer`` shuts this
  one out at once (``QueueUnusable``).
- A connection in an unknown state is closed, never used again.
- A durable transaction is on the platter when it has ended. While this process is alone, SQLite syncs in ``COMMIT``; where others
  wanted the writers' turn at the same time, it is synced after the turn (``_sync``), so that nobody waits for the disk with it.
- There is one ``Database`` for each file in a process, shared by its writers and readers (``_registry``), since two of them would
  not see each other's thread locks.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from contextlib import contextmanager, suppress
from enum import IntEnum
from itertools import count
from typing import TYPE_CHECKING

import apsw

from infi.ramen_client.errors import DiskFull, QueueError, QueueForked, QueueGone

from . import _statements as sql
from ._aside import is_aside
from ._connection import Meta, WalGauge, open_connection, read_meta
from ._errors import BUSY_TIMEOUT_SECONDS, UncertainCommit, commit_error, is_failed_sync, plain_error
from ._locks import PATIENCE_SECONDS, WritersLock
from ._patience import ReaderPatience
from ._sync import SharedSync, Unconfirmed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from ._files import Access

logger = logging.getLogger("ramen_client")

_MAX_IDLE_CONNECTIONS = 2
"""A kind's connections that stay open while nobody uses them; more were a burst of threads."""

_FORK_PATIENCE_SECONDS = BUSY_TIMEOUT_SECONDS + 2 * PATIENCE_SECONDS
"""The longest that a transaction can wait for others. A fork that waited longer goes on; its child is refused the queue."""

_MOST_SUCCESSORS = 3
"""A file that is put aside again while we are on our way to it is out of order."""

_CHECKPOINT_WARNING_EVERY_SECONDS = 60.0


class Kind(IntEnum):
    """What a connection is for."""

    FULL = 0
    """Commits are on the platter when they return."""
    NORMAL = 1
    """Commits survive a killed process, not a power cut."""
    READER = 2
    """As NORMAL, for the active reader, which gives up waiting when it is told to stop."""
    WATCH = 3
    """Looks for other connections' commits and writes nothing; its ``data_version`` compares with itself alone."""


class Database:
    """A queue's file in this process. Made by ``_registry`` alone."""

    def __init__(self, path: Path, identity: tuple[int, int], meta: Meta, access: Access) -> None:
        self.path = path
        self.identity = identity
        self.meta = meta
        self.files = 1
        """How many files this object has gone through: more than one when damaged ones were put aside."""
        self.access = access
        self.writers_lock = WritersLock(path.with_name(path.name + ".writers"), access)
        self._sync = SharedSync(path, access)
        self.reader_patience = ReaderPatience()
        self._wal = WalGauge()
        self._schema_version: int | None = None
        self._checkpoint_warned_at: float | None = None
        self._pid = os.getpid()
        self._generation = 0
        # Guards everything below. Held by the forking thread over a fork.
        self._guard = threading.RLock()
        self._work_ended = threading.Condition(self._guard)
        self._idle: tuple[list[apsw.Connection], ...] = tuple([] for _ in Kind)
        self._fork_pending = False
        self._at_work: dict[int, int] = {}  # what is under way (a number of its own), and in which thread
        self._wakers: list[Callable[[], None]] = []

    def __del__(self) -> None:
        if self.is_of_this_process:
            self._close_idle()
            self.writers_lock.close()
            self._sync.close()

    @property
    def is_of_this_process(self) -> bool:
        """False after a fork that no hook could prepare."""
        return self._pid == os.getpid()

    def check_process(self) -> None:
        """Raise ``QueueForked`` after a fork that no hook could prepare."""
        if not self.is_of_this_process:
            raise QueueForked(
                f"{self.path}: this process was forked in a way that Python did not see (or in the middle of a push), so "
                "writing could destroy the queue; nothing was stored. Fork by os.fork() or multiprocessing, or open the queue "
                "only in the child."
            )

    def is_in_place(self) -> bool:
        """Whether the path leads to this file (one ``stat``)."""
        try:
            found = os.stat(self.path, follow_symlinks=False)  # noqa: PTH116 - on the path of every push
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise plain_error(self.path, error) from error
        return (found.st_dev, found.st_ino) == self.identity

    def check_in_place(self) -> None:
        """Make sure that the path leads to this file, or go on with its successor; else raise ``QueueGone``."""
        if not self.is_in_place():
            self._follow()

    def _follow(self) -> None:
        """Go on with the file that took the place of ours, if ours was put aside; else raise ``QueueGone``."""
        if not is_aside(self.path, self.identity):
            raise self._gone()
        if self.writers_lock.is_mine:
            self.rebind()
        else:  # whoever makes the new file has the turn
            with self.writers_lock.turn():
                self.rebind()

    def rebind(self) -> None:
        """Go on with the file that is at the path now. The writers' turn is held."""
        try:
            found = self.path.stat(follow_symlinks=False)
            connection = open_connection(self.path)
        except (OSError, apsw.Error) as error:
            raise self._gone() from error
        try:
            meta = read_meta(connection, self.path)
        except apsw.Error as error:
            raise self._gone() from error
        finally:
            connection.close()
        with self._guard:
            self.identity, self.meta = (found.st_dev, found.st_ino), meta
            self.files += 1
            self._generation += 1
            self._schema_version = None
            self._close_idle()

    def _gone(self) -> QueueGone:
        return QueueGone(
            f"{self.path}: the queue's file was deleted or replaced under this program; nothing more is stored or sent here. "
            "Build a new writer or reader."
        )

    # Work: whoever holds a connection or the writers' turn is inside, so that a fork can wait for the end of it.

    def _begin_work(self, work: int) -> None:
        self.check_process()
        me = threading.get_ident()
        with self._guard:
            while self._fork_pending and me not in self._at_work.values():
                self._work_ended.wait()
            self._at_work[work] = me

    def _end_work(self, work: int) -> None:
        with self._guard:
            self._at_work.pop(work, None)
            if self._fork_pending:
                self._work_ended.notify_all()

    def connection(self, kind: Kind) -> _Lease:
        """Lend a connection to the calling thread, for reading."""
        return _Lease(self, kind)

    def transaction(self, kind: Kind) -> _Transaction:
        """Take the writers' turn and hold one write transaction; an exception rolls it back."""
        return _Transaction(self, kind)

    def _take(self, kind: Kind) -> apsw.Connection:
        try:
            return self._idle[kind].pop()
        except IndexError:
            return self._connect(kind)

    def _give_back(self, kind: Kind, connection: apsw.Connection, of_file: int) -> None:
        idle = self._idle[kind]
        is_current = of_file == self.files and not connection.in_transaction
        if is_current and len(idle) < _MAX_IDLE_CONNECTIONS:
            idle.append(connection)
        else:
            connection.close()

    def _connect(self, kind: Kind) -> apsw.Connection:
        self.check_in_place()
        connection = open_connection(self.path)
        try:
            # Between the check and the opening the path may have been replaced, and inode numbers are used again.
            self.check_in_place()
            self._check_is_same(connection)
            connection.pragma("synchronous", "FULL" if kind is Kind.FULL else "NORMAL")
            connection.set_wal_hook(self._wal.note)
            if kind is Kind.READER:
                connection.set_busy_handler(self.reader_patience.handle_busy)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_is_same(self, connection: apsw.Connection) -> None:
        if connection.execute(sql.READ_QUEUE_ID).get != self.meta.queue_id:
            raise self._gone()

    def _check_schema(self, connection: apsw.Connection) -> None:
        found = connection.execute(sql.SCHEMA_VERSION).get
        if found != self._schema_version:
            read_meta(connection, self.path)
            self._schema_version = found

    # Syncs and checkpoints

    def _confirm(self, failed_before: int, *, synced: bool) -> None:
        try:
            self._sync.confirm(failed_before, synced=synced)
        except Unconfirmed as error:
            raise UncertainCommit(
                f"{self.path}: the disk did not confirm a write ({error}): it was stored, but a power cut may lose it. "
                "Check the disk."
            ) from error

    def _ready_to_sync(self, connection: apsw.Connection) -> int:
        """With the writers' turn, before a durable transaction: mend what a failed sync left.

        Returns what ``_confirm`` wants to know.
        """
        record = self._sync.read()
        if record.is_doubtful:
            try:
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                self._sync.note_mended(record)
            except (apsw.IOError, OSError) as error:
                raise QueueError(
                    f"{self.path}: the disk did not confirm an earlier write, and still fails ({error}); nothing was stored. "
                    "Check the disk."
                ) from error
        return record.failed

    def _note_failed_sync(self, error: apsw.Error) -> None:
        if is_failed_sync(error):
            with suppress(OSError):
                self._sync.note_failure()

    def checkpoint(self, kind: Kind) -> None:
        """Copy the WAL into the file: nearly all of it without the lock, the last frames with it.

        Without the second step steady writers would let the WAL grow for ever, since it starts anew only when everything in
        it was copied (measured: 562 MB in 4 s instead of 6). The pushes since the last time are entered into the books first,
        so that a tail of the file that gets damaged cannot hide more than these.
        """
        with suppress(DiskFull), self.transaction(kind) as connection:
            connection.execute(sql.ENTER_PUSHES)
        with self.connection(kind) as connection:
            try:
                if self._sync.read().is_doubtful:
                    with self.writers_lock.turn():
                        self._ready_to_sync(connection)
                    return
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                with self.writers_lock.turn():
                    frames, copied = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except apsw.BusyError:  # somebody else is at it; here SQLite does not wait
                return
            except apsw.Error as error:
                self._note_failed_sync(error)
                raise
        self._wal.note_checkpoint(frames, copied)

    def checkpoint_above(self, frames: int, kind: Kind) -> None:
        """Checkpoint when the WAL has grown by so many frames since the last time.

        To be called after a commit. What was committed stays so: an error is logged and not raised.
        """
        if not self._wal.is_above(frames):
            return
        try:
            self.checkpoint(kind)
        except QueueError as error:
            now = time.monotonic()
            last = self._checkpoint_warned_at
            if last is None or now - last >= _CHECKPOINT_WARNING_EVERY_SECONDS:
                self._checkpoint_warned_at = now
                logger.warning("the queue's write-ahead log grows, since it cannot be copied: %s", error)

    # Waking readers

    def change_mark(self) -> tuple[int, int]:
        """A value that changes when another connection, here or in another process, has committed.

        It may also change without a commit (after a fork).
        """
        with self.connection(Kind.WATCH) as connection:
            return self._generation, connection.execute(sql.DATA_VERSION).get

    def add_waker(self, wake: Callable[[], None]) -> None:
        """Have ``wake`` called after each push of this process."""
        with self._guard:
            self._wakers = [*self._wakers, wake]

    def remove_waker(self, wake: Callable[[], None]) -> None:
        """Undo ``add_waker``."""
        with self._guard:
            self._wakers = [other for other in self._wakers if other != wake]

    def wake_readers(self) -> None:
        """Call this after a push."""
        for wake in self._wakers:
            wake()

    # Forks

    def prepare_fork(self) -> None:
        """Let other threads' transactions end, keep new ones from beginning, close everything; then hold the guard.

        After an error, and after ``_FORK_PATIENCE_SECONDS`` (``QueueError``), all is as before.
        """
        self._guard.acquire()
        try:
            self._fork_pending = True
            self._wait_for_work_to_end()
            self._close_idle()
            if not self._at_work:
                self.writers_lock.close()
                self._sync.close()
            self._generation += 1
        except BaseException:
            self.resume_in_parent()
            raise

    @contextmanager
    def nobody_at_work(self) -> Iterator[None]:
        """Keep other threads away, and everything closed. For who replaces the file; the writers' turn may be taken within."""
        self.prepare_fork()
        try:
            yield
        finally:
            self.resume_in_parent()

    def _wait_for_work_to_end(self) -> None:
        me = threading.get_ident()
        ended = self._work_ended.wait_for(
            lambda: all(thread == me for thread in self._at_work.values()), _FORK_PATIENCE_SECONDS
        )
        if not ended:
            raise QueueError(f"{self.path}: a fork could not wait for a transaction to end")

    def resume_in_parent(self) -> None:
        """After a fork, in the parent."""
        self._fork_pending = False
        self._work_ended.notify_all()
        self._guard.release()

    def resume_in_child(self) -> None:
        """After a fork, in the child, where no other thread exists."""
        interrupted = bool(self._at_work)
        self._guard = threading.RLock()
        self._work_ended = threading.Condition(self._guard)
        self._fork_pending = False
        self._wakers = []
        # A fork out of the middle of our own transaction (from a signal handler) left its connection open: the child keeps
        # the parent's process id on record, so that it refuses to work instead of writing through it.
        if not interrupted:
            self.writers_lock.reset_in_child()
            self._sync.reset_in_child()
            self._pid = os.getpid()

    def _close_idle(self) -> None:
        for connections in self._idle:
            while connections:
                connections.pop().close()


_works = count()


class _Lease:
    """A connection lent to a thread for the length of a ``with``.

    An exception of a signal handler may come between any two bytecodes, also in here. So every step of ``_end`` may be repeated, and
    is, at the latest when the ``with`` lets go of this object.
    """

    __slots__ = ("_connection", "_database", "_kind", "_of_file", "_work")

    def __init__(self, database: Database, kind: Kind) -> None:
        self._database = database
        self._kind = kind
        self._of_file = database.files
        self._work: int | None = None
        self._connection: apsw.Connection | None = None

    def __del__(self) -> None:
        if getattr(self, "_work", None) is not None:  # it may have been interrupted in __init__
            self._end()

    def __enter__(self) -> apsw.Connection:
        database = self._database
        self._work = next(_works)
        try:
            database._begin_work(self._work)  # noqa: SLF001
            return self._begin()
        except (apsw.Error, OSError) as error:
            self._end()
            raise plain_error(database.path, error) from error
        except BaseException:
            self._end()
            raise

    def _begin(self) -> apsw.Connection:
        return self._take()

    def _take(self) -> apsw.Connection:
        # Read before: if the file changes in between, the connection counts as one of the old file, and is closed.
        self._of_file = self._database.files
        connection = self._connection = self._database._take(self._kind)  # noqa: SLF001
        return connection

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            # Forked in the middle: the parent goes on, and holds the locks that this process seems to have.
            self._database.check_process()
            if error is None:
                self._commit()
        finally:
            self._end()
        if isinstance(error, (apsw.Error, OSError)):
            raise plain_error(self._database.path, error) from error

    def _commit(self) -> None:
        """Nothing is to be committed after reading."""

    def _end(self) -> None:
        if self._work is None:
            return
        database = self._database
        # Whoever is interrupted after this line leaves the connection to nobody, and so it is closed.
        connection, self._connection = self._connection, None
        if not database.is_of_this_process:
            if connection is not None:
                _abandon(connection)
            return
        if connection is not None:
            if connection.in_transaction:
                with suppress(apsw.Error):  # closing it does the same
                    connection.execute(sql.ROLLBACK)
            database._give_back(self._kind, connection, self._of_file)  # noqa: SLF001
        self._end_turn()
        database._end_work(self._work)  # noqa: SLF001
        self._work = None

    def _end_turn(self) -> None:
        """No turn is taken for reading."""


class _Transaction(_Lease):
    """A write transaction for the length of a ``with``."""

    __slots__ = ("_failed_before", "_has_turn", "_is_durable")

    def __init__(self, database: Database, kind: Kind) -> None:
        super().__init__(database, kind)
        self._has_turn = False
        self._is_durable = kind is Kind.FULL
        self._failed_before = 0

    def _begin(self) -> apsw.Connection:
        database = self._database
        database.writers_lock.refuse_nesting()
        self._has_turn = True  # before it is so: giving back too much does no harm
        database.writers_lock.acquire(database.reader_patience if self._kind is Kind.READER else None)
        if self._is_durable and database.writers_lock.is_contended:
            self._kind = Kind.NORMAL  # and a sync after the turn
        for _ in range(_MOST_SUCCESSORS):
            connection = self._take()
            if self._is_durable:
                self._failed_before = database._ready_to_sync(connection)  # noqa: SLF001
            connection.execute(sql.BEGIN)
            if database.is_in_place():
                break
            self._connection = None
            connection.close()
            database._follow()  # noqa: SLF001
        database._check_schema(connection)  # noqa: SLF001
        return connection

    def _commit(self) -> None:
        if self._connection is None:
            return
        try:
            self._connection.execute(sql.COMMIT)
        except apsw.Error as error:
            self._database._note_failed_sync(error)  # noqa: SLF001
            raise commit_error(self._database.path, error) from error
        if self._is_durable:
            self._end_turn()
            self._database._confirm(self._failed_before, synced=self._kind is Kind.FULL)  # noqa: SLF001

    def _end_turn(self) -> None:
        if self._has_turn:
            self._database.writers_lock.release()
            self._has_turn = False


def _abandon(connection: apsw.Connection) -> None:
    """Keep a connection that a fork copied from ever being closed: its rollback would work on the parent's ``-shm``."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
