"""SIGKILL at one system call after the other: whatever was being done, the queue opens again and nothing acknowledged is missing.

``strace`` kills the process when it enters its n-th call of a kind. The runs are the same each time, so every n is another point.
"""

from __future__ import annotations

import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest
from queues import (
    activate,
    assert_sound,
    drain,
    make_1x_file,
    make_queue,
    push,
    query,
    settlement,
    start,
)

from infi.ramen_client.storage import Fate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

CALLS = ("pwrite64", "fdatasync", "fsync", "ftruncate", "unlink", "mkdir")


@pytest.fixture(
    params=[
        pytest.param(40, marks=pytest.mark.system, id="sample"),
        pytest.param(sys.maxsize, marks=[pytest.mark.soak, pytest.mark.timeout(3600)], id="long"),
    ]
)
def most_points(request: pytest.FixtureRequest, need_program: Callable[[str], None]) -> int:
    """Of one call in one run; more are thinned out evenly."""
    need_program("strace")
    points: int = request.param
    return points


MAKING = """
queue = make_queue(sys.argv[1], durable=True)
print(*push(queue, 2), sep="\\n", flush=True)
"""

WORK = """
from infi.ramen_client.storage._database import Kind

queue = make_queue(sys.argv[1], durable=True, max_bytes=60_000)
reader = activate(queue)
for round_number in range(4):
    for size in (100, 5000, 100, 9000, 30):
        print(*push(queue, 2, size=size), sep="\\n", flush=True)
    claimed = reader.claim(4, GIB)
    reader.settle([settlement(message, Fate.DEAD if round_number == 1 else Fate.ACCEPTED) for message in claimed[:2]])
    if claimed[2:]:
        reader.reject_unexplained(Settlement(claimed[2], Fate.DEAD, UNEXPLAINED), ORIGIN)
    queue.take_oldest()
    queue.database.checkpoint(Kind.NORMAL)
reader.claim(4, GIB)
queue.retry_dead_letters([letter.message.position for letter in queue.dead_letters()][:1])
reader.close()
print("settling starts")
settle_all(activate(queue))
queue.database.checkpoint(Kind.NORMAL)
"""

TAKE_OVER = """
queue = make_queue(sys.argv[1], durable=True)
print(*push(queue, 2), sep="\\n", flush=True)
drain(queue)
"""

AMONG_OTHERS = """
from infi.ramen_client.errors import DurabilityError

queue = make_queue(sys.argv[1], durable=True)
queue.database.writers_lock._waited_at = float("inf")  # as if others were at it all the time: the sync comes after the commit
print(*push(queue, 3), sep="\\n", flush=True)
queue.push(several := [make_message(size=3000) for _ in range(5)])
print(*[message.reqid for message in several], sep="\\n", flush=True)

really, failures = os.fdatasync, [OSError(5, "Input/output error")]
def fdatasync(descriptor):
    if failures:
        raise failures.pop()
    really(descriptor)
os.fdatasync = fdatasync
try:
    push(queue, reqid="in doubt")
except DurabilityError:
    pass
print(*push(queue, 3), sep="\\n", flush=True)
"""

SPACE = """
import infi.ramen_client.storage.active_reader as module
module._SPARE_PAGES = 10
queue = make_queue(sys.argv[1])
queue.push([make_message(size=10_000) for _ in range(60)])
reader = activate(queue)
settle_all(reader)
while reader.tidy():
    pass
reader.close()
"""


BATCHES = """
from infi.ramen_client.storage._database import Kind

def say(what, batch):
    print(what, batch.lane, batch.number, batch.digest, flush=True)

queue = make_queue(sys.argv[1], durable=True)
reader = activate(queue)
for round_number in range(4):
    print(*push(queue, 5), sep="\\n", flush=True)
    ahead = reader.look_ahead(5, GIB).messages
    leased = reader.lease(ahead[3:])
    digest = ",".join(message.reqid for message in ahead[:3])
    batch = reader.batches.freeze(ahead[:3], lane=f"lane{round_number % 2}", origin=ORIGIN, digest=digest)
    assert len(batch.members) == 3
    say("frozen", batch)
    reader.settle([settlement(message, Fate.ACCEPTED) for message in leased[:1]])
    reader.release(leased[1:])
    fate = Fate.DEAD if round_number == 1 else Fate.ACCEPTED
    if round_number == 2:
        reader.batches.dissolve(batch, maybe_twice=True, end_lane=True)
    else:
        reader.settle([settlement(message, fate) for message in batch.members[:2]], batch=batch)
    say("ended", batch)
    queue.database.checkpoint(Kind.NORMAL)
print(*push(queue, 2), sep="\\n", flush=True)
assert len(reader.lease(reader.look_ahead(2, GIB).messages)) == 2
reader.close()
"""


def calls_of(code: str, directory: Path, log: Path) -> dict[str, int]:
    """How many calls of each kind a whole run makes."""
    process = start(
        code,
        directory,
        before=["strace", "-f", "-o", str(log), "-e", f"trace={','.join(CALLS)}"],
    )
    _, complaint = process.communicate(timeout=100)
    assert process.returncode == 0, complaint
    lines = log.read_text().splitlines()
    return {call: sum(f" {call}(" in line for line in lines) for call in CALLS}


