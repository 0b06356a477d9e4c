"""A process that forks: parent and child both go on, and neither destroys what the other acknowledged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from queues import assert_sound, drain, make_queue, run

if TYPE_CHECKING:
    from pathlib import Path

CHILD_GOES_ON = """
def say(reqids):
    os.write(1, "".join(f"{reqid}\\n" for reqid in reqids).encode())  # at once: two processes share the pipe

queue = make_queue(sys.argv[1])
say(push(queue, 100))
child = os.fork()
if child == 0:
    parent = os.getppid()
    if sys.argv[2] == "parent exits first":
        while os.getppid() == parent:
            time.sleep(0.001)
    say(push(queue, 100))
    os._exit(0)
if sys.argv[2] == "both":
    say(push(queue, 100))
if sys.argv[2] != "parent exits first":
    assert os.waitpid(child, 0)[1] == 0
    say(push(queue, 1))
"""


@pytest.mark.parametrize(
    ("case", "number"), [("parent exits first", 200), ("child exits first", 201), ("both", 301)]
)
def test_parent_and_child_both_push_after_a_fork(tmp_path: Path, case: str, number: int) -> None:
    reqids = run(CHILD_GOES_ON, tmp_path, case).split()
    queue = make_queue(tmp_path)
    assert len(set(reqids)) == number
    assert sorted(drain(queue)) == sorted(reqids)
    assert_sound(queue)


def test_many_forks_under_load_lose_nothing(tmp_path: Path) -> None:
    """Prefork servers do this; a lock table that a child inherits would lose pushes here."""
    code = """
queue = make_queue(sys.argv[1])
for _ in range(8):
    push(queue, 3)
    if os.fork() == 0:
        push(queue, 20)
        os._exit(0)
push(queue, 20)
while True:
    try:
        assert os.wait()[1] == 0
    except ChildProcessError:
        break
"""
    run(code, tmp_path)
    queue = make_queue(tmp_path)
    assert queue.size() == 8 * 23 + 20
    assert_sound(queue)
    assert len(drain(queue)) == 204


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_workers_push_beside_their_parent(tmp_path: Path, method: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        """
import multiprocessing, sys
from queues import make_queue, push
queue = None

def work(directory):
    mine = queue or make_queue(directory)
    return push(mine, 20)

if __name__ == "__main__":
    queue = make_queue(sys.argv[2])
    reqids = push(queue, 20)
    with multiprocessing.get_context(sys.argv[1]).Pool(3) as pool:
        for pushed in pool.imap_unordered(work, [sys.argv[2]] * 6):
            reqids += pushed + push(queue, 5)
    print(*reqids)
"""
    )
    said = run(
        "import runpy; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')",
        script,
        method,
        tmp_path,
    )
    queue = make_queue(tmp_path)
    assert sorted(drain(queue)) == sorted(said.split())
    assert len(said.split()) == 170
    assert_sound(queue)


def test_a_fork_while_other_threads_push_waits_for_their_transactions_and_loses_nothing(
    tmp_path: Path,
) -> None:
    code = """
import threading
queue = make_queue(sys.argv[1])
end = threading.Event()
counts = []
def work():
    number = 0
    while not end.is_set():
        push(queue)
        number += 1
    counts.append(number)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        push(queue, 5)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
end.set()
for thread in threads:
    thread.join()
print(sum(counts) + 100)
"""
    expected = int(run(code, tmp_path))
    queue = make_queue(tmp_path)
    assert queue.size() == expected
    assert_sound(queue)


def test_a_thread_can_fork_while_another_waits_for_its_turn(tmp_path: Path) -> None:
    """The waiting one waits for this very process's other thread, which holds the turn and ends."""
    code = """
import threading
from infi.ramen_client.storage._database import Kind
queue = make_queue(sys.argv[1])
inside, go_on = threading.Event(), threading.Event()
def hold():
    with queue.database.transaction(Kind.NORMAL):
        inside.set()
        go_on.wait()
holder = threading.Thread(target=hold)
holder.start()
inside.wait()
waiter = threading.Thread(target=lambda: push(queue))
waiter.start()
wait_until(lambda: len(queue.database.work.threads) == 2)
threading.Timer(0.2, go_on.set).start()
child = os.fork()
if child == 0:
    push(queue, 2)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
holder.join()
waiter.join()
push(queue)
print(queue.size())
"""
    assert run(code, tmp_path).strip() == "4"


