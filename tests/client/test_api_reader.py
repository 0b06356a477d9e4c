"""api-1x.md, `infi.ramen_client.queue_reader`: consume_one, run, drain, test_connection; `create_queue_reader_and_writer`."""

from __future__ import annotations

import errno
import fcntl
import gc
import logging
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client.config import QueueWriterConfig
from infi.ramen_client.errors import QueueClosed, QueueError, ValidationError
from infi.ramen_client.queue_reader import AuthenticationError, AutheticationError, QueueReader
from infi.ramen_client.testing import Accept, Drop, Hang, RamenServer, Refuse, Reset, Status
from infi.ramen_client.utils import create_queue_reader_and_writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_writer import QueueWriter

    MakeConfig = Callable[..., QueueReaderConfig]
    OpenReader = Callable[..., QueueReader]

SOON = 3.0
"""Seconds that a loaded machine may take for what takes milliseconds."""


def push(writer: QueueWriter, *numbers: int) -> None:
    for number in numbers:
        writer.push("metrics", "x", "v1", {"n": number})


def numbers(server: RamenServer) -> list[int]:
    return [message.json()["n"] for message in server.accepted]


# Building one


def test_a_reader_takes_a_reader_config_alone(fields: dict[str, Any]):
    writer_fields = {n: fields[n] for n in ("sender", "system_serial", "system_version", "queue_dir")}
    for wrong in (None, fields, QueueWriterConfig(writer_fields)):
        with pytest.raises(AssertionError):
            QueueReader(wrong)  # type: ignore[arg-type]


def test_a_reader_validates_its_config_when_it_is_built(config: QueueReaderConfig, queue_dir: Path):
    config.retry_delay = 0  # an assignment does not raise

    with pytest.raises(ValidationError, match="retry_delay"):
        QueueReader(config)
    assert not queue_dir.exists()


def test_the_results_of_a_step_are_numbered_as_in_1x():
    assert (QueueReader.EMPTY, QueueReader.ACCEPTED, QueueReader.DROPPED, QueueReader.RETRY) == (0, 1, 2, 3)


def test_a_reader_closes_at_the_end_of_with(config: QueueReaderConfig):
    with QueueReader(config) as reader:
        assert reader.consume_one() == QueueReader.EMPTY
    reader.close()  # again: harmless

    with pytest.raises(QueueClosed):
        reader.consume_one()


def test_the_token_is_in_no_repr(reader: QueueReader, config: QueueReaderConfig):
    assert config.auth_token not in repr(reader)
    assert config.auth_token not in repr(config)


# consume_one


def test_consume_one_handles_the_oldest_message(server: RamenServer, writer: Any, reader: QueueReader):
    assert reader.consume_one() == reader.EMPTY
    push(writer, 1, 2)

    assert reader.consume_one() == reader.ACCEPTED
    assert numbers(server) == [1]
    assert writer.queue_size() == 1
    assert reader.consume_one() == reader.ACCEPTED
    assert reader.consume_one() == reader.EMPTY
    assert numbers(server) == [1, 2]


def test_consume_one_says_dropped_for_what_the_server_drops_or_its_rule_does(
    server: RamenServer, writer: Any, reader: QueueReader
):
    server.answer_with(Drop({"data_type": "x"}))
    push(writer, 1, 2)

    assert reader.consume_one() == reader.DROPPED
    assert reader.consume_one() == reader.DROPPED
    assert len(server.received) == 1  # the second was not sent
    books = writer._store.books()
    assert (books.dropped, books.blacklisted, books.waiting) == (1, 1, 0)


@pytest.mark.parametrize("code", ["BAD_REQUEST", "NOT_FOUND", "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"])
def test_consume_one_says_dropped_for_what_the_server_refuses(
    server: RamenServer, writer: Any, reader: QueueReader, code: str
):
    server.answer_with(Refuse(code, "no"))
    push(writer, 1)

    assert reader.consume_one() == reader.DROPPED
    assert writer.queue_size() == 0


