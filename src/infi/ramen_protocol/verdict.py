"""What an answer says about the message (protocol section 1, "Answer"): one table, one function.

A verdict is final only where the answer is plausibly one about this message: a *protocol body* (a JSON object whose
``code`` is one of the protocol's and agrees with the status), or a status that speaks of the message itself. Anything
else (a captive portal's 200, a proxy's 407, a page of a wrong host) is a failure of the way there: RETRY.

    status                                    with a protocol body      without one
    202                                       ACCEPTED or DROPPED       RETRY
    400 409 411 413 414 415 422 431           REJECTED                  REJECTED, not explained
    404                                       REJECTED                  RETRY
    401 403                                   UNAUTHORISED              UNAUTHORISED
    any other                                 RETRY                     RETRY

That a server is suspect after several unexplained rejections is for the client to judge: it needs a memory.

Everything in an answer may be an attacker's: bodies are bounded, text is made one printable line, numbers are
bounded before they are believed, and a rule that is not understood is never widened.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

import orjson

from infi.ramen_protocol._text import clean_text
from infi.ramen_protocol.answers import Code
from infi.ramen_protocol.rules import Rule, UnusableRule

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_ANSWER_BYTES = 64 * 1024
"""What a client reads of an answer, in bytes. A protocol body is a few hundred; a longer one explains nothing."""

MAX_RETRY_AFTER_SECONDS = 3600
"""The longest wait that a server can ask for: an hour."""

_REJECTING_CODES = frozenset(
    (Code.BAD_REQUEST, Code.NOT_FOUND, Code.PAYLOAD_TOO_LARGE, Code.UNSUPPORTED_MEDIA_TYPE)
)
_ABOUT_THE_MESSAGE = frozenset((400, 409, 411, 413, 414, 415, 422, 431))
_AUTHENTICATION = frozenset((401, 403))
_CODES = {code.value: code for code in Code}
_NO_ANSWER: Mapping[str, object] = {}

_MAX_RETRY_AFTER_CHARS = 64
_SECONDS = re.compile(r"[0-9]+", re.ASCII).fullmatch
_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_HTTP_DATES = tuple(
    re.compile(pattern, re.ASCII).fullmatch
    for pattern in (
        # RFC 9110 section 5.6.7: what is sent today, and two old forms that must still be read.
        rf"[A-Z][a-z]{{2}}, (?P<day>\d\d) (?P<month>{_MONTHS}) (?P<year>\d{{4}}) {_TIME} GMT",
        rf"[A-Z][a-z]{{5,8}}, (?P<day>\d\d)-(?P<month>{_MONTHS})-(?P<year>\d\d) {_TIME} GMT",
        rf"[A-Z][a-z]{{2}} (?P<month>{_MONTHS}) (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
    )
)


class Verdict(Enum):
    """What becomes of the message."""

    ACCEPTED = "accepted"
    """The server has it: remove it."""

    DROPPED = "dropped"
    """The server does not want it, nor any that the rule matches: remove it, keep the rule."""

    REJECTED = "rejected"
    """The message is at fault, sending it again cannot help: a dead letter."""

    RETRY = "retry"
    """Nothing was said about the message: keep it, try again later."""

    UNAUTHORISED = "unauthorised"
    """The token was refused: keep the message."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict, and what the answer said beside it."""

    verdict: Verdict

    code: str | None
    """The protocol body's code; None where the answer is not explained."""

    details: str
    """One bounded, printable line: the server's own words if it is explained (maybe empty), else what came instead."""

    rule: Rule | None
    """With DROPPED: the rule to keep; None where it cannot be applied or none came."""

    rule_problem: str | None
    """With DROPPED: why the rule that came is not applied; one bounded, printable line."""

    explained: bool
    """Whether the answer carries a protocol body that agrees with its status."""

    retry_after: str | None
    """The ``Retry-After`` header for ``parse_retry_after``; None where there is none, or one that cannot be true."""


