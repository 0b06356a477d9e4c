"""api-1x.md over processes: several writers, one active reader, the takeover when it is killed, fork."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client.testing import Accept, Hang

if TYPE_CHECKING:
    from infi.ramen_client.testing import RamenServer

READER = """
    import json, sys
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_reader import QueueReader
    reader = QueueReader(QueueReaderConfig(json.loads(sys.argv[1])))
    print("ready", flush=True)
    reader.run()
"""

WRITER = """
    import json, sys
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_writer import QueueWriter
    writer = QueueWriter(QueueReaderConfig(json.loads(sys.argv[1])))
    for number in range(int(sys.argv[3])):
        print(writer.push("metrics", sys.argv[2], "v1", {"n": number}), flush=True)
"""

BY_STREAM = 50


def test_of_two_reader_processes_one_delivers_and_the_other_takes_over_when_it_is_killed(
    server: RamenServer, config: Any, fields: dict[str, Any], writer: Any, start_python: Any
):
    first = start_python(READER, json.dumps(fields))
    assert first.stdout.readline() == "ready\n"
    writer.push("metrics", "x", "v1", {})
    server.wait_for(1)
    second = start_python(READER, json.dumps(fields))
    assert second.stdout.readline() == "ready\n"
    time.sleep(0.3)  # it stands by
    for _ in range(20):
        writer.push("metrics", "x", "v1", {})
    server.wait_for(21)
    assert {message.connection for message in server.received} == {1}  # the first one's

    server.default = Hang()
    writer.push("metrics", "x", "v1", {})
    server.wait_for_received(22)
    server.default = Accept()
    first.kill()  # with a message in flight
    server.wait_for(22)
    writer.push("metrics", "x", "v1", {})
    server.wait_for(23)

    assert server.accepted[-1].connection == 2
    assert writer.wait_sent(5)
    # What the first one was answered and had not yet acknowledged on disk may have come again, under its old reqid.
    assert len(server.accepted) == 23


def test_a_reader_that_is_killed_again_and_again_loses_nothing(
    server: RamenServer, config: Any, fields: dict[str, Any], writer: Any, reader: Any, start_python: Any
):
    reqids = [writer.push("metrics", "x", "v1", {"n": n}) for n in range(600)]
    for round_number in range(4):
        process = start_python(READER, json.dumps(fields))
        server.wait_for((round_number + 1) * 100)
        process.kill()
        process.wait()
    reader.run(blocking=False)

    assert [message.reqid for message in server.accepted] == reqids  # each, in order
    books = writer._store.books()
    assert (books.pushed, books.accepted, books.waiting) == (600, 600, 0)
    assert books.difference() == 0


def test_several_writer_processes_may_use_one_queue_while_a_reader_delivers(
    server: RamenServer,
    config: Any,
    fields: dict[str, Any],
    writer: Any,
    reader: Any,
    in_background: Any,
    start_python: Any,
):
    running = in_background(reader.run)
    processes = [start_python(WRITER, json.dumps(fields), f"x{n}", str(BY_STREAM)) for n in range(3)]
    acknowledged = [line for process in processes for line in process.communicate()[0].split()]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(acknowledged) == 3 * BY_STREAM

    server.wait_for(3 * BY_STREAM)
    assert Counter(message.reqid for message in server.accepted) == Counter(acknowledged)
    for stream in ("x0", "x1", "x2"):
        ours = [m.json()["n"] for m in server.accepted if m.envelope.data_type == stream]
        assert ours == list(range(BY_STREAM))
    assert not server.duplicates
    reader.stop()
    running.join()


def test_many_processes_that_start_together_on_a_new_queue_all_work(
    server: RamenServer, config: Any, fields: dict[str, Any], open_writer: Any, start_python: Any
):
    processes = [start_python(WRITER, json.dumps(fields), f"x{n}", "5") for n in range(6)]
    acknowledged = [line for process in processes for line in process.communicate()[0].split()]

    assert [process.returncode for process in processes] == [0] * 6
    assert len(set(acknowledged)) == 30
    assert open_writer().queue_size() == 30


def test_a_writer_that_is_killed_leaves_every_message_whose_push_returned(
    server: RamenServer, config: Any, fields: dict[str, Any], reader: Any, start_python: Any
):
    process = start_python(WRITER, json.dumps(fields), "x", "1000000")
    acknowledged = [process.stdout.readline().strip() for _ in range(100)]
    process.kill()
    with process:
        acknowledged += process.stdout.read().split("\n")[:-1]
    reader.run(blocking=False)

    arrived = [message.reqid for message in server.accepted]
    assert arrived[: len(acknowledged)] == acknowledged
    assert len(arrived) - len(acknowledged) in (0, 1)  # one more was stored and not yet reported


def test_parent_and_child_of_a_fork_go_on_with_their_writer_and_reader(
    server: RamenServer, writer: Any, reader: Any
):
    writer.push("metrics", "x", "v1", {"by": "parent"})
    assert reader.consume_one() == reader.ACCEPTED
    child = os.fork()
    if not child:
        status = 1
        try:
            writer.push("metrics", "x", "v1", {"by": "child"})
            status = 0 if reader.consume_one() == reader.ACCEPTED else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    writer.push("metrics", "x", "v1", {"by": "parent"})
    assert reader.run(blocking=False) == 1

    assert [message.json()["by"] for message in server.accepted] == ["parent", "child", "parent"]


def test_a_fork_while_the_readers_thread_runs_leaves_it_running_and_the_child_free(
    server: RamenServer, writer: Any, reader: Any, in_background: Any
):
    running = in_background(reader.run)
    for _ in range(5):
        writer.push("metrics", "x", "v1", {})
        child = os.fork()
        if not child:
            signal.alarm(20)
            writer.push("metrics", "x", "v1", {})
            reader.stop()  # the child's runs: it has none
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    server.wait_for(10)
    assert running.running
    reader.stop()
    running.join()


def push_from_a_pool(writer: Any) -> str:
    reqid: str = writer.push("metrics", "x", "v1", {})
    return reqid


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_multiprocessing_by_fork_may_share_a_writer(writer: Any):
    shared = writer
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=push_from_a_pool, args=(shared,)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(20)

    assert [child.exitcode for child in children] == [0, 0, 0]
    assert writer.queue_size() == 3