@pytest.mark.parametrize(
    "reply",
    [
        Status(500),
        Status(503),
        Refuse("TOO_MANY_REQUESTS"),
        Reset(),
        Status(302),
        Status(200, b"hello"),
        Status(404),
    ],
    ids=repr,
)
def test_consume_one_says_retry_and_keeps_the_message_for_every_other_failure(
    server: RamenServer, writer: Any, reader: QueueReader, reply: Any
):
    server.default = reply
    push(writer, 1)

    assert reader.consume_one() == reader.RETRY
    assert writer.queue_size() == 1
    server.default = Accept()
    assert reader.consume_one() == reader.ACCEPTED
    assert numbers(server) == [1]


def test_consume_one_says_retry_when_nobody_listens(server: RamenServer, writer: Any, reader: QueueReader):
    push(writer, 1)
    server.stop()

    assert reader.consume_one() == reader.RETRY
    server.start()
    assert reader.consume_one() == reader.ACCEPTED


def test_server_timeout_bounds_one_request_also_when_it_is_assigned_later(
    server: RamenServer, writer: Any, reader: QueueReader, config: QueueReaderConfig
):
    server.answer_with(Hang())
    push(writer, 1)
    config.server_timeout = 1

    began = time.monotonic()
    assert reader.consume_one() == reader.RETRY
    assert 0.9 < time.monotonic() - began < 1 + SOON
    assert reader.consume_one() == reader.ACCEPTED


@pytest.mark.parametrize(("code", "status"), [("UNAUTHORIZED", 401), ("FORBIDDEN", 403)])
@pytest.mark.parametrize("has_body", [True, False])
def test_consume_one_raises_the_authentication_error_and_the_message_stays(
    server: RamenServer, writer: Any, reader: QueueReader, code: str, status: int, has_body: bool
):
    server.answer_with(*[Refuse(code, "who are you?") if has_body else Status(status)] * 2)
    push(writer, 1)

    with pytest.raises(AutheticationError, match=str(status)):
        reader.consume_one()
    with pytest.raises(AuthenticationError, match=str(status)) as caught:
        reader.consume_one()
    assert server.token not in str(caught.value)
    assert writer.queue_size() == 1
    assert reader.consume_one() == reader.ACCEPTED


def test_consume_one_never_waits_and_never_skips_its_attempt_because_of_an_earlier_failure(
    make_config: MakeConfig, server: RamenServer, writer: Any, open_reader: OpenReader
):
    reader = open_reader(make_config(retry_delay=3600))
    server.answer_with(*[Status(503, headers=(("Retry-After", "3600"),))] * 4)
    push(writer, 1)

    began = time.monotonic()
    for _ in range(4):
        assert reader.consume_one() == reader.RETRY
    assert reader.consume_one() == reader.ACCEPTED
    assert len(server.received) == 5
    assert time.monotonic() - began < SOON


def test_consume_one_says_retry_while_another_reader_is_active(
    server: RamenServer, writer: Any, open_reader: OpenReader, in_background: Any
):
    server.answer_with(Hang())
    push(writer, 1)
    active, other = open_reader(), open_reader()
    running = in_background(active.run)
    server.wait_for_received(1)

    assert other.consume_one() == other.RETRY
    assert other.run(blocking=False) == 0
    assert len(server.received) == 1
    active.stop()
    running.join()
    assert other.consume_one() == other.ACCEPTED


def test_a_1x_program_may_mix_consume_one_and_run(server: RamenServer, writer: Any, reader: QueueReader):
    push(writer, *range(6))

    assert reader.consume_one() == reader.ACCEPTED
    assert reader.run(blocking=False) == 5
    assert reader.consume_one() == reader.EMPTY
    assert numbers(server) == list(range(6))


# run(blocking=False)


