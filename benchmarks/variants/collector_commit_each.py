"""What one would write first: a handler that stores its message and commits, before it answers, each by itself.

The same framework and server (Starlette, uvicorn, httptools), and the same store, so the same tables, statements and
``synchronous=FULL``. It has none of the collector's checks: no names of tokens, no scopes, no JSON check, no bounds.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from infi.ramen_protocol import Code, answer_body, decode_body, parse_target
from infi.ramen_server import NewMessage, SqliteStore, Submission

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request

_TOKEN = "0123456789abcdef0123456789abcdef"
_MAX_BYTES = 1 << 20


@contextmanager
def collector(directory: str) -> Iterator[tuple[int, str]]:
    """Run it on the directory; gives its port and a token."""
    with (
        closing(SqliteStore(Path(directory))) as store,
        # With its protocol named: asyncio switches Nagle's delay off only where it sees that it is TCP.
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener,
    ):
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            _app(store), http="httptools", loop="asyncio", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1], _TOKEN
        server.should_exit = True
        thread.join()


def _app(store: SqliteStore) -> Starlette:
    accepted = answer_body(Code.ACCEPTED, None, None)

    async def post(request: Request) -> Response:
        if request.headers["x-api-token"] != _TOKEN:
            return Response(status_code=401)
        envelope = parse_target(f"{request.url.path}?{request.url.query}")
        body = await request.body()
        payload = decode_body(body, request.headers["content-encoding"], max_bytes=_MAX_BYTES)
        now_ms = time.time_ns() // 1_000_000
        store.commit([Submission((NewMessage(envelope, payload, "bench"),))], now_ms)
        store.maintain(now_ms)
        return Response(accepted, 202, media_type="application/json")

    return Starlette(routes=[Route("/ramen/v1/{rest:path}", post, methods=["POST"])])
