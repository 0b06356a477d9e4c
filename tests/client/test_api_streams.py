"""Streams: in order within a category and data_type, side by side across, one message a request (protocol section 1)."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client.admin import QueueAdmin, Selection
from infi.ramen_client.queue_reader import QueueReader
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import Accept, RamenServer, Received, Refuse, Reply, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client.config import QueueReaderConfig

    MakeConfig = Callable[..., QueueReaderConfig]

TOO_MANY = Refuse("TOO_MANY_REQUESTS", headers=(("Retry-After", "600"),))
BROKEN = Status(500, b'{"code": "INTERNAL_ERROR", "details": "this one breaks me"}')


def push(writer: QueueWriter, *numbers: int, data_type: str = "x") -> None:
    for number in numbers:
        writer.push("metrics", data_type, "v1", {"n": number})


def numbers(server: RamenServer, data_type: str = "x") -> list[int]:
    return [message.json()["n"] for message in server.accepted if message.envelope.data_type == data_type]


class LaterThanRefused:
    """A server's reply: these numbers of "x" are refused with 429, all else is taken once ``go`` is set.

    While they are under way a refusal is surely the stream's own affair.
    """

    def __init__(self, *refused: int) -> None:
        self._refused = refused
        self.go = threading.Event()

    def __call__(self, message: Received) -> Reply:
        if message.envelope.data_type == "x" and message.json()["n"] in self._refused:
            return TOO_MANY
        self.go.wait(10)
        return Accept()


class Together:
    """A server's replies that wait until so many messages are there at once."""

    def __init__(self, count: int) -> None:
        self._barrier = threading.Barrier(count, timeout=10)
        self.most = 0
        self._now = 0
        self._guard = threading.Lock()

    def __call__(self, _message: Received) -> Reply:
        with self._guard:
            self._now += 1
            self.most = max(self.most, self._now)
        self._barrier.wait()
        with self._guard:
            self._now -= 1
        return Accept()


def test_streams_are_under_way_side_by_side_up_to_max_in_flight(
    server: RamenServer, make_config: MakeConfig
) -> None:
    config = make_config(max_in_flight=4)
    server.default = together = Together(4)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        for stream in range(8):
            push(writer, 1, 2, data_type=f"t{stream}")
        assert reader.drain(30)
    assert together.most == 4
    for stream in range(8):
        assert numbers(server, f"t{stream}") == [1, 2]


def test_one_stream_is_never_twice_under_way(server: RamenServer, make_config: MakeConfig) -> None:
    config = make_config(max_in_flight=8)
    server.default = together = Together(1)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        push(writer, *range(50))
        assert reader.drain(30)
    assert together.most == 1
    assert numbers(server) == list(range(50))


def test_without_ordering_everything_goes_side_by_side(server: RamenServer, make_config: MakeConfig) -> None:
    config = make_config(max_in_flight=8, ordering="none")
    server.default = together = Together(8)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        push(writer, *range(64))
        assert reader.drain(30)
    assert together.most == 8
    assert sorted(numbers(server)) == list(range(64))


def test_a_width_of_one_is_the_exact_order_of_the_pushes(
    server: RamenServer, make_config: MakeConfig
) -> None:
    config = make_config(max_in_flight=1)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        for number in range(60):
            push(writer, number, data_type=f"t{number % 7}")
        assert reader.drain(30)
    assert [message.json()["n"] for message in server.accepted] == list(range(60))


@pytest.mark.parametrize("refusal", [TOO_MANY, BROKEN], ids=["429", "500"])
def test_a_stream_that_must_wait_holds_up_no_other(
    server: RamenServer, make_config: MakeConfig, refusal: Reply
) -> None:
    config = make_config(retry_delay=600, max_in_flight=8)
    server.default = lambda message: refusal if message.envelope.data_type == "slow" else Accept()
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        push(writer, *range(300), data_type="slow")
        push(writer, *range(300), data_type="fast")
        thread = reader.start_thread()
        server.wait_for(300)
        push(writer, *range(300, 400), data_type="fast")
        push(writer, 0, data_type="new")
        server.wait_for(401)
        reader.stop()
        thread.join()
        assert numbers(server, "fast") == list(range(400))
        assert numbers(server, "new") == [0]
        assert reader.books().waiting == 300
        assert reader._queue.check() == []


def test_a_waiting_stream_waits_over_a_restart_and_then_goes_on_in_order(
    server: RamenServer, make_config: MakeConfig
) -> None:
    config = make_config(max_in_flight=8)
    later = Refuse("TOO_MANY_REQUESTS", headers=(("Retry-After", "2"),))
    gate = threading.Event()
    server.default = lambda message: (
        Accept() if gate.is_set() or message.envelope.data_type != "slow" else later
    )
    with QueueWriter(config) as writer:
        push(writer, *range(100), data_type="slow")
        push(writer, *range(100), data_type="fast")
        with QueueReader(config) as reader:
            reader.run(blocking=False)
        attempts = len(server.received) - len(server.accepted)
        gate.set()
        with QueueReader(config) as reader:
            reader.run(blocking=False)
            assert numbers(server, "slow") == []
            assert len(server.received) - len(server.accepted) == attempts
            assert reader.drain(30)
    assert numbers(server, "slow") == list(range(100))
    assert numbers(server, "fast") == list(range(100))


