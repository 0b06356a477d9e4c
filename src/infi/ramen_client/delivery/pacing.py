"""When, and how much at once, may be sent to one server.

Pure: no clock, no sleeping. Times are seconds of one monotonic clock, passed in; randomness is passed in too. The caller asks
``may_start``, tells ``started`` of each request, and then ``succeeded`` or ``congested``, with the number that ``started`` gave. A
request that was abandoned needs neither.

Three brakes, of which the strongest counts:

- **The ceiling**, in seconds, is what waiting times are drawn below (full jitter). A failure raises it: to 1 s, then doubling up to
  ``retry_delay_seconds``; nothing is started for a time drawn from below it. It does not vanish with the next success: from then on
  it sinks by ``_RELIEF`` seconds in each second, and until it has reached 0, requests are started at gaps drawn from below it. So
  a client resumes at the pace at which it had been asking, and speeds up from there for four times the ceiling: 4 s after a lone
  failure, 2 minutes after an outage. This, not the window, keeps a herd off a server that has just risen: a hundred thousand
  clients with one request in flight each are a hundred thousand requests at once.
- **The window** is how many may be in flight, at first ``max_in_flight``. A failure halves it, a second one in a row makes it 1;
  each success adds 1/window, which is one for each round trip.
- **The cap**, ``max_bytes_per_second``: what was started is paid for before the next may start, so the burst is one request, of
  whatever size.

Why ``_RELIEF`` is 1/4: a client with the ceiling c starts about 2/c requests a second. Sinking adds to this rate 2/c x relief/c
a second; a refusal halves it, which takes away 2/c x (share refused)/c a second. So the load of a herd on a server that refuses
what is beyond its capacity grows while less than a quarter is refused: to 4/3 of the capacity, however many clients there are, and
whatever it is (unless even at ``retry_delay_seconds`` they are too many). benchmarks/herd.py tries it; docs/pacing.md shows it.

Invariants:

- Nothing may start before a time that the server named (``Retry-After``; capped at an hour), whatever succeeds meanwhile. A
  named time raises the ceiling to itself, up to ``retry_delay_seconds``: a date names the same moment to everybody, and what is
  drawn on top of it must spread them. So a server that paces its clients is not waited for more than twice as long as it asked,
  unless it keeps refusing.
- What was in flight together fails together: only the first failure of a *round* (the requests started since the last such
  failure) raises and halves. The rest of that round, failed or not, says nothing about how things are now, but for the times
  that its refusals name.
- ``1 <= window <= max_in_flight``. With nothing in flight ``may_start`` is finite, so there is no deadlock.
- A client with no failures behind it is not held back, except by window and cap: it starts everything at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from infi.ramen_protocol import MAX_RETRY_AFTER_SECONDS

from .backoff import FIRST_CEILING_SECONDS, MAX_DOUBLINGS

if TYPE_CHECKING:
    from collections.abc import Callable

_RELIEF = 1 / 4
"""Seconds by which the ceiling sinks in a second, from the first success on."""


class Pacing:
    """What the failures and successes so far allow towards one server.

    ``max_in_flight`` (1 or more), ``retry_delay_seconds`` (above 0) and ``max_bytes_per_second`` (None: no cap) are plain
    attributes and may be changed at any time; the ceiling follows at the next failure. ``chance`` gives floats from 0
    (included) to 1 (excluded), as ``random.random`` does.
    """

    def __init__(
        self,
        *,
        max_in_flight: int,
        retry_delay_seconds: float,
        max_bytes_per_second: float | None = None,
        chance: Callable[[], float],
    ) -> None:
        self.max_in_flight = max_in_flight
        self.retry_delay_seconds = retry_delay_seconds
        self.max_bytes_per_second = max_bytes_per_second
        self._chance = chance
        self._failures = 0
        self._round = 0
        self._window = float(max_in_flight)
        self._ceiling = 0.0
        self._sinking_since: float | None = None
        self._not_before = -math.inf
        self._next_start = -math.inf
        self._paid_at = -math.inf

    def restore(self, now: float, *, failures: int, not_before: float) -> None:
        """Take up what an earlier process left: its ``failures``, and the time of its next attempt.

        ``not_before`` is a time of this process's clock, at most an hour from ``now`` (what is later is cut: the wall clock
        by which it was kept may have been set back); ``now`` or earlier means that an attempt is due. A caller that keeps both
        at every failure makes a loop of restarts no faster than one process that lives on.
        """
        if failures > 0:
            self._failures = failures
            self._window = 1.0
            self._ceiling = min(
                self.retry_delay_seconds, math.ldexp(FIRST_CEILING_SECONDS, min(failures - 1, MAX_DOUBLINGS))
            )
            self._sinking_since = None
        self._not_before = min(not_before, now + MAX_RETRY_AFTER_SECONDS)

    @property
    def window(self) -> int:
        """How many requests may be in flight at present."""
        return min(int(self._window), self.max_in_flight)

    @property
    def failures(self) -> int:
        """Rounds that failed since the last success."""
        return self._failures

    def may_start(self, now: float, in_flight: int) -> float:
        """Give 0.0 when one more request may be started, else the seconds to wait.

        ``in_flight``: how many are under way. Infinite when only the end of one of them can change anything.
        """
        if in_flight >= self.window:
            return math.inf
        return max(0.0, max(self._not_before, self._next_start, self._paid_at) - now)

    def pause_left(self, now: float) -> float:
        """The seconds until the next attempt after a failure; 0.0 when none is being waited out."""
        return max(0.0, self._not_before - now)

    def started(self, now: float, size: int) -> int:
        """Take note of a request of ``size`` bytes. The number of its round, to be given back with its outcome.

        One that is started although ``may_start`` said no (a caller that may not wait) counts like any other.
        """
        ceiling = self._ceiling_at(now)
        if ceiling > 0.0:
            self._next_start = now + self._chance() * ceiling
        if self.max_bytes_per_second is not None:
            self._paid_at = max(self._paid_at, now) + size / self.max_bytes_per_second
        return self._round

    def succeeded(self, now: float, round_number: int) -> bool:
        """The server dealt with a request, whatever its verdict on the message was.

        False when that says nothing about how things are now, since there was a failure after the request was started.
        """
        if round_number != self._round:
            return False
        self._failures = 0
        if self._sinking_since is None:
            self._sinking_since = now
        self._window = min(float(self.max_in_flight), self._window + 1 / self._window)
        return True

    def congested(self, now: float, round_number: int, retry_after_seconds: float | None = None) -> None:
        """The server or the way there could not deal with a request: 429, 5xx, a time-out, no connection, and the like."""
        named = min(max(retry_after_seconds or 0.0, 0.0), MAX_RETRY_AFTER_SECONDS)
        ceiling = self._ceiling_at(now)
        if round_number == self._round:
            self._round += 1
            self._failures += 1
            self._window = max(1.0, self._window / 2) if self._failures == 1 else 1.0
            self._next_start = -math.inf  # the pause takes the gap's place
            ceiling = max(FIRST_CEILING_SECONDS, 2 * ceiling)
        elif not named:
            return
        self._ceiling = min(max(ceiling, named), self.retry_delay_seconds)
        self._sinking_since = None
        self._not_before = max(self._not_before, now + named + self._chance() * self._ceiling)

    def _ceiling_at(self, now: float) -> float:
        if self._sinking_since is None:
            return self._ceiling
        return max(0.0, self._ceiling - _RELIEF * (now - self._sinking_since))
