"""Real processes: writers at once, a reader beside them, kills at random moments."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from queues import assert_sound, drain, finish, make_queue, push, query, start, tell, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from infi.ramen_client.storage import Queue

PUSHER = """
queue = make_queue(sys.argv[1])
for _ in range(int(sys.argv[2])):
    print(*push(queue), flush=True)
"""

READER = """
queue = make_queue(sys.argv[1])
reader = activate(queue)
print("active", flush=True)
seen = 0
while seen < int(sys.argv[2]):
    claimed = reader.claim(64, GIB)
    for message in claimed:
        print(message.reqid, flush=True)
    reader.settle([settlement(message, Fate.ACCEPTED) for message in claimed])
    seen += len(claimed)
    time.sleep(0.001)
reader.close()
"""

WAITING_OPENER = """
print("ready", flush=True)
sys.stdin.readline()
queue = make_queue(sys.argv[1])
print(*push(queue), flush=True)
"""


def test_eight_writers_and_a_reader_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    each = 100
    reader = start(READER, tmp_path, 8 * each)
    writers = [start(PUSHER, tmp_path, each) for _ in range(8)]
    pushed = [finish(writer).split() for writer in writers]
    delivered = finish(reader).split()[1:]
    assert sorted(delivered) == sorted(reqid for reqids in pushed for reqid in reqids)
    for reqids in pushed:
        assert [reqid for reqid in delivered if reqid in set(reqids)] == reqids  # each writer's own order
    queue = make_queue(tmp_path)
    assert (queue.books().accepted, queue.size()) == (8 * each, 0)
    assert_sound(queue)


def test_twelve_processes_that_start_together_on_a_new_queue_all_work(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "new"
    processes = [start(WAITING_OPENER, directory) for _ in range(12)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        tell(process)
    reqids = [finish(process).strip() for process in processes]
    queue = make_queue(directory)
    assert sorted(drain(queue)) == sorted(reqids)
    assert_sound(queue)


def assert_good_as_new(queue: Queue) -> None:
    """A file that somebody was killed over is as good as any."""
    assert query(queue.path, "PRAGMA auto_vacuum") == 2
    assert query(queue.path, "PRAGMA page_size") == 4096
    assert query(queue.path, "PRAGMA journal_mode") == "wal"
    assert query(queue.path, "SELECT count(*) FROM book") == 1
    push(queue, 3)
    assert_sound(queue)
    assert len(drain(queue)) >= 3
    assert_sound(queue)


def test_a_process_killed_while_it_makes_the_file_leaves_nothing_that_needs_mending(tmp_path: Path) -> None:
    """Random moments; each single write is the system suite's."""
    chance = random.Random(11)
    opener = (
        "print('ready', flush=True)\nsys.stdin.readline()\nmake_queue(sys.argv[1])\nprint('made', flush=True)"
    )
    for number in range(12):
        directory = tmp_path / str(number)
        process = start(opener, directory)
        assert process.stdout is not None
        process.stdout.readline()
        tell(process)
        time.sleep(chance.uniform(0, 0.015))
        process.kill()
        process.communicate()
        assert_good_as_new(make_queue(directory))


def test_killed_writers_and_readers_lose_no_acknowledged_push_and_the_books_balance(tmp_path: Path) -> None:
    chance = random.Random(5)
    directory = tmp_path / "queue"
    make_queue(directory).close()
    acknowledged: set[str] = set()
    sent: set[str] = set()
    for round_number in range(4):
        outputs = [tmp_path / f"{round_number}-{name}" for name in ("writer", "writer 2", "reader")]
        processes = []
        for output in outputs:
            with output.open("w") as stdout:
                code = READER if "reader" in output.name else PUSHER
                processes.append(start(code, directory, 1_000_000, stdout=stdout))
        wait_until(lambda outputs=outputs: all(output.stat().st_size > 200 for output in outputs))
        time.sleep(chance.uniform(0, 0.1))
        for process in chance.sample(processes, 3):
            process.kill()
            time.sleep(chance.uniform(0, 0.01))
        for process in processes:
            process.communicate()
        *writers, reader = outputs
        acknowledged.update(line for writer in writers for line in whole_lines(writer))
        sent.update(whole_lines(reader))
        queue = make_queue(directory)
        assert_sound(queue)
        queue.close()
    queue = make_queue(directory)
    books = queue.books()
    # The last push of a killed writer may have been committed and not reported.
    assert len(acknowledged) <= books.pushed <= len(acknowledged) + 12
    assert books.pushed == books.waiting + books.accepted
    assert acknowledged <= sent | set(drain(queue))
    assert_sound(queue)


def whole_lines(output: Path) -> list[str]:
    return output.read_text().split("\n")[:-1]
