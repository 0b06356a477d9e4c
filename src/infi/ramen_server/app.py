"""The ASGI application: reads requests (``bodies``), has them judged (``admission``, ``batches``) and committed (``commits``), and answers.

    POST /ramen/v2/batch  a batch of messages
    POST /ramen/v1/…      a message; as every other path that is not one of the following
    GET  /healthz         200 while the process can work
    GET  /readyz          200 while a message would be taken
    GET  /metrics         Prometheus text, with a token for reading

Invariants:

- A message is answered ACCEPTED after the commit that holds it (or that held it before), never otherwise.
- Every answer under ``/ramen/`` announces which codings and batches are taken.
- Nothing that a client sends is answered with a 5xx, but for the bounds of the collector itself (503).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from infi.ramen_protocol import Dedupe

from . import admission, batches
from .admission import Decision, Kind, LargerThanTried
from .auth import Purpose
from .bodies import Bodies, ClientLeft, Reservation
from .commits import GroupCommit
from .metrics import CONTENT_TYPE, Metrics, exposition
from .rate import RateLimiter
from .stores import (
    Committed,
    LaneConflict,
    NewMessage,
    Outcome,
    Repeated,
    Store,
    StoreUnavailable,
    Submission,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from infi.ramen_protocol import BatchId

    from .auth import Token
    from .batches import ReadBatch
    from .limits import Limits
    from .rules import StoredRule
    from .settings import Settings

HITS_SECONDS = 5
"""How often the hits of rules are written."""

_Read = TypeVar("_Read")

_logger = logging.getLogger("ramen_server")


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
        self._announced_for: float | None = None
        self._announced: admission.Headers = []
        self._rates = RateLimiter(limits.messages_per_second, limits.burst)
        self._unwritten_hits: Counter[int] = Counter()
        self._in_flight = 0
        self._stopping = False
        self._commits: GroupCommit | None = None
        self._bodies = Bodies(limits)
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
        self._bodies = Bodies(self._limits)
        writing = asyncio.create_task(self._write_hits_regularly())
        try:
            yield
        finally:
            self._stopping = True
            writing.cancel()
            await self._commits.close()
            self._bodies.close()
            await self._write_hits()

    # Messages

    async def _ingest(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            decision = await self._decide(scope, receive)
        except ClientLeft:
            self.metrics.left += 1
            return
        except asyncio.CancelledError:
            # A stop that has waited long enough. The message may be stored; sent again, it is a duplicate.
            decision = admission.STOPPING
        except Exception:
            _logger.exception("A request could not be handled.")
            decision = Decision(Kind.FAULT, "a fault of the collector; it is in its log")
        self.metrics.requests[decision.kind.value] += 1
        answer = admission.answer(decision, self._what_is_taken())
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    async def _decide(self, scope: Scope, receive: Receive) -> Decision:
        if self._stopping or self._commits is None:
            return admission.STOPPING
        if self._in_flight >= self._limits.max_requests:
            return admission.BUSY
        self._in_flight += 1
        reservation = Reservation(self._bodies.memory)
        try:
            token = admission.admit_sender(scope["method"], scope["headers"], self._settings.current())
            if isinstance(token, Decision):
                return token
            if _target(scope) == batches.PATH:
                return await self._decide_batch(token, scope, receive, reservation)
            return await self._decide_message(token, scope, receive, reservation)
        finally:
            reservation.release()
            self._in_flight -= 1

    async def _decide_message(
        self, token: Token, scope: Scope, receive: Receive, reservation: Reservation
    ) -> Decision:
        limits = self._limits
        admitted = admission.admit_message(token, _target(scope), scope["headers"], limits)
        if isinstance(admitted, Decision):
            return admitted
        payload = await self._read(
            partial(admission.read_payload, admitted.coding, limits.max_message_bytes),
            scope,
            receive,
            reservation,
            declared_bytes=admitted.declared_bytes,
            max_wire_bytes=limits.max_body_bytes,
            max_bytes=limits.max_message_bytes,
        )
        if isinstance(payload, Decision):
            return payload
        reservation.hold(len(payload))
        current = self._settings.current()
        judged = admission.judge(admitted.envelope, token, current, self._rates, self._monotonic())
        if judged is not None:
            decision, rule = judged
            self._count_hits([] if rule is None else [rule])
            return decision
        message = NewMessage(admitted.envelope, payload, token.name)
        committed = await self._commit(Submission((message,)))
        if isinstance(committed, Decision):
            return committed
        return admission.DUPLICATE if committed == (Outcome.DUPLICATE,) else admission.ACCEPTED

    async def _decide_batch(
        self, token: Token, scope: Scope, receive: Receive, reservation: Reservation
    ) -> Decision:
        limits = self._limits
        admitted = batches.admit(token, scope["headers"], limits)
        if isinstance(admitted, Decision):
            return admitted
        found = await self._read(
            partial(batches.read, admitted, limits),
            scope,
            receive,
            reservation,
            declared_bytes=admitted.declared_bytes,
            max_wire_bytes=batches.max_wire_bytes(limits),
            max_bytes=limits.batch_bytes,
            copies=batches.COPIES,
        )
        if isinstance(found, Decision):
            return found
        if not reservation.hold(found.memory_bytes):
            return admission.BUSY
        current = self._settings.current()
        decisions, hits = batches.judge(found, token, current, self._rates, self._monotonic())
        self._count_hits(hits)
        return await self._commit_batch(admitted.batch, found, decisions, token)

    async def _read(
        self,
        read: Callable[[bytes, int], _Read | Decision | LargerThanTried],
        scope: Scope,
        receive: Receive,
        reservation: Reservation,
        *,
        declared_bytes: int | None,
        max_wire_bytes: int,
        max_bytes: int,
        copies: int = 1,
    ) -> _Read | Decision:
        """Take the body off the wire, and have ``read`` make something of it: see ``bodies``."""
        body = await self._bodies.receive(
            receive, reservation, declared_bytes=declared_bytes, max_bytes=max_wire_bytes
        )
        if isinstance(body, Decision):
            return body
        self.metrics.body_bytes += len(body)
        found = await self._bodies.read(
            partial(read, body), len(body), reservation, max_bytes=max_bytes, copies=copies
        )
        if isinstance(found, Decision):
            return found
        # Again: the token may have been revoked while the body came.
        token = admission.find_token(scope["headers"], self._settings.current(), Purpose.SEND)
        return token if isinstance(token, Decision) else found

    async def _commit_batch(
        self, batch: BatchId, found: ReadBatch, decisions: list[Decision | None], token: Token
    ) -> Decision:
        messages = batches.to_store(found, decisions, token)
        # What the store is to remember, where it remembers batches whole: then each of these is stored, or none.
        stored = batches.settle(decisions, (Outcome.STORED,) * len(messages))
        keeps_answers = self._store.dedupe is Dedupe.BATCH
        answer = batches.results(stored) if keeps_answers else b""
        committed = await self._commit(Submission(messages, batch, answer))
        if isinstance(committed, Decision):
            return committed
        if isinstance(committed, LaneConflict):
            return Decision(
                Kind.LANE_CONFLICT,
                f"this lane's next number is {committed.expected}, not {batch.number}; open a new lane",
            )
        if isinstance(committed, Repeated):
            return Decision(Kind.REPEATED_BATCH, results=committed.answer)
        settled = stored if keeps_answers else batches.settle(decisions, committed)
        self.metrics.records.update(decision.kind.value for decision in settled)
        return Decision(Kind.BATCH, results=answer or batches.results(settled))

    async def _commit(self, submission: Submission) -> Committed | Decision:
        assert self._commits is not None  # noqa: S101 - _decide saw it
        try:
            return await self._commits.commit(submission)
        except StoreUnavailable as unavailable:
            return Decision(
                Kind.UNAVAILABLE, unavailable.reason, retry_after_seconds=unavailable.retry_after_seconds
            )

    def _what_is_taken(self) -> admission.Headers:
        """Give the headers that announce it; the offer changes with the time for which the store remembers."""
        window = self._store.window_seconds
        if not self._announced or window != self._announced_for:
            self._announced_for = window
            self._announced = [
                admission.ACCEPT_ENCODING,
                (b"ramen-batch", batches.offer(self._store, self._limits).header().encode()),
            ]
        return self._announced

    # Rules' hits

    def _count_hits(self, rules: Iterable[StoredRule]) -> None:
        for rule in rules:
            self.metrics.rule_hits[rule.rule_id] += 1
            self._unwritten_hits[rule.rule_id] += 1

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
            "ramen_memory_bytes": ("Memory reserved for bodies.", self._bodies.memory.used),
            "ramen_commits_waiting": (
                "Messages and batches that wait for a commit.",
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
