"""The load on a collector: `python -m benchmarks.collector_load PORT TOKEN MESSAGES BATCH`.

With ``BATCH`` 1: ``CONNECTIONS`` keep-alive connections, one message of version 1 under way on each. Else ``LANES`` of them, one
batch of so many messages on each. Prints ``ready`` after a warm-up, waits for a line, prints ``quarter`` after the first quarter
of the messages and one JSON line (a ``Measurement``) at the end. Requests are put together before; what is left for each is a
write, a read and the next one. Any answer but the one that accepts every message ends it.
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
from infi.ramen_protocol import (
    BATCH_CONTENT_TYPE,
    BatchId,
    Coding,
    Envelope,
    batch_digest,
    compress,
    compress_batch,
    encode_record,
    message_target,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS = 64
LANES = 4
WARM_UP = 256

_Request = tuple[bytes, int]  # and how many messages are in it


class _Connection(asyncio.Protocol):
    """Sends one request after the other until there are no more."""

    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._sent_at = self._messages = 0

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
        if head[9:12] not in (b"200", b"202") or body.count(b'"ACCEPTED"') != self._messages:
            self._load.fail(self._received)
            return
        self._received = b""
        self._load.note((perf_counter_ns() - self._sent_at) / 1000, self._messages)
        self.send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.fail(f"a connection ended: {exc}".encode())

    def send_next(self) -> None:
        request = next(self._load.requests, None)
        if request is not None:
            self._sent_at = perf_counter_ns()
            data, self._messages = request
            self.transport.write(data)


class Load:
    """What all connections share."""

    def __init__(self, token: str, batch: int) -> None:
        self._payloads = [json.dumps(sample).encode() for sample in samples(500, seed=0)]
        self._bodies = [compress(payload) for payload in self._payloads]
        self._token = token
        self._batch = batch
        self._number = 0
        self.requests: Iterator[_Request] = iter(())
        self.latencies: list[float] = []

    def start(self, connections: list[_Connection], messages: int) -> None:
        """Have so many more messages sent."""
        if self._batch == 1:
            self.requests = iter([(self._request(), 1) for _ in range(messages)])
        else:
            sizes = [min(self._batch, messages - start) for start in range(0, messages, self._batch)]
            self.requests = iter([(self._batch_request(size), size) for size in sizes])
        self.latencies = []
        self._quarter, self._all, self._answered = messages // 4, messages, 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.at_quarter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for connection in connections:
            connection.send_next()

    def note(self, microseconds: float, messages: int) -> None:
        self.latencies.append(microseconds)
        self._answered += messages
        if self._answered >= self._quarter and not self.at_quarter.done():
            self.at_quarter.set_result(None)
        if self._answered == self._all:
            self.done.set_result(None)

    def fail(self, why: bytes) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionError(why.decode(errors="replace")))

    def _envelope(self) -> Envelope:
        self._number += 1
        return Envelope("metrics", 1099, "bench", "san_totals", "v1", "3.0.0.1", f"bench-{self._number}")

    def _request(self) -> bytes:
        envelope = self._envelope()
        body = self._bodies[self._number % len(self._bodies)]
        return self._head(message_target(envelope), "application/json", "gzip", len(body)) + body

    def _batch_request(self, size: int) -> bytes:
        records = b"".join(
            encode_record(self._envelope(), self._payloads[self._number % len(self._payloads)])
            for _ in range(size)
        )
        body = compress_batch(records, Coding.ZSTD)
        # Each batch is a lane of its own: the connections take them as they come, and this store keeps no lanes.
        batch = BatchId(f"bench-{self._number}", 1, batch_digest(records))
        more = f"Ramen-Batch-Id: {batch.header()}\r\n"
        return self._head("/ramen/v2/batch", BATCH_CONTENT_TYPE, "zstd", len(body), more) + body

    def _head(self, target: str, kind: str, coding: str, length: int, more: str = "") -> bytes:
        return (
            f"POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Token: {self._token}\r\nContent-Type: {kind}\r\n"
            f"Content-Encoding: {coding}\r\n{more}Content-Length: {length}\r\n\r\n"
        ).encode()


async def run(port: int, token: str, messages: int, batch: int) -> None:
    load = Load(token, batch)
    loop = asyncio.get_running_loop()
    connections = []
    for _ in range(CONNECTIONS if batch == 1 else LANES):
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
    asyncio.run(run(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
