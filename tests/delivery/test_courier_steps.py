"""The courier on a real queue, with a transport that plays a script: what cannot be brought about over a socket."""

from __future__ import annotations

import json
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client._opening import open_queue
from infi.ramen_client.blacklist import StoredBlacklist
from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.delivery.courier import Courier
from infi.ramen_client.delivery.exchange import Answer, Request
from infi.ramen_client.delivery.failures import Failure, FailureKind
from infi.ramen_client.delivery.flight import Step
from infi.ramen_client.delivery.outage import OutageLog
from infi.ramen_client.delivery.run import Run, Until
from infi.ramen_client.delivery.stop import Stop
from infi.ramen_client.errors import AuthenticationError, DiskFull
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.storage import ActiveReader, Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ACCEPTED = Answer(202, {}, b'{"code": "ACCEPTED"}')
REFUSED = Failure(FailureKind.CONNECT, "nobody is there: check the host", connected=False)


def answer(status: int, code: str | None = None, **headers: str) -> Answer:
    return Answer(status, headers, b"" if code is None else json.dumps({"code": code}).encode())


class Script:
    """A transport: each wait plays the next act. An act gets the tag of the last request and returns what ``wait`` returns."""

    def __init__(self) -> None:
        self.acts: deque[Callable[[int], list[tuple[int, Any]]]] = deque()
        self.requests: list[Request] = []
        self.cancelled: list[int] = []
        self.waits: list[float] = []
        self.tags: list[int] = []

    def then(self, *outcomes: Answer | Failure) -> None:
        for outcome in outcomes:
            self.acts.append(lambda tag, outcome=outcome: [(tag, outcome)])

    def start(self, tag: int, request: Request) -> None:
        assert tag not in self.tags
        self.tags.append(tag)
        self.requests.append(request)

    def wait(self, timeout_seconds: float) -> list[tuple[int, Any]]:
        self.waits.append(timeout_seconds)
        act = self.acts.popleft() if self.acts else (lambda tag: [(tag, ACCEPTED)])
        return act(self.tags[-1])

    def cancel(self, tag: int) -> None:
        self.cancelled.append(tag)

    def wake(self) -> None:
        pass

    def reqids(self) -> list[str]:
        return [request.url.partition("reqid=")[2] for request in self.requests]


class Bench:
    def __init__(self, directory: Path) -> None:
        self.config = QueueReaderConfig(
            sender="imx",
            system_serial=1,
            system_version="1",
            queue_dir=str(directory),
            hostname="ramen.example",
            auth_token="x",
            durability="normal",
            retry_delay=30,
            max_in_flight=1,
        )
        self.writer = QueueWriter(self.config)
        self.queue = open_queue(self.config)
        self.blacklist = StoredBlacklist(self.config, self.queue)
        self.transport = Script()
        self.stop = Stop()
        self.now = 1000.0
        active = ActiveReader.activate(self.queue)
        assert active is not None
        self.active = active
        self.settled: list[int] = []
        self._settle = active.settle
        active.settle = self._count  # type: ignore[method-assign]
        self.failing: deque[BaseException] = deque()

    def _count(self, settlements: list[Settlement], **more: Any) -> None:
        if self.failing:
            raise self.failing.popleft()
        self._settle(settlements, **more)
        self.settled.append(len(settlements))

    def courier(self, *, hold: bool = False) -> Courier:
        return Courier(
            self.active,
            self.config,
            self.blacklist,
            self.transport,  # type: ignore[arg-type]
            OutageLog("imx_1"),
            stop=self.stop,
            hold=hold,
            chance=lambda: 0.5,
            monotonic=lambda: self.now,
        )

    def run(self) -> Run:
        return Run(self.active, partial(self.courier, hold=True), self.transport, self.config, self.stop)  # type: ignore[arg-type]

    def push(self, count: int) -> list[str]:
        return self.writer.push_many(("metrics", "x", "v1", {"n": n}) for n in range(count))

    def in_flight(self) -> int:
        from infi.ramen_client.storage._database import Kind

        with self.queue.database.connection(Kind.NORMAL) as connection:
            count: int = connection.execute("SELECT count(*) FROM flight").get
            return count


