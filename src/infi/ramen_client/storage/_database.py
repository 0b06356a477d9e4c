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
- A connection is lent only while the log at its path is the one that the connections have open. A log that was deleted under them is
  copied into the database by whoever notices, since only they can still read it; then all begin a new one. Not even a ``BEGIN`` may
  come before that look: the processes share an index, which may be of the new log already.
- A write transaction looks whether its file is still at the path after its ``BEGIN``. Whoever puts a file aside holds SQLite's own
  lock on it if that is possible, so what is committed to a file that is put aside was committed before.
- A queue that is put back to an older state in its place (a backup that is copied over it, its ``-shm``, too) is noticed by the next push
  or the next transaction of the reader, since its highest position only ever grows; it is then treated as damaged (``check_head``).
- Every write transaction sees a change of the schema before it writes: a newer version that raised ``min_writer`` shuts this
  one out at once (``QueueUnusable``).
- A connection in an unknown state is closed, never used again.
- A durable transaction is on the platter when it has ended. While this process is alone, SQLite syncs in ``COMMIT``; where others
  wanted the writers' turn at the same time, it is synced after the turn (``_sync``), so that nobody waits for the disk with it.
- Before a commit that makes the database longer, its file is made as long, so that a full disk cannot keep the log from being copied
  (``_reserve``).
- There is one ``Database`` for each file in a process, shared by its writers and readers (``_registry``), since two of them would
  not see each other's thread locks.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import apsw

from infi.ramen_client.errors import DiskFull, QueueError, QueueForked, QueueGone

from . import _statements as sql
from ._aside import is_aside
from ._connection import Kind, Meta, WalGauge, open_connection, read_meta
from ._errors import Damaged, UncertainCommit, is_failed_sync, plain_error
from ._files import DirectoryWatch
from ._lease import Lease, PooledConnection, Transaction
from ._locks import WritersLock
from ._log import LogWatch
from ._mending import copy_all_again, rewrite_log
from ._patience import ReaderPatience
from ._reserve import hold_log, hold_spare
from ._sync import SharedSync, Unconfirmed
from ._work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ._files import Access

__all__ = ["Database", "Kind"]

logger = logging.getLogger("ramen_client")

_MAX_IDLE_CONNECTIONS = 2
"""A kind's connections that stay open while nobody uses them; more were a burst of threads."""

_CHECKPOINT_WARNING_EVERY_SECONDS = 60.0


