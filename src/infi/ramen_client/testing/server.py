"""A Ramen server in the test's own process: it speaks version 1, remembers everything, and misbehaves on request.

What happens to a request, in this order:

    not HTTP, over a bound, not POST    answered with 400, 405, 411, 413 or 431, kept in ``refused``
    no message's path, wrong token      answered by the protocol (404, 400, 401), kept in ``refused``
    the next reply of the script is taken; a ``Reset(before_body=True)`` acts now
    a body that cannot be read          answered by the protocol (400, 413, 415), kept in ``refused``
    without a script: ``default``, or what it returns when it is a function
    the request is in ``received``, and in ``accepted`` or ``duplicates`` if the reply stores it
    the reply is sent

So a request that is no message takes no reply from the script (one with a bad body does), and whatever a client was
told, or should have been told, is in the lists before the first byte of the answer.

Names, paths, codings and codes are those of ``infi.ramen_protocol``; nothing of the protocol is written here again.

Locks: ``_books`` (a condition) guards the script, the lists, the counts, the keys and the fault; it is never held while
a socket is used or a reply function runs. ``token`` and ``default`` are single attributes that may be assigned
at any time, from any thread; a request reads each once.
"""

from __future__ import annotations

import hmac
import json
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Self

from infi.ramen_client.testing._connection import BadHttp
from infi.ramen_client.testing._delivery import deliver
from infi.ramen_client.testing._listener import HOST, Listener
from infi.ramen_client.testing.replies import Accept, Refuse, Reply, Reset, Status, stores
from infi.ramen_protocol import (
    BodyTooLarge,
    Code,
    Envelope,
    RefusedRequest,
    UnsupportedCoding,
    decode_body,
    parse_target,
)

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    from infi.ramen_client.testing._connection import Connection, Head

DEFAULT_TOKEN = "token-of-the-test-server"  # noqa: S105 - it guards nothing

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest payload after decoding; a larger one is answered with 413. It is the client's default bound."""

_logger = logging.getLogger("ramen_client.testing")


@dataclass(frozen=True, slots=True)
class Received:
    """One message as it arrived.

    ``path`` and ``target`` (with the query) are as sent; ``headers`` have lower-case names; ``body`` is what was on the
    wire, ``payload`` the same after its content coding was taken off (both empty when the reply was a reset before the
    body). ``connection`` counts the server's connections from 1. ``reply`` is None only while a reply function looks.
    """

    envelope: Envelope
    target: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    payload: bytes = field(repr=False)
    connection: int
    reply: Reply | None

    @property
    def path(self) -> str:
        """The target without its query: with the reqid, what the server knows the message by."""
        return self.target.partition("?")[0]

    @property
    def reqid(self) -> str:
        """The envelope's reqid."""
        return self.envelope.reqid

    def json(self) -> Any:
        """Decode the payload. Raises ``ValueError`` when there is none (a reset before the body)."""
        return json.loads(self.payload)


@dataclass(frozen=True, slots=True)
class Refused:
    """One request that was no message: what could be read of it (maybe nothing), and what it was answered."""

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    connection: int
    reply: Refuse | Status


ReplyFunction = Callable[[Received], Reply]
"""Chooses the reply to a message. It runs in the connection's thread, several at a time, and must return: ``stop``
waits for it. What it raises is answered with 500 and raised again by ``wait_for`` and at the end of ``with``."""


