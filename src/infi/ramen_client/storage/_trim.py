"""The size limit: oldest messages out, in small steps inside the pushes that need it.

The size is that of the live pages, less those that an empty queue takes. Dead letters beyond their own share go first. The newest
message stays whatever its size, messages in flight stay, and no push pays for more than its share: a step removes at most
``STEP_ROWS`` rows and about ``STEP_BYTES``, and a push takes as many steps as its own size asks for, then leaves the rest to the
next one. So a queue is above its limit by no more than what is in flight, the newest message, and the dead letters that may yet
go back; but for a while when the limit was lowered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _statements as sql
from ._settle import dead_letters_share, discard_oldest_dead

if TYPE_CHECKING:
    import apsw

STEP_ROWS = 100
"""Removing 100 rows every 64 pushes of 1 KB keeps 0.88 to 1.03 of the push rate (measured)."""

STEP_BYTES = 64 * 1024
"""Rows of 200 KB in steps of 100 would take the p99 of a push from 5 to 17 ms (measured)."""

_FIRST_OF_2X = 0
"""The backlog of a 1.x file has positions below it, once it was moved."""

_EVERY_ROW = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What went to make room."""

    messages: int = 0
    dead_letters: int = 0


def live_pages(connection: apsw.Connection) -> int:
    """How many pages of the file are in use."""
    pages: int = connection.execute(sql.PAGE_COUNT).get - connection.execute(sql.FREELIST_COUNT).get
    return pages


def live_bytes(connection: apsw.Connection, empty_pages: int) -> int:
    """What the messages take in the file."""
    return max(0, live_pages(connection) - empty_pages) * 4096


def trim(
    connection: apsw.Connection,
    *,
    limit_bytes: int,
    empty_pages: int,
    newest: int,
    pushed_bytes: int,
    inlet_boundary: int,
) -> Trimmed:
    """Bring the queue towards its limit inside the running transaction.

    ``newest`` is the position that stays, ``pushed_bytes`` what this transaction has added.
    """
    # The free pages need not be looked at while the whole file is within the limit.
    if connection.execute(sql.PAGE_COUNT).get <= empty_pages + limit_bytes // 4096:
        return Trimmed()
    removed = dead_letters = removed_bytes = 0
    # Pages are given back when every row on them has gone, so a push must be free to remove twice what it added.
    most_bytes = 2 * pushed_bytes + STEP_BYTES
    while removed_bytes < most_bytes and live_bytes(connection, empty_pages) > limit_bytes:
        size = discard_oldest_dead(
            connection, share_bytes=dead_letters_share(limit_bytes), but_the_newest=False
        )
        if size:
            dead_letters += 1
        else:
            rows, size = _step(connection, newest, inlet_boundary)
            if not rows:
                break
            removed += rows
        removed_bytes += size
    return Trimmed(removed, dead_letters)


def _step(connection: apsw.Connection, newest: int, inlet_boundary: int) -> tuple[int, int]:
    """Remove some of the oldest; return how many, and their bytes."""
    connection.execute(sql.ENTER_PUSHES)
    oldest: list[tuple[int, int]] = []
    for select, bound, delete, count in (  # noqa: B007 - the ones of the first that finds something are used below
        (sql.OLDEST_TO_TRIM, min(_FIRST_OF_2X, newest), sql.TRIM_UP_TO, sql.COUNT_TRIMMED),
        (sql.OLDEST_INLET_TO_TRIM, inlet_boundary, sql.TRIM_INLET_UP_TO, sql.COUNT_INLET_TRIMMED),
        (sql.OLDEST_TO_TRIM, newest, sql.TRIM_UP_TO, sql.COUNT_TRIMMED),
        # Nothing else is left: what a 1.x writer pushes while no reader moves it.
        (sql.OLDEST_INLET_TO_TRIM, _EVERY_ROW, sql.TRIM_INLET_UP_TO, sql.COUNT_INLET_TRIMMED),
    ):
        oldest = list(connection.execute(select, (bound, STEP_ROWS)))
        if oldest:
            break
    else:
        return 0, 0
    # A small queue must not lose everything at once: an eighth of what waits is enough for a step.
    most = max(1, min(STEP_ROWS, connection.execute(sql.WAITING).get // 8))
    rows = size = last = 0
    for last, length in oldest[:most]:  # noqa: B007 - the last one seen is where the cut is
        rows += 1
        size += length
        if size >= STEP_BYTES:
            break
    connection.execute(delete, (last,))
    connection.execute(count, (rows,))
    return rows, size