def test_run_without_blocking_returns_the_number_of_messages_accepted_or_dropped(
    config: QueueReaderConfig, server: RamenServer, writer: Any
):
    reader = QueueReader(config)
    server.answer_with(Accept(), Drop({"data_type": "y"}), Refuse("BAD_REQUEST"), Accept())
    push(writer, 1, 2, 3, 4)
    writer.push("metrics", "y", "v1", {"n": 5})  # by the rule

    assert reader.run(blocking=False) == 5
    assert numbers(server) == [1, 4]
    assert reader.run(blocking=False) == 0


def test_run_without_blocking_returns_after_a_failure(server: RamenServer, writer: Any, reader: QueueReader):
    server.answer_with(Accept(), Status(503))
    push(writer, 1, 2, 3)

    assert reader.run(blocking=False) == 1
    assert writer.queue_size() == 2
    assert reader.run(False) == 2
    assert numbers(server) == [1, 2, 3]


def test_run_without_blocking_makes_no_attempt_while_the_servers_retry_after_lasts(
    server: RamenServer, writer: Any, open_reader: OpenReader
):
    server.answer_with(Refuse("TOO_MANY_REQUESTS", headers=(("Retry-After", "3600"),)))
    push(writer, 1)

    with open_reader() as reader:
        assert reader.run(blocking=False) == 0
    with open_reader() as reader:  # over a restart too
        assert reader.run(blocking=False) == 0
        assert len(server.received) == 1
        assert reader.consume_one() == reader.ACCEPTED  # ... which a program may override
        assert reader.run(blocking=False) == 0


def test_run_raises_the_authentication_error_when_a_program_calls_it_itself(
    server: RamenServer, writer: Any, reader: QueueReader
):
    server.answer_with(Accept(), Refuse("UNAUTHORIZED"), Refuse("FORBIDDEN"))
    push(writer, 1, 2)

    with pytest.raises(AutheticationError):
        reader.run()
    with pytest.raises(AutheticationError):
        reader.run(blocking=False)
    assert writer.queue_size() == 1
    assert reader.run(blocking=False) == 1


# run()


@pytest.fixture
def running(reader: QueueReader, in_background: Any) -> Iterator[Any]:
    background = in_background(reader.run)
    yield background
    reader.stop()
    background.join()


def test_run_goes_on_until_stop_and_returns_its_count(
    server: RamenServer, writer: Any, reader: QueueReader, in_background: Any
):
    running = in_background(reader.run)
    push(writer, *range(10))
    server.wait_for(10)
    assert running.running
    assert writer.wait_sent(SOON)
    reader.stop()

    assert running.join() == 10


def test_run_wakes_at_once_when_this_process_pushes(
    make_config: MakeConfig, server: RamenServer, in_background: Any
):
    config = make_config(polling_delay=3600)
    reader, writer = create_queue_reader_and_writer(config)
    with reader, writer:
        push(writer, 1)
        server.wait_for(1, SOON)
        for number in range(2, 8):
            time.sleep(0.02)
            push(writer, number)
            server.wait_for(number, SOON)


def test_run_wakes_at_once_when_another_process_pushes_with_polling_delay_3600(
    make_config: MakeConfig,
    fields: dict[str, Any],
    server: RamenServer,
    open_reader: OpenReader,
    in_background: Any,
    start_python: Any,
):
    import json

    program = """
        import json, sys
        from infi.ramen_client.config import QueueReaderConfig
        from infi.ramen_client.queue_writer import QueueWriter
        with QueueWriter(QueueReaderConfig(json.loads(sys.argv[1]))) as writer:
            print("ready", flush=True)
            for line in sys.stdin:
                writer.push("metrics", "x", "v1", {"n": int(line)})
                print("pushed", flush=True)
    """
    other = start_python(program, json.dumps(fields))
    reader = open_reader(make_config(polling_delay=3600))
    running = in_background(reader.run)
    assert other.stdout.readline() == "ready\n"

    # Right after traffic, and when the reader has been idle for long enough to look seldom.
    for number, idle_seconds in enumerate([0.0, 0.0, 0.3, 2.6]):
        time.sleep(idle_seconds)
        other.stdin.write(f"{number}\n")
        other.stdin.flush()
        assert other.stdout.readline() == "pushed\n"
        server.wait_for(number + 1, 1.0)
    reader.stop()
    assert running.join() == 4


