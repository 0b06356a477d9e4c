"""One run of the active reader: step after step, waiting when there is nothing to do and when something is in the way.

Waking up: a push of this process rings the reader; for those of other processes it looks for commits (3 microseconds) every
millisecond for two seconds after traffic, then less and less often down to every 50 ms. So a push is on the wire within
milliseconds, and an idle queue costs next to nothing and not one write.

Faults: a refused token is raised, or backed off from like any failure; a queue that was taken away is raised; every other error,
of the disk or of our own, is logged and the run goes on after a back-off, unless the caller wanted no waiting. What was claimed
goes back first, and then messages are sent and settled one by one until that works, so that a full disk has as few of them as
possible sent again and again.
"""

from __future__ import annotations

import logging
import random
import time
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

from infi.ramen_client.errors import AuthenticationError, QueueClosed, QueueForked, QueueGone, RamenError

from .backoff import Backoff
from .flight import Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.storage import ActiveReader

    from .courier import Courier
    from .stop import Stop
    from .transport import Transport

logger = logging.getLogger("ramen_client")

_LONGEST_WAIT_SECONDS = 1.0
"""Whatever is waited for: then it is looked whether the file is still there."""

_LOOK_MEANWHILE_SECONDS = 0.002
"""How often it is looked for new messages while others are under way and more could be; less and less often while nothing ends."""

_FASTEST_LOOK_SECONDS = 0.001
_SLOWEST_LOOK_SECONDS = 0.05
_FAST_LOOKS_FOR_SECONDS = 2.0
_LOOK_SLOWDOWN = 1.5

_CHECK_PLACE_EVERY_SECONDS = 1.0
"""A file that was deleted never changes again: only its path tells."""


class Until(Enum):
    """When a run ends, but for ``stop``."""

    STOPPED = "stopped"
    DRAINED = "drained"
    HELD_UP = "drained or held up"


class Run:
    """One run. ``make_courier`` may be called again after an unexpected error."""

    def __init__(
        self,
        active: ActiveReader,
        make_courier: Callable[[], Courier],
        transport: Transport,
        config: QueueReaderConfig,
        stop: Stop,
    ) -> None:
        self._active = active
        self._make_courier = make_courier
        self._courier: Courier | None = None
        self._transport = transport
        self._config = config
        self._stop = stop
        self._traffic_at = time.monotonic()
        self._place_checked_at = self._traffic_at
        self._look_meanwhile = _LOOK_MEANWHILE_SECONDS
        self._ends = False  # nothing is started any more
        self._handled = 0
        self._fault = ""
        self._fault_backoff = Backoff(random.random)

    def go(self, until: Until, *, raise_refused_token: bool) -> int:
        """Deliver until the end that is asked for; return how many messages were accepted or dropped."""
        try:
            self._deliver(until, raise_refused_token=raise_refused_token)
        finally:
            self._dismiss_courier()
        return self._handled

    def _deliver(self, until: Until, *, raise_refused_token: bool) -> None:
        while not self._stop.is_set():
            try:
                step = self._step(until)
            except AuthenticationError:
                if raise_refused_token:
                    raise
                continue
            except (QueueGone, QueueClosed, QueueForked):
                raise
            except Exception as error:
                if until is Until.HELD_UP:
                    raise
                self._survive(error)
                continue
            if step in (Step.ACCEPTED, Step.DROPPED):
                self._traffic_at = time.monotonic()
            elif _is_over(step, until):
                break

    def _step(self, until: Until) -> Step | None:
        """Send what may be sent and wait for an outcome, or wait for what there is to wait for; None: nothing happened."""
        self._check_place()
        courier = self._courier = self._courier or self._make_courier()
        if self._fault:
            if (pause := courier.pause_left()) > 0:
                self._transport.wait(min(pause, _LONGEST_WAIT_SECONDS))
                return None
            step = courier.step()
            logger.warning("the reader works again after: %s", self._fault)
            self._fault = ""
            self._fault_backoff.succeeded()
            return step
        if not self._ends:
            courier.start()
        if courier.in_flight:
            return self._wait_for_outcome(courier, until)
        if courier.is_idle:
            if until is Until.STOPPED and courier.seen is not None:
                self._wait_for_push(courier.seen, self._config.polling_delay)
            return Step.EMPTY
        if until is Until.HELD_UP and (self._ends or courier.is_held_up):
            return Step.RETRY
        pause = min(courier.pause_left(), _LONGEST_WAIT_SECONDS)
        if pause > 0 and courier.has_room and courier.seen is not None:
            self._wait_for_push(courier.seen, pause)  # of another stream than those that wait
        elif pause > 0:
            self._transport.wait(pause)
        return None

    def _wait_for_outcome(self, courier: Courier, until: Until) -> Step | None:
        looks = courier.has_room and not self._ends
        step = courier.wait(self._look_meanwhile if looks else _LONGEST_WAIT_SECONDS)
        self._look_meanwhile = (
            min(self._look_meanwhile * _LOOK_SLOWDOWN, _SLOWEST_LOOK_SECONDS)
            if step is None
            else _LOOK_MEANWHILE_SECONDS
        )
        if step is Step.RETRY and until is Until.HELD_UP:
            self._ends = True  # once what is under way has ended
            return None
        return step

    def _survive(self, error: Exception) -> None:
        if self._stop.is_set():
            return  # it gave up waiting for the file because it is to end
        # A file that was taken away fails in many ways; none of them is the disk's fault.
        self._active.check_in_place()
        self._dismiss_courier()
        with suppress(Exception):
            self._active.give_back()
        delay = self._fault_backoff.failed(self._config.retry_delay)
        fault = str(error) or type(error).__name__
        if fault != self._fault:
            self._fault = fault
            if isinstance(error, RamenError):
                logger.error("the reader cannot go on, and tries again: %s", fault)
            else:
                logger.error(
                    "unexpected error in the reader; it goes on, and no message is lost", exc_info=error
                )
        self._stop.wait(delay)

    def _dismiss_courier(self) -> None:
        """Settle what can be settled; the rest is sent again, under the same reqids."""
        courier, self._courier = self._courier, None
        if courier is not None:
            with suppress(Exception):
                courier.abandon()
            self._handled += courier.handled

    def _check_place(self) -> None:
        """``QueueGone`` when the file was taken away, which a reader of it, and of its answers, would never notice."""
        now = time.monotonic()
        if now - self._place_checked_at >= _CHECK_PLACE_EVERY_SECONDS:
            self._active.check_in_place()
            self._place_checked_at = now

    def _wait_for_push(self, mark: tuple[int, int], patience_seconds: float) -> None:
        """Wait until somebody else commits, at most so long."""
        self._active.add_waker(self._transport.wake)
        try:
            self._look_for_commits(mark, time.monotonic() + patience_seconds)
        finally:
            self._active.remove_waker(self._transport.wake)

    def _look_for_commits(self, mark: tuple[int, int], deadline: float) -> None:
        interval = _FASTEST_LOOK_SECONDS
        while not self._stop.is_set() and self._active.change_mark() == mark:
            now = time.monotonic()
            if now >= deadline:
                return
            self._check_place()
            if now - self._traffic_at > _FAST_LOOKS_FOR_SECONDS:
                if self._active.tidy():
                    continue
                interval = min(interval * _LOOK_SLOWDOWN, _SLOWEST_LOOK_SECONDS)
            self._transport.wait(min(interval, deadline - now))


def _is_over(step: Step | None, until: Until) -> bool:
    if step is Step.EMPTY:
        return until is not Until.STOPPED
    return step is Step.RETRY and until is Until.HELD_UP
