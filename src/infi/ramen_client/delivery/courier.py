"""The courier carries one queue's messages to the server while it is the active reader: one ``run`` or ``consume_one``.

    claim ── blacklisted? ── POST ── answer or failure ── verdict ── settle, or keep and back off

Invariants:

- A message leaves the queue only by ``ActiveReader.settle`` and ``reject_unexplained``, after a verdict about this very message
  (or a rule that matches it). Whatever else happens, it stays.
- Messages are delivered in order, one in flight. They are claimed ``_CLAIM_MESSAGES`` ahead, since a claim is a write.
- Retries never end and never give up a message; between them is the back-off, or what the server asked for
  (``Retry-After``, kept over a restart).
- Nothing is started after ``stop`` is set; what is in flight then is abandoned, and its message stays in the queue.

**The suspect server** (protocol section 1): a rejection without a protocol body costs its one message, which becomes a dead
letter. The fifth in a row with no acceptance (a 202 of the protocol, ACCEPTED or DROPPED) between makes the server suspect: the
five go back to the queue, and unexplained rejections are failures like any other until it accepts something.
"""

from __future__ import annotations

import logging
import random
import time
from collections import deque
from dataclasses import replace
from datetime import UTC, datetime
from enum import IntEnum
from typing import TYPE_CHECKING

from infi.ramen_client.errors import AuthenticationError
from infi.ramen_client.storage import Death, FailureNote, Fate, ServerFacts, Settlement, now_ms
from infi.ramen_protocol import (
    MAX_RETRY_AFTER_SECONDS,
    Coding,
    Envelope,
    Judgement,
    Verdict,
    classify,
    message_target,
    origin,
    parse_retry_after,
)

from .backoff import Backoff
from .exchange import Answer, Request

if TYPE_CHECKING:
    from collections.abc import Callable
    from threading import Event

    from infi.ramen_client.blacklist import StoredBlacklist
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.storage import ActiveReader, StoredMessage

    from .failures import Failure
    from .outage import OutageLog
    from .transport import Transport

logger = logging.getLogger("ramen_client")

_CLAIM_MESSAGES = 64
"""Claiming and settling one by one writes 23 kB a message to disk, in chunks of 64 it is 2 kB (measured)."""

_CLAIM_BYTES = 1024 * 1024

_SUSPECT_TEXT = (
    "the server is suspect: it rejects one message after the other without speaking the protocol, as a proxy or a wrong "
    "host would; nothing is dropped. Check hostname, ssl and proxy."
)


class Step(IntEnum):
    """The result of one step, as 1.x numbers them."""

    EMPTY = 0
    ACCEPTED = 1
    DROPPED = 2
    RETRY = 3


