"""The courier against a model of a server: any outcomes in any order, restarts and operators in between, exactly once.

The transport keeps several requests open and answers them when and how the machine says. Its server stores as the protocol says, of
either kind of ``dedupe``. At the end the server is well, the queue is drained, and everything is counted.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from infi.ramen_client._opening import open_queue
from infi.ramen_client.blacklist import StoredBlacklist
from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.delivery.courier import Courier
from infi.ramen_client.delivery.exchange import Answer, Request
from infi.ramen_client.delivery.failures import Failure, FailureKind
from infi.ramen_client.delivery.outage import OutageLog
from infi.ramen_client.delivery.stop import Stop
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.storage import ActiveReader, Matching
from infi.ramen_client.storage._database import Kind
from infi.ramen_client.storage.dead_letters import retry_dead
from infi.ramen_protocol import BATCH_CONTENT_TYPE, BatchId, decode_body, decode_records

if TYPE_CHECKING:
    from typing import Any

_STREAMS = ("a", "b", "c")
_CONNECT = Failure(FailureKind.CONNECT, "nobody is there", connected=False)
_LOST = Failure(FailureKind.TIMEOUT, "lost", connected=True)
_KINDS = (
    *["well"] * 6,
    "lost before",
    "lost after",
    "connect",
    "503",
    "429",
    "unexplained",
    "404",
    "413",
    "some wait",
    "void",
    "poison",
)


class ModelServer:
    """What a server stores, in order, and the open requests towards it."""

    def __init__(self, dedupe: str | None) -> None:
        self.dedupe = dedupe
        self.offers = True
        self.stored: list[str] = []
        self.keys: set[str] = set()
        self.lanes: dict[str, tuple[int, str]] = {}
        self.open: dict[int, Request] = {}
        self.due: list[tuple[int, Any]] = []
        self.touched: set[str] = set()  # streams whose order is not promised: something of them was refused
        self.stream_of: dict[str, str] = {}
        self.denied: set[str] = set()  # stored, and then answered as if by a stranger, which nobody can know

    def start(self, tag: int, request: Request) -> None:
        self.open[tag] = request

    def wait(self, timeout_seconds: float) -> list[tuple[int, Any]]:
        if timeout_seconds == 0.0:
            return []  # the courier goes on with other work first
        due, self.due = self.due, []
        return due

    def cancel(self, tag: int) -> None:
        self.open.pop(tag, None)

    def wake(self) -> None:
        pass

    def _headers(self) -> dict[str, str]:
        if self.dedupe is None or not self.offers:
            return {}
        return {"ramen-batch": f'path="/ramen/v2/batch", messages=7, bytes=100000, dedupe="{self.dedupe}"'}

    def _say(self, status: int, code: str | None, **more: Any) -> Answer:
        headers = self._headers() if code else {}
        return Answer(status, headers, json.dumps({"code": code, **more}).encode() if code else b"nonsense")

    def _keep(self, reqid: str, *, once: bool) -> None:
        if not (once and reqid in self.keys):
            self.stored.append(reqid)
        if once:
            self.keys.add(reqid)  # a store that keeps batches whole does not look into them

    def answer(self, index: int, kind: str) -> None:
        if not self.open:
            return
        tag = list(self.open)[index % len(self.open)]
        request = self.open.pop(tag)
        headers = dict(request.headers)
        is_batch = headers["Content-Type"] == BATCH_CONTENT_TYPE
        self.due.append(
            (tag, self._batch(request, headers, kind) if is_batch else self._single(request, kind))
        )

    def _untaken(self, kind: str) -> Answer | Failure | None:
        """What may come of any request, before the server has looked into it; None: nothing of the kind."""
        match kind:
            case "connect":
                return _CONNECT
            case "lost before":
                return _LOST
            case "503":
                return self._say(503, "UNAVAILABLE")
            case "429":
                return self._say(429, "TOO_MANY_REQUESTS")
            case "404":
                return self._say(404, None)
        return None

    def _single(self, request: Request, kind: str) -> Answer | Failure:
        reqid = unquote(request.url.partition("reqid=")[2])
        untaken = self._untaken({"some wait": "429", "void": "404"}.get(kind, kind))
        if untaken is not None:
            return untaken
        match kind:
            case "unexplained":
                self.touched.add(self.stream_of[reqid])
                self.denied |= {reqid}.intersection(self.stored)
                return self._say(400, None)
            case "413" | "poison" if reqid not in self.stored:
                self.touched.add(self.stream_of[reqid])
                return self._say(400, "BAD_REQUEST")
        self._keep(reqid, once=True)
        return _LOST if kind == "lost after" else self._say(202, "ACCEPTED")

    def _batch(  # noqa: PLR0911 - one for each kind
        self, request: Request, headers: dict[str, str], kind: str
    ) -> Answer | Failure:
        body = decode_body(request.body, headers.get("Content-Encoding"), max_bytes=10**7)
        batch_id = BatchId.parse(headers["Ramen-Batch-Id"])
        assert batch_id is not None
        reqids = [record.envelope.reqid for record in decode_records(body, max_records=1000)]
        untaken = self._untaken(kind)
        if untaken is not None:
            return untaken
        if kind == "unexplained":
            return self._say(400, None)
        if not self.offers:
            return self._say(404, "NOT_FOUND")
        lane = self.lanes.get(batch_id.lane)
        is_again = False
        if self.dedupe == "batch":
            is_again = lane == (batch_id.number, batch_id.digest)
            if not is_again and batch_id.number != (1 if lane is None else lane[0] + 1) and lane is not None:
                return self._say(409, "LANE_CONFLICT")
        if kind == "413" and not is_again:
            return self._say(413, None)
        results = []
        for number, reqid in enumerate(reqids):
            if kind == "some wait" and number % 2 and not is_again and reqid not in self.stored:
                results.append({"status": 429, "code": "TOO_MANY_REQUESTS", "details": None})
                self.touched.add(self.stream_of[reqid])
                continue
            if not is_again:
                self._keep(reqid, once=self.dedupe != "batch")
            results.append({"status": 202, "code": "ACCEPTED", "details": None})
        self.lanes[batch_id.lane] = (batch_id.number, batch_id.digest)
        if kind == "lost after":
            return _LOST
        if kind == "void":
            results.append(results[0])
        return Answer(200, self._headers(), json.dumps({"results": results}).encode())


class CourierMachine(RuleBasedStateMachine):
    """Any order of steps; ``teardown`` drains and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.now = 1000.0
        self.pushed: list[str] = []
        self.courier: Courier | None = None
        self.server: ModelServer

    @precondition(lambda self: not hasattr(self, "server"))
    @rule(
        dedupe=st.sampled_from(["message", "batch", None]),
        ordering=st.sampled_from(["stream", "stream", "none"]),
        width=st.sampled_from([1, 2, 8]),
    )
    def open(self, dedupe: str | None, ordering: str, width: int) -> None:
        self.server = ModelServer(dedupe)
        self.config = QueueReaderConfig(
            sender="imx", system_serial=1, system_version="1", queue_dir=str(Path(self.directory.name) / "q"),
            hostname="ramen.example", auth_token="x", durability="normal", retry_delay=30, max_in_flight=width,
            ordering=ordering,
        )  # fmt: skip
        self.writer = QueueWriter(self.config)
        self.queue = open_queue(self.config)
        self.blacklist = StoredBlacklist(self.config, self.queue)
        self.begin()

    def begin(self) -> None:
        active = ActiveReader.activate(self.queue)
        assert active is not None
        self.active = active
        self.stop = Stop()
        self.courier = Courier(
            active, self.config, self.blacklist, self.server, OutageLog("q"),  # type: ignore[arg-type]
            stop=self.stop, chance=lambda: 0.5, monotonic=lambda: self.now, resumes_pause=False,
        )  # fmt: skip

    opened = precondition(lambda self: hasattr(self, "server"))

    @opened
    @rule(stream=st.sampled_from(_STREAMS), count=st.integers(1, 12), own=st.booleans())
    def push(self, stream: str, count: int, own: bool) -> None:
        for _ in range(count):
            reqid = f"own-{len(self.pushed)}" if own else None
            reqid = self.writer.push("metrics", stream, "v1", {"n": 1}, reqid)
            self.server.stream_of[reqid] = stream
            self.pushed.append(reqid)

    @opened
    @rule(index=st.integers(0, 7), kind=st.sampled_from(_KINDS), seconds=st.sampled_from([0, 0, 0.01, 1, 61]))
    def turn(self, index: int, kind: str, seconds: float) -> None:
        assert self.courier is not None
        self.now += seconds
        self.courier.start()
        self.server.answer(index, kind)
        self.courier.wait(1)

    @opened
    @rule(offers=st.booleans())
    def offer_batches(self, offers: bool) -> None:
        self.server.offers = offers

    @opened
    @rule()
    def restart(self) -> None:
        assert self.courier is not None
        self.courier.abandon()
        self.active.close()
        self.begin()

    @opened
    @rule()
    def raise_dead(self) -> None:
        retry_dead(self.queue.database, Matching())

    def teardown(self) -> None:
        try:
            if hasattr(self, "server"):
                self.finish()
        finally:
            self.directory.cleanup()

    def finish(self) -> None:
        assert self.courier is not None
        for _ in range(600 + 12 * len(self.pushed)):
            self.courier.start()
            if self.courier.is_idle:
                break
            if self.server.open:
                self.server.answer(0, "well")
                self.courier.wait(1)
            else:
                pause = self.courier.pause_left()
                assert pause > 0, "a run would not stop asking"
                self.now += pause
        else:
            raise AssertionError(
                f"it never drains: {self.queue.size()} wait, lines {self.courier._lines._lines}"
            )
        self.courier.abandon()
        self.active.close()
        books = self.queue.books()
        assert self.queue.size() == 0
        assert self.queue.check() == []
        times = Counter(self.server.stored)
        with self.queue.database.connection(Kind.NORMAL) as connection:
            dead = {reqid for (reqid,) in connection.execute("SELECT reqid FROM dead_letter")}
            assert books.dead == len(dead)
            assert set(self.pushed) - set(times) == dead - set(times)
            assert dead & set(times) <= self.server.denied
            twice = sum(count - 1 for reqid, count in times.items() if reqid not in self.server.denied)
            assert twice <= books.maybe_twice
            assert books.accepted + books.dead == len(self.pushed)
            assert connection.execute("SELECT count(*) FROM flight").get == 0
            assert connection.execute("SELECT count(*) FROM batch").get == 0
        if self.config.ordering == "stream":
            for stream in set(_STREAMS) - self.server.touched:
                came = [
                    reqid
                    for reqid in dict.fromkeys(self.server.stored)
                    if self.server.stream_of[reqid] == stream
                ]
                assert came == [reqid for reqid in self.pushed if self.server.stream_of[reqid] == stream]


