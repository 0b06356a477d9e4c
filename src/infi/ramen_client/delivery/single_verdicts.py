"""What an outcome means for a message that was sent by itself (protocol section 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infi.ramen_client.storage import SUSPECT_AFTER, Fate, Settlement
from infi.ramen_protocol import Verdict

from .effects import death_by, retry_after_of
from .exchange import Answer
from .flight import Flight, Step
from .judging import judge, say_answer, say_suspect, say_unwelcome

if TYPE_CHECKING:
    from infi.ramen_client.storage import StoredMessage
    from infi.ramen_protocol import Judgement

    from .effects import Effects
    from .failures import Failure

_UNSUPPORTED_MEDIA_TYPE = 415
_FIRST_SERVER_ERROR = 500


class SingleVerdicts:
    """Acts on them; for one courier."""

    def __init__(self, effects: Effects) -> None:
        self._effects = effects

    def conclude(self, message: StoredMessage, flight: Flight, outcome: Answer | Failure) -> Step | None:
        """Act on what became of a message; None: it is sent again at once, in another way."""
        if not isinstance(outcome, Answer):
            if outcome.connected:
                self._effects.reader.unsettled.add(message.position)
            self._effects.keep([message])
            return self._effects.failed(outcome.text, flight, kind=outcome.kind.value)
        judgement = judge(outcome, flight.headers)
        if judgement.explained or outcome.status == _UNSUPPORTED_MEDIA_TYPE:
            self._effects.standing.hear(outcome.headers)
        if not judgement.explained or outcome.status >= _FIRST_SERVER_ERROR:
            self._effects.reader.unsettled.add(
                message.position
            )  # nothing was said about it: it may have been stored
        match judgement.verdict:
            case Verdict.ACCEPTED:
                self._effects.ledger.hold(message, Fate.ACCEPTED)
                self._effects.left([message])
                self._effects.accepted({self._effects.lines.stream_of(message): 1}, flight)
                return Step.ACCEPTED
            case Verdict.DROPPED:
                self._effects.ledger.settle([Settlement(message, Fate.DROPPED)])
                self._effects.left([message])
                self._effects.accepted({self._effects.lines.stream_of(message): 1}, flight)
                self._effects.take_rule(judgement)
                return Step.DROPPED
            case Verdict.REJECTED:
                return self._rejected(message, flight, outcome, judgement)
            case Verdict.UNAUTHORISED:
                self._effects.keep([message])
                came = say_answer(outcome.status, judgement)
                return self._effects.unauthorised(came, outcome.status, flight, retry_after_of(judgement))
            case Verdict.RETRY:
                return self._held_up(message, flight, outcome.status, judgement)

    def _rejected(
        self, message: StoredMessage, flight: Flight, answer: Answer, judgement: Judgement
    ) -> Step | None:
        status = answer.status
        if status == _UNSUPPORTED_MEDIA_TYPE and self._effects.standing.learned.refused(flight.coding):
            self._effects.standing.answered(flight.round_number)
            self._effects.keep([message])
            return None
        if not judgement.explained and self._effects.standing.is_suspect:
            self._effects.keep([message])
            return self._effects.failed(say_suspect(status).text, flight, status, retry_after_of(judgement))
        settlement = Settlement(message, Fate.DEAD, death_by(status, judgement))
        if judgement.explained:
            self._effects.ledger.settle([settlement])
            self._effects.left([message])
        else:
            self._effects.ledger.flush()
            suspect = self._effects.reader.reject_unexplained(settlement, self._effects.standing.origin)
            self._effects.ledger.handled += 1
            self._effects.left([message])
            if suspect:
                # The five wait again, before everything that was looked for.
                self._effects.lines.start_over()
                self._effects.standing.suspect(SUSPECT_AFTER)
                return self._effects.failed(
                    say_suspect(status).text, flight, status, retry_after_of(judgement)
                )
        self._effects.standing.answered(flight.round_number)
        self._effects.say_refused(message, status, judgement)
        return Step.DROPPED

    def _held_up(self, message: StoredMessage, flight: Flight, status: int, judgement: Judgement) -> Step:
        stream = self._effects.lines.stream_of(message)
        is_alone = self._effects.lines.are_one or self._effects.lines.is_alone(stream)
        is_own = self._effects.blame.is_own(stream, explained=judgement.explained, is_alone=is_alone)
        self._effects.keep([message])
        text = say_unwelcome(status, judgement).text
        if is_own:
            self._effects.let_wait(message, text, status, retry_after_of(judgement))
            return Step.RETRY
        return self._effects.failed(text, flight, status, retry_after_of(judgement))
