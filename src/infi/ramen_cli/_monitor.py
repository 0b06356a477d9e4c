"""What ``ramen forward`` tells monitoring: ``/healthz`` and ``/metrics`` over HTTP, and a file for the node exporter.

The main thread looks at the queues (``Reporter.report``) and leaves what it saw; the threads of the HTTP server hand that out and touch
no queue. So no request, however many and however slow, holds a reader up, and what is handed out cannot be fresher or staler than it
says: when the main thread has not looked for ``_STALE_AFTER_SECONDS``, it hangs, and ``/healthz`` says so.

Bounds: ``_CONNECTIONS`` at a time, further ones are closed at once; a connection is cut after ``_CONNECTION_SECONDS``; a request's lines
and their number are bounded by ``http.server``; bodies are not read. Looking takes at most about a tenth of the main thread's time.
Nothing that is handed out is a secret; whoever listens elsewhere than on this machine still shows the names of queues and of the server.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import click

from infi.ramen_cli._output import health_as_json
from infi.ramen_client.errors import RamenError
from infi.ramen_client.metrics.prometheus import CONTENT_TYPE, text_of, write_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from infi.ramen_client.forwarder import Forwarder
    from infi.ramen_client.health import Observation

_logger = logging.getLogger("ramen")

_CONNECTIONS = 8
_CONNECTION_SECONDS = 5.0
_POLL_SECONDS = 0.25
_STALE_AFTER_SECONDS = 60.0
_FILE_EVERY_SECONDS = 15.0
_SHARE_OF_TIME = 10
_BIGGEST_PORT = 65535


class Address(click.ParamType[tuple[str, int]]):
    """``HOST:PORT``, ``[::1]:PORT``, or a port of this machine alone."""

    name = "address"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """``value`` as host and port."""
        if isinstance(value, tuple):
            return value
        host, colon, port = str(value).rpartition(":")
        if host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host or (colon and not host):
            self.fail(f"{value!r}: give HOST:PORT, as 127.0.0.1:9464 or [::1]:9464", param, ctx)
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= _BIGGEST_PORT):  # noqa: PLR2004
            self.fail(f"{value!r}: {port!r} is not a port; give HOST:PORT, as 127.0.0.1:9464", param, ctx)
        return host or "127.0.0.1", int(port)


@dataclass(frozen=True, slots=True)
class _Seen:
    at: float
    queues: Sequence[Observation]


class Reporter:
    """Looks at a forwarder's queues and reports; close it in the end."""

    def __init__(
        self,
        listen: tuple[str, int] | None,
        textfile: Path | None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._board = Board(monotonic)
        self._textfile = textfile
        self._file_due = self._look_due = monotonic()
        self._file_trouble = ""
        self._server = None if listen is None else _listen(listen, self._board)

    @property
    def port(self) -> int | None:
        """Where it listens; None: it does not."""
        return None if self._server is None else int(self._server.server_address[1])

    def report(self, forwarder: Forwarder) -> None:
        """Look, if it is time for that, and report. Trouble is said when it is new."""
        begun = self._monotonic()
        if begun < self._look_due or (self._server is None and self._textfile is None):
            return
        queues = forwarder.observe()
        self._board.seen = _Seen(begun, queues)
        self._write(queues, begun)
        now = self._monotonic()
        self._look_due = now + (now - begun) * _SHARE_OF_TIME

    def _write(self, queues: Sequence[Observation], now: float) -> None:
        if self._textfile is None or now < self._file_due:
            return
        self._file_due = now + _FILE_EVERY_SECONDS
        try:
            write_text(text_of(queues), self._textfile)
            self._file_trouble = ""
        except OSError as error:
            trouble = error.strerror or str(
                error
            )  # not the name of the temporary file, which is new each time
            if trouble != self._file_trouble:
                self._file_trouble = trouble
                _logger.error("%s: cannot be written: %s", self._textfile, trouble)  # noqa: TRY400

    def close(self) -> None:
        """Stop listening, and remove the file: what nobody brings up to date must not look well."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._textfile is not None:
            try:
                self._textfile.unlink(missing_ok=True)
            except OSError as error:
                _logger.warning("%s: cannot be removed: %s", self._textfile, error.strerror)


class Board:
    """What was seen last, as the answers to requests."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._begun = monotonic()
        self.seen: _Seen | None = None

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body."""
        if path not in ("/healthz", "/metrics"):
            return HTTPStatus.NOT_FOUND, "text/plain", b"There are /healthz and /metrics.\n"
        seen = self.seen
        silent = self._monotonic() - (self._begun if seen is None else seen.at)
        if silent > _STALE_AFTER_SECONDS or (seen is None and path == "/metrics"):
            text = f"The forwarder has not looked at its queues for {silent:.0f} s: it hangs."
            document = _document({"healthy": False, "problem": text, "queues": {}})
            return HTTPStatus.SERVICE_UNAVAILABLE, "application/json", document
        queues = () if seen is None else seen.queues
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE, text_of(queues)
        healthy = all(queue.health.healthy for queue in queues)
        document = _document(
            {
                "healthy": healthy,
                "problem": None,
                "queues": {queue.queue: health_as_json(queue.health) for queue in queues},
            }
        )
        status = HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE
        return status, "application/json", document


def _document(value: dict[str, Any]) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="replace") + b"\n"


def _listen(address: tuple[str, int], board: Board) -> _Server:
    host, port = address
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        server = _Server(family, place[:2], board)
    except OSError as error:
        raise RamenError(
            f"--listen {host}:{port}: cannot be listened on: {error.strerror}. Choose another host or port."
        ) from error
    threading.Thread(
        target=server.serve_forever, args=(_POLL_SECONDS,), name="ramen-monitor", daemon=True
    ).start()
    return server


class _Server(HTTPServer):
    request_queue_size = 64
    """With the default of 5, a burst of connections waits for a second or more (the kernel drops what it cannot queue)."""

    def __init__(self, family: int, address: Any, board: Board) -> None:
        self.address_family = family
        self.board = board
        self._slots = threading.Semaphore(_CONNECTIONS)
        self._guard = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # Without the look-up of this host's name that HTTPServer makes, which may take long.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._guard:
            self._open[request] = time.monotonic() + _CONNECTION_SECONDS
        threading.Thread(
            target=self._handle, args=(request, client_address), name="ramen-monitor", daemon=True
        ).start()

    def _handle(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # it was cut, by the client or for being slow
        except Exception:
            _logger.exception("unexpected error in an answer to monitoring; the forwarder goes on")
        finally:
            with self._guard:
                del self._open[request]
            self.shutdown_request(request)
            self._slots.release()

    def service_actions(self) -> None:
        """Cut what takes too long; called between requests and every ``_POLL_SECONDS``."""
        now = time.monotonic()
        with self._guard:
            for request, due in self._open.items():
                if now >= due:
                    try:
                        request.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        continue  # it is gone already


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        status, kind, body = self.server.board.answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - http.server looks for this name

    def version_string(self) -> str:
        return "ramen"

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - http.server's name
        _logger.debug("monitoring: %s", format % arguments)
