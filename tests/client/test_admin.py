"""A queue as its operator sees it: ``QueueAdmin`` looks and acts beside living writers and readers, and disturbs neither."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from infi.ramen_client import QueueAdmin, QueueGone, QueueReader, QueueWriter, ValidationError
from infi.ramen_client.admin import Condition, ReaderState, Selection, find_queue
from infi.ramen_client.errors import QueueClosed, QueueUnusable
from infi.ramen_client.storage import (
    ActiveReader,
    Death,
    Fate,
    NewMessage,
    Place,
    Queue,
    ReqidOrigin,
    Settlement,
)
from infi.ramen_client.testing import Accept, Drop, RamenServer, Refuse, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infi.ramen_client.config import QueueReaderConfig

    Start = Callable[..., subprocess.Popen[str]]

GIB = 1024**3
EVERYTHING = Selection(everything=True)
HOUR = 3600.0
_numbers = count()

WRITER = """
    import sys
    from infi.ramen_client import QueueWriter, QueueWriterConfig
    writer = QueueWriter(QueueWriterConfig(sender="imx", system_serial=1099, system_version="1", queue_dir=sys.argv[1],
                                           durability="normal"))
    print("ready", flush=True)
    pushed = 0
    while pushed < int(sys.argv[2]):
        writer.push("metrics", sys.argv[3], "v1", {"n": pushed})
        pushed += 1
    print(pushed, flush=True)
"""

HOLDER = """
    import sys
    from infi.ramen_client.storage import ActiveReader, Place, Queue
    queue = Queue(Place(sys.argv[1], "imx", 1099, "1"), max_bytes=2**30, durable=False)
    reader = ActiveReader.activate(queue)
    claimed = reader.claim(int(sys.argv[2]), 2**20) if int(sys.argv[2]) else []
    print("holding", len(claimed), flush=True)
    sys.stdin.readline()
    reader.close()
"""


def message(payload: bytes = b"{}", *, age: float = 0.0, **fields: Any) -> NewMessage:
    given: dict[str, Any] = {
        "category": "metrics",
        "data_type": "san",
        "data_version": "v1",
        "system_version": "3.0",
        "reqid": f"{os.getpid()}-{next(_numbers)}",
        "reqid_origin": ReqidOrigin.PUSH,
        "pushed_at_ms": time.time_ns() // 1_000_000 - int(age * 1000),
        "plain_length": len(payload),
        "plain_crc32": zlib.crc32(payload),
        "data": zlib.compress(payload),
    }
    return NewMessage(**{**given, **fields})


def push(queue: Queue, number: int = 1, payload: bytes = b"{}", **fields: Any) -> None:
    queue.push([message(payload, **fields) for _ in range(number)])


def bury(
    queue: Queue, number: int = 1, payload: bytes = b"{}", death: Death | None = None, **fields: Any
) -> None:
    """Add dead letters; the queue must be empty of messages."""
    push(queue, number, payload, **fields)
    reader = ActiveReader.activate(queue)
    assert reader is not None
    death = death or Death("the server refused it (400)", "no such thing", 400, "BAD_REQUEST")
    while claimed := reader.claim(100, GIB):
        reader.settle([Settlement(one, Fate.DEAD, death) for one in claimed])
    reader.close()


def damage(path: Path, statement: str) -> None:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(10_000)
    connection.execute(statement)
    connection.close()


def log_can_be_truncated(path: Path) -> bool:
    """Whether nobody reads an old state of the file."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    is_busy, _frames, _copied = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").get
    connection.close()
    return not is_busy and path.with_name(path.name + "-wal").stat().st_size == 0


@pytest.fixture
def queue(queue_dir: Path) -> Iterator[Queue]:
    opened = Queue(Place(str(queue_dir), "imx", 1099, "3.0"), max_bytes=GIB, durable=False)
    yield opened
    opened.close()


@pytest.fixture
def admin(queue: Queue) -> Iterator[QueueAdmin]:
    with QueueAdmin(queue.path, max_queue_size=GIB, sleep=lambda _: None) as opened:
        yield opened


