"""The demo's gate: it answers as it is told, passes bytes on otherwise, and cuts connections when it changes its mind."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_SECONDS = 30.0
"""Upper bound for "does not hang"."""

REQUEST = (
    b"POST /ramen/v1/metrics/1/main.load.1/?reqid=a HTTP/1.1\r\nHost: gate\r\nContent-Length: 2\r\n\r\n{}"
)


class Gate:
    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process
        self.port = self.said()

    def said(self) -> int:
        return json.loads(self._process.stdout.readline())

    def tell(self, order: str) -> None:
        self._process.stdin.write(f"{order}\n".encode())
        self._process.stdin.flush()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), LIMIT_SECONDS)

    def answer(self) -> bytes:
        """What comes back on a connection of its own, to its end; empty when it was cut before."""
        with self.connect() as connection, suppress(OSError):
            connection.sendall(REQUEST)
            return b"".join(iter(lambda: connection.recv(65536), b""))
        return b""

    def answer_under(self, status: int) -> bytes:
        """An answer with this status; the order that is to bring it about may not have been read yet."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while not (answer := self.answer()).startswith(b"HTTP/1.1 %d " % status):
            assert time.monotonic() < deadline, answer
        return answer

    def pass_through(self, collector: socket.socket) -> tuple[socket.socket, socket.socket]:
        """Both ends of a connection through the gate, over which a request has come; likewise."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline:
            client = self.connect()
            with suppress(OSError):
                client.sendall(REQUEST)
                return client, collector.accept()[0]
            client.close()
        raise AssertionError("nothing came through")


@contextmanager
def gate(directory: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "demo.gate", str(directory)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield Gate(process)
        process.stdin.close()
        assert process.wait(LIMIT_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def test_it_answers_by_itself_as_it_is_told_and_says_each_status(tmp_path):
    with gate(tmp_path) as told:
        told.tell("busy 7")
        assert b"\r\nRetry-After: 7\r\n" in told.answer_under(429)
        told.tell("failing")
        assert told.answer_under(503).endswith(b"\r\n\r\n")
        told.tell("portal")
        assert b"<title>" in told.answer_under(200)
        assert b"\r\nLocation: http://" in told.answer_under(302)
        told.tell("wrong-site")
        assert b"<title>" in told.answer_under(404)
        said = [told.said()]
        while said[-1] != 404:
            said.append(told.said())
        assert list(dict.fromkeys(said)) == [429, 503, 200, 302, 404]


def test_it_passes_bytes_both_ways_and_cuts_what_is_open_when_it_is_told_something_else(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as collector, gate(tmp_path) as told:
        collector.settimeout(1)
        told.tell(f"pass {collector.getsockname()[1]}")
        client, server = told.pass_through(collector)
        with client, server:
            server.settimeout(LIMIT_SECONDS)
            received = b""
            while len(received) < len(REQUEST):
                received += server.recv(65536)
            assert received == REQUEST
            server.sendall(b"HTTP/1.1 202 -\r\n")
            assert client.recv(65536) == b"HTTP/1.1 202 -\r\n"
            told.tell("failing")
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""
            told.answer_under(503)


def test_where_no_collector_listens_connections_end_without_an_answer(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as gone, gate(tmp_path) as told:
        port = gone.getsockname()[1]
        told.tell("failing")
        told.answer_under(503)
        gone.close()
        told.tell(f"pass {port}")
        deadline = time.monotonic() + LIMIT_SECONDS
        while told.answer():
            assert time.monotonic() < deadline