def one(courier: Courier) -> Step | None:
    """Send what may be sent, and wait for an outcome, as a run does."""
    courier.start()
    return courier.wait(60)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "queue")
    yield bench
    bench.active.close()
    assert bench.in_flight() == len(bench.active.unsettled)  # what has no outcome is still marked
    assert bench.queue.check() == []


def test_an_answer_to_another_request_is_never_taken_for_this_ones(bench: Bench) -> None:
    """A transport outlives a run, so it may still report what an interrupted run had started."""
    bench.push(1)
    bench.transport.acts.append(lambda tag: [(tag - 1, ACCEPTED), (tag + 1000, ACCEPTED)])
    bench.transport.then(answer(503))
    assert bench.courier().step() is Step.RETRY
    assert bench.queue.size() == 1


def test_tags_are_not_used_again_by_the_next_courier(bench: Bench) -> None:
    bench.push(3)
    for _ in range(3):
        assert bench.courier().step() is Step.ACCEPTED
    assert len(set(bench.transport.tags)) == 3


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interrupted_exchange_is_abandoned_and_its_message_sent_again(
    bench: Bench, interruption: type[BaseException]
) -> None:
    (reqid,) = bench.push(1)

    def interrupt(_tag: int) -> list[tuple[int, Any]]:
        raise interruption

    bench.transport.acts.append(interrupt)
    with pytest.raises(interruption):
        bench.courier().step()
    assert bench.transport.cancelled == bench.transport.tags
    bench.active.give_back()
    assert bench.courier().step() is Step.ACCEPTED
    assert bench.transport.reqids() == [reqid, reqid]
    assert bench.queue.books().accepted == 1


def test_a_stop_before_the_exchange_sends_nothing_and_keeps_the_message(bench: Bench) -> None:
    bench.push(1)
    bench.stop.set()
    assert bench.courier().step() is Step.RETRY
    assert bench.transport.waits == []  # the first byte leaves in a wait
    assert bench.transport.cancelled == bench.transport.tags
    assert bench.queue.size() == 1


def _stop_and_then(bench: Bench, *outcomes: Answer | None) -> None:
    """A stop comes during the first wait; the next ones report these."""

    def stop(_tag: int) -> list[tuple[int, Any]]:
        bench.stop.set()
        return []

    bench.transport.acts.append(stop)
    for outcome in outcomes:
        bench.transport.acts.append(lambda tag, outcome=outcome: [] if outcome is None else [(tag, outcome)])


def test_a_stop_during_the_exchange_abandons_it_after_a_moment(bench: Bench) -> None:
    bench.push(1)
    _stop_and_then(bench, None, None)
    assert bench.courier().step() is Step.RETRY
    assert bench.transport.cancelled == bench.transport.tags
    assert sum(bench.transport.waits[1:]) < 0.1
    assert bench.queue.size() == 1


@pytest.mark.parametrize("before", [[], [None]], ids=["at once", "after the wake-up"])
def test_an_answer_that_comes_with_the_stop_counts(bench: Bench, before: list[None]) -> None:
    bench.push(1)
    _stop_and_then(bench, *before, ACCEPTED)
    assert bench.courier().step() is Step.ACCEPTED
    assert bench.queue.size() == 0


def test_before_a_lone_stream_is_refused_it_is_looked_for_others_whatever_the_clock_says(
    bench: Bench,
) -> None:
    bench.config.max_in_flight = 2
    bench.writer.push("metrics", "fast", "v1", {})
    bench.writer.push_many(("metrics", "slow", "v1", {"n": n}) for n in range(300))
    bench.writer.push("metrics", "fast", "v1", {})
    courier = bench.courier()
    courier.start()
    assert courier.in_flight == 2
    tags = list(bench.transport.tags)
    bench.transport.acts.append(lambda _tag: [(tags[0], ACCEPTED)])
    courier.wait(60)
    courier.start()
    bench.transport.acts.append(lambda _tag: [(tags[1], answer(429, "TOO_MANY_REQUESTS"))])
    courier.wait(60)
    courier.start()
    assert courier.in_flight == 1
    assert "/imx.fast.v1/" in bench.transport.requests[-1].url
    courier.abandon()