def file_of_1x(path: Path, rows: int) -> None:
    connection = apsw.Connection(str(path))
    connection.pragma("auto_vacuum", 2)
    connection.pragma("journal_mode", "wal")
    connection.execute(
        "CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, ts TIMESTAMP DEFAULT CURRENT_TIMESTAMP, "
        "category TEXT NOT NULL, data_type TEXT NOT NULL, data_version INTEGER NOT NULL, reqid TEXT, data BLOB NOT NULL)"
    )
    push_as_1x(connection, rows)
    connection.close()


def push_as_1x(connection: apsw.Connection, rows: int, data_type: str = "san", age_seconds: int = 0) -> None:
    for _ in range(rows):
        connection.execute(
            "INSERT INTO queue (ts, category, data_type, data_version, data) "
            "VALUES (datetime('now', ?), 'metrics', ?, 1, ?)",
            (f"-{age_seconds} seconds", data_type, zlib.compress(b"{}")),
        )


# Opening


@pytest.mark.parametrize(
    "name", ["nothing/imx_1.db", "imx_1.db", "a directory", "a link", "empty", "text", "another's"]
)
def test_a_wrong_path_is_said_and_nothing_is_made_or_changed(tmp_path: Path, name: str):
    (tmp_path / "a directory").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_bytes(b"no database, but long enough to be taken for one\n" * 100)
    connection = apsw.Connection(str(tmp_path / "another's"))
    connection.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY)")
    connection.close()
    (tmp_path / "a link").symlink_to(tmp_path / "another's")
    before = {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")}

    with pytest.raises(QueueUnusable, match=name.rpartition("/")[2]):
        QueueAdmin(tmp_path / name)
    assert {path: path.read_bytes() if path.is_file() else None for path in tmp_path.rglob("*")} == before


def test_a_1x_file_that_nobody_took_over_is_said_with_what_waits_in_it_and_stays_as_it_is(tmp_path: Path):
    path = tmp_path / "imx_1.db"
    file_of_1x(path, 3)
    before = path.read_bytes()

    with pytest.raises(
        QueueUnusable,
        match=r"1\.x that 2\.0 has not taken over yet; at most 3 messages wait in it, the oldest since",
    ):
        QueueAdmin(path)
    assert path.read_bytes() == before


def test_opening_a_queue_makes_no_file_beside_it_that_was_not_there(admin: QueueAdmin, queue_dir: Path):
    (queue_dir / "imx_1099.db.writers").unlink()
    before = sorted(queue_dir.iterdir())
    with QueueAdmin(queue_dir / "imx_1099.db") as other:
        other.status(sample_seconds=0)
        other.check()
        other.purge(EVERYTHING, dry_run=True)
        other.dead_letters()
        other.rules()
    assert sorted(queue_dir.iterdir()) == before


def test_a_file_that_this_user_may_not_use_is_said(run_python: Callable[..., str]):
    """Root may use every file, so it becomes nobody; for anybody else the file's mode is enough."""
    program = """
        import os, sys
        from infi.ramen_client import QueueAdmin
        from infi.ramen_client.errors import QueueUnusable
        import infi.ramen_client._status
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            QueueAdmin(sys.argv[1])
        except QueueUnusable as error:
            print(error)
    """
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        queue = Queue(Place(directory, "imx", 1099, "3.0"), max_bytes=GIB)
        path = queue.path
        queue.close()
        if os.geteuid() != 0:
            path.chmod(0)
        said = run_python(program, str(path))
    assert said.startswith(f"{path}: cannot be opened")
    assert "Check the owner and mode" in said


def test_the_one_queue_that_fits_is_found_and_several_are_named(tmp_path: Path):
    for name in (
        "imx_1.db",
        "imx_2.db",
        "a_b_3.db",
        "imx_1.db-wal",
        "imx_1.db.reader",
        "other.db",
        "imx_x.db",
    ):
        (tmp_path / name).touch()
    assert find_queue(tmp_path, "imx", 2) == tmp_path / "imx_2.db"
    assert find_queue(tmp_path, "a_b") == tmp_path / "a_b_3.db"
    assert find_queue(tmp_path, system_serial=3) == tmp_path / "a_b_3.db"
    with pytest.raises(ValidationError, match=r"there are 2 queues with sender imx; .*: imx_1.db, imx_2.db$"):
        find_queue(tmp_path, "imx")
    with pytest.raises(ValidationError, match="there are 3 queues; "):
        find_queue(tmp_path)
    with pytest.raises(QueueUnusable, match="there is no queue with sender imx and system_serial 3 "):
        find_queue(tmp_path, "imx", 3)
    with pytest.raises(QueueUnusable, match="cannot be listed: No such file"):
        find_queue(tmp_path / "nowhere")


def test_a_closed_admin_and_a_queue_that_is_gone_say_so(queue: Queue, admin: QueueAdmin):
    for path in queue.path.parent.iterdir():
        path.unlink()
    with pytest.raises(QueueGone):
        admin.status()
    admin.close()
    with pytest.raises(QueueClosed):
        admin.status()


# Status


def test_the_status_of_an_empty_queue(admin: QueueAdmin, queue: Queue):
    status = admin.status()
    assert (status.path, status.sender, status.system_serial) == (queue.path, "imx", 1099)
    assert status.condition is Condition.EMPTY
    assert (status.waiting, status.in_flight, status.bytes_used, status.max_queue_size) == (0, 0, 0, GIB)
    assert (status.oldest_waiting_seconds, status.empty_in_seconds) == (None, 0.0)
    assert status.reader.state is ReaderState.NEVER
    assert (status.dead_letters, status.dead_letter_bytes, status.rules, status.last_1x_push_at_ms) == (
        0,
        0,
        (),
        None,
    )
    assert status.books == queue.books()


def test_what_waits_is_counted_with_its_bytes_and_the_age_of_the_oldest(admin: QueueAdmin, queue: Queue):
    push(queue, age=2 * HOUR)
    push(queue, 100, os.urandom(10_000), age=HOUR)
    status = admin.status(sample_seconds=0)
    assert status.condition is Condition.NO_READER
    assert status.waiting == 101
    assert status.bytes_used == queue.bytes_used() > 1_000_000
    assert status.rates is None
    assert status.oldest_waiting_seconds == pytest.approx(2 * HOUR, abs=60)


def test_a_clock_that_went_back_makes_no_age_below_zero(admin: QueueAdmin, queue: Queue):
    push(queue, age=-HOUR)
    assert admin.status().oldest_waiting_seconds == 0


def test_a_dead_letter_that_came_back_is_as_old_as_its_return_and_hides_no_older_message(
    admin: QueueAdmin, queue: Queue
):
    bury(queue, 2, age=9 * HOUR)
    assert admin.retry_dead_letters(EVERYTHING).letters == 2
    assert admin.status().oldest_waiting_seconds == pytest.approx(0, abs=60)
    push(queue, age=HOUR)
    assert admin.status().oldest_waiting_seconds == pytest.approx(HOUR, abs=60)


def test_rows_of_1x_that_wait_are_counted_and_their_program_is_seen(admin: QueueAdmin, queue: Queue):
    connection = apsw.Connection(str(queue.path), flags=apsw.SQLITE_OPEN_READWRITE)
    push_as_1x(connection, 3, age_seconds=7200)
    connection.close()
    push(queue)
    status = admin.status()
    assert status.waiting == 4
    assert status.oldest_waiting_seconds == pytest.approx(2 * HOUR, abs=60)
    assert status.last_1x_push_at_ms == pytest.approx(status.taken_at_ms, abs=60_000)


def test_a_reader_of_another_process_is_seen_running_stopped_and_killed(
    admin: QueueAdmin, queue: Queue, queue_dir: Path, start_python: Start, wait_until: Any
):
    push(queue, 5)
    holder = start_python(HOLDER, str(queue_dir), "2")
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding 2\n"
    status = admin.status()
    assert status.condition is Condition.DELIVERING
    assert (status.reader.state, status.reader.pid, status.in_flight) == (ReaderState.RUNNING, holder.pid, 2)
    assert status.reader.since_ms == pytest.approx(status.taken_at_ms, abs=60_000)

    holder.communicate("\n")
    status = admin.status()
    assert (status.reader.state, status.reader.pid, status.in_flight) == (ReaderState.STOPPED, holder.pid, 0)
    assert status.reader.stopped_at_ms is not None

    holder = start_python(HOLDER, str(queue_dir), "2")
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    holder.wait()
    status = admin.status()
    assert (status.condition, status.reader.state, status.reader.pid) == (
        Condition.NO_READER, ReaderState.DIED, holder.pid,
    )  # fmt: skip


def test_a_reader_that_had_nothing_to_do_yet_is_seen_running(
    admin: QueueAdmin, queue_dir: Path, start_python: Start
):
    holder = start_python(HOLDER, str(queue_dir), "0")
    assert holder.stdout is not None
    holder.stdout.readline()
    reader = admin.status().reader
    assert (reader.state, reader.pid, reader.since_ms) == (ReaderState.RUNNING, holder.pid, None)


def test_looking_does_not_drop_the_lock_of_a_reader_in_the_same_process(
    admin: QueueAdmin, queue: Queue, queue_dir: Path, run_python: Callable[..., str]
):
    reader = ActiveReader.activate(queue)
    assert reader is not None
    found = admin.status().reader
    assert (found.state, found.pid) == (ReaderState.RUNNING, os.getpid())
    other = """
        import sys
        from infi.ramen_client.storage import ActiveReader, Place, Queue
        print(ActiveReader.activate(Queue(Place(sys.argv[1], "imx", 1099, "1"), max_bytes=2**30)))
    """
    assert run_python(other, str(queue_dir)) == "None\n"
    reader.close()


def test_a_failure_is_told_in_words_and_what_the_reader_will_do(
    admin: QueueAdmin, reader: QueueReader, writer: QueueWriter
):
    writer.push("metrics", "san", "v1", {})
    assert reader.run(blocking=False) == 0  # nobody listens
    delivery = admin.status().delivery
    assert delivery.last_error is not None
    assert "refused" in delivery.last_error
    assert (delivery.failures, delivery.last_status, delivery.last_success_at_ms) == (1, None, None)
    assert delivery.failing_since_ms is not None
    assert delivery.next_retry_at_ms is not None
    assert delivery.next_retry_at_ms >= delivery.failing_since_ms
    assert delivery.server == "http://127.0.0.1:9"


@pytest.mark.parametrize(("status", "words"), [(429, "asked for a pause"), (503, "server's")])
def test_a_failure_whose_cause_is_elsewhere_has_its_remedy_and_a_success_ends_it(
    admin: QueueAdmin, server: RamenServer, reader: QueueReader, writer: QueueWriter, status: int, words: str
):
    server.answer_with(Status(status))
    writer.push("metrics", "san", "v1", {})
    reader.consume_one()
    delivery = admin.status().delivery
    assert delivery.last_status == status
    assert words in str(delivery.remedy)
    reader.consume_one()
    delivery = admin.status().delivery
    assert (delivery.failing_since_ms, delivery.failures, delivery.next_retry_at_ms) == (None, 0, None)
    assert delivery.last_success_at_ms is not None
    assert str(status) in str(delivery.last_error)


def test_a_suspect_server_is_named(
    admin: QueueAdmin, server: RamenServer, reader: QueueReader, writer: QueueWriter
):
    server.answer_with(*[Status(400, body=b"<html>")] * 5)
    for _ in range(6):
        writer.push("metrics", "san", "v1", {})
    reader.run(blocking=False)
    delivery = admin.status().delivery
    assert delivery.suspect_since_ms is not None
    assert delivery.server == f"http://{server.hostname}"
    assert "suspect" in str(delivery.last_error)


def test_rates_are_the_difference_of_two_readings(queue: Queue):
    def work(_seconds: float) -> None:
        push(queue, 30)
        reader = ActiveReader.activate(queue)
        assert reader is not None
        claimed = reader.claim(20, GIB)
        reader.settle([Settlement(one, Fate.ACCEPTED) for one in claimed[:-1]])
        reader.settle([Settlement(claimed[-1], Fate.PURGED)])  # not delivered
        reader.close()

    push(queue, 10)
    with QueueAdmin(queue.path, sleep=work) as admin:
        status = admin.status()
        assert status.rates is not None
        assert status.rates.incoming * status.rates.seconds == pytest.approx(30)
        assert status.rates.outgoing * status.rates.seconds == pytest.approx(19)
        assert status.empty_in_seconds is None  # more come than go

    def deliver(_seconds: float) -> None:
        reader = ActiveReader.activate(queue)
        assert reader is not None
        reader.settle([Settlement(one, Fate.ACCEPTED) for one in reader.claim(10, GIB)])
        reader.close()

    with QueueAdmin(queue.path, sleep=deliver) as admin:
        status = admin.status()
        assert status.rates is not None
        assert status.empty_in_seconds == pytest.approx(status.rates.seconds)  # 10 left, 10 went


def test_status_beside_busy_writers_is_consistent_and_holds_nobody_up(
    queue: Queue, queue_dir: Path, start_python: Start
):
    writers = [start_python(WRITER, str(queue_dir), "400", f"w{number}") for number in range(3)]
    with QueueAdmin(queue.path) as admin:
        for process in writers:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        while any(process.poll() is None for process in writers):
            status = admin.status(sample_seconds=0.01)
            assert status.books.difference() == 0
            assert status.waiting == status.books.waiting == status.books.pushed
        assert admin.status().waiting == 1200
        assert admin.check() == []


def test_status_waits_for_no_writer(admin: QueueAdmin, queue: Queue):
    other = apsw.Connection(str(queue.path), flags=apsw.SQLITE_OPEN_READWRITE)
    other.execute("BEGIN IMMEDIATE")
    other.execute("UPDATE book SET pushed = pushed + 1")
    began = time.monotonic()
    assert admin.status().books.pushed == 0
    assert admin.dead_letters() == []
    assert admin.purge(EVERYTHING, dry_run=True).messages == 0
    assert time.monotonic() - began < 30  # SQLite would give up after 60
    other.execute("ROLLBACK")
    other.close()


def test_looking_leaves_no_transaction_open_that_would_pin_the_log(admin: QueueAdmin, queue: Queue):
    push(queue, 50)
    lines = admin.export_dead_letters()
    admin.status()
    admin.check()
    admin.purge(EVERYTHING, dry_run=True)
    assert list(lines) == []
    assert log_can_be_truncated(queue.path)


def test_an_export_that_is_not_read_to_its_end_pins_nothing(admin: QueueAdmin, queue: Queue):
    bury(queue, 3)
    lines = admin.export_dead_letters()
    next(lines)
    assert log_can_be_truncated(queue.path)
    assert len(list(lines)) == 2


# Check


def test_check_finds_wrong_books_and_damaged_rows(admin: QueueAdmin, queue: Queue):
    push(queue, 700)
    assert admin.check() == []
    damage(queue.path, "UPDATE message SET pushed_at = pushed_at + 1 WHERE position IN (600, 650)")
    assert admin.check() == [
        "2 waiting messages are damaged (wrong checksums), the first at position 600; the reader will make dead letters of them"
    ]
    damage(queue.path, "UPDATE book SET accepted = accepted + 3")
    assert admin.check()[0] == "the books do not balance: -3 of 700 pushed"


def test_check_says_what_sqlite_finds_in_a_file_with_a_damaged_page(queue: Queue):
    push(queue, 300, os.urandom(2000))
    damage(queue.path, "PRAGMA wal_checkpoint(TRUNCATE)")
    path = queue.path
    queue.close()
    page = path.stat().st_size // 4096 // 2
    program = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(int(sys.argv[2])); f.write(b'\\xff' * 4096)"
    subprocess.run([sys.executable, "-c", program, str(path), str(page * 4096)], check=True)
    with QueueAdmin(path) as admin:
        assert any(problem.startswith("integrity: ") for problem in admin.check())


# Purging


def test_a_selection_says_something_and_everything_stands_alone():
    for wrong in ({}, {"everything": True, "category": "metrics"}):
        with pytest.raises(ValidationError):
            Selection(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("selection", "left"),
    [
        (Selection(category="events"), 3),
        (Selection(data_type="cpu"), 2),
        (Selection(older_than_seconds=1.5 * HOUR), 3),
        (Selection(category="metrics", data_type="cpu", older_than_seconds=0.5 * HOUR), 3),
        (Selection(category="x"), 4),
        (EVERYTHING, 0),
    ],
)
def test_what_is_selected_is_purged_and_counted_and_the_rest_stays(
    admin: QueueAdmin, queue: Queue, selection: Selection, left: int
):
    push(queue, category="events", data_type="cpu", age=0)
    push(queue, data_type="cpu", age=HOUR)
    push(queue, age=2 * HOUR)
    push(queue)
    assert admin.purge(selection, dry_run=True).messages == 4 - left
    assert (queue.size(), queue.books().purged) == (4, 0)
    assert admin.purge(selection).messages == 4 - left
    assert (queue.size(), queue.books().purged) == (left, 4 - left)
    assert admin.check() == []


def test_rows_of_1x_are_purged_where_they_lie(admin: QueueAdmin, queue: Queue):
    connection = apsw.Connection(str(queue.path), flags=apsw.SQLITE_OPEN_READWRITE)
    push_as_1x(connection, 3)
    push_as_1x(connection, 2, data_type="cpu", age_seconds=7200)
    connection.close()
    push(queue, data_type="cpu")
    assert admin.purge(Selection(data_type="cpu", older_than_seconds=HOUR)).messages == 2
    assert admin.check() == []
    assert admin.purge(EVERYTHING).messages == 4
    assert (queue.books().purged, queue.size()) == (6, 0)
    assert admin.check() == []


def test_what_is_in_flight_is_left_alone_and_said(
    admin: QueueAdmin, queue: Queue, queue_dir: Path, start_python: Start
):
    push(queue, 10)
    holder = start_python(HOLDER, str(queue_dir), "4")
    assert holder.stdout is not None
    holder.stdout.readline()
    for dry_run in (True, False):
        purged = admin.purge(EVERYTHING, dry_run=dry_run)
        assert (purged.messages, purged.in_flight) == (6, 4)
    assert queue.size() == 4
    assert admin.check() == []


def test_what_a_killed_reader_had_in_flight_is_purged(
    admin: QueueAdmin, queue: Queue, queue_dir: Path, start_python: Start
):
    push(queue, 10)
    holder = start_python(HOLDER, str(queue_dir), "4")
    assert holder.stdout is not None
    holder.stdout.readline()
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    for dry_run in (True, False):
        purged = admin.purge(EVERYTHING, dry_run=dry_run)
        assert (purged.messages, purged.in_flight) == (10, 0)
    assert admin.check() == []


def test_a_purge_works_in_steps_between_which_others_push_and_what_they_push_stays(queue: Queue):
    push(queue, 1200)
    pauses: list[float] = []

    def others_work(seconds: float) -> None:
        pauses.append(seconds)
        push(queue)

    with QueueAdmin(queue.path, sleep=others_work) as admin:
        assert admin.purge(EVERYTHING).messages == 1200
        assert len(pauses) == 3  # 500 rows a step
        assert all(pause > 0 for pause in pauses)
        push(queue, 4, b'"' + base64.b64encode(os.urandom(900_000)) + b'"')
        pauses.clear()
        assert admin.purge(EVERYTHING).messages == 7
        assert len(pauses) >= 2  # a megabyte a step
        assert admin.check() == []


def test_a_purge_under_a_living_reader_loses_nothing_from_the_books(
    server: RamenServer,
    reader: QueueReader,
    writer: QueueWriter,
    queue_dir: Path,
    start_python: Start,
    wait_until: Any,
):
    """What the server has was accepted, what was purged never came to it, and the books are right to the message."""
    reader.start_thread()
    process = start_python(WRITER, str(queue_dir), "1500", "busy")
    purged = 0
    with QueueAdmin(queue_dir / "imx_1099.db") as admin:
        while process.poll() is None:
            purged += admin.purge(EVERYTHING).messages
        wait_until(lambda: writer.queue_size() == 0)
        reader.stop()
        books = admin.books()
        assert (books.pushed, books.purged) == (1500, purged)
        assert books.accepted + books.purged == 1500
        assert purged
        assert len({one.reqid for one in server.accepted}) == books.accepted
        assert admin.check() == []


# Dead letters


def test_dead_letters_are_listed_by_pages_and_selections_without_their_payloads(
    admin: QueueAdmin, queue: Queue
):
    bury(queue, 5, b'{"a": 1}')
    bury(queue, data_type="cpu", category="events", death=Death("damaged on disk", ""))
    first = admin.dead_letters(limit=4)
    rest = admin.dead_letters(after=first[-1].position, limit=4)
    assert [head.position for head in first + rest] == [1, 2, 3, 4, 5, 6]
    assert admin.dead_letters(after=rest[-1].position) == []
    head = first[0]
    assert (head.category, head.data_type, head.data_version, head.system_version) == (
        "metrics",
        "san",
        "v1",
        "3.0",
    )
    assert (head.plain_bytes, head.stored_bytes) == (8, len(zlib.compress(b'{"a": 1}')))
    assert head.death == Death("the server refused it (400)", "no such thing", 400, "BAD_REQUEST")
    assert head.died_at_ms >= head.pushed_at_ms
    for selection in (Selection(data_type="cpu"), Selection(category="events")):
        assert [one.position for one in admin.dead_letters(selection)] == [6]
    assert admin.dead_letters(Selection(older_than_seconds=HOUR)) == []
    status = admin.status()
    assert (status.dead_letters, status.dead_letter_bytes) == (
        6,
        5 * head.stored_bytes + len(zlib.compress(b"{}")),
    )


def test_a_payload_is_shown_as_far_as_was_asked(admin: QueueAdmin, queue: Queue):
    payload = json.dumps(list(range(100_000))).encode()
    bury(queue, 1, payload)
    for size in (0, 1, 1000, len(payload) - 1):
        found = admin.dead_letter(1, max_payload_bytes=size)
        assert found is not None
        assert (found[1].plain, found[1].is_whole, found[1].is_damaged) == (payload[:size], False, False)
    for size in (len(payload), 10 * len(payload)):
        found = admin.dead_letter(1, max_payload_bytes=size)
        assert found is not None
        assert (found[1].plain, found[1].is_whole, found[1].is_damaged) == (payload, True, False)
    assert admin.dead_letter(2) is None


def test_a_payload_that_inflates_hugely_is_shown_in_bounded_memory(admin: QueueAdmin, queue: Queue):
    bury(queue, 1, b"[" + b" " * 50_000_000 + b"]")
    found = admin.dead_letter(1, max_payload_bytes=10)
    assert found is not None
    assert (found[0].plain_bytes, found[1].plain) == (50_000_002, b"[         ")


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        ("data = substr(data, 1, 300)", True),
        ("data = x'00'", False),
        ("data = x''", False),
        ("data = 'text'", False),
        ("data = 5", False),
        ("category = x'ff', reqid = x'ff', details = x'ff', plain_length = 'x'", True),
    ],
)
def test_damaged_dead_letters_of_every_kind_can_be_looked_at_exported_and_discarded(
    admin: QueueAdmin, queue: Queue, change: str, plain: bool
):
    payload = json.dumps([os.urandom(4).hex() for _ in range(100)]).encode()
    bury(queue, 2, payload)
    damage(queue.path, f"UPDATE dead_letter SET {change} WHERE position = 1")
    assert len(admin.dead_letters()) == 2
    found = admin.dead_letter(1)
    assert found is not None
    assert found[1].is_damaged is ("data =" in change)
    assert bool(found[1].plain) is plain
    line = json.loads(next(admin.export_dead_letters()))
    assert "damaged_base64" in line
    assert admin.discard_dead_letters([1]).letters == 1
    assert queue.books().dead == 1


