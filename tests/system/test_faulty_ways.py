"""Servers, or what poses as them, that never end, never begin or talk nonsense: memory is bounded, a stop is heard, nothing is lost."""

from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from test_hostile_server_kit import CANARY, Client, arrived, raw_server, read_request

from infi.ramen_client.testing import RamenServer

if TYPE_CHECKING:
    from collections.abc import Callable

    Script = Callable[[socket.socket], None]

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_proxies")]

MIB = 1024 * 1024
BLOCK = b"x" * 65536
GIGABYTE = 1_000_000_000
LARGE_MESSAGE_BYTES = 2 * MIB
MAX_GROWTH_BYTES = 48 * MIB
STOPS_WITHIN_SECONDS = 2.0
"""The promise is 0.1 s; a busy machine is no finding."""


def silent(stream: socket.socket) -> None:
    """Half-open: the connection stands, nobody is there."""
    with suppress(TimeoutError):
        stream.settimeout(5)
        while stream.recv(65536):
            pass


def drips_its_head(stream: socket.socket) -> None:
    read_request(stream)
    _drip(stream, b"HTTP/1.1 202 Accepted\r\n" + b"X-Y: z\r\n" * 1000)


def drips_its_body(stream: socket.socket) -> None:
    read_request(stream)
    stream.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 60000\r\n\r\n")
    _drip(stream, b" " * 60000)


def takes_the_request_by_the_byte(stream: socket.socket) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    while stream.recv(1):
        time.sleep(0.01)


def _drip(stream: socket.socket, data: bytes) -> None:
    for byte in data:
        stream.sendall(bytes([byte]))
        time.sleep(0.01)


def _pour(stream: socket.socket, head: bytes, piece: bytes) -> None:
    """A gigabyte, as fast as it is taken."""
    read_request(stream)
    stream.sendall(head)
    for _ in range(GIGABYTE // len(piece)):
        stream.sendall(piece)


def endless_head(stream: socket.socket) -> None:
    _pour(stream, b"HTTP/1.1 202 Accepted\r\n", b"X-Endless: y\r\n" * 4000)


def one_endless_header(stream: socket.socket) -> None:
    _pour(stream, b"HTTP/1.1 202 Accepted\r\nX-Endless: ", BLOCK)


def endless_interim_answers(stream: socket.socket) -> None:
    _pour(stream, b"", b"HTTP/1.1 102 Processing\r\n\r\n" * 2000)


def a_gigabyte_of_body(stream: socket.socket) -> None:
    _pour(stream, b"HTTP/1.1 202 Accepted\r\nContent-Length: 1000000000\r\n\r\n", BLOCK)


def a_gigabyte_without_a_length(stream: socket.socket) -> None:
    _pour(stream, b'HTTP/1.1 202 Accepted\r\n\r\n{"code": "ACCEPTED"}', BLOCK)


def a_gigabyte_in_one_chunk(stream: socket.socket) -> None:
    _pour(stream, b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n3b9aca00\r\n", BLOCK)


def resets_in_mid_request(stream: socket.socket) -> None:
    stream.recv(300)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


NONSENSE = (
    b"HTTP/1.1 202 Accepted\r\nContent-Length: -1\r\n\r\n{}",
    b"HTTP/1.1 202 Accepted\r\nContent-Length: 18446744073709551616\r\n\r\n{}",
    b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nContent-Length: 20\r\n\r\n{}",
    b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: nonsense, chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 20222 Accepted\r\nContent-Length: 20\r\n\r\n" + b'{"code": "ACCEPTED"}',
    b"HTTP/9.9 202 Accepted\r\nContent-Length: 20\r\n\r\n" + b'{"code": "ACCEPTED"}',
    b"HTTP/1.1 202 Accepted\r\nno colon\r\nContent-Length: 20\r\n\r\n" + b'{"code": "ACCEPTED"}',
    b"HTTP/1.1 202 Accepted\r\nX: \0\r\nContent-Length: 20\r\n\r\n" + b'{"code": "ACCE',
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"SSH-2.0-OpenSSH_9.2\r\n",
    bytes(range(256)),
)
_next_nonsense = cycle(NONSENSE)


def nonsense(stream: socket.socket) -> None:
    read_request(stream)
    stream.sendall(next(_next_nonsense))


SCRIPTS: list[Script] = [
    silent,
    drips_its_head,
    drips_its_body,
    takes_the_request_by_the_byte,
    endless_head,
    one_endless_header,
    endless_interim_answers,
    a_gigabyte_of_body,
    a_gigabyte_without_a_length,
    a_gigabyte_in_one_chunk,
    resets_in_mid_request,
    nonsense,
]


def peak_bytes() -> int:
    """The most memory since it was reset last."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_faulty_way_costs_neither_memory_nor_a_message_nor_the_stop(script: Script, tmp_path: Path) -> None:
    connections = 0

    def counted(stream: socket.socket) -> None:
        nonlocal connections
        connections += 1
        script(stream)

    with raw_server(counted) as hostname:
        client = Client(tmp_path / "queue", hostname, server_timeout=1, retry_delay=0.02)
        client.push(3)
        client.pushed.append(
            client.writer.push(
                "metrics", "san_totals", "v1", {"noise": os.urandom(LARGE_MESSAGE_BYTES // 2).hex()}
            )
        )
        client.push(3)
        reset_peak()
        before = peak_bytes()
        stops = []
        # In the first attempt, and after the ends of some.
        for failures in (0, len(NONSENSE) if script is nonsense else 2):
            thread = client.reader.start_thread()
            seen = connections
            client.wait_until(
                lambda failures=failures: client.server_row().get("failures", 0) >= failures, 30
            )
            client.wait_until(lambda seen=seen: connections > seen)
            began = time.monotonic()
            client.reader.stop()
            thread.join(20)
            assert not thread.is_alive()
            stops.append(time.monotonic() - began)
        growth = peak_bytes() - before
    print(f"stops after {stops[0]:.4f} and {stops[1]:.4f} s, {growth / MIB:.1f} MiB more")
    assert growth < MAX_GROWTH_BYTES
    assert max(stops) < STOPS_WITHIN_SECONDS
    assert client.counts() == {"pushed": 7, "waiting": 7}
    with RamenServer(token=CANARY, port=int(hostname.rpartition(":")[2])) as server, client.running():
        client.wait_empty()
    assert arrived(server) == client.pushed
    assert server.duplicates == []
    assert client.counts() == {"pushed": 7, "accepted": 7}
    client.verify()
    client.close()
