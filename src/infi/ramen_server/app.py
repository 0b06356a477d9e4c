"""The ASGI application: reads requests, has them judged (``admission``), committed (``commits``), and answers.

    POST /ramen/v1/…    a message; as every other path that is not one of the following
    GET  /healthz       200 while the process can work
    GET  /readyz        200 while a message would be taken
    GET  /metrics       Prometheus text, with a token for reading

Invariants:

- A message is answered ACCEPTED after the commit that holds it (or that held it before), never otherwise.
- Bodies and payloads in memory are reserved from ``max_memory_bytes`` before they are there, and given back with the decision.
- Nothing that a client sends is answered with a 5xx, but for the bounds of the collector itself (503).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from . import admission
from .admission import Admitted, Decision, Kind, LargerThanTried
from .auth import Purpose
from .commits import GroupCommit
from .metrics import CONTENT_TYPE, Metrics, exposition
from .rate import RateLimiter
from .stores import NewMessage, Outcome, Store, StoreUnavailable, Submission

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from .limits import Limits
    from .settings import Settings

HITS_SECONDS = 5
"""How often the hits of rules are written."""

DECODERS = 2
"""How many large bodies are decoded at a time."""

_INLINE_BODY_BYTES = 32 * 1024  # what is decoded in the loop: at most a few milliseconds
_TRY_RATIO = 16  # telemetry compresses to a third or a tenth
_TRY_BYTES = 64 * 1024

_logger = logging.getLogger("ramen_server")


class _ClientLeft(Exception):
    """The connection ended before the body did."""


class Memory:
    """What is left of ``max_memory_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.used = 0

    def reserve(self, count: int) -> bool:
        """Take ``count`` bytes; False when they are not there."""
        if self.used + count > self._max_bytes:
            return False
        self.used += count
        return True