def test_with_a_short_retry_delay_the_queue_drains_at_once_when_the_server_recovers(
    server: RamenServer, writer: Any, running: Any
):
    server.default = Status(503)
    push(writer, 1, 2, 3)
    server.wait_for_received(40)  # a back-off that forgot retry_delay=0.01 would not get there
    server.stop()
    time.sleep(0.2)
    server.default = Accept()
    server.start()

    server.wait_for(3, 1.0)
    assert numbers(server) == [1, 2, 3]


def test_a_changed_retry_delay_counts_from_the_next_wait_on(
    make_config: MakeConfig, server: RamenServer, writer: Any, open_reader: OpenReader, in_background: Any
):
    config = make_config(retry_delay=3600)
    reader = open_reader(config)
    server.default = Status(503)
    push(writer, 1)
    running = in_background(reader.run)
    server.wait_for_received(1)
    config.retry_delay = 0.01
    server.wait_for_received(20)  # the first wait is at most a second in any case
    server.default = Accept()

    server.wait_for(1)
    reader.stop()
    running.join()


def test_run_survives_every_kind_of_answer_and_loses_nothing(server: RamenServer, writer: Any, running: Any):
    from infi.ramen_client.testing import Endless, Raw, Redirect, StoreThenReset, Truncated

    server.answer_with(
        Status(500), Reset(), Truncated(), Raw(b"nonsense\r\n\r\n"), Raw(b""), Redirect("http://127.0.0.1:1/"), Endless(),
        Status(202, b"{}"), Status(202, b"not json"), Status(407), StoreThenReset(),
    )  # fmt: skip
    push(writer, 1, 2)

    server.wait_for(2, 20)
    assert writer.wait_sent(SOON)
    assert numbers(server) == [1, 2]
    assert len(server.duplicates) == 1  # after StoreThenReset: under the same reqid


def test_run_may_be_called_again_after_stop(
    server: RamenServer, writer: Any, reader: QueueReader, in_background: Any
):
    for number in range(1, 4):
        push(writer, number)
        running = in_background(reader.run)
        server.wait_for(number)
        reader.stop()
        running.join()

    assert numbers(server) == [1, 2, 3]


def test_run_goes_on_when_its_lock_cannot_be_taken_for_a_while(
    writer: Any,
    reader: QueueReader,
    server: RamenServer,
    in_background: Any,
    caplog: Any,
    wait_until: Any,
    monkeypatch: Any,
):
    def refuse(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    push(writer, 1)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "lockf", refuse)
        with pytest.raises(QueueError, match="Too many open files"):
            reader.consume_one()
        with pytest.raises(QueueError, match="Too many open files"):
            reader.run(blocking=False)
        running = in_background(reader.run)
        wait_until(lambda: "Too many open files" in caplog.text)
        time.sleep(0.6)
        assert caplog.text.count("Too many open files") == 1  # said once, not at each attempt

    server.wait_for(1)
    reader.stop()
    running.join()


# drain


def test_drain_delivers_until_the_queue_is_empty(server: RamenServer, writer: Any, reader: QueueReader):
    server.answer_with(
        Status(503), Reset(), Accept(), Status(503)
    )  # unlike run(blocking=False), it tries again
    push(writer, 1, 2, 3)

    assert reader.drain(10) is True
    assert numbers(server) == [1, 2, 3]
    assert reader.drain() is True  # an empty queue


@pytest.mark.parametrize("timeout", [0, 0.05, 0.3])
def test_drain_is_false_when_the_time_passed_first(
    server: RamenServer, writer: Any, reader: QueueReader, timeout: float
):
    server.default = Hang()
    push(writer, 1)

    began = time.monotonic()
    assert reader.drain(timeout) is False
    assert time.monotonic() - began < timeout + SOON
    assert writer.queue_size() == 1


