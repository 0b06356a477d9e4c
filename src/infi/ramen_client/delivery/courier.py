"""The courier carries one queue's messages to the server while it is the active reader: one ``run`` or ``consume_one``.

    queue ── lines ── POST, one message or a batch ── answer or failure ── verdict ── settle, or keep and wait

Invariants:

- A message leaves the queue only by ``ActiveReader.settle`` and ``reject_unexplained``, after a verdict about this very message
  (or a rule that matches it). Whatever else happens, it stays.
- Messages of one stream are delivered in order, streams side by side (``lines``), as many at once as the server can bear (``pacing``).
- What is sent one by one was leased before, what is sent in a batch was frozen (``batching``).
- Settling is a write, too: messages that were accepted one by one are held for a moment (``ledger``), but nothing but an acceptance is
  acted on before they are settled. A process that is killed meanwhile sends those again, under the same reqids, which the server knows.
- Retries never end and never give up a message, but for ``max_attempts``; between them is the back-off, or what the server asked for
  (``Retry-After``, kept over a restart). A stream that the server refuses by itself waits by itself (``blame``).
- The token is in no text that leaves this module (log, status, dead letter), also where the server sends it back.
- Nothing is started after ``stop`` is set; what is under way then has a moment to end, is abandoned, and stays in the queue.

**The suspect server** (protocol section 1): a rejection without a protocol body costs its one message, which becomes a dead
letter. The fifth in a row with no acceptance (a 202 of the protocol, ACCEPTED or DROPPED) between makes the server suspect: the
five go back to the queue, and unexplained rejections are failures like any other until it accepts something.
"""

from __future__ import annotations

import logging
import math
import random
import time
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from infi.ramen_client.errors import AuthenticationError
from infi.ramen_protocol import Coding, Envelope, origin

from .batch_verdicts import BatchVerdicts
from .batching import Batcher, Sending
from .blame import Blame
from .credentials import Credentials
from .effects import Effects
from .flight import Flight, Step
from .leases import Leases
from .ledger import HOLD_SECONDS, Ledger
from .lines import Lines, Ordering
from .lookout import Lookout
from .single import single_request
from .single_verdicts import SingleVerdicts
from .standing import Standing

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client.blacklist import StoredBlacklist
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.storage import ActiveReader, Place, StoredMessage
    from infi.ramen_protocol import BatchOffer

    from .exchange import Answer, Request
    from .failures import Failure
    from .judging import Headers
    from .outage import OutageLog
    from .stop import Stop
    from .transport import Transport

logger = logging.getLogger("ramen_client")

_AHEAD_MESSAGES = 64
"""How many messages are looked for at once, and leased: leasing one by one would write ten times as much."""

_AHEAD_BYTES = 1024 * 1024

_LAST_ANSWER_SECONDS = 0.05
"""How long a stop waits for the answers that are due: mostly they come, and the messages need not be sent twice."""

_tags = count(1)
"""Never the same twice in a process, since a transport outlives a courier: no answer may be taken for another message's."""


