"""Checkpoints, space given back, and the peace of an idle queue."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
from queues import (
    GIB,
    activate,
    assert_sound,
    drain,
    finish,
    make_1x_file,
    make_message,
    make_queue,
    open_1x,
    push,
    query,
    settle_all,
    start,
)

from infi.ramen_client.storage._database import Kind

if TYPE_CHECKING:
    import pytest

    from infi.ramen_client.storage import Queue
    from infi.ramen_client.storage._lease import PooledConnection


MIB = 1024 * 1024
PUSHER = "queue = make_queue(sys.argv[1])\nfor _ in range(int(sys.argv[2])):\n    push(queue, 1, size=3000)"


def wal_bytes(queue: Queue) -> int:
    return queue.path.with_name(queue.path.name + "-wal").stat().st_size


def test_the_wal_stays_bounded_under_steady_writers_without_a_reader(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    writers = [start(PUSHER, tmp_path, 5000) for _ in range(2)]
    most = 0
    while any(writer.poll() is None for writer in writers):
        most = max(most, wal_bytes(queue))
        queue.size()
    for writer in writers:
        finish(writer)
    assert MIB < most < 40 * MIB  # 10,000 pushes write 60 MiB and more; it is looked at only now and then
    assert queue.size() == 10_000
    assert_sound(queue)


def test_the_wal_stays_smaller_with_a_reader_at_work(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    writer = start(PUSHER, tmp_path, 5000)
    reader = activate(queue)
    most = 0
    while writer.poll() is None:
        settle_all(reader)
        most = max(most, wal_bytes(queue))
    finish(writer)
    settle_all(reader)
    reader.close()
    assert most < 20 * MIB
    assert queue.books().accepted == 5000
    assert_sound(queue)


def test_a_foreign_read_transaction_does_not_make_every_push_pay_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infi.ramen_client.storage.queue._WRITER_CHECKPOINT_FRAMES", 50)
    queue = make_queue(tmp_path)
    push(queue)
    other = open_1x(queue.path)
    other.execute("BEGIN")
    other.execute("SELECT count(*) FROM message").get  # noqa: B018 - an old snapshot is held from here
    tried = 0
    original = queue.database.checkpoint

    def counted(kind: Kind) -> None:
        nonlocal tried
        tried += 1
        original(kind)

    monkeypatch.setattr(queue.database, "checkpoint", counted)
    push(queue, 300)
    assert 1 <= tried <= 10
    other.execute("ROLLBACK")
    push(queue, 100)
    before = wal_bytes(queue)
    push(queue, 100)
    assert wal_bytes(queue) <= before  # it began anew
    other.close()


def test_a_checkpoint_that_fails_after_the_commit_is_logged_and_the_push_stands(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("infi.ramen_client.storage.queue._WRITER_CHECKPOINT_FRAMES", 0)
    database = queue.database
    take = database.take

    class FullDisk:
        def __getattr__(self, name: str) -> object:
            if name == "wal_checkpoint":
                raise apsw.FullError("database or disk is full")
            return getattr(self.connection, name)

        def __init__(self, connection: apsw.Connection) -> None:
            self.connection = connection

    def take_on_full_disk(kind: Kind) -> PooledConnection:
        pooled = take(kind)
        pooled.connection = FullDisk(pooled.connection)  # type: ignore[assignment]
        return pooled

    monkeypatch.setattr(database, "take", take_on_full_disk)
    with caplog.at_level(logging.WARNING):
        push(queue, 3)
    monkeypatch.undo()
    assert queue.size() == 3
    assert len(caplog.records) == 1
    assert "cannot be copied" in caplog.text


def test_space_goes_back_to_the_disk_after_a_drain_and_some_is_kept_for_the_next_messages(
    tmp_path: Path,
) -> None:
    queue = make_queue(tmp_path)
    queue.push([make_message(size=10_000) for _ in range(2000)])
    queue.database.checkpoint(Kind.NORMAL)
    assert queue.path.stat().st_size > 19 * MIB
    reader = activate(queue)
    settle_all(reader)
    steps = 0
    while reader.tidy():
        steps += 1
    assert 10 < steps < 50
    assert queue.path.stat().st_size < 2 * MIB
    assert wal_bytes(queue) <= 5 * MIB
    assert not reader.tidy()
    reader.close()
    assert_sound(queue)


def test_tidying_ends_where_the_file_cannot_give_space_back(tmp_path: Path) -> None:
    path = tmp_path / "imx_1099.db"
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    make_1x_file(path)  # into a file that has no auto-vacuum
    connection.close()
    assert query(path, "PRAGMA auto_vacuum") == 0
    queue = make_queue(tmp_path)
    queue.push([make_message(size=10_000) for _ in range(500)])
    reader = activate(queue)
    settle_all(reader)
    assert not reader.tidy()
    reader.close()
    assert_sound(queue)


def written(pid: int | str = "self") -> int:
    return int(Path(f"/proc/{pid}/io").read_text().split("wchar: ")[1].split()[0])


def test_an_idle_queue_is_not_written_to(queue: Queue) -> None:
    push(queue, 5)
    drain(queue)
    reader = activate(queue)
    while reader.tidy():
        pass
    files = sorted(path for path in queue.path.parent.iterdir() if path.suffix != ".db-shm")
    before = [(path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    bytes_before = written()
    mark = reader.change_mark()
    for _ in range(500):
        assert reader.claim(64, GIB) == []
        assert reader.change_mark() == mark
        assert reader.tidy() is False
        reader.check_in_place()
        assert queue.size() == 0
    assert written() == bytes_before
    assert [(path.stat().st_size, path.stat().st_mtime_ns) for path in files] == before
    reader.close()


def test_a_push_of_another_process_changes_the_mark_and_looking_does_not(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    reader = activate(queue)
    mark = reader.change_mark()
    assert reader.change_mark() == mark
    finish(start("push(make_queue(sys.argv[1]))", tmp_path))
    changed = reader.change_mark()
    assert changed != mark
    assert reader.change_mark() == changed
    push(queue)
    assert reader.change_mark() != changed
    reader.close()
