"""The size limit: oldest messages out, in small steps inside the pushes that need it; or the push refused.

The size is that of the live pages, less those that an empty queue takes. Dead letters beyond their own share go first. What then
happens is ``Overflow``:

- ``DROP_OLDEST``: the newest message stays whatever its size, messages in flight stay, and no push pays for more than its share: a
  step removes at most ``STEP_ROWS`` rows and about ``STEP_BYTES``, and a push takes as many steps as its own size asks for, then
  leaves the rest to the next one. So a queue is above its limit by no more than what is in flight, the newest message, and the
  dead letters that may yet go back; but for a while when the limit was lowered.
- ``REJECT``: a push that leaves the queue over its limit is rolled back (``QueueFull``). One into a queue in which nothing waits is not,
  so that a message that is allowed by its length can always be stored.

While the disk is low (``min_free_disk``), the file does not grow: a push first frees as many pages in it as it will need, by removing
the oldest messages, or is rolled back when the file would have to grow. Where nothing is left that may be removed, ``DROP_OLDEST``
lets it grow by that push: it never refuses a message.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from infi.ramen_client.errors import QueueFull

from . import _statements as sql
from ._settle import dead_letters_share, discard_oldest_dead

if TYPE_CHECKING:
    from pathlib import Path

    import apsw

    from ._connection import Meta

STEP_ROWS = 100
"""Removing 100 rows every 64 pushes of 1 KB keeps 0.88 to 1.03 of the push rate (measured)."""

STEP_BYTES = 64 * 1024
"""Rows of 200 KB in steps of 100 would take the p99 of a push from 5 to 17 ms (measured)."""

_FIRST_OF_2X = 0
"""The backlog of a 1.x file has positions below it, once it was moved."""

_EVERY_ROW = 2**63 - 1


_PAGE_BYTES = 4096

_ROW_OVERHEAD_BYTES = 300
"""What a message takes beside its payload, generously."""

_SPLIT_PAGES = 4
"""Pages that an insert may need beside those that hold the rows."""


class Overflow(Enum):
    """What a push does at the limit, as the configuration names it."""

    DROP_OLDEST = "drop_oldest"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class SizeLimit:
    """How large a queue may be, and what is to be known of its file for that."""

    path: Path
    max_bytes: int
    overflow: Overflow
    meta: Meta


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What went to make room: messages for the limit's sake, messages for the disk's, dead letters."""

    messages: int = 0
    for_disk: int = 0
    dead_letters: int = 0


_NOTHING = Trimmed()


@dataclass(slots=True)
class BeforePush:
    """The state before the messages of a push go in. ``most_pages`` is how large the file may become, None: not bounded.

    Not frozen, for the same reason as ``NewMessage``.
    """

    pushed_bytes: int
    anything_waits: bool = False
    most_pages: int | None = None
    removed: int = 0


def live_pages(connection: apsw.Connection) -> int:
    """How many pages of the file are in use."""
    pages: int = connection.execute(sql.PAGE_COUNT).get - connection.execute(sql.FREELIST_COUNT).get
    return pages


def live_bytes(connection: apsw.Connection, empty_pages: int) -> int:
    """What the messages take in the file."""
    return max(0, live_pages(connection) - empty_pages) * _PAGE_BYTES


def before_push(
    connection: apsw.Connection, limit: SizeLimit, *, rows: int, pushed_bytes: int, disk_is_low: bool
) -> BeforePush:
    """Make room in the file where the disk is low; to be called in the push's transaction, before its messages go in."""
    if limit.overflow is Overflow.REJECT:
        return BeforePush(
            pushed_bytes,
            anything_waits=bool(connection.execute(sql.ANY_WAITING).get),
            most_pages=connection.execute(sql.PAGE_COUNT).get if disk_is_low else None,
        )
    if not disk_is_low:
        return BeforePush(pushed_bytes)
    needed = (pushed_bytes + rows * _ROW_OVERHEAD_BYTES) // _PAGE_BYTES + _SPLIT_PAGES
    removed = removed_bytes = 0
    while removed_bytes < _most_bytes(pushed_bytes) and connection.execute(sql.FREELIST_COUNT).get < needed:
        gone, size = _step(connection, _EVERY_ROW, limit.meta.inlet_boundary)
        if not gone:
            break
        removed += gone
        removed_bytes += size
    return BeforePush(pushed_bytes, removed=removed)


def after_push(
    connection: apsw.Connection, limit: SizeLimit, before: BeforePush, *, newest: int, pages: int
) -> Trimmed:
    """Bring the queue towards its limit, or raise ``QueueFull``.

    ``newest``: the position that stays. ``pages``: how many pages the database has now.
    """
    # The free pages need not be looked at while the whole file is within the limit.
    within = pages <= limit.meta.empty_pages + limit.max_bytes // _PAGE_BYTES
    if limit.overflow is Overflow.REJECT:
        return _refuse_overflow(connection, limit, before, pages=pages, within=within)
    if within and not before.removed:
        return _NOTHING
    removed = dead_letters = removed_bytes = 0
    while (
        not within
        and removed_bytes < _most_bytes(before.pushed_bytes)
        and live_bytes(connection, limit.meta.empty_pages) > limit.max_bytes
    ):
        size = discard_oldest_dead(
            connection, share_bytes=dead_letters_share(limit.max_bytes), but_the_newest=False
        )
        if size:
            dead_letters += 1
        else:
            rows, size = _step(connection, newest, limit.meta.inlet_boundary)
            if not rows:
                break
            removed += rows
        removed_bytes += size
    return Trimmed(removed, before.removed, dead_letters)


def _most_bytes(pushed_bytes: int) -> int:
    """How much one push may remove."""
    # Pages are given back when every row on them has gone, so a push must be free to remove twice what it added.
    return 2 * pushed_bytes + STEP_BYTES


def _refuse_overflow(
    connection: apsw.Connection, limit: SizeLimit, before: BeforePush, *, pages: int, within: bool
) -> Trimmed:
    """Return what dead letters went; ``QueueFull`` when that does not help."""
    if before.most_pages is not None and pages > before.most_pages:
        raise QueueFull(
            f"{limit.path}: its file system has less free than min_free_disk, so the queue does not grow; nothing was stored. "
            "Free some space, or push again when messages were delivered."
        )
    dead_letters = discarded = 0
    while not within and live_bytes(connection, limit.meta.empty_pages) > limit.max_bytes:
        size = 0
        if discarded < _most_bytes(before.pushed_bytes):
            size = discard_oldest_dead(
                connection, share_bytes=dead_letters_share(limit.max_bytes), but_the_newest=False
            )
        if size:
            dead_letters += 1
            discarded += size
        elif before.anything_waits:
            raise QueueFull(
                f"{limit.path}: the queue is at its limit of {limit.max_bytes} bytes; nothing was stored. Push again when messages "
                "were delivered, or raise max_queue_size."
            )
        else:
            break
    return Trimmed(dead_letters=dead_letters)


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
