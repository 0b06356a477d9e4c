"""The space that is taken ahead; what a real full disk does is in ``tests/system/test_storage_full_disk.py``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from queues import (
    activate,
    assert_sound,
    drain,
    empty_wal,
    make_1x_file,
    make_queue,
    push,
    query,
    run,
    settle_all,
)

from infi.ramen_client.errors import DiskFull
from infi.ramen_client.storage import Fate
from infi.ramen_client.storage._database import Kind
from infi.ramen_client.storage._lease import PooledConnection, Transaction
from infi.ramen_client.storage._reserve import CHUNK_BYTES, LOG_BYTES, SPARE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from infi.ramen_client.storage import Queue


def wal_of(queue: Queue) -> Path:
    return queue.path.with_name(queue.path.name + "-wal")


def allocated(path: Path) -> int:
    """How much of a file no other program can take."""
    found = path.stat()
    return min(found.st_size, found.st_blocks * 512)


def database_bytes(queue: Queue) -> int:
    pages: int = query(queue.path, "PRAGMA page_count")
    return pages * 4096


def assert_reserve(queue: Queue) -> None:
    assert allocated(wal_of(queue)) >= LOG_BYTES
    assert allocated(queue.path) >= database_bytes(queue) + SPARE_BYTES


def test_a_new_queue_has_its_reserve_and_little_more(queue: Queue) -> None:
    assert_reserve(queue)
    assert allocated(wal_of(queue)) == LOG_BYTES
    assert queue.path.stat().st_size <= 2 * CHUNK_BYTES


@pytest.mark.parametrize("size", [20, 3000, 100_000])
def test_the_file_is_as_long_as_the_database_before_every_commit(queue: Queue, size: int) -> None:
    for _ in range(200_000 // max(size, 1000)):
        push(queue, 3, size=size)
        assert_reserve(queue)


def test_a_file_that_another_program_cuts_while_the_database_gets_longer_is_as_long_again_with_the_next_push(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the file and the commit: a checkpoint leaves nothing behind what is committed."""
    push(queue, 1)
    lengthen = Transaction._lengthen

    def look_and_be_too_late(self: Transaction, pooled: PooledConnection) -> bool:
        monkeypatch.undo()
        was_lengthened = lengthen(self, pooled)
        query(queue.path, "PRAGMA wal_checkpoint(PASSIVE)")
        return was_lengthened

    monkeypatch.setattr(Transaction, "_lengthen", look_and_be_too_late)
    push(queue, 1, size=40_000)
    assert queue.path.stat().st_size < database_bytes(queue) + SPARE_BYTES
    push(queue, 1)
    assert_reserve(queue)


def test_the_reserve_outlives_checkpoints_drains_and_the_giving_back_of_space(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infi.ramen_client.storage.active_reader._SPARE_PAGES", 10)
    push(queue, 500, size=3000)
    queue.database.checkpoint(Kind.NORMAL)
    assert_reserve(queue)
    reader = activate(queue)
    settle_all(reader)
    while reader.tidy():
        pass
    reader.close()
    assert_reserve(queue)
    assert queue.path.stat().st_size < 500_000
    empty_wal(queue)  # as a 1.x program or an operator's tool may do
    assert_reserve(make_queue(queue.path.parent))


def test_a_1x_file_gets_a_reserve_when_it_is_taken_over(tmp_path: Path) -> None:
    make_1x_file(tmp_path / "imx_1099.db", 300, data=os.urandom(2000))
    assert_reserve(make_queue(tmp_path))


def test_a_queue_that_finds_no_room_for_a_reserve_works_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    queue = make_queue(tmp_path)
    reqids = push(queue, 20)
    assert drain(queue) == reqids


LIMITED = """
import resource
from infi.ramen_client.errors import DiskFull

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
queue = make_queue(sys.argv[1], durable=True)
size, refused, reqids = int(sys.argv[3]), 0, []
while refused < 3:
    try:
        reqids += push(queue, size=size)
    except DiskFull as error:
        assert "nothing was stored" in str(error)
        refused += 1
assert queue.size() == len(reqids) > 10, len(reqids)
assert queue.check() == []
assert drain(queue) == reqids
reqids = push(queue, len(reqids) // 2, size=size)
assert drain(queue) == reqids
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
reqids = push(queue, 3 * len(reqids), size=size)
assert drain(queue) == reqids
assert queue.check() == []
"""


@pytest.mark.parametrize(("limit", "size"), [(400_000, 400), (600_000, 20_000), (1_500_000, 20_000)])
def test_a_limit_on_the_size_of_files_is_a_full_disk_and_ends_without_a_restart(
    tmp_path: Path, limit: int, size: int
) -> None:
    run(LIMITED, tmp_path, limit, size)


def test_a_dead_letter_needs_no_more_room_than_its_message_had(queue: Queue) -> None:
    push(queue, size=2_000_000)
    before = database_bytes(queue)
    reader = activate(queue)
    settle_all(reader, Fate.DEAD)
    reader.close()
    assert database_bytes(queue) <= before + SPARE_BYTES
    assert len(queue.dead_letters()) == 1
    assert_sound(queue)


def test_a_push_that_finds_no_room_in_the_file_stores_nothing(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(queue, 5)
    with monkeypatch.context() as patched:
        patched.setattr("infi.ramen_client.storage._lease.lengthen", lambda *_: False)
        with pytest.raises(DiskFull, match="nothing was stored"):
            push(queue, 1, size=500_000)
    assert queue.size() == 5
    assert_sound(queue)
    push(queue, 1, size=500_000)