class Courier:
    """Delivers the messages of one queue. Used by one thread; ``stop`` may be set by any."""

    def __init__(
        self,
        reader: ActiveReader,
        config: QueueReaderConfig,
        blacklist: StoredBlacklist,
        transport: Transport,
        outage: OutageLog,
        *,
        stop: Event,
        chance: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._config = config
        self._blacklist = blacklist
        self._transport = transport
        self._outage = outage
        self._stop = stop
        self._monotonic = monotonic
        self._backoff = Backoff(chance)
        self._origin = origin(config.hostname, ssl=config.ssl)
        self._headers = request_headers(config)
        self._claimed: deque[StoredMessage] = deque()
        self._tag = 0
        self._facts = reader.load_server(self._origin)
        self._not_before = monotonic() + self._seconds_the_server_asked_for()

    def _seconds_the_server_asked_for(self) -> float:
        if self._facts.retry_at_ms is None:
            return 0.0
        # Clamped: the wall clock may have been set back since the server said it.
        return min(max((self._facts.retry_at_ms - now_ms()) / 1000, 0.0), MAX_RETRY_AFTER_SECONDS)

    def pause_left(self) -> float:
        """The seconds until the next attempt may be made."""
        return max(0.0, self._not_before - self._monotonic())

    def step(self) -> Step:
        """Handle the oldest message; ``AuthenticationError`` when the token is refused (the message stays)."""
        message = self._next()
        if message is None:
            return Step.EMPTY
        envelope = self._envelope(message)
        held = self._blacklist.match(envelope)
        if held is not None:
            self._settle(Settlement(message, Fate.BLACKLISTED), {held.rule_id: 1})
            return Step.DROPPED
        outcome = self._post(message, envelope)
        return Step.RETRY if outcome is None else self._conclude(message, outcome)

    def _next(self) -> StoredMessage | None:
        """The first of the claimed messages, which stays there until it is settled."""
        if not self._claimed:
            self._blacklist.reload()
            self._claimed.extend(self._reader.claim(_CLAIM_MESSAGES, _CLAIM_BYTES))
        return self._claimed[0] if self._claimed else None

    def _settle(self, settlement: Settlement, rule_hits: dict[int, int] | None = None) -> None:
        self._reader.settle([settlement], rule_hits=rule_hits)
        self._claimed.popleft()

    def _envelope(self, message: StoredMessage) -> Envelope:
        return Envelope(
            message.category,
            self._config.system_serial,
            self._config.sender,
            message.data_type,
            str(message.data_version),
            message.system_version,
            message.reqid,
        )

    def _post(self, message: StoredMessage, envelope: Envelope) -> Answer | Failure | None:
        """Send a message and wait for what becomes of it; None when ``stop`` was set meanwhile."""
        self._tag += 1
        request = Request(
            self._origin + message_target(envelope),
            self._headers,
            message.data,
            float(self._config.server_timeout),
        )
        logger.debug("POST %s", request.url)
        self._transport.start(self._tag, request)
        while not self._stop.is_set():
            for _tag, outcome in self._transport.wait(request.timeout_seconds):
                return outcome
        self._transport.cancel(self._tag)
        return None

    def _conclude(self, message: StoredMessage, outcome: Answer | Failure) -> Step:
        if not isinstance(outcome, Answer):
            return self._failed(outcome.text, None)
        judgement = classify(outcome.status, outcome.headers, outcome.body)
        match judgement.verdict:
            case Verdict.ACCEPTED:
                self._settle(Settlement(message, Fate.ACCEPTED))
                self._succeeded()
                return Step.ACCEPTED
            case Verdict.DROPPED:
                self._settle(Settlement(message, Fate.DROPPED))
                self._succeeded()
                self._take_rule(judgement)
                return Step.DROPPED
            case Verdict.REJECTED:
                return self._rejected(message, outcome.status, judgement)
            case Verdict.UNAUTHORISED:
                return self._unauthorised(outcome.status, judgement)
            case Verdict.RETRY:
                text = f"the server answered {outcome.status}: {judgement.details or judgement.code}."
                return self._failed(text, outcome.status, self._retry_after(judgement))

    def _take_rule(self, judgement: Judgement) -> None:
        if judgement.rule is not None:
            self._blacklist.receive(judgement.rule)
        elif judgement.rule_problem is not None:
            logger.warning(
                "a blacklist rule of %s cannot be applied: %s", self._origin, judgement.rule_problem
            )

    def _retry_after(self, judgement: Judgement) -> float | None:
        if judgement.retry_after is None:
            return None
        return parse_retry_after(judgement.retry_after, now=datetime.now(UTC))

    def _rejected(self, message: StoredMessage, status: int, judgement: Judgement) -> Step:
        if not judgement.explained and self._facts.suspect_since_ms is not None:
            return self._failed(_SUSPECT_TEXT, status)
        death = Death(f"the server refused it ({status})", judgement.details, status, judgement.code)
        settlement = Settlement(message, Fate.DEAD, death)
        logger.error(
            "%s refused a message for good (%d): %s. %s/%s, reqid %s, is kept as a dead letter.",
            self._origin,
            status,
            judgement.details or judgement.code,
            message.category,
            message.data_type,
            message.reqid,
        )
        if judgement.explained:
            self._settle(settlement)
            return Step.DROPPED
        if not self._reader.reject_unexplained(settlement, self._origin):
            self._claimed.popleft()
            return Step.DROPPED
        # The five wait again, before everything that was claimed.
        self._claimed.clear()
        self._facts = replace(self._facts, suspect_since_ms=now_ms())
        return self._failed(_SUSPECT_TEXT, status)

    def _unauthorised(self, status: int, judgement: Judgement) -> Step:
        said = f": {judgement.details}" if judgement.details else ""
        text = f"the server refused the token ({status}){said}. Check auth_token, and that it is meant for this server."
        self._failed(text, status, self._retry_after(judgement))
        raise AuthenticationError(text)

    def _failed(self, text: str, status: int | None, server_said: float | None = None) -> Step:
        delay = self._backoff.failed(self._config.retry_delay, server_said)
        self._not_before = self._monotonic() + delay
        retry_at = now_ms() + int(delay * 1000)
        self._facts = replace(
            self._facts, failures=self._facts.failures + 1, retry_at_ms=retry_at if server_said else None
        )
        self._reader.note_failure(FailureNote(text, status, retry_at), self._origin, self._facts)
        self._outage.failed(text, self._origin, self._reader.waiting())
        return Step.RETRY

    def _succeeded(self) -> None:
        self._backoff.succeeded()
        if self._facts != ServerFacts():
            self._facts = ServerFacts()
            self._reader.save_server(self._origin, self._facts)
        self._outage.succeeded(self._origin)


def request_headers(config: QueueReaderConfig) -> tuple[tuple[str, str], ...]:
    """The headers of every version 1 request of this configuration."""
    return (
        ("X-API-Token", config.read_auth_token()),
        ("Content-Type", "application/json"),
        # The coding that every deployed server takes: zlib bytes under this label (protocol section 1).
        ("Content-Encoding", Coding.LEGACY.label),
    )
