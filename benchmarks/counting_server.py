"""The least HTTP server that a Ramen client takes for one: it counts, and accepts everything.

`python -m benchmarks.counting_server` prints its port, serves 127.0.0.1 until its standard input ends, and
then prints one JSON line (``Tally``). One thread and one epoll loop, with no more HTTP than the benchmarks'
clients speak: keep-alive, a Content-Length on every request, pipelining allowed. It is to be faster than what
it measures; the variant `raw` of the drain benchmark shows its own limit.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass

_BODY = b'{"code":"ACCEPTED","details":null}'
_ANSWER = (
    b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n%s"
    % (len(_BODY), _BODY)
)
_MAX_PENDING_BYTES = 1 << 20
_RECEIVE_BYTES = 1 << 16


class MalformedRequestError(Exception):
    """Not what a client of a benchmark sends; its connection is closed."""


@dataclass(slots=True)
class Tally:
    """What the server saw: ``messages`` are different request targets (path and reqid)."""

    requests: int = 0
    messages: int = 0
    connections: int = 0
    cpu_seconds: float = 0.0


def split_requests(buffer: bytes) -> tuple[list[bytes], bytes]:
    """Return the targets of the whole requests at the start of ``buffer``, and the rest of it."""
    targets = []
    start = 0
    while (head_end := buffer.find(b"\r\n\r\n", start)) >= 0:
        head = buffer[start:head_end]
        _, _, length = head.lower().partition(b"\r\ncontent-length:")
        digits = length.split(b"\r\n", 1)[0].strip()
        if not digits.isdigit() or len(digits) > 6:
            raise MalformedRequestError("no usable Content-Length")
        end = head_end + 4 + int(digits)
        if end > len(buffer):
            break
        targets.append(head.split(b" ", 2)[1])
        start = end
    if len(buffer) - start > _MAX_PENDING_BYTES:
        raise MalformedRequestError("an unfinished request of more than a megabyte")
    return targets, buffer[start:]


def serve(listener: socket.socket, end: int) -> Tally:
    """Serve until the descriptor ``end`` is readable (or closed by its other side)."""
    tally = Tally()
    cpu_before = time.process_time()
    targets: set[bytes] = set()
    connections: dict[int, socket.socket] = {}
    pending: dict[int, bytes] = {}
    poll = select.epoll()
    poll.register(listener.fileno(), select.EPOLLIN)
    poll.register(end, select.EPOLLIN | select.EPOLLHUP)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == end:
                tally.messages = len(targets)
                tally.cpu_seconds = time.process_time() - cpu_before
                return tally
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
                new, pending[descriptor] = split_requests(pending[descriptor] + received)
                if new:
                    connection.sendall(_ANSWER * len(new))
            except (OSError, MalformedRequestError):
                received, new = b"", []
            tally.requests += len(new)
            targets.update(new)
            if not received:
                poll.unregister(descriptor)
                del pending[descriptor]
                connections.pop(descriptor).close()


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    print(json.dumps(asdict(serve(listener, sys.stdin.fileno()))), flush=True)


if __name__ == "__main__":
    main()
