"""HTTP/1.1 on one accepted socket: bounded requests in, exact bytes or real faults out.

Written by hand, not on ``http.server``: a test server must be able to break the rules of HTTP on purpose, and to
stop reading in the middle of a request.

Bounds, and what happens at each:

    head of a request     MAX_HEAD_BYTES, MAX_HEADERS     431, the connection is closed
    body of a request     MAX_BODY_BYTES                  413 as soon as it is announced, closed unread
    no Content-Length     (chunked, too)                  411, closed
    first byte            not a letter                    400, closed: TLS or noise on a plain port fails at once

One thread owns a connection. Only ``cut`` may be called by another, and not after ``close`` (the listener's lock
sees to that). Every way in which the client or ``cut`` can end the connection shows as an ``OSError``.
"""

from __future__ import annotations

import re
import socket
import ssl
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_HEAD_BYTES = 64 * 1024
"""A target with the longest allowed reqid, percent-encoded, is about 7 KiB; this leaves room for headers."""

MAX_HEADERS = 100

MAX_BODY_BYTES = 65 * 1024 * 1024
"""The client's default bound of 64 MiB for a message, and some room: what cannot be compressed grows a little."""

_PIECE = 64 * 1024
_LINGER_SECONDS = 5.0
_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) ([\x21-\x7e]+) HTTP/1\.([01])")
_HEADER = re.compile(
    rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*((?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)[ \t]*"
)
_LENGTH = re.compile(r"[0-9]{1,18}")


class BadHttp(Exception):
    """The bytes are no request that this server reads; after the answer the connection must be closed."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request: ``target`` is path and query as sent, header names are in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    length: int
    keep_alive: bool


class Connection:
    """One accepted socket (plain or TLS) and what was read from it ahead of need.

    ``number`` counts the connections of one server from 1.
    """

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.number = number
        self._socket = sock
        self._buffer = bytearray()

    def handshake(self) -> None:
        """Shake hands where the socket speaks TLS."""
        if isinstance(self._socket, ssl.SSLSocket):
            self._socket.do_handshake()

    def read_head(self) -> Head | None:
        """Read up to the body; None when the client left between requests. Raises BadHttp."""
        seen = 0
        while (end := self._buffer.find(b"\r\n\r\n", max(0, seen - 3))) < 0:
            seen = len(self._buffer)
            if self._buffer and not self._buffer[:1].isalpha():
                raise BadHttp(400, "this is not HTTP")
            if seen > MAX_HEAD_BYTES:
                raise BadHttp(431, f"the head is longer than {MAX_HEAD_BYTES} bytes")
            if not self._fill():
                if seen:
                    raise ConnectionError("the client left in the middle of a head")
                return None
        if end > MAX_HEAD_BYTES:
            raise BadHttp(431, f"the head is longer than {MAX_HEAD_BYTES} bytes")
        head = parse_head(bytes(self._buffer[:end]))
        del self._buffer[: end + 4]
        return head

    def read_body(self, head: Head) -> bytes:
        """Read the body that the head announced; a client that waits for ``100 Continue`` gets it."""
        if head.headers.get("expect", "").lower() == "100-continue" and len(self._buffer) < head.length:
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(self._buffer) < head.length:
            if not self._fill():
                raise ConnectionError("the client left in the middle of a body")
        body = bytes(self._buffer[: head.length])
        del self._buffer[: head.length]
        return body

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._socket.sendall(data)

    def left_within(self, seconds: float | None) -> bool:
        """Wait until the client leaves or ``cut`` is called (True), or the time is over (False; None: no limit).

        What the client sends meanwhile is thrown away, so the connection cannot be kept afterwards.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            self._socket.settimeout(left)
            try:
                if not self._socket.recv(_PIECE):
                    return True
            except TimeoutError:
                return False
            finally:
                self._socket.settimeout(None)

    def finish(self) -> None:
        """End our side in order, then wait a moment for the client to end its own.

        Closing with unread bytes in the socket would send a reset, which can overtake the answer.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            # Without waiting, unwrap says good-bye (close_notify) and then fails, since the client's is not there.
            self._socket.settimeout(0)
            with suppress(OSError, ValueError):
                self._socket.unwrap()
        socket.socket.shutdown(self._socket, socket.SHUT_WR)
        deadline = time.monotonic() + _LINGER_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            # The plain method: after the good-bye, what still comes is only to be thrown away, not to be decrypted.
            if not socket.socket.recv(self._socket, _PIECE):
                return

    def reset(self) -> None:
        """Make ``close`` send a TCP reset: no lingering, whatever is on its way is thrown away."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def cut(self) -> None:
        """End both directions at once, from any thread: whoever waits in this connection wakes up."""
        with suppress(OSError):
            # The plain method: SSLSocket's own would take the TLS state away from the thread that is reading.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back."""
        self._socket.close()

    def _fill(self) -> bool:
        piece = self._socket.recv(_PIECE)
        self._buffer += piece
        return bool(piece)


def parse_head(data: bytes) -> Head:
    """Parse a head without its empty line (RFC 9112 sections 2 to 6); strict, raises BadHttp.

    Headers that came twice are joined by a comma (RFC 9110 section 5.3), which makes two lengths unreadable.
    """
    lines = data.split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(lines[0])
    if match is None:
        raise BadHttp(400, "the first line is no request of HTTP/1.1")
    if len(lines) - 1 > MAX_HEADERS:
        raise BadHttp(431, f"more than {MAX_HEADERS} headers")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        field = _HEADER.fullmatch(line)
        if field is None:
            raise BadHttp(400, "a header line is malformed")
        name, value = field[1].decode("ascii").lower(), field[2].decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    method = match[1].decode("ascii")
    tokens = {token.strip().lower() for token in headers.get("connection", "").split(",")}
    return Head(
        method=method,
        target=match[2].decode("ascii"),
        headers=headers,
        length=_length(method, headers),
        keep_alive=match[3] == b"1" and "close" not in tokens,
    )


def render(status: int, headers: tuple[tuple[str, str], ...], body: bytes) -> bytes:
    """Give the bytes of a complete answer; ``Content-Length`` is added where the status allows a body."""
    if status not in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}:
        headers = (*headers, ("Content-Length", str(len(body))))
    lines = [f"HTTP/1.1 {status} {_phrase(status)}", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def _length(method: str, headers: Mapping[str, str]) -> int:
    text = headers.get("content-length")
    if "transfer-encoding" in headers or (text is None and method == "POST"):
        raise BadHttp(411, "a body needs a Content-Length")
    if text is None:
        return 0
    if not _LENGTH.fullmatch(text):
        raise BadHttp(400, "Content-Length is no number")
    if int(text) > MAX_BODY_BYTES:
        raise BadHttp(413, f"the body is longer than {MAX_BODY_BYTES} bytes")
    return int(text)


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unheard Of"
