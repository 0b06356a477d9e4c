"""Messages that are too old: removed by the active reader before it takes messages, in small steps, counted as expired.

A message's age is the wall clock's, from its push (from the retry, where an operator brought it back from the dead letters). But
a wall clock jumps: an appliance starts in the year 2000 until its time server answers, an operator mistypes a date. So beside it
the *steady* clock is read, which counts on from the machine's start and cannot be set (``CLOCK_BOOTTIME``), and what both said is
kept in the file, so that readers that come and go, and other processes, see the jump as well:

1. While the machine runs, both clocks must advance alike. Where they have come apart by more than ``tolerance``, the wall clock was
   set: everything that waits then counts from this moment on.
2. After a restart of the machine the steady clock begins anew. A wall clock that is behind what it was before is wrong, or was: as 1.
   How long the machine was off only the wall clock can know; it is believed,
3. but not at once: nothing expires before both clocks have advanced alike for ``_CONFIRM_SECONDS``, or the allowed age if that is
   shorter, after the first look since the machine's start or since a jump.

So whatever the clock does under a reader's eyes, a message expires no earlier than it should (but for the tolerance), and at the latest
one allowed age after the last jump. What nobody can see: a clock that was wrong at a push and right again before any reader looked.

Nothing is written but at a machine's start, at a jump, and when messages expire. Damaged rows are left to the claim, which makes
dead letters of them: their time may be what is damaged.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from . import _statements as sql
from ._rows import message_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import apsw

STEP_ROWS = 200
STEP_BYTES = 1024 * 1024
"""What one transaction removes at most (and a row): writers wait some milliseconds for it."""

_CONFIRM_SECONDS = 300
"""Time servers correct the clock within the first minutes."""

_MOST_TOLERANCE_MS = 60_000
_LEAST_TOLERANCE_MS = 500

_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_BEFORE_EVERY_POSITION = -(2**63)

_NEVER: tuple[Any, ...] = (None,) * 5


@dataclass(frozen=True, slots=True)
class Clocks:
    """The time by both clocks, milliseconds; ``boot`` tells the machine's starts apart."""

    wall_ms: int
    steady_ms: int
    boot: str


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(uuid4())  # not Linux: each process compares with itself alone


def read_clocks() -> Clocks:
    """The time now."""
    return Clocks(time.time_ns() // 1_000_000, time.clock_gettime_ns(_STEADY) // 1_000_000, _boot())


@dataclass(frozen=True, slots=True)
class _Record:
    """What the file knows: both clocks at the first look since the last start or jump, and who counts from when."""

    clocks: Clocks
    counted_position: int
    """Messages at or below it count from ``counted_from_ms``, whatever their own time says."""
    counted_from_ms: int


class Expiry:
    """What happens to messages older than ``max_age_seconds``."""

    def __init__(self, max_age_seconds: float, clocks: Callable[[], Clocks] = read_clocks) -> None:
        self._max_age_ms = int(max_age_seconds * 1000)
        self._tolerance_ms = max(_LEAST_TOLERANCE_MS, min(_MOST_TOLERANCE_MS, self._max_age_ms // 10))
        self._confirm_ms = min(_CONFIRM_SECONDS * 1000, self._max_age_ms)
        self._clocks = clocks

    def expire(self, connection: apsw.Connection) -> int:
        """Remove messages that are too old and not in flight, at most a step; return how many.

        In the reader's transaction. 0: of those that the next claim would take, none is too old.
        """
        now = self._clocks()
        record = self._look(connection, now)
        if now.steady_ms - record.clocks.steady_ms < self._confirm_ms:
            return 0
        counted = (record.counted_position, record.counted_from_ms)
        since_before = now.wall_ms - self._max_age_ms
        too_old = list(connection.execute(sql.TOO_OLD, (STEP_ROWS, *counted, since_before, now.wall_ms)))
        removed = size = 0
        for position, length in too_old:
            row = next(connection.execute(sql.READ_MESSAGE, (position,)))
            if message_of(row) is None:
                continue
            if not removed:
                connection.execute(sql.ENTER_PUSHES)
            connection.execute(sql.DELETE_EXPIRED, (position,))
            removed += 1
            size += length
            if size >= STEP_BYTES:
                break
        if removed:
            connection.execute(sql.COUNT_EXPIRED, (removed,))
        return removed

    def _look(self, connection: apsw.Connection, now: Clocks) -> _Record:
        """Compare the clocks with what they said before; return what is to be believed from now on."""
        boot, wall_ms, steady_ms, position, from_ms = next(connection.execute(sql.READ_CLOCKS), _NEVER)
        if boot is None:
            return self._save(connection, _Record(now, _BEFORE_EVERY_POSITION, 0))
        record = _Record(Clocks(wall_ms, steady_ms, boot), position, from_ms)
        advanced_ms = now.wall_ms - wall_ms
        if boot == now.boot:
            if abs(advanced_ms - (now.steady_ms - steady_ms)) <= self._tolerance_ms:
                return record
        elif advanced_ms >= -self._tolerance_ms:
            return self._save(connection, _Record(now, position, from_ms))
        return self._save(connection, _Record(now, connection.execute(sql.HEAD).get, now.wall_ms))

    def _save(self, connection: apsw.Connection, record: _Record) -> _Record:
        clocks = record.clocks
        connection.execute(
            sql.SAVE_CLOCKS,
            (clocks.boot, clocks.wall_ms, clocks.steady_ms, record.counted_position, record.counted_from_ms),
        )
        return record