class Courier:
    """Delivers the messages of one queue. Used by one thread; ``stop`` may be set by any.

    ``hold``: acceptances may be settled a moment later, together. ``resumes_pause``: what an earlier courier wanted to wait after a
    failure is waited out, not only what the server named. Building one reads the token: ``ValidationError``.
    """

    def __init__(
        self,
        reader: ActiveReader,
        config: QueueReaderConfig,
        blacklist: StoredBlacklist,
        transport: Transport,
        outage: OutageLog,
        *,
        stop: Stop,
        hold: bool = True,
        resumes_pause: bool = True,
        chance: Callable[[], float] = random.random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reader = reader
        self._config = config
        self._transport = transport
        self._stop = stop
        self._monotonic = monotonic
        server = origin(config.hostname, ssl=config.ssl)
        coding = None if config.content_coding == "auto" else Coding(config.content_coding)
        self._standing = Standing(
            reader,
            config,
            server,
            outage,
            resumes_pause=resumes_pause,
            coding=coding,
            chance=chance,
            monotonic=monotonic,
        )
        self._credentials = Credentials(config, monotonic=monotonic)
        self._ledger = Ledger(reader, hold=hold, monotonic=monotonic)
        self._lines = Lines(Ordering(config.ordering), config.max_in_flight)
        # Not a method: a courier that is in a circle would keep the queue's files open until it is collected as garbage.
        self._envelope = partial(_envelope_of, reader.place)
        self._batcher = Batcher(reader, server, self._envelope)
        self._leases = Leases(reader)
        self._lookout = Lookout(
            reader,
            blacklist,
            self._envelope,
            lines=self._lines,
            leases=self._leases,
            ledger=self._ledger,
            stop=stop,
            monotonic=monotonic,
        )
        self._effects = Effects(
            reader,
            config,
            blacklist,
            outage,
            standing=self._standing,
            lines=self._lines,
            leases=self._leases,
            batcher=self._batcher,
            ledger=self._ledger,
            blame=Blame(),
            chance=chance,
            monotonic=monotonic,
        )
        self._singles = SingleVerdicts(self._effects)
        self._batches = BatchVerdicts(self._effects)
        self._flying: dict[int, Flight] = {}
        self._has_waited = False
        self._reported: list[tuple[int, Answer | Failure]] = []
        self._lines.claim_again(self._batcher.load())
        self._effects.recall()

    # What the run wants to know

    @property
    def handled(self) -> int:
        """How many messages have left the queue by this courier's hand."""
        return self._ledger.handled

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        return len(self._flying)

    @property
    def seen(self) -> tuple[int, int] | None:
        """What ``ActiveReader.change_mark`` was when everything in the queue had been seen; None: not everything was."""
        return self._lookout.seen

    @property
    def has_room(self) -> bool:
        """Whether something more could be started beside what is under way, if there were anything."""
        return self._standing.may_start(len(self._flying)) <= 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing that could be sent, now or later."""
        return not (
            self._flying
            or self._lines.ready
            or self._batcher.waiting
            or self._lines.next_release() is not None
            or self._lookout.may_find
        )

    @property
    def is_held_up(self) -> bool:
        """Whether everything that is left waits after a failure."""
        return self._standing.pause_left() > 0 or self._next_turn() > 0

    def pause_left(self) -> float:
        """The seconds until something may be started; 0.0 where only an end of what is under way can change anything."""
        pause = max(self._standing.may_start(len(self._flying)), self._next_turn())
        return pause if math.isfinite(pause) else 0.0

    def _next_turn(self) -> float:
        """The seconds until the first of what is left may be sent, as far as it is not the server that all wait for."""
        if self._lines.ready or self._lookout.may_find:
            return 0.0
        turns = [sending.not_before for sending in self._batcher.waiting]
        if (release := self._lines.next_release()) is not None:
            turns.append(release)
        return max(0.0, min(turns, default=0.0) - self._monotonic())

    # Steps

    def step(self) -> Step:
        """Handle one message, the oldest that may be sent, at once; ``AuthenticationError`` when the token is refused."""
        self._lines.let_go(math.inf)
        before = self._ledger.handled
        step: Step | None = None
        try:
            while step is None and (self._flying or self._start_one(alone=True)):
                if self._stop.is_set():
                    break
                step = self.wait(self._config.server_timeout)
        finally:
            step = self.abandon() or step
        if step is None and not self._stop.is_set():
            return Step.DROPPED if self._ledger.handled > before else Step.EMPTY
        return step or Step.RETRY

    def start(self) -> None:
        """Start what may be started now."""
        self._lines.let_go(self._monotonic())
        while not self._stop.is_set() and self._standing.may_start(len(self._flying)) <= 0:
            if not self._start_one():
                break
            if self._standing.learned.offer is not None:
                self._let_leave()  # before more is looked for
        if not self._flying:
            self._ledger.flush()  # what rules dropped

    def wait(self, patience_seconds: float) -> Step | None:
        """Wait until something that is under way has ended, at most so long; what became of it, the worst of several.

        None: nothing ended. Raises ``AuthenticationError`` when the token is refused.
        """
        while not (self._reported or self._stop.is_set()) and self._draft_next():
            self._let_leave()
        # The ring of a stop may be spent.
        return self._wait(0.0 if self._stop.is_set() else patience_seconds)

    def _let_leave(self) -> None:
        """Let what was started leave, as far as it does without waiting."""
        self._has_waited = True  # so the first byte may have left
        self._reported += self._transport.wait(0.0)

    def _wait(self, patience_seconds: float) -> Step | None:
        if self._ledger.holds:
            patience_seconds = min(patience_seconds, HOLD_SECONDS)
        self._has_waited = True
        outcomes, self._reported = self._reported or self._transport.wait(patience_seconds), []
        ended = [(self._flying.pop(tag), outcome) for tag, outcome in outcomes if tag in self._flying]
        steps = [self._conclude(flight, outcome) for flight, outcome in ended]
        if not (steps and (self._flying or self._lines.ready)):
            self._ledger.flush()
        if (refusal := self._effects.take_token_refusal()) is not None:
            self._credentials.reread()
            raise AuthenticationError(refusal)
        return max((step for step in steps if step is not None), default=None)

    def abandon(self) -> Step | None:
        """Give up what is under way, after a moment if it is ``stop`` that ends it; settle what can be settled.

        What ended in that moment, as ``wait`` says it.
        """
        step = None
        try:
            # Twice, since the wake-up that comes with a stop ends the first one.
            for _ in range(2):
                if self._flying and self._has_waited and self._stop.is_set():
                    with suppress(AuthenticationError):
                        step = self._wait(_LAST_ANSWER_SECONDS / 2) or step
        finally:
            for tag, flight in self._flying.items():
                if not isinstance(flight.cargo, Sending):
                    self._reader.unsettled.add(flight.cargo.position)
                with suppress(RuntimeError):  # the transport is closed
                    self._transport.cancel(tag)
            self._flying.clear()
        self._ledger.flush()
        return step

    def _conclude(self, flight: Flight, outcome: Answer | Failure) -> Step | None:
        if isinstance(flight.cargo, Sending):
            return self._batches.conclude(flight.cargo, flight, outcome)
        return self._singles.conclude(flight.cargo, flight, outcome)

    # Starting

    def _start_one(self, *, alone: bool = False) -> bool:
        """Start one request; False when there is nothing to send. ``alone``: one message, but for batches that lie frozen."""
        for sending in self._batcher.waiting:
            if alone or sending.not_before <= self._monotonic():
                self._batcher.waiting.remove(sending)
                self._start_batch(sending)
                return True
        offer = None if alone else self._standing.learned.offer
        if offer is None:
            return self._start_single(1 if alone else _AHEAD_MESSAGES)
        return self._start_new_batch(offer)

    def _start_new_batch(self, offer: BatchOffer) -> bool:
        learned = self._standing.learned
        while not self._stop.is_set():
            most_messages, most_bytes = self._batcher.limits(offer, learned.most_bytes)
            # One batch is under way while the next one is gathered.
            self._lines.most_in_line = max(_AHEAD_MESSAGES, 2 * most_messages)
            self._lookout.look_for(most_messages, max(_AHEAD_MESSAGES, most_messages), most_bytes)
            wanted = self._lookout.without_blacklisted(self._lines.take(most_messages, most_bytes))
            if wanted:
                portion = self._batcher.portion(wanted)
                self._effects.keep(wanted[len(portion) :])
                wanted = self._batches.for_batch(portion)
                if not wanted:
                    return self._start_single(_AHEAD_MESSAGES)
            if wanted:
                sending, faulty = self._batcher.freeze(wanted, learned.batch_coding())
                if sending is not None:
                    self._leases.end(wanted)
                    self._start_batch(sending)
                    return True
                self._batches.unfrozen(wanted, faulty)
            elif not self._lines.ready:
                break
        return False

    def _draft_next(self) -> bool:
        """Do a piece of the work on the next batch while one is under way, if it cannot grow any more; False: nothing to do."""
        learned = self._standing.learned
        flight = next(iter(self._flying.values()), None)
        if flight is None or learned.offer is None or not isinstance(flight.cargo, Sending):
            return False
        drafted = self._batcher.drafted
        if not drafted or drafted[0] not in self._lines:
            limits = self._batcher.limits(learned.offer, learned.most_bytes)
            ahead = self._lines.ahead(flight.cargo.batch.members, *limits)
            wanted = self._lookout.probably_wanted(ahead)
            if not wanted:
                return False
            self._batcher.draft(self._batcher.portion(wanted), learned.batch_coding())
            return True  # what was just started leaves before the work begins
        return self._batcher.go_on()

    def _start_batch(self, sending: Sending) -> None:
        learned = self._standing.learned
        coding, headers = learned.batch_coding(), self._credentials.current()
        timeout_seconds = float(self._config.server_timeout)
        request = self._batcher.request(
            sending, headers, path=learned.path, coding=coding, timeout_seconds=timeout_seconds
        )
        self._post(sending, coding, headers, request)

    def _start_single(self, ahead: int) -> bool:
        while not self._stop.is_set():
            self._lookout.look_for(1, ahead, _AHEAD_BYTES, is_meanwhile=bool(self._flying))
            message = self._lines.take_one()
            if message is None:
                break
            if message not in self._leases:
                self._leases.take([message, *self._lines.peek(ahead - 1)])  # in one write
            if message not in self._leases:
                self._lines.done([message])  # somebody took it out of the queue
            elif self._lookout.without_blacklisted([message]):
                coding, headers = self._standing.learned.message_coding(), self._credentials.current()
                request = single_request(
                    message,
                    self._envelope(message),
                    origin=self._standing.origin,
                    headers=headers,
                    coding=coding,
                    timeout_seconds=float(self._config.server_timeout),
                )
                self._post(message, coding, headers, request)
                return True
        return False

    def _post(
        self, cargo: StoredMessage | Sending, coding: Coding, headers: Headers, request: Request
    ) -> None:
        tag = next(_tags)
        logger.debug("POST %s", request.url)
        round_number = self._standing.started(len(request.body))
        self._transport.start(tag, request)
        self._flying[tag] = Flight(cargo, coding, headers, round_number)


def _envelope_of(place: Place, message: StoredMessage) -> Envelope:
    return Envelope(
        message.category,
        place.system_serial,
        place.sender,
        message.data_type,
        str(message.data_version),
        message.system_version,
        message.reqid,
    )
