"""The limit: what the disk and the loopback themselves allow, without a queue.

Pushing appends 400 bytes (what a sample is when compressed) to one file and syncs it. Draining sends what
was appended, as POSTs of the size that the 1.x client sends, over 8 connections with one request each under
way; nothing is acknowledged on disk.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` itself costs more to import than all the rest of this module
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

RECORD_BYTES = 400
CONNECTIONS = 8
_HEAD = (
    b"POST /ramen/v1/metrics/1099/bench.san_totals.v1/?version=3.0.0.1&reqid=%d HTTP/1.1\r\n"
    b"Host: 127.0.0.1\r\nUser-Agent: raw\r\nAccept: */*\r\nConnection: keep-alive\r\n"
    b"X-API-Token: 0123456789abcdef0123456789abcdef\r\nContent-Type: application/json\r\n"
    b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"
)


def open_writer(directory: str) -> Callable[[dict[str, Any]], object]:
    """Return the push of 400 bytes; what it is given is not looked at."""
    descriptor = os.open(f"{directory}/raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    record = os.urandom(RECORD_BYTES)

    def push(_sample: dict[str, Any]) -> None:
        os.write(descriptor, record)
        os.fdatasync(descriptor)

    return push


def open_bulk_writer(directory: str) -> Callable[[list[dict[str, Any]]], object]:
    """Return the push of 400 bytes for each sample, with one sync for them all."""
    descriptor = os.open(f"{directory}/raw", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    record = os.urandom(RECORD_BYTES)

    def push_all(samples: list[dict[str, Any]]) -> None:
        for _sample in samples:
            os.write(descriptor, record)
        os.fdatasync(descriptor)

    return push_all


def open_reader(directory: str, port: int) -> Callable[[], int]:
    """Return the drain of all whole records."""
    import socket
    from pathlib import Path

    content = Path(directory, "raw").read_bytes()
    requests = [
        _HEAD % (start, RECORD_BYTES) + content[start : start + RECORD_BYTES]
        for start in range(0, len(content), RECORD_BYTES)
    ]

    def drain() -> int:
        connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(CONNECTIONS)]
        for connection in connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(requests), CONNECTIONS):
            flight = list(zip(connections, requests[start : start + CONNECTIONS], strict=False))
            for connection, request in flight:
                connection.sendall(request)
            for connection, _ in flight:
                if not connection.recv(4096).startswith(b"HTTP/1.1 202 "):
                    raise ConnectionError("the counting server gave another answer than 202")
        return len(requests)

    return drain


def versions() -> dict[str, str]:
    return {}
