"""The way back: a file of 1.x with all that waits. The real 1.x delivers one in ``tests/system/test_real_1x_way_back.py``."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any
from zlib import compress

import apsw
import pytest
from queues import (
    activate,
    assert_sound,
    drain,
    finish,
    make_1x_file,
    make_message,
    make_queue,
    open_1x,
    push,
    push_1x,
    query,
    run,
    settlement,
    start,
)

from infi.ramen_client.errors import QueueBusy, QueueError, QueueUnusable
from infi.ramen_client.storage import ExportedTo1x, Fate, ReqidOrigin, export_to_1x, to_1x

if TYPE_CHECKING:
    from pathlib import Path

    from infi.ramen_client.storage import Queue


def export(queue: Queue, directory: Path) -> ExportedTo1x:
    return export_to_1x(queue.database, directory)


def rows_of(path: Path) -> list[tuple[Any, ...]]:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return list(connection.execute("SELECT * FROM queue ORDER BY id"))
    finally:
        connection.close()


def sent_by_1x(path: Path) -> list[str]:
    """The reqids as 1.x sends them."""
    return [str(reqid or number) for number, _, _, _, _, reqid, _ in rows_of(path)]


def test_all_that_waits_goes_over_in_its_order_and_stays_where_it_is(queue: Queue, tmp_path: Path) -> None:
    reqids = push(queue, 20, size=300)
    books = queue.books()
    exported = export(queue, tmp_path / "old")
    assert exported.path == tmp_path / "old" / "imx_1099.db"
    assert sent_by_1x(exported.path) == reqids
    assert (exported.messages, exported.perhaps_sent, exported.damaged, exported.pushed_meanwhile) == (
        20,
        0,
        0,
        0,
    )
    assert exported.file_bytes == exported.path.stat().st_size
    assert queue.books() == books
    assert_sound(queue)
    assert drain(queue) == reqids


def test_a_row_is_what_1x_would_have_stored(queue: Queue, tmp_path: Path) -> None:
    queue.push([make_message(b'{"a": 1}', reqid="mine", data_version=7, pushed_at_ms=1_700_000_000_999)])
    queue.push([make_message(b"[]", category="events", data_type="x-1", data_version="2", reqid="ü&b=c/d e")])
    first, second = rows_of(export(queue, tmp_path / "old").path)
    assert first[1:] == ("2023-11-14 22:13:20", "metrics", "san", 7, "mine", compress(b'{"a": 1}'))
    assert second[2:] == ("events", "x-1", 2, "%C3%BC%26b%3Dc%2Fd%20e", compress(b"[]")), "1.x escapes no id"
    assert second[0] == first[0] + 1


def test_the_file_is_made_as_1x_makes_it(queue: Queue, tmp_path: Path) -> None:
    push(queue)
    made = export(queue, tmp_path / "old").path
    make_1x_file(tmp_path / "real.db")

    def facts(path: Path) -> list[Any]:
        connection = apsw.Connection(str(path))
        names = ("page_size", "auto_vacuum", "journal_mode", "user_version", "application_id", "encoding")
        schema = connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()
        found = [connection.pragma(name) for name in names]
        connection.close()
        return [found, [(kind, name, re.sub(r"\s+", "", sql or "")) for kind, name, sql in schema]]

    assert facts(made) == facts(tmp_path / "real.db")
    assert {path.name for path in made.parent.iterdir()} == {"imx_1099.db"}
    assert made.stat().st_mode & 0o777 == 0o600


def test_what_1x_pushes_into_it_gets_ids_that_none_of_its_messages_had(queue: Queue, tmp_path: Path) -> None:
    push(queue, 2)
    made = export(queue, tmp_path / "old").path
    before = rows_of(made)
    connection = open_1x(made)
    push_1x(connection)
    assert connection.last_insert_rowid() == before[-1][0] + 1 > 10**15
    connection.close()


def test_an_empty_queue_gives_an_empty_file_whose_ids_are_new_as_well(queue: Queue, tmp_path: Path) -> None:
    made = export(queue, tmp_path / "old").path
    assert rows_of(made) == []
    assert query(made, "SELECT seq FROM sqlite_sequence WHERE name = 'queue'") > 10**15


def test_a_1x_backlog_goes_back_before_what_2_0_pushed_moved_or_not(tmp_path: Path) -> None:
    path = tmp_path / "queue" / "imx_1099.db"
    make_1x_file(path, 500)
    queue = make_queue(path.parent)
    ours = push(queue, 3)
    reader = activate(queue)
    (first, *_) = reader.claim(1, 1000)  # moves a part of the old rows
    reader.settle([settlement(first, Fate.ACCEPTED)])
    reader.close()
    old = open_1x(path)
    push_1x(old, "of 1.x")
    push_1x(old)
    last = old.last_insert_rowid()
    old.close()
    left = query(path, "SELECT count(*) FROM queue")
    assert 2 < left < 500
    exported = export(queue, tmp_path / "old")
    expected = [*map(str, range(2, 501)), *ours, "of%201.x", str(last)]
    assert sent_by_1x(exported.path) == expected
    assert_sound(queue)


def test_a_file_that_goes_back_and_forth_loses_nothing(queue: Queue, tmp_path: Path) -> None:
    reqids = push(queue, 30)
    made = export(queue, tmp_path / "old").path
    again = make_queue(made.parent)
    assert drain(again) == reqids
    assert_sound(again)


def test_a_queue_whose_reader_lives_is_refused(queue: Queue, tmp_path: Path) -> None:
    push(queue)
    reader = activate(queue)
    with pytest.raises(QueueBusy, match=r"a reader is at work on it \(process \d+\)\. Stop it first"):
        export(queue, tmp_path / "old")
    assert list((tmp_path / "old").iterdir()) == []
    reader.close()
    assert export(queue, tmp_path / "old").messages == 1


def test_no_reader_begins_meanwhile(queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    push(queue)
    found: list[object] = []
    original = to_1x._put_in_place

    def look(*paths: Path) -> None:
        found.append(_try_to_activate(queue))
        original(*paths)

    monkeypatch.setattr(to_1x, "_put_in_place", look)
    export(queue, tmp_path / "old")
    assert found == [False]
    assert _try_to_activate(queue)


def _try_to_activate(queue: Queue) -> bool:
    from infi.ramen_client.storage import ActiveReader

    reader = ActiveReader.activate(queue)
    if reader is not None:
        reader.close()
    return reader is not None


def test_what_a_killed_reader_had_in_flight_goes_over_too_and_is_counted(tmp_path: Path) -> None:
    code = """
