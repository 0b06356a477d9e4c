"""Connections lent to a thread: to read (``Lease``), or for one write transaction in the writers' turn (``Transaction``).

``Database`` holds the connections and knows the file; here is the order of the steps, which every push takes. What counts there is
less the work itself than what it touches: after the sleep of a sync the processor's caches are cold, and the same steps take twice as
long (measured). So a connection keeps one cursor (making one costs as much as a small statement), and nothing is asked twice.

An exception of a signal handler may come between any two bytecodes, also in here. So every step of ``_end`` may be repeated, and is,
at the latest when the ``with`` lets go of this object.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from itertools import count
from os import getpid
from typing import TYPE_CHECKING

import apsw

from infi.ramen_client.errors import DiskFull

from . import _statements as sql
from ._connection import Kind
from ._errors import commit_error, no_space, plain_error
from ._reserve import PAGE_BYTES, database_bytes, hold_spare, lengthen, whole_chunks

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from ._database import Database

_MOST_SUCCESSORS = 3
"""A file that is put aside again while we are on our way to it is out of order."""

_works = count()


class PooledConnection:
    """An open connection, and what belongs to it."""

    __slots__ = ("connection", "has_room", "head", "pages", "run", "seen")

    def __init__(self, connection: apsw.Connection) -> None:
        self.connection = connection
        self.run: Callable[..., Any] = connection.cursor().execute
        """Executes one statement, whose rows must be taken before the next one."""
        self.seen: int | None = None
        """The connection's ``data_version()`` when its last commit ended: while it is the same, nobody else has written."""
        self.pages: int | None = None
        """How many pages the database had then."""
        self.has_room = False
        """Whether its file was looked at when it had so many pages already: before, a checkpoint may have cut it."""
        self.head: int | None = None
        """The highest position in use then, where it was a push."""


class Lease:
    """A connection lent to a thread for the length of a ``with``."""

    __slots__ = ("_database", "_kind", "_of_file", "_pooled", "_work")

    def __init__(self, database: Database, kind: Kind) -> None:
        self._database = database
        self._kind = kind
        self._of_file = 0
        self._work: int | None = None
        self._pooled: PooledConnection | None = None

    def __del__(self) -> None:
        if getattr(self, "_work", None) is not None:  # it may have been interrupted in __init__
            self._end()

    def __enter__(self) -> apsw.Connection:
        database = self._database
        self._work = work = next(_works)
        try:
            if database.pid != getpid():
                database.check_process()
            database.work.begin(work)
            return self._begin()
        except (apsw.Error, OSError) as error:
            self._end()
            raise plain_error(database.path, error) from error
        except BaseException:
            self._end()
            raise

    def _begin(self) -> apsw.Connection:
        return self._take().connection

    def _take(self) -> PooledConnection:
        # Read before: if the file changes in between, the connection counts as one of the old file, and is closed.
        self._of_file = self._database.files
        pooled = self._pooled = self._database.take(self._kind)
        return pooled

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        system_errno = 0
        try:
            # Forked in the middle: the parent goes on, and holds the locks that this process seems to have.
            if self._database.pid != getpid():
                self._database.check_process()
            if error is None:
                self._commit()
            elif self._pooled is not None:
                system_errno = self._pooled.connection.system_errno
        finally:
            self._end()
        if isinstance(error, (apsw.Error, OSError)):
            raise plain_error(self._database.path, error, system_errno) from error

    def _commit(self) -> None:
        """Nothing is to be committed after reading."""

    def _end(self) -> None:
        work = self._work
        if work is None:
            return
        database = self._database
        # Whoever is interrupted after this line leaves the connection to nobody, and so it is closed.
        pooled, self._pooled = self._pooled, None
        if database.pid != getpid():
            if pooled is not None:
                _abandon(pooled.connection)
            return
        if pooled is not None:
            if pooled.connection.in_transaction:
                with suppress(apsw.Error):  # closing it does the same
                    pooled.connection.execute(sql.ROLLBACK)
            database.give_back(self._kind, pooled, self._of_file)
        self._end_turn()
        database.work.end(work)
        self._work = None

    def _end_turn(self) -> None:
        """No turn is taken for reading."""


