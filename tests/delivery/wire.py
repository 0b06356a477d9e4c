"""Servers made of raw sockets, for tests of the transport: each connection plays a script."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import threading
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Self

from infi.ramen_client.delivery.transport import Answer, Failure, Request, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ACCEPTED = b'HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{"code": "ACCEPTED"}'


@dataclass(frozen=True)
class Received:
    """One request as it came, and on which connection (counted from 0)."""

    line: str
    headers: dict[str, str]
    body: bytes
    connection: int


class Connection:
    """The server's end of one connection."""

    def __init__(self, server: WireServer, stream: socket.socket, number: int) -> None:
        self.server = server
        self.socket = stream
        self.number = number

    def request(self) -> Received | None:
        """Read one whole request and note it; None when the client closed."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (piece := self.socket.recv(65536)):
                return None
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        line, *rest = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (text.partition(":") for text in rest)}
        while len(body) < int(headers.get("content-length", 0)):
            if not (piece := self.socket.recv(1 << 20)):
                return None
            body += piece
        received = Received(line, headers, body, self.number)
        self.server.note(received)
        return received

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reset(self) -> None:
        """RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def hang(self) -> None:
        """Until the client closes, or the server ends."""
        with contextlib.suppress(OSError):
            while self.socket.recv(65536):
                pass


class WireServer:
    """Listens on 127.0.0.1 and plays ``script(connection)`` on a thread for each connection, then closes it."""

    def __init__(
        self,
        script: Callable[[Connection], None],
        *,
        tls: ssl.SSLContext | None = None,
        address: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._script = script
        self._tls = tls
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, port), family=family, backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.received: list[Received] = []
        self.connections = 0
        self._changed = threading.Condition()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._ended = False

    def url(self, scheme: str = "http", host: str = "127.0.0.1") -> str:
        return f"{scheme}://{host}:{self.port}/ramen/v1/metrics/1/imx.x.v1/?version=1&reqid=a"

    def note(self, received: Received) -> None:
        with self._changed:
            self.received.append(received)
            self._changed.notify_all()

    def wait_for_requests(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.received) >= count, 10), self.received

    def wait_until_no_connection(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: not self._open, 10), self._open

    def stop_listening(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> Self:
        thread = threading.Thread(target=self._accept, daemon=True)
        thread.start()
        self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop_listening()
        with self._changed:
            self._ended = True
            streams = list(self._open)
        for stream in streams:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                stream, _ = self._listener.accept()
            except OSError:
                return
            with self._changed:
                number = self.connections
                self.connections += 1
                self._open.add(stream)
                if self._ended:
                    stream.close()
                    return
            thread = threading.Thread(target=self._play, args=(stream, number), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _play(self, stream: socket.socket, number: int) -> None:
        used = stream
        try:
            with contextlib.suppress(OSError):
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    used = self._tls.wrap_socket(stream, server_side=True, do_handshake_on_connect=False)
                    with self._changed:
                        self._open.add(used)
                        self._open.discard(stream)
                    self._shake_hands(used)
                self._script(Connection(self, used, number))
        finally:
            used.close()
            stream.close()
            with self._changed:
                self._open -= {stream, used}
                self._changed.notify_all()

    @staticmethod
    def _shake_hands(stream: ssl.SSLSocket) -> None:
        try:
            stream.do_handshake()
        except ssl.SSLError:
            # Closing with something unread would be a reset, and might overtake the alert that tells the client why.
            with socket.socket(fileno=os.dup(stream.fileno())) as raw:
                raw.settimeout(10)
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(65536):
                    pass
            raise


def accept_all(connection: Connection) -> None:
    """The script of a server that keeps connections alive and accepts everything."""
    while connection.request():
        connection.send(ACCEPTED)


def answer(*pieces: bytes) -> Callable[[Connection], None]:
    """The script that answers one request with these bytes and closes."""

    def script(connection: Connection) -> None:
        connection.request()
        for piece in pieces:
            connection.send(piece)

    return script


def post(url: str, body: bytes = b"{}", timeout_seconds: float = 10, token: str = "tell-nobody") -> Request:
    headers = (("X-API-Token", token), ("Content-Type", "application/json"))
    return Request(url, headers, body, timeout_seconds)


def outcome_of(transport: Transport, request: Request) -> Answer | Failure:
    """Start one request and wait for its outcome."""
    transport.start(1, request)
    return outcomes(transport, 1)[1]


def outcomes(transport: Transport, count: int, within_seconds: float = 30) -> dict[int, Answer | Failure]:
    latest = monotonic() + within_seconds
    collected: dict[int, Answer | Failure] = {}
    while len(collected) < count:
        assert monotonic() < latest, f"{collected} after {within_seconds} s"
        collected.update(transport.wait(1))
    return collected


def failure_of(transport: Transport, request: Request) -> Failure:
    outcome = outcome_of(transport, request)
    assert isinstance(outcome, Failure), outcome
    return outcome


def answer_of(transport: Transport, request: Request) -> Answer:
    outcome = outcome_of(transport, request)
    assert isinstance(outcome, Answer), outcome
    return outcome


def closed_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def unanswering_port() -> Iterator[int]:
    """A port on which connecting hangs: the listener's backlog is full, so the kernel drops what comes."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address[1]
