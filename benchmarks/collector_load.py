"""The load on a collector: `python -m benchmarks.collector_load PORT TOKEN MESSAGES`.

``CONNECTIONS`` keep-alive connections, one request under way on each. Prints ``ready`` after a warm-up, waits for a line,
prints ``quarter`` after the first quarter of the messages and one JSON line (a ``Measurement``) at the end. Requests are put
together before; what is left for each is a write, a read and the next one. Any answer but 202 ends it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from time import perf_counter_ns
from typing import TYPE_CHECKING

from benchmarks.measurement import measured
from benchmarks.sample import samples
from infi.ramen_protocol import compress

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 64
WARM_UP = 256


class _Connection(asyncio.Protocol):
    """Sends one request after the other until there are no more."""

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._sent_at = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        _, _, length = head.lower().partition(b"content-length: ")
        if len(body) < int(length.split(b"\r\n", 1)[0]):
            return
        if not head.startswith(b"HTTP/1.1 202 "):
            self._load.fail(self._received)
            return
        self._received = b""
        self._load.note((perf_counter_ns() - self._sent_at) / 1000)
        self.send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.fail(f"a connection ended: {exc}".encode())

    def send_next(self) -> None:
        request = next(self._load.requests, None)
        if request is not None:
            self._sent_at = perf_counter_ns()
            self.transport.write(request)


class Load:
    """What all connections share."""

    def __init__(self, token: str) -> None:
        self._bodies = [compress(json.dumps(sample).encode()) for sample in samples(500, seed=0)]
        self._token = token
        self._number = 0
        self.requests: Iterator[bytes] = iter(())
        self.latencies: list[float] = []

    def start(self, connections: list[_Connection], messages: int) -> None:
        """Have so many more messages sent."""
        self.requests = iter([self._request() for _ in range(messages)])
        self.latencies = []
        self._quarter, self._all = messages // 4, messages
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.at_quarter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for connection in connections:
            connection.send_next()

    def note(self, microseconds: float) -> None:
        self.latencies.append(microseconds)
        if len(self.latencies) == self._quarter:
            self.at_quarter.set_result(None)
        if len(self.latencies) == self._all:
            self.done.set_result(None)

    def fail(self, why: bytes) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(why.decode(errors="replace")))

    def _request(self) -> bytes:
        self._number += 1
        body = self._bodies[self._number % len(self._bodies)]
        return (
            f"POST /ramen/v1/metrics/1099/bench.san_totals.v1/?version=3.0.0.1&reqid=bench-{self._number} HTTP/1.1\r\n"
            f"Host: 127.0.0.1\r\nX-API-Token: {self._token}\r\nContent-Type: application/json\r\n"
            f"Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body


async def run(port: int, token: str, messages: int) -> None:
    load = Load(token)
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(CONNECTIONS):
        _, connection = await loop.create_connection(lambda: _Connection(load), "127.0.0.1", port)
        connections.append(connection)
    load.start(connections, WARM_UP)
    await load.done
    print("ready", flush=True)
    sys.stdin.readline()
    with measured() as measurement:
        load.start(connections, messages)
        load.at_quarter.add_done_callback(lambda _: print("quarter", flush=True))
        await load.done
    measurement.messages = messages
    measurement.latencies = load.latencies
    print(json.dumps(asdict(measurement)), flush=True)


if __name__ == "__main__":
    asyncio.run(run(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
