"""What a reader tells and does beside delivering: books, dead letters, pickling, closing, and the lines of a long run."""

from __future__ import annotations

import logging
import pickle
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client.errors import QueueClosed
from infi.ramen_client.testing import Accept, RamenServer, Refuse

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_reader import QueueReader
    from infi.ramen_client.queue_writer import QueueWriter


@pytest.fixture
def two_refused(server: RamenServer, writer: QueueWriter, reader: QueueReader) -> list[str]:
    """Three messages were delivered; the first and the last were refused. All reqids."""
    reqids = [writer.push("metrics", "x", "v1", {"n": n}) for n in range(3)]
    server.answer_with(Refuse("BAD_REQUEST", "no such field"), Accept(), Refuse("PAYLOAD_TOO_LARGE"))
    assert reader.run(blocking=False) == 3
    return reqids


def test_books_account_for_every_message(
    writer: QueueWriter, reader: QueueReader, two_refused: list[str]
) -> None:
    writer.push("metrics", "x", "v1", 4)
    books = reader.books()
    assert (books.pushed, books.waiting, books.accepted, books.dead) == (4, 1, 1, 2)
    assert books.difference() == 0
    assert books == writer.books()


def test_dead_letters_say_what_was_refused_and_why(reader: QueueReader, two_refused: list[str]) -> None:
    first, last = reader.dead_letters()
    assert (first.message.reqid, last.message.reqid) == (two_refused[0], two_refused[2])
    assert (first.death.status, first.death.code, first.death.details) == (
        400,
        "BAD_REQUEST",
        "no such field",
    )
    assert (last.death.status, last.death.code) == (413, "PAYLOAD_TOO_LARGE")
    assert (first.message.category, first.message.data_type, first.message.data_version) == (
        "metrics",
        "x",
        "v1",
    )
    assert first.died_at_ms >= first.message.pushed_at_ms
    assert reader.dead_letters(limit=1) == [first]


def test_all_dead_letters_go_back_and_are_delivered_under_their_reqids(
    server: RamenServer, reader: QueueReader, two_refused: list[str]
) -> None:
    assert reader.retry_dead_letters() == 2
    assert reader.dead_letters() == []
    assert reader.run(blocking=False) == 2
    assert {message.reqid for message in server.accepted} == set(two_refused)
    assert reader.books().accepted == 3
    assert reader.retry_dead_letters() == 0


def test_one_dead_letter_goes_back_by_its_position(reader: QueueReader, two_refused: list[str]) -> None:
    first, last = reader.dead_letters()
    assert reader.retry_dead_letters([last.message.position, 12345]) == 1
    assert reader.dead_letters() == [first]
    assert reader.books().waiting == 1


def test_discarded_dead_letters_are_gone_and_counted(reader: QueueReader, two_refused: list[str]) -> None:
    assert reader.discard_dead_letters() == 2
    assert reader.dead_letters() == []
    assert reader.discard_dead_letters() == 0
    books = reader.books()
    assert (books.dead, books.dead_discarded, books.difference()) == (0, 2, 0)


def test_dead_letters_are_handled_while_the_reader_runs(
    server: RamenServer, reader: QueueReader, two_refused: list[str], wait_until: Any
) -> None:
    thread = reader.start_thread()
    assert reader.retry_dead_letters() == 2
    wait_until(lambda: reader.books().accepted == 3)
    reader.stop()
    thread.join(10)


def test_a_pickled_reader_and_writer_open_the_same_queue(
    server: RamenServer, reader: QueueReader, writer: QueueWriter
) -> None:
    with (
        pickle.loads(pickle.dumps(writer)) as other_writer,
        pickle.loads(pickle.dumps(reader)) as other_reader,
    ):
        reqid = other_writer.push("metrics", "x", "v1", 1)
        assert writer.queue_size() == 1
        assert other_reader.run(blocking=False) == 1
    assert [message.reqid for message in server.accepted] == [reqid]
    writer.push("metrics", "x", "v1", 2)
    assert reader.run(blocking=False) == 1, "the originals go on"


@pytest.mark.parametrize(
    "call",
    [
        lambda reader: reader.run(),
        lambda reader: reader.run(blocking=False),
        lambda reader: reader.drain(1),
        lambda reader: reader.consume_one(),
        lambda reader: reader.start_thread(),
        lambda reader: reader.books(),
    ],
    ids=["run", "run once", "drain", "consume_one", "start_thread", "books"],
)
def test_a_closed_reader_does_nothing_and_says_so(
    server: RamenServer, reader: QueueReader, call: Callable[[QueueReader], object]
) -> None:
    reader.close()
    with pytest.raises(QueueClosed):
        call(reader)
    reader.close()  # again


def test_closing_ends_a_run_that_is_under_way_quietly(
    server: RamenServer, reader: QueueReader, in_background: Any, wait_until: Any
) -> None:
    run = in_background(reader.run)
    wait_until(lambda: reader._stops)
    reader.close()
    assert run.join() == 0


def test_a_long_run_says_when_it_begins_stands_by_and_ends(
    server: RamenServer,
    writer: QueueWriter,
    open_reader: Callable[..., QueueReader],
    caplog: pytest.LogCaptureFixture,
    wait_until: Any,
) -> None:
    caplog.set_level(logging.INFO, "ramen_client")
    origin = f"http://{server.hostname}"
    first, second = open_reader(), open_reader()
    threads: list[threading.Thread] = [first.start_thread()]
    wait_until(lambda: "begins" in caplog.text)
    threads.append(second.start_thread())
    wait_until(lambda: "stands by" in caplog.text)
    writer.push("metrics", "x", "v1", 1)
    wait_until(lambda: writer.queue_size() == 0)
    first.stop()
    wait_until(lambda: caplog.text.count("begins") == 2)
    second.stop()
    for thread in threads:
        thread.join(10)
    assert [record.getMessage() for record in caplog.records] == [
        f"imx_1099: delivery to {origin} begins",
        "imx_1099: another reader is active; this one stands by",
        f"imx_1099: delivery to {origin} ends; accepted or dropped: 1",
        f"imx_1099: delivery to {origin} begins",
        f"imx_1099: delivery to {origin} ends; accepted or dropped: 0",
    ]


def test_short_runs_say_nothing(
    server: RamenServer, config: QueueReaderConfig, writer: QueueWriter, reader: QueueReader, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "ramen_client")
    writer.push("metrics", "x", "v1", 1)
    assert reader.run(blocking=False) == 1
    assert reader.drain(10)
    assert reader.consume_one() == reader.EMPTY
    assert caplog.records == []


def test_damaged_messages_become_dead_letters_and_are_said_once(
    server: RamenServer,
    config: QueueReaderConfig,
    writer: QueueWriter,
    reader: QueueReader,
    caplog: pytest.LogCaptureFixture,
    run_python: Callable[..., str],
) -> None:
    writer.push_many(("metrics", "x", "v1", n) for n in range(200))
    path = str(writer._store.path)
    # In a process of its own, as everything that touches the file beside its users.
    run_python(
        """
        import apsw, sys
        connection = apsw.Connection(sys.argv[1])
        connection.execute("UPDATE message SET plain_crc32 = plain_crc32 + 1 WHERE position % 2")
        connection.close()
        """,
        path,
    )
    assert reader.run(blocking=False) == 100
    assert len(reader.dead_letters()) == 100
    (early,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert early.getMessage().startswith(f"{path}: ")
    assert "damaged on disk and cannot be sent" in early.getMessage()
    reader.close()
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert sum(int(line.removeprefix(f"{path}: ").partition(" ")[0]) for line in said) == 100
    assert len(said) <= 2
