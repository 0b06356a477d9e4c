"""``min_free_disk``: while the file system has less free, the queue's file does not grow."""

from __future__ import annotations

import logging
import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from queues import GIB, activate, assert_sound, drain, make_message, make_queue, push, query, settle_all

from infi.ramen_client.errors import QueueFull
from infi.ramen_client.storage import Overflow
from infi.ramen_client.storage._database import Kind
from infi.ramen_client.storage._filesystem import FreeSpace

if TYPE_CHECKING:
    from pathlib import Path

    from infi.ramen_client.storage import Queue

MIB = 1024 * 1024
LEAST = 100 * MIB
"""What the queues here are to leave free."""


class Disk:
    """What ``statvfs`` says of the file system."""

    def __init__(self) -> None:
        self.free = 10 * GIB
        self.looks = 0

    def look(self, path: object) -> Any:
        self.looks += 1
        return SimpleNamespace(f_bavail=self.free // 512, f_frsize=512)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr("infi.ramen_client.storage._filesystem.os.statvfs", disk.look)
    return disk


def small(directory: Path, **fields: Any) -> Queue:
    return make_queue(directory, min_free_disk=LEAST, **fields)


def file_bytes(queue: Queue) -> int:
    queue.database.checkpoint(Kind.NORMAL)
    return queue.path.stat().st_size


def test_nothing_is_trimmed_while_enough_is_free(tmp_path: Path, disk: Disk) -> None:
    queue = small(tmp_path)
    push(queue, 200, size=1000)
    assert queue.books().trimmed == 0


def test_the_file_does_not_grow_while_the_disk_is_low(tmp_path: Path, disk: Disk) -> None:
    queue = small(tmp_path)
    push(queue, 500, size=1000)
    disk.free = LEAST - 1
    queue = small(tmp_path)
    before = file_bytes(queue)
    sizes = [100, 1000, 20_000, 50, 150_000]
    for number in range(200):
        push(queue, 1, size=sizes[number % 5])
        assert query(queue.path, "PRAGMA page_count") * 4096 <= before
    assert file_bytes(queue) <= before
    assert queue.books().trimmed > 100
    assert queue.size() > 10
    assert_sound(queue)


def test_free_pages_of_the_file_are_filled_before_anything_is_thrown_away(tmp_path: Path, disk: Disk) -> None:
    queue = small(tmp_path)
    push(queue, 500, size=1000)
    drain(queue)
    disk.free = 0
    queue = small(tmp_path)
    push(queue, 100, size=1000)
    assert (queue.size(), queue.books().trimmed) == (100, 0)


def test_the_newest_message_is_stored_although_nothing_can_be_thrown_away_for_it(
    tmp_path: Path, disk: Disk
) -> None:
    disk.free = 0
    queue = small(tmp_path)
    for size in (100_000, 1000, 200_000):
        (reqid,) = push(queue, 1, size=size)
        assert query(queue.path, "SELECT reqid FROM message ORDER BY position DESC LIMIT 1") == reqid
    assert_sound(queue)


def test_messages_in_flight_stay(tmp_path: Path, disk: Disk) -> None:
    queue = small(tmp_path)
    reqids = push(queue, 20, size=1000)
    reader = activate(queue)
    claimed = reader.claim(20, GIB)
    disk.free = 0
    queue = small(tmp_path)
    push(queue, 20, size=5000)
    assert [message.reqid for message in claimed] == reqids
    assert query(queue.path, "SELECT count(*) FROM message JOIN flight USING (position)") == 20
    reader.close()
    assert_sound(queue)


def test_all_is_as_before_when_space_returns(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk.free = 0
    queue = small(tmp_path)
    push(queue, 50, size=1000)
    trimmed = queue.books().trimmed
    assert trimmed > 20
    disk.free = 10 * GIB
    later = time.monotonic() + 2
    monkeypatch.setattr(queue._disk, "_monotonic", lambda: later)
    push(queue, 50, size=1000)
    assert queue.books().trimmed == trimmed


def test_every_message_that_went_for_the_disk_is_said_once_under_its_own_reason(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.free = 0
    queue = small(tmp_path)
    with caplog.at_level(logging.WARNING, "ramen_client"):
        push(queue, 50, size=1000)
        queue.close()
    counts = [record.args[0] for record in caplog.records if isinstance(record.args, tuple)]
    assert sum(counts) == make_queue(tmp_path).books().trimmed
    assert len(counts) == 2
    assert "less than 104857600 bytes free (min_free_disk)" in caplog.text
    assert "max_queue_size" not in caplog.text


def test_with_reject_a_push_that_would_make_the_file_grow_raises_and_stores_nothing(
    tmp_path: Path, disk: Disk
) -> None:
    queue = small(tmp_path, overflow=Overflow.REJECT)
    push(queue, 100, size=1000)
    disk.free = 0
    queue = small(tmp_path, overflow=Overflow.REJECT)
    pages = query(queue.path, "PRAGMA page_count")
    with pytest.raises(QueueFull, match="less free than min_free_disk"):
        push(queue, 20, size=1000)
    assert query(queue.path, "PRAGMA page_count") == pages
    assert queue.books().trimmed == 0
    reader = activate(queue)
    settle_all(reader)
    reader.close()
    push(queue, 20, size=1000)  # into the pages that were freed
    assert queue.size() == 20
    assert_sound(queue)


def test_a_message_that_would_not_leave_enough_makes_room_first(tmp_path: Path, disk: Disk) -> None:
    disk.free = LEAST + 50_000
    queue = small(tmp_path, overflow=Overflow.REJECT)
    push(queue, 1, size=1000)
    with pytest.raises(QueueFull):
        push(queue, 1, size=100_000)


def test_the_file_system_is_looked_at_once_a_second_and_once_for_each_mib(tmp_path: Path, disk: Disk) -> None:
    now = 0.0
    space = FreeSpace(tmp_path, LEAST, lambda: now)
    for _ in range(1000):
        assert not space.is_low(100)
    assert disk.looks == 1
    for _ in range(100):
        space.is_low(100 * 1024)
    assert 9 <= disk.looks <= 12
    before = disk.looks
    for _ in range(10):
        now += 0.5
        space.is_low(1)
    assert disk.looks - before == 5


def test_without_min_free_disk_it_is_never_looked_at(tmp_path: Path, disk: Disk) -> None:
    disk.free = 0
    queue = make_queue(tmp_path)
    disk.looks = 0  # at opening, the size of its blocks matters
    push(queue, 20, size=1000)
    assert disk.looks == 0


def test_a_file_system_that_cannot_be_looked_at_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: object) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "statvfs", fail)
    queue = small(tmp_path)
    queue.push([make_message()])
    assert queue.size() == 1