class Database:
    """A queue's file in this process. Made by ``_registry`` alone."""

    def __init__(self, path: Path, identity: tuple[int, int], meta: Meta, access: Access) -> None:
        self.path = path
        self._path_text = os.fspath(path)
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
        self._head = 0  # the highest position that is known to be committed
        self._log = LogWatch(path)
        self._directory = DirectoryWatch(path.parent)
        self._checkpoint_warned_at: float | None = None
        self.pid = os.getpid()
        """The process that this object belongs to; in another one it must not be used."""
        self._generation = 0
        self.work = Work(path)
        self._idle: tuple[list[PooledConnection], ...] = tuple([] for _ in Kind)
        self._wakers: list[Callable[[], None]] = []

    def __del__(self) -> None:
        if self.is_of_this_process:
            self._close_idle()
            self.writers_lock.close()
            self._sync.close()

    @property
    def is_of_this_process(self) -> bool:
        """False after a fork that no hook could prepare."""
        return self.pid == os.getpid()

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
        return self.file_bytes() is not None

    def file_bytes(self) -> int | None:
        """How long this file is (one ``stat``), None when the path does not lead to it."""
        try:
            found = os.lstat(self._path_text)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise plain_error(self.path, error) from error
        return found.st_size if (found.st_dev, found.st_ino) == self.identity else None

    def is_still_in_place(self) -> bool:
        """As ``is_in_place``, in a quiet directory without a look at the file."""
        return self._directory.is_settled(self._directory.stamp()) or self.is_in_place()

    def check_in_place(self) -> None:
        """Make sure that the path leads to this file, or go on with its successor; else raise ``QueueGone``."""
        if not self.is_in_place():
            self.follow()

    def follow(self) -> None:
        """Go on with the file that took the place of ours, if ours was put aside; else raise ``QueueGone``."""
        if not is_aside(self.path, self.identity):
            raise self.gone()
        if self.writers_lock.is_mine():
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
            raise self.gone() from error
        try:
            meta = read_meta(connection, self.path)
        except apsw.Error as error:
            raise self.gone() from error
        finally:
            connection.close()
        with self.work.guard:
            self.identity, self.meta = (found.st_dev, found.st_ino), meta
            self.files += 1
            self._generation += 1
            self._schema_version = None
            self._head = 0
            self._close_idle()
            self._log.note_closed()

    def check_log(self) -> None:
        """Go on with a new log where the one that is open was deleted."""
        stamp = self._directory.stamp()
        if self._directory.is_settled(stamp):
            return
        if not self._log.is_in_place():
            self._leave_log()
        elif self.is_in_place():
            self._directory.settle(stamp)

    def _leave_log(self) -> None:
        self.check_in_place()
        if not self.writers_lock.is_mine():
            with self.writers_lock.turn():
                return self._leave_log()
        if self._log.is_in_place():
            return None  # another thread was faster
        is_saved = not self._log.has_successor() and self._copy_log()
        head = self._head
        self._close_idle()  # before anything is opened: a process's connections share what belongs to the log
        self.rebind()
        self._head = head  # so that it is noticed when something is missing
        hold_log(self.path)
        logger.error(
            "%s-wal: was deleted under this program%s. It is part of the queue: never remove it while programs use the queue.",
            self.path,
            "; what was in it is saved" if is_saved else ", and what was in it may be lost",
        )
        return None

    def _copy_log(self) -> bool:
        """Copy the log that the connections have open into the database; whether all of it is there now."""
        for connections in self._idle:
            for pooled in connections:
                frames, copied = pooled.connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                return bool(frames == copied)
        return False

    def gone(self) -> QueueGone:
        """The error to raise when the path leads to no file of ours."""
        return QueueGone(
            f"{self.path}: the queue's file was deleted or replaced under this program; nothing more is stored or sent here. "
            "Build a new writer or reader."
        )

    # Connections

    def connection(self, kind: Kind) -> Lease:
        """Lend a connection to the calling thread, for reading."""
        return Lease(self, kind)

    def transaction(self, kind: Kind, *, spare_bytes: int = 0) -> Transaction:
        """Take the writers' turn and hold one write transaction; an exception rolls it back.

        ``spare_bytes``: how much longer than the database its file must be afterwards if it makes the database longer, else
        ``DiskFull``.
        """
        return Transaction(self, kind, spare_bytes)

    def take(self, kind: Kind) -> PooledConnection:
        """Give an idle connection, or a new one."""
        self.check_log()
        try:
            return self._idle[kind].pop()
        except IndexError:
            return PooledConnection(self._connect(kind))

    def give_back(self, kind: Kind, pooled: PooledConnection, of_file: int) -> None:
        """Keep a connection for the next, or close it: one of a former file, one in an unknown state, one too many."""
        idle = self._idle[kind]
        if (
            of_file == self.files
            and not pooled.connection.in_transaction
            and len(idle) < _MAX_IDLE_CONNECTIONS
        ):
            idle.append(pooled)
        else:
            pooled.connection.close()

    def _connect(self, kind: Kind) -> apsw.Connection:
        self.check_in_place()
        connection = open_connection(self.path)
        try:
            # Between the check and the opening the path may have been replaced, and inode numbers are used again.
            self.check_in_place()
            self._check_is_same(connection)
            self._log.note_opened()
            connection.pragma("synchronous", "FULL" if kind is Kind.FULL else "NORMAL")
            connection.set_wal_hook(self._wal.note)
            if kind is Kind.READER:
                connection.set_busy_handler(self.reader_patience.handle_busy)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_is_same(self, connection: apsw.Connection) -> None:
        if connection.execute(sql.READ_QUEUE_ID).get != self.meta.queue_id.encode():
            raise self.gone()

    def check_schema(self, connection: apsw.Connection) -> None:
        """In a transaction: look whether a newer version shuts this one out."""
        found = connection.execute(sql.SCHEMA_VERSION).get
        if found != self._schema_version:
            read_meta(connection, self.path)
            self._schema_version = found

    def check_head(self, head: int | None) -> None:
        """Notice that the file is an older one than it was: ``Damaged``.

        To be called in a write transaction, with the highest position; None: the books are gone, which says nothing about it.
        """
        if head is None:
            return
        if head < self._head:
            raise Damaged(
                f"{self.path}: was put back to an older state, which ends at message {head} instead of {self._head}"
            )
        self._head = head

    def note_head(self, head: int) -> None:
        """To be called after the commit of a push."""
        self._head = max(self._head, head)

    # Syncs and checkpoints

    def confirm(self, failed_before: int, *, synced: bool) -> None:
        """Return when what was committed is on the platter, or raise ``UncertainCommit``; as ``SharedSync.confirm``."""
        try:
            self._sync.confirm(failed_before, synced=synced)
        except Unconfirmed as error:
            raise UncertainCommit(
                f"{self.path}: the disk did not confirm a write ({error}): it was stored, but a power cut may lose it. "
                "Check the disk."
            ) from error

    def ready_to_sync(self, connection: apsw.Connection) -> int:
        """With the writers' turn, before a durable transaction: mend what a failed sync left.

        Returns what ``confirm`` wants to know.
        """
        record = self._sync.read()
        if record.is_doubtful:
            try:
                rewrite_log(connection, self.path)
                copy_all_again(connection)
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                self._sync.note_mended(record)
                hold_log(self.path)
                hold_spare(connection)
            except (apsw.IOError, OSError) as error:
                raise QueueError(
                    f"{self.path}: the disk did not confirm an earlier write, and still fails ({error}); nothing was stored. "
                    "Check the disk."
                ) from error
        return record.failed

    def note_failed_sync(self, error: apsw.Error) -> None:
        """Have the others know, if it was a sync that SQLite could not do."""
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
                        self.ready_to_sync(connection)
                    return
                connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                with self.writers_lock.turn():
                    frames, copied = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                    hold_spare(connection)
            except apsw.BusyError:  # somebody else is at it; here SQLite does not wait
                return
            except apsw.Error as error:
                self.note_failed_sync(error)
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
        with self.work.guard:
            self._wakers = [*self._wakers, wake]

    def remove_waker(self, wake: Callable[[], None]) -> None:
        """Undo ``add_waker``."""
        with self.work.guard:
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
        self.work.pause()
        try:
            self._close_idle()
            if not self.work.threads:
                self.writers_lock.close()
                self._sync.close()
                self._log.note_closed()
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

    def resume_in_parent(self) -> None:
        """After a fork, in the parent."""
        self.work.go_on()

    def resume_in_child(self) -> None:
        """After a fork, in the child, where no other thread exists."""
        interrupted = bool(self.work.threads)
        self.work.reset_in_child()
        self._wakers = []
        # A fork out of the middle of our own transaction (from a signal handler) left its connection open: the child keeps
        # the parent's process id on record, so that it refuses to work instead of writing through it.
        if not interrupted:
            self.writers_lock.reset_in_child()
            self._sync.reset_in_child()
            self.pid = os.getpid()

    def _close_idle(self) -> None:
        for connections in self._idle:
            while connections:
                connections.pop().connection.close()
