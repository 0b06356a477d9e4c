"""The real `infi.ramen_client` 1.40.post3 and 2.0 on one queue file: backlog, take-over, a 1.x writer that goes on.

1.x runs in an environment of its own (made once, by pip), in processes of its own.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import textwrap
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.environment import ONE_X
from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.queue_reader import QueueReader
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import RamenServer, Status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

START = """
    import datetime, decimal, json, sys, uuid, zlib
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_writer import QueueWriter
    from infi.ramen_client.queue_reader import QueueReader
    from infi.ramen_client.__version__ import __version__
    assert __version__.startswith("1.40"), __version__
    config = QueueReaderConfig(json.loads(sys.argv[1]))

    def last_row(writer):
        return writer._queue._get_conn().execute("SELECT seq FROM sqlite_sequence").fetchone()[0]
"""

BACKLOG = (
    START
    + """
    writer = QueueWriter(config)
    versions = ["v1", "2", 3, "04", "1e3", "a-b_c", "1_000", 2 ** 40, "-5", "0x10"]
    reqids = [None, "mine", "", "a-b", "12", 12, str(uuid.UUID(int=7)), "x" * 500]
    if sys.argv[2] == "hostile":
        reqids += ["a&b", "x&reqid=y", "\\u00fc \\u20ac", "100%", "a b"]
    payloads = [
        {"a": 1}, [1, 2], "{\\"text\\" : true}", b"[null]", {"d": decimal.Decimal("1.5"), "t": datetime.datetime(2024, 1, 2)},
        {"noise": "x" * 200000}, {}, 0,
    ]
    for number in range(400):
        writer.push(
            ["metrics", "events", "log_s-1"][number % 3], "x%d" % (number % 7), versions[number % 10],
            payloads[number % 8], reqids[number % len(reqids)],
        )
    rows = writer._queue._get_conn().execute("SELECT * FROM queue ORDER BY id").fetchall()
    print(json.dumps([
        [row["category"], row["data_type"], str(row["data_version"]), str(row["reqid"] or row["id"]),
         zlib.decompress(row["data"]).decode()]
        for row in rows
    ]))
    """
)

GO_ON = (
    START
    + """
    import time
    writer = QueueWriter(config)
    for number in range(int(sys.argv[2])):
        writer.push("metrics", "by_1x", "v1", {"n": number})
        print(last_row(writer), flush=True)
        time.sleep(0.001)
    """
)

READ = (
    START
    + """
    print(QueueReader(config).run(blocking=False))
    """
)


@pytest.fixture(scope="session")
def one_x_python() -> str:
    return str(ONE_X.interpreter())


@pytest.fixture
def run_1x(one_x_python: str, tmp_path: Path) -> Any:
    def start(program: str, fields: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                one_x_python,
                "-I",
                "-W",
                "ignore",
                "-c",
                textwrap.dedent(program),
                json.dumps(fields),
                *arguments,
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )

    return start


@pytest.fixture
def server() -> Iterator[RamenServer]:
    with RamenServer() as running:
        yield running


@pytest.fixture
def fields(tmp_path: Path, server: RamenServer) -> dict[str, Any]:
    return {
        "sender": "imx",
        "system_serial": 1099,
        "system_version": "3.0.0.1",
        "queue_dir": str(tmp_path / "queue"),
        "hostname": server.hostname,
        "auth_token": server.token,
        "ssl": False,
        "retry_delay": 0.05,
    }


def leave_backlog(run_1x: Any, fields: dict[str, Any], kind: str) -> list[list[str]]:
    process = run_1x(BACKLOG, fields, kind)
    output = process.communicate()[0]
    assert process.returncode == 0
    rows: list[list[str]] = json.loads(output)
    assert len(rows) == 400
    return rows


def as_rows(server: RamenServer) -> list[list[str]]:
    return [
        [
            message.envelope.category,
            message.envelope.data_type,
            message.envelope.data_version,
            message.reqid,
            message.payload.decode(),
        ]
        for message in server.received
    ]


def assert_books_balance(writer: QueueWriter) -> None:
    assert writer._store.check() == []
    assert writer._store.books().difference() == 0


def test_a_backlog_of_the_real_1x_is_delivered_while_a_real_1x_writer_goes_on_pushing(
    run_1x: Any, server: RamenServer, fields: dict[str, Any]
):
    backlog = leave_backlog(run_1x, fields, "hostile")
    config = QueueReaderConfig(fields, max_in_flight=1)  # 1.x's order
    one_x = run_1x(GO_ON, fields, "300")
    one_x_ids = [one_x.stdout.readline().strip() for _ in range(20)]
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        thread = threading.Thread(target=reader.run, daemon=True)
        thread.start()
        reqids = [writer.push("metrics", "by_2", "v1", {"n": n}) for n in range(200)]
        assert one_x.stdout is not None
        with one_x:
            one_x_ids += one_x.stdout.read().split()
        assert one_x.returncode == 0
        assert writer.wait_sent(60)
        reader.stop()
        thread.join(10)
        assert not thread.is_alive()
        books = writer._store.books()
        assert (books.pushed, books.accepted, books.waiting) == (900, 900, 0)
        assert_books_balance(writer)

    arrived = as_rows(server)
    assert [
        row for row in arrived if not row[1].startswith("by_")
    ] == backlog  # each once, in order, as 1.x would
    assert [row[3] for row in arrived if row[1] == "by_1x"] == one_x_ids
    assert [row[3] for row in arrived if row[1] == "by_2"] == reqids
    assert len(arrived) == 900


def test_2_0_sends_a_backlog_as_the_real_1x_reader_sends_it(
    run_1x: Any, server: RamenServer, fields: dict[str, Any], tmp_path: Path
):
    backlog = leave_backlog(run_1x, fields, "plain")
    shutil.copytree(tmp_path / "queue", tmp_path / "copy")
    process = run_1x(READ, fields)
    assert process.communicate()[0].strip() == "400"
    assert as_rows(server) == backlog

    with RamenServer() as other:
        config = QueueReaderConfig(
            fields
            | {
                "queue_dir": str(tmp_path / "copy"),
                "hostname": other.hostname,
                "auth_token": other.token,
                "max_in_flight": 1,
            }
        )
        with QueueReader(config) as reader:
            assert reader.run(blocking=False) == 400
        ours, theirs = other.received, server.received
    assert [message.target for message in ours] == [message.target for message in theirs]
    assert [message.body for message in ours] == [message.body for message in theirs]
    for name in ("content-type", "content-encoding", "x-api-token"):
        assert {message.headers[name] for message in ours} == {message.headers[name] for message in theirs}


def test_a_real_1x_writer_at_its_size_limit_takes_away_messages_which_the_books_show(
    run_1x: Any, server: RamenServer, fields: dict[str, Any]
):
    """1.x trims and vacuums the file that we have open; what it throws away is counted, and nothing else is missing."""
    server.default = Status(503)
    backlog = leave_backlog(run_1x, fields, "plain")
    config = QueueReaderConfig(fields, max_in_flight=1)  # 1.x's order
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        one_x = run_1x(GO_ON, fields | {"max_queue_size": 100 * 1024}, "50")
        output = one_x.communicate()[0].split()
        assert (one_x.returncode, len(output)) == (0, 50)
        books = writer._store.books()
        assert (books.pushed, books.waiting + books.removed_by_1x) == (450, 450)
        assert books.removed_by_1x > 0
        assert_books_balance(writer)

        from infi.ramen_client.testing import Accept

        server.default = Accept()
        reader.run(blocking=False)
        after = writer._store.books()
        assert (after.accepted, after.waiting) == (books.waiting, 0)
        assert_books_balance(writer)
    arrived = Counter(map(tuple, as_rows(server)))
    assert max(arrived.values()) == 1
    assert sum(arrived.values()) == books.waiting
    assert {row for row in arrived if row[1] != "by_1x"} <= set(map(tuple, backlog))


def test_a_real_1x_writer_may_push_into_a_file_made_by_2_0(
    run_1x: Any, server: RamenServer, fields: dict[str, Any]
):
    config = QueueReaderConfig(fields, max_in_flight=1)  # 1.x's order
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        writer.push("metrics", "by_2", "v1", {})
        process = run_1x(GO_ON, fields, "10")
        ids = process.communicate()[0].split()
        assert process.returncode == 0
        assert writer.queue_size() == 11

        assert reader.run(blocking=False) == 11
        assert_books_balance(writer)
    assert [message.reqid for message in server.accepted][1:] == ids
    assert all(int(row) > 10**15 for row in ids)