# Holding


def test_a_backlog_is_settled_many_at_a_time(bench: Bench) -> None:
    bench.push(200)
    assert bench.run().go(Until.HELD_UP, raise_refused_token=True) == 200
    assert sum(bench.settled) == 200
    assert max(bench.settled) == 64
    assert len(bench.settled) <= 4


def test_one_step_is_settled_at_once(bench: Bench) -> None:
    bench.push(2)
    courier = bench.courier()
    courier.step()
    assert bench.settled == [1]
    assert bench.queue.size() == 1


def test_nothing_is_held_for_longer_than_a_moment(bench: Bench) -> None:
    bench.push(5)
    courier = bench.courier(hold=True)
    one(courier)
    assert bench.settled == []
    bench.now += 0.06
    one(courier)
    assert bench.settled == [2]
    one(courier)
    # The next server's answer takes its time: what is held is not kept waiting by it.
    bench.transport.acts.append(lambda _tag: [])
    assert one(courier) is None
    assert bench.settled == [2, 1]
    assert bench.transport.waits[-1] < 0.1
    courier.wait(60)
    assert bench.transport.waits[-1] == 60
    courier.abandon()
    assert bench.settled == [2, 1, 1]


@pytest.mark.parametrize(
    "outcome",
    [REFUSED, answer(503), answer(400, "BAD_REQUEST"), answer(400), answer(202, "DROPPED"), answer(403)],
    ids=["failure", "503", "explained", "unexplained", "dropped", "token"],
)
def test_what_is_held_is_settled_before_anything_else_is_acted_on(
    bench: Bench, outcome: Answer | Failure
) -> None:
    bench.push(3)
    bench.transport.then(ACCEPTED, outcome)
    courier = bench.courier(hold=True)
    one(courier)
    with suppress(AuthenticationError):
        one(courier)
    assert bench.queue.books().accepted == 1


def test_an_acceptance_that_is_held_counts_against_the_suspicion(bench: Bench) -> None:
    bench.push(10)
    bench.transport.then(*[answer(400)] * 4, ACCEPTED, *[answer(400)] * 4)
    assert bench.run().go(Until.HELD_UP, raise_refused_token=True) == 10
    books = bench.queue.books()
    assert (books.accepted, books.dead) == (2, 8)


