"""Programs of every kind: servers that fork before they work, daemons, pools, threads that come and go, sudden ends, signals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client.testing import Accept, Hang

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client.testing import RamenServer

OPEN = """
import json, os, signal, sys, threading, time
from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.queue_reader import QueueReader
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.utils import create_queue_reader_and_writer
config = QueueReaderConfig(json.loads(sys.argv[1]))
say = lambda *words: os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def push(number=1):
    for _ in range(number):
        say(writer.push("metrics", "x", "v1", {"pid": os.getpid()}))
def collect(expected):
    for _ in range(expected):
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
"""


@pytest.fixture
def program(
    run_python: Callable[..., str], fields: dict[str, Any], make_config: Any
) -> Callable[[str], list[str]]:
    """Run a program that opens the queue of this test; return the lines that it and its children say."""

    def run(code: str, *arguments: str) -> list[str]:
        return run_python(OPEN + code, json.dumps(fields), *arguments).splitlines()

    return run


def assert_all_wait(writer: Any, reqids: list[str]) -> None:
    """Each was acknowledged once and is in the queue once, and nothing else is."""
    assert writer.queue_size() == len(reqids) == len(set(reqids))
    found = set()
    while (message := writer._store.take_oldest()) is not None:
        found.add(message.reqid)
    assert found == set(reqids)
    assert writer._store.check() == []


def test_a_prefork_server_whose_parent_pushes_first_and_goes_on(program: Any, writer: Any):
    """As gunicorn with preload_app: the application, and so the writer, is made before the workers are."""
    said = program(
        """
writer = QueueWriter(config)
push(10)
for _ in range(5):
    if os.fork() == 0:
        push(20)
        os._exit(0)
    push(3)
collect(5)
push(10)
"""
    )
    assert len(said) == 10 + 5 * 20 + 5 * 3 + 10
    assert_all_wait(writer, said)


def test_a_worker_that_is_forked_again_in_place_of_one_that_was_killed(program: Any, writer: Any):
    said = program(
        """
writer = QueueWriter(config)
push()
for _ in range(4):
    child = os.fork()
    if child == 0:
        push(10)
        signal.pause()
    time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.wait()
    push()
if os.fork() == 0:
    push(10)
    os._exit(0)
collect(1)
"""
    )
    found = writer.queue_size()
    assert len(said) <= found <= len(said) + 4  # of each that was killed, one push may not have been said
    assert writer._store.check() == []


POOL = """
import json, multiprocessing, sys
from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.queue_writer import QueueWriter

def work(writer):
    return [writer.push("metrics", "x", "v1", {}) for _ in range(10)]

if __name__ == "__main__":
    writer = QueueWriter(QueueReaderConfig(json.loads(sys.argv[1])))
    said = work(writer)
    with multiprocessing.get_context(sys.argv[2]).Pool(3) as pool:
        for reqids in pool.imap_unordered(work, [writer] * 6):
            said += reqids + work(writer)
    print(*said, sep="\\n")
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_multiprocessing_that_is_handed_the_writer(
    tmp_path: Any, run_python: Any, fields: dict[str, Any], writer: Any, method: str
):
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    said = run_python(
        "import runpy, sys; sys.argv[:] = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')",
        str(script),
        json.dumps(fields),
        method,
    ).splitlines()
    assert len(said) == 130
    assert_all_wait(writer, said)


def test_a_daemon_that_forks_twice_and_lets_its_parents_end(program: Any, writer: Any, wait_until: Any):
    said = program(
        """
writer = QueueWriter(config)
push(5)
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
push(20)
"""
    )
    # Its output ends when the daemon does.
    assert len(said) == 25
    assert_all_wait(writer, said)


def test_a_daemon_that_closes_every_descriptor_before_it_opens_its_queue(program: Any, writer: Any):
    said = program(
        """
writer = QueueWriter(config)
push(2)
writer.close()
del writer
if os.fork() == 0:
    os.closerange(3, 256)
    writer = QueueWriter(config)
    push(5)
    os._exit(0)
collect(1)
"""
    )
    assert len(said) == 7
    assert_all_wait(writer, said)


def test_a_thread_that_dies_in_the_middle_of_a_push_holds_nobody_up(program: Any, writer: Any):
    said = program(
        """
writer = QueueWriter(config)
def work():
    push(5)
    die()
def die():
    import infi.ramen_client.storage.queue as queue
    here = threading.current_thread()
    original = queue.after_push
    def dying(*arguments, **more):
        if threading.current_thread() is here:
            raise SystemExit
        return original(*arguments, **more)
    queue.after_push = dying
    writer.push("metrics", "lost", "v1", {})
for _ in range(3):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
push(5)
"""
    )
    assert len(said) == 20
    assert_all_wait(writer, said)


