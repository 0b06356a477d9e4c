"""A client of an ASGI application without sockets: it sends what it is told, byte for byte, and sees every answer."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from types import SimpleNamespace

NOON = 20_000 * 86_400_000 + 43_200_000
"""Noon of some day, in ms."""


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict
    body: bytes

    @property
    def code(self):
        return json.loads(self.body)["code"]


class AsgiClient:
    """Runs an application, with its lifespan, in a loop that turns only while a request is made."""

    def __init__(self, collector, token=None):
        self.collector = collector
        self.token = token
        self.runner = asyncio.Runner()

    def __enter__(self):
        self.runner.__enter__()
        self.runner.run(self._start())
        return self

    def __exit__(self, *_):
        self.runner.run(self._stop())
        self.runner.__exit__(None, None, None)

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def post(self, target, body=b"{}", headers=(), token=...):
        return self.run(self.send("POST", target, body, headers, token))

    def get(self, target, headers=()):
        return self.run(self.send("GET", target, b"", headers, None))

    async def send(self, method, target, body=b"{}", headers=(), token=..., chunks=None, receive=None):
        """``headers`` are pairs of bytes; ``chunks`` give the body in parts, ``receive`` all of it by hand."""
        path, _, query = target.encode("latin-1").partition(b"?")
        token = self.token if token is ... else token
        sent = [(name.lower(), value) for name, value in headers]
        if token is not None:
            sent.append((b"x-api-token", token.encode()))
        events = [
            {"type": "http.request", "body": chunk, "more_body": True} for chunk in (chunks or [body])[:-1]
        ] + [{"type": "http.request", "body": (chunks or [body])[-1], "more_body": False}]

        async def next_event():
            if events:
                return events.pop(0)
            await asyncio.Event().wait()
            return None

        answer = SimpleNamespace(status=None, headers={}, body=b"")

        async def take(event):
            if event["type"] == "http.response.start":
                assert answer.status is None, "two answers"
                answer.status = event["status"]
                answer.headers = {name.decode(): value.decode() for name, value in event["headers"]}
            else:
                answer.body += event["body"]

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path.decode("latin-1"),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": sent,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "state": {},
        }
        await self.collector.asgi(scope, receive or next_event, take)
        return Reply(answer.status, answer.headers, answer.body)

    async def _start(self):
        self._events = asyncio.Queue()
        self._done = asyncio.Queue()

        async def take(event):
            await self._done.put(event["type"])

        self._life = asyncio.ensure_future(
            self.collector.asgi({"type": "lifespan", "state": {}, "asgi": {}}, self._events.get, take)
        )
        await self._events.put({"type": "lifespan.startup"})
        assert await self._done.get() == "lifespan.startup.complete"

    async def _stop(self):
        await self._events.put({"type": "lifespan.shutdown"})
        assert await self._done.get() == "lifespan.shutdown.complete"
        await self._life


def target(reqid, *, category="metrics", serial=1099, sender="imx", data_type="totals", version="v1"):
    return f"/ramen/v1/{category}/{serial}/{sender}.{data_type}.{version}/?version=3.0&reqid={reqid}"
