"""What a queue's file says at one instant, for ``status``.

Single rows and the ends of indexes, whatever the backlog: one read transaction of some statements, shorter than a millisecond, so
that it neither holds anybody up nor keeps the WAL from being copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _statements as sql
from ._aside import waiting_aside
from ._database import Kind
from ._filesystem import free_bytes
from ._trim import live_bytes
from .books import Entries, read_books
from .rules import StoredRule, read_rules
from .streams import WaitingStream, read_waiting_streams

if TYPE_CHECKING:
    import apsw

    from ._connection import Meta
    from ._database import Database


_MOST_STREAMS = 100
"""So many of those that wait are shown."""


@dataclass(frozen=True, slots=True)
class ReaderRecord:
    """What the active reader wrote down. Times are milliseconds since the epoch; None: never, or not so."""

    pid: int | None
    """Of the reader that last had something to do."""
    started_at_ms: int | None
    stopped_at_ms: int | None
    """None while it runs, and when it was killed."""
    failures: int
    """In a row."""
    failing_since_ms: int | None
    last_success_at_ms: int | None
    last_error_at_ms: int | None
    last_error: str | None
    last_status: int | None
    retry_at_ms: int | None


@dataclass(frozen=True, slots=True)
class ServerRecord:
    """What was learned of the server that was last heard of."""

    origin: str
    failures: int
    suspect_since_ms: int | None
    retry_at_ms: int | None
    """What the server itself asked for."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A queue at one instant."""

    entries: Entries
    bytes_used: int
    in_flight: int
    oldest_waiting_since_ms: int | None
    damaged_files: int
    """Put aside, and still to be carried over by the reader."""
    disk_free_bytes: int | None
    """For this process's user, on the queue's file system; None: it cannot be seen."""
    last_1x_push_at_ms: int | None
    reader: ReaderRecord
    server: ServerRecord | None
    rules: tuple[StoredRule, ...]
    streams: tuple[WaitingStream, ...]


def take_snapshot(database: Database, meta: Meta) -> Snapshot:
    """Read everything at once."""
    damaged_files = len(waiting_aside(database.path))
    disk_free_bytes = free_bytes(database.path.parent)
    with database.connection(Kind.NORMAL) as connection:
        connection.execute(sql.BEGIN_READING)
        try:
            return Snapshot(
                read_books(connection),
                live_bytes(connection, meta.empty_pages),
                connection.execute(sql.COUNT_FLIGHT).get,
                connection.execute(sql.OLDEST_WAITING_SINCE).get,
                damaged_files,
                disk_free_bytes,
                connection.execute(sql.READ_INLET_SEEN).get,
                _reader_record(connection),
                next((ServerRecord(*row) for row in connection.execute(sql.LATEST_SERVER)), None),
                tuple(read_rules(connection)),
                read_waiting_streams(connection, _MOST_STREAMS),
            )
        finally:
            connection.execute(sql.ROLLBACK)


def _reader_record(connection: apsw.Connection) -> ReaderRecord:
    for row in connection.execute(sql.READ_READER):
        pid, started, stopped, failures, since, success, error_at, error, status, retry_at = row
        text = None if error is None else error.decode(errors="replace")
        return ReaderRecord(
            pid, started, stopped, failures or 0, since, success, error_at, text, status, retry_at
        )
    # A damaged row is gone; the next reader makes a new one.
    return ReaderRecord(None, None, None, 0, None, None, None, None, None, None)


def take_entries(database: Database) -> Entries:
    """The books alone."""
    with database.connection(Kind.NORMAL) as connection:
        return read_books(connection)