_ACCEPTED = 202
_PLAIN_ACCEPTANCE: dict[str, object] = {"code": Code.ACCEPTED.value, "details": None}
"""What nearly every answer is: it need not be judged each time."""
_PLAINLY_ACCEPTED = Judgement(
    Verdict.ACCEPTED,
    Code.ACCEPTED.value,
    details="",
    rule=None,
    rule_problem=None,
    explained=True,
    retry_after=None,
)


def classify(status: int, headers: Mapping[str, str], body: bytes) -> Judgement:
    """Judge what a version 1 answer says about its message; never raises, whatever came.

    ``headers`` has lower-case names. Of ``body`` at most ``MAX_ANSWER_BYTES`` are needed; a longer one is not
    looked at.
    """
    answer = json_object(body, max_bytes=MAX_ANSWER_BYTES)
    retry_after = believable_retry_after(headers)
    if status == _ACCEPTED and answer == _PLAIN_ACCEPTANCE and retry_after is None:
        return _PLAINLY_ACCEPTED
    code = agreed_code(status, answer)
    if code is not None:
        return explained(status, code, answer, retry_after)
    return Judgement(
        verdict=_verdict(status, None),
        code=None,
        details=what_came(status, headers, body),
        rule=None,
        rule_problem=None,
        explained=False,
        retry_after=retry_after,
    )


def explained(status: int, code: Code, answer: Mapping[str, object], retry_after: str | None) -> Judgement:
    """Give the judgement of an answer whose ``code`` agrees with its status: of version 1, or one of a batch's results."""
    verdict = _verdict(status, code)
    rule, rule_problem = _rule(answer) if verdict is Verdict.DROPPED else (None, None)
    return Judgement(
        verdict=verdict,
        code=code.value,
        details=said(answer),
        rule=rule,
        rule_problem=rule_problem,
        explained=True,
        retry_after=retry_after,
    )


def said(answer: Mapping[str, object]) -> str:
    """Give the server's own words as one bounded, printable line; empty where there are none."""
    details = answer.get("details")
    return clean_text(details) if isinstance(details, str) else ""


def json_object(body: bytes, *, max_bytes: int) -> Mapping[str, object]:
    """Read a body that is one JSON object of at most so many bytes; an empty one stands for anything else."""
    if len(body) > max_bytes:
        return _NO_ANSWER
    try:
        answer = orjson.loads(body)  # bounds its own depth, refuses invalid UTF-8
    except orjson.JSONDecodeError:
        return _NO_ANSWER
    return answer if isinstance(answer, dict) else _NO_ANSWER


def agreed_code(status: int, answer: Mapping[str, object]) -> Code | None:
    """Give the answer's code if version 1 knows it, and a server that speaks it could send it under this status."""
    text = answer.get("code")
    code = _CODES.get(text) if isinstance(text, str) else None
    return code if _agrees(status, code) else None


def believable_retry_after(headers: Mapping[str, str]) -> str | None:
    """Give the ``Retry-After`` header if it may be true."""
    retry_after = headers.get("retry-after")
    return retry_after if retry_after is not None and _may_be_time(retry_after) else None


def parse_retry_after(value: str, *, now: datetime) -> float | None:
    """Compute how many seconds from ``now`` a ``Retry-After`` header asks to wait (RFC 9110 section 10.2.3).

    Takes whole seconds, or an HTTP date in any of its three forms (section 5.6.7). The result is 0 (a date that has
    passed) to ``MAX_RETRY_AFTER_SECONDS``; None where the value is neither. ``now`` must be aware: ``ValueError``.
    """
    if now.tzinfo is None:
        raise ValueError("now must be an aware datetime")
    value = value.strip(" \t")
    if _SECONDS(value):
        digits = value.lstrip("0")
        # Never int() of what somebody sent at any length: more digits than the cap has are simply more.
        if len(digits) > len(str(MAX_RETRY_AFTER_SECONDS)):
            return float(MAX_RETRY_AFTER_SECONDS)
        return float(min(int(digits or "0"), MAX_RETRY_AFTER_SECONDS))
    date = _http_date(value, now)
    if date is None:
        return None
    return min(max((date - now).total_seconds(), 0.0), float(MAX_RETRY_AFTER_SECONDS))