def test_an_end_of_the_run_for_whatever_reason_settles_what_is_held(bench: Bench) -> None:
    bench.push(5)

    def interrupt(_tag: int) -> list[tuple[int, Any]]:
        raise KeyboardInterrupt

    bench.transport.then(ACCEPTED, ACCEPTED)
    bench.transport.acts.append(interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.run().go(Until.STOPPED, raise_refused_token=True)
    assert bench.settled == [2]
    assert bench.queue.size() == 3


# Faults of the disk and of our own


def _run_until_empty(bench: Bench) -> None:
    bench.config.retry_delay = 0.01
    assert bench.run().go(Until.DRAINED, raise_refused_token=True)


def test_what_could_not_be_settled_is_sent_again_under_its_reqid_and_nothing_stays_in_flight(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    pushed = bench.push(100)
    for _ in range(6):
        bench.failing.append(DiskFull("the disk is full. Free some space."))
    _run_until_empty(bench)
    assert bench.queue.size() == 0
    assert bench.queue.books().accepted == 100
    sent = bench.transport.reqids()
    assert sent[:64] == pushed[:64]
    # After the fault, one at a time until the disk takes it, then the rest in its order.
    again = len(sent) - 64 - 100
    assert again <= 5
    assert sent[64 : 64 + again] == [pushed[0]] * again
    assert sent[64 + again :] == pushed
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the reader cannot go on, and tries again: the disk is full. Free some space.",
        "the reader works again after: the disk is full. Free some space.",
    ]
    assert not any(record.exc_info for record in caplog.records)


def test_an_unexpected_error_is_logged_once_with_its_traceback_and_the_run_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    pushed = bench.push(3)

    def fail(_tag: int) -> list[tuple[int, Any]]:
        raise RuntimeError("this cannot be")

    bench.transport.then(ACCEPTED)
    bench.transport.acts.extend([fail] * 3)
    _run_until_empty(bench)
    assert bench.queue.books().accepted == 3
    assert bench.transport.reqids() == [pushed[0], *[pushed[1]] * 4, pushed[2]]
    first, second = caplog.records
    assert first.exc_info is not None
    assert "no message is lost" in first.getMessage()
    assert second.getMessage() == "the reader works again after: this cannot be"


def test_a_run_that_may_not_wait_raises_what_happened(bench: Bench) -> None:
    bench.push(1)
    bench.failing.append(DiskFull("full"))
    bench.failing.append(DiskFull("full"))
    with pytest.raises(DiskFull):
        bench.run().go(Until.HELD_UP, raise_refused_token=True)
    assert bench.queue.size() == 1


def test_the_pauses_after_faults_grow(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.push(1)
    pauses: list[float] = []
    monkeypatch.setattr(bench.stop, "wait", pauses.append)
    run = bench.run()
    monkeypatch.setattr(run._fault_backoff, "_random", lambda: 0.999)
    bench.failing.extend(DiskFull(f"full {n}") for n in range(16))
    assert run.go(Until.DRAINED, raise_refused_token=True) == 1
    assert [round(pause) for pause in pauses] == [1, 2, 4, 8, 16, 30, 30, 30][: len(pauses)]
    assert len(pauses) >= 6


# Pacing


def test_the_pauses_grow_while_it_fails_and_start_anew_when_all_has_been_well_for_a_while(
    bench: Bench,
) -> None:
    bench.push(4)
    courier = bench.courier()
    pauses = []
    for outcome in [REFUSED] * 7 + [ACCEPTED] * 2 + [answer(500)] * 2:
        bench.transport.then(outcome)
        courier.step()
        if outcome is not ACCEPTED:
            pauses.append(courier.pause_left())
        bench.now += 1000
    assert pauses == [0.5, 1, 2, 4, 8, 15, 15, 0.5, 1]


def test_retry_after_is_the_least_and_an_hour_the_most(bench: Bench) -> None:
    bench.push(1)
    for asked, least in (("7", 7), ("100000", 3600), ("Fri, 31 Dec 2999 23:59:59 GMT", 3600)):
        bench.transport.then(answer(503, **{"retry-after": asked}))
        courier = bench.courier()
        assert courier.step() is Step.RETRY
        assert least <= courier.pause_left() <= least + 30
        bench.active.give_back()


def test_a_wall_clock_that_was_set_back_holds_nobody_up_for_longer_than_an_hour(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infi.ramen_client.delivery import standing as module

    bench.push(1)
    bench.transport.then(answer(503, **{"retry-after": "600"}))
    bench.courier().step()
    wall = module.now_ms()
    monkeypatch.setattr(module, "now_ms", lambda: wall - 10**10)
    assert bench.courier().pause_left() == 3600
    monkeypatch.setattr(module, "now_ms", lambda: wall + 10**10)
    assert bench.courier().pause_left() == 0


def test_a_stream_whose_only_message_was_given_up_waits_no_more(bench: Bench) -> None:
    bench.config.max_in_flight = 2
    bench.config.max_attempts = 2
    courier = bench.courier()
    bench.writer.push("metrics", "refused", "v1", {})
    for _ in range(6):
        bench.writer.push("metrics", "taken", "v1", {})
        bench.now += 61
        courier.start()
        for tag in list(courier._flying):
            url = bench.transport.requests[bench.transport.tags.index(tag)].url
            outcome = answer(429, "TOO_MANY_REQUESTS") if ".refused." in url else ACCEPTED
            bench.transport.acts.append(lambda _tag, tag=tag, outcome=outcome: [(tag, outcome)])
            courier.wait(60)
    assert bench.queue.books().dead == 1
    assert bench.active.waiting_streams() == []


def test_after_five_unexplained_refusals_the_whole_backlog_still_goes_out_in_order(bench: Bench) -> None:
    pushed = bench.push(10)
    bench.transport.then(*[answer(400)] * 5)
    courier = bench.courier()
    while not courier.is_idle:
        one(courier)
        bench.now += 61
    assert bench.transport.reqids()[5:] == pushed
    assert bench.queue.books().accepted == 10