class RamenServer:
    """A server on 127.0.0.1 for the length of a ``with`` block.

    ::

        with RamenServer() as server:
            config = QueueReaderConfig(hostname=server.hostname, auth_token=server.token, ssl=False, ...)
            server.answer_with(Status(503), Reset(), StoreThenReset())
            ...                                     # push a message, run a reader
            server.wait_for(1)                      # accepted, whatever it took
            assert server.accepted[0].json() == {"a": 1}
            server.wait_for_received(4)             # after StoreThenReset the client had to send it again
            assert len(server.duplicates) == 1

            server.stop()                           # an outage: connections are refused
            server.start()                          # ... and over, on the same port

    ``token``: what ``X-API-Token`` must hold. ``port``: 0 means a free one. ``ssl_context``: one made for servers, to
    speak TLS. ``keep``: how many requests each list keeps, the newest; None: all (``wait_for`` and the recognition of
    duplicates do not forget). Nothing listens before ``start`` or ``with``.
    """

    def __init__(
        self,
        *,
        token: str = DEFAULT_TOKEN,
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        keep: int | None = None,
    ) -> None:
        self.token = token
        self.default: Reply | ReplyFunction = Accept()
        self._listener = Listener(self._serve, port=port, ssl_context=ssl_context)
        self._books = threading.Condition()
        self._script: deque[Reply] = deque()
        self._received: deque[Received] = deque(maxlen=keep)
        self._accepted: deque[Received] = deque(maxlen=keep)
        self._duplicates: deque[Received] = deque(maxlen=keep)
        self._refused: deque[Refused] = deque(maxlen=keep)
        self._received_count = 0
        self._keys: set[bytes] = set()
        self._fault: Exception | None = None

    def __repr__(self) -> str:
        with self._books:
            return f"<RamenServer {HOST}: {self._summary()}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None and self._fault is not None:
            raise AssertionError("a reply function failed") from self._fault

    @property
    def port(self) -> int:
        """The port; it is known from the first ``start`` on and never changes."""
        return self._listener.port

    @property
    def hostname(self) -> str:
        """What a client's ``hostname`` must be: ``127.0.0.1:PORT``."""
        return f"{HOST}:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before; nothing happens when it does so already."""
        self._listener.start()

    def stop(self) -> None:
        """Begin an outage: cut every connection, also those that hang, and refuse new ones.

        What was received, the script and the port stay. When it returns, nothing more is recorded (unless a reply
        function called it, which cannot wait for itself). Raises ``RuntimeError`` when a reply function
        does not return within 10 s.
        """
        self._listener.stop()

    def close(self) -> None:
        """Stop for good: give the port back, too. The end of a ``with`` block does this."""
        self._listener.close()

    def answer_with(self, *replies: Reply) -> None:
        """Append to the script: each message takes one reply, in the order in which the heads arrive."""
        checked = [_checked(reply) for reply in replies]
        with self._books:
            self._script.extend(checked)

    @property
    def received(self) -> list[Received]:
        """All messages that came, in the order in which their replies were chosen."""
        with self._books:
            return list(self._received)

    @property
    def accepted(self) -> list[Received]:
        """The messages that were stored, each once: at its first time."""
        with self._books:
            return list(self._accepted)

    @property
    def duplicates(self) -> list[Received]:
        """The messages that would have been stored, had not one with their (path, reqid) been before."""
        with self._books:
            return list(self._duplicates)

    @property
    def refused(self) -> list[Refused]:
        """The requests that were no messages: bad path, wrong token, unreadable body, no HTTP at all."""
        with self._books:
            return list(self._refused)

    def wait_for(self, count: int, timeout_seconds: float = 10.0) -> None:
        """Wait until ``count`` different messages were accepted since the server was made.

        Raises ``AssertionError`` with a summary of what came instead when the time is over, or when a reply function
        failed.
        """
        self._wait(lambda: len(self._keys), count, "accepted", timeout_seconds)

    def wait_for_received(self, count: int, timeout_seconds: float = 10.0) -> None:
        """Wait until ``count`` messages came, whatever their replies: such as the one that now hangs."""
        self._wait(lambda: self._received_count, count, "received", timeout_seconds)

    def _wait(self, reached: Callable[[], int], count: int, what: str, timeout_seconds: float) -> None:
        with self._books:
            done = self._books.wait_for(
                lambda: self._fault is not None or reached() >= count, timeout_seconds
            )
            if self._fault is not None:
                raise AssertionError("a reply function failed") from self._fault
            if not done:
                raise AssertionError(
                    f"{count} messages were to be {what} within {timeout_seconds:g} s: {self._summary()}"
                )

    def _summary(self) -> str:
        """Say in one line what came so far; the caller holds ``_books``."""
        replies = Counter(type(message.reply).__name__ for message in self._received)
        parts = [f"{len(self._keys)} accepted of {self._received_count} received"]
        if replies:
            parts.append("replies: " + ", ".join(f"{count} {name}" for name, count in replies.items()))
        if self._duplicates:
            parts.append(f"{len(self._duplicates)} duplicates")
        if self._refused:
            parts.append(f"{len(self._refused)} refused, the last with {self._refused[-1].reply}")
        if self._script:
            parts.append(f"{len(self._script)} replies still in the script")
        return "; ".join(parts)

    # One connection, in its own thread. Everything below may end with OSError: the client left, or stop() cut it.

    def _serve(self, connection: Connection) -> None:
        keep_alive = True
        while keep_alive:
            try:
                head = connection.read_head()
            except BadHttp as bad:
                answer = Status(bad.status, f"{bad.text}\n".encode())
                self._note(Refused("", "", {}, connection.number, answer))
                deliver(answer, connection, keep_alive=False)
                return
            if head is None:
                return
            keep_alive = self._exchange(connection, head)

    def _exchange(self, connection: Connection, head: Head) -> bool:
        """Handle one request; returns whether the connection may be used again."""
        envelope = self._admit(head)
        if not isinstance(envelope, Envelope):
            connection.read_body(head)
            return self._refuse(connection, head, envelope)
        scripted = self._take()
        message = Received(envelope, head.target, head.headers, b"", b"", connection.number, scripted)
        if isinstance(scripted, Reset) and scripted.before_body:
            self._note(message)
            return deliver(scripted, connection, keep_alive=False)
        body = connection.read_body(head)
        payload = _decode(head, body)
        if not isinstance(payload, bytes):
            return self._refuse(connection, head, payload)
        message = replace(message, body=body, payload=payload)
        reply = self._choose(message) if scripted is None else scripted
        self._note(replace(message, reply=reply))
        return deliver(reply, connection, keep_alive=head.keep_alive)

    def _admit(self, head: Head) -> Envelope | Refuse | Status:
        if head.method != "POST":
            return Status(405, b"messages come by POST\n", (("Allow", "POST"), ("Connection", "close")))
        token = head.headers.get("x-api-token", "").encode("latin-1")
        if not hmac.compare_digest(token, self.token.encode()):
            return Refuse(Code.UNAUTHORIZED, "X-API-Token is not this server's")
        try:
            return parse_target(head.target)
        except RefusedRequest as refusal:
            return Refuse(refusal.code, refusal.details)

    def _refuse(self, connection: Connection, head: Head, reply: Refuse | Status) -> bool:
        self._note(Refused(head.method, head.target, head.headers, connection.number, reply))
        return deliver(reply, connection, keep_alive=head.keep_alive)

    def _take(self) -> Reply | None:
        with self._books:
            return self._script.popleft() if self._script else None

    def _choose(self, message: Received) -> Reply:
        default = self.default
        if isinstance(default, Reply):
            return default
        try:
            return _checked(default(message))
        except Exception as error:
            _logger.exception("The reply function failed; the client is answered with 500.")
            with self._books:
                self._fault = self._fault or error
            return Refuse(Code.INTERNAL_ERROR, "the test's reply function failed")

    def _note(self, request: Received | Refused) -> None:
        with self._books:
            if isinstance(request, Refused):
                self._refused.append(request)
            else:
                self._received.append(request)
                self._received_count += 1
                if request.reply is not None and stores(request.reply):
                    key = key_of(request.path, request.reqid)
                    (self._duplicates if key in self._keys else self._accepted).append(request)
                    self._keys.add(key)
            self._books.notify_all()


