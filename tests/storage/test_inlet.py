"""The 1.x table: taken over, filled by 1.x writers, emptied by the active reader."""

from __future__ import annotations

import logging
import uuid
from typing import TYPE_CHECKING

import apsw
import pytest
from queues import (
    GIB,
    activate,
    assert_sound,
    drain,
    make_1x_file,
    make_queue,
    open_1x,
    push,
    push_1x,
    query,
    run,
    settle_all,
)

from infi.ramen_client.errors import QueueError
from infi.ramen_client.storage import ReqidOrigin, _statements, active_reader
from infi.ramen_client.storage._inlet import STEP_ROWS

if TYPE_CHECKING:
    from pathlib import Path

    from infi.ramen_client.storage import Queue

NAME = "imx_1099.db"


def test_a_backlog_is_delivered_first_in_its_order_with_its_row_numbers_as_reqids(tmp_path: Path) -> None:
    make_1x_file(tmp_path / NAME, 450)
    queue = make_queue(tmp_path, system_version="9.0")
    assert (queue.size(), queue.books().pushed) == (450, 450)
    assert_sound(queue)
    new = push(queue, 3)
    reader = activate(queue)
    (first,) = reader.claim(1, GIB)
    assert (first.reqid, first.reqid_origin, first.system_version, first.data_version) == (
        "1",
        ReqidOrigin.ROW_NUMBER,
        "9.0",
        "v1",
    )
    assert_sound(queue)
    reader.give_back()
    assert settle_all(reader) == [str(number) for number in range(1, 451)] + new
    reader.close()
    assert_sound(queue)
    assert (queue.books().pushed, queue.books().accepted) == (453, 453)


def test_a_1x_row_keeps_its_reqid_and_its_version_as_sqlite_kept_it(tmp_path: Path) -> None:
    make_1x_file(tmp_path / NAME)
    old = open_1x(tmp_path / NAME)
    for reqid, version in (("given", 1), ("", "01"), (None, "v1"), ("ü&", "1e3")):
        push_1x(old, reqid, data_version=version)
    old.close()
    queue = make_queue(tmp_path)
    reader = activate(queue)
    found = [
        (message.reqid, int(message.reqid_origin), message.data_version) for message in reader.claim(9, GIB)
    ]
    # The column's affinity made "01" and "1e3" numbers when 1.x pushed them.
    assert found == [("given", 1, 1), ("2", 2, 1), ("3", 2, "v1"), ("ü&", 1, 1000)]
    reader.close()


def test_a_1x_writer_that_goes_on_pushing_is_counted_and_delivered(queue: Queue) -> None:
    first = push(queue, 2)
    old = open_1x(queue.path)
    for _ in range(3):
        push_1x(old, str(uuid.uuid4()))
    assert (queue.size(), queue.books().pushed) == (5, 5)
    assert query(queue.path, "SELECT inlet_seen_at > 1700000000000 FROM book") == 1
    assert_sound(queue)
    delivered = drain(queue)
    assert delivered[:2] == first
    assert len(set(delivered)) == 5
    push_1x(old)
    assert_sound(queue)
    old.close()
    assert len(drain(queue)) == 1


def test_row_numbers_of_a_file_that_2x_made_are_new_in_the_world(queue: Queue) -> None:
    old = open_1x(queue.path)
    push_1x(old)
    old.close()
    (reqid,) = drain(queue)
    assert int(reqid) > 1_700_000_000_000_000


def test_what_a_1x_program_removes_itself_is_counted_as_removed(queue: Queue) -> None:
    old = open_1x(queue.path)
    for _ in range(5):
        push_1x(old)
    old.execute("DELETE FROM queue WHERE id < (SELECT max(id) FROM queue) - 1")
    old.close()
    assert (queue.books().removed_by_1x, queue.size()) == (3, 2)
    assert_sound(queue)


def test_rows_that_cannot_be_sent_become_dead_letters_and_do_not_end_the_claim(tmp_path: Path) -> None:
    make_1x_file(tmp_path / NAME)
    old = open_1x(tmp_path / NAME)
    with old:
        for _ in range(STEP_ROWS + 5):
            push_1x(old, data=b"no stream")
        push_1x(old, category="a b")
        push_1x(old, "x" * 3000)
        push_1x(old, "good")
    old.close()
    queue = make_queue(tmp_path)
    assert drain(queue) == ["good"]
    books = queue.books()
    assert (books.dead + books.dead_discarded, books.accepted, books.waiting) == (STEP_ROWS + 7, 1, 0)
    assert_sound(queue)


def test_taking_the_oldest_looks_past_a_step_of_rows_that_cannot_be_sent(tmp_path: Path) -> None:
    make_1x_file(tmp_path / NAME, STEP_ROWS + 1, data=b"no stream")
    queue = make_queue(tmp_path)
    reqids = push(queue)
    taken = queue.take_oldest()
    assert taken is not None
    assert taken.reqid == reqids[0]
    assert_sound(queue)