def test_drain_is_false_after_stop(server: RamenServer, writer: Any, reader: QueueReader, in_background: Any):
    server.default = Hang()
    push(writer, 1)
    draining = in_background(reader.drain)
    server.wait_for_received(1)
    reader.stop()

    assert draining.join() is False


def test_drain_waits_for_another_active_reader_to_do_it(
    server: RamenServer, writer: Any, open_reader: OpenReader, running: Any
):
    push(writer, 1, 2, 3)

    assert open_reader().drain(10) is True
    server.wait_for(3)


def test_a_drain_that_ran_out_of_time_leaves_the_readers_own_run_alone(
    make_config: MakeConfig, server: RamenServer
):
    server.default = Status(503)
    reader, writer = create_queue_reader_and_writer(make_config())
    with reader, writer:
        push(writer, 1)
        server.wait_for_received(1)
        assert reader.drain(0.1) is False
        server.default = Accept()

        server.wait_for(1)


def test_drain_raises_the_authentication_error(server: RamenServer, writer: Any, reader: QueueReader):
    server.answer_with(Refuse("UNAUTHORIZED"))
    push(writer, 1)

    with pytest.raises(AuthenticationError):
        reader.drain(10)
    assert reader.drain(10) is True


# test_connection


def test_test_connection_is_true_when_the_server_accepts_a_test_message(
    server: RamenServer, reader: QueueReader
):
    assert reader.test_connection() is True
    assert reader.test_connection() is True

    first, second = server.accepted
    assert (first.envelope.category, first.envelope.data_type, first.envelope.data_version) == (
        "metrics",
        "test",
        "v1",
    )
    assert first.payload == b"{}"
    assert first.reqid != second.reqid


@pytest.mark.parametrize(
    "reply",
    [
        Drop({"data_type": "test"}),
        Refuse("UNAUTHORIZED"),
        Refuse("FORBIDDEN"),
        Refuse("BAD_REQUEST"),
        Refuse("TOO_MANY_REQUESTS"),
        Status(200, b'{"code": "ACCEPTED"}'),
        Status(202, b"<html>"),
        Status(500),
        Status(302),
        Reset(),
    ],
    ids=lambda reply: repr(reply)[:40],
)
def test_test_connection_is_false_for_every_other_answer_and_says_why(
    server: RamenServer, reader: QueueReader, reply: Any, caplog: Any
):
    server.default = reply

    assert reader.test_connection() is False
    assert "connection test" in caplog.text
    assert server.token not in caplog.text
    assert not reader.get_blacklist()


def test_test_connection_is_false_when_the_token_is_wrong(
    make_config: MakeConfig, open_reader: OpenReader, server: Any
):
    assert open_reader(make_config(auth_token="wrong")).test_connection() is False


def test_test_connection_is_false_when_nobody_listens_or_answers(
    make_config: MakeConfig, open_reader: OpenReader, server: RamenServer
):
    reader = open_reader(make_config(server_timeout=1))
    server.default = Hang()
    assert reader.test_connection() is False
    server.stop()
    assert reader.test_connection() is False


def test_test_connection_is_false_when_the_tokens_file_is_missing(
    make_config: MakeConfig, open_reader: OpenReader, server: RamenServer, tmp_path: Path, caplog: Any
):
    reader = open_reader(make_config(auth_token=None, auth_token_file=str(tmp_path / "token")))
    assert reader.test_connection() is False
    assert "auth_token_file" in caplog.text

    (tmp_path / "token").write_text(server.token + "\n")
    (tmp_path / "token").chmod(0o600)
    assert reader.test_connection() is True


def test_test_connection_touches_no_message_also_beside_a_run(
    server: RamenServer, writer: Any, reader: QueueReader, running: Any
):
    assert reader.test_connection() is True
    push(writer, 1)
    server.wait_for(2)
    assert writer._store.books().pushed == 1