def test_dead_letters_are_retried_by_position_by_selection_and_all(admin: QueueAdmin, queue: Queue):
    bury(queue, 3)
    bury(queue, 2, data_type="cpu")
    bury(queue, 250)
    changed = admin.retry_dead_letters([2, 1, 2, 999])
    assert (changed.letters, changed.damaged, changed.missing) == (2, 0, 1)
    assert admin.retry_dead_letters(Selection(data_type="cpu")).letters == 2
    damage(queue.path, "UPDATE dead_letter SET plain_length = -1 WHERE position = 200")
    changed = admin.retry_dead_letters(EVERYTHING)
    assert (changed.letters, changed.damaged, changed.missing) == (250, 1, 0)
    assert (queue.size(), queue.books().dead) == (254, 1)
    assert [found for found in admin.check() if "checksums" not in found] == []
    oldest = queue.oldest()
    assert oldest is not None
    assert oldest.position == 1


def test_dead_letters_are_discarded_and_counted(admin: QueueAdmin, queue: Queue):
    bury(queue, 5)
    bury(queue, 2, data_type="cpu")
    changed = admin.discard_dead_letters([1, 7, 8])
    assert (changed.letters, changed.missing) == (2, 1)
    assert admin.discard_dead_letters(Selection(data_type="cpu")).letters == 1
    assert admin.discard_dead_letters(EVERYTHING).letters == 4
    books = queue.books()
    assert (books.dead, books.dead_discarded) == (0, 7)
    assert admin.check() == []


