"""A queue that 1.x left behind, with a backlog and maybe a writer that still runs (api-1x.md, "A 1.x queue on disk").

The files are made by the standard library's `sqlite3` with 1.x's table and settings, in processes of their own: no process
may have a file open by two SQLite libraries. The real 1.x does the same in `tests/system/test_real_1x.py`.
"""

from __future__ import annotations

import json
import random
import signal
import time
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client.errors import QueueUnusable
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import Status

if TYPE_CHECKING:
    from pathlib import Path

    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.testing import RamenServer

ONE_X = """
    import base64, json, sqlite3, sys, time, zlib

    path = sys.argv[1]

    def connect():
        return sqlite3.connect(path, timeout=60)

    def make():
        connection = connect()
        connection.execute("PRAGMA page_size=4096")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS queue ("
            " id INTEGER PRIMARY KEY AUTOINCREMENT, ts TIMESTAMP DEFAULT CURRENT_TIMESTAMP,"
            " category TEXT NOT NULL, data_type TEXT NOT NULL, data_version INTEGER NOT NULL,"
            " reqid TEXT, data BLOB NOT NULL)"
        )
        connection.commit()
        return connection

    def push(connection, category, data_type, data_version, reqid, data):
        with connection:
            return connection.execute(
                "INSERT INTO queue (category, data_type, data_version, reqid, data) VALUES (?, ?, ?, ?, ?)",
                (category, data_type, data_version, reqid, data),
            ).lastrowid
"""

BACKLOG = (
    ONE_X
    + """
    connection = make()
    for category, data_type, data_version, reqid, data in json.load(sys.stdin):
        push(connection, category, data_type, data_version, reqid, base64.b64decode(data))
    """
)


@pytest.fixture
def file(queue_dir: Path) -> Path:
    queue_dir.mkdir()
    return queue_dir / "imx_1099.db"


@pytest.fixture
def leave_backlog(start_python: Any, file: Path) -> Any:
    """Make the file, as a 1.x program leaves it, with rows of (category, data_type, data_version, reqid, plain data)."""
    import base64

    def leave(*rows: tuple[Any, ...], damaged: dict[int, bytes] | None = None) -> None:
        streams = [zlib.compress(data) for *_, data in rows]
        for index, data in (damaged or {}).items():
            streams[index] = data
        process = start_python(BACKLOG, str(file))
        process.communicate(
            json.dumps(
                [
                    [*row[:-1], base64.b64encode(data).decode()]
                    for row, data in zip(rows, streams, strict=True)
                ]
            )
        )
        assert process.returncode == 0

    return leave


def plain_rows(count: int) -> list[tuple[Any, ...]]:
    return [("metrics", "x", "v1", None, json.dumps({"n": n}).encode()) for n in range(count)]


def assert_in_order(writer: QueueWriter) -> None:
    assert writer._store.check() == []
    assert writer._store.books().difference() == 0


def test_a_backlog_is_delivered_in_order_with_the_reqids_and_versions_that_1x_would_have_sent(
    leave_backlog: Any, config: QueueReaderConfig, server: RamenServer, open_writer: Any, open_reader: Any
):
    rows = [
        ("metrics", "x", "v1", None, b'{"n":0}'),
        ("metrics", "x", 1, None, b'{"n":1}'),
        ("metrics", "x", "1", None, b'{"n":2}'),  # 1.x's integer affinity makes it 1
        ("metrics", "x", "01", None, b'{"n":3}'),  # ... and 1 of this, before we ever see it
        ("metrics", "x", "a-1", "mine", b'{"n":4}'),
        ("metrics", "x", "v1", "a&b c\u00fc", b'{"n":5}'),
        ("metrics", "x", "v1", "", b'{"n":6}'),  # 1.x sends the row number where the reqid is empty
        ("metrics", "x", "v1", None, b"x" * 100_000),
        ("events", "y_z", 0, "7", b'{"n":8}'),
        ("metrics", "x", 2**62, None, b""),
    ]
    rows[7] = (*rows[7][:4], json.dumps({"n": 7, "noise": "x" * 100_000}).encode())
    rows[9] = (*rows[9][:4], b'{"n":9}')
    leave_backlog(*rows)

    with open_writer() as writer:
        assert writer.queue_size() == 10
        assert open_reader().run(blocking=False) == 10
        assert_in_order(writer)

    arrived = server.accepted
    assert [message.json()["n"] for message in arrived] == list(range(10))
    assert [message.reqid for message in arrived] == [
        "1",
        "2",
        "3",
        "4",
        "mine",
        "a&b c\u00fc",
        "7",
        "8",
        "7",
        "10",
    ]
    assert [message.envelope.data_version for message in arrived[:5]] == ["v1", "1", "1", "1", "a-1"]
    assert arrived[8].envelope.data_version == "0"
    assert arrived[9].envelope.data_version == str(2**62)
    assert zlib.decompress(arrived[7].body) == rows[7][4]
    assert {message.envelope.system_version for message in arrived} == {"3.0.0.1"}


