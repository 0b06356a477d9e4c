"""Waking the next writer in another process: it happens, and nothing that is done to the lock's file harms anybody."""

from __future__ import annotations

import errno
import os
import platform
from typing import TYPE_CHECKING

import pytest
from queues import assert_sound, finish, make_queue, push, run, start

from infi.ramen_client.storage import _wakeup
from infi.ramen_client.storage._wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

LOCK = "imx_1099.db.writers"
OPEN = """
from infi.ramen_client.storage._wakeup import Wakeup
path = sys.argv[1]
wakeup = Wakeup(os.open(path, os.O_RDWR))
"""


@pytest.fixture
def lock_file(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


def test_who_waits_in_another_process_is_woken(tmp_path: Path, lock_file: int) -> None:
    waiting = start(
        f"{OPEN}\nprint(flush=True)\nwhile not wakeup.wait(): pass\nprint('woken')", tmp_path / "lock"
    )
    assert waiting.stdout is not None
    waiting.stdout.readline()
    wakeup = Wakeup(lock_file)
    while waiting.poll() is None:
        wakeup.wake()
    assert finish(waiting) == "woken\n"


def test_who_is_not_woken_goes_on_after_a_moment(lock_file: int) -> None:
    wakeup = Wakeup(lock_file)
    assert [wakeup.wait() for _ in range(3)] == [False] * 3


def test_a_lock_file_that_is_cut_short_or_written_into_kills_nobody(tmp_path: Path, lock_file: int) -> None:
    """A program that looked into the mapping of a file without a byte would get SIGBUS."""
    said = run(
        f"""{OPEN}
os.truncate(path, 0)
wakeup.wake()
print(wakeup.wait())
os.pwrite(os.open(path, os.O_RDWR), b"something else", 0)
wakeup.wake()
print(wakeup.wait())
""",
        tmp_path / "lock",
    )
    assert said.split() == ["False", "False"]


def fail_to_write(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_to_map(*_: object) -> None:
    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))


@pytest.mark.parametrize(
    "take_away",
    [
        lambda patch: patch.setattr(os, "pwrite", fail_to_write),
        lambda patch: patch.setattr(_wakeup.mmap, "mmap", fail_to_map),
        lambda patch: patch.setattr(platform, "machine", lambda: "pdp11"),
    ],
    ids=["no room in the file", "no mapping", "another machine"],
)
def test_where_nobody_can_be_woken_it_only_waits(
    lock_file: int, monkeypatch: pytest.MonkeyPatch, take_away: Callable[[pytest.MonkeyPatch], None]
) -> None:
    take_away(monkeypatch)
    wakeup = Wakeup(lock_file)
    wakeup.wake()
    assert not wakeup.wait()


def test_writers_go_on_while_somebody_cuts_the_lock_file_short(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, durable=True)
    others = [
        start("queue = make_queue(sys.argv[1], durable=True); push(queue, 300)", tmp_path) for _ in range(2)
    ]
    while any(other.poll() is None for other in others):
        push(queue)
        os.truncate(tmp_path / LOCK, 0)
    for other in others:
        finish(other)
    assert queue.size() >= 600
    assert_sound(queue)


def test_no_descriptor_of_a_lock_that_was_waited_for_is_left(tmp_path: Path) -> None:
    said = run(
        """
import threading
def descriptors(): return len(os.listdir("/proc/self/fd"))
queue = make_queue(sys.argv[1])
push(queue)
lock = queue.database.writers_lock
lock.close()
before = descriptors()
other = start("queue = make_queue(sys.argv[1])\\nwith queue.database.writers_lock.turn(): print(flush=True); input()", sys.argv[1])
other.stdout.readline()
pushing = threading.Thread(target=push, args=(queue,))
pushing.start()
wait_until(lambda: lock._wakeup is not None)
tell(other)
pushing.join()
finish(other)
lock.close()
print(descriptors() - before)
""",
        tmp_path,
    )
    assert said == "0\n"
