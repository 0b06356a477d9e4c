"""Whether a queue is delivered as it should be; if not, why, in words. One judgement for all who ask.

``QueueReader.health()``, ``ramen status``, ``/healthz`` and the metrics ask the same functions, so they never contradict each other.
What is judged is what stands in the queue's file, whoever delivers it: not whether a thread or a process is there, but whether
messages get through.

A queue is not well (``Trouble`` names each cause) when

- messages have waited for ``STUCK_AFTER_SECONDS``, and for as long nothing was delivered: no reader runs, the server is away, or
  whatever it is; a short outage is no illness;
- the token is refused, or the server is suspect: at once, since waiting heals neither;
- the queue is at its limit, its disk is full, or a damaged file has still to be carried over;
- messages were lost or refused within the last ``RECENT_SECONDS``, as far as a ``HealthWatch`` has looked for so long: the books say
  how many were ever lost, and not when. Who looks once sees what is lost while he looks (``QueueStatus.rates``). What an operator
  removes (purges, discards) is no loss here.
- the reader's thread hangs, which only its own process can see.

Times are milliseconds since the epoch, by the wall clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ._status import ReaderState
from .delivery.outage import length_of_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ._status import QueueStatus
    from .storage import Books

__all__ = [
    "AT_LIMIT_SHARE",
    "DISK_FULL_BYTES",
    "RECENT_SECONDS",
    "STUCK_AFTER_SECONDS",
    "Health",
    "HealthWatch",
    "Observation",
    "Problem",
    "Trouble",
    "judge",
    "unreadable",
]

STUCK_AFTER_SECONDS = 120.0
"""A server may be restarted, or a reader, without anybody being called."""

RECENT_SECONDS = 900.0
"""Long enough for every monitoring to see it."""

AT_LIMIT_SHARE = 0.95
"""Of ``max_queue_size``; trimming frees a little more than it needs, so a full queue is hardly ever at 100 %."""

DISK_FULL_BYTES = 1024 * 1024
"""With less, pushes fail, or are about to (a queue's file grows by 128 KiB at once)."""

_SAMPLE_EVERY_SECONDS = 10.0
_TOKEN_REFUSED = (401, 403)

_RECENTLY = {
    "trimmed": "were thrown away for want of room",
    "expired": "were thrown away because they were too old",
    "damaged": "were lost with a damaged part of the file",
    "dead": "were refused, or damaged, and are dead letters",
}
"""Terms of the books that are watched."""


class Trouble(Enum):
    """What can be the matter; the value is a label for machines."""

    STUCK = "stuck"
    """Messages wait, and nothing gets through."""
    NO_READER = "no_reader"
    """Messages wait, and no reader runs."""
    TOKEN_REFUSED = "token_refused"  # noqa: S105 - a label
    """The server refuses the token."""
    SUSPECT_SERVER = "suspect_server"
    """The server refuses everything, without speaking the protocol."""
    READER_HANGS = "reader_hangs"
    """The reader's thread does not turn any more."""
    AT_LIMIT = "at_limit"
    """The queue is full: each push throws the oldest away, or is refused."""
    DISK_FULL = "disk_full"
    """No space is left on the queue's file system."""
    DAMAGED_FILE = "damaged_file"
    """A damaged file was put aside, and what can be read of it is still to be carried over."""
    LOSSES = "losses"
    """Messages were lost lately."""
    REFUSALS = "refusals"
    """Messages became dead letters lately."""
    UNREADABLE = "unreadable"
    """The queue cannot be opened or read."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is the matter."""

    trouble: Trouble
    text: str
    """In words, with what to do where that is known; it never holds the token."""
    since_ms: int | None
    """None: not known."""


@dataclass(frozen=True, slots=True)
class Health:
    """The judgement on one queue."""

    problems: tuple[Problem, ...]
    """What is the matter; none: all is well."""
    waiting: int
    oldest_waiting_seconds: float | None
    """None: nothing waits."""
    last_success_at_ms: int | None
    """None: never."""

    @property
    def healthy(self) -> bool:
        """Whether nothing is the matter."""
        return not self.problems

    @property
    def reasons(self) -> tuple[str, ...]:
        """What is the matter, in words."""
        return tuple(problem.text for problem in self.problems)

    @property
    def since_ms(self) -> int | None:
        """Since when, as far as it is known."""
        return min(
            (problem.since_ms for problem in self.problems if problem.since_ms is not None), default=None
        )


@dataclass(frozen=True, slots=True)
class Observation:
    """One queue as a reader, a forwarder or a ``metrics.QueueFiles`` saw it at one moment."""

    queue: str
    """``{sender}_{system_serial}``."""
    status: QueueStatus | None
    """None: it could not be read; ``health`` says why."""
    health: Health
    outages: int | None
    """How many began since this reader was built; None where no reader of this process was asked."""


def judge(
    status: QueueStatus, *, recently: Mapping[str, int] | None = None, hangs_for_seconds: float = 0.0
) -> Health:
    """Say what a queue's status means.

    ``recently``: how many messages were lost or refused in the last ``RECENT_SECONDS``, by their term in the books;
    ``hangs_for_seconds``: above 0 where the reader's thread is known to hang.
    """
    problems = [
        *_delivery(status),
        *_reader_hangs(status, hangs_for_seconds),
        *_room(status),
        *_losses(status, recently or {}),
    ]
    return Health(
        tuple(problems), status.waiting, status.oldest_waiting_seconds, status.delivery.last_success_at_ms
    )


def unreadable(reason: str) -> Health:
    """The judgement on a queue that cannot be opened or read."""
    return Health((Problem(Trouble.UNREADABLE, reason, None),), 0, None, None)


class HealthWatch:
    """Looks at one queue again and again, so that it knows what was lost lately. Threads may share it."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        # At most one for each 10 s of the last 15 min, and one before. Replaced as a whole: no lock, no trouble with forks.
        self._seen: tuple[tuple[float, Books], ...] = ()

    def look(self, status: QueueStatus, *, hangs_for_seconds: float = 0.0) -> Health:
        """The judgement on ``status``, which is the queue's latest."""
        now, books = self._monotonic(), status.books
        seen = self._seen
        if not seen or now - seen[-1][0] >= _SAMPLE_EVERY_SECONDS:
            older = sum(now - taken_at >= RECENT_SECONDS for taken_at, _ in seen)
            self._seen = seen = (*seen[max(0, older - 1) :], (now, books))
        before = seen[0][1]
        recently = {term: getattr(books, term) - getattr(before, term) for term in _RECENTLY}
        return judge(status, recently=recently, hangs_for_seconds=hangs_for_seconds)


def _delivery(status: QueueStatus) -> Iterator[Problem]:
    delivery = status.delivery
    if not status.waiting:
        return
    if delivery.failing_since_ms is not None and delivery.last_status in _TOKEN_REFUSED:
        yield Problem(
            Trouble.TOKEN_REFUSED, delivery.last_error or "the token is refused", delivery.failing_since_ms
        )
    if delivery.suspect_since_ms is not None:
        yield Problem(
            Trouble.SUSPECT_SERVER,
            f"{delivery.server} refuses everything, without speaking the protocol; check hostname, ssl and proxy",
            delivery.suspect_since_ms,
        )
    stuck_for = _stuck_for(status)
    if stuck_for < STUCK_AFTER_SECONDS:
        return
    since = status.taken_at_ms - int(stuck_for * 1000)
    waits = f"{status.waiting} messages wait, and nothing was delivered for {length_of_time(stuck_for)}"
    if status.reader.state is not ReaderState.RUNNING:
        yield Problem(
            Trouble.NO_READER,
            f"{waits}: no reader runs ({status.reader.state.value}); start one (ramen forward)",
            since,
        )
    else:
        why = delivery.last_error if delivery.failing_since_ms is not None else None
        yield Problem(Trouble.STUCK, f"{waits}: {why}" if why else waits, since)


def _stuck_for(status: QueueStatus) -> float:
    """For how many seconds messages have waited in vain: since the last success, but no longer than the oldest waits."""
    success = status.delivery.last_success_at_ms
    waited = status.oldest_waiting_seconds or 0.0
    return waited if success is None else min(waited, (status.taken_at_ms - success) / 1000)


def _reader_hangs(status: QueueStatus, seconds: float) -> Iterator[Problem]:
    if seconds > 0:
        yield Problem(
            Trouble.READER_HANGS,
            f"the reader's thread has not turned for {length_of_time(seconds)}: check the disk; a restart may help",
            status.taken_at_ms - int(seconds * 1000),
        )


def _room(status: QueueStatus) -> Iterator[Problem]:
    limit = status.max_queue_size
    if limit is not None and status.waiting and status.bytes_used >= AT_LIMIT_SHARE * limit:
        yield Problem(
            Trouble.AT_LIMIT,
            f"the queue is at its limit ({status.bytes_used} of {limit} bytes): pushes throw the oldest messages away, or are "
            "refused; raise max_queue_size, or find out why nothing is delivered",
            None,
        )
    free = status.disk_free_bytes
    if free is not None and free < DISK_FULL_BYTES:
        yield Problem(
            Trouble.DISK_FULL,
            f"the queue's file system is full ({free} bytes are free): free some space",
            None,
        )
    if status.damaged_files:
        yield Problem(
            Trouble.DAMAGED_FILE,
            "the queue's file was damaged and put aside; the reader carries over what can be read: check the disk",
            None,
        )


def _losses(status: QueueStatus, recently: Mapping[str, int]) -> Iterator[Problem]:
    counted = {term: count for term in _RECENTLY if (count := recently.get(term, 0)) > 0}
    since = f"within the last {length_of_time(RECENT_SECONDS)}"
    for term, count in counted.items():
        trouble = Trouble.REFUSALS if term == "dead" else Trouble.LOSSES
        yield Problem(trouble, f"{count} messages {_RECENTLY[term]} {since}", None)
    if not counted.keys() - {"dead"} and status.rates is not None and status.rates.lost > 0:
        yield Problem(Trouble.LOSSES, f"messages are being lost, {status.rates.lost:.1f} a second", None)