def test_what_2_0_pushes_comes_after_the_backlog_under_reqids_of_its_own(
    leave_backlog: Any, server: RamenServer, config: QueueReaderConfig, open_writer: Any, open_reader: Any
):
    leave_backlog(*plain_rows(50))
    writer = open_writer()
    reqids = [writer.push("metrics", "x", "v1", {"n": n}) for n in range(50, 60)]
    assert writer.queue_size() == 60

    assert open_reader().run(blocking=False) == 60
    assert [message.json()["n"] for message in server.accepted] == list(range(60))
    assert [message.reqid for message in server.accepted] == [*map(str, range(1, 51)), *reqids]
    assert_in_order(writer)


def test_a_backlog_keeps_the_system_version_of_the_take_over(
    leave_backlog: Any, server: RamenServer, make_config: Any, open_writer: Any, open_reader: Any
):
    leave_backlog(*plain_rows(2))
    open_writer(make_config(system_version="3.0")).close()
    upgraded = make_config(system_version="4.0")
    open_writer(upgraded).push("metrics", "x", "v1", {"n": 2})

    open_reader(upgraded).run(blocking=False)
    assert [message.envelope.system_version for message in server.accepted] == ["3.0", "3.0", "4.0"]


def test_the_old_queue_object_pops_a_backlogs_items_as_1x_would(
    leave_backlog: Any, config: Any, open_writer: Any
):
    leave_backlog(("metrics", "x", 5, None, b"{}"), ("metrics", "x", "v1", "mine", b"[]"))
    queue = open_writer()._queue

    assert len(queue) == 2
    first, second = queue.pop(), queue.pop()
    assert (first["data_version"], first["reqid"], zlib.decompress(first["data"])) == (5, None, b"{}")
    assert (second["data_version"], second["reqid"], zlib.decompress(second["data"])) == ("v1", "mine", b"[]")
    assert queue.pop() is None


def test_damaged_rows_become_dead_letters_and_hold_up_no_other(
    leave_backlog: Any, server: RamenServer, config: Any, open_writer: Any, open_reader: Any
):
    rows = plain_rows(8)
    rows[6] = ("me trics", *rows[6][1:])
    rows[7] = ("metrics", "x", "v1", "r" * 3000, rows[7][4])
    stream = zlib.compress(b'{"n":1}')
    damaged = {1: b"", 2: b"no zlib", 3: stream[:-1], 4: stream[:-2] + b"\0\0"}
    leave_backlog(*rows, damaged=damaged)
    writer = open_writer()

    open_reader().run(blocking=False)
    assert [message.json()["n"] for message in server.accepted] == [0, 5]
    assert writer.queue_size() == 0
    dead = writer._store.dead_letters()
    assert [letter.message.data for letter in dead[:4]] == list(damaged.values())  # kept as they are
    assert len(dead) == 6
    assert all("1.x" in letter.death.reason for letter in dead)
    assert_in_order(writer)


def test_an_empty_1x_file_is_taken_over_too(
    leave_backlog: Any, server: RamenServer, config: Any, open_writer: Any, open_reader: Any
):
    leave_backlog()
    writer = open_writer()
    assert writer.queue_size() == 0
    writer.push("metrics", "x", "v1", {})

    assert open_reader().run(blocking=False) == 1


