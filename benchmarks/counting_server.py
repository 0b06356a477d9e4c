"""The least HTTP server that a Ramen client takes for one: it counts, and accepts everything.

`python -m benchmarks.counting_server [--batches | --lines] [--until N]` prints its port, serves 127.0.0.1 until its standard
input ends, or until N different messages have come, and then prints one JSON line (``Tally``). One thread and one epoll loop, with
no more HTTP than the benchmarks' clients speak: keep-alive, a Content-Length on every request, pipelining allowed. It is to be
faster than what it measures; the variant `raw` of the drain benchmark shows its own limit.

With ``--batches`` it offers version 2 of the protocol, too. Of a batch it does what no server can leave out: it decodes the body,
finds each record by its length, and answers with one result for each. Nothing is stored.

With ``--lines`` every body is messages, one a line, as syslog-ng sends them; a line that came before is not counted again.
"""

from __future__ import annotations

import argparse
import json
import math
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from infi.ramen_protocol import BatchOffer, Dedupe, decode_body

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

Request = tuple[bytes, bytes, bytes]
"""Target, head and body."""

BATCH_PATH = b"/ramen/v2/batch"
_OFFER = BatchOffer(BATCH_PATH.decode(), messages=1000, bytes=8 << 20, dedupe=Dedupe.MESSAGE)
"""What our own collector offers."""

_HEAD = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nConnection: keep-alive\r\n%sContent-Length: %d\r\n\r\n%s"
_ACCEPTED = b'{"code":"ACCEPTED","details":null}'
_RESULT = b'{"status":202,"code":"ACCEPTED","details":null}'
_BATCH_HEADERS = f"Ramen-Batch: {_OFFER.header()}\r\nAccept-Encoding: zstd, gzip\r\n".encode()
_MAX_PENDING_BYTES = 1 << 20
_RECEIVE_BYTES = 1 << 16


class MalformedRequestError(Exception):
    """Not what a client of a benchmark sends; its connection is closed."""


@dataclass(slots=True)
class Tally:
    """What the server saw: ``messages`` are different ones; bytes are those of all requests and answers, heads included.

    ``last_at``: when the last message came that had not come before, in seconds of the monotonic clock.
    """

    requests: int = 0
    messages: int = 0
    connections: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    cpu_seconds: float = 0.0
    last_at: float = 0.0


def split_requests(buffer: bytes) -> tuple[list[Request], bytes]:
    """Return the whole requests at the start of ``buffer``, and the rest of it."""
    requests = []
    start = 0
    while (head_end := buffer.find(b"\r\n\r\n", start)) >= 0:
        head = buffer[start:head_end]
        digits = _header(head, b"content-length")
        if not digits.isdigit() or len(digits) > 6:
            raise MalformedRequestError("no usable Content-Length")
        end = head_end + 4 + int(digits)
        if end > len(buffer):
            break
        requests.append((head.split(b" ", 2)[1], head, buffer[head_end + 4 : end]))
        start = end
    if len(buffer) - start > _MAX_PENDING_BYTES:
        raise MalformedRequestError("an unfinished request of more than a megabyte")
    return requests, buffer[start:]


def record_heads(records: bytes) -> list[bytes]:
    """Return the heads of a batch's records, each of which names one message."""
    heads = []
    start = 0
    while start < len(records):
        head_end = records.find(b"\n", start)
        head = records[start:head_end]
        digits = head.rpartition(b'"length":')[2].rstrip(b"}")
        if head_end < 0 or not digits.isdigit():
            raise MalformedRequestError("no records")
        heads.append(head)
        start = head_end + int(digits) + 2
    return heads


def _header(head: bytes, name: bytes) -> bytes:
    return head.lower().partition(b"\r\n%s:" % name)[2].split(b"\r\n", 1)[0].strip()


class Counter:
    """Takes requests, counts, and makes their answers."""

    def __init__(self, *, batches: bool = False, lines: bool = False) -> None:
        self.tally = Tally()
        self._batches = batches
        self._lines = lines
        self._headers = _BATCH_HEADERS if batches else b""
        self._answer = _HEAD % (b"202 Accepted", self._headers, len(_ACCEPTED), _ACCEPTED)
        self._messages: set[Hashable] = set()

    def answers(self, requests: list[Request]) -> bytes:
        """Return the answers to these requests, in their order."""
        return b"".join([self._take(request) for request in requests])

    def _take(self, request: Request) -> bytes:
        target, head, body = request
        self.tally.requests += 1
        if self._lines:
            # Their hashes are enough to tell them apart, and the lines need not be kept.
            self._note(map(hash, filter(None, body.split(b"\n"))))
            return self._answer
        if not (self._batches and target == BATCH_PATH):
            self._note((target,))
            return self._answer
        coding = _header(head, b"content-encoding").decode()
        heads = record_heads(decode_body(body, coding or None, max_bytes=_OFFER.bytes))
        self._note(heads)
        results = b'{"results":[%s]}' % b",".join([_RESULT] * len(heads))
        return _HEAD % (b"200 OK", self._headers, len(results), results)

    def _note(self, messages: Iterable[Hashable]) -> None:
        self._messages.update(messages)
        if len(self._messages) > self.tally.messages:
            self.tally.messages = len(self._messages)
            self.tally.last_at = time.monotonic()


def serve(listener: socket.socket, end: int, counter: Counter, until: float = math.inf) -> None:
    """Serve until the descriptor ``end`` is readable (or closed by its other side), or so many messages have come and were answered."""
    tally = counter.tally
    connections: dict[int, socket.socket] = {}
    pending: dict[int, bytes] = {}
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    poll.register(end, select.EPOLLIN | select.EPOLLHUP)
    while tally.messages < until:
        for descriptor, _ in poll.poll():
            if descriptor == end:
                return
            if descriptor == listener.fileno():
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[connection.fileno()] = connection
                pending[connection.fileno()] = b""
                poll.register(connection.fileno(), select.EPOLLIN)
                tally.connections += 1
                continue
            connection = connections[descriptor]
            try:
                received = connection.recv(_RECEIVE_BYTES)
                tally.received_bytes += len(received)
                new, pending[descriptor] = split_requests(pending[descriptor] + received)
                if new:
                    answers = counter.answers(new)
                    connection.sendall(answers)
                    tally.sent_bytes += len(answers)
            except (OSError, ValueError, MalformedRequestError):
                received = b""
            if not received:
                poll.unregister(descriptor)
                del pending[descriptor]
                connections.pop(descriptor).close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counting_server")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--batches", action="store_true")
    kind.add_argument("--lines", action="store_true")
    parser.add_argument("--until", type=int, metavar="N", default=math.inf)
    options = parser.parse_args()
    counter = Counter(batches=options.batches, lines=options.lines)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    cpu_before = time.process_time()
    serve(listener, sys.stdin.fileno(), counter, options.until)
    counter.tally.cpu_seconds = time.process_time() - cpu_before
    print(json.dumps(asdict(counter.tally)), flush=True)


if __name__ == "__main__":
    main()