# create_queue_reader_and_writer


def test_create_queue_reader_and_writer_delivers_in_a_daemon_thread(
    config: QueueReaderConfig, server: RamenServer
):
    before = set(threading.enumerate())
    reader, writer = create_queue_reader_and_writer(config)
    (thread,) = [thread for thread in set(threading.enumerate()) - before if thread.name == "ramen-reader"]
    assert thread.daemon
    push(writer, 1)
    server.wait_for(1)

    reader.stop()
    thread.join(SOON)
    assert not thread.is_alive()
    reader.close()
    writer.close()


def test_its_thread_outlives_a_refused_token_and_heals_when_the_server_takes_it_again(
    config: QueueReaderConfig, server: RamenServer, caplog: Any, wait_until: Any
):
    token, server.token = server.token, "another"
    reader, writer = create_queue_reader_and_writer(config)
    with reader, writer:
        push(writer, 1, 2)
        wait_until(lambda: len(server.refused) >= 3)  # it goes on trying
        assert writer.queue_size() == 2
        assert "token is refused" in caplog.text
        assert token not in caplog.text
        server.token = token

        server.wait_for(2)
    assert numbers(server) == [1, 2]


def test_its_thread_outlives_unexpected_answers_and_errors_of_our_own(
    config: QueueReaderConfig, server: RamenServer, caplog: Any, monkeypatch: pytest.MonkeyPatch
):
    from infi.ramen_client.delivery.courier import Courier

    start = Courier.start
    fails = iter([True, True, False])

    def broken(self: Courier) -> None:
        if next(fails, False):
            raise ZeroDivisionError("a bug")
        start(self)

    monkeypatch.setattr(Courier, "start", broken)
    server.answer_with(Status(202, b"[]"), Status(999), Status(302))
    reader, writer = create_queue_reader_and_writer(config)
    with reader, writer:
        push(writer, 1)
        server.wait_for(1)
    assert "ZeroDivisionError" in caplog.text
    assert "unexpected error in the reader" in caplog.text


def test_create_queue_reader_and_writer_needs_a_reader_config(fields: dict[str, Any]):
    writer_fields = {n: fields[n] for n in ("sender", "system_serial", "system_version", "queue_dir")}

    with pytest.raises(AssertionError):
        create_queue_reader_and_writer(QueueWriterConfig(writer_fields))  # type: ignore[arg-type]


def test_its_own_log_records_never_enter_its_queue(
    config: QueueReaderConfig, server: RamenServer, wait_until: Any
):
    """A program may well send its log through us: what the reader says about an outage must not feed that outage."""
    reader, writer = create_queue_reader_and_writer(config)

    class Pushes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            writer.push("logs", "x", "v1", {"message": record.getMessage()})

    handler = Pushes(level=logging.WARNING)
    logging.getLogger("ramen_client").addHandler(handler)
    try:
        with reader, writer:
            server.default = Status(503)
            push(writer, 1)
            server.wait_for_received(30)
            assert writer.queue_size() <= 2  # the outage's one line, whatever it lasts
            server.default = Accept()
            assert writer.wait_sent(10)
    finally:
        logging.getLogger("ramen_client").removeHandler(handler)


def test_a_closed_reader_leaves_no_file_open(
    config: QueueReaderConfig, server: RamenServer, queue_dir: Path, open_writer: Callable[..., QueueWriter]
):
    """Not even until the garbage collector runs: a file system that is to be unmounted cannot wait for that."""
    gc.disable()
    try:
        with open_writer() as writer:
            push(writer, 1, 2)
        with QueueReader(config) as reader:
            assert reader.drain(10)
        del reader
        held = [link.readlink() for link in Path("/proc/self/fd").iterdir() if os.path.lexists(link)]
        assert [path for path in held if queue_dir in path.parents] == []
    finally:
        gc.enable()
