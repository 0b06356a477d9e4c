"""Threads of one process: shared objects, short lives, interrupts."""

from __future__ import annotations

import gc
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from queues import assert_sound, drain, make_message, make_queue, push, run

from infi.ramen_client.errors import QueueClosed
from infi.ramen_client.storage import _statements as sql
from infi.ramen_client.storage._database import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client.storage import Queue


def in_threads(number: int, work: Callable[[], object]) -> None:
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_threads_share_a_queue(queue: Queue) -> None:
    pushed: list[list[str]] = []
    in_threads(8, lambda: pushed.append(push(queue, 50)))
    assert sorted(drain(queue)) == sorted(reqid for reqids in pushed for reqid in reqids)
    assert_sound(queue)


def test_two_hundred_short_lived_threads_leave_no_descriptors(queue: Queue) -> None:
    push(queue)
    for _ in range(5):
        in_threads(20, lambda: push(queue))
    before = descriptors()
    for _ in range(10):
        in_threads(20, lambda: push(queue))
    assert descriptors() <= before
    assert before < 60
    assert queue.size() == 301


def test_connections_that_were_needed_at_once_are_not_all_kept(queue: Queue) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            stack.enter_context(queue.database.connection(Kind.NORMAL))
        many = descriptors()
    assert descriptors() <= many - 6


def test_a_thread_that_dies_in_a_transaction_holds_nobody_up(queue: Queue) -> None:
    def die() -> None:
        with suppress(ZeroDivisionError), queue.database.transaction(Kind.NORMAL) as connection:
            connection.execute(sql.INSERT_MESSAGE, (99, *make_message().columns()))
            raise ZeroDivisionError

    in_threads(3, die)
    push(queue)
    assert queue.size() == 1
    assert_sound(queue)


def test_objects_for_one_file_share_its_connections_and_close_with_the_last(tmp_path: Path) -> None:
    gc.collect()
    before = descriptors()
    queues = [make_queue(tmp_path) for _ in range(20)]
    for queue in queues:
        push(queue)
    assert len({id(queue.database) for queue in queues}) == 1
    assert descriptors() <= before + 8
    for queue in queues:
        queue.close()
        queue.close()
        with pytest.raises(QueueClosed):
            push(queue)
    del queue
    gc.collect()
    assert descriptors() == before


def test_an_interrupt_at_any_moment_of_a_push_leaves_the_queue_usable(tmp_path: Path) -> None:
    """Ctrl-C comes as an exception between any two bytecodes."""
    code = """
import random, signal
queue = make_queue(sys.argv[1])
chance = random.Random(3)
done = interrupted = 0
armed = False
def interrupt(*_):
    global armed
    if armed:
        armed = False
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
for number in range(1500):
    try:
        armed = True
        signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 150e-6))
        push(queue)
        done += 1
        armed = False
    except KeyboardInterrupt:
        interrupted += 1
assert interrupted > 100, interrupted
begun = time.monotonic()
push(queue, 2)
assert time.monotonic() - begun < 1.5, "somebody still holds the turn"
assert done + 2 <= queue.size() <= 1502
assert queue.check() == []
assert queue.database.work.threads == {}, queue.database.work.threads
print("good")
"""
    assert run(code, tmp_path).strip() == "good"


def test_a_push_from_a_signal_handler_in_the_middle_of_a_push_is_refused_at_once(tmp_path: Path) -> None:
    code = """
import signal
from infi.ramen_client.errors import QueueBusy
from infi.ramen_client.storage._database import Kind
queue = make_queue(sys.argv[1])
said = []
def handle(*_):
    begun = time.monotonic()
    try:
        push(queue)
    except QueueBusy as error:
        said.append(time.monotonic() - begun)
signal.signal(signal.SIGUSR1, handle)
with queue.database.transaction(Kind.NORMAL):
    os.kill(os.getpid(), signal.SIGUSR1)
os.kill(os.getpid(), signal.SIGUSR1)
print(len(said), said[0] < 1.0, queue.size())
"""
    assert run(code, tmp_path).split() == ["1", "True", "1"]


def test_the_wakers_of_a_process_are_called_after_each_push(queue: Queue) -> None:
    calls: list[int] = []

    def wake() -> None:
        calls.append(queue.size())

    queue.database.add_waker(wake)
    push(queue, 2)
    queue.database.remove_waker(wake)
    push(queue)
    assert calls == [1, 2]
