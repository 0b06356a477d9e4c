"""The next batch is made ready while one is under way; and what was made ready is sent only if it is what is to be sent."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client._opening import open_queue
from infi.ramen_client.blacklist import StoredBlacklist
from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.delivery import drafts
from infi.ramen_client.delivery.courier import Courier
from infi.ramen_client.delivery.exchange import Answer, Request
from infi.ramen_client.delivery.flight import Step
from infi.ramen_client.delivery.outage import OutageLog
from infi.ramen_client.delivery.stop import Stop
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.storage import ActiveReader, Matching, ReqidOrigin, StoredMessage, purge
from infi.ramen_protocol import (
    BATCH_CONTENT_TYPE,
    BatchId,
    Coding,
    Envelope,
    Rule,
    batch_digest,
    decode_body,
    decode_records,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MESSAGES = 5
ACCEPTED = b'{"code":"ACCEPTED","details":null}'
RESULT = b'{"status":202,"code":"ACCEPTED","details":null}'


class Server:
    """A transport to a server that takes batches of ``MESSAGES``; it answers in the first ``wait`` that may last."""

    def __init__(self) -> None:
        self.coding = "zstd"
        self.started: list[tuple[int, Request]] = []
        self.waits: list[float] = []
        self.batches: list[list[int]] = []
        self.codings: list[str] = []
        self.results: list[bytes] = []

    def start(self, tag: int, request: Request) -> None:
        self.started.append((tag, request))

    def wait(self, timeout_seconds: float) -> list[tuple[int, Any]]:
        self.waits.append(timeout_seconds)
        if timeout_seconds == 0.0:
            return []
        started, self.started = self.started, []
        return [(tag, self.answer(request)) for tag, request in started]

    def answer(self, request: Request) -> Answer:
        offer = f'path="/ramen/v2/batch", messages={MESSAGES}, bytes=1000000, dedupe="message"'
        said = {"ramen-batch": offer, "accept-encoding": self.coding}
        headers = dict(request.headers)
        if headers["Content-Type"] != BATCH_CONTENT_TYPE:
            return Answer(202, said, ACCEPTED)
        coding = headers.get("Content-Encoding")
        if coding != self.coding:
            return Answer(415, said, b'{"code":"UNSUPPORTED_MEDIA_TYPE","details":null}')
        plain = decode_body(request.body, coding, max_bytes=10**6)
        batch = BatchId.parse(headers["Ramen-Batch-Id"])
        assert batch is not None
        assert batch.names(plain)
        records = decode_records(plain, max_records=MESSAGES)
        self.batches.append([int(record.payload) for record in records])
        self.codings.append(coding)
        results = [self.results.pop(0) if self.results else RESULT for _ in records]
        return Answer(200, said, b'{"results":[%b]}' % b",".join(results))

    def cancel(self, tag: int) -> None:
        pass


class Bench:
    def __init__(self, directory: Path) -> None:
        config = QueueReaderConfig(
            sender="imx",
            system_serial=1,
            system_version="1",
            queue_dir=str(directory),
            hostname="ramen.example",
            auth_token="x",
            durability="normal",
        )
        self.writer = QueueWriter(config)
        self.queue = open_queue(config)
        self.server = Server()
        self.stop = Stop()
        active = ActiveReader.activate(self.queue)
        assert active is not None
        self.active = active
        self.config = config
        self.blacklist = StoredBlacklist(config, self.queue)
        self.courier = self.make_courier()
        self.push(-1)
        self.turn()  # version 2 is known from here on
        assert self.courier.handled == 1

    def make_courier(self) -> Courier:
        return Courier(
            self.active,
            self.config,
            self.blacklist,
            self.server,  # type: ignore[arg-type]
            OutageLog("imx_1"),
            stop=self.stop,
        )

    def push(self, *numbers: int, data_type: str = "x", version: str = "v1") -> None:
        self.writer.push_many(("metrics", data_type, version, number) for number in numbers)

    def start(self) -> None:
        """As a run: what is started leaves, and then more is looked for."""
        self.courier.start()
        assert self.courier.in_flight
        self.courier.start()

    def turn(self) -> None:
        self.start()
        self.courier.wait(1.0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "queue")
    yield bench
    bench.courier.abandon()
    bench.active.close()
    assert bench.queue.check() == []


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """How many records were made of each message, by its number."""
    made: Counter[int] = Counter()
    record_of = drafts.record_of

    def counting(message: Any, envelope: Any) -> bytes:
        made[int(zlib.decompress(message.data))] += 1
        return record_of(message, envelope)

    monkeypatch.setattr(drafts, "record_of", counting)
    return made


def test_the_next_batch_is_made_ready_while_one_is_under_way_and_only_once(
    bench: Bench, made: Counter[int]
) -> None:
    bench.push(*range(12))
    bench.turn()
    assert bench.server.batches == [[0, 1, 2, 3, 4]]
    assert set(made) == set(range(10))
    bench.turn()
    assert bench.server.batches[1:] == [[5, 6, 7, 8, 9]]
    bench.turn()
    assert bench.server.batches[2:] == [[10, 11]]
    assert made == Counter(range(12))


def test_what_may_yet_grow_is_not_made_ready(bench: Bench, made: Counter[int]) -> None:
    bench.push(*range(9))
    bench.turn()
    assert set(made) == set(range(5))
    bench.push(9)
    bench.turn()
    assert bench.server.batches == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert made == Counter(range(10))


def test_a_batch_leaves_before_the_work_on_the_next_begins(bench: Bench, made: Counter[int]) -> None:
    bench.push(*range(10))
    bench.courier.start()
    made_at_start = set(made)
    seen: list[set[int]] = []
    wait = bench.server.wait

    def watching(timeout_seconds: float) -> list[tuple[int, Any]]:
        seen.append(set(made))
        return wait(timeout_seconds)

    bench.server.wait = watching  # type: ignore[method-assign]
    bench.courier.wait(1.0)
    assert seen[0] == made_at_start == set(range(5))


def test_what_a_new_rule_drops_is_not_sent_though_it_was_made_ready(bench: Bench, made: Counter[int]) -> None:
    bench.push(*range(5))
    for number in range(5, 20):
        bench.push(number, version=f"v{number % 2}")
    bench.server.results = [RESULT] * 4 + [
        b'{"status":202,"code":"DROPPED","details":null,"rule":{"data_version":"v1"}}'
    ]
    bench.turn()
    assert made[9] == 1
    while bench.queue.size():
        bench.turn()
    assert [number for batch in bench.server.batches for number in batch] == [*range(5), *range(6, 20, 2)]
    assert bench.queue.books().blacklisted == 8


def test_what_a_rule_drops_is_not_made_ready(bench: Bench, made: Counter[int]) -> None:
    bench.blacklist.receive(Rule(data_version="v1"))
    for number in range(20):
        bench.push(number, version=f"v{number % 2}")
    while bench.queue.size():
        bench.turn()
    assert made == Counter(range(0, 20, 2))


def test_what_was_made_ready_in_a_coding_that_the_server_refuses_comes_in_another(bench: Bench) -> None:
    bench.push(*range(15))
    bench.turn()
    bench.server.coding = "gzip"
    while bench.queue.size():
        bench.turn()
    assert bench.server.batches == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14]]
    assert bench.server.codings == ["zstd", "gzip", "gzip"]


def test_what_is_purged_after_it_was_made_ready_is_not_sent(bench: Bench) -> None:

    bench.push(*range(15))
    bench.turn()
    before = bench.queue.size()
    assert before == 10
    purge(bench.queue.database, Matching(), dry_run=False)
    bench.push(*range(20, 25))
    while bench.queue.size():
        bench.turn()
    assert bench.server.batches == [[0, 1, 2, 3, 4], [20, 21, 22, 23, 24]]


def test_a_stop_during_the_work_ends_it_and_the_answer_that_is_due_still_counts(bench: Bench) -> None:
    bench.push(*range(10))
    bench.start()
    wait = bench.server.wait
    waits: list[float] = []

    def stopping(timeout_seconds: float) -> list[tuple[int, Any]]:
        waits.append(timeout_seconds)
        if len(waits) <= 2:
            bench.stop.set()
            return wait(0.0)
        return wait(timeout_seconds)

    bench.server.wait = stopping  # type: ignore[method-assign]
    assert bench.courier.wait(60.0) is None
    assert waits == [0.0, 0.0]
    assert bench.courier.abandon() is Step.ACCEPTED
    assert 0.0 < sum(waits) < 0.1
    assert bench.server.batches == [[0, 1, 2, 3, 4]]
    assert bench.queue.size() == 5


def test_another_streams_batch_leaves_a_draft_alone(bench: Bench, made: Counter[int]) -> None:
    bench.push(*range(10))
    bench.start()
    bench.courier._draft_next()
    while bench.courier._draft_next():
        pass
    bench.push(20, data_type="y")
    bench.courier.start()
    assert bench.courier.in_flight == 2
    bench.courier.wait(1.0)
    bench.turn()
    assert bench.server.batches == [[0, 1, 2, 3, 4], [20], [5, 6, 7, 8, 9]]
    assert made == Counter([*range(10), 20])


def test_a_draft_whose_messages_went_another_way_is_no_obstacle(bench: Bench, made: Counter[int]) -> None:
    bench.push(*range(10))
    bench.turn()
    assert set(made) == set(range(10))
    bench.blacklist.receive(Rule(data_version="v1"))
    while bench.queue.size():
        bench.courier.start()
        if bench.courier.in_flight:
            bench.courier.wait(1.0)
    bench.push(*range(20, 30), version="v2")
    bench.turn()
    assert set(made) == {*range(10), *range(20, 30)}
    bench.turn()
    assert made == Counter([*range(10), *range(20, 30)])


@pytest.mark.parametrize("coding", Coding)
@pytest.mark.parametrize("messages", [1, 3, 40])
def test_piece_by_piece_a_draft_becomes_what_a_server_reads(coding: Coding, messages: int) -> None:
    payloads = [random.Random(number).randbytes(10_000).hex().encode() for number in range(messages)]
    stored = [message(number, payload) for number, payload in enumerate(payloads)]
    draft = drafts.Draft(stored, coding, envelope_of)
    pieces = 0
    while not draft.is_complete:
        draft.go_on()
        pieces += 1
    records = b"".join(drafts.record_of(each, envelope_of) for each in stored)
    assert draft.body is not None
    label = None if coding is Coding.IDENTITY else coding.label
    assert decode_body(draft.body, label, max_bytes=10**7) == records
    assert draft.digest == batch_digest(records)
    assert draft.plain_bytes == len(records)
    assert pieces == -(-messages // 4)


def message(number: int, payload: bytes) -> StoredMessage:
    return StoredMessage(
        position=number,
        category="metrics",
        data_type="x",
        data_version="v1",
        system_version="1",
        reqid=f"r{number}",
        reqid_origin=ReqidOrigin.PUSH,
        pushed_at_ms=0,
        plain_length=len(payload),
        plain_crc32=zlib.crc32(payload),
        data=zlib.compress(payload),
    )


def envelope_of(stored: StoredMessage) -> Envelope:
    return Envelope("metrics", 1, "imx", stored.data_type, "v1", "1", stored.reqid)


def test_one_that_no_record_can_be_made_of_stops_none_of_its_neighbours(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_of = drafts.record_of

    def failing(message: Any, envelope: Any) -> bytes:
        if zlib.decompress(message.data) == b"7":
            raise ValueError("the payload is not what was pushed")
        return record_of(message, envelope)

    monkeypatch.setattr(drafts, "record_of", failing)
    bench.push(*range(15))
    while bench.queue.size():
        bench.turn()
    assert [number for batch in bench.server.batches for number in batch] == [
        number for number in range(15) if number != 7
    ]
    assert bench.queue.books().dead == 1


def test_all_batches_that_lie_frozen_are_started_at_once(bench: Bench) -> None:
    bench.push(*range(5), data_type="x")
    bench.push(*range(5, 10), data_type="y")
    bench.start()
    assert bench.courier.in_flight == 2
    bench.courier.abandon()
    bench.server.started.clear()
    bench.courier = bench.make_courier()
    bench.courier.start()
    assert bench.courier.in_flight == 2
    while bench.queue.size():
        bench.turn()
    assert bench.server.batches == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
