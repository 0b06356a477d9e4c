"""What the tests of the testing kit share: a plain HTTP client, made of the standard library alone."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infi.ramen_protocol import Envelope, message_target

if TYPE_CHECKING:
    from infi.ramen_client.testing import RamenServer

TIMEOUT_SECONDS = 10
"""Only so that a broken server fails a test instead of hanging it."""


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


def target(reqid: str = "1", *, data_type: str = "san_totals", system_version: str = "3.0.0.1") -> str:
    return message_target(Envelope("metrics", 1099, "imx", data_type, "v1", system_version, reqid))


def post_on(
    connection: http.client.HTTPConnection,
    token: str,
    path: str,
    body: bytes | None = b'{"a": 1}',
    *,
    headers: dict[str, str] | None = None,
    method: str = "POST",
) -> Answered:
    connection.request(method, path, body, {"X-API-Token": token, **(headers or {})})
    response = connection.getresponse()
    return Answered(
        response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    )


def post_to(hostname: str, token: str, path: str, body: bytes = b'{"a": 1}', **more) -> Answered:
    with closing(http.client.HTTPConnection(hostname, timeout=TIMEOUT_SECONDS)) as connection:
        return post_on(connection, token, path, body, **more)


def post(server: RamenServer, path: str | None = None, body: bytes = b'{"a": 1}', **more) -> Answered:
    return post_to(server.hostname, server.token, target() if path is None else path, body, **more)


def dial(server: RamenServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_SECONDS)


def request_bytes(
    server: RamenServer, path: str | None = None, body: bytes = b'{"a": 1}', more: str = ""
) -> bytes:
    head = (
        f"POST {target() if path is None else path} HTTP/1.1\r\nHost: {server.hostname}\r\n"
        f"X-API-Token: {server.token}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode() + body


def read_to_end(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def all_threads(server: RamenServer) -> list[threading.Thread]:
    # Alive: enumerate() also lists threads that are only about to begin, which cannot be joined.
    prefix = f"ramen-test-{server.port}-"
    return [
        thread for thread in threading.enumerate() if thread.name.startswith(prefix) and thread.is_alive()
    ]


def connection_threads(server: RamenServer) -> list[threading.Thread]:
    return [thread for thread in all_threads(server) if "-connection-" in thread.name]
