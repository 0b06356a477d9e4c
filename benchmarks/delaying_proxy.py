"""A long line on loopback: `python -m benchmarks.delaying_proxy PORT MILLISECONDS`.

Prints its port, and hands on what comes to 127.0.0.1:PORT and back until its standard input ends. Every byte arrives so many
milliseconds after it was sent, in either direction, and no later for what was sent before it: bytes wait in a queue, without bound,
so the line is long but not narrow. The first bytes of a connection come one round trip later, which is what its making would take.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque


class _Way(asyncio.Protocol):
    """One end of a connection, and the queue of what came in there."""

    transport: asyncio.Transport

    def __init__(self, delay_seconds: float) -> None:
        self._delay = delay_seconds
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[float, bytes]] = deque()
        self._earliest = 0.0
        self._ended = False
        self.out: _Way | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def costs_a_round_trip(self) -> None:
        """Nothing leaves here before the connection would have been made."""
        self._earliest = self._loop.time() + 2 * self._delay

    def goes_out_by(self, out: _Way) -> None:
        """Hand on to there what came, and what comes."""
        self.out = out
        if self._queue:
            self._deliver()

    def data_received(self, data: bytes) -> None:
        self._queue.append((max(self._loop.time(), self._earliest) + self._delay, data))
        if len(self._queue) == 1 and self.out is not None:
            self._deliver()

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self._ended:
            self.data_received(b"")  # by which the end is known

    def _deliver(self) -> None:
        assert self.out is not None
        while self._queue and self._queue[0][0] <= self._loop.time():
            _, data = self._queue.popleft()
            if data:
                self.out.transport.write(data)
            else:
                self.out.end()
        if self._queue:
            self._loop.call_at(self._queue[0][0], self._deliver)

    def end(self) -> None:
        self._ended = True
        self.transport.close()


class _Client(_Way):
    """The end that a client connected to."""

    def __init__(self, delay_seconds: float, port: int) -> None:
        super().__init__(delay_seconds)
        self._port = port

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.costs_a_round_trip()
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            _, server = await self._loop.create_connection(lambda: _Way(self._delay), "127.0.0.1", self._port)
        except OSError:
            self.end()
            return
        server.goes_out_by(self)
        self.goes_out_by(server)


async def serve(port: int, delay_seconds: float) -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Client(delay_seconds, port), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]) / 1000))