queue = make_queue(sys.argv[1])
push(queue, 10)
activate(queue).claim(4, GIB)
os.kill(os.getpid(), 9)
"""
    killed = start(code, tmp_path / "queue")
    assert killed.wait(60) == -signal.SIGKILL
    killed.communicate()
    exported = export(make_queue(tmp_path / "queue"), tmp_path / "old")
    assert (exported.messages, exported.perhaps_sent) == (10, 4)


@pytest.mark.parametrize("name", ["imx_1099.db", "imx_1099.db-wal", "imx_1099.db-journal"])
def test_nothing_that_is_there_is_written_over(queue: Queue, tmp_path: Path, name: str) -> None:
    push(queue)
    there = tmp_path / "old" / name
    there.parent.mkdir()
    there.write_bytes(b"precious")
    with pytest.raises(QueueUnusable, match="is there already"):
        export(queue, there.parent)
    assert [path.read_bytes() for path in there.parent.iterdir()] == [b"precious"]


def test_a_file_that_1x_makes_there_meanwhile_stays(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(queue)
    original = to_1x._put_in_place

    def too_late(unfinished: Path, target: Path) -> None:
        target.write_bytes(b"precious")
        original(unfinished, target)

    monkeypatch.setattr(to_1x, "_put_in_place", too_late)
    with pytest.raises(QueueError):
        export(queue, tmp_path / "old")
    assert [path.read_bytes() for path in (tmp_path / "old").iterdir()] == [b"precious"]


def test_the_queues_own_directory_is_refused(queue: Queue) -> None:
    push(queue)
    with pytest.raises(QueueUnusable, match="Name an empty directory"):
        export(queue, queue.path.parent)
    assert_sound(queue)


def test_a_directory_that_cannot_be_made_is_refused(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QueueUnusable, match=r"the directory for 1\.x cannot be made or used"):
        export(queue, tmp_path / "file" / "old")


def test_versions_that_1x_takes_for_numbers_are_named(queue: Queue, tmp_path: Path) -> None:
    versions = ["01", "1e3", "2", 3, "v1", "-5", "1_000", "0x10", "01"]
    for version in versions:
        push(queue, 1, data_version=version)
    exported = export(queue, tmp_path / "old")
    named = {(found.data_version, found.becomes, found.messages) for found in exported.changed_versions}
    assert named == {("01", "1", 2), ("1e3", "1000", 1)}
    stored = [row[4] for row in rows_of(exported.path)]
    assert stored == [1, 1000, 2, 3, "v1", -5, "1_000", "0x10", 1]


def test_only_so_many_versions_are_named_but_all_messages_go_over(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_1x, "_MAX_NAMED_VERSIONS", 3)
    queue.push([make_message(data_version=f"0{number}") for number in range(20)])
    exported = export(queue, tmp_path / "old")
    assert (exported.messages, len(exported.changed_versions)) == (20, 3)


def test_damaged_messages_and_dead_letters_stay_and_are_counted(queue: Queue, tmp_path: Path) -> None:
    reqids = push(queue, 6, reqid_origin=ReqidOrigin.CALLER)
    reader = activate(queue)
    (first, *_) = reader.claim(1, 1000)
    reader.settle([settlement(first, Fate.DEAD)])
    reader.close()
    query(queue.path, "UPDATE message SET row_crc32 = row_crc32 + 1 WHERE position = 3")
    connection = open_1x(queue.path)
    push_1x(connection, data=b"no zlib stream")
    connection.close()
    exported = export(queue, tmp_path / "old")
    assert (exported.messages, exported.damaged, exported.dead_letters) == (4, 2, 1)
    assert sent_by_1x(exported.path) == [reqids[1], *reqids[3:]]
    assert queue.size() == 6


def test_what_is_pushed_meanwhile_is_not_in_it_and_is_counted(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reqids = push(queue, 3)
    original = to_1x.Pushing.push

    def interrupted(self: to_1x.Pushing, message: Any) -> str:
        push(queue)
        return original(self, message)

    monkeypatch.setattr(to_1x.Pushing, "push", interrupted)
    exported = export(queue, tmp_path / "old")
    assert sent_by_1x(exported.path) == reqids
    assert (exported.messages, exported.pushed_meanwhile) == (3, 3)


def test_what_can_be_read_of_a_file_that_was_put_aside_goes_over_too(tmp_path: Path) -> None:
    code = "queue = make_queue(sys.argv[1])\nprint(*push(queue, 50, size=300))\nempty_wal(queue)"
    reqids = finish(start(code, tmp_path / "queue")).split()
    path = tmp_path / "queue" / "imx_1099.db"
    with path.open("r+b") as file:
        file.write(bytes(100))
    queue = make_queue(path.parent)
    reqids += push(queue, 2)
    assert sent_by_1x(export(queue, tmp_path / "old").path) == reqids
    assert_sound(queue)
    assert drain(queue) == reqids


@pytest.mark.parametrize("at", [0, 1, 25, 49, 50])
def test_who_is_killed_leaves_no_file_of_1x_and_the_next_one_makes_it(tmp_path: Path, at: int) -> None:
    code = """
