"""Delivery by batches (protocol section 2), over real sockets, to both kinds of server."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client.queue_reader import QueueReader
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import (
    Accept,
    Drop,
    RamenServer,
    Refuse,
    Reset,
    Results,
    Status,
    StoreThenReset,
    Truncated,
)
from infi.ramen_protocol import BatchOffer, Dedupe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from infi.ramen_client.config import QueueReaderConfig

PATH = "/ramen/v2/batch"


@pytest.fixture(params=list(Dedupe), ids=lambda dedupe: dedupe.value)
def server(request: pytest.FixtureRequest, no_proxies: None) -> Iterator[RamenServer]:
    with RamenServer(offer=BatchOffer(PATH, 1000, 2**23, request.param)) as running:
        yield running


@pytest.fixture
def config(make_config: Callable[..., QueueReaderConfig]) -> QueueReaderConfig:
    return make_config(durability="normal", max_in_flight=8)


@pytest.fixture
def both(config: QueueReaderConfig) -> Iterator[tuple[QueueWriter, QueueReader]]:
    """A writer, and a reader that has found out about batches already."""
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        writer.push("metrics", "first", "v1", {})
        assert reader.run(blocking=False) == 1
        yield writer, reader


def push(writer: QueueWriter, *numbers: int, data_type: str = "x", **options: Any) -> list[str]:
    return [writer.push("metrics", data_type, "v1", {"n": number}, **options) for number in numbers]


def numbers(server: RamenServer, data_type: str = "x") -> list[int]:
    return [message.json()["n"] for message in server.accepted if message.envelope.data_type == data_type]


def drain(reader: QueueReader) -> None:
    assert reader.drain(60)
    assert reader._queue.check() == []


def test_a_client_upgrades_when_it_sees_the_offer_and_sends_what_is_there_as_one(
    server: RamenServer, both: tuple[QueueWriter, QueueReader]
) -> None:
    writer, reader = both
    push(writer, *range(500))
    drain(reader)
    assert [len(batch.messages) for batch in server.batches] == [500]
    assert numbers(server) == list(range(500))
    assert reader.books().accepted == 501
    assert reader.books().maybe_twice == 0


def test_what_was_discovered_is_known_after_a_restart(
    server: RamenServer, both: tuple[QueueWriter, QueueReader], config: QueueReaderConfig
) -> None:
    writer, _ = both
    push(writer, 1, 2, 3)
    with QueueReader(config) as later:
        drain(later)
    assert [len(batch.messages) for batch in server.batches] == [3]


def test_a_setting_forces_version_1(
    server: RamenServer, make_config: Callable[..., QueueReaderConfig]
) -> None:
    config = make_config(protocol="1", max_in_flight=8)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        push(writer, *range(20))
        drain(reader)
    assert server.batches == []
    assert numbers(server) == list(range(20))


def test_batches_respect_the_servers_limits(
    server: RamenServer, both: tuple[QueueWriter, QueueReader]
) -> None:
    writer, reader = both
    server.offer = BatchOffer(PATH, 7, 4000, server.offer.dedupe)
    server.max_batch_messages, server.max_batch_bytes = 7, 4000
    push(writer, 0)
    drain(reader)
    push(writer, *range(1, 40))
    writer.push("metrics", "x", "v1", {"n": 40, "pad": "x" * 3000})
    drain(reader)
    assert max(len(batch.messages) for batch in server.batches) <= 7
    assert numbers(server) == list(range(41))
    assert not server.refused


@pytest.mark.parametrize(
    "reply",
    [
        Status(500),
        Status(502, b"<html>bad gateway</html>"),
        Status(200, b'{"results": []}'),
        Status(200, b"welcome to the hotel"),
        Status(202, b'{"code": "ACCEPTED"}'),
        Reset(before_body=True),
        Reset(),
        StoreThenReset(),
        Truncated(),
        Results(surplus=-1),
        Results(surplus=1),
        Refuse("TOO_MANY_REQUESTS", headers=(("Retry-After", "0"),)),
        Refuse("UNAVAILABLE"),
    ],
    ids=repr,
)
def test_a_batch_whose_outcome_is_unknown_is_sent_again_as_it_is_and_stored_once(
    server: RamenServer, both: tuple[QueueWriter, QueueReader], reply: Any
) -> None:
    writer, reader = both
    server.answer_batches_with(reply, reply)
    push(writer, *range(5))
    reader.run(blocking=False)
    push(writer, *range(5, 8))  # must not join it
    drain(reader)
    whole = [batch for batch in server.batches if batch.messages[0].json() == {"n": 0}]
    assert len({(batch.batch, batch.records) for batch in whole}) <= 1
    assert numbers(server) == list(range(8))
    books = reader.books()
    assert (books.accepted, books.dead, books.maybe_twice) == (9, 0, 0)


def test_each_record_has_its_own_verdict(server: RamenServer, both: tuple[QueueWriter, QueueReader]) -> None:
    writer, reader = both
    server.answer_batches_with(
        Results({1: Refuse("BAD_REQUEST", "no such field"), 4: Drop({"data_type": "y"})})
    )
    push(writer, 0, 1, 2, 3)
    push(writer, 4, data_type="y")
    drain(reader)
    assert numbers(server) == [0, 2, 3]
    (letter,) = reader.dead_letters()
    assert (letter.death.code, letter.death.details) == ("BAD_REQUEST", "no such field")
    push(writer, 5, data_type="y")
    drain(reader)
    books = reader.books()
    assert (books.accepted, books.dropped, books.blacklisted, books.dead) == (4, 1, 1, 1)


def test_a_record_that_must_wait_holds_up_its_stream_alone(
    server: RamenServer, both: tuple[QueueWriter, QueueReader]
) -> None:
    writer, reader = both
    later = Refuse("TOO_MANY_REQUESTS", headers=(("Retry-After", "1"),))
    server.answer_batches_with(Results({0: later, 1: later}))
    push(writer, 0, 1)
    push(writer, 2, 3, data_type="y")
    reader.run(blocking=False)
    assert numbers(server, "y") == [2, 3]
    assert numbers(server) == []
    drain(reader)
    assert numbers(server) == [0, 1]
    assert reader.books().accepted == 5


def test_one_poison_message_among_a_thousand_is_found_at_logarithmic_cost(
    server: RamenServer, both: tuple[QueueWriter, QueueReader]
) -> None:
    writer, reader = both

    def refuse_poison(message: Any) -> Any:
        return (
            Status(400, b'{"code": "BAD_REQUEST", "details": "cannot read this"}')
            if poison(message)
            else Accept()
        )

    def poison(message: Any) -> bool:
        return bool(message.json().get("n") == 700)

    server.default = refuse_poison
    writer.push_many(("metrics", "x", "v1", {"n": number}) for number in range(1000))
    drain(reader)
    assert numbers(server) == [number for number in range(1000) if number != 700]
    (letter,) = reader.dead_letters()
    assert letter.death.status == 400
    assert len(server.batches) < 35


def test_a_batch_that_is_too_large_is_halved_and_the_limit_is_remembered(
    server: RamenServer, both: tuple[QueueWriter, QueueReader], config: QueueReaderConfig
) -> None:
    writer, reader = both
    server.max_batch_bytes = 20_000
    push(writer, *range(300))
    drain(reader)
    assert numbers(server) == list(range(300))
    refused = len(server.refused)
    assert 1 <= refused <= 4
    with QueueReader(config) as later:
        push(writer, *range(300, 600))
        drain(later)
    assert len(server.refused) == refused
    assert numbers(server) == list(range(600))


def test_a_proxy_that_finds_batches_too_large_gets_smaller_ones_and_costs_no_message_but_the_too_large_one(
    server: RamenServer, both: tuple[QueueWriter, QueueReader]
) -> None:
    """Its 413 is a page of its own."""
    writer, reader = both
    page = Status(413, b"<html>413 Request Entity Too Large</html>")

    def proxy(message: Any) -> Any:
        return page if len(message.payload) > 5000 else Accept()

    server.default = proxy
    push(writer, *range(50))
    writer.push("metrics", "x", "v1", {"n": 50, "pad": "x" * 6000})
    push(writer, *range(51, 60))
    drain(reader)
    assert numbers(server) == [number for number in range(60) if number != 50]
    (letter,) = reader.dead_letters()
    assert letter.death.status == 413


def test_a_path_that_vanishes_leads_back_to_version_1(
    server: RamenServer, both: tuple[QueueWriter, QueueReader]
) -> None:
    writer, reader = both
    server.batch_path = None
    push(writer, *range(5))
    drain(reader)
    assert numbers(server) == list(range(5))
    assert server.batches == []
    assert reader.books().maybe_twice == 0


def test_a_strangers_page_under_404_does_not_dissolve_a_batch_that_may_have_been_stored(
    server: RamenServer, both: tuple[QueueWriter, QueueReader]
) -> None:
    """What is back in the queue may be trimmed, and would be counted as lost although it arrived."""
    writer, reader = both
    server.answer_batches_with(StoreThenReset())
    push(writer, 0, 1)
    reader.run(blocking=False)
    server.default = Status(404, b"<html>no such page</html>")
    for _ in range(3):
        reader.run(blocking=False)
    assert reader._queue.oldest() is None  # all of it is held
    server.default = Accept()
    drain(reader)
    assert numbers(server) == [0, 1]
    assert reader.books().maybe_twice == 0


def test_a_lane_conflict_opens_a_new_lane_and_what_may_be_twice_is_counted(
    server: RamenServer, both: tuple[QueueWriter, QueueReader]
) -> None:
    writer, reader = both
    push(writer, 0)
    drain(reader)
    server.answer_batches_with(Refuse("LANE_CONFLICT"))
    push(writer, 1, 2)
    drain(reader)
    assert numbers(server) == [0, 1, 2]
    assert len({batch.batch.lane for batch in server.batches if batch.messages[0].json()["n"] <= 1}) == 2
    assert reader.books().maybe_twice == 2


def test_another_coding_is_tried_when_one_is_refused(
    server: RamenServer, both: tuple[QueueWriter, QueueReader]
) -> None:
    writer, reader = both
    server.accept_encoding = "zstd, gzip, identity"  # not quite true
    server.codings = frozenset({"identity"})
    push(writer, *range(3))
    drain(reader)
    assert numbers(server) == list(range(3))
    assert server.batches[-1].coding in (None, "identity")
    assert reader.books().dead == 0


def test_the_zstd_that_the_server_reads_makes_a_batch_small(
    server: RamenServer, both: tuple[QueueWriter, QueueReader]
) -> None:
    pytest.importorskip("backports.zstd")
    writer, reader = both
    server.accept_encoding = "gzip, zstd"
    push(writer, 0)
    drain(reader)
    push(writer, *range(500))
    drain(reader)
    batch = server.batches[-1]
    assert batch.coding == "zstd"
    assert len(batch.body) < len(batch.records) / 10


def test_with_a_server_that_knows_batches_only_a_reqid_of_the_callers_goes_by_itself(
    server: RamenServer, both: tuple[QueueWriter, QueueReader]
) -> None:
    writer, reader = both
    push(writer, 0, 1)
    push(writer, 2, reqid="mine")
    push(writer, 3, 4)
    drain(reader)
    assert numbers(server) == list(range(5))
    (mine,) = (message for message in server.accepted if message.reqid == "mine")
    assert (mine.batch is None) == (server.offer.dedupe is Dedupe.BATCH)


def test_streams_go_side_by_side_in_batches_of_their_own_when_there_is_much(
    server: RamenServer, both: tuple[QueueWriter, QueueReader]
) -> None:
    writer, reader = both
    server.offer = BatchOffer(PATH, 50, 2**20, server.offer.dedupe)
    push(writer, 0)
    drain(reader)
    writer.push_many(("metrics", f"t{number % 4}", "v1", {"n": number}) for number in range(400))
    drain(reader)
    for stream in range(4):
        assert numbers(server, f"t{stream}") == list(range(stream, 400, 4))
    assert len({batch.batch.lane for batch in server.batches}) > 1


def test_what_was_sent_by_itself_and_has_no_outcome_goes_by_itself_again_also_after_a_restart(
    server: RamenServer, config: QueueReaderConfig
) -> None:
    lost = []

    def reply(message: Any) -> Any:
        if message.envelope.data_type == "x" and not lost:
            lost.append(message)
            return StoreThenReset()
        return Accept()

    server.default = reply
    with QueueWriter(config) as writer:
        push(writer, 0)
        with QueueReader(config) as first:
            first.run(blocking=False)
        assert lost
        with QueueReader(config) as second:
            push(writer, 1, data_type="first")  # it tells of the offer
            server.answer_with(Status(503), Status(503))
            second.run(blocking=False)
        push(writer, 1, 2)
        with QueueReader(config) as third:
            drain(third)
            assert third.books().maybe_twice == 0
    assert numbers(server) == [0, 1, 2]
    assert len(server.duplicates) >= 1


KILLED = """
    import json, os, sys
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_reader import QueueReader
    from infi.ramen_client.storage import ActiveReader
    from infi.ramen_client.storage.batches import FrozenBatches
    from infi.ramen_client.delivery.transport import Transport

    moment = sys.argv[2]
    def dies(*args, **options):
        os.kill(os.getpid(), 9)
    def after(method):
        def wrapped(*args, **options):
            result = method(*args, **options)
            if result:
                dies()
            return result
        return wrapped

    match moment:
        case "before freezing": FrozenBatches.freeze = dies
        case "frozen": FrozenBatches.freeze = after(FrozenBatches.freeze)
        case "answered": Transport.wait = after(Transport.wait)
        case "acknowledged":
            settle = ActiveReader.settle
            def settle_and_die(*args, **options):
                settle(*args, **options)
                dies()
            ActiveReader.settle = settle_and_die
    QueueReader(QueueReaderConfig(json.loads(sys.argv[1]))).run(blocking=False)
