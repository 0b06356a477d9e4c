"""How things stand with the server: what it taught, how fast it may be sent to, and what the log and ``status`` say of it.

One place for everything that an attempt's outcome changes beside its messages. Facts are written down when they change, so that
a restarted reader neither sends earlier than it should nor asks again what it knew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from infi.ramen_client.storage import FailureNote, now_ms
from infi.ramen_protocol import MAX_RETRY_AFTER_SECONDS

from .learned import Learned
from .pacing import Pacing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.storage import ActiveReader
    from infi.ramen_protocol import Coding

    from .outage import OutageLog


class Standing:
    """One server's, for one courier."""

    def __init__(
        self,
        reader: ActiveReader,
        config: QueueReaderConfig,
        origin: str,
        outage: OutageLog,
        *,
        resumes_pause: bool,
        coding: Coding | None,
        chance: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._reader = reader
        self._config = config
        self._outage = outage
        self._monotonic = monotonic
        self.origin = origin
        self.learned = Learned(
            reader.load_server(origin),
            now_ms=now_ms,
            batches_allowed=config.protocol == "auto",
            coding=coding,
        )
        self._pacing = Pacing(
            max_in_flight=config.max_in_flight,
            retry_delay_seconds=config.retry_delay,
            max_bytes_per_second=config.max_bytes_per_second,
            chance=chance,
        )
        facts = self.learned.facts
        pause = _seconds_until(facts.retry_at_ms, MAX_RETRY_AFTER_SECONDS)
        if resumes_pause and facts.failures:
            # A loop of restarts shall not be faster than one process that lives on.
            pause = max(pause, _seconds_until(reader.next_attempt_ms(), config.retry_delay))
        now = monotonic()
        self._pacing.restore(now, failures=facts.failures, not_before=now + pause)

    @property
    def is_suspect(self) -> bool:
        """Whether it refused several messages in a row without speaking the protocol."""
        return self.learned.facts.suspect_since_ms is not None

    @property
    def has_trouble(self) -> bool:
        """Whether an acceptance is news that is written down."""
        facts = self.learned.facts
        return bool(facts.failures) or facts.suspect_since_ms is not None or facts.retry_at_ms is not None

    def may_start(self, in_flight: int) -> float:
        """The seconds until one more request may be started; infinite: not before one ends."""
        self._pacing.max_in_flight = self._config.max_in_flight
        self._pacing.retry_delay_seconds = self._config.retry_delay
        self._pacing.max_bytes_per_second = self._config.max_bytes_per_second
        return self._pacing.may_start(self._monotonic(), in_flight)

    def pause_left(self) -> float:
        """The seconds until the next attempt after a failure."""
        return self._pacing.pause_left(self._monotonic())

    def started(self, size: int) -> int:
        """A request of so many bytes begins; the number that its outcome is to be told with."""
        return self._pacing.started(self._monotonic(), size)

    def hear(self, headers: Mapping[str, str]) -> None:
        """An answer that speaks the protocol came."""
        if self.learned.hear(headers):
            self.save()

    def succeeded(self, round_number: int) -> None:
        """The server accepted something."""
        if not self._pacing.succeeded(self._monotonic(), round_number):
            return  # it was on its way before the last failure, and says nothing of how things are now
        if self.has_trouble:
            self.learned.facts = replace(
                self.learned.facts, failures=0, suspect_since_ms=None, retry_at_ms=None
            )
            self.save()
        self._outage.succeeded(self.origin, self._reader.waiting)

    def answered(self, round_number: int) -> None:
        """The server dealt with a request, though it took nothing."""
        self._pacing.succeeded(self._monotonic(), round_number)

    def failed(
        self,
        text: str,
        round_number: int,
        *,
        status: int | None = None,
        server_said: float | None = None,
        kind: str | None = None,
    ) -> None:
        """The server, or the way there, does not work: all wait. ``server_said``: seconds of its ``Retry-After``."""
        self._pacing.congested(self._monotonic(), round_number, server_said)
        now = now_ms()
        retry_at = now + int(self.pause_left() * 1000)
        facts = self.learned.facts
        asked_for = retry_at if server_said else facts.retry_at_ms
        if asked_for is not None and asked_for <= now:
            asked_for = None
        self.learned.facts = replace(facts, failures=self._pacing.failures, retry_at_ms=asked_for)
        self._reader.note_failure(FailureNote(text, status, retry_at), self.origin, self.learned.facts)
        self._outage.failed(text, self.origin, self._reader.waiting(), kind=kind)

    def suspect(self, returned: int) -> None:
        """It refused one message after the other without speaking the protocol; so many are back in the queue."""
        self.learned.facts = replace(self.learned.facts, suspect_since_ms=now_ms())
        self._outage.put_back(self.origin, returned)

    def save(self) -> None:
        """Write down what is known."""
        self._reader.save_server(self.origin, self.learned.facts)


def _seconds_until(at_ms: int | None, most: float) -> float:
    if at_ms is None:
        return 0.0
    # Clamped: the wall clock may have been set back since.
    return min(max((at_ms - now_ms()) / 1000, 0.0), most)
