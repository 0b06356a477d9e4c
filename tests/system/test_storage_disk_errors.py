"""Disks that run full and disks that fail, under a living program."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from queues import assert_sound, drain, make_queue, push, start

from infi.ramen_client.errors import DiskFull, QueueError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.system


def test_a_full_disk_refuses_a_push_stores_nothing_and_recovers(small_disk: Path) -> None:
    queue = make_queue(small_disk / "queue", durable=True)
    reqids: list[str] = []
    full = ""
    while not full:
        try:
            reqids += push(queue, 1, size=3000)
        except DiskFull as error:
            full = str(error)
    assert "nothing was stored" in full
    assert len(reqids) > 50
    for size in (3000, 100_000, 10):
        try:
            reqids += push(queue, 1, size=size)
        except DiskFull:
            continue
    assert queue.size() == len(reqids)
    assert_sound(queue)
    subprocess.run(["mount", "-o", "remount,size=32m", small_disk], check=True)
    reqids += push(queue, 20, size=3000)
    assert drain(queue) == reqids
    assert_sound(queue)


def test_a_queue_cannot_be_made_on_a_full_disk_and_can_be_when_there_is_space(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    with pytest.raises(QueueError):
        make_queue(small_disk / "queue")
    ballast.unlink()
    queue = make_queue(small_disk / "queue")
    push(queue)
    assert_sound(queue)


PUSHER = """
from infi.ramen_client.errors import DiskFull, DurabilityError, QueueError
queue = make_queue(sys.argv[1], durable=True)
for number in range(30):
    message = make_message(size=200)
    try:
        queue.push((message,))
        said = "stored"
    except DurabilityError as error:
        assert error.reqid == message.reqid
        said = "unknown"
    except DiskFull as error:
        said = "full"
    except QueueError as error:
        said = "failed"
    print(said, message.reqid, flush=True)
    if said == sys.argv[2]:
        os.kill(os.getpid(), 9)
print(queue.check())
"""


def faulty(tmp_path: Path, fault: str, end_at: str = "") -> list[list[str]]:
    process = start(
        PUSHER, tmp_path, end_at, before=["strace", "-f", "-o", "/dev/null", "-e", f"inject={fault}"]
    )
    said, complaint = process.communicate(timeout=60)
    assert process.returncode in (0, -9), complaint
    return [line.split(maxsplit=1) for line in said.splitlines()]


def reqids(lines: list[list[str]], *words: str) -> list[str]:
    return [reqid for word, reqid in lines if word in words]


# The 15th is that of the directory, which SQLite repeats for each connection and whose result it does not look at.
@pytest.mark.parametrize("when", [14, 16, 20, 30])
def test_a_push_whose_sync_fails_is_not_acknowledged_and_its_outcome_is_unknown(
    tmp_path: Path, when: int, need_program: Callable[[str], None]
) -> None:
    need_program("strace")
    *lines, (balance, *_) = faulty(tmp_path, f"fdatasync:error=EIO:when={when}")
    assert balance == "[]"
    assert len(reqids(lines, "unknown")) == 1
    queue = make_queue(tmp_path)
    assert_sound(queue)
    found = drain(queue)
    assert set(reqids(lines, "stored")) <= set(found) <= set(reqids(lines, "stored", "unknown"))


def test_a_push_whose_sync_failed_may_be_found_stored_by_the_next_program(
    tmp_path: Path, need_program: Callable[[str], None]
) -> None:
    """Why it is an error of its own: "nothing was stored" would be wrong. The commit is whole in the write-ahead log."""
    need_program("strace")
    lines = faulty(tmp_path, "fdatasync:error=EIO:when=20", "unknown")
    assert lines[-1][0] == "unknown"
    queue = make_queue(tmp_path)
    assert drain(queue) == reqids(lines, "stored", "unknown")
    assert_sound(queue)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("when", [94, 95, 96, 97, 120])
def test_a_push_whose_write_fails_stores_nothing_and_the_next_one_works(
    tmp_path: Path, error: str, when: int, need_program: Callable[[str], None]
) -> None:
    need_program("strace")
    *lines, (balance, *_) = faulty(tmp_path, f"pwrite64:error={error}:when={when}")
    assert balance == "[]"
    assert [word for word, _ in lines if word != "stored"] == ["full" if error == "ENOSPC" else "unknown"]
    queue = make_queue(tmp_path)
    assert drain(queue) == reqids(lines, "stored")
    assert_sound(queue)
