"""What an answer says about a batch (protocol section 2, "Answer"): one table, one function.

    status          body                                      outcome             stored
    200             results: one for each record, each with   RESULTS             as each result says
                    a known code that agrees with its status
    401 403         a protocol body                           UNAUTHORISED        nothing
    409             a protocol body with LANE_CONFLICT        LANE_CONFLICT       nothing
    413             a protocol body                           TOO_LARGE           nothing
    429             a protocol body                           WAIT                nothing
    404 405         any                                       NO_BATCHES          nothing if explained, else unknown
    415             any                                       UNSUPPORTED_CODING  nothing if explained, else unknown
    any other 4xx   a protocol body                           REFUSED             nothing
    anything else   any                                       UNKNOWN             unknown: the batch stays frozen

A *protocol body* is a JSON object whose ``code`` is one of the protocol's and agrees with the status, as in ``verdict``. So a
page of a proxy, a captive portal's 200, a 5xx, a 202, results of another number than there are records, and a result with a
code that nobody knows: all are UNKNOWN, and nothing of them is believed.

A result with a 5xx says that this record was not stored (RETRY), for the answer as a whole is definite.

As in ``verdict``, an answer may be an attacker's: bodies, texts and numbers are bounded before they are believed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import orjson

from infi.ramen_protocol._text import clean_text
from infi.ramen_protocol.answers import Code
from infi.ramen_protocol.verdict import (
    MAX_ANSWER_BYTES,
    MAX_RETRY_AFTER_SECONDS,
    Judgement,
    agreed_code,
    believable_retry_after,
    explained,
    json_object,
    said,
    what_came,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from infi.ramen_protocol.batch import RecordResult

MAX_RESULT_BYTES = 4 * 1024
"""The most bytes of one result: 500 characters of details and a rule's six values, each as long as they may be."""

_OK = 200
_CONFLICT = 409
_CLIENT_ERRORS = range(400, 500)

_ACCEPTED = b'{"status":202,"code":"ACCEPTED","details":null}'


class BatchOutcome(Enum):
    """What an answer says about the batch as a whole."""

    RESULTS = "results"
    """There is a verdict on each record."""

    TOO_LARGE = "too large"
    """Nothing was stored; a smaller batch may be taken."""

    LANE_CONFLICT = "lane conflict"
    """Nothing was stored; the lane is not where the client believes it to be."""

    UNSUPPORTED_CODING = "unsupported coding"
    """The batch may be taken in another content coding."""

    UNAUTHORISED = "unauthorised"
    """Nothing was stored; the token was refused."""

    REFUSED = "refused"
    """Nothing was stored; the batch is not one that this server takes."""

    NO_BATCHES = "no batches"
    """There is no such path, or nothing is posted to it: this server takes no batches (any more)."""

    WAIT = "wait"
    """Nothing was stored; the server wants it later."""

    UNKNOWN = "unknown"
    """Nothing is known: the batch is sent again as it is."""


_EXPLAINED_OR_NOT = {
    404: BatchOutcome.NO_BATCHES,
    405: BatchOutcome.NO_BATCHES,
    415: BatchOutcome.UNSUPPORTED_CODING,
}
_EXPLAINED = {
    401: BatchOutcome.UNAUTHORISED,
    403: BatchOutcome.UNAUTHORISED,
    413: BatchOutcome.TOO_LARGE,
    429: BatchOutcome.WAIT,
}


@dataclass(frozen=True, slots=True)
class BatchJudgement:
    """An outcome, and what the answer said beside it."""

    outcome: BatchOutcome

    results: tuple[Judgement, ...]
    """With RESULTS: the verdict on each record, in their order, as ``classify`` gives it; else empty."""

    code: str | None
    """The protocol body's code; None where the answer is not explained, and with RESULTS."""

    details: str
    """One bounded, printable line: the server's own words if it is explained (maybe empty), else what came instead."""

    explained: bool
    """Whether the answer is one of the protocol: of a NO_BATCHES or UNSUPPORTED_CODING it says that nothing was stored."""

    retry_after: str | None
    """The ``Retry-After`` header for ``parse_retry_after``; None where there is none, or one that cannot be true."""


def max_batch_answer_bytes(records: int) -> int:
    """Tell what a client reads of the answer to a batch of so many records, in bytes."""
    return MAX_ANSWER_BYTES + records * MAX_RESULT_BYTES