def test_a_rejection_that_may_go_back_can_be_retried_or_discarded_too(admin: QueueAdmin, queue: Queue):
    push(queue, 2)
    reader = ActiveReader.activate(queue)
    assert reader is not None
    for one in reader.claim(2, GIB):
        reader.reject_unexplained(Settlement(one, Fate.DEAD, Death("refused", "", 400)), "http://x:80")
    reader.close()
    assert admin.retry_dead_letters([1]).letters == 1
    assert admin.discard_dead_letters([2]).letters == 1
    connection = apsw.Connection(str(queue.path), flags=apsw.SQLITE_OPEN_READWRITE)
    assert connection.execute("SELECT count(*) FROM unexplained").get == 0
    connection.close()
    assert admin.check() == []


def test_dead_letters_are_exported_as_json_whatever_was_pushed(admin: QueueAdmin, queue: Queue):
    bury(queue, 1, b'{"a":\r\n [1.50, "\\u2028"]}')
    bury(queue, 1, b"no JSON\n")
    bury(queue, 1, b"[NaN]")
    bury(queue, 1, b"\xff\xfe")
    bury(queue, 1, b"5", data_version=7, reqid="a\nb", death=Death("why\n", "", None, None))
    lines = list(admin.export_dead_letters())
    assert all(line.endswith(b"}\n") and line.count(b"\n") == 1 for line in lines)
    exported = [json.loads(line) for line in lines]
    assert exported[0]["payload"] == {"a": [1.5, "\u2028"]}
    assert b"1.50" in lines[0]
    assert [base64.b64decode(one["payload_base64"]) for one in exported[1:4]] == [
        b"no JSON\n",
        b"[NaN]",
        b"\xff\xfe",
    ]
    last = exported[4]
    assert (last["payload"], last["data_version"], last["reqid"], last["reason"], last["status"]) == (
        5, 7, "a\nb", "why\n", None,
    )  # fmt: skip
    assert [json.loads(line)["position"] for line in admin.export_dead_letters(Selection(category="x"))] == []