class Transaction(Lease):
    """A write transaction for the length of a ``with``."""

    __slots__ = (
        "_failed_before",
        "_had_room",
        "_has_turn",
        "_is_durable",
        "_pages_before",
        "_spare_bytes",
        "head_before",
        "new_head",
        "pages",
        "run",
    )

    def __init__(self, database: Database, kind: Kind, spare_bytes: int) -> None:
        Lease.__init__(self, database, kind)
        self._spare_bytes = spare_bytes
        self._has_turn = False
        self._is_durable = kind is Kind.FULL
        self._failed_before = 0
        self.run: Callable[..., Any]
        """From ``with`` on: the connection's ``execute``, but cheaper. The rows of one statement must be taken before the next."""
        self.pages: int | None = None
        """How many pages the database has; to be set by who has asked, and makes it no longer from there on."""
        self._pages_before: int | None = None
        self._had_room = False
        self.head_before: int | None = None
        """The highest position in use at the beginning, where that is known without asking."""
        self.new_head: int | None = None
        """The highest position in use at the end; to be set by who knows."""

    def _begin(self) -> apsw.Connection:
        database = self._database
        lock = database.writers_lock
        if lock.is_mine():
            lock.refuse_nesting()
        self._has_turn = True  # before it is so: giving back too much does no harm
        lock.acquire(database.reader_patience if self._kind is Kind.READER else None)
        if self._is_durable and lock.is_contended:
            self._kind = Kind.NORMAL  # and a sync after the turn
        for _ in range(_MOST_SUCCESSORS):
            pooled = self._take()
            connection = pooled.connection
            if self._is_durable:
                self._failed_before = database.ready_to_sync(connection)
            run = self.run = pooled.run
            run(sql.BEGIN)
            if database.is_still_in_place():
                break
            self._pooled = None
            connection.close()
            database.follow()
        else:
            raise database.gone()
        seen, pooled.seen = pooled.seen, None
        if seen is not None and seen == connection.data_version():
            self._pages_before, self._had_room, self.head_before = pooled.pages, pooled.has_room, pooled.head
        else:
            database.check_schema(connection)
        return connection

    def _commit(self) -> None:
        pooled = self._pooled
        if pooled is None:
            return
        database = self._database
        connection = pooled.connection
        was_lengthened = self._lengthen(pooled)
        try:
            pooled.run(sql.COMMIT)
        except apsw.Error as error:
            database.note_failed_sync(error)
            raise commit_error(database.path, error, connection.system_errno) from error
        pooled.pages, pooled.has_room, pooled.head = self.pages, self._is_no_longer(), self.new_head
        pooled.seen = connection.data_version()
        if was_lengthened:
            hold_spare(connection)  # a checkpoint may have cut the file meanwhile
        if self._is_durable:
            self._end_turn()
            database.confirm(self._failed_before, synced=self._kind is Kind.FULL)

    def _is_no_longer(self) -> bool:
        """Whether the database is known to have been as long before."""
        return self._pages_before is not None and self.pages is not None and self.pages <= self._pages_before

    def _lengthen(self, pooled: PooledConnection) -> bool:
        """Make room in the database's file for what is about to be committed to the log."""
        pages = self.pages
        if pages is None:
            pages = self.pages = int(pooled.run(sql.PAGE_COUNT).get)
        if self._had_room and self._is_no_longer():
            return False
        needed = pages * PAGE_BYTES
        wanted = needed + self._spare_bytes
        file_bytes = self._database.file_bytes() or 0
        if wanted <= whole_chunks(file_bytes):
            return False
        try:
            if lengthen(pooled.connection, wanted):
                return True
        except apsw.Error as error:
            raise plain_error(self._database.path, error) from error
        with self._database.connection(Kind.NORMAL) as other:
            is_longer = needed > database_bytes(other)
        if is_longer or needed > file_bytes:
            raise DiskFull(no_space(self._database.path))
        return False

    def _end_turn(self) -> None:
        if self._has_turn:
            self._database.writers_lock.release()
            self._has_turn = False


def _abandon(connection: apsw.Connection) -> None:
    """Keep a connection that a fork copied from ever being closed: its rollback would work on the parent's ``-shm``."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