class Reservation:
    """One request's share of the memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._held = 0

    def hold(self, count: int) -> bool:
        """Hold ``count`` bytes from now on, more or less than before; False when they are not there."""
        if not self._memory.reserve(count - self._held):
            return False
        self._held = count
        return True

    def release(self) -> None:
        """Give everything back."""
        self.hold(0)


class Collector:
    """The application around one store and one settings file; both stay the caller's, who closes them.

    ``asgi`` is what a server runs (with its lifespan). ``now_ms`` (wall clock, for what is stored) and ``monotonic`` (for
    rates) are for tests.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        limits: Limits,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = Metrics()
        self._store = store
        self._settings = settings
        self._limits = limits
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._memory = Memory(limits.max_memory_bytes)
        self._rates = RateLimiter(limits.messages_per_second, limits.burst)
        self._unwritten_hits: Counter[int] = Counter()
        self._in_flight = 0
        self._stopping = False
        self._commits: GroupCommit | None = None
        self._decoders: ThreadPoolExecutor | None = None
        self.asgi = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._metrics),
            ],
            exception_handlers={405: _wrong_method},
            lifespan=self._lifespan,
        )
        self.asgi.router.redirect_slashes = False
        # Not a route: its pattern would see the decoded path, and miss one with a line end in it.
        self.asgi.router.default = self._ingest

    def begin_stop(self) -> None:
        """Refuse what comes from now on; what is in flight goes on."""
        self._stopping = True

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self._stopping = False
        self._commits = GroupCommit(self._store, self.metrics, self._now_ms)
        self._decoders = ThreadPoolExecutor(DECODERS, "ramen-decode")
        writing = asyncio.create_task(self._write_hits_regularly())
        try:
            yield
        finally:
            self._stopping = True
            writing.cancel()
            await self._commits.close()
            self._decoders.shutdown()
            await self._write_hits()

    # Messages

    async def _ingest(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            decision = await self._decide(scope, receive)
        except _ClientLeft:
            self.metrics.left += 1
            return
        except asyncio.CancelledError:
            # A stop that has waited long enough. The message may be stored; sent again, it is a duplicate.
            decision = admission.STOPPING
        except Exception:
            _logger.exception("A request could not be handled.")
            decision = Decision(Kind.FAULT, "a fault of the collector; it is in its log")
        self.metrics.requests[decision.kind.value] += 1
        answer = admission.answer(decision)
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _decide(self, scope: Scope, receive: Receive) -> Decision:
        if self._stopping or self._commits is None:
            return admission.STOPPING
        if self._in_flight >= self._limits.max_requests:
            return admission.BUSY
        self._in_flight += 1
        reservation = Reservation(self._memory)
        try:
            current = self._settings.current()
            admitted = admission.admit_head(
                scope["method"], _target(scope), scope["headers"], current, self._limits
            )
            if isinstance(admitted, Decision):
                return admitted
            body = await self._read_body(admitted, receive, reservation)
            if isinstance(body, Decision):
                return body
            self.metrics.body_bytes += len(body)
            payload = await self._read_payload(body, admitted, reservation)
            if isinstance(payload, Decision):
                return payload
            del body
            # Again: the token may have been revoked while the body came.
            return await self._take(admitted, payload, scope)
        finally:
            reservation.release()
            self._in_flight -= 1

    async def _take(self, admitted: Admitted, payload: bytes, scope: Scope) -> Decision:
        current = self._settings.current()
        token = admission.find_token(scope["headers"], current, Purpose.SEND)
        if isinstance(token, Decision):
            return token
        judged = admission.judge(admitted, current, self._rates, self._monotonic())
        if judged is not None:
            decision, rule = judged
            if rule is not None:
                self.metrics.rule_hits[rule.rule_id] += 1
                self._unwritten_hits[rule.rule_id] += 1
            return decision
        assert self._commits is not None  # noqa: S101 - _decide saw it
        message = NewMessage(admitted.envelope, payload, admitted.token.name)
        try:
            (outcome,) = await self._commits.commit(Submission((message,)))
        except StoreUnavailable as unavailable:
            return Decision(
                Kind.UNAVAILABLE, unavailable.reason, retry_after_seconds=unavailable.retry_after_seconds
            )
        return admission.DUPLICATE if outcome is Outcome.DUPLICATE else admission.ACCEPTED

    async def _read_body(
        self, admitted: Admitted, receive: Receive, reservation: Reservation
    ) -> bytes | Decision:
        if not reservation.hold(admitted.declared_bytes or 0):
            return admission.BUSY
        limits = self._limits
        clock = asyncio.get_running_loop().time
        deadline = clock() + limits.body_seconds
        chunks: list[bytes] = []
        size = 0
        more = True
        while more:
            try:
                async with asyncio.timeout_at(min(deadline, clock() + limits.body_idle_seconds)):
                    event = await receive()
            except TimeoutError:
                return admission.SLOW
            if event["type"] != "http.request":
                raise _ClientLeft
            chunk = event.get("body", b"")
            more = event.get("more_body", False)
            size += len(chunk)
            if size > limits.max_body_bytes:
                return admission.too_large(limits.max_body_bytes)
            if admitted.declared_bytes is None and not reservation.hold(size):
                return admission.BUSY
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def _read_payload(
        self, body: bytes, admitted: Admitted, reservation: Reservation
    ) -> bytes | Decision:
        """Decode with a bound that most payloads keep, and only then with the whole one."""
        max_bytes = self._limits.max_message_bytes
        try_bytes = min(max_bytes, _TRY_RATIO * len(body) + _TRY_BYTES)
        while True:
            if not reservation.hold(len(body) + try_bytes):
                return admission.BUSY
            read = partial(
                admission.read_payload, body, admitted.coding, try_bytes=try_bytes, max_bytes=max_bytes
            )
            inline = try_bytes <= _TRY_RATIO * _INLINE_BODY_BYTES + _TRY_BYTES
            payload = (
                read() if inline else await asyncio.get_running_loop().run_in_executor(self._decoders, read)
            )
            if not isinstance(payload, LargerThanTried):
                if isinstance(payload, bytes):
                    reservation.hold(len(payload))
                return payload
            try_bytes = max_bytes

    # Rules' hits

    async def _write_hits_regularly(self) -> None:
        while True:
            await asyncio.sleep(HITS_SECONDS)
            await self._write_hits()

    async def _write_hits(self) -> None:
        hits, self._unwritten_hits = self._unwritten_hits, Counter()
        if not hits:
            return
        try:
            await asyncio.to_thread(self._settings.add_hits, hits)
        except Exception:
            _logger.exception("The hits of rules could not be written; they are written with the next ones.")
            self._unwritten_hits.update(hits)

    # The rest

    async def _healthz(self, _request: Request) -> Response:
        if self._commits is None or not self._commits.alive:
            return PlainTextResponse("the commit thread is gone\n", 503)
        return PlainTextResponse("ok\n")

    async def _readyz(self, _request: Request) -> Response:
        problem = "the collector is stopping" if self._stopping else self._store.problem()
        if problem is not None:
            return PlainTextResponse(f"{problem}\n", 503)
        return PlainTextResponse("ok\n")

    async def _metrics(self, request: Request) -> Response:
        token = admission.find_token(request.scope["headers"], self._settings.current(), Purpose.READ)
        if isinstance(token, Decision):
            answer = admission.answer(token)
            return Response(answer.body, answer.status, media_type="application/json")
        return Response(exposition(self.metrics, self._gauges()), headers={"content-type": CONTENT_TYPE})

    def _gauges(self) -> dict[str, tuple[str, float]]:
        totals = self._store.totals()
        gauges: dict[str, tuple[str, float]] = {
            "ramen_store_messages": ("Messages ever stored.", totals.messages),
            "ramen_store_payload_bytes": ("Bytes of their payloads.", totals.payload_bytes),
            "ramen_store_duplicates": ("Duplicates ever recognised.", totals.duplicates),
            "ramen_requests_in_flight": ("Requests being handled.", self._in_flight),
            "ramen_memory_bytes": ("Memory reserved for bodies.", self._memory.used),
            "ramen_commits_waiting": (
                "Messages that wait for a commit.",
                self._commits.waiting if self._commits else 0,
            ),
        }
        free = self._store.free_bytes()
        if free is not None:
            gauges["ramen_store_free_bytes"] = ("Room for more data.", free)
        return gauges


def _target(scope: Scope) -> str:
    """The target as it was sent: not decoded, with the query."""
    path = scope["raw_path"].decode("latin-1")
    query = scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


async def _wrong_method(_request: Request, _error: Exception) -> Response:
    return PlainTextResponse("only GET\n", 405, {"allow": "GET, HEAD"})