def test_when_every_stream_is_refused_it_is_the_server_and_all_leave_it_alone(
    server: RamenServer, make_config: MakeConfig
) -> None:
    config = make_config(max_in_flight=2)
    server.default = TOO_MANY
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        for stream in range(50):
            push(writer, 1, data_type=f"t{stream}")
        assert reader.run(blocking=False) == 0
        assert reader.run(blocking=False) == 0
    assert len(server.received) <= 4


def test_a_head_that_never_gets_through_is_given_up_after_max_attempts(
    server: RamenServer, make_config: MakeConfig
) -> None:
    config = make_config(max_attempts=3, max_in_flight=8)

    def reply(message: Received) -> Reply:
        if message.json()["n"] != 13:
            return Accept()
        push(writer, 1, data_type="y")  # there is always something else, and that is taken
        return BROKEN

    server.default = reply
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        push(writer, 13, 14)
        push(writer, 1, data_type="y")
        assert reader.drain(30)
        (letter,) = reader.dead_letters()
        assert letter.message.data_type == "x"
        assert "3 times" in letter.death.reason
        assert "this one breaks me" in letter.death.details
    assert numbers(server) == [14]


def test_a_million_of_a_waiting_stream_in_front_are_passed_over_in_bounded_memory(
    server: RamenServer, make_config: MakeConfig
) -> None:
    """A sample of it: more than any line holds, and than a look reads."""
    config = make_config(durability="normal", retry_delay=600, max_in_flight=8)
    server.default = lambda message: TOO_MANY if message.envelope.data_type == "slow" else Accept()
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        push(writer, 0, data_type="fast")
        writer.push_many(("metrics", "slow", "v1", {"n": number}) for number in range(45_000))
        push(writer, 1, 2, data_type="fast")
        thread = reader.start_thread()
        server.wait_for(3)
        reader.stop()
        thread.join()
    assert numbers(server, "fast") == [0, 1, 2]


def test_a_dead_letter_that_is_brought_back_goes_before_what_waits_of_its_stream(
    server: RamenServer, make_config: MakeConfig
) -> None:
    config = make_config(max_in_flight=8)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        server.answer_with(Accept(), Refuse("BAD_REQUEST"))
        push(writer, 0, 1)
        reader.run(blocking=False)
        push(writer, 2, 3)
        assert reader.retry_dead_letters() == 1
        assert reader.drain(30)
    assert numbers(server) == [0, 1, 2, 3]


def test_bytes_a_second_are_capped(server: RamenServer, make_config: MakeConfig, monkeypatch: Any) -> None:
    """The time that passes is the pacing's own affair (``test_pacing``); here: that the setting reaches it."""
    from infi.ramen_client.delivery.pacing import Pacing

    seen = []
    monkeypatch.setattr(
        Pacing, "started", lambda self, _now, _size: seen.append(self.max_bytes_per_second) or self._round
    )
    config = make_config(max_bytes_per_second=1234)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        push(writer, 1)
        assert reader.run(blocking=False) == 1
    assert seen == [1234]


def test_a_head_that_never_gets_through_is_shown_and_an_operator_gets_it_out_of_the_way(
    server: RamenServer, make_config: MakeConfig, wait_until: Callable[..., None]
) -> None:
    config = make_config(retry_delay=600, max_in_flight=8)
    server.default = replies = LaterThanRefused(13)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        push(writer, 13, 14)
        push(writer, *range(5), data_type="y")
        reader.start_thread()
        with QueueAdmin(reader._queue.path) as admin:
            wait_until(lambda: admin.status(sample_seconds=0).waiting_streams)
            replies.go.set()
            wait_until(lambda: admin.status(sample_seconds=0).in_flight == 0)
            (stream,) = admin.status(sample_seconds=0).waiting_streams
            assert (stream.category, stream.data_type, stream.attempts) == ("metrics", "x", 1)
            assert "429" in stream.last_error
            position = admin.add_dead_letter("metrics", "x", reason="the server chokes on it")
            assert position is not None
            (letter,) = admin.dead_letters()
            assert (letter.position, letter.death.details) == (position, "the server chokes on it")
            assert admin.add_dead_letter("metrics", "nothing") is None
            assert admin.status(sample_seconds=0).waiting_streams == ()
        reader.stop()
        assert reader._queue.check() == []
        server.default = Accept()
        assert reader.drain(30)
    assert numbers(server) == [14]


def test_a_stream_whose_messages_were_purged_is_shown_for_as_long_as_the_server_put_it_off(
    server: RamenServer, make_config: MakeConfig, wait_until: Callable[..., None], monkeypatch: Any
) -> None:
    config = make_config(retry_delay=600, max_in_flight=8)
    server.default = replies = LaterThanRefused(1)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        push(writer, 1)
        push(writer, 2, data_type="y")
        reader.start_thread()
        with QueueAdmin(reader._queue.path) as admin:
            wait_until(lambda: admin.status(sample_seconds=0).waiting_streams)
            replies.go.set()
            wait_until(lambda: admin.status(sample_seconds=0).in_flight == 0)
            assert admin.purge(Selection(data_type="x")).messages == 1
            (stream,) = admin.status(sample_seconds=0).waiting_streams
            assert (stream.data_type, stream.attempts) == ("x", 0)
            later = time.time_ns() // 1_000_000 + 700_000
            monkeypatch.setattr("infi.ramen_client._status.now_ms", lambda: later)
            assert admin.status(sample_seconds=0).waiting_streams == ()
