"""What a queue's file says at one instant, for ``status``.

Single rows and the ends of indexes, whatever the backlog: one read transaction of some statements, shorter than a millisecond, so
that it neither holds anybody up nor keeps the WAL from being copied.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _statements as sql
from ._database import Kind
from ._trim import live_bytes
from .books import Entries, read_books
from .rules import StoredRule, read_rules

if TYPE_CHECKING:
    from ._connection import Meta
    from ._database import Database


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
    last_1x_push_at_ms: int | None
    reader: ReaderRecord
    server: ServerRecord | None
    rules: tuple[StoredRule, ...]


def take_snapshot(database: Database, meta: Meta) -> Snapshot:
    """Read everything at once."""
    with database.connection(Kind.NORMAL) as connection:
        connection.execute(sql.BEGIN_READING)
        try:
            return Snapshot(
                read_books(connection),
                live_bytes(connection, meta.empty_pages),
                connection.execute(sql.COUNT_FLIGHT).get,
                connection.execute(sql.OLDEST_WAITING_SINCE).get,
                connection.execute(sql.READ_INLET_SEEN).get,
                ReaderRecord(*next(connection.execute(sql.READ_READER))),
                next((ServerRecord(*row) for row in connection.execute(sql.LATEST_SERVER)), None),
                tuple(read_rules(connection)),
            )
        finally:
            connection.execute(sql.ROLLBACK)


def take_entries(database: Database) -> Entries:
    """The books alone."""
    with database.connection(Kind.NORMAL) as connection:
        return read_books(connection)