def test_a_failed_take_over_leaves_the_1x_file_as_it_was_and_is_done_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_1x_file(tmp_path / NAME, 10)
    before = query(tmp_path / NAME, "SELECT group_concat(sql) FROM sqlite_schema")
    with monkeypatch.context() as patched:
        patched.setattr(_statements, "SET_EMPTY_PAGES", "UPDATE no_such_table SET a = ?")
        with pytest.raises(QueueError):
            make_queue(tmp_path)
    assert query(tmp_path / NAME, "SELECT group_concat(sql) FROM sqlite_schema") == before
    assert query(tmp_path / NAME, "SELECT count(*) FROM queue") == 10
    assert len(drain(make_queue(tmp_path))) == 10


def test_a_backlog_that_was_not_counted_when_its_opener_died_is_counted_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_1x_file(tmp_path / NAME, 10)
    with monkeypatch.context() as patched:
        patched.setattr("infi.ramen_client.storage._create._count_inlet", lambda _: None)
        push(make_queue(tmp_path))
    old = open_1x(tmp_path / NAME)
    push_1x(old)
    old.execute("DELETE FROM queue WHERE id <= 2")
    old.close()
    assert query(tmp_path / NAME, "SELECT inlet_base FROM book") is None
    queue = make_queue(tmp_path)
    assert query(tmp_path / NAME, "SELECT inlet_base FROM book") == 10
    assert queue.size() == 10
    assert_sound(queue)


def test_a_1x_writer_pushes_while_the_backlog_is_taken_over(tmp_path: Path) -> None:
    make_1x_file(tmp_path / NAME, 300)
    code = "old = open_1x(sys.argv[1])\nfor _ in range(200):\n    push_1x(old)"
    from queues import finish, start

    writer = start(code, tmp_path / NAME)
    queue = make_queue(tmp_path)
    reader = activate(queue)
    delivered = settle_all(reader)
    finish(writer)
    delivered += settle_all(reader)
    reader.close()
    assert sorted(map(int, delivered)) == list(range(1, 501))
    assert_sound(queue)


def test_vacuum_by_a_1x_writer_changes_nothing(queue: Queue) -> None:
    reqids = push(queue, 50)
    run("open_1x(sys.argv[1]).execute('VACUUM')", queue.path)
    assert_sound(queue)
    reqids += push(queue)
    assert drain(queue) == reqids


# What the log says


def lines(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level]


def test_a_take_over_is_said_once_with_its_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ramen_client")
    make_queue(tmp_path / "new")
    assert lines(caplog, logging.INFO) == []
    make_1x_file(tmp_path / NAME, 12)
    for _ in range(2):
        make_queue(tmp_path).close()
    assert lines(caplog, logging.INFO) == [f"took over 12 messages of 1.x in {tmp_path / NAME}"]


def make_bad_1x_file(path: Path) -> None:
    make_1x_file(path)
    old = open_1x(path)
    with old:
        push_1x(old, category="a b")
        for _ in range(STEP_ROWS + 5):
            push_1x(old, data=b"no stream")
        push_1x(old, "good")
    old.close()


def test_rows_that_cannot_be_sent_are_one_error_for_each_step_of_the_reader(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_bad_1x_file(tmp_path / NAME)
    assert drain(make_queue(tmp_path)) == ["good"]
    assert lines(caplog, logging.ERROR) == [
        f"{tmp_path / NAME}: {count} messages of 1.x cannot be sent and are kept as dead letters; the first: its {first}"
        for count, first in (
            (STEP_ROWS, "names have characters that no URL of the protocol can hold"),
            (6, "payload is damaged (not a whole zlib stream)"),
        )
    ]


def test_rows_that_cannot_be_sent_are_an_error_also_when_an_operator_looks_for_the_oldest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_bad_1x_file(tmp_path / NAME)
    message = make_queue(tmp_path).oldest()
    assert message is not None
    assert message.reqid == "good"
    assert len(lines(caplog, logging.ERROR)) == 2


def _broken_disk(*_: object, **__: object) -> None:
    raise apsw.IOError("the disk is broken")


def test_rows_whose_step_is_rolled_back_are_not_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bad_1x_file(tmp_path / NAME)
    reader = activate(make_queue(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr(active_reader, "discard_surplus_dead", _broken_disk)
        with pytest.raises(QueueError):
            reader.claim(1, GIB)
    reader.close()
    assert lines(caplog, logging.ERROR) == []


def test_messages_that_came_in_between_keep_their_places_when_the_writer_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A writer that was alone knows the highest position without asking; what it brings in itself from the 1.x table raises it."""
    queue = make_queue(tmp_path)
    reqids = push(queue, 3)
    connection = open_1x(tmp_path / NAME)
    push_1x(connection)
    connection.close()
    reqids += push(queue, 1)
    assert queue.oldest() is not None
    later = push(queue, 3)
    assert [reqid for reqid in drain(queue) if reqid in reqids + later] == reqids + later
    assert_sound(queue)
    assert not caplog.records  # two at one place would be damage, and healed
