"""A Ramen server in the test's own process: it speaks both versions, remembers everything, and misbehaves on request.

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

A POST to ``batch_path`` is a batch, and goes the same way, with a script of its own. What ``default`` says holds for batches,
too, so that one test can serve both versions:

    a plain Accept or Drop, or a function    each record gets it: an Accept, a Drop or a Refuse is its result
    any other plain reply                    is that of the whole batch: an outage, a refused token
    any other reply of a function            the first one is that of the whole batch

A record that is no message (a bad name, no JSON) is refused for itself. A batch that cannot be read is in ``refused``; each
other is in ``batches``, and its records are in ``received`` and the rest as if each had come alone.

Names, paths, codings and codes are those of ``infi.ramen_protocol``; nothing of the protocol is written here again.

Locks: only the books have one. Everything that may be assigned (``token``, ``default``, ``offer``, ``batch_path`` and so on) may be
at any time, from any thread; a request reads each once.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from infi.ramen_client.testing._books import Books
from infi.ramen_client.testing._connection import BadHttp
from infi.ramen_client.testing._delivery import deliver, results_body
from infi.ramen_client.testing._listener import HOST, Listener
from infi.ramen_client.testing._reading import (
    MAX_MESSAGE_BYTES,
    Batch,
    check_record,
    read_batch,
    read_payload,
)
from infi.ramen_client.testing._received import Received, ReceivedBatch, Refused
from infi.ramen_client.testing.replies import (
    Accept,
    BatchReply,
    Drop,
    Refuse,
    Reply,
    Reset,
    Results,
    Status,
    stores,
)
from infi.ramen_protocol import (
    BatchOffer,
    Code,
    Dedupe,
    Envelope,
    RefusedRequest,
    parse_target,
    readable_codings,
)

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    from infi.ramen_client.testing._connection import Connection, Head
    from infi.ramen_client.testing.replies import Headers

DEFAULT_TOKEN = "token-of-the-test-server"  # noqa: S105 - it guards nothing

MAX_BATCH_MESSAGES = 1000
"""The most records of a batch while nothing is offered."""

_logger = logging.getLogger("ramen_client.testing")


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

    With an ``offer`` it speaks version 2, too::

        with RamenServer(offer=BatchOffer("/ramen/v2/batch", 1000, 2**23, Dedupe.MESSAGE)) as server:
            server.answer_batches_with(
                StoreThenReset(),                   # the answer to the first batch is lost
                Results({2: Refuse("BAD_REQUEST")}),    # of the next one the third record is poison
                Results(surplus=-1),                # void, though all was stored
                Refuse("PAYLOAD_TOO_LARGE"),
            )
            ...
            server.batches[0].batch                 # lane, number, digest; .coding, .messages, .body, .reply ...
            server.offer = None                     # no longer announced
            server.batch_path = None                # ... and gone: 404
            server.max_batch_messages = 10          # 413 above, whatever was offered; also max_batch_bytes
            server.codings = frozenset({"gzip"})    # 415 for others, in both versions; None: all that can be read
            server.accept_encoding = "zstd"         # is announced, true or not

    Duplicates are looked for as the last offer says: with ``Dedupe.MESSAGE`` by (path, reqid), whatever version a message came
    by. With ``Dedupe.BATCH`` a message of version 1 by its key among those of version 1, a batch by its lane: the last one
    of the lane again is answered as before (``repeated``; its records are in ``duplicates``), any but the next number is a 409. A
    message that such a server stores twice is in ``accepted`` twice.

    ``token``: what ``X-API-Token`` must hold. ``port``: 0 means a free one. ``ssl_context``: one made for servers, to
    speak TLS. ``keep``: how many requests each list keeps, the newest; None: all (``wait_for`` and the recognition of
    duplicates do not forget). ``offer``: what is announced in ``Ramen-Batch``. Nothing listens before ``start`` or ``with``.
    """

    def __init__(
        self,
        *,
        token: str = DEFAULT_TOKEN,
        port: int = 0,
        ssl_context: ssl.SSLContext | None = None,
        keep: int | None = None,
        offer: BatchOffer | None = None,
    ) -> None:
        self.token = token
        self.default: Reply | ReplyFunction = Accept()
        self.batch_path = None if offer is None else offer.path
        self.max_batch_messages: int | None = None
        self.max_batch_bytes: int | None = None
        self.codings: frozenset[str] | None = None
        self.accept_encoding: str | None = None
        self._offer = offer
        self._dedupe = Dedupe.MESSAGE if offer is None else offer.dedupe
        self._listener = Listener(self._serve, port=port, ssl_context=ssl_context)
        self._books = Books(keep)

    def __repr__(self) -> str:
        return f"<RamenServer {HOST}: {self._books.summary()}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is None and self._books.fault is not None:
            raise AssertionError("a reply function failed") from self._books.fault

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
        self._books.write_script([_checked(reply) for reply in replies])

    def answer_batches_with(self, *replies: BatchReply) -> None:
        """Append to the script for batches: each takes one reply, in the order in which the heads arrive."""
        self._books.write_batch_script([_checked_for_batch(reply) for reply in replies])

    @property
    def offer(self) -> BatchOffer | None:
        """What is announced in ``Ramen-Batch`` with every answer of the protocol; None: nothing. May be assigned."""
        return self._offer

    @offer.setter
    def offer(self, offer: BatchOffer | None) -> None:
        if offer is not None:
            self._dedupe = offer.dedupe
        self._offer = offer

    @property
    def received(self) -> list[Received]:
        """All messages that came, in the order in which their replies were chosen."""
        return self._books.received()

    @property
    def accepted(self) -> list[Received]:
        """The messages that were stored, each once: at its first time."""
        return self._books.accepted()

    @property
    def duplicates(self) -> list[Received]:
        """The messages that would have been stored, had not one with their (path, reqid) been before."""
        return self._books.duplicates()

    @property
    def refused(self) -> list[Refused]:
        """The requests that were no messages: bad path, wrong token, unreadable body, no HTTP at all."""
        return self._books.refused()

    @property
    def batches(self) -> list[ReceivedBatch]:
        """All batches that could be read, in the order in which their replies were chosen."""
        return self._books.batches()

    def wait_for(self, count: int, timeout_seconds: float = 10.0) -> None:
        """Wait until ``count`` different messages were accepted since the server was made.

        Raises ``AssertionError`` with a summary of what came instead when the time is over, or when a reply function
        failed.
        """
        self._books.wait(Books.accepted_count, count, "messages were to be accepted", timeout_seconds)

    def wait_for_received(self, count: int, timeout_seconds: float = 10.0) -> None:
        """Wait until ``count`` messages came, whatever their replies: such as the one that now hangs."""
        self._books.wait(Books.received_count, count, "messages were to be received", timeout_seconds)

    def wait_for_batches(self, count: int, timeout_seconds: float = 10.0) -> None:
        """Wait until ``count`` batches came that could be read, whatever their replies."""
        self._books.wait(Books.batch_count, count, "batches were to be received", timeout_seconds)

    # One connection, in its own thread. Everything below may end with OSError: the client left, or stop() cut it.

    def _serve(self, connection: Connection) -> None:
        keep_alive = True
        while keep_alive:
            try:
                head = connection.read_head()
            except BadHttp as bad:
                answer = Status(bad.status, f"{bad.text}\n".encode())
                self._books.note_refused(Refused("", "", {}, connection.number, answer))
                deliver(answer, connection, keep_alive=False)
                return
            if head is None:
                return
            keep_alive = self._exchange(connection, head)

    def _exchange(self, connection: Connection, head: Head) -> bool:
        """Handle one request; returns whether the connection may be used again."""
        if head.target == self.batch_path:
            return self._exchange_batch(connection, head)
        envelope = self._admit(head)
        if not isinstance(envelope, Envelope):
            connection.read_body(head)
            return self._refuse(connection, head, envelope)
        scripted = self._books.next_reply()
        message = Received(envelope, head.target, head.headers, b"", b"", connection.number, scripted)
        if isinstance(scripted, Reset) and scripted.before_body:
            self._books.note(message, self._dedupe)
            return deliver(scripted, connection, keep_alive=False)
        body = connection.read_body(head)
        try:
            payload = read_payload(head, body, self.codings)
        except RefusedRequest as refused:
            return self._refuse(connection, head, self._refusal(refused))
        message = replace(message, body=body, payload=payload)
        reply = self._choose(message) if scripted is None else scripted
        self._books.note(replace(message, reply=reply), self._dedupe)
        return deliver(reply, connection, keep_alive=head.keep_alive, announced=self._announced())

    def _exchange_batch(self, connection: Connection, head: Head) -> bool:
        refusal = self._admit_sender(head)
        if refusal is not None:
            connection.read_body(head)
            return self._refuse(connection, head, refusal)
        scripted = self._books.next_batch_reply()
        if isinstance(scripted, Reset) and scripted.before_body:
            return deliver(scripted, connection, keep_alive=False)
        body = connection.read_body(head)
        try:
            found = self._read_batch(connection, head, body)
        except RefusedRequest as refused:
            return self._refuse(connection, head, self._refusal(refused))
        whole = self._whole(scripted)
        known = self._books.known_batch(found.batch, self._dedupe)
        if known is None and stores(whole):
            whole, messages = self._judge_records(found.messages, whole)
        else:
            messages = _all_get(found.messages, whole)
        batch = self._books.note_batch(
            ReceivedBatch(found.batch, head.headers, body, found.plain, messages, connection.number, whole),
            self._dedupe,
        )
        results = results_body(
            (message.reply for message in batch.messages),
            batch.reply if isinstance(batch.reply, Results) else Results(),
        )
        return deliver(
            batch.reply,
            connection,
            keep_alive=head.keep_alive,
            announced=self._announced(),
            acceptance=(200, results),
        )

    def _whole(self, scripted: BatchReply | None) -> BatchReply:
        """Choose what the batch gets as a whole."""
        default = self.default
        if scripted is None and isinstance(default, Reply) and not isinstance(default, Accept | Drop):
            return default
        return Results() if scripted is None or isinstance(scripted, Accept) else scripted

    def _judge_records(
        self, messages: tuple[Received, ...], whole: BatchReply
    ) -> tuple[BatchReply, tuple[Received, ...]]:
        """Choose what each record gets; where that is no verdict on a record, all get it."""
        scripted = whole.replies if isinstance(whole, Results) else {}
        judged: list[Received] = []
        for place, message in enumerate(messages):
            reply = scripted.get(place) or self._judge_record(message)
            if not isinstance(reply, Accept | Drop | Refuse):
                return reply, _all_get(messages, reply)
            judged.append(replace(message, reply=reply))
        return whole, tuple(judged)

    def _judge_record(self, record: Received) -> Reply:
        try:
            check_record(record)
        except RefusedRequest as refused:
            return Refuse(refused.code, refused.details)
        return self._choose(record)

    def _announced(self) -> Headers:
        offer, accept_encoding = self._offer, self.accept_encoding
        headers: Headers = ()
        if offer is not None:
            headers += (("Ramen-Batch", offer.header()),)
        if accept_encoding is not None:
            headers += (("Accept-Encoding", accept_encoding),)
        return headers

    def _read_batch(self, connection: Connection, head: Head, body: bytes) -> Batch:
        offer = self._offer
        messages, size = (
            (MAX_BATCH_MESSAGES, MAX_MESSAGE_BYTES) if offer is None else (offer.messages, offer.bytes)
        )
        return read_batch(
            head,
            body,
            connection.number,
            max_messages=messages if self.max_batch_messages is None else self.max_batch_messages,
            max_bytes=size if self.max_batch_bytes is None else self.max_batch_bytes,
            codings=self.codings,
        )

    def _refusal(self, refused: RefusedRequest) -> Refuse:
        headers: Headers = ()
        if refused.code is Code.UNSUPPORTED_MEDIA_TYPE:
            readable = readable_codings() if self.codings is None else sorted(self.codings)
            headers = (("Accept-Encoding", ", ".join(readable)),)
        return Refuse(refused.code, refused.details, headers)

    def _admit_sender(self, head: Head) -> Refuse | Status | None:
        if head.method != "POST":
            return Status(405, b"messages come by POST\n", (("Allow", "POST"), ("Connection", "close")))
        token = head.headers.get("x-api-token", "").encode("latin-1")
        if not hmac.compare_digest(token, self.token.encode()):
            return Refuse(Code.UNAUTHORIZED, "X-API-Token is not this server's")
        return None

    def _admit(self, head: Head) -> Envelope | Refuse | Status:
        refusal = self._admit_sender(head)
        if refusal is not None:
            return refusal
        try:
            return parse_target(head.target)
        except RefusedRequest as refused:
            return Refuse(refused.code, refused.details)

    def _refuse(self, connection: Connection, head: Head, reply: Refuse | Status) -> bool:
        self._books.note_refused(Refused(head.method, head.target, head.headers, connection.number, reply))
        return deliver(reply, connection, keep_alive=head.keep_alive, announced=self._announced())

    def _choose(self, message: Received) -> Reply:
        default = self.default
        if isinstance(default, Reply):
            return default
        try:
            return _checked(default(message))
        except Exception as error:
            _logger.exception("The reply function failed; the client is answered with 500.")
            self._books.fail(error)
            return Refuse(Code.INTERNAL_ERROR, "the test's reply function failed")


def _checked(reply: object) -> Reply:
    if not isinstance(reply, Reply):
        raise TypeError(f"{reply!r} is no reply (and a function that gives one goes into default)")
    return reply


def _checked_for_batch(reply: object) -> BatchReply:
    return reply if isinstance(reply, Results) else _checked(reply)


def _all_get(messages: tuple[Received, ...], reply: BatchReply) -> tuple[Received, ...]:
    """Write the batch's reply at each of its records; where it is Results, what they said before is not known here."""
    own = Accept() if isinstance(reply, Results) else reply
    return tuple(replace(message, reply=own) for message in messages)
