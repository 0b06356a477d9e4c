"""Every decision about a request, as values. docs/design/collector.md, "Admission", has the order and the reasons.

``admit_sender`` judges who sends, ``admit_message`` what else comes before the body, ``read_payload`` the body, ``judge`` the
message; the first ``Decision`` is the answer. ``batches`` does the same for a batch. ``answer`` is the one place where a
decision becomes a status, headers and a body. Nothing here knows of sockets, stores or the loop; the JSON check uses a
SQLite database in memory, one for each thread.
"""

from __future__ import annotations

import codecs
import math
import re
import threading
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

import apsw

from infi.ramen_protocol import (
    BodyTooLarge,
    Code,
    CodingError,
    Envelope,
    RecordResult,
    RefusedRequest,
    Rule,
    UnsupportedCoding,
    answer_body,
    decode_body,
    parse_target,
    readable_codings,
    status_of,
)

from .auth import Purpose, Token

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .limits import Limits
    from .rate import RateLimiter
    from .rules import StoredRule
    from .settings import Current

ACCEPT_ENCODING = (b"accept-encoding", ", ".join(readable_codings()).encode())
"""Announces the content codings (RFC 7694); identity goes without saying."""

_LARGE_CHECK_BYTES = 1024 * 1024
_large_check = threading.Lock()  # one at a time: SQLite takes up to four times the payload for it
_UTF8_PIECE_BYTES = 256 * 1024
_utf8_decoder = codecs.getincrementaldecoder("utf-8")

_CONTENT_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch

Header = tuple[bytes, bytes]
Headers = list[Header]


class Kind(Enum):
    """What a decision is; ``value`` is its label in the metrics."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    DROPPED = "dropped"
    BAD_REQUEST = "bad_request"
    NOT_FOUND = "not_found"
    WRONG_METHOD = "wrong_method"
    TOO_LARGE = "too_large"
    UNSUPPORTED_CODING = "unsupported_coding"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    RATE_LIMITED = "rate_limited"
    BATCH = "batch"
    """A batch was decided upon, record by record."""
    REPEATED_BATCH = "repeated_batch"
    """A batch is the last of its lane again, and is answered as it was then."""
    LANE_CONFLICT = "lane_conflict"
    SLOW = "slow"
    BUSY = "busy"
    """A bound of the collector's own; worth another try soon."""
    UNAVAILABLE = "unavailable"
    """The store cannot take it now, or the collector is stopping."""
    FAULT = "fault"
    """A fault of the collector's code."""


_CODES = {
    Kind.ACCEPTED: Code.ACCEPTED,
    Kind.DUPLICATE: Code.ACCEPTED,
    Kind.DROPPED: Code.DROPPED,
    Kind.BAD_REQUEST: Code.BAD_REQUEST,
    Kind.NOT_FOUND: Code.NOT_FOUND,
    Kind.TOO_LARGE: Code.PAYLOAD_TOO_LARGE,
    Kind.UNSUPPORTED_CODING: Code.UNSUPPORTED_MEDIA_TYPE,
    Kind.UNAUTHORIZED: Code.UNAUTHORIZED,
    Kind.FORBIDDEN: Code.FORBIDDEN,
    Kind.RATE_LIMITED: Code.TOO_MANY_REQUESTS,
    Kind.LANE_CONFLICT: Code.LANE_CONFLICT,
    Kind.BUSY: Code.UNAVAILABLE,
    Kind.UNAVAILABLE: Code.UNAVAILABLE,
    Kind.FAULT: Code.INTERNAL_ERROR,
}
_WITH_RESULTS = frozenset((Kind.BATCH, Kind.REPEATED_BATCH))
_OK = 200
_REFUSALS = {
    Code.BAD_REQUEST: Kind.BAD_REQUEST,
    Code.NOT_FOUND: Kind.NOT_FOUND,
}


