"""One POST and its answer, as plain values; and how an answer is read from what came over the wire.

libcurl parses HTTP leniently; a verdict that removes a message must not rest on leniency. So the answer's head
is read here once more, from the header lines as they came, and is malformed unless

- the final status line is ``HTTP/1.0`` or ``HTTP/1.1`` with three digits, and libcurl read the same status;
- the empty line that ends the head has come (libcurl takes a connection that closes in the middle of the
  head for a complete answer without a body).

Answers before the final one (1xx, a proxy's answer to CONNECT) are passed over; trailer fields are ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infi.ramen_protocol.verdict import MAX_ANSWER_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_ANSWER_HEADERS = 100
"""Header lines of one answer, its status line not counted; an answer of this project's server has about ten."""

MAX_ANSWER_HEADER_BYTES = 64 * 1024
"""All header lines of one transfer together, those of 1xx answers and of a proxy included."""

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([0-9]{3})(?:[ \r\n]|\Z)")
_EMPTY_LINES = frozenset((b"\r\n", b"\n"))
_SECRET_HEADERS = frozenset({"x-api-token", "authorization", "proxy-authorization", "cookie"})


@dataclass(frozen=True, slots=True, repr=False)
class Request:
    """One POST.

    ``url`` is ASCII, ``http`` or ``https``, without credentials. ``headers`` are sent as given, after
    libcurl's own ``Host``, ``User-Agent``, ``Accept: */*`` and ``Content-Length``; values are latin-1 without control
    characters. ``timeout_seconds`` bounds the whole exchange, from ``start`` to the answer's last byte.
    ``max_answer_bytes``: a longer body is not read, and the outcome a ``Failure``.
    ``traced``: the outcome carries a ``Trace``, for people (it costs more than the rest of the bookkeeping together).
    """

    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    timeout_seconds: float
    max_answer_bytes: int = MAX_ANSWER_BYTES
    traced: bool = False

    def __repr__(self) -> str:
        shown = tuple(
            (name, "…" if name.lower() in _SECRET_HEADERS else value) for name, value in self.headers
        )
        return (
            f"Request(url={self.url!r}, headers={shown!r}, body=<{len(self.body)} bytes>, "
            f"timeout_seconds={self.timeout_seconds!r})"
        )


@dataclass(frozen=True, slots=True)
class Certificate:
    """The certificate that a server showed, in OpenSSL's words, each a bounded, printable line; not verified by being here.

    ``names``: the host names and addresses that it is for; ``expires``: such as ``Jan  1 00:00:00 2027 GMT``.
    """

    names: str
    issuer: str
    expires: str


@dataclass(frozen=True, slots=True)
class Trace:
    """How far an exchange came and how long each part of the way took, as libcurl tells it.

    Seconds since ``start``; None: did not get there, or there was no such part. Through a proxy, the name (unless the proxy
    looks it up) and the connection are the proxy's; ``secured`` is about TLS with the server.
    """

    resolved_after: float | None
    connected_after: float | None
    secured_after: float | None
    total: float
    address: str
    """The numeric address that was tried last, of the server or of the proxy; empty: none."""
    through_proxy: bool
    certificate: Certificate | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete, well-formed HTTP answer, whatever its status.

    ``headers`` has lower-case names; lines of one name are joined by ``", "`` (RFC 9110 section 5.3). ``body`` is
    at most as long as the request allows. ``trace``: with a traced request alone.
    """

    status: int
    headers: dict[str, str]
    body: bytes = field(repr=False)
    trace: Trace | None = None


def head_is_oversized(lines: Sequence[bytes]) -> bool:
    """Whether the header lines of a transfer are more than a client is willing to read."""
    if sum(map(len, lines)) > MAX_ANSWER_HEADER_BYTES:
        return True
    # Two lines of an answer are no headers: the status line and the empty one.
    return len(lines) > MAX_ANSWER_HEADERS + 2 and len(_final_head(lines)) > MAX_ANSWER_HEADERS


def read_head(lines: Sequence[bytes], status: int) -> dict[str, str] | None:
    """The headers of the answer that these header lines make; None where they make none.

    ``lines`` are all header lines of a transfer in their order, each with its line end, as libcurl hands
    them out; ``status`` is what libcurl took for the final status. Names are lower-case; lines of one name are joined.
    """
    head = _final_head(lines)
    if not head or head[-1] not in _EMPTY_LINES:
        return None
    status_line = _STATUS_LINE.match(head[0])
    if status_line is None or int(status_line[1]) != status:
        return None
    headers: dict[str, str] = {}
    for line in head[1:-1]:
        raw_name, colon, raw_value = line.partition(b":")
        if not colon:
            return None
        name = raw_name.decode("latin-1").strip().lower()
        value = raw_value.decode("latin-1").strip()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _final_head(lines: Sequence[bytes]) -> Sequence[bytes]:
    """The last answer's lines, from its status line to its empty line (or to where it broke off)."""
    start = 0
    for index, line in enumerate(lines):
        if line in _EMPTY_LINES:
            following = lines[index + 1 : index + 2]
            if not following or not following[0].startswith(b"HTTP/"):
                return lines[start : index + 1]
            start = index + 1
    return lines[start:]
