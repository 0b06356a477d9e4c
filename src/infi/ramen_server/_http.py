"""uvicorn's HTTP/1.1 protocol (on httptools), with the bounds that it does not have.

    head            bytes, number of headers, time from its first byte
    idle            time without a request (uvicorn's own, ``keep_alive_seconds``)
    body            the application's matter, as long as it has not answered
    drain           time for the rest of a body whose request was answered already
    slow reader     time in which an answer must be taken
    connections     number
    pipelining      requests that wait for the answer to an earlier one; while any waits, no more is read

A request that is answered before its body came is drained, not closed: closing with unread data resets the connection and
may destroy the answer. Requests that are no HTTP, or want another protocol, get a 400 with a protocol body.

When a time is over, the connection is aborted.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .admission import BUSY, Decision, Kind, answer

if TYPE_CHECKING:
    import asyncio
    from asyncio import TimerHandle
    from collections import deque

    from .limits import Limits

WRITE_SECONDS = 30
"""How long a client may leave its answers unread once the buffers are full."""

MAX_PIPELINED = 100
"""How many requests may wait on one connection: one read (256 KiB) can hold 14,000, each of which takes kilobytes."""

# uvicorn warns of every request that is no HTTP; whoever sends such could fill the log.
_quiet = logging.getLogger("ramen_server.http")
_quiet.setLevel(logging.ERROR)


class _Refused(Exception):
    """Raised in a parser's callback; the parser ends, and the reason is answered."""


class _Flow(FlowControl):
    """Reads no more while requests wait. uvicorn goes on reading at each answer, and gathers requests without bound."""

    def __init__(self, transport: asyncio.Transport, waiting: deque[Any]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class BoundedHttp(HttpToolsProtocol):
    """One connection. Made by uvicorn; ``bounded`` gives the class its limits."""

    limits: ClassVar[Limits]

    _sending: TimerHandle | None = None  # until when the client is to send something
    _reading: TimerHandle | None = None  # until when it is to read something
    _idle = False  # between requests; a new connection is not, its head is awaited
    _in_head = False
    _in_message = False
    _begun_here = False  # whether a head began in the read that is being parsed
    _head_bytes = 0
    _open_head_bytes = 0
    _why = ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, or refuse it."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self.logger = _quiet
        self._allow(self.limits.head_seconds)
        if len(self.connections) > self.limits.max_connections:
            self._end_with(BUSY)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._allow(None)
        self._stop_reading_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; bound a head that does not end."""
        if self.transport.is_closing():
            return
        if self._idle:
            self._idle = False
            self._allow(self.limits.head_seconds)
        self._begun_here = False
        super().data_received(data)
        if self._in_head and not self._begun_here and not self.transport.is_closing():
            # What came before a head in the read in which it begins is not known, so that one is not counted.
            self._open_head_bytes += len(data)
            if self._open_head_bytes > self.limits.max_head_bytes:
                self._refuse(self._too_large_text())

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed."""
        self._refuse(self._why or msg)

    # Callbacks of the parser

    def on_message_begin(self) -> None:
        """Start counting."""
        self._in_head = self._in_message = self._begun_here = True
        self._head_bytes = self._open_head_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the target."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the header. One that comes after the body (a trailer) is none: it must not say what the head did not."""
        if len(self.headers) >= self.limits.max_headers:
            raise self._refused(f"the request has more than {self.limits.max_headers} headers")
        self._count_head(len(name) + len(value))
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request to the application."""
        if self.parser.should_upgrade():
            raise self._refused("only HTTP/1.1 is spoken here")
        super().on_headers_complete()  # raises for a target that is no URL
        self._in_head = False
        self._allow(None)
        if len(self.pipeline) > MAX_PIPELINED:
            raise self._refused("too many requests wait")  # nobody is told so: see _refuse()

    def on_message_complete(self) -> None:
        """The body is here; or all of it that was thrown away."""
        self._in_message = False
        super().on_message_complete()
        if self.cycle.response_complete:
            # uvicorn's own timer for idle connections ended with the first bytes that were thrown away.
            self._idle = True
            self._allow(self.limits.keep_alive_seconds)

    # Callbacks of the application's answers

    def on_response_complete(self) -> None:
        """Give the rest of the body its time."""
        super().on_response_complete()
        if not self._in_message:
            self._idle = True
            self._allow(None)
        elif self._in_head:  # of the next request, which came before this answer
            self._allow(self.limits.head_seconds)
        elif self.cycle.response_complete:
            self._allow(self.limits.drain_seconds)

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._stop_reading_timer()
        self._reading = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._stop_reading_timer()

    def _allow(self, seconds: float | None) -> None:
        """Give the client so long to send what it is to send next; None: no time counts here."""
        if self._sending is not None:
            self._sending.cancel()
        self._sending = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _count_head(self, count: int) -> None:
        self._head_bytes += count
        if self._head_bytes > self.limits.max_head_bytes:
            raise self._refused(self._too_large_text())

    def _refused(self, why: str) -> _Refused:
        self._why = why
        return _Refused(why)

    def _too_large_text(self) -> str:
        return f"the request's head is larger than {self.limits.max_head_bytes} bytes"

    def _refuse(self, why: str) -> None:
        """End the connection with a 400 where that is sure to be taken for an answer to the request at fault, else without.

        While an earlier request waits for its answer, the 400 would be taken for that, and a good message for a bad one. Its
        client sends it again.
        """
        cycle = self.cycle
        if self._in_message and not self._in_head:
            unambiguous = not self.pipeline and not cycle.response_started
        else:
            unambiguous = cycle is None or cycle.response_complete
        if unambiguous:
            self._end_with(Decision(Kind.BAD_REQUEST, why))
        else:
            self.transport.close()

    def _end_with(self, decision: Decision) -> None:
        made = answer(decision)
        lines = [STATUS_LINE[made.status]]
        lines += [b"%b: %b\r\n" % header for header in (*made.headers, (b"connection", b"close"))]
        self.transport.write(b"".join((*lines, b"\r\n", made.body)))
        self.transport.close()


def bounded(limits: Limits) -> type[Any]:
    """Make the protocol class with these limits."""
    return type("BoundedHttp", (BoundedHttp,), {"limits": limits})
