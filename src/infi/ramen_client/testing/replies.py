"""What the test server can do with one request: frozen values, put in a script or given by a function.

Three groups:

    an answer of the protocol     Accept, Drop, Refuse
    an answer of somebody else    Status, Redirect, Raw         (a proxy, a captive portal, a broken server)
    a fault of the way            Hang, Reset, StoreThen, StoreThenReset, Truncated, SlowDrip, Endless

and, for batches only, ``Results``: an answer of the protocol, or one that is almost one.

Each says whether the message counts as *stored*. The server stores before the first byte of its answer, as a
real one must: a stored message is in ``server.accepted`` (or in ``server.duplicates``), whether or not the client
ever hears of it. Only Accept, StoreThen, StoreThenReset and SlowDrip store. For a batch, "the acceptance" below is its
200 with results, and what is stored are the records whose own reply is Accept.

Values that could not be sent (a header with a line break, a status of two digits) are a ``ValueError`` where the
reply is written, not later in a thread of the server.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infi.ramen_protocol import Code, Rule

if TYPE_CHECKING:
    from collections.abc import Mapping

Headers = tuple[tuple[str, str], ...]
"""Extra headers of an answer, as (name, value) pairs; a name may come twice."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_BODILESS = frozenset({204, 304})
_FINAL = range(200, 1000)
_REDIRECTS = range(300, 400)


@dataclass(frozen=True, slots=True)
class Accept:
    """202 ACCEPTED: the message is stored.

    ``headers``: what a server tells about itself, such as ``("Accept-Encoding", "gzip")`` or ``Ramen-Batch``.
    """

    details: str | None = None
    headers: Headers = ()

    def __post_init__(self) -> None:
        _check_headers(self.headers)


@dataclass(frozen=True, slots=True)
class Drop:
    """202 DROPPED with a blacklist rule; nothing is stored.

    ``rule``: a ``Rule``, or any mapping that JSON can express, so that a test can send a rule that no client
    should apply (``{}``, an unknown field). None leaves the field out.
    """

    rule: Rule | Mapping[str, object] | None
    details: str | None = None
    headers: Headers = ()

    def __post_init__(self) -> None:
        json.dumps(self.rule_as_json())  # a TypeError here, not in a thread of the server
        _check_headers(self.headers)

    def rule_as_json(self) -> dict[str, object]:
        """Give what the answer's ``rule`` holds; ``{}`` for None, which is not sent."""
        return dict(self.rule.as_json() if isinstance(self.rule, Rule) else self.rule or {})


@dataclass(frozen=True, slots=True)
class Refuse:
    """An error of the protocol, with its body: ``Refuse("BAD_REQUEST", "no such field")``; nothing is stored.

    The status follows from the code. ``headers`` may hold ``("Retry-After", "3")``. A code that the protocol
    does not know, or one that is no refusal, is a ``ValueError``; ``Status`` sends any nonsense.
    """

    code: Code | str
    details: str | None = None
    headers: Headers = ()

    def __post_init__(self) -> None:
        if Code(self.code) in {Code.ACCEPTED, Code.DROPPED}:
            raise ValueError(f"{self.code} is no refusal: use Accept or Drop")
        _check_headers(self.headers)


@dataclass(frozen=True, slots=True)
class Status:
    """Any complete answer, byte for byte: status (200 to 999), body and headers; nothing is stored.

    ``Content-Length`` is added. What is not complete or not even HTTP (interim answers, too) is for ``Raw``.
    """

    code: int
    body: bytes = b""
    headers: Headers = ()

    def __post_init__(self) -> None:
        if self.code not in _FINAL:
            raise ValueError(f"{self.code} is no status of a final answer (200 to 999): send it with Raw")
        if self.code in _BODILESS and self.body:
            raise ValueError(f"an answer with status {self.code} has no body: send it with Raw")
        _check_headers(self.headers)


@dataclass(frozen=True, slots=True)
class Redirect:
    """A redirect to ``location`` with an empty body; nothing is stored. ``status`` is 302 unless given."""

    location: str
    status: int = 302

    def __post_init__(self) -> None:
        if self.status not in _REDIRECTS:
            raise ValueError(f"{self.status} is no redirect (300 to 399)")
        _check_headers((("Location", self.location),))


@dataclass(frozen=True, slots=True)
class Raw:
    """These bytes and nothing else, then an orderly close; nothing is stored. ``Raw(b"")`` closes at once."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Hang:
    """No answer: the connection stays open until the client leaves or the server stops; nothing is stored."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset (TCP RST) instead of an answer; nothing is stored.

    ``before_body``: the reset comes as soon as the head has been read, in the middle of the client's sending
    when the body is large. That needs a place in the script: where a function gives the reply, the body has
    been read already.
    """

    before_body: bool = False


@dataclass(frozen=True, slots=True)
class StoreThenReset:
    """The message is stored, then the connection is reset: the client cannot know, and must send it again."""


@dataclass(frozen=True, slots=True)
class StoreThen:
    """The message is stored, and ``reply`` is what the client gets: a proxy's 504, a cut, nothing at all."""

    reply: Refuse | Status | Redirect | Raw | Hang | Reset | Truncated | Endless


@dataclass(frozen=True, slots=True)
class Truncated:
    """The first half of an acceptance: ``Content-Length`` announces the whole, then an orderly close.

    Nothing is stored, so that a client that believes half an answer loses a message, which shows.
    """


@dataclass(frozen=True, slots=True)
class SlowDrip:
    """A complete acceptance, one byte every ``interval_seconds`` from the status line on; the message is stored.

    It is about 120 bytes long: at the default interval it takes some six seconds. Then the connection is closed.
    """

    interval_seconds: float = 0.05

    def __post_init__(self) -> None:
        if not self.interval_seconds > 0:
            raise ValueError("interval_seconds must be more than 0")


@dataclass(frozen=True, slots=True)
class Endless:
    """An acceptance whose body goes on with spaces for ever, as fast as the client reads; nothing is stored.

    Up to any limit it is valid JSON: a client that cuts the body and believes it loses a message, which shows.
    """


@dataclass(frozen=True, slots=True)
class Results:
    """For a batch: 200 with a result for each record, and what each says is done.

    ``replies``: by place in the batch, from 0; each other record gets the reply that ``server.default`` has for it.
    Two ways to be void (what the results said is stored all the same, which the client cannot know): ``surplus`` sends so
    many results too many, or too few where it is below 0; ``last_code`` stands in the last result instead of its code.
    """

    replies: Mapping[int, Accept | Drop | Refuse] = field(default_factory=dict)
    surplus: int = 0
    last_code: str | None = None


Reply = (
    Accept
    | Drop
    | Refuse
    | Status
    | Redirect
    | Raw
    | Hang
    | Reset
    | StoreThen
    | StoreThenReset
    | Truncated
    | SlowDrip
    | Endless
)
"""What a script is made of."""

BatchReply = Reply | Results
"""What a script for batches is made of."""

RecordReply = Accept | Drop | Refuse
"""What one record of a batch can get."""


def stores(reply: BatchReply) -> bool:
    """Tell whether the message, or what a batch's records get, counts as stored when this is the reply."""
    return isinstance(reply, Accept | StoreThen | StoreThenReset | SlowDrip | Results)


def _check_headers(headers: Headers) -> None:
    for name, value in headers:
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no header name")
        if not _HEADER_VALUE.fullmatch(value):
            raise ValueError(
                f"the value of {name} cannot be sent (control or non-Latin characters): {value!r}"
            )
