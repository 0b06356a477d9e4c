"""`RamenHandler`: records become messages; our own never do, whatever happens and whatever lies in between."""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import os
import queue
import threading
import time
from typing import TYPE_CHECKING, Any
from zlib import decompress

import pytest

from infi.ramen_client.errors import DiskFull, InvalidMessage
from infi.ramen_client.logging_handler import MAX_RECORD_BYTES, MAX_TEXT_CHARS, RamenHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infi.ramen_client.queue_reader import QueueReader
    from infi.ramen_client.queue_writer import QueueWriter

FIELDS = {
    "time", "level", "level_number", "logger", "message", "file", "line", "function", "process", "process_name", "thread",
    "thread_name", "extra",
}  # fmt: skip


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, letting everything through; as it was in the end."""
    found = logging.getLogger()
    handlers, level = found.handlers[:], found.level
    found.setLevel(logging.DEBUG)
    yield found
    found.handlers[:] = handlers
    found.setLevel(level)


@pytest.fixture
def log(root: logging.Logger) -> logging.Logger:
    return logging.getLogger("application.part")


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[logging.LogRecord]:
    """What came to ``handleError``."""
    found: list[logging.LogRecord] = []
    monkeypatch.setattr(RamenHandler, "handleError", lambda _handler, record: found.append(record))
    return found


def stored(writer: QueueWriter) -> list[dict[str, Any]]:
    found = []
    while (item := writer._queue.pop()) is not None:
        found.append(json.loads(decompress(item["data"])))
    return found


def test_a_record_becomes_a_message_with_the_documented_fields(
    root: logging.Logger, log: logging.Logger, writer: QueueWriter
) -> None:
    root.addHandler(RamenHandler(writer))
    before = time.time_ns() // 1_000_000
    log.warning("%d of %s", 3, "them", extra={"user": "ada", "ids": [1, {"a": None}], "when": object()})
    item = writer._queue.peek()
    assert item is not None
    assert (item["category"], item["data_type"], item["data_version"]) == ("logs", "python", 1)
    (found,) = stored(writer)
    assert found.keys() == FIELDS
    assert before <= found["time"] <= time.time_ns() // 1_000_000
    assert found["file"] == __file__
    assert found["function"] == "test_a_record_becomes_a_message_with_the_documented_fields"
    assert (found["process"], found["thread"]) == (os.getpid(), threading.get_ident())
    assert (found["level"], found["level_number"], found["logger"]) == ("WARNING", 30, "application.part")
    assert found["message"] == "3 of them"
    assert found["extra"]["user"] == "ada"
    assert found["extra"]["ids"] == [1, {"a": None}]
    assert found["extra"]["when"].startswith("<object object at")


def test_names_version_and_level_are_the_callers(
    root: logging.Logger, log: logging.Logger, writer: QueueWriter
) -> None:
    root.addHandler(RamenHandler(writer, category="audit", data_type="app", data_version="v2", level="ERROR"))
    log.warning("not this")
    log.error("this")
    assert writer.queue_size() == 1
    item = writer._queue.pop()
    assert item is not None
    assert (item["category"], item["data_type"], item["data_version"]) == ("audit", "app", "v2")
    with pytest.raises(InvalidMessage, match="category"):
        RamenHandler(writer, category="a b")


def test_a_traceback_and_a_stack_are_text_of_bounded_length(
    root: logging.Logger, log: logging.Logger, writer: QueueWriter
) -> None:
    root.addHandler(RamenHandler(writer))
    try:
        raise ValueError("x" * 100_000)
    except ValueError:
        log.exception("it failed", stack_info=True)
    (found,) = stored(writer)
    assert found["exception_type"] == "builtins.ValueError"
    assert found["exception"].startswith("Traceback (most recent call last):")
    assert found["exception"].endswith("x" * 1000)
    assert "characters left out" in found["exception"]
    assert len(found["exception"]) < MAX_TEXT_CHARS + 100
    assert found["stack"].startswith("Stack (most recent call last):")


class Nasty:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_a_record_that_is_too_large_or_odd_is_stored_without_what_is_too_much(
    root: logging.Logger, log: logging.Logger, writer: QueueWriter, failures: list[logging.LogRecord]
) -> None:
    root.addHandler(RamenHandler(writer))
    loop: list[Any] = []
    loop.append(loop)
    log.info("m", extra={"big": ["x" * 1000] * 1000})
    log.info("\0\x01" * MAX_TEXT_CHARS, extra={"stack_info_": "x"}, stack_info=True)
    log.info("lone \ud800", extra={"nasty": Nasty(), "loop": loop, "number": 2**70, "nan": float("nan")})
    big, control, odd = stored(writer)
    assert (big["message"], big["extra_left_out"], "extra" in big) == ("m", True, False)
    assert len(json.dumps(control)) < MAX_RECORD_BYTES
    assert "lone" in odd["message"]
    assert odd["extra"]["nasty"] == "<a Nasty that cannot be shown>"
    assert odd["extra"]["loop"] == "<a list that cannot be shown>"
    assert odd["extra"]["number"] == 2**70
    assert odd["extra"]["nan"] is None
    assert failures == []
    assert writer.unserialisable_count == 0


def test_what_cannot_be_formatted_goes_to_handle_error_and_the_program_goes_on(
    root: logging.Logger, log: logging.Logger, writer: QueueWriter, failures: list[logging.LogRecord]
) -> None:
    root.addHandler(RamenHandler(writer))
    root.handlers = [handler for handler in root.handlers if isinstance(handler, RamenHandler)]
    log.info("%d", "no number")
    log.info("%s", Nasty())
    log.info("well")
    assert len(failures) == 2
    assert [one["message"] for one in stored(writer)] == ["well"]


def test_a_queue_that_cannot_take_it_is_no_error_of_the_program(
    root: logging.Logger, log: logging.Logger, writer: QueueWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stderr leading into the log, as some programs have it: what ``handleError`` prints comes back and must not go round."""

    class IntoTheLog(io.TextIOBase):
        def write(self, text: str) -> int:
            log.error("stderr: %s", text)
            return len(text)

    attempts = []

    def fail(*_arguments: Any) -> None:
        attempts.append(1)
        raise DiskFull("no space left")

    root.handlers = [RamenHandler(writer)]
    monkeypatch.setattr(writer, "push", fail)
    monkeypatch.setattr("sys.stderr", IntoTheLog())
    log.info("this")
    assert len(attempts) == 1
    monkeypatch.undo()
    log.info("again")
    assert [one["message"] for one in stored(writer)] == ["again"]


