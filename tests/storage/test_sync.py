"""Durable pushes that do not hold the writers' lock while the disk works, and syncs that fail."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest
from queues import (
    activate,
    assert_sound,
    drain,
    finish,
    make_message,
    make_queue,
    push,
    query,
    start,
    tell,
    wait_until,
)

from infi.ramen_client.errors import DurabilityError, QueueError
from infi.ramen_client.storage import _files, _mending, _sync
from infi.ramen_client.storage._database import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client.storage import Queue


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return make_queue(tmp_path, durable=True)


def meet_others(queue: Queue) -> None:
    """Let this process think that it had to wait for another one a moment ago."""
    queue.database.writers_lock._waited_at = float("inf")


class Disk:
    """Stands before ``os.fdatasync``: counts syncs, and fails those that it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.synced: list[str] = []
        self.failing = 0
        self.meanwhile: Callable[[], object] = lambda: None
        self._really = os.fdatasync
        monkeypatch.setattr(_sync.os, "fdatasync", self.sync)

    def sync(self, descriptor: int) -> None:
        self.synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        self.meanwhile()
        if self.failing:
            self.failing -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._really(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def turn_is_free(queue: Queue) -> bool:
    descriptor = os.open(queue.path.with_name(queue.path.name + ".writers"), os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def test_a_lone_writer_leaves_the_sync_to_sqlite(queue: Queue, disk: Disk) -> None:
    push(queue, 3)
    assert disk.synced == []
    assert query(queue.path, "SELECT count(*) FROM message") == 3


def test_among_others_each_push_is_synced_after_its_commit_and_without_the_turn(
    queue: Queue, disk: Disk
) -> None:
    seen = []
    disk.meanwhile = lambda: seen.append(
        (turn_is_free(queue), query(queue.path, "SELECT count(*) FROM message"))
    )
    for _ in range(3):
        meet_others(queue)
        push(queue)
    assert disk.synced == [f"{queue.path.name}-wal"] * 3
    assert seen == [(True, 1), (True, 2), (True, 3)]


def test_who_has_to_wait_for_the_turn_syncs_after_it(queue: Queue, disk: Disk, tmp_path: Path) -> None:
    code = """
with make_queue(sys.argv[1]).database.writers_lock.turn():
    print("mine", flush=True)
    sys.stdin.readline()
"""
    other = start(code, tmp_path)
    assert other.stdout is not None
    assert other.stdout.readline() == "mine\n"
    pusher = threading.Thread(target=push, args=(queue,))
    pusher.start()
    wait_until(lambda: queue.database.writers_lock.is_contended)
    tell(other)
    pusher.join()
    finish(other)
    assert len(disk.synced) == 1


def test_without_durability_nothing_is_synced(tmp_path: Path, disk: Disk) -> None:
    queue = make_queue(tmp_path)
    meet_others(queue)
    push(queue)
    assert disk.synced == []


def test_a_sync_that_fails_leaves_the_message_in_doubt(queue: Queue, disk: Disk) -> None:
    meet_others(queue)
    disk.failing = 1
    message = make_message(reqid="in-doubt")
    with pytest.raises(DurabilityError, match="did not confirm") as caught:
        queue.push([message])
    assert caught.value.reqid == "in-doubt"
    assert queue.size() == 1
    assert queue.database._sync.read().is_doubtful


def salts_of(wal: Path) -> bytes:
    """Another pair each time that the log begins anew."""
    return wal.read_bytes()[16:24]


def test_the_next_push_mends_what_a_failed_sync_left(queue: Queue, disk: Disk) -> None:
    meet_others(queue)
    push(queue, 50)
    disk.failing = 1
    with pytest.raises(DurabilityError):
        push(queue)
    wal = queue.path.with_name(queue.path.name + "-wal")
    before = salts_of(wal)
    push(queue)
    assert salts_of(wal) != before  # it was copied, cut, and began anew
    assert not queue.database._sync.read().is_doubtful
    assert queue.size() == 52
    assert_sound(queue)
    assert len(drain(queue)) == 52


def test_what_a_checkpoint_wrote_before_a_sync_of_the_database_failed_is_written_again(
    queue: Queue, tmp_path: Path
) -> None:
    """A checkpoint that could not copy the whole log has not synced what it copied, and SQLite would not copy it again."""
    push(queue, 100)
    former = tmp_path / "former"
    subprocess.run(["cp", queue.path, former], check=True)  # by a process of its own, which drops no locks
    somebody = apsw.Connection(str(queue.path))
    somebody.execute("BEGIN")
    assert somebody.execute("SELECT count(*) FROM message").get == 100
    push(queue, 20)
    queue.database.checkpoint(Kind.NORMAL)
    somebody.close()
    subprocess.run(["cp", former, queue.path], check=True)  # what a failed sync has given up
    queue.database._sync.note_failure()
    push(queue)
    queue.close()
    again = make_queue(tmp_path)
    assert_sound(again)
    assert len(drain(again)) == 121


def test_the_frames_that_a_failed_sync_gave_up_are_written_again_before_a_page_is_copied(
    queue: Queue, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cut while the log is copied leaves torn pages, which only frames that are on the platter can repair."""
    meet_others(queue)
    push(queue, 300)
    disk.failing = 1
    with pytest.raises(DurabilityError):
        push(queue)
    wal = queue.path.with_name(queue.path.name + "-wal")
    log = wal.read_bytes()
    frames = max(
        place for place in range(32, len(log), 24 + 4096) if log[place + 8 : place + 16] == log[16:24]
    )
    changed_at = queue.path.stat().st_mtime_ns
    again = bytearray()
    really = os.pwrite

    def pwrite(descriptor: int, content: bytes, place: int) -> int:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == wal:
            assert place == len(again)
            assert queue.path.stat().st_mtime_ns == changed_at
            content = content[:200_000]  # a system call may write less than it is told
            again.extend(content)
        return really(descriptor, content, place)

    monkeypatch.setattr(_mending.os, "pwrite", pwrite)
    push(queue)
    assert bytes(again) == log[: frames + 24 + 4096]
    assert queue.path.stat().st_mtime_ns != changed_at
    assert_sound(queue)


def test_nothing_is_stored_while_what_a_failed_sync_left_cannot_be_mended(queue: Queue, disk: Disk) -> None:
    meet_others(queue)
    disk.failing = 3
    with pytest.raises(DurabilityError):
        push(queue)
    for _ in range(2):
        with pytest.raises(QueueError) as caught:
            push(queue)
        assert not isinstance(caught.value, DurabilityError)
        assert queue.size() == 1
    push(queue)
    assert queue.size() == 2


def test_a_lone_writer_is_kept_from_committing_behind_a_failed_sync_too(queue: Queue, disk: Disk) -> None:
    meet_others(queue)
    disk.failing = 2
    with pytest.raises(DurabilityError):
        push(queue)
    queue.database.writers_lock._waited_at = float("-inf")
    with pytest.raises(QueueError, match="nothing was stored"):
        push(queue)
    assert queue.size() == 1


def test_a_commit_that_came_before_another_ones_failed_sync_fails_with_it(queue: Queue, disk: Disk) -> None:
    """The kernel tells each descriptor of a failure; what it tells a process, all others learn by the record."""
    meet_others(queue)
    disk.meanwhile = queue.database._sync.note_failure
    with pytest.raises(DurabilityError):
        push(queue)
    disk.meanwhile = lambda: None
    push(queue)
    assert queue.size() == 2


def test_a_failure_in_another_process_is_known_here(queue: Queue, disk: Disk, tmp_path: Path) -> None:
    push(queue)
    finish(start("make_queue(sys.argv[1]).database._sync.note_failure()", tmp_path))
    meet_others(queue)
    disk.failing = 1
    with pytest.raises(QueueError):  # it has to be mended first, and the disk still fails
        push(queue)
    assert queue.size() == 1
    push(queue)
    assert queue.size() == 2


def test_a_reader_that_checkpoints_mends_it_too(queue: Queue, disk: Disk) -> None:
    meet_others(queue)
    disk.failing = 1
    with pytest.raises(DurabilityError):
        push(queue)
    reader = activate(queue)
    reader._database.checkpoint(_kind_of_reader())
    reader.close()
    assert not queue.database._sync.read().is_doubtful


def _kind_of_reader():
    from infi.ramen_client.storage._database import Kind

    return Kind.READER


@pytest.mark.parametrize("content", [b"", b"torn", b"\xff" * 20, b"\x01" + b"\x00" * 19])
def test_a_record_that_makes_no_sense_counts_as_none_failed(queue: Queue, content: bytes) -> None:
    push(queue)
    queue.path.with_name(queue.path.name + ".sync").write_bytes(content)
    meet_others(queue)
    push(queue)
    assert not queue.database._sync.read().is_doubtful
    assert queue.size() == 2


def test_a_new_wal_gets_a_new_descriptor_and_its_name_is_synced(
    queue: Queue, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = []
    monkeypatch.setattr(_sync, "sync_directory", directories.append)
    meet_others(queue)
    push(queue, 1)
    push(queue, 1)
    assert directories == [queue.path.parent]
    first = queue.database._sync._wal_open
    wal = queue.path.with_name(queue.path.name + "-wal")
    copy = wal.with_name("copy")
    copy.write_bytes(wal.read_bytes())
    copy.rename(wal)
    queue.database._sync.confirm(0, synced=False)
    assert queue.database._sync._wal_open is not first
    assert directories == [queue.path.parent] * 2


def test_many_threads_may_sync_at_once(queue: Queue) -> None:
    meet_others(queue)
    threads = [threading.Thread(target=push, args=(queue, 20)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert queue.size() == 160
    assert_sound(queue)


def test_no_descriptor_is_left_over_a_fork_nor_after_the_queue(tmp_path: Path) -> None:
    def open_files() -> list[str]:
        paths = []
        for entry in Path("/proc/self/fd").iterdir():
            try:
                paths.append(str(entry.readlink()))
            except FileNotFoundError:
                continue
        return [path for path in paths if path.startswith(str(tmp_path))]

    queue = make_queue(tmp_path, durable=True)
    meet_others(queue)
    push(queue)
    read_end, write_end = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(write_end, b"%d" % len(open_files()))
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(read_end, 10) == b"0"
    os.close(read_end)
    os.close(write_end)
    push(queue)
    assert queue.size() == 2
    queue.close()
    del queue
    assert open_files() == []


def test_a_queue_is_ready_only_when_every_name_on_the_way_to_it_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that another program made, which was killed, or met a disk error, before it synced them."""
    directory = tmp_path / "made" / "queue"
    directory.mkdir(parents=True)
    failing = {tmp_path}
    synced = set()
    really = _files.sync_directory

    def sync(directory: Path) -> None:
        if directory in failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        synced.add(directory)
        really(directory)

    monkeypatch.setattr(_files, "sync_directory", sync)
    for _ in range(2):
        with pytest.raises(QueueError, match="Input/output error"):
            make_queue(directory)
    failing.clear()
    synced.clear()
    make_queue(directory)
    assert synced >= {directory, directory.parent, tmp_path}
    synced.clear()
    make_queue(directory)
    assert synced == set()
