"""A herd of clients comes back to a server after an outage: a discrete-event simulation that runs the client's real pacing.

The world is small: a request takes ``ANSWER_SECONDS`` there and back; a server that is down is a refused connection; one that is up
takes ``capacity`` requests a second, lets ``QUEUE_SECONDS`` of work wait, and answers 503 to what is beyond it. Load is what is sent to it,
refused or not. The clients of 1.x are modelled by what they do: one request at a time, 30 s after every failure, none after a success.
"""

from __future__ import annotations

import heapq
import math
import random
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from infi.ramen_client.delivery.pacing import Pacing

if TYPE_CHECKING:
    from collections.abc import Sequence

ANSWER_SECONDS = 0.02
QUEUE_SECONDS = 0.1

_ACCEPTED = -1.0
_WAKE_UP = -1


@dataclass(frozen=True, slots=True)
class Scenario:
    """Who comes back to what. Times are seconds; the server rises at 0, after ``outage_seconds``."""

    clients: int
    capacity: float
    """Requests a second."""
    outage_seconds: float
    noticed_within_seconds: float
    """In which each client has something to send, and so notices the outage."""
    backlogs: tuple[int, ...]
    """Requests waiting when the server rises; the clients take turns in having each of them."""
    refusal_names_seconds: float = 0.0
    """``Retry-After`` of the 503 of a server that is up; 0: none."""
    outage_names_its_end: bool = False
    """During the outage a proxy answers 503 with the date of its end as ``Retry-After``, an hour ahead at most."""
    max_in_flight: int = 8
    retry_delay_seconds: float = 30.0


class Client(Protocol):
    """One client; times as in ``Pacing``."""

    def may_start(self, now: float, in_flight: int) -> float: ...
    def started(self, now: float, size: int) -> int: ...
    def succeeded(self, now: float, round_number: int) -> bool: ...
    def congested(self, now: float, round_number: int, retry_after_seconds: float | None) -> None: ...


class Fixed:
    """1.x: one request at a time, and ``retry_delay_seconds`` after every failure."""

    def __init__(self, retry_delay_seconds: float) -> None:
        self._retry_delay_seconds = retry_delay_seconds
        self._not_before = -math.inf

    def may_start(self, now: float, in_flight: int) -> float:
        return math.inf if in_flight else max(0.0, self._not_before - now)

    def started(self, now: float, size: int) -> int:  # noqa: ARG002 - it has no rounds, and no cap
        return 0

    def succeeded(self, now: float, round_number: int) -> bool:  # noqa: ARG002 - as above
        return True

    def congested(self, now: float, round_number: int, retry_after_seconds: float | None) -> None:  # noqa: ARG002 - deaf
        self._not_before = now + self._retry_delay_seconds


MakeClient = Callable[[Scenario, Callable[[], float]], Client]


def paced(scenario: Scenario, chance: Callable[[], float]) -> Client:
    """Make a client of 2.0."""
    return Pacing(
        max_in_flight=scenario.max_in_flight,
        retry_delay_seconds=scenario.retry_delay_seconds,
        chance=chance,
    )


def fixed(scenario: Scenario, chance: Callable[[], float]) -> Client:  # noqa: ARG001 - 1.x takes no chances
    """Make a client of 1.x."""
    return Fixed(scenario.retry_delay_seconds)


@dataclass(slots=True)
class Course:
    """What happened. ``sent`` and ``taken`` are per second, the first second being the first of the outage."""

    scenario: Scenario
    sent: array[int]
    taken: array[int]
    drained_after: list[float]
    """For each client, the seconds from the server's rise to its last accepted request; infinite where something is left."""
    too_early: int = 0
    """Requests before a time that the server had named to that client."""

    def load(self, since: float = 0.0) -> Sequence[float]:
        """The load in each second from ``since`` (counted from the server's rise) on, as a share of its capacity."""
        first = int(since + self.scenario.outage_seconds)
        return [sent / self.scenario.capacity for sent in self.sent[first:]]

    @property
    def peak_load(self) -> float:
        """The highest load in any second after the server's rise."""
        return max(self.load())

    @property
    def drained_seconds(self) -> float:
        """The seconds from the server's rise until nobody had anything left."""
        return max(self.drained_after)