def test_a_file_whose_1x_rows_were_all_delivered_gives_its_next_1x_row_a_new_number(
    leave_backlog: Any,
    server: RamenServer,
    config: Any,
    open_writer: Any,
    open_reader: Any,
    file: Path,
    run_python: Any,
):
    leave_backlog(*plain_rows(3))
    reader = open_reader()
    reader.run(blocking=False)
    row = run_python(
        ONE_X + "\n    print(push(connect(), 'metrics', 'x', 'v1', None, zlib.compress(b'{}')))", str(file)
    )

    assert row.strip() == "4"
    assert reader.run(blocking=False) == 1
    assert [message.reqid for message in server.accepted] == ["1", "2", "3", "4"]
    assert not server.duplicates


def test_a_file_made_by_2_0_takes_a_1x_writer_whose_row_numbers_no_former_file_had(
    server: RamenServer, config: Any, writer: Any, reader: Any, queue_dir: Path, run_python: Any
):
    row = run_python(
        ONE_X + "\n    print(push(connect(), 'metrics', 'x', 'v1', None, zlib.compress(b'{}')))",
        str(queue_dir / "imx_1099.db"),
    )

    assert int(row) > 10**15
    assert reader.run(blocking=False) == 1
    assert server.accepted[0].reqid == row.strip()


ONE_X_WRITER = (
    ONE_X
    + """
    connection = connect()
    for number in range(int(sys.argv[2])):
        print(push(connection, "metrics", "by_1x", number, None, zlib.compress(b'{"n":%d}' % number)), flush=True)
        time.sleep(0.001)
    """
)


def test_a_1x_writer_that_still_runs_goes_on_pushing_while_2_0_delivers_and_nothing_is_lost(
    leave_backlog: Any,
    server: RamenServer,
    config: Any,
    file: Path,
    open_writer: Any,
    open_reader: Any,
    in_background: Any,
    start_python: Any,
):
    leave_backlog(*plain_rows(100))
    one_x = start_python(ONE_X_WRITER, str(file), "200")
    one_x_ids = [one_x.stdout.readline().strip()]  # it runs before we come
    writer, reader = open_writer(), open_reader()
    running = in_background(reader.run)
    reqids = [writer.push("metrics", "by_2", "v1", {"n": n}) for n in range(100)]
    with one_x:
        one_x_ids += one_x.stdout.read().split()
    assert one_x.returncode == 0

    assert writer.wait_sent(20)
    arrived = server.accepted
    streams = {
        name: [message for message in arrived if message.envelope.data_type == name]
        for name in ("x", "by_1x", "by_2")
    }
    assert [message.reqid for message in streams["x"]] == [str(n) for n in range(1, 101)]
    assert [message.reqid for message in streams["by_1x"]] == one_x_ids
    assert [message.json()["n"] for message in streams["by_1x"]] == list(range(200))
    assert [message.envelope.data_version for message in streams["by_1x"]] == [str(n) for n in range(200)]
    assert [message.reqid for message in streams["by_2"]] == reqids
    assert not server.duplicates
    reader.stop()
    running.join()
    books = writer._store.books()
    assert (books.pushed, books.accepted, books.waiting, books.removed_by_1x) == (400, 400, 0, 0)
    assert_in_order(writer)


def test_a_push_by_1x_wakes_the_reader_at_once(
    leave_backlog: Any,
    server: RamenServer,
    make_config: Any,
    file: Path,
    open_reader: Any,
    in_background: Any,
    start_python: Any,
):
    leave_backlog()
    reader = open_reader(make_config(polling_delay=3600))
    running = in_background(reader.run)
    time.sleep(0.2)
    one_x = start_python(ONE_X_WRITER, str(file), "1")
    one_x.wait()

    server.wait_for(1, 1.0)
    reader.stop()
    running.join()


def test_what_a_1x_program_takes_away_shows_in_the_books(
    leave_backlog: Any,
    server: RamenServer,
    config: Any,
    file: Path,
    open_writer: Any,
    open_reader: Any,
    run_python: Any,
):
    leave_backlog(*plain_rows(10))
    writer = open_writer()
    run_python(ONE_X + "\n    with connect() as c: c.execute('DELETE FROM queue WHERE id <= 3')", str(file))
    assert writer.queue_size() == 7

    open_reader().run(blocking=False)
    books = writer._store.books()
    assert (books.pushed, books.accepted, books.removed_by_1x) == (10, 7, 3)
    assert_in_order(writer)