def crash_everywhere(
    tmp_path: Path,
    call: str,
    code: str,
    prepare: Callable[[Path], None],
    check: Callable[[Path, list[str]], None],
    most_points: int,
) -> None:
    whole = tmp_path / "whole"
    prepare(whole)
    total = calls_of(code, whole, tmp_path / "log")[call]
    assert total
    points = range(1, total + 1, max(1, -(-total // most_points)))
    for point in points:
        directory = tmp_path / str(point)
        prepare(directory)
        inject = f"inject={call}:signal=SIGKILL:when={point}"
        process = start(
            code,
            directory,
            before=["strace", "-f", "-o", os.devnull, "-e", f"trace={call}", "-e", inject],
        )
        said, _ = process.communicate(timeout=100)
        assert process.returncode != 0, f"{call} {point} was not reached"
        check(directory, said.split("\n")[:-1])
        shutil.rmtree(directory, ignore_errors=True)


def nothing(_: Path) -> None:
    """A run that begins with no queue."""


@pytest.mark.parametrize("call", CALLS)
def test_a_new_queue(tmp_path: Path, call: str, most_points: int) -> None:
    def check(directory: Path, acknowledged: list[str]) -> None:
        queue = make_queue(directory)
        assert query(queue.path, "PRAGMA auto_vacuum") == 2
        assert query(queue.path, "PRAGMA journal_mode") == "wal"
        assert query(queue.path, "SELECT count(*) FROM book") == 1
        more = push(queue, 2)
        assert_sound(queue)
        assert {*acknowledged, *more} <= set(drain(queue))
        assert_sound(queue)

    crash_everywhere(tmp_path, call, MAKING, nothing, check, most_points)


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "ftruncate"])
def test_pushes_claims_settlements_trims_and_checkpoints(tmp_path: Path, call: str, most_points: int) -> None:
    def check(directory: Path, said: list[str]) -> None:
        queue = make_queue(directory, max_bytes=60_000)
        assert_sound(queue)
        acknowledged = [line for line in said if line != "settling starts"]
        assert len(acknowledged) <= queue.books().pushed <= len(acknowledged) + 2
        pushed = query(queue.path, "SELECT coalesce(max(position), 0) FROM message")
        more = push(queue)
        assert query(queue.path, "SELECT max(position) FROM message") > pushed
        assert drain(queue)[-1:] == more
        assert_sound(queue)

    crash_everywhere(tmp_path, call, WORK, nothing, check, most_points)


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "ftruncate"])
def test_pushes_that_sync_after_the_commit_and_what_comes_after_a_sync_that_failed(
    tmp_path: Path, call: str, most_points: int
) -> None:
    def check(directory: Path, acknowledged: list[str]) -> None:
        queue = make_queue(directory, durable=True)
        assert_sound(queue)
        more = push(queue, 2)
        assert {*acknowledged, *more} <= set(drain(queue))
        assert_sound(queue)

    crash_everywhere(tmp_path, call, AMONG_OTHERS, nothing, check, most_points)


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync", "fsync", "ftruncate"])
def test_taking_over_a_1x_file(tmp_path: Path, call: str, most_points: int) -> None:
    def prepare(directory: Path) -> None:
        make_1x_file(directory / "imx_1099.db", 30)

    def check(directory: Path, acknowledged: list[str]) -> None:
        queue = make_queue(directory)
        assert_sound(queue)
        books = queue.books()
        assert 30 + len(acknowledged) <= books.pushed <= 32
        left = drain(queue)
        backlog = [int(reqid) for reqid in left if "-" not in reqid]
        assert backlog == list(range(31 - len(backlog), 31))
        assert len(left) + books.accepted == books.pushed
        assert_sound(queue)

    crash_everywhere(tmp_path, call, TAKE_OVER, prepare, check, most_points)


@pytest.mark.parametrize("call", ["pwrite64", "ftruncate"])
def test_giving_space_back(tmp_path: Path, call: str, most_points: int) -> None:
    def check(directory: Path, _: list[str]) -> None:
        queue = make_queue(directory)
        assert_sound(queue)
        push(queue)
        assert_sound(queue)

    crash_everywhere(tmp_path, call, SPACE, nothing, check, most_points)


@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
def test_batches_are_frozen_and_settled_and_messages_leased(
    tmp_path: Path, call: str, most_points: int
) -> None:
    def check(directory: Path, said: list[str]) -> None:
        acknowledged = [line for line in said if " " not in line]
        steps = [line.split() for line in said if " " in line]
        queue = make_queue(directory, durable=True)
        assert_sound(queue)
        reader = activate(queue)
        found = reader.batches.load(lambda members: ",".join(message.reqid for message in members))
        there = [[batch.lane, str(batch.number), batch.digest] for batch in found]
        assert there == frozen_on_disk(steps, there)
        for batch in found:
            reader.settle([settlement(message, Fate.ACCEPTED) for message in batch.members], batch=batch)
        reader.close()
        assert_sound(queue)
        drain(queue)
        assert_sound(queue)
        books = queue.books()
        assert books.accepted + books.dead == books.pushed
        assert len(acknowledged) <= books.pushed <= len(acknowledged) + 5

    crash_everywhere(tmp_path, call, BATCHES, nothing, check, most_points)


def frozen_on_disk(steps: list[list[str]], there: list[list[str]]) -> list[list[str]]:
    """What must lie frozen where these steps were heard of: the step that was under way is done, as ``there`` says, or not."""
    if steps and steps[-1][0] == "frozen":
        return there and [steps[-1][1:]]  # its end may have been committed
    numbers = {(lane, number) for _, lane, number, _ in steps}
    assert all((lane, number) not in numbers for lane, number, _ in there)
    return there[:1]  # the next one may have been frozen