def encode_results(results: Sequence[RecordResult]) -> bytes:
    """Write the body of a 200: one result for each record, in their order."""
    return b'{"results":[%b]}' % b",".join(map(_encoded, results))


def judge_batch(status: int, headers: Mapping[str, str], body: bytes, records: int) -> BatchJudgement:
    """Judge the answer to a batch of so many records; never raises, whatever came.

    ``headers`` has lower-case names. Of ``body`` at most ``max_batch_answer_bytes(records)`` are needed; a longer one is
    not looked at.
    """
    answer = json_object(body, max_bytes=max_batch_answer_bytes(records))
    retry_after = believable_retry_after(headers)
    if status == _OK:
        results, problem = _results(answer, records)
        if results is not None:
            return BatchJudgement(BatchOutcome.RESULTS, results, None, "", True, retry_after)
        return BatchJudgement(BatchOutcome.UNKNOWN, (), None, problem, False, retry_after)
    code = _code(status, answer)
    outcome = _outcome(status, code)
    if code is None:
        return BatchJudgement(outcome, (), None, what_came(status, headers, body), False, retry_after)
    return BatchJudgement(outcome, (), code.value, said(answer), True, retry_after)


def _code(status: int, answer: Mapping[str, object]) -> Code | None:
    if status == _CONFLICT and answer.get("code") == Code.LANE_CONFLICT.value:
        return Code.LANE_CONFLICT
    return agreed_code(status, answer)


def _outcome(status: int, code: Code | None) -> BatchOutcome:
    """Look up the table of the module's docstring, but for its 200; ``code`` is None unless it agrees with the status."""
    if status in _EXPLAINED_OR_NOT:
        return _EXPLAINED_OR_NOT[status]
    if code is None or status not in _CLIENT_ERRORS:
        return BatchOutcome.UNKNOWN
    if code is Code.LANE_CONFLICT:
        return BatchOutcome.LANE_CONFLICT
    return _EXPLAINED.get(status, BatchOutcome.REFUSED)


def _results(answer: Mapping[str, object], records: int) -> tuple[tuple[Judgement, ...] | None, str]:
    """Read the results; None, and why, when they are void."""
    results = answer.get("results")
    if not isinstance(results, list):
        return None, "status 200 without results"
    if len(results) != records:
        return None, f"{len(results)} results for {records} records"
    judgements: list[Judgement] = []
    for number, result in enumerate(results, 1):
        judgement = _PLAINLY_ACCEPTED if result == _PLAIN_ACCEPTANCE else _judge_result(result)
        if judgement is None:
            return None, f"result {number} is none of the protocol's: {_shown(result)}"
        judgements.append(judgement)
    return tuple(judgements), ""


def _judge_result(result: object) -> Judgement | None:
    if not isinstance(result, dict):
        return None
    status = result.get("status")
    if type(status) is not int:
        return None
    code = agreed_code(status, result)
    if code is None:
        return None
    return explained(status, code, result, _retry_after(result.get("retry_after")))


def _retry_after(value: object) -> str | None:
    """Give a result's ``retry_after`` in the form of the header: whole seconds, rounded up, at most the protocol's hour."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        return None
    return str(math.ceil(min(value, MAX_RETRY_AFTER_SECONDS)))


_PLAIN_ACCEPTANCE: dict[str, object] = {"status": 202, "code": Code.ACCEPTED.value, "details": None}
"""What nearly every result is: it need not be judged each time."""
_PLAINLY_ACCEPTED = _judge_result(_PLAIN_ACCEPTANCE)


def _shown(result: object) -> str:
    if not isinstance(result, dict):
        return "it is no object"
    code, status = result.get("code"), result.get("status")
    shown_code = clean_text(code, 40) if isinstance(code, str) else "none"
    shown_status = clean_text(str(status), 10) if type(status) is int else "none"
    return f"code {shown_code}, status {shown_status}"


def _encoded(result: RecordResult) -> bytes:
    if result.code is Code.ACCEPTED and result.details is None:
        return _ACCEPTED
    members: dict[str, object] = {
        "status": result.status,
        "code": result.code.value,
        "details": None if result.details is None else clean_text(result.details),
    }
    if result.rule is not None:
        members["rule"] = result.rule.as_json()
    if result.retry_after_seconds is not None:
        members["retry_after"] = math.ceil(result.retry_after_seconds)
    return orjson.dumps(members)