def test_two_threads_that_fork_at_once_do_not_wait_for_each_other(tmp_path: Path) -> None:
    code = """
import threading
queues_ = [make_queue(sys.argv[1], system_serial=serial) for serial in range(3)]
def work():
    for _ in range(10):
        child = os.fork()
        if child == 0:
            for queue in queues_:
                push(queue)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        for queue in queues_:
            push(queue)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print([queue.size() for queue in queues_])
"""
    assert run(code, tmp_path).strip() == "[60, 60, 60]"


UNSEEN = """
import ctypes
from infi.ramen_client.errors import QueueForked
queue = make_queue(sys.argv[1])
push(queue, 2)
reader = activate(queue) if sys.argv[2] == "reader" else None
if reader:
    reader.claim(1, GIB)
child = ctypes.CDLL(None).fork()
if child == 0:
    refused = 0
    import infi.ramen_client.storage._create as create
    create.open_connection = lambda path: os._exit(99)
    for use in (
        lambda: push(queue), queue.size, queue.take_oldest, queue.check, lambda: make_queue(sys.argv[1]),
        lambda: reader.claim(1, GIB) if reader else push(queue),
    ):
        try:
            use()
        except QueueForked as error:
            assert "os.fork()" in str(error)
            refused += 1
    os._exit(refused)
_, status = os.waitpid(child, 0)
push(queue, 2)
print(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.parametrize("who", ["writer", "reader"])
def test_a_fork_that_no_hook_saw_raises_and_writes_nothing(tmp_path: Path, who: str) -> None:
    assert run(UNSEEN, tmp_path, who).strip() == "6"
    queue = make_queue(tmp_path)
    assert queue.size() == 4
    assert_sound(queue)


def test_another_queue_may_be_opened_after_a_fork_that_no_hook_saw(tmp_path: Path) -> None:
    code = """
import ctypes
queue = make_queue(sys.argv[1])
push(queue)
child = ctypes.CDLL(None).fork()
if child == 0:
    push(make_queue(sys.argv[1], sender="other"), 2)
    if os.fork() == 0:
        push(make_queue(sys.argv[1], sender="other"), 2)
        os._exit(0)
    os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
assert os.waitpid(child, 0)[1] == 0
"""
    run(code, tmp_path)
    assert make_queue(tmp_path, sender="other").size() == 4
    assert make_queue(tmp_path).size() == 1


def test_a_queue_may_be_opened_first_after_a_fork_that_no_hook_saw(tmp_path: Path) -> None:
    code = """
import ctypes
child = ctypes.CDLL(None).fork()
if child == 0:
    push(make_queue(sys.argv[1]), 2)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    run(code, tmp_path)
    assert make_queue(tmp_path).size() == 2


def test_a_child_forked_in_the_middle_of_a_push_writes_nothing_and_the_parent_goes_on(tmp_path: Path) -> None:
    """As a signal handler would do it."""
    code = """
from infi.ramen_client.errors import QueueForked
from infi.ramen_client.storage import _statements as sql
from infi.ramen_client.storage._database import Kind
queue = make_queue(sys.argv[1])
push(queue)
message = make_message()
try:
    with queue.database.transaction(Kind.NORMAL) as connection:
        connection.execute(sql.INSERT_MESSAGE, (connection.execute(sql.HEAD).get + 1, *message.columns()))
        child = os.fork()
except QueueForked:
    try:
        push(queue)
    except QueueForked:
        sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
push(queue)
print(queue.size())
"""
    assert run(code, tmp_path).strip() == "3"
    assert_sound(make_queue(tmp_path))


def test_a_child_has_no_descriptor_of_the_queue_that_its_parent_held(tmp_path: Path) -> None:
    code = """
queue = make_queue(sys.argv[1])
push(queue, 2)
reader = activate(queue)
reader.claim(1, GIB)
if os.fork() == 0:
    links = [os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{number}")]
    print([link for link in links if link.startswith(sys.argv[1])], flush=True)
    os._exit(0)
os.wait()
"""
    assert run(code, tmp_path).strip() == "[]"


def test_a_program_may_end_with_queues_open_and_a_reader_thread_at_work(tmp_path: Path) -> None:
    code = """
import threading
queue = make_queue(sys.argv[1])
push(queue, 10)
def deliver():
    reader = activate(queue)
    while True:
        reader.claim(1, GIB)
        reader.change_mark()
threading.Thread(target=deliver, daemon=True).start()
push(queue, 10)
sys.stderr.write("" if queue.size() == 20 else "wrong")
"""
    process_said = run(code + "\nsys.stderr.flush()", tmp_path)
    assert process_said == ""
    queue = make_queue(tmp_path)
    assert queue.size() == 20
    assert_sound(queue)
