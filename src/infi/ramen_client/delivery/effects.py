"""What follows from an outcome: for its messages, for their streams, and for what is known of the server.

Nothing is sent here, and no answer is judged: see ``courier`` for the invariants.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from infi.ramen_client.storage import Death, FailureNote, Fate, Settlement, now_ms
from infi.ramen_protocol import MAX_RETRY_AFTER_SECONDS, Code, parse_retry_after, status_of

from .backoff import Backoff
from .flight import Flight, Step
from .judging import say_answer, say_refused_token
from .lines import BEFORE_ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from infi.ramen_client.blacklist import StoredBlacklist
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.storage import ActiveReader, StoredMessage, Stream
    from infi.ramen_protocol import BatchJudgement, Judgement

    from .batching import Batcher
    from .blame import Blame
    from .leases import Leases
    from .ledger import Ledger
    from .lines import Lines
    from .outage import OutageLog
    from .standing import Standing

logger = logging.getLogger("ramen_client")


@dataclass(frozen=True, slots=True)
class Effects:
    """The effects of outcomes; for one courier."""

    reader: ActiveReader
    config: QueueReaderConfig
    blacklist: StoredBlacklist
    outage: OutageLog
    standing: Standing
    lines: Lines
    leases: Leases
    batcher: Batcher
    ledger: Ledger
    blame: Blame
    chance: Callable[[], float]
    monotonic: Callable[[], float]
    _backoffs: dict[Stream, Backoff] = field(default_factory=dict)
    _heads: dict[Stream, int] = field(default_factory=dict)
    token_refusals: list[str] = field(default_factory=list)

    def recall(self) -> None:
        """Let streams wait on that an earlier reader was told to let wait."""
        if self.lines.are_one:
            return
        for waits in self.reader.waiting_streams():
            left = min(max((waits.retry_at_ms - now_ms()) / 1000, 0.0), MAX_RETRY_AFTER_SECONDS)
            stream = (waits.category, waits.data_type)
            self.lines.hold(stream, self.monotonic() + left)
            self.lines.unseen(stream, BEFORE_ALL)
            self._heads[stream] = BEFORE_ALL

    def take_token_refusal(self) -> str | None:
        """Why the token was refused, once."""
        return self.token_refusals.pop() if self.token_refusals else None

    def left(self, messages: Sequence[StoredMessage]) -> None:
        """Messages left the queue."""
        self.leases.end(messages)
        self.lines.done(messages)
        self.batcher.left(messages)
        self.reader.unsettled.difference_update(message.position for message in messages)

    def keep(self, messages: Sequence[StoredMessage]) -> None:
        """Messages stay in the queue, and are sent again."""
        self.lines.put_back(messages)

    def accepted(self, accepted: Mapping[Stream, int], flight: Flight) -> None:
        """The server took so many messages of each stream."""
        for stream, messages in accepted.items():
            self.blame.accepted(stream, messages)
            if stream in self._heads:
                self._backoffs.pop(stream, None)
                self.reader.note_flowing_stream(stream, self._heads.pop(stream))
        if self.standing.has_trouble:
            self.ledger.flush()
        self.standing.succeeded(flight.round_number)

    def failed(
        self,
        text: str,
        flight: Flight,
        status: int | None = None,
        server_said: float | None = None,
        *,
        kind: str | None = None,
    ) -> Step:
        """The server, or the way there, does not work: everybody waits."""
        self.ledger.flush()
        self.standing.failed(text, flight.round_number, status=status, server_said=server_said, kind=kind)
        return Step.RETRY

    def unauthorised(self, came: str, status: int, flight: Flight, server_said: float | None) -> Step:
        """The token was refused; ``came``: what the server said."""
        text = say_refused_token(came)
        self.token_refusals.append(text)
        return self.failed(text, flight, status, server_said)

    def let_wait(
        self, message: StoredMessage, text: str, status: int | None, server_said: float | None
    ) -> None:
        """Let a stream wait by itself; ``message`` is its head, and back in its line."""
        stream = self.lines.stream_of(message)
        backoff = self._backoffs.setdefault(stream, Backoff(self.chance))
        delay = backoff.failed(self.config.retry_delay, server_said)
        self.ledger.flush()
        note = FailureNote(text, status, now_ms() + int(delay * 1000))
        attempts = self.reader.note_waiting_stream(message, note)
        if attempts == 1:
            logger.warning(
                "%s: messages of %s/%s must wait, the others go on: %s", self.standing.origin, *stream, text
            )
        self._heads[stream] = message.position
        if self.config.max_attempts is not None and attempts >= self.config.max_attempts:
            self._give_up(message, attempts, text)
            return
        self.leases.give_back(self.lines.hold(stream, self.monotonic() + delay))

    def _give_up(self, message: StoredMessage, attempts: int, text: str) -> None:
        death = Death(f"it was tried {attempts} times (max_attempts)", text)
        self.lines.take_back(message)
        self.ledger.settle([Settlement(message, Fate.DEAD, death)])
        self.left([message])
        # Its next head has not been refused yet, and may never come.
        stream = self.lines.stream_of(message)
        self._backoffs.pop(stream, None)
        self.reader.note_flowing_stream(stream, self._heads.pop(stream, None))
        self.outage.refused(f"tried {attempts} times: {text}", self.standing.origin, message, explained=True)

    def take_rule(self, judgement: Judgement) -> None:
        """Keep the rule that came with a judgement, if it can be applied."""
        if judgement.rule is not None:
            self.blacklist.receive(judgement.rule)
        elif judgement.rule_problem is not None:
            logger.warning(
                "a blacklist rule of %s cannot be applied: %s", self.standing.origin, judgement.rule_problem
            )

    def say_refused(self, message: StoredMessage, status: int | None, judgement: Judgement) -> None:
        """Log that a message became a dead letter; ``status``: None in a batch."""
        text = say_answer(status_that_goes_with(judgement) if status is None else status, judgement)
        self.outage.refused(text, self.standing.origin, message, explained=judgement.explained)


def death_by(status: int | None, judgement: Judgement) -> Death:
    """The death of a message that the server refused; ``status``: None in a batch."""
    status = status_that_goes_with(judgement) if status is None else status
    return Death(f"the server refused it ({status})", judgement.details, status, judgement.code)


def status_that_goes_with(judgement: Judgement) -> int:
    """The status that goes with an explained judgement: the results of a batch have none of their own here."""
    return status_of(Code(judgement.code))


def retry_after_of(judgement: Judgement | BatchJudgement) -> float | None:
    """The seconds that the server asked to wait."""
    if judgement.retry_after is None:
        return None
    return parse_retry_after(judgement.retry_after, now=datetime.now(UTC))
