"""The answers of a server: codes, their statuses, their bodies (protocol section 1, "Answer")."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import orjson

from infi.ramen_protocol._text import clean_text

if TYPE_CHECKING:
    from infi.ramen_protocol.rules import Rule


class Code(Enum):
    """What an answer's body says; ``value`` is the text on the wire."""

    ACCEPTED = "ACCEPTED"
    DROPPED = "DROPPED"
    BAD_REQUEST = "BAD_REQUEST"
    NOT_FOUND = "NOT_FOUND"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    UNSUPPORTED_MEDIA_TYPE = "UNSUPPORTED_MEDIA_TYPE"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    TOO_MANY_REQUESTS = "TOO_MANY_REQUESTS"
    LANE_CONFLICT = "LANE_CONFLICT"  # version 2 only, and only for a whole batch
    INTERNAL_ERROR = "INTERNAL_ERROR"
    UNAVAILABLE = "UNAVAILABLE"


_STATUS = {
    Code.ACCEPTED: 202,
    Code.DROPPED: 202,
    Code.BAD_REQUEST: 400,
    Code.NOT_FOUND: 404,
    Code.PAYLOAD_TOO_LARGE: 413,
    Code.UNSUPPORTED_MEDIA_TYPE: 415,
    Code.UNAUTHORIZED: 401,
    Code.FORBIDDEN: 403,
    Code.TOO_MANY_REQUESTS: 429,
    Code.LANE_CONFLICT: 409,
    Code.INTERNAL_ERROR: 500,
    Code.UNAVAILABLE: 503,
}


class RefusedRequest(Exception):
    """The request is answered with a refusal: ``code`` and one bounded line of ``details`` for the sender."""

    def __init__(self, code: Code, details: str) -> None:
        super().__init__(f"{code.value}: {details}")
        self.code = code
        self.details = clean_text(details)

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return status_of(self.code)

    @property
    def body(self) -> bytes:
        """The answer's body."""
        return answer_body(self.code, self.details)


def status_of(code: Code) -> int:
    """Give the HTTP status that goes with ``code``."""
    return _STATUS[code]


def answer_body(code: Code, details: str | None = None, rule: Rule | None = None) -> bytes:
    """Build the JSON body of an answer: ``code``, ``details`` as one bounded, printable line, ``rule`` for DROPPED.

    Raises ``ValueError`` when a rule comes with any other code than DROPPED.
    """
    answer: dict[str, object] = {
        "code": code.value,
        "details": None if details is None else clean_text(details),
    }
    if rule is not None:
        if code is not Code.DROPPED:
            raise ValueError(f"only a DROPPED answer carries a rule, not {code.value}")
        answer["rule"] = rule.as_json()
    return orjson.dumps(answer)
