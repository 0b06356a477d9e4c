"""The gate: what stands between the readers and the collector, and is the fault when the demo wants one.

``python -m demo.gate DIRECTORY`` is told by lines on its standard input what to do from then on:

    pass PORT            pass bytes on to the collector at 127.0.0.1:PORT
    busy SECONDS         answer 429 with Retry-After
    failing              answer 503
    portal               answer like a captive portal: a page under 200, a redirection, in turns
    wrong-site           answer 404 with a page, as another site's web server does

A change cuts every connection that is open, whatever it is doing, as a line that fails does. On standard output: the port that it
listens on, then the status of each answer that it gave by itself, one JSON value a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK_BYTES = 64 * 1024
_PAGE = b"<!doctype html><title>%b</title><h1>%b</h1>\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the gate's own; ``head`` is header lines with their ends."""

    status: int
    head: bytes
    body: bytes

    def encoded(self) -> bytes:
        """The bytes on the wire; no further request is taken on the connection."""
        return b"HTTP/1.1 %d -\r\n%bContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (
            self.status,
            self.head,
            len(self.body),
            self.body,
        )


def replies(order: str) -> Iterator[Reply] | None:
    """What is answered under an order, one after the other; None where bytes are passed on."""
    name, _, value = order.partition(" ")
    html = b"Content-Type: text/html\r\n"
    login = _PAGE % (b"Welcome to the hotel", b"Please sign in to use this network")
    match name:
        case "busy":
            return cycle([Reply(429, b"Retry-After: %b\r\n" % value.encode(), b"")])
        case "failing":
            return cycle([Reply(503, b"", b"")])
        case "portal":
            away = b"Location: http://portal.invalid/login\r\n"
            return cycle([Reply(200, html, login), Reply(302, away + html, login)])
        case "wrong-site":
            return cycle([Reply(404, html, _PAGE % (b"404", b"This page does not exist"))])
        case _:
            return None


class Gate:
    """Listens on a free port of 127.0.0.1 until its orders end."""

    def __init__(self) -> None:
        self._port: int | None = None
        self._replies: Iterator[Reply] | None = None
        self._open: set[asyncio.StreamWriter] = set()

    async def run(self) -> None:
        """Obey orders from standard input to its end."""
        loop = asyncio.get_running_loop()
        orders = asyncio.StreamReader()
        await loop.connect_read_pipe(partial(asyncio.StreamReaderProtocol, orders), sys.stdin)
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        _say(server.sockets[0].getsockname()[1])
        async for line in orders:
            self._obey(line.decode().strip())
        server.close()
        self._cut()

    def _obey(self, order: str) -> None:
        self._replies = replies(order)
        self._port = int(order.removeprefix("pass ")) if self._replies is None else None
        self._cut()

    def _cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with suppress(OSError, EOFError, asyncio.LimitOverrunError):
                if self._replies is not None:
                    await self._answer(reader, writer, self._replies)
                elif self._port is not None:
                    await self._pass_on(reader, writer, self._port)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, prepared: Iterator[Reply]
    ) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        lengths = [
            line.partition(b":")[2]
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        ]
        await reader.readexactly(int(lengths[0]) if lengths else 0)
        reply = next(prepared)
        writer.write(reply.encoded())
        await writer.drain()
        _say(reply.status)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        """Pass bytes in both ways until one side ends; where nobody listens, the connection just ends, too."""
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", port)
        self._open.add(upstream_writer)
        try:
            ways = [
                asyncio.create_task(_copy(reader, upstream_writer)),
                asyncio.create_task(_copy(upstream_reader, writer)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._open.discard(upstream_writer)
            upstream_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(_CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()


def _say(value: int) -> None:
    sys.stdout.write(f"{json.dumps(value)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(Gate().run())