@dataclass(frozen=True, slots=True)
class Decision:
    """What is answered; ``results`` is the body for a BATCH or REPEATED_BATCH."""

    kind: Kind
    details: str | None = None
    rule: Rule | None = None
    retry_after_seconds: float | None = None
    results: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision as HTTP."""

    status: int
    headers: Headers
    body: bytes


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request whose head is in order. ``declared_bytes`` is None where no length was declared."""

    envelope: Envelope
    token: Token
    coding: str | None
    declared_bytes: int | None


@dataclass(frozen=True, slots=True)
class LargerThanTried:
    """The payload is larger than the bytes that were tried, but maybe not larger than the limit."""


ACCEPTED = Decision(Kind.ACCEPTED)
DUPLICATE = Decision(Kind.DUPLICATE, "a duplicate: this message was accepted before")
BUSY = Decision(Kind.BUSY, "the collector is busy", retry_after_seconds=1)
STOPPING = Decision(Kind.UNAVAILABLE, "the collector is stopping", retry_after_seconds=1)
SLOW = Decision(Kind.SLOW, "the body did not come in time")
OUT_OF_SCOPE = Decision(Kind.FORBIDDEN, "this token may not send for this sender and serial")
NO_JSON = Decision(
    Kind.BAD_REQUEST,
    "the body is not one JSON text in UTF-8 (NaN and infinities are none), or nests too deep",
)


def find_token(headers: Headers, current: Current, purpose: Purpose) -> Token | Decision:
    """Find the token that a request presents, and see that it is for this."""
    presented = [value for name, value in headers if name == b"x-api-token"]
    if purpose is Purpose.READ:  # what Prometheus can send
        presented += [
            value[7:]
            for name, value in headers
            if name == b"authorization" and value[:7].lower() == b"bearer "
        ]
    if len(presented) != 1:
        return Decision(Kind.UNAUTHORIZED, "the request must have one X-API-Token header")
    token = current.tokens.find(presented[0].strip())
    if token is None:
        return Decision(Kind.UNAUTHORIZED, "X-API-Token is not known here, or was revoked")
    if token.purpose is not purpose:
        return Decision(Kind.FORBIDDEN, f"this token is not for this: it is made to {token.purpose.value}")
    return token


def admit_sender(method: str, headers: Headers, current: Current) -> Token | Decision:
    """Judge who sends: without a good token, nobody learns more."""
    token = find_token(headers, current, Purpose.SEND)
    if isinstance(token, Token) and method != "POST":
        return Decision(Kind.WRONG_METHOD, "messages come by POST")
    return token


def admit_message(token: Token, target: str, headers: Headers, limits: Limits) -> Admitted | Decision:
    """Judge what else comes before the body of a message."""
    try:
        envelope = parse_target(target)
    except RefusedRequest as refusal:
        return Decision(_REFUSALS[refusal.code], refusal.details)
    if not token.scope.covers(envelope):
        return OUT_OF_SCOPE
    declared = declared_bytes(headers, limits.max_body_bytes)
    if isinstance(declared, Decision):
        return declared
    return Admitted(envelope, token, content_coding(headers), declared)


def content_coding(headers: Headers) -> str | None:
    """Give the ``Content-Encoding``."""
    codings = [value for name, value in headers if name == b"content-encoding"]
    return b",".join(codings).decode("latin-1") if codings else None


def declared_bytes(headers: Headers, max_bytes: int) -> int | Decision | None:
    """Give the ``Content-Length``, None where there is none; one that is too large is refused."""
    declared = _declared_bytes(headers)
    return too_large(max_bytes) if isinstance(declared, int) and declared > max_bytes else declared


def _declared_bytes(headers: Headers) -> int | Decision | None:
    lengths = {value.strip() for name, value in headers if name == b"content-length"}
    if not lengths:
        return None
    length = lengths.pop()
    if lengths or not _CONTENT_LENGTH(length):
        return Decision(Kind.BAD_REQUEST, "Content-Length is no length")
    return int(length)


def too_large(max_bytes: int) -> Decision:
    """The answer to a body of more than so many bytes."""
    return Decision(Kind.TOO_LARGE, f"the body is larger than {max_bytes} bytes")


