"""What an answer means: for its message (a judgement), and for a person (what it says, and what to do).

The token is in nothing that leaves this module, also where the server sends it back.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from infi.ramen_protocol import BatchJudgement, Coding, Judgement, Verdict, classify, judge_batch

if TYPE_CHECKING:
    from infi.ramen_client.config import QueueReaderConfig

    from .exchange import Answer

Headers = tuple[tuple[str, str], ...]

_TOKEN_HEADER = "X-API-Token"  # noqa: S105 - its name
_WITHHELD = "the answer repeats the token, so it is not shown"

_TOO_MANY_REQUESTS = 429
_FIRST_SERVER_ERROR = 500


class Said(NamedTuple):
    """What is the matter, and what to do about it."""

    what: str
    remedy: str

    @property
    def text(self) -> str:
        """Both in one sentence."""
        return f"{self.what}: {self.remedy}"


def request_headers(config: QueueReaderConfig) -> Headers:
    """The headers of every version 1 request of this configuration. Raises ``ValidationError`` as ``read_auth_token`` does."""
    return (
        (_TOKEN_HEADER, config.read_auth_token()),
        ("Content-Type", "application/json"),
        # The coding that every deployed server takes: zlib bytes under this label (protocol section 1).
        ("Content-Encoding", Coding.LEGACY.label),
    )


def judge(answer: Answer, headers: Headers) -> Judgement:
    """The judgement on an answer to a request with these headers; free of their token, which a server may send back."""
    judgement = classify(answer.status, answer.headers, answer.body)
    if judgement.verdict is Verdict.ACCEPTED:
        return judgement
    token = dict(headers)[_TOKEN_HEADER]
    said = (judgement.details, judgement.rule_problem or "", *answer.headers.values())
    if token.encode("latin-1") not in answer.body and not any(token in text for text in said):
        return judgement
    details = _WITHHELD if judgement.explained else f"status {answer.status} ({_WITHHELD})"
    problem = None if judgement.rule_problem is None else _WITHHELD
    return replace(judgement, details=details, rule_problem=problem)


def judge_batch_answer(answer: Answer, headers: Headers, records: int) -> BatchJudgement:
    """The judgement on the answer to a batch; free of the token, as ``judge``."""
    judgement = judge_batch(answer.status, answer.headers, answer.body, records)
    token = dict(headers)[_TOKEN_HEADER]
    if token.encode("latin-1") not in answer.body and token not in "".join(answer.headers.values()):
        return judgement
    results = tuple(
        replace(result, details=_WITHHELD, rule_problem=result.rule_problem and _WITHHELD)
        for result in judgement.results
    )
    details = _WITHHELD if judgement.explained else f"status {answer.status} ({_WITHHELD})"
    return replace(judgement, results=results, details=details)


def say_batch_answer(status: int, judgement: BatchJudgement) -> str:
    """What came back for a batch that is not settled by it, and what to do."""
    if judgement.explained:
        said = f": {judgement.details}" if judgement.details else ""
        what = f"the server answered {status} {judgement.code} to a batch{said}"
        remedy = "look at the server, its log and its disk"
        return Said(what, remedy).text
    what = f"the server, or a proxy before it, answered a batch with {judgement.details}"
    return Said(what, "look at the server, and at the proxy if there is one").text


def say_answer(status: int, judgement: Judgement) -> str:
    """What came back. The details of an unexplained answer begin with its status."""
    if judgement.explained:
        said = f": {judgement.details}" if judgement.details else ""
        return f"the server answered {status} {judgement.code}{said}"
    if judgement.verdict is Verdict.RETRY and status < _FIRST_SERVER_ERROR and status != _TOO_MANY_REQUESTS:
        return f"something that is no Ramen server answered with {judgement.details}"
    return f"the server, or a proxy before it, answered with {judgement.details}"


def say_unwelcome(status: int, judgement: Judgement) -> Said:
    """What is the matter when a message was not taken, and what to do; not for ACCEPTED."""
    came = say_answer(status, judgement)
    match judgement.verdict:
        case Verdict.UNAUTHORISED:
            return _refused_token(came)
        case Verdict.DROPPED:
            return Said(f"the message is not wanted ({came})", "look at the server's blacklist rules")
        case Verdict.REJECTED:
            remedy = "compare what is sent with what the server takes"
            return Said(
                came, remedy if judgement.explained else f"check hostname, ssl and proxy, or {remedy}"
            )
        case _:
            return _say_retry(status, came, explained=judgement.explained)


def say_refused_token(came: str) -> str:
    """What is the matter when the token was refused; ``came``: as ``say_answer`` gives it."""
    return _refused_token(came).text


def _refused_token(came: str) -> Said:
    return Said(
        f"the token is refused ({came})",
        "check auth_token or auth_token_file, and that the token is meant for this server",
    )


def _say_retry(status: int, came: str, *, explained: bool) -> Said:
    if status == _TOO_MANY_REQUESTS:
        return Said(
            f"no more is taken for now ({came})",
            "nothing is to be done, unless it lasts: then raise the limit",
        )
    if explained:
        return Said(f"no message is taken now ({came})", "look at the server, its log and its disk")
    if status >= _FIRST_SERVER_ERROR:
        return Said(came, "look at the server, and at the proxy if there is one")
    return Said(came, "check hostname, ssl and proxy")


def say_suspect(status: int) -> Said:
    """The matter with a server that refused several messages in a row without speaking the protocol."""
    return Said(
        f"the server is suspect: it refuses one message after the other (with status {status}) without a protocol body, as a "
        "proxy or a wrong host would, so nothing is given up",
        "check hostname, ssl and proxy",
    )