class _Server:
    """Up from 0 on."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._room = max(1.0, scenario.capacity * QUEUE_SECONDS)
        self._waiting = 0.0
        self._now = 0.0

    def answer(self, now: float) -> float:
        """``_ACCEPTED``, or the seconds that the refusal names, 0 for none."""
        if now < 0:
            return min(math.ceil(-now), 3600.0) if self._scenario.outage_names_its_end else 0.0
        self._waiting = max(0.0, self._waiting - (now - self._now) * self._scenario.capacity)
        self._now = now
        if self._waiting + 1 > self._room:
            return self._scenario.refusal_names_seconds
        self._waiting += 1
        return _ACCEPTED


class _Herd:
    """The clients, as columns: what is left of their backlogs, how much is in flight, and so on."""

    def __init__(self, scenario: Scenario, make: MakeClient, seconds: int, seed: int) -> None:
        dice = random.Random(seed)
        count = scenario.clients
        self._outage = scenario.outage_seconds
        self._server = _Server(scenario)
        self._clients = [make(scenario, dice.random) for _ in range(count)]
        self._left = [scenario.backlogs[index % len(scenario.backlogs)] for index in range(count)]
        self._in_flight = [0] * count
        self._wakes_at = [math.inf] * count
        self._named = [-math.inf] * count
        self._draining = count
        # (time, client, round or _WAKE_UP, answer)
        self._events = [
            (dice.random() * scenario.noticed_within_seconds - self._outage, index, _WAKE_UP, 0.0)
            for index in range(count)
        ]
        heapq.heapify(self._events)
        self.course = Course(
            scenario, array("l", [0]) * seconds, array("l", [0]) * seconds, [math.inf] * count
        )

    def live(self, until: float) -> None:
        """Let events happen until all is drained, or the time is over."""
        while self._draining and self._events[0][0] < until:
            now, index, number, answer = heapq.heappop(self._events)
            if number == _WAKE_UP:
                self._wakes_at[index] = math.inf
            else:
                self._hear(now, index, number, answer)
            self._start_what_may(now, index)

    def _hear(self, now: float, index: int, number: int, answer: float) -> None:
        self._in_flight[index] -= 1
        if answer == _ACCEPTED:
            self._clients[index].succeeded(now, number)
            self._left[index] -= 1
            if not self._left[index]:
                self.course.drained_after[index] = now
                self._draining -= 1
            return
        self._clients[index].congested(now, number, answer or None)
        if answer:
            self._named[index] = max(self._named[index], now + answer)

    def _start_what_may(self, now: float, index: int) -> None:
        client, course = self._clients[index], self.course
        waiting = self._left[index]
        if now < 0:  # the backlog grows in the course of the outage, from the message by which it is noticed
            waiting = max(1, int(waiting * (1 + now / self._outage)))
        while self._in_flight[index] < waiting:
            wait = client.may_start(now, self._in_flight[index])
            if wait > 0.0:
                if now + wait < self._wakes_at[index]:
                    self._wakes_at[index] = now + wait
                    heapq.heappush(self._events, (now + wait, index, _WAKE_UP, 0.0))
                return
            number = client.started(now, 1)
            self._in_flight[index] += 1
            course.too_early += now < self._named[index]
            second = int(now + self._outage)
            course.sent[second] += 1
            answer = self._server.answer(now)
            course.taken[second] += answer == _ACCEPTED
            heapq.heappush(self._events, (now + ANSWER_SECONDS, index, number, answer))


def simulate(scenario: Scenario, make: MakeClient, *, until: float, seed: int = 1) -> Course:
    """Let it happen, until all is drained or ``until`` seconds after the server's rise."""
    seconds = math.ceil(scenario.outage_seconds + until)
    herd = _Herd(scenario, make, seconds, seed)
    herd.live(until)
    return herd.course