def _agrees(status: int, code: Code | None) -> bool:
    """Tell whether a server that speaks the protocol could send this code under this status."""
    if code in (Code.ACCEPTED, Code.DROPPED):
        return status == 202  # noqa: PLR2004 - statuses are their own names
    if code in _REJECTING_CODES:
        return status in _ABOUT_THE_MESSAGE or status == 404  # noqa: PLR2004
    if code in (Code.UNAUTHORIZED, Code.FORBIDDEN):
        return status in _AUTHENTICATION
    if code is Code.TOO_MANY_REQUESTS:
        return status == 429  # noqa: PLR2004
    if code is Code.LANE_CONFLICT:
        return False  # version 1 has no lanes
    return code is not None and 500 <= status <= 599  # noqa: PLR2004


def _verdict(status: int, code: Code | None) -> Verdict:
    """Look up the table of the module's docstring; ``code`` is None unless it agrees with the status."""
    if code is Code.ACCEPTED:
        return Verdict.ACCEPTED
    if code is Code.DROPPED:
        return Verdict.DROPPED
    if code in _REJECTING_CODES or status in _ABOUT_THE_MESSAGE:
        return Verdict.REJECTED
    if status in _AUTHENTICATION:
        return Verdict.UNAUTHORISED
    return Verdict.RETRY


def _rule(answer: Mapping[str, object]) -> tuple[Rule | None, str | None]:
    value = answer.get("rule")
    if value is None:
        return None, None
    try:
        return Rule.parse(value), None
    except UnusableRule as problem:
        return None, str(problem)


_PAGE_HEAD_BYTES = 4096
_KNOWN_PAGES = {
    b"No required SSL certificate was sent": "a client certificate is wanted (`client_certificate`)",
    b"The SSL certificate error": "the client certificate is not accepted",
    b"The plain HTTP request was sent to HTTPS port": "TLS is spoken on this port (set `ssl` to true)",
}
"""What common servers say on a page of their own where the protocol has no word for it: all of it from nginx, status 400."""


def what_came(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """Put an unexplained answer into words. The body is not quoted: a page may repeat the request, token and all."""
    text = f"status {status} without a protocol body"
    content_type = headers.get("content-type")
    if body:
        text += f" ({len(body)} bytes" + (f" of {clean_text(content_type, 64)})" if content_type else ")")
    known = next((said for words, said in _KNOWN_PAGES.items() if words in body[:_PAGE_HEAD_BYTES]), None)
    if known:
        text += f", which says that {known}"
    location = headers.get("location")
    if location:
        # Without its query, which may repeat the request's.
        text += f", redirecting to {clean_text(location.partition('?')[0], 200)}"
    return clean_text(text)


def _may_be_time(value: str) -> bool:
    return 0 < len(value) <= _MAX_RETRY_AFTER_CHARS and value.isascii() and value.isprintable()


def _http_date(value: str, now: datetime) -> datetime | None:
    if len(value) > _MAX_RETRY_AFTER_CHARS:
        return None
    match = next(filter(None, (form(value) for form in _HTTP_DATES)), None)
    if match is None:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:  # noqa: PLR2004 - the form of RFC 850
        # RFC 9110: what seems more than 50 years ahead was meant to be in the past.
        year += now.year - now.year % 100
        if year > now.year + 50:
            year -= 100
    month = _MONTHS.split("|").index(match["month"]) + 1
    second = (
        min(int(match["second"]), 59) if match["second"] == "60" else int(match["second"])
    )  # a leap second
    try:
        return datetime(
            year, month, int(match["day"]), int(match["hour"]), int(match["minute"]), second, tzinfo=UTC
        )
    except ValueError:
        return None
