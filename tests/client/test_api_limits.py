"""The limits as a program sets them: overflow, min_free_disk, max_message_age_seconds."""

from __future__ import annotations

import os
import shutil
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client import (
    MessageTooLarge,
    QueueError,
    QueueFull,
    QueueReader,
    QueueWriter,
    QueueWriterConfig,
    ValidationError,
)

if TYPE_CHECKING:
    from infi.ramen_client.testing import RamenServer

LIMIT = 100_000


def noise(size: int) -> bytes:
    """JSON that hardly compresses."""
    return b'"' + os.urandom(size // 2).hex().encode() + b'"'


def fill(writer: QueueWriter) -> list[str]:
    reqids: list[str] = []
    with suppress(QueueFull):
        while len(reqids) < 1000:
            reqids.append(writer.push("metrics", "x", "v1", noise(1000)))
    assert 20 < len(reqids) < 1000
    return reqids


def test_with_reject_push_and_push_many_raise_queue_full_until_something_is_delivered(
    server: RamenServer, make_config: Any
):
    config = make_config(overflow="reject", max_queue_size=LIMIT)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        reqids = fill(writer)
        with pytest.raises(QueueError, match="Push again when messages were delivered"):
            writer.push_many([("metrics", "x", "v1", noise(1000))] * 3)
        assert writer.queue_size() == len(reqids)
        for _ in range(10):
            assert reader.consume_one() == reader.ACCEPTED
        reqids += writer.push_many([("metrics", "x", "v1", noise(500))] * 3)
        reader.run(blocking=False)
        assert [message.reqid for message in server.accepted] == reqids
        assert writer.books().trimmed == 0


def test_a_program_may_wait_for_room(server: RamenServer, make_config: Any):
    config = make_config(overflow="reject", max_queue_size=LIMIT, max_in_flight=1)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        fill(writer)
        reader.start_thread()
        enough = threading.Event()
        timer = threading.Timer(30, enough.set)
        timer.start()
        while not enough.is_set():
            with suppress(QueueFull):
                writer.push("metrics", "last", "v1", noise(1000))
                break
            enough.wait(0.01)
        timer.cancel()
        assert writer.wait_sent(20)
        assert server.accepted[-1].envelope.data_type == "last"


def test_with_reject_a_message_that_can_never_fit_is_too_large_and_not_just_refused_now(make_config: Any):
    config = make_config(overflow="reject", max_queue_size=LIMIT)
    with QueueWriter(config) as writer:
        for _ in range(2):
            with pytest.raises(MessageTooLarge):
                writer.push("metrics", "x", "v1", noise(LIMIT + 1000))
            with suppress(QueueFull):
                writer.push("metrics", "x", "v1", noise(LIMIT - 100))
        assert writer.queue_size() == 1


@pytest.mark.parametrize("size", [9_000, 10_238])
def test_the_smallest_queue_takes_a_message_as_large_as_itself(make_config: Any, size: int):
    for overflow in ("drop_oldest", "reject"):
        config = make_config(overflow=overflow, max_queue_size=10 * 1024, sender=overflow)
        with QueueWriter(config) as writer:
            writer.push("metrics", "x", "v1", noise(size))
            assert writer.queue_size() == 1


def test_by_default_the_oldest_go_and_the_newest_stays(server: RamenServer, make_config: Any):
    config = make_config(max_queue_size=LIMIT)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        reqids = [writer.push("metrics", "x", "v1", noise(1000)) for _ in range(400)]
        books = writer.books()
        assert books.trimmed + books.waiting == 400
        assert 20 < books.waiting < 250
        reader.run(blocking=False)
        assert [message.reqid for message in server.accepted] == reqids[-books.waiting :]


def test_more_free_disk_wanted_than_there_is_keeps_the_file_from_growing(make_config: Any, queue_dir: Any):
    with QueueWriter(make_config()) as writer:
        writer.push_many([("metrics", "x", "v1", noise(1000))] * 300)
    wanted = shutil.disk_usage(queue_dir).free * 2
    with QueueWriter(make_config(min_free_disk=wanted)) as writer:
        for _ in range(100):
            writer.push("metrics", "x", "v1", noise(1000))
        books = writer.books()
        assert books.waiting < 320
        assert books.trimmed >= 80
    with (
        QueueWriter(make_config(min_free_disk=wanted, overflow="reject")) as writer,
        pytest.raises(QueueFull, match="min_free_disk"),
    ):
        writer.push("metrics", "x", "v1", noise(100_000))


def test_a_message_that_is_too_old_is_not_sent(server: RamenServer, make_config: Any, wait_until: Any):
    with QueueWriter(make_config()) as writer:
        writer.push("metrics", "old", "v1", {})
        with QueueReader(make_config(max_message_age_seconds=1)) as reader:
            server.stop()  # nothing gets through
            assert reader.consume_one() == reader.RETRY  # a first look at the clocks

            def is_gone() -> bool:
                writer.push("metrics", "new", "v1", {})
                reader.consume_one()
                return writer.books().expired >= 1

            wait_until(is_gone)
        assert writer.books().difference() == 0


def test_a_writer_takes_the_limits_and_leaves_the_age_to_the_reader(
    make_config: Any, monkeypatch: pytest.MonkeyPatch
):
    names = {"sender": "imx", "system_serial": 1, "system_version": "1"}
    with pytest.raises(ValidationError, match="no field 'max_message_age_seconds'"):
        QueueWriterConfig(names, max_message_age_seconds=1)
    environ = {
        "RAMEN_OVERFLOW": "reject",
        "RAMEN_MIN_FREE_DISK": "1048576",
        "RAMEN_MAX_MESSAGE_AGE_SECONDS": "3600",
    }
    config = QueueWriterConfig.load(environ=environ, **names)
    assert (config.overflow, config.min_free_disk) == ("reject", 1048576)