# Our own records


def test_with_a_root_handler_at_debug_and_the_server_away_the_queue_grows_by_no_record_of_our_own(
    root: logging.Logger,
    log: logging.Logger,
    writer: QueueWriter,
    reader: QueueReader,
    caplog: pytest.LogCaptureFixture,
    wait_until: Callable[..., None],
) -> None:
    """The failure of the Azure Monitor exporter (#39104): its own log lines in its own queue, for ever. Nobody listens at port 9."""
    root.addHandler(RamenHandler(writer, level=logging.DEBUG))
    log.info("the only one")
    thread = reader.start_thread()
    wait_until(lambda: sum("POST" in line for line in caplog.messages) >= 5)
    reader.stop()
    thread.join(10)
    assert sum(record.name.startswith("ramen_client") for record in caplog.records) >= 6
    assert [one["message"] for one in stored(writer)] == ["the only one"]


def test_loggers_that_only_sound_like_ours_are_the_programs(
    root: logging.Logger, writer: QueueWriter
) -> None:
    root.addHandler(RamenHandler(writer))
    for name in ("ramen_client", "ramen_client.testing", "ramen_clients", "ramen", "my.ramen_client"):
        logging.getLogger(name).warning("from %s", name)
    assert [one["logger"] for one in stored(writer)] == ["ramen_clients", "ramen", "my.ramen_client"]