def test_a_take_over_that_fails_leaves_the_file_as_it_was(
    leave_backlog: Any,
    config: QueueReaderConfig,
    file: Path,
    run_python: Any,
    monkeypatch: pytest.MonkeyPatch,
):
    from infi.ramen_client.storage import _statements

    leave_backlog(*plain_rows(5))
    schema = _statements.SCHEMA
    monkeypatch.setattr(_statements, "SCHEMA", schema + "CREATE TABLE meta (again INTEGER);")
    with pytest.raises(Exception, match="meta"):
        QueueWriter(config)

    program = (
        ONE_X
        + "\n    print(json.dumps(connect().execute('SELECT name FROM sqlite_master ORDER BY name').fetchall()))"
    )
    assert json.loads(run_python(program, str(file))) == [["queue"], ["sqlite_sequence"]]
    monkeypatch.setattr(_statements, "SCHEMA", schema)
    with QueueWriter(config) as writer:
        assert writer.queue_size() == 5


def test_a_file_of_a_newer_format_is_refused_untouched(
    leave_backlog: Any, config: QueueReaderConfig, file: Path, run_python: Any
):
    leave_backlog(*plain_rows(1))
    QueueWriter(config).close()
    run_python(ONE_X + "\n    with connect() as c: c.execute('UPDATE meta SET min_reader = 99')", str(file))

    with pytest.raises(QueueUnusable, match="newer"):
        QueueWriter(config)


TAKE_OVER = """
    import json, sys
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_reader import QueueReader
    config = QueueReaderConfig(json.loads(sys.argv[1]))
    print("ready", flush=True)
    reader = QueueReader(config)
    print("taken over", flush=True)
    reader.run()
"""


def test_a_take_over_killed_at_any_moment_leaves_the_queue_intact(
    leave_backlog: Any,
    server: RamenServer,
    config: QueueReaderConfig,
    fields: dict[str, Any],
    start_python: Any,
    open_writer: Any,
    open_reader: Any,
):
    """Killed while it makes the schema, while it moves rows, while it delivers; each time the next one goes on."""
    count = 600
    leave_backlog(*plain_rows(count))
    chance = random.Random(2)
    server.default = Status(503)  # the rows only move at first, and none leaves
    for round_number in range(10):
        if round_number == 8:
            from infi.ramen_client.testing import Accept

            server.default = Accept()
        process = start_python(TAKE_OVER, json.dumps(fields))
        assert process.stdout.readline() == "ready\n"
        if round_number % 5:
            time.sleep(chance.uniform(0, 0.03))
        else:
            time.sleep(chance.uniform(0, 0.003))
        process.send_signal(signal.SIGKILL)
        process.wait()

    writer = open_writer()
    assert writer._store.check() == []
    books = writer._store.books()
    assert (books.pushed, books.difference()) == (count, 0)
    open_reader().run(blocking=False)
    assert [message.reqid for message in server.accepted] == [str(n) for n in range(1, count + 1)]
    assert [message.json()["n"] for message in server.accepted] == list(range(count))
    assert_in_order(writer)


def test_the_very_take_over_killed_at_any_moment_leaves_the_1x_file_or_the_whole_schema(
    leave_backlog: Any,
    config: QueueReaderConfig,
    fields: dict[str, Any],
    file: Path,
    start_python: Any,
    open_writer: Any,
    tmp_path: Path,
):
    """Each round begins with a fresh copy of the 1.x file; the kill comes within the milliseconds of the opening."""
    import shutil

    leave_backlog(*plain_rows(300))
    original = tmp_path / "original"
    shutil.copytree(file.parent, original)
    chance = random.Random(3)
    for _ in range(15):
        shutil.rmtree(file.parent)
        shutil.copytree(original, file.parent)
        process = start_python(TAKE_OVER, json.dumps(fields))
        assert process.stdout.readline() == "ready\n"
        time.sleep(chance.uniform(0, 0.012))
        process.send_signal(signal.SIGKILL)
        process.wait()
        with open_writer() as writer:
            assert writer.queue_size() == 300
            assert_in_order(writer)
