"""api-1x.md, `QueueReader.stop()`: `run` returns within 0.1 s from any state, and nothing pushed after it is sent.

The bound asserted is generous, since a loaded machine may be slow; what it must be told from is the state's own length: an
hour of back-off or polling, a server that never answers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client.queue_reader import QueueReader
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import Accept, Hang, RamenServer, SlowDrip, Status
from infi.ramen_client.utils import create_queue_reader_and_writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from infi.ramen_client.config import QueueReaderConfig

    MakeConfig = Callable[..., QueueReaderConfig]

SOON = 1.0
LONG = {"polling_delay": 3600, "retry_delay": 3600, "server_timeout": 3600}


def push(writer: QueueWriter) -> None:
    writer.push("metrics", "x", "v1", {})


@contextmanager
def nobody_takes_the_connection() -> Iterator[str]:
    """A port whose connections neither succeed nor fail: the backlog is full."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = []
        for _ in range(8):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(address)
            waiting.append(client)
        yield f"127.0.0.1:{address[1]}"
        for client in waiting:
            client.close()


# Each brings a reader's `run` into a state that lasts an hour, and returns when it is there.


def idle(server: RamenServer, reader: QueueReader, writer: QueueWriter) -> None:
    time.sleep(0.05)


def idle_after_work(server: RamenServer, reader: QueueReader, writer: QueueWriter) -> None:
    push(writer)
    server.wait_for(1)
    assert writer.wait_sent(SOON)


def back_off(server: RamenServer, reader: QueueReader, writer: QueueWriter) -> None:
    server.default = Status(503, headers=(("Retry-After", "3600"),))
    push(writer)
    server.wait_for_received(1)
    time.sleep(0.05)


def back_off_from_a_refused_connection(server: RamenServer, reader: QueueReader, writer: QueueWriter) -> None:
    server.stop()
    push(writer)
    time.sleep(0.05)


def hanging_answer(server: RamenServer, reader: QueueReader, writer: QueueWriter) -> None:
    server.default = Hang()
    push(writer)
    server.wait_for_received(1)


def dripping_answer(server: RamenServer, reader: QueueReader, writer: QueueWriter) -> None:
    server.default = SlowDrip(0.5)
    push(writer)
    server.wait_for_received(1)


def many_waiting(server: RamenServer, reader: QueueReader, writer: QueueWriter) -> None:
    writer.push_many([("metrics", "x", "v1", {"n": n}) for n in range(2000)])
    server.wait_for(1)


STATES = [
    idle,
    idle_after_work,
    back_off,
    back_off_from_a_refused_connection,
    hanging_answer,
    dripping_answer,
    many_waiting,
]


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_stop_ends_a_run_soon_whatever_it_does_and_a_later_run_starts_again(
    make_config: MakeConfig, server: RamenServer, in_background: Any, state: Callable[..., None]
):
    config = make_config(**LONG)
    with QueueReader(config) as reader, QueueWriter(config) as writer:
        running = in_background(reader.run)
        state(server, reader, writer)
        assert running.running

        began = time.monotonic()
        reader.stop()
        running.join()
        assert time.monotonic() - began < SOON

        seen = len(server.received)
        push(writer)
        time.sleep(0.1)
        assert len(server.received) == seen  # nothing pushed after stop is sent
        server.start()
        server.default = Accept()
        assert reader.consume_one() == reader.ACCEPTED  # no Retry-After keeps it from trying
        assert reader.drain(10) is True


def test_stop_ends_a_run_whose_connection_hangs(
    make_config: MakeConfig, no_proxies: None, in_background: Any
):
    with nobody_takes_the_connection() as hostname:
        config = make_config(**LONG, hostname=hostname)
        with QueueReader(config) as reader, QueueWriter(config) as writer:
            push(writer)
            running = in_background(reader.run)
            time.sleep(0.3)
            assert running.running
            began = time.monotonic()
            reader.stop()
            running.join()
            assert time.monotonic() - began < SOON
            assert writer.queue_size() == 1


def test_stop_ends_a_run_whose_large_request_nobody_reads(
    make_config: MakeConfig, no_proxies: None, in_background: Any
):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = make_config(**LONG, hostname=f"127.0.0.1:{listener.getsockname()[1]}")
        with QueueReader(config) as reader, QueueWriter(config) as writer:
            writer.push("metrics", "x", "v1", json.dumps(os.urandom(4_000_000).hex()))
            running = in_background(reader.run)
            with listener.accept()[0]:
                time.sleep(0.05)
                began = time.monotonic()
                reader.stop()
                running.join()
                assert time.monotonic() - began < SOON
            assert writer.queue_size() == 1


def test_stop_ends_a_run_that_stands_by(
    make_config: MakeConfig, server: RamenServer, open_reader: Any, in_background: Any
):
    active, other = open_reader(make_config(**LONG)), open_reader(make_config(**LONG))
    first = in_background(active.run)
    time.sleep(0.1)
    second = in_background(other.run)
    time.sleep(0.1)

    began = time.monotonic()
    other.stop()
    second.join()
    assert time.monotonic() - began < SOON
    assert first.running
    active.stop()
    first.join()


