"""One active reader for a queue on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from queues import activate, finish, make_queue, push, run, settle_all, start

from infi.ramen_client.storage import ActiveReader

if TYPE_CHECKING:
    from pathlib import Path

    from infi.ramen_client.storage import Queue

TRY = "print(ActiveReader.activate(make_queue(sys.argv[1])) is not None)"
HOLD = "reader = activate(make_queue(sys.argv[1]))\nprint('active', flush=True)\nsys.stdin.readline()"


def test_a_second_reader_in_the_process_is_refused_and_does_not_take_the_lock_from_the_first(
    queue: Queue,
) -> None:
    reader = activate(queue)
    assert ActiveReader.activate(queue) is None
    other = make_queue(queue.path.parent)
    assert ActiveReader.activate(other) is None
    assert run(TRY, queue.path.parent).strip() == "False"
    reader.close()
    activate(other).close()
    assert run(TRY, queue.path.parent).strip() == "True"


def test_opening_the_queue_once_more_does_not_drop_the_lock(queue: Queue) -> None:
    reader = activate(queue)
    make_queue(queue.path.parent).close()
    assert run(TRY, queue.path.parent).strip() == "False"
    reader.close()


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    holder = start(HOLD, tmp_path)
    assert holder.stdout is not None
    holder.stdout.readline()
    queue = make_queue(tmp_path)
    assert ActiveReader.activate(queue) is None
    holder.kill()
    holder.communicate()
    activate(queue).close()


def test_leases_of_a_dead_reader_are_void(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    reqids = push(queue, 5)
    code = "activate(make_queue(sys.argv[1])).claim(3, GIB)\nos.kill(os.getpid(), 9)"
    process = start(code, tmp_path)
    process.communicate()
    assert process.returncode == -9
    reader = activate(queue)
    assert settle_all(reader) == reqids
    reader.close()


@pytest.mark.parametrize("fork", ["os.fork()", "ctypes.CDLL(None).fork()"])
def test_a_forked_child_does_not_hold_its_parents_lock(tmp_path: Path, fork: str) -> None:
    sleeping = f"import ctypes\nchild = {fork}\nif child == 0:\n    time.sleep(60)\n    os._exit(0)\nprint(child)\nprint"
    code = HOLD.replace("print", sleeping)
    holder = start(code, tmp_path)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    queue = make_queue(tmp_path)
    try:
        assert ActiveReader.activate(queue) is None
        holder.kill()
        holder.wait()
        activate(queue).close()
    finally:
        run("os.kill(int(sys.argv[1]), 9)", child)
        holder.communicate()


def test_a_child_that_forgets_its_parents_reader_leaves_the_parents_lock_alone(tmp_path: Path) -> None:
    code = """
queue = make_queue(sys.argv[1])
reader = activate(queue)
child = os.fork()
if child == 0:
    reader.close()
    assert ActiveReader.activate(queue) is None
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print("still", flush=True)
sys.stdin.readline()
"""
    holder = start(code, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "still\n"
    assert ActiveReader.activate(make_queue(tmp_path)) is None
    finish(holder)


def test_a_reader_that_did_nothing_writes_nothing(queue: Queue) -> None:
    push(queue)
    before = queue.path.with_name(queue.path.name + "-wal").read_bytes()
    reader = activate(queue)
    assert reader.waiting() == 1
    reader.close()
    assert queue.path.with_name(queue.path.name + "-wal").read_bytes() == before