TestCourier = CourierMachine.TestCase
TestCourier.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("restarts", [False, True])
def test_what_may_lie_in_a_store_that_keeps_batches_whole_is_not_sent_otherwise_uncounted(
    restarts: bool,
) -> None:
    """Also when the server takes its offer back between the lost answer and the next attempt."""
    machine = CourierMachine()
    machine.open("batch", "stream", 1)
    machine.push("a", 10, own=False)
    machine.turn(0, "well", 0)
    machine.turn(0, "lost after", 61)
    assert len(machine.server.stored) == 8
    machine.server.offers = False
    if restarts:
        machine.turn(0, "well", 61)
        machine.restart()
    machine.teardown()


def test_a_dead_letter_that_is_raised_while_its_stream_waits_is_sent() -> None:
    """Its place is before what was seen of its stream, which is passed over."""
    machine = CourierMachine()
    machine.open(None, "stream", 2)
    machine.push("b", 2, own=False)
    machine.push("a", 1, own=False)
    machine.turn(0, "poison", 0)
    machine.turn(1, "503", 0)
    assert machine.queue.books().dead == 1
    machine.raise_dead()
    machine.teardown()


def test_a_full_line_behind_a_batch_that_must_wait_is_no_reason_to_hurry() -> None:
    """In the order of 1.x, with more waiting than a line holds: nothing can be looked for or sent before the batch's time."""
    machine = CourierMachine()
    machine.open("batch", "stream", 1)
    machine.push("a", 80, own=False)
    machine.turn(0, "well", 0)
    machine.turn(0, "lost before", 0)
    machine.restart()
    machine.server.offers = False
    for _ in range(2):  # the second time, nothing is left of the failure before
        machine.turn(0, "well", 61)
    assert machine.courier is not None
    machine.courier.start()
    assert machine.courier.in_flight == 0
    assert machine.courier.pause_left() == machine.config.retry_delay
    machine.teardown()


@pytest.mark.soak
@pytest.mark.timeout(3600)
class TestCourierLong(CourierMachine.TestCase):  # type: ignore[name-defined,misc]
    """The same for longer."""

    settings = settings(max_examples=2000, stateful_step_count=80, deadline=None)
