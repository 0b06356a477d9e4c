"""A disk that is full to its last byte, and stays so: the queue is drained all the same, and all is as before when there is space.

Beside the queue a *hog* takes every byte that becomes free, as a log file that grows would.
"""

from __future__ import annotations

import os
import subprocess
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
from queues import GIB, activate, assert_sound, drain, finish, make_queue, push, settlement, start

from infi.ramen_client import QueueReader, QueueReaderConfig, QueueWriter
from infi.ramen_client.errors import DiskFull
from infi.ramen_client.storage import Fate
from infi.ramen_client.testing import RamenServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from infi.ramen_client.storage import Queue

pytestmark = pytest.mark.system

MIB = 1024 * 1024
ROW_BYTES = 100
"""What a message takes beside its payload, about."""
REFUSALS = 10
"""So many in a row, and nothing of the size goes in any more."""


def push_until_full(queue: Queue, size: int) -> list[str]:
    reqids: list[str] = []
    refused = 0
    while refused < REFUSALS:
        try:
            reqids += push(queue, size=size)
        except DiskFull:
            refused += 1
        else:
            refused = 0
    assert queue.size() == len(reqids)
    return reqids


@contextmanager
def hog(disk: Path) -> Iterator[None]:
    """Take every byte that is free, now and as long as it lasts."""
    enough = threading.Event()
    full = threading.Event()

    def take() -> None:
        with (disk / "hog").open("ab", buffering=0) as file:
            while not enough.is_set():
                for size in (4096, 256, 1):
                    with suppress(OSError):
                        while file.write(b"x" * size) == size:
                            pass
                full.set()
                enough.wait(0.0005)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        assert full.wait(30)
        yield
    finally:
        enough.set()
        thread.join()


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)


@pytest.mark.parametrize("size", [20, 400, 3000, 40_000, 300_000])
def test_a_full_disk_is_drained_while_others_take_every_byte_that_gets_free(
    small_disk: Path, size: int
) -> None:
    queue = make_queue(small_disk / "queue", durable=True)
    reqids = push_until_full(queue, size)
    assert len(reqids) * (size + ROW_BYTES) > MIB // 8
    with hog(small_disk):
        assert_sound(queue)
        assert drain(queue) == reqids
        assert_sound(queue)
        # What was freed in the file is filled again.
        more = push_until_full(queue, size)
        assert len(more) * (size + ROW_BYTES) > MIB // 8
        assert drain(queue) == more
    enlarge(small_disk)
    last = push(queue, 2000 if size < 1000 else 8, size=size)
    assert drain(queue) == last
    assert_sound(queue)


@pytest.mark.parametrize("size", [400, 40_000])
def test_what_the_server_refuses_meanwhile_becomes_a_dead_letter(small_disk: Path, size: int) -> None:
    queue = make_queue(small_disk / "queue", durable=True)
    reqids = push_until_full(queue, size)
    reader = activate(queue)
    with hog(small_disk):
        for _ in reqids:
            (message,) = reader.claim(1, GIB)
            reader.settle([settlement(message, Fate.DEAD)])
    reader.close()
    assert [letter.message.reqid for letter in queue.dead_letters(10_000)] == reqids
    assert_sound(queue)


def test_programs_that_start_on_a_full_disk_drain_it(small_disk: Path) -> None:
    reqids = push_until_full(make_queue(small_disk / "queue", durable=True), 400)
    said = finish(start("print(*drain(make_queue(sys.argv[1])), sep='\\n')", small_disk / "queue"))
    assert said.splitlines() == reqids
    assert_sound(make_queue(small_disk / "queue"))


def test_a_reader_at_work_and_a_writer_live_through_a_full_disk_without_being_built_anew(
    small_disk: Path,
) -> None:
    with RamenServer() as server:
        config = QueueReaderConfig(
            {
                "sender": "imx",
                "system_serial": 1099,
                "system_version": "3.0.0.1",
                "queue_dir": str(small_disk / "queue"),
                "hostname": server.hostname,
                "auth_token": server.token,
                "ssl": False,
                "retry_delay": 0.05,
            }
        )
        with QueueWriter(config) as writer, QueueReader(config) as reader:
            stored = refused = 0
            while refused < REFUSALS:
                try:
                    writer.push("metrics", "x", "v1", {"fill": os.urandom(400).hex()})
                    stored += 1
                except DiskFull:
                    refused += 1
            with hog(small_disk):
                thread = reader.start_thread()
                server.wait_for(stored, 60)
                assert writer.wait_sent(30)
                writer.push("metrics", "x", "v1", {})  # into what was freed
                server.wait_for(stored + 1)
            enlarge(small_disk)
            for _ in range(50):
                writer.push("metrics", "x", "v1", {"fill": os.urandom(10_000).hex()})
            server.wait_for(stored + 51, 60)
            assert writer.wait_sent(30)
            assert reader.books().difference() == 0
            reader.stop()
            thread.join(10)
        assert len({message.reqid for message in server.accepted}) == len(server.accepted) == stored + 51


KINDS = {
    "ext4": (32, "mkfs.ext4", ["-q", "-b4096", "-m0"]),
    "ext4 of small blocks": (32, "mkfs.ext4", ["-q", "-b1024", "-m0"]),
    "xfs": (320, "mkfs.xfs", ["-q"]),
}
"""Each with its size in MiB."""


@contextmanager
def disk_of(kind: str, tmp_path: Path, need_program: Callable[[str], None]) -> Iterator[Path]:
    """A file system of its own, of which all but a few MiB are taken."""
    size, program, options = KINDS[kind]
    need_program(program)
    image, disk = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(size * MIB)
    subprocess.run([program, *options, image], check=True, capture_output=True)
    disk.mkdir()
    subprocess.run(["mount", "-o", "loop", image, disk], check=True)
    try:
        (disk / "hog").touch()  # later there is no room even for a name
        with (disk / "ballast").open("wb") as file:
            found = os.statvfs(disk)
            os.posix_fallocate(file.fileno(), 0, found.f_bavail * found.f_frsize - 3 * MIB)
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_of_every_usual_kind_is_drained(
    kind: str, tmp_path: Path, need_program: Callable[[str], None]
) -> None:
    with disk_of(kind, tmp_path, need_program) as disk:
        queue = make_queue(disk / "queue", durable=True)
        reqids = push_until_full(queue, 2000)
        with hog(disk):
            assert drain(queue) == reqids
            assert_sound(queue)
        (disk / "ballast").unlink()
        reqids = push(queue, 500, size=10_000)
        assert drain(queue) == reqids
        assert_sound(queue)
        queue.close()


OPEN = """
from infi.ramen_client.errors import DiskFull
try:
    make_queue(sys.argv[1])
except DiskFull as error:
    print(error)
"""


def test_a_program_that_starts_on_a_full_disk_of_small_blocks_is_told_and_not_killed(
    tmp_path: Path, need_program: Callable[[str], None]
) -> None:
    with disk_of("ext4 of small blocks", tmp_path, need_program) as disk:
        code = "queue = make_queue(sys.argv[1])\nwhile True:\n    push(queue, size=2000)"
        *_, last = start(code, disk / "queue").communicate(timeout=60)[1].splitlines()
        assert "is full; nothing was stored" in last
        with hog(disk):
            assert "-shm: the disk" in finish(start(OPEN, disk / "queue"))
        (disk / "hog").unlink()
        (disk / "ballast").unlink()
        queue = make_queue(disk / "queue")
        assert len(drain(queue)) == queue.books().pushed > 100
        assert_sound(queue)
        queue.close()
