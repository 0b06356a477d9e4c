"""The courier carries one queue's messages to the server while it is the active reader: one ``run`` or ``consume_one``.

    claim ── blacklisted? ── POST ── answer or failure ── verdict ── settle, or keep and back off

Invariants:

- A message leaves the queue only by ``ActiveReader.settle`` and ``reject_unexplained``, after a verdict about this very message
  (or a rule that matches it). Whatever else happens, it stays.
- Messages are delivered in order, one in flight. They are claimed ``_CLAIM_MESSAGES`` ahead, since a claim is a write.
- Settling is a write, too: in a run, accepted messages are *held* and settled together, at the end of what was claimed, before
  anything but an acceptance is acted on, and at the latest after ``_HOLD_SECONDS``. A process that is killed meanwhile sends those
  again, under the same reqids, which the server knows.
- Retries never end and never give up a message; between them is the back-off, or what the server asked for
  (``Retry-After``, kept over a restart).
- The token is in no text that leaves this module (log, status, dead letter), also where the server sends it back.
- Nothing is started after ``stop`` is set; what is in flight then has a moment to end, is abandoned, and stays in the queue.

**The suspect server** (protocol section 1): a rejection without a protocol body costs its one message, which becomes a dead
letter. The fifth in a row with no acceptance (a 202 of the protocol, ACCEPTED or DROPPED) between makes the server suspect: the
five go back to the queue, and unexplained rejections are failures like any other until it accepts something.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from enum import IntEnum
from itertools import count
from typing import TYPE_CHECKING

from infi.ramen_client.errors import AuthenticationError
from infi.ramen_client.storage import (
    SUSPECT_AFTER,
    Death,
    FailureNote,
    Fate,
    ServerFacts,
    Settlement,
    now_ms,
)
from infi.ramen_protocol import (
    MAX_RETRY_AFTER_SECONDS,
    Envelope,
    Judgement,
    Verdict,
    message_target,
    origin,
    parse_retry_after,
)

from .backoff import Backoff
from .exchange import Answer, Request
from .judging import judge, request_headers, say_answer, say_suspect, say_unwelcome

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client.blacklist import StoredBlacklist
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.storage import ActiveReader, StoredMessage

    from .failures import Failure
    from .outage import OutageLog
    from .stop import Stop
    from .transport import Transport

logger = logging.getLogger("ramen_client")

_CLAIM_MESSAGES = 64
"""Claiming and settling one by one writes 23 kB a message to disk, in chunks of 64 it is 2 kB (measured)."""

_CLAIM_BYTES = 1024 * 1024

_HOLD_SECONDS = 0.05
"""How long an accepted message may wait for its settling: not longer than anybody who looks at the queue would notice."""

_LAST_ANSWER_SECONDS = 0.05
"""How long a stop waits for the answer that is due: mostly it comes, and the message need not be sent twice."""

_tags = count(1)
"""Never the same twice in a process, since a transport outlives a courier: no answer may be taken for another message's."""


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
        stop: Stop,
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
        self._token_refused = False
        self._claimed: deque[StoredMessage] = deque()
        self._held: list[Settlement] = []
        self._held_since = 0.0
        self._rule_hits: Counter[int] = Counter()
        self.handled = 0
        """How many messages have left the queue by this courier's hand."""
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

    @property
    def has_claimed(self) -> bool:
        """Whether the next step needs no claim."""
        return bool(self._claimed)

    def step(self, *, hold: bool = False) -> Step:
        """Handle the oldest message; ``AuthenticationError`` when the token is refused (the message stays).

        ``hold``: it may be settled later, together with others; ``settle_held`` must be called in the end.
        """
        message = self._next(_CLAIM_MESSAGES if hold else 1)
        if message is None:
            return Step.EMPTY
        if self._token_refused:
            # It may have been mended meanwhile, in its file or by the program.
            self._headers = request_headers(self._config)
            self._token_refused = False
        envelope = self._envelope(message)
        rule = self._blacklist.match(envelope)
        if rule is not None:
            self._blacklist.reload()  # an operator may have lifted it since
            rule = self._blacklist.match(envelope)
        if rule is not None:
            self._rule_hits[rule.rule_id] += 1
            self._settle(Settlement(message, Fate.BLACKLISTED), hold=hold)
            return Step.DROPPED
        outcome = self._post(message, envelope)
        return Step.RETRY if outcome is None else self._conclude(message, outcome, hold=hold)

    def settle_held(self) -> None:
        """Settle what is held. When this raises, the messages stay in the queue, and the courier is of no use any more."""
        if self._held:
            self._reader.settle(self._held, rule_hits=self._rule_hits)
            self.handled += len(self._held)
            self._held.clear()
            self._rule_hits.clear()

    def _next(self, most: int) -> StoredMessage | None:
        """The first of the claimed messages, which stays there until it is settled or held."""
        if not self._claimed:
            self.settle_held()
            self._blacklist.reload()
            self._claimed.extend(self._reader.claim(most, _CLAIM_BYTES))
        return self._claimed[0] if self._claimed else None

    def _settle(self, settlement: Settlement, *, hold: bool = False) -> None:
        if not self._held:
            self._held_since = self._monotonic()
        self._held.append(settlement)
        self._claimed.popleft()
        if not hold or self._monotonic() - self._held_since >= _HOLD_SECONDS:
            self.settle_held()

    def _envelope(self, message: StoredMessage) -> Envelope:
        return Envelope(
            message.category,
            self._reader.place.system_serial,
            self._reader.place.sender,
            message.data_type,
            str(message.data_version),
            message.system_version,
            message.reqid,
        )

    def _post(self, message: StoredMessage, envelope: Envelope) -> Answer | Failure | None:
        """Send a message and wait for what becomes of it; None when ``stop`` was set meanwhile."""
        tag = next(_tags)
        request = Request(
            self._origin + message_target(envelope),
            self._headers,
            message.data,
            float(self._config.server_timeout),
        )
        logger.debug("POST %s", request.url)
        try:
            self._transport.start(tag, request)
            waits = 0
            while not self._stop.is_set():
                waits += 1
                outcomes = self._transport.wait(_HOLD_SECONDS if self._held else request.timeout_seconds)
                for ended, outcome in outcomes:
                    if ended == tag:
                        return outcome
                if not outcomes:
                    self.settle_held()
            # Twice, since the wake-up that comes with a stop ends the first one.
            for _ in range(2 if waits else 0):
                for ended, outcome in self._transport.wait(_LAST_ANSWER_SECONDS / 2):
                    if ended == tag:
                        return outcome
        except BaseException:
            with suppress(RuntimeError):  # the transport is closed
                self._transport.cancel(tag)
            raise
        self._transport.cancel(tag)
        return None

    def _conclude(self, message: StoredMessage, outcome: Answer | Failure, *, hold: bool) -> Step:
        if not isinstance(outcome, Answer):
            return self._failed(outcome.text, None)
        judgement = judge(outcome, self._headers)
        match judgement.verdict:
            case Verdict.ACCEPTED:
                self._settle(Settlement(message, Fate.ACCEPTED), hold=hold)
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
                text = say_unwelcome(outcome.status, judgement).text
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
            return self._failed(say_suspect(status).text, status, self._retry_after(judgement))
        death = Death(f"the server refused it ({status})", judgement.details, status, judgement.code)
        settlement = Settlement(message, Fate.DEAD, death)
        if judgement.explained:
            self._settle(settlement)
        else:
            self.settle_held()
            suspect = self._reader.reject_unexplained(settlement, self._origin)
            self.handled += 1
            self._claimed.popleft()
            if suspect:
                # The five wait again, before everything that was claimed.
                self._claimed.clear()
                self._facts = replace(self._facts, suspect_since_ms=now_ms())
                self._outage.put_back(self._origin, SUSPECT_AFTER)
                return self._failed(say_suspect(status).text, status, self._retry_after(judgement))
        self._outage.refused(
            say_answer(status, judgement), self._origin, message, explained=judgement.explained
        )
        return Step.DROPPED

    def _unauthorised(self, status: int, judgement: Judgement) -> Step:
        self._token_refused = True
        text = say_unwelcome(status, judgement).text
        self._failed(text, status, self._retry_after(judgement))
        raise AuthenticationError(text)

    def _failed(self, text: str, status: int | None, server_said: float | None = None) -> Step:
        self.settle_held()
        delay = self._backoff.failed(self._config.retry_delay, server_said)
        self._not_before = self._monotonic() + delay
        now = now_ms()
        retry_at = now + int(delay * 1000)
        asked_for = retry_at if server_said else self._facts.retry_at_ms
        if asked_for is not None and asked_for <= now:
            asked_for = None
        self._facts = replace(self._facts, failures=self._facts.failures + 1, retry_at_ms=asked_for)
        self._reader.note_failure(FailureNote(text, status, retry_at), self._origin, self._facts)
        self._outage.failed(text, self._origin, self._reader.waiting())
        return Step.RETRY

    def _succeeded(self) -> None:
        self._backoff.succeeded()
        if self._facts != ServerFacts():
            self.settle_held()
            self._facts = ServerFacts()
            self._reader.save_server(self._origin, self._facts)
        self._outage.succeeded(self._origin, self._reader.waiting)
