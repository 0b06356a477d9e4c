"""Removing waiting messages for an operator, beside living writers and a living reader.

Invariants:

- What is in flight stays, whatever was asked: its outcome is the server's to give. What a dead reader left in flight is not in flight
  any more. Whether a reader lives is asked inside each step's transaction, where no reader can claim.
- What was pushed after the beginning stays, so a purge ends however busy the writers are.
- Each message is counted as purged in the transaction that removes it; who is interrupted has purged a part, and the books balance.

A step looks at ``STEP_ROWS`` rows and removes at most about ``STEP_BYTES`` of payloads; then it lets the others work for as long as
it worked itself. The 1.x table comes first: what a reader moves out of it meanwhile is found among the messages.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _statements as sql
from ._database import Kind
from .reader_process import reader_holder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import apsw

    from ._database import Database

STEP_ROWS = 500
STEP_BYTES = 1024 * 1024

_CHECKPOINT_FRAMES = 400
_BEFORE_ALL = -(2**63)
_SHORTEST_PAUSE_SECONDS = 0.001

_Bindings = dict[str, str | int | None]


@dataclass(frozen=True, slots=True)
class Matching:
    """Which rows are meant; None: any."""

    category: str | None = None
    data_type: str | None = None
    before_ms: int | None = None
    """Pushed, or brought back from the dead letters, before then; of a dead letter: died before then."""

    def bindings(self) -> _Bindings:
        """As the statements have it."""
        return {"category": self.category, "data_type": self.data_type, "before": self.before_ms}


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge removed, or would remove."""

    messages: int = 0
    in_flight: int = 0
    """Selected too, but left alone: the reader has sent them, or is about to."""

    def __add__(self, other: Purged) -> Purged:
        return Purged(self.messages + other.messages, self.in_flight + other.in_flight)


def purge(
    database: Database, matching: Matching, *, dry_run: bool, sleep: Callable[[float], None] = time.sleep
) -> Purged:
    """Remove the waiting messages that match."""
    purged = Purged()
    for last, page, remove in (
        (sql.INLET_LAST_ID, sql.PURGE_INLET_PAGE, _remove_from_inlet),
        (sql.HEAD, sql.PURGE_PAGE, _remove),
    ):
        with database.connection(Kind.NORMAL) as connection:
            bindings = {**matching.bindings(), "after": _BEFORE_ALL, "end": connection.execute(last).get}
        while True:
            began = time.monotonic()
            bindings = {**bindings, "reader_lives": _reader_lives(database), "rows": STEP_ROWS}
            with database.connection(Kind.NORMAL) as connection:
                step = _look(connection.execute(page, bindings))
            if step is None:
                break
            end, found = step
            if dry_run:
                purged += found
            elif found != Purged():
                purged += _take_step(database, remove, {**bindings, "end": end})
                sleep(max(_SHORTEST_PAUSE_SECONDS, time.monotonic() - began))
            bindings["after"] = end
    return purged


def _look(rows: Iterable[tuple[int, int | None, int | None, int]]) -> tuple[int, Purged] | None:
    """Where a step ends and what it finds; None: there is nothing more to look at."""
    end: int | None = None
    messages = in_flight = size = 0
    for end, length, matches, is_held in rows:  # noqa: B007 - the last one seen is the end
        if matches and is_held:
            in_flight += 1
        elif matches:
            messages += 1
            size += length or 0
            if size >= STEP_BYTES:
                break
    return None if end is None else (end, Purged(messages, in_flight))


def _take_step(
    database: Database, remove: Callable[[apsw.Connection, _Bindings], Purged], bindings: _Bindings
) -> Purged:
    with database.transaction(Kind.FULL) as connection:
        # Again: a reader that came meanwhile may have claimed.
        bindings = {**bindings, "reader_lives": _reader_lives(database)}
        connection.execute(sql.ENTER_PUSHES)
        removed = remove(connection, bindings)
    database.checkpoint_above(_CHECKPOINT_FRAMES, Kind.NORMAL)
    return removed


def _remove(connection: apsw.Connection, bindings: _Bindings) -> Purged:
    held = connection.execute(sql.COUNT_HELD, bindings).get
    connection.execute(sql.PURGE, bindings)
    purged = connection.changes()
    connection.execute(sql.COUNT_SETTLED, (purged, 0, 0, 0, purged, 0, 0))
    return Purged(purged, held)


def _remove_from_inlet(connection: apsw.Connection, bindings: _Bindings) -> Purged:
    connection.execute(sql.PURGE_INLET, bindings)
    purged = connection.changes()
    connection.execute(sql.COUNT_INLET_PURGED, (purged,))
    return Purged(purged)


def _reader_lives(database: Database) -> bool:
    return reader_holder(database.path) is not None