@pytest.mark.parametrize("call", ["consume_one", "drain"])
def test_stop_ends_the_other_calls_too(
    make_config: MakeConfig, server: RamenServer, open_reader: Any, writer: Any, in_background: Any, call: str
):
    server.default = Hang()
    push(writer)
    reader = open_reader(make_config(**LONG))
    running = in_background(getattr(reader, call))
    server.wait_for_received(1)

    reader.stop()
    assert running.join(SOON) == {"consume_one": QueueReader.RETRY, "drain": False}[call]
    assert writer.queue_size() == 1


LOCK_HOLDER = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print("held", flush=True)
sys.stdin.read()
"""


def test_stop_ends_a_run_that_waits_for_a_file_which_another_process_holds(
    config: QueueReaderConfig, writer: QueueWriter, reader: QueueReader, queue_dir: Path, in_background: Any
) -> None:
    """A 1.x writer at its size limit holds it for minutes."""
    push(writer)
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCK_HOLDER, queue_dir / "imx_1099.db"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        run = in_background(reader.run)
        time.sleep(0.3)  # long enough to get stuck in the claim
        began = time.monotonic()
        reader.stop()
        assert run.join(SOON * 5) == 0
        assert time.monotonic() - began < SOON
        holder.communicate()
    assert writer.queue_size() == 1


def test_close_ends_a_run_soon_too(
    make_config: MakeConfig, server: RamenServer, writer: Any, in_background: Any
):
    server.default = Hang()
    push(writer)
    reader = QueueReader(make_config(**LONG))
    running = in_background(reader.run)
    server.wait_for_received(1)

    reader.close()
    assert running.join(SOON) == 0
    assert writer.queue_size() == 1


def test_a_stop_before_run_has_begun_in_the_background_thread_is_not_lost(
    config: QueueReaderConfig, server: RamenServer, monkeypatch: pytest.MonkeyPatch, in_background: Any
):
    gate = threading.Event()
    late: list[threading.Thread] = []

    class Late(threading.Thread):
        def run(self) -> None:
            late.append(self)
            gate.wait()
            super().run()

    with monkeypatch.context() as patch:
        patch.setattr(threading, "Thread", Late)
        reader, writer = create_queue_reader_and_writer(config)
    with reader, writer:
        reader.stop()
        push(writer)
        gate.set()
        late[0].join(SOON)
        assert not late[0].is_alive()
        assert not server.received

        running = in_background(reader.run)  # a later run starts again
        server.wait_for(1)
        reader.stop()
        running.join()


def test_a_stop_while_nothing_runs_does_not_end_the_next_run(
    server: RamenServer, reader: QueueReader, writer: Any
):
    reader.stop()
    reader.stop()
    push(writer)

    assert reader.run(blocking=False) == 1
    reader.stop()
    assert reader.consume_one() == reader.EMPTY


def test_stop_may_be_called_by_many_threads_at_once(
    server: RamenServer, reader: QueueReader, in_background: Any
):
    for _ in range(10):
        running = in_background(reader.run)
        stopping = [in_background(reader.stop) for _ in range(5)]
        while running.running:
            reader.stop()
        for call in stopping:
            call.join()
        running.join()


HANDLER_PROGRAM = """
    import json, signal, sys
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_reader import QueueReader

    reader = QueueReader(QueueReaderConfig(json.loads(sys.argv[1])))
    signal.signal(signal.SIGTERM, lambda number, frame: reader.stop())
    print("ready", flush=True)
    reader.run()
    print("ended", flush=True)
"""


@pytest.mark.parametrize("hangs", [False, True])
def test_stop_from_a_signal_handler_ends_the_run_of_the_same_thread(
    server: RamenServer, fields: dict[str, Any], config: Any, writer: Any, start_python: Any, hangs: bool
):
    server.default = Hang() if hangs else Accept()
    push(writer)
    process = start_python(HANDLER_PROGRAM, json.dumps(fields | LONG))
    server.wait_for_received(1)

    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert process.stdout.read() == "ready\nended\n"


AT_ANY_LINE_PROGRAM = """
    import json, sys, threading
    from pathlib import Path
    import infi.ramen_client
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_reader import QueueReader

    PACKAGE = str(Path(infi.ramen_client.__file__).parent)
    config = QueueReaderConfig(json.loads(sys.argv[1]))

    def run_and_stop_at_line(reader, number):
        lines = 0

        def trace(frame, event, argument):
            nonlocal lines
            file = frame.f_code.co_filename
            if not (file == threading.__file__ or (file.startswith(PACKAGE) and "storage" not in file)):
                return None
            lines += event == "line"
            if lines == number:
                lines += 1
                reader.stop()
            return trace

        sys.settrace(trace)
        try:
            reader.run()
        finally:
            sys.settrace(None)

    reader = QueueReader(config)
    # At line 14 the run has begun; from about 350 on it looks for pushes again and again.
    for number in range(14, 400):
        run_and_stop_at_line(reader, number)

    active = QueueReader(config)
    active.start_thread()
    while reader.consume_one() != reader.RETRY:
        pass
    for number in range(14, 31):
        run_and_stop_at_line(reader, number)
    active.stop()
"""


def test_stop_may_interrupt_the_running_thread_at_any_line_without_a_deadlock(
    fields: dict[str, Any], run_python: Any
):
    """A signal handler runs between any two steps of the main thread; here the tracer is the handler."""
    run_python(AT_ANY_LINE_PROGRAM, json.dumps(fields | LONG))