def key_of(path: str, reqid: str) -> bytes:
    """Give 16 bytes that stand for a message: what the recognition of duplicates remembers."""
    return blake2b(f"{path}\0{reqid}".encode(), digest_size=16).digest()


def _checked(reply: object) -> Reply:
    if not isinstance(reply, Reply):
        raise TypeError(f"{reply!r} is no reply (and a function that gives one goes into default)")
    return reply


def _decode(head: Head, body: bytes) -> bytes | Refuse:
    """Take the content coding off and make sure that one JSON text is below."""
    try:
        payload = decode_body(body, head.headers.get("content-encoding"), max_bytes=MAX_MESSAGE_BYTES)
        _check_json(payload)
    except UnsupportedCoding as error:
        return Refuse(Code.UNSUPPORTED_MEDIA_TYPE, str(error), (("Accept-Encoding", "gzip, deflate"),))
    except BodyTooLarge as error:
        return Refuse(Code.PAYLOAD_TOO_LARGE, str(error))
    except ValueError as error:  # CodingError, too
        return Refuse(Code.BAD_REQUEST, f"the body cannot be read: {error}")
    return payload


def _check_json(payload: bytes) -> None:
    """Raise ``ValueError`` when the payload is not one JSON text in UTF-8 (RFC 8259; no NaN, no infinities)."""
    # Numbers are left as text: only their form counts here, and Python refuses to convert very long ones.
    with suppress(RecursionError):  # deeper than Python's parser goes, which is nothing against the message
        json.loads(payload.decode(), parse_int=str, parse_float=str, parse_constant=_no_constant)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