"""


@pytest.mark.parametrize("moment", ["before freezing", "frozen", "answered", "acknowledged"])
def test_a_reader_that_is_killed_at_any_step_of_a_batchs_life_costs_nothing_and_stores_nothing_twice(
    server: RamenServer,
    both: tuple[QueueWriter, QueueReader],
    fields: dict[str, Any],
    start_python: Any,
    moment: str,
) -> None:
    import json

    writer, reader = both
    push(writer, *range(20))
    process = start_python(KILLED, json.dumps(fields | {"durability": "normal", "max_in_flight": 8}), moment)
    assert process.wait(30) == -signal.SIGKILL
    push(writer, *range(20, 25))
    drain(reader)
    assert numbers(server) == list(range(25))
    frozen = [batch for batch in server.batches if batch.messages[0].json() == {"n": 0}]
    assert len({(batch.batch, batch.records) for batch in frozen}) == 1
    assert reader.books().maybe_twice == 0


def test_a_queue_that_was_restored_from_an_older_copy_loses_nothing_and_says_what_may_be_twice(
    server: RamenServer, config: QueueReaderConfig, both: tuple[QueueWriter, QueueReader], tmp_path: Path
) -> None:
    import shutil
    from pathlib import Path as Somewhere

    writer, reader = both
    push(writer, 0)
    drain(reader)
    push(writer, 1, 2)
    writer.close()
    reader.close()
    directory = Somewhere(config.queue_dir)
    shutil.copytree(directory, tmp_path / "image")
    with QueueReader(config) as first:
        drain(first)
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "image", directory)
    with QueueWriter(config) as again, QueueReader(config) as second:
        push(again, 3)
        drain(second)
        twice = second.books().maybe_twice
    if server.offer.dedupe is Dedupe.MESSAGE:
        assert numbers(server) == [0, 1, 2, 3]
    else:
        assert sorted(set(numbers(server))) == [0, 1, 2, 3]
        assert twice >= 2
