"""What the log says of the server: one warning when delivery stops working, one line when it works again.

Between them a changed reason is said, at most once a minute, and an outage that lasts is said again with the first attempt after
each hour. A message that is refused for good is an error; of more that are refused with the same words within a minute, only the
number is said: when the words change, and when a run ends. A refused connection is no fault of the program: no traceback. Each line
begins with the queue that it is about, since a process may forward many.

For programs that read logs the same stands in attributes of the record (docs/logging.md): ``ramen_event`` (``LogEvent``), ``ramen_queue``, ``ramen_server``, and,
where the event has them, ``ramen_reason``, ``ramen_reason_kind``, ``ramen_waiting``, ``ramen_attempts``, ``ramen_lasted_seconds`` and
``ramen_messages``.
"""

from __future__ import annotations

import logging
import time
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client.storage import StoredMessage

logger = logging.getLogger("ramen_client")

_SAY_AGAIN_AFTER_SECONDS = 60.0
_REMIND_AFTER_SECONDS = 3600.0

_MAX_REQID_CHARS = 100
"""A reqid may be 2 KiB long, and hold line ends."""


class LogEvent(StrEnum):
    """What a line is about: the attribute ``ramen_event`` of its record."""

    OUTAGE_BEGAN = "outage_began"
    OUTAGE_GOES_ON = "outage_goes_on"
    OUTAGE_ENDED = "outage_ended"
    MESSAGE_REFUSED = "message_refused"
    MESSAGES_REFUSED = "messages_refused"
    MESSAGES_PUT_BACK = "messages_put_back"


class OutageLog:
    """Remembers what was said, over the runs of one reader; ``queue`` is the name in front of each line."""

    def __init__(self, queue: str, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._queue = queue
        self._monotonic = monotonic
        self._began: float | None = None
        self._attempts = 0
        self._said = ""
        self._said_at = 0.0
        self._refusal_said = ""
        self._refusal_said_at = 0.0
        self._refused_unsaid = 0
        self._refused_by = ""
        self.outages = 0
        """How many began."""

    def failed(self, reason: str, origin: str, waiting: int, *, kind: str | None = None) -> None:
        """An attempt failed; nothing is lost by it. ``kind`` is the reason in one word, if there is one."""
        now = self._monotonic()
        self._attempts += 1
        silent_for = now - self._said_at
        if self._began is None:
            self._began = now
            self.outages += 1
            logger.warning(
                "%s: delivery to %s does not work: %s; retrying, %d waiting",
                self._queue,
                origin,
                reason,
                waiting,
                extra=self._fields(
                    LogEvent.OUTAGE_BEGAN,
                    origin,
                    reason=reason,
                    reason_kind=kind,
                    waiting=waiting,
                    attempts=1,
                ),
            )
        elif silent_for >= _REMIND_AFTER_SECONDS or (
            reason != self._said and silent_for >= _SAY_AGAIN_AFTER_SECONDS
        ):
            logger.warning(
                "%s: delivery to %s has not worked for %s (failed attempts: %d): %s; retrying, %d waiting",
                self._queue,
                origin,
                length_of_time(now - self._began),
                self._attempts,
                reason,
                waiting,
                extra=self._fields(
                    LogEvent.OUTAGE_GOES_ON,
                    origin,
                    reason=reason,
                    reason_kind=kind,
                    waiting=waiting,
                    attempts=self._attempts,
                    lasted_seconds=now - self._began,
                ),
            )
        else:
            return
        self._said, self._said_at = reason, now

    def succeeded(self, origin: str, waiting: Callable[[], int]) -> None:
        """The server took a message."""
        if self._began is None:
            return
        lasted = self._monotonic() - self._began
        left = waiting()
        logger.warning(
            "%s: delivery to %s works again after %.0f s (failed attempts: %d); %d waiting",
            self._queue,
            origin,
            lasted,
            self._attempts,
            left,
            extra=self._fields(
                LogEvent.OUTAGE_ENDED,
                origin,
                waiting=left,
                attempts=self._attempts,
                lasted_seconds=lasted,
            ),
        )
        self._began = None
        self._attempts = 0
        self._said = ""

    def refused(self, reason: str, origin: str, message: StoredMessage, *, explained: bool) -> None:
        """A message became a dead letter; one that is not ``explained`` may yet come back."""
        now = self._monotonic()
        if reason == self._refusal_said and now - self._refusal_said_at < _SAY_AGAIN_AFTER_SECONDS:
            self._refused_unsaid += 1
            return
        self.say_rest()
        logger.error(
            "%s: %s refused a message%s: %s; %s/%s with the reqid %s is kept as a dead letter%s",
            self._queue,
            origin,
            " for good" if explained else "",
            reason,
            message.category,
            message.data_type,
            ascii(message.reqid[:_MAX_REQID_CHARS]),
            "" if explained else ", and comes back if it refuses on without speaking the protocol",
            extra=self._fields(LogEvent.MESSAGE_REFUSED, origin, reason=reason, messages=1),
        )
        self._refusal_said, self._refusal_said_at = reason, now
        self._refused_by = origin

    def say_rest(self) -> None:
        """Say what is unsaid of refused messages; at the latest when a run ends."""
        if self._refused_unsaid:
            count, self._refused_unsaid = self._refused_unsaid, 0
            logger.error(
                "%s: %d more messages were refused in the same words; they are kept as dead letters",
                self._queue,
                count,
                extra=self._fields(
                    LogEvent.MESSAGES_REFUSED, self._refused_by, reason=self._refusal_said, messages=count
                ),
            )

    def put_back(self, origin: str, count: int) -> None:
        """The server turned out suspect: what it refused without speaking the protocol waits again."""
        self._refused_unsaid = 0
        self._refusal_said = ""
        logger.warning(
            "%s: %s refused %d messages in a row without speaking the protocol: they are back in the queue",
            self._queue,
            origin,
            count,
            extra=self._fields(LogEvent.MESSAGES_PUT_BACK, origin, messages=count),
        )

    def _fields(self, event: LogEvent, origin: str, **more: object) -> dict[str, object]:
        # With a prefix: ``logging`` raises for a name that the program's own record factory has set already.
        named = {"event": event.value, "queue": self._queue, "server": origin, **more}
        return {f"ramen_{name}": value for name, value in named.items()}


def length_of_time(seconds: float) -> str:
    """A length of time as ``90 s``, ``59 min`` or ``26 h``: one number is enough for a log."""
    if seconds < 2 * 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.0f} h"