def read_payload(
    coding: str | None, max_bytes: int, body: bytes, try_bytes: int
) -> bytes | Decision | LargerThanTried:
    """Take the content coding off and see that one JSON text is below; holds at most ``try_bytes`` of it."""
    payload = decode(body, coding, try_bytes=try_bytes, max_bytes=max_bytes)
    return NO_JSON if isinstance(payload, bytes) and not is_json(payload) else payload


def decode(
    body: bytes, coding: str | None, *, try_bytes: int, max_bytes: int
) -> bytes | Decision | LargerThanTried:
    """Take the content coding off; holds at most ``try_bytes`` of what is below."""
    try:
        return decode_body(body, coding, max_bytes=try_bytes)
    except UnsupportedCoding as error:
        return Decision(Kind.UNSUPPORTED_CODING, str(error))
    except BodyTooLarge as error:
        return LargerThanTried() if try_bytes < max_bytes else Decision(Kind.TOO_LARGE, str(error))
    except CodingError as error:
        return Decision(Kind.BAD_REQUEST, str(error))


def judge(
    envelope: Envelope, token: Token, current: Current, rates: RateLimiter, now: float
) -> tuple[Decision, StoredRule | None] | None:
    """See whether the message is wanted, and wanted now; None when it is to be stored. ``now`` is monotonic seconds."""
    stored = current.rules.match(envelope)
    if stored is not None:
        return Decision(Kind.DROPPED, "the operator does not want this message", stored.rule), stored
    wait = rates.take(token.name, envelope.sender, now)
    if wait is not None:
        return Decision(Kind.RATE_LIMITED, "too many messages of this sender", retry_after_seconds=wait), None
    return None


def result(decision: Decision) -> RecordResult:
    """Write the decision on a record of a batch; it is one that the protocol has a code for."""
    code = _CODES[decision.kind]
    return RecordResult(status_of(code), code, decision.details, decision.rule, decision.retry_after_seconds)


def answer(decision: Decision, announced: Sequence[Header] = (ACCEPT_ENCODING,)) -> Answer:
    """Write a decision as HTTP; ``announced`` are the headers that say what the server takes."""
    code = _CODES.get(decision.kind)
    headers: Headers = [(b"content-type", b"application/json"), *announced]
    if code is not None:
        status, body = status_of(code), answer_body(code, decision.details, decision.rule)
    elif decision.kind in _WITH_RESULTS:
        status, body = _OK, decision.results
    else:
        # The protocol has no code for these; a client knows them by their status.
        body = f"{decision.details}\n".encode()
        headers[0] = (b"content-type", b"text/plain; charset=utf-8")
        if decision.kind is Kind.WRONG_METHOD:
            status = 405
            headers.append((b"allow", b"POST"))
        else:
            status = 408
            headers.append((b"connection", b"close"))
    if decision.retry_after_seconds is not None:
        headers.append((b"retry-after", str(max(1, math.ceil(decision.retry_after_seconds))).encode()))
    headers.append((b"content-length", str(len(body)).encode()))
    return Answer(status, headers, body)


_IS_JSON = "SELECT json_valid(CAST(? AS TEXT), 1)"
_thread = threading.local()


def is_json(payload: bytes) -> bool:
    """Whether the payload is one JSON text (RFC 8259) in UTF-8, of at most 1,000 levels."""
    if b"\0" in payload:  # SQLite would stop reading there
        return False
    if not payload.isascii() and not _is_utf8(payload):
        return False
    connection = getattr(_thread, "connection", None)
    if connection is None:
        connection = _thread.connection = apsw.Connection(":memory:")
    if len(payload) <= _LARGE_CHECK_BYTES:
        return bool(connection.execute(_IS_JSON, (payload,)).get)
    with _large_check:
        # A statement that is kept for the next time would keep its copy of the payload until then.
        return bool(connection.execute(_IS_JSON, (payload,), can_cache=False).get)


def _is_utf8(payload: bytes) -> bool:
    """In pieces: Python's text takes up to four times its UTF-8."""
    decoder = _utf8_decoder()
    view = memoryview(payload)
    try:
        for start in range(0, len(payload), _UTF8_PIECE_BYTES):
            decoder.decode(view[start : start + _UTF8_PIECE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
