"""Disks that run full and disks that fail, under a living program.

The last test lets each ``fdatasync``, ``fsync``, ``pwrite64``, ``ftruncate`` and ``fallocate`` of a whole program (``disk_error_run``) fail in
turn, some of them for a while: as a disk that fails, is full, or whose quota is used up. Disks that are full for good are in
``test_storage_full_disk``. That what was acknowledged is on the platter, whatever sync failed before, is shown by ``test_power_cut_simulated``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from queues import assert_sound, drain, make_queue, push, start

from infi.ramen_client import QueueReader, QueueReaderConfig
from infi.ramen_client.errors import DiskFull, QueueError
from infi.ramen_client.testing import RamenServer

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.system
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


@pytest.mark.system
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


def calls_of_push(tmp_path: Path, call: str, number: int) -> range:
    """Which calls of a kind, counted from the first of the process, the ``number``-th push makes."""
    log = tmp_path / "log"
    before = ["strace", "-f", "-s", "9", "-o", str(log), "-e", f"trace={call},write"]
    process = start(PUSHER, tmp_path / "whole", "", before=before)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 0, complaint
    calls, ends = 0, [0]
    for line in log.read_text().splitlines():
        calls += f" {call}(" in line
        if 'write(1, "stored' in line:
            ends.append(calls)
    return range(ends[number - 1] + 1, ends[number] + 1)


@pytest.mark.system
@pytest.mark.parametrize("number", [2, 5, 20])
def test_a_push_whose_sync_fails_is_not_acknowledged_and_its_outcome_is_unknown(
    tmp_path: Path, number: int, need_program: Callable[[str], None]
) -> None:
    need_program("strace")
    when = calls_of_push(tmp_path, "fdatasync", number)[-1]
    *lines, (balance, *_) = faulty(tmp_path, f"fdatasync:error=EIO:when={when}")
    assert balance == "[]"
    assert len(reqids(lines, "unknown")) == 1
    queue = make_queue(tmp_path)
    assert_sound(queue)
    found = drain(queue)
    assert set(reqids(lines, "stored")) <= set(found) <= set(reqids(lines, "stored", "unknown"))


@pytest.mark.system
def test_a_push_whose_sync_failed_may_be_found_stored_by_the_next_program(
    tmp_path: Path, need_program: Callable[[str], None]
) -> None:
    """Why it is an error of its own: "nothing was stored" would be wrong. The commit is whole in the write-ahead log."""
    need_program("strace")
    when = calls_of_push(tmp_path, "fdatasync", 10)[-1]
    lines = faulty(tmp_path, f"fdatasync:error=EIO:when={when}", "unknown")
    assert lines[-1][0] == "unknown"
    queue = make_queue(tmp_path)
    assert drain(queue) == reqids(lines, "stored", "unknown")
    assert_sound(queue)


@pytest.mark.system
@pytest.mark.parametrize(
    ("error", "until", "outcome"),
    [
        pytest.param("EIO", 0, ["unknown"], id="EIO"),
        # With the log copied into the database the push finds room.
        pytest.param("ENOSPC", 0, [], id="ENOSPC once"),
        pytest.param("ENOSPC", 4, ["full"], id="ENOSPC"),
        pytest.param("EDQUOT", 4, ["full"], id="EDQUOT"),
        pytest.param("EFBIG", 4, ["full"], id="EFBIG"),
    ],
)
@pytest.mark.parametrize("number", [2, 20])
def test_a_push_whose_write_fails_stores_nothing_and_the_next_one_works(
    tmp_path: Path,
    error: str,
    until: int,
    outcome: list[str],
    number: int,
    need_program: Callable[[str], None],
) -> None:
    need_program("strace")
    for when in calls_of_push(tmp_path, "pwrite64", number):
        directory = tmp_path / str(when)
        *lines, (balance, *_) = faulty(directory, f"pwrite64:error={error}:when={when}..{when + until}")
        assert balance == "[]"
        assert sorted({word for word, _ in lines} - {"stored"}) == outcome, when
        queue = make_queue(directory)
        assert drain(queue) == reqids(lines, "stored")
        assert_sound(queue)


PROGRAM = Path(__file__).with_name("disk_error_run.py")
QUEUE_BYTES = 500_000
"""Less than the program pushes."""


def run_program(directory: Path, server: RamenServer, *strace: str) -> tuple[list[str], dict[str, object]]:
    """What it said, and the configuration."""
    fields = {
        "sender": "imx",
        "system_serial": 1099,
        "system_version": "3.0.0.1",
        "queue_dir": str(directory),
        "hostname": server.hostname,
        "auth_token": server.token,
        "ssl": False,
        "retry_delay": 0.01,
        "max_queue_size": QUEUE_BYTES,
    }
    done = subprocess.run(
        ["strace", "-f", *strace, sys.executable, PROGRAM, json.dumps(fields)],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), fields


def most_calls_of_a_thread(log: Path) -> int:
    """``strace`` counts each thread's calls by themselves."""
    calls = Counter(found[1] for found in re.finditer(r"^(\d+) +\w+\(", log.read_text(), re.MULTILINE))
    return max(calls.values(), default=0)


@pytest.mark.parametrize(
    ("call", "error", "times"),
    [
        ("fdatasync", "EIO", 1),
        ("fsync", "EIO", 1),
        ("pwrite64", "EIO", 1),
        ("ftruncate", "EIO", 1),
        ("pwrite64", "ENOSPC", 1),
        ("pwrite64", "ENOSPC", 6),
        ("pwrite64", "EDQUOT", 6),
        ("fallocate", "ENOSPC", 1),
    ],
)
@pytest.mark.parametrize(
    "most_points",
    [
        pytest.param(3, marks=pytest.mark.system, id="sample"),
        pytest.param(150, marks=[pytest.mark.soak, pytest.mark.timeout(3600)], id="long"),
    ],
)
def test_whatever_call_fails_the_program_goes_on_and_nothing_is_lost_or_doubled(
    tmp_path: Path, call: str, error: str, times: int, most_points: int, need_program: Callable[[str], None]
) -> None:
    need_program("strace")
    complaints = 0
    with RamenServer() as server:
        run_program(tmp_path / "whole", server, "-o", str(tmp_path / "log"), "-e", f"trace={call}")
    total = most_calls_of_a_thread(tmp_path / "log")
    assert total
    for point in range(1, total + 1, max(1, -(-total // most_points))):
        with RamenServer() as server:
            fault = f"inject={call}:error={error}:when={point}..{point + times - 1}"
            lines, fields = run_program(
                tmp_path / str(point), server, "-o", os.devnull, "-e", f"trace={call}", "-e", fault
            )
            delivered = Counter(message.reqid for message in server.accepted)
        said = {line[1:] for line in lines if line[0] in "?!"}
        stored = {line[1:] for line in lines if line[0] == "="}
        # A disk that is full leaves no doubt: nothing was stored.
        assert error == "EIO" or not any(line[0] == "?" for line in lines)
        complaints += len(said)
        assert lines[-1] == "check []", (call, point)
        with QueueReader(QueueReaderConfig(fields)) as reader:
            books = reader.books()
        assert (books.waiting, books.dead, books.difference()) == (0, 0, 0)
        assert stored >= said
        assert len(stored - delivered.keys()) <= books.trimmed
        assert stored >= delivered.keys()
        assert max(delivered.values()) == 1
        assert "last" in delivered
    print(total, "calls of one thread;", complaints, "pushes were told of a failure")