def test_two_hundred_short_lived_threads_leave_no_descriptors(program: Any, writer: Any):
    lines = program(
        """
writer = QueueWriter(config)
def crowd(number):
    for _ in range(number // 10):
        threads = [threading.Thread(target=push) for _ in range(10)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    return len(os.listdir("/proc/self/fd"))
say("descriptors", crowd(40))
say("descriptors", crowd(200))
"""
    )
    first, last = [int(line.split()[1]) for line in lines if line.startswith("descriptors")]
    # Ten at once: SQLite puts off closing a database's descriptor while another thread holds a lock in it, and uses it again.
    assert max(first, last) < 60
    assert_all_wait(writer, [line for line in lines if not line.startswith("descriptors")])


DELIVER = """
reader, writer = create_queue_reader_and_writer(config)
push(50)
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("", 0),
        ("sys.exit(0)", 0),
        ("os._exit(0)", 0),
        ("raise SystemExit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)", -15),
        ("os.kill(os.getpid(), signal.SIGKILL); time.sleep(60)", -9),
    ],
    ids=["the last line", "sys.exit", "os._exit", "SystemExit", "SIGTERM", "SIGKILL"],
)
def test_a_program_that_ends_with_its_readers_thread_at_work_ends_at_once_and_loses_nothing(
    server: RamenServer,
    fields: Any,
    make_config: Any,
    reader: Any,
    writer: Any,
    start_python: Any,
    end: str,
    status: int,
):
    process = start_python(OPEN + DELIVER + end, json.dumps(fields))
    said = process.communicate(timeout=20)[0].split()  # it does not hang
    assert process.returncode == status
    assert len(said) == 50
    reader.run(blocking=False)
    assert {message.reqid for message in server.accepted} == set(said)
    books = writer.books()
    assert (books.pushed, books.accepted, books.difference()) == (50, 50, 0)
    assert writer._store.check() == []


def test_a_program_ends_while_its_reader_waits_for_a_server_that_hangs(
    server: RamenServer, fields: Any, make_config: Any, writer: Any, reader: Any, start_python: Any
):
    server.default = Hang()
    process = start_python(OPEN + DELIVER, json.dumps(fields))
    said = process.communicate(timeout=20)[0].split()
    assert process.returncode == 0
    assert writer.queue_size() == 50
    server.default = Accept()
    reader.run(blocking=False)
    assert {message.reqid for message in server.accepted} == set(said)


def test_sys_exit_out_of_a_push_stores_the_message_whole_or_not_at_all(program: Any, writer: Any):
    """From a signal handler, so in the middle of anything."""
    said = program(
        """
asked = []
def leave(*_):
    asked.append(True)
    sys.exit(0)
signal.signal(signal.SIGALRM, leave)
for round in range(15):
    if os.fork() == 0:
        writer = QueueWriter(config)
        signal.setitimer(signal.ITIMER_REAL, 0.002 + round * 0.0015)
        while not asked:  # Python swallows what is raised while a finalizer runs
            push()
        sys.exit(0)
    collect(1)
"""
    )
    found = writer.queue_size()
    assert len(said) <= found <= len(said) + 15
    assert writer._store.check() == []


def test_a_signal_handler_that_pushes_is_served_or_refused_and_breaks_nothing(program: Any, writer: Any):
    """In the middle of a push of its own thread it cannot be served: it gets QueueBusy at once."""
    lines = program(
        """
from infi.ramen_client.errors import QueueBusy
writer = QueueWriter(config)
stored = refused = 0
def handle(*_):
    global stored, refused
    try:
        say(writer.push("metrics", "signal", "v1", {}))
        stored += 1
    except QueueBusy:
        refused += 1
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
deadline = time.monotonic() + 30
while (not stored or not refused) and time.monotonic() < deadline:
    push(20)
    time.sleep(0.005)  # here it finds nobody at work
signal.setitimer(signal.ITIMER_REAL, 0)
push()
say("handlers", stored, refused)
"""
    )
    handlers = next(line for line in lines if line.startswith("handlers"))
    assert all(int(count) > 0 for count in handlers.split()[1:])
    assert_all_wait(writer, [line for line in lines if line != handlers])


def test_the_reader_goes_to_a_child_that_is_forked_for_it(
    server: RamenServer, program: Any, fields: Any, writer: Any
):
    """A parent that pushes, and a process of its own that delivers: both made from one configuration before the fork."""
    said = program(
        """
writer, reader = QueueWriter(config), QueueReader(config)
push(5)
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, lambda *_: reader.stop())
    reader.run()
    os._exit(0)
push(50)
assert writer.wait_sent(20)
os.kill(child, signal.SIGTERM)
collect(1)
"""
    )
    assert [message.reqid for message in server.accepted] == said
    assert writer._store.check() == []