@pytest.mark.parametrize("behind_a_queue", [False, True], ids=["direct", "behind a QueueListener"])
def test_what_is_logged_inside_a_push_never_enters_the_queue(
    root: logging.Logger,
    log: logging.Logger,
    writer: QueueWriter,
    monkeypatch: pytest.MonkeyPatch,
    wait_until: Callable[..., None],
    behind_a_queue: bool,
) -> None:
    """As SQLite's own log does, which a program may lead into ``logging``. Two handlers must not feed each other either."""
    push = type(writer).push

    def chatty(*arguments: Any) -> str:
        logging.getLogger("sqlite").warning("inside")
        return push(writer, *arguments)

    monkeypatch.setattr(writer, "push", chatty)
    handlers = [RamenHandler(writer), RamenHandler(writer, data_type="second")]
    heard: list[str] = []
    end = logging.Handler()
    end.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    listener = None
    if behind_a_queue:
        between: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        root.handlers = [logging.handlers.QueueHandler(between)]
        listener = logging.handlers.QueueListener(between, *handlers, end)
        listener.start()
    else:
        root.handlers = [*handlers, end]
    for number in range(3):
        log.info("outside %d", number)
    wait_until(lambda: len(heard) >= 9)  # six of them from inside
    if listener is not None:
        listener.stop()
    assert [one["message"] for one in stored(writer)] == [f"outside {n}" for n in (0, 0, 1, 1, 2, 2)]


def test_a_thread_that_logs_right_after_its_own_record_loses_none(
    root: logging.Logger, log: logging.Logger, writer: QueueWriter
) -> None:
    root.addHandler(RamenHandler(writer))
    for number in range(200):
        log.info("%d", number)
    assert [one["message"] for one in stored(writer)] == [str(n) for n in range(200)]


# Threads, forks, the end


def test_nobody_waits_for_the_handler_while_another_thread_pushes(
    root: logging.Logger, log: logging.Logger, writer: QueueWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, go_on = threading.Event(), threading.Event()
    push = type(writer).push

    def slow(*arguments: Any) -> str:
        if threading.current_thread().name == "slow":
            inside.set()
            assert go_on.wait(20)
        return push(writer, *arguments)

    monkeypatch.setattr(writer, "push", slow)
    root.addHandler(RamenHandler(writer))
    thread = threading.Thread(target=log.info, args=("slow",), name="slow")
    thread.start()
    assert inside.wait(20)
    log.info("quick")
    assert writer.queue_size() == 1
    go_on.set()
    thread.join(20)
    assert [one["message"] for one in stored(writer)] == ["quick", "slow"]


PROGRAM = """
    import atexit, logging, os, sys
    from infi.ramen_client import QueueWriter, QueueWriterConfig, RamenHandler

    atexit.register(lambda: logging.info("after the end"))
    writer = QueueWriter(QueueWriterConfig(sender="imx", system_serial=1, system_version="1", queue_dir=sys.argv[1]))
    logging.basicConfig(level=logging.INFO, handlers=[RamenHandler(writer)])
    logging.info("before the fork")
    child = os.fork()
    logging.info("child" if child == 0 else "parent")
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    logging.shutdown()
    logging.info("after the shutdown")
    print(writer.queue_size())
"""


def test_after_a_fork_and_at_the_interpreters_end_records_are_stored(
    run_python: Callable[..., str], tmp_path: Any, fields: dict[str, Any], open_writer: Any, make_config: Any
) -> None:
    assert run_python(PROGRAM, str(tmp_path / "queue")) == "4\n"
    fresh = open_writer(make_config(system_serial=1))
    messages = [one["message"] for one in stored(fresh)]
    assert sorted(messages) == ["after the end", "after the shutdown", "before the fork", "child", "parent"]