# Rules


def test_rules_are_listed_with_hits_and_lifted_by_number_by_fields_or_all_and_a_living_reader_obeys(
    admin: QueueAdmin,
    server: RamenServer,
    reader: QueueReader,
    writer: QueueWriter,
    config: QueueReaderConfig,
):
    server.answer_with(
        Drop({"data_type": "san"}), Drop({"data_type": "cpu", "category": "metrics"}), Accept()
    )
    for data_type in ("san", "cpu", "san", "san"):
        writer.push("metrics", data_type, "v1", {})
    reader.run(blocking=False)
    rules = admin.rules()
    assert [(stored.rule.as_json(), stored.hits) for stored in rules] == [
        ({"data_type": "san"}, 2),
        ({"category": "metrics", "data_type": "cpu"}, 0),
    ]
    assert [stored.hits for stored in admin.status().rules] == [2, 0]
    assert admin.rules({"data_type": "cpu"}) == rules[1:]
    assert admin.rules({"data_type": "cpu", "sender": "imx"}) == []
    assert admin.lift_rules([rules[0].rule_id, 999]) == 1
    writer.push("metrics", "san", "v1", {"sent": "again"})
    reader.run(blocking=False)
    assert [one.json() for one in server.accepted] == [{"sent": "again"}]
    assert admin.lift_rules(stored.rule_id for stored in admin.rules()) == 1
    assert admin.rules() == []


def test_a_refusal_by_the_server_becomes_a_dead_letter_that_says_why(
    admin: QueueAdmin, server: RamenServer, reader: QueueReader, writer: QueueWriter
):
    server.answer_with(Refuse("BAD_REQUEST", "no such type"))
    writer.push("metrics", "san", "v1", {})
    reader.run(blocking=False)
    (head,) = admin.dead_letters()
    assert (head.death.status, head.death.code, head.death.details) == (400, "BAD_REQUEST", "no such type")
