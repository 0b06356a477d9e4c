"""What an outcome means for a batch and its members (protocol section 2)."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from infi.ramen_client.storage import Death, Fate, ReqidOrigin, Settlement
from infi.ramen_protocol import BatchOutcome, Verdict

from .batching import GONE_SECONDS
from .effects import death_by, retry_after_of, status_that_goes_with
from .exchange import Answer
from .flight import Flight, Step
from .judging import judge_batch_answer, say_batch_answer, say_unwelcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infi.ramen_client.storage import StoredMessage, Stream
    from infi.ramen_protocol import BatchJudgement, Judgement

    from .batching import Sending
    from .effects import Effects
    from .failures import Failure

logger = logging.getLogger("ramen_client")

_DEALT_WITH = frozenset(
    (
        BatchOutcome.TOO_LARGE,
        BatchOutcome.REFUSED,
        BatchOutcome.LANE_CONFLICT,
        BatchOutcome.UNSUPPORTED_CODING,
        BatchOutcome.NO_BATCHES,
    )
)
"""The server could deal with the request, though it took nothing: no reason to slow down."""

_CONTENT_TOO_LARGE = 413

_UNREADABLE = Death("damaged: its payload is not what was pushed")


class BatchVerdicts:
    """Acts on them; for one courier."""

    def __init__(self, effects: Effects) -> None:
        self._effects = effects

    def conclude(self, sending: Sending, flight: Flight, outcome: Answer | Failure) -> Step | None:
        """Act on what became of a batch; None: its messages are sent again at once, in another way."""
        if not isinstance(outcome, Answer):
            sending.is_doubtful = sending.is_doubtful or outcome.connected
            self._effects.batcher.waiting.append(sending)
            return self._effects.failed(outcome.text, flight, kind=outcome.kind.value)
        status = outcome.status
        judgement = judge_batch_answer(outcome, flight.headers, len(sending.batch.members))
        if judgement.explained:
            self._effects.standing.hear(outcome.headers)
            if judgement.outcome in _DEALT_WITH:
                self._effects.standing.answered(flight.round_number)
        if judgement.outcome is BatchOutcome.RESULTS:
            return self._results(sending, flight, judgement.results)
        # What may have been stored must not come in another way, unless the server would recognise each message.
        must_stay = sending.is_doubtful and not self._effects.standing.learned.knows_messages
        if status == _CONTENT_TOO_LARGE and not judgement.explained:
            # A proxy's: it speaks of this very batch, and a smaller one will pass. A batch that stayed as it is never would.
            judgement = replace(judgement, outcome=BatchOutcome.TOO_LARGE)
        if self._goes_another_way(sending, flight, judgement.outcome, must_stay=must_stay):
            return self._another_way(sending, flight, status, judgement)
        self._effects.batcher.waiting.append(sending)
        if judgement.outcome is BatchOutcome.UNAUTHORISED:
            came = f"the server answered {status} {judgement.code} to a batch"
            return self._effects.unauthorised(came, status, flight, retry_after_of(judgement))
        sending.is_doubtful = sending.is_doubtful or judgement.outcome is BatchOutcome.UNKNOWN
        text = say_batch_answer(status, judgement)
        return self._effects.failed(text, flight, status, retry_after_of(judgement))

    def _goes_another_way(
        self, sending: Sending, flight: Flight, outcome: BatchOutcome, *, must_stay: bool
    ) -> bool:
        """Whether there is no use in sending it again as it is."""
        match outcome:
            case BatchOutcome.TOO_LARGE | BatchOutcome.REFUSED:
                return not must_stay
            case BatchOutcome.UNSUPPORTED_CODING:
                sending.has_coding_left = self._effects.standing.learned.refused(flight.coding)
                return True
            case _:
                return outcome in _DEALT_WITH

    def _another_way(
        self, sending: Sending, flight: Flight, status: int, judgement: BatchJudgement
    ) -> Step | None:
        match judgement.outcome:
            case BatchOutcome.TOO_LARGE:
                return self._too_large(sending, status, judgement)
            case BatchOutcome.REFUSED:
                return self._refused(sending, status, judgement)
            case BatchOutcome.LANE_CONFLICT:
                logger.warning(
                    "%s does not know where a batch belongs (%s): its messages are sent anew, and may come twice",
                    self._effects.standing.origin,
                    judgement.details,
                )
                self._dissolve(sending, maybe_twice=True, end_lane=True)
                return None
            case BatchOutcome.UNSUPPORTED_CODING if sending.has_coding_left:
                self._effects.batcher.waiting.append(sending)
                return None
            case _:
                return self._no_batches(sending, flight, status, judgement)

    def _results(self, sending: Sending, flight: Flight, results: Sequence[Judgement]) -> Step | None:
        settlements: list[Settlement] = []
        refused: list[tuple[StoredMessage, Judgement]] = []
        waiting: list[tuple[StoredMessage, Judgement]] = []
        taken: list[StoredMessage] = []
        for message, judgement in zip(sending.batch.members, results, strict=True):
            match judgement.verdict:
                case Verdict.ACCEPTED | Verdict.DROPPED:
                    dropped = judgement.verdict is Verdict.DROPPED
                    settlements.append(Settlement(message, Fate.DROPPED if dropped else Fate.ACCEPTED))
                    taken.append(message)
                case Verdict.REJECTED:
                    refused.append((message, judgement))
                    settlements.append(Settlement(message, Fate.DEAD, death_by(None, judgement)))
                case Verdict.RETRY | Verdict.UNAUTHORISED:
                    waiting.append((message, judgement))
        self._effects.ledger.settle(settlements, sending.batch)
        self._effects.batcher.ended(sending)
        accepted = Counter(map(self._effects.lines.stream_of, taken))
        self._effects.left([settlement.message for settlement in settlements])
        self._effects.keep([message for message, _ in waiting])
        if self._effects.standing.learned.batches_work():
            self._effects.standing.save()
        for judgement in results:
            if judgement.verdict is Verdict.DROPPED:
                self._effects.take_rule(judgement)
        for message, judgement in refused:
            self._effects.say_refused(message, None, judgement)
        if accepted:
            self._effects.accepted(accepted, flight)
        elif refused:
            self._effects.standing.answered(flight.round_number)
        if not waiting:
            return Step.DROPPED if refused or len(settlements) > accepted.total() else Step.ACCEPTED
        return self._some_wait(waiting, flight, none_accepted=not accepted)

    def _some_wait(
        self, waiting: Sequence[tuple[StoredMessage, Judgement]], flight: Flight, *, none_accepted: bool
    ) -> Step:
        _, judgement = waiting[0]
        text = say_unwelcome(status_that_goes_with(judgement), judgement).text
        if none_accepted or self._effects.lines.are_one:
            if all(said.verdict is Verdict.UNAUTHORISED for _, said in waiting):
                self._effects.token_refusals.append(text)
            server_said = max((retry_after_of(said) or 0.0 for _, said in waiting), default=0.0)
            return self._effects.failed(text, flight, None, server_said or None)
        for message, said in {
            self._effects.lines.stream_of(message): (message, said) for message, said in reversed(waiting)
        }.values():
            self._effects.let_wait(
                message, say_unwelcome(status_that_goes_with(said), said).text, None, retry_after_of(said)
            )
        return Step.RETRY

    def _too_large(self, sending: Sending, status: int, judgement: BatchJudgement) -> Step | None:
        if len(sending.batch.members) == 1 and judgement.explained:
            return self._bury_only_member(sending, status, judgement)
        if len(sending.batch.members) == 1:
            # By itself it may be small enough for the proxy; if not, it is judged as version 1 judges.
            self._effects.reader.unsettled.add(sending.batch.members[0].position)
        self._effects.standing.learned.too_large(sending.plain_bytes)
        self._effects.standing.save()
        is_known = judgement.explained or self._effects.standing.learned.knows_messages
        self._dissolve(sending, maybe_twice=not is_known)
        return None

    def _refused(self, sending: Sending, status: int, judgement: BatchJudgement) -> Step | None:
        if self._effects.batcher.refused(sending):
            return self._bury_only_member(sending, status, judgement)
        self._effects.keep(sending.batch.members)
        return None

    def _bury_only_member(self, sending: Sending, status: int, judgement: BatchJudgement) -> Step:
        (message,) = sending.batch.members
        death = Death(f"the server refused it ({status})", judgement.details, status, judgement.code)
        self._effects.ledger.settle([Settlement(message, Fate.DEAD, death)], sending.batch)
        self._effects.batcher.ended(sending)
        self._effects.left([message])
        text = say_batch_answer(status, judgement)
        self._effects.outage.refused(text, self._effects.standing.origin, message, explained=True)
        return Step.DROPPED

    def _no_batches(
        self, sending: Sending, flight: Flight, status: int, judgement: BatchJudgement
    ) -> Step | None:
        """Its path is not there. What may have been stored stays as it is, unless the server itself says so and knows each message."""
        learned = self._effects.standing.learned
        learned.no_batches()
        self._effects.standing.save()
        now = self._effects.monotonic()
        if sending.gone_since is None:
            sending.gone_since = now
        stays = sending.is_doubtful and not (judgement.explained and learned.knows_messages)
        if not stays or now - sending.gone_since >= GONE_SECONDS:
            is_known = not sending.is_doubtful or learned.knows_messages
            self._dissolve(sending, maybe_twice=not is_known, end_lane=not is_known)
            return None
        self._effects.batcher.waiting.append(sending)
        text = say_batch_answer(status, judgement)
        if not judgement.explained:
            return self._effects.failed(text, flight, status)  # a stranger's page, as likely as not
        sending.not_before = now + self._effects.config.retry_delay
        logger.info("%s: %s", self._effects.standing.origin, text)
        return Step.RETRY

    def _dissolve(self, sending: Sending, *, maybe_twice: bool = False, end_lane: bool = False) -> None:
        self._effects.batcher.dissolve(sending, maybe_twice=maybe_twice, end_lane=end_lane)
        self._effects.keep(sending.batch.members)

    def unfrozen(self, wanted: Sequence[StoredMessage], faulty: Sequence[StoredMessage]) -> None:
        """A batch could not be frozen: some messages are not in the queue any more, or no record can be made of them."""
        there = wanted
        if faulty:
            self._effects.ledger.settle([Settlement(message, Fate.DEAD, _UNREADABLE) for message in faulty])
            gone = {message.position for message in faulty}
            there = [message for message in wanted if message.position not in gone]
        else:
            there = self._effects.leases.take(wanted)
            self._effects.leases.give_back(there)
        still = {message.position for message in there}
        self._effects.left([message for message in wanted if message.position not in still])
        self._effects.keep(there)

    def for_batch(self, wanted: Sequence[StoredMessage]) -> list[StoredMessage]:
        """Those that may go in a batch; the others are put back, to be sent by themselves, and nothing overtakes them.

        By itself goes what was too large for a proxy even so; and to a server that does not know each message: what may have
        been sent so already, and what has a reqid of the caller's choice.
        """
        knows_messages = self._effects.standing.learned.knows_messages
        if knows_messages and not self._effects.reader.unsettled:
            return list(wanted)
        in_batch: list[StoredMessage] = []
        rest: list[StoredMessage] = []
        stopped: set[Stream] = set()
        for message in wanted:
            stream = self._effects.lines.stream_of(message)
            is_known = knows_messages or message.reqid_origin == ReqidOrigin.PUSH
            if not is_known or message.position in self._effects.reader.unsettled:
                stopped.add(stream)
            (rest if stream in stopped else in_batch).append(message)
        self._effects.keep(rest)
        return in_batch