from infi.ramen_client.storage import export_to_1x, to_1x
queue = make_queue(sys.argv[1])
print(*push(queue, 50, size=3000), flush=True)
left = int(sys.argv[3])
def dying(self, message, original=to_1x.Pushing.push):
    global left
    if left == 0:
        os.kill(os.getpid(), 9)
    left -= 1
    return original(self, message)
to_1x.Pushing.push = dying
to_1x._put_in_place = lambda *_: os.kill(os.getpid(), 9)
export_to_1x(queue.database, sys.argv[2])
"""
    killed = start(code, tmp_path / "queue", tmp_path / "old", at)
    said, _ = killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "old" / "imx_1099.db").exists()
    queue = make_queue(tmp_path / "queue")
    exported = export(queue, tmp_path / "old")
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["imx_1099.db"]
    assert sent_by_1x(exported.path) == said.split()
    assert drain(queue) == said.split()


def test_a_disk_that_takes_no_more_leaves_no_file_and_the_queue_as_it_was(tmp_path: Path) -> None:
    code = """
import resource, signal
from infi.ramen_client.errors import QueueError
from infi.ramen_client.storage import export_to_1x
queue = make_queue(sys.argv[1])
push(queue, 100, size=5000)
empty_wal(queue)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
try:
    export_to_1x(queue.database, sys.argv[2])
except QueueError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert os.listdir(sys.argv[2]) == []
assert_sound(queue)
assert len(drain(queue)) == 100
"""
    said = run(code, tmp_path / "queue", tmp_path / "old")
    assert "imx_1099.db.unfinished" in said


def test_memory_does_not_grow_with_the_queue(tmp_path: Path) -> None:
    code = """
from infi.ramen_client.storage import export_to_1x
def peak():
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
queue = make_queue(sys.argv[1])
for _ in range(32):
    queue.push([make_message(size=1_000_000)])
empty_wal(queue)
before = peak()
assert export_to_1x(queue.database, sys.argv[2]).messages == 32
print(peak() - before)
"""
    assert int(run(code, tmp_path / "queue", tmp_path / "old")) < 16_000_000
