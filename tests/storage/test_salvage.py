"""What can be read of a damaged file without SQLite, beside what SQLite reads of the whole one."""

from __future__ import annotations

import random
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from zlib import compress

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from queues import (
    activate,
    drain,
    make_message,
    make_queue,
    open_1x,
    push,
    push_1x,
    query,
    settlement,
)

from infi.ramen_client.storage import Fate, add_rule
from infi.ramen_client.storage._cells import mend_keys
from infi.ramen_client.storage._database import Kind
from infi.ramen_client.storage._pages import checksum
from infi.ramen_client.storage._salvage import (
    COLUMNS,
    Found,
    FoundDeadLetter,
    FoundMessage,
    FoundRow,
    Salvage,
    Summary,
    WalState,
)
from infi.ramen_protocol import Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from infi.ramen_client.storage import Queue

PAGE = 4096
FRAME = PAGE + 24
SIZES = (20, 90, 300, 700, 1000, 1500, 3900, 4100, 6000, 13_000)
MESSAGES = 200

Key = tuple[str, Any]


@dataclass
class Files:
    """A queue's two files as bytes."""

    database: bytes
    wal: bytes

    def with_page(self, number: int, page: bytes) -> Files:
        at = (number - 1) * PAGE
        return Files(self.database[:at] + page + self.database[at + PAGE :], self.wal)

    def page(self, number: int) -> bytes:
        return self.database[(number - 1) * PAGE : number * PAGE]

    def with_frame(self, index: int, change: Callable[[bytes], bytes]) -> Files:
        at = 32 + index * FRAME
        return Files(
            self.database, self.wal[:at] + change(self.wal[at : at + FRAME]) + self.wal[at + FRAME :]
        )

    def frames(self) -> list[int]:
        """The page number of each frame of the present generation."""
        salts = self.wal[16:24]
        offsets = range(32, len(self.wal) - FRAME + 1, FRAME)
        own = [at for at in offsets if self.wal[at + 8 : at + 16] == salts]
        return [int.from_bytes(self.wal[at : at + 4], "big") for at in own]

    def overlaid(self) -> set[int]:
        return set(self.frames())

    @property
    def pages(self) -> int:
        return len(self.database) // PAGE


@dataclass
class Truth:
    """What SQLite reads: each row by its table and key, and the rows that have a part on each page."""

    rows: dict[Key, tuple[Any, ...]]
    on_page: dict[int, set[Key]] = field(default_factory=dict)


@dataclass
class Result:
    live: dict[Key, tuple[Any, ...]]
    doubtful: dict[Key, tuple[Any, ...]]
    damaged: list[Found]
    summary: Summary

    @property
    def sound(self) -> dict[Key, tuple[Any, ...]]:
        """As a caller has it: the first wins."""
        return {**self.doubtful, **self.live}


def columns_of(found: Found) -> tuple[Key, tuple[Any, ...]]:
    if isinstance(found, FoundMessage):
        message = found.message
        return ("message", message.position), (*message.columns()[:-1], found.retried_at_ms, message.data)
    if isinstance(found, FoundDeadLetter):
        message, death = found.letter.message, found.letter.death
        fate = (found.letter.died_at_ms, death.reason, death.status, death.code, death.details)
        return ("dead_letter", message.position), (*message.columns()[:-1], *fate, message.data)
    return (found.table, found.values[0]), found.values[1:]


def read(directory: Path, files: Files) -> Result:
    path, wal = directory / "damaged.db", directory / "damaged.db-wal"
    path.write_bytes(files.database)
    wal.write_bytes(files.wal)
    result = Result({}, {}, [], Summary())
    with Salvage(path, wal) as reading:
        for found in reading:
            if found.is_damaged:
                assert not found.is_doubtful
                result.damaged.append(found)
                continue
            key, values = columns_of(found)
            (result.doubtful if found.is_doubtful else result.live).setdefault(key, values)
        result.summary = reading.summary
    return result


def truth_of(directory: Path, files: Files) -> Truth:
    path = directory / "truth.db"
    path.write_bytes(files.database)
    path.with_name(path.name + "-wal").write_bytes(files.wal)
    connection = apsw.Connection(str(path))
    try:
        assert connection.pragma("integrity_check") == "ok"
        truth = Truth({})
        on_page: defaultdict[int, set[Key]] = defaultdict(set)
        for table in COLUMNS:
            names = [name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")]
            assert tuple(names) == COLUMNS[table]
            ordered: list[Key] = []
            for key, *values in connection.execute(f"SELECT {', '.join(names)} FROM {table} ORDER BY rowid"):
                ordered.append((table, key))
                truth.rows[table, key] = tuple(values)
            _place_rows(connection, table, ordered, on_page)
        truth.on_page = dict(on_page)
        return truth
    finally:
        connection.close()


def _place_rows(
    connection: apsw.Connection, table: str, ordered: list[Key], on_page: dict[int, set[Key]]
) -> None:
    """Which rows lie on which pages, as ``dbstat`` tells it; an overflow page's path ends in ``cell+place``."""
    statement = "SELECT path, pageno, pagetype, ncell FROM dbstat WHERE name = ? ORDER BY path"
    leaves: dict[str, list[Key]] = {}
    rows = iter(ordered)
    chains = []
    for path, number, kind, cells in connection.execute(statement, (table,)):
        if kind == "leaf":
            leaves[path] = [next(rows) for _ in range(cells)]
            on_page[number].update(leaves[path])
        elif kind == "overflow":
            chains.append((path, number))
    for path, number in chains:
        leaf, _, place = path.rpartition("/")
        on_page[number].add(leaves[leaf + "/"][int(place.split("+")[0], 16)])
    assert next(rows, None) is None


def files_of(queue: Queue) -> Files:
    """Taken after the last connection was closed."""
    queue.close()
    wal = wal_path(queue)
    return Files(queue_path(queue).read_bytes(), wal.read_bytes() if wal.exists() else b"")


def queue_path(queue: Queue) -> Path:
    return _PATHS[id(queue)]


def wal_path(queue: Queue) -> Path:
    path = queue_path(queue)
    return path.with_name(path.name + "-wal")


_PATHS: dict[int, Path] = {}


def make(directory: Path, **options: Any) -> Queue:
    queue = make_queue(directory, **options)
    _PATHS[id(queue)] = queue.path
    return queue


def push_sizes(queue: Queue, number: int, shift: int = 0) -> None:
    for index in range(number):
        queue.push((make_message(size=SIZES[(index * 7 + shift) % len(SIZES)], category=f"c{index % 3}"),))


def bury(queue: Queue, number: int) -> None:
    reader = activate(queue)
    claimed = reader.claim(number, 10**9)
    reader.settle([settlement(message, Fate.DEAD) for message in claimed])
    reader.close()


def checkpoint(queue: Queue) -> None:
    queue.database.checkpoint(Kind.NORMAL)


def fill(directory: Path) -> Files:
    """A queue that has everything: long rows, dead letters, rules, an inlet, a frozen batch, free pages, a log."""
    queue = make(directory)
    push_sizes(queue, 60)
    drain(queue)
    checkpoint(queue)
    push_sizes(queue, MESSAGES - 16)
    bury(queue, 6)
    for number in range(5):
        add_rule(queue, Rule(category=f"c{number}", data_version="1" if number % 2 else None))
    with_1x = open_1x(queue.path)
    for number in range(12):
        push_1x(
            with_1x,
            None if number % 2 else f"old-{number}",
            compress(bytes(500 * number)),
            data_version=number,
        )
    with_1x.close()
    for statement in (
        "INSERT INTO lane VALUES ('lane-1', 'https://a:1', 7, 1)",
        "INSERT INTO batch VALUES (3, 'lane-1', 6, 1, 'sha-256=:x:', 2, 5, 1)",
        "INSERT INTO flight VALUES (80, 3, 0, 1), (81, 3, 1, 0)",
        "INSERT INTO server (origin, failures, learned_at, body_limit) VALUES ('https://a:1', 2, 9, 70000)",
        "INSERT INTO stream VALUES ('c', 'd', 1, 2, 'full'), ('e', 'd', 1, 2, 'full')",
        "INSERT INTO attempt VALUES (80, 2, 1, NULL, 503, 'busy')",
        "INSERT INTO unexplained VALUES (62, 'https://a:1')",
    ):
        query(queue.path, statement)
    checkpoint(queue)
    push_sizes(queue, 16, shift=3)
    with_1x = open_1x(queue.path)
    push_1x(with_1x, "last")
    with_1x.close()
    query(queue.path, "UPDATE rule SET hits = 5 WHERE rule_id = 2")
    query(queue.path, "UPDATE dead_letter SET details = 'seen' WHERE position = 62")
    query(queue.path, "DELETE FROM message WHERE position BETWEEN 90 AND 99")
    query(queue.path, "UPDATE message SET retried_at = 12 WHERE position = 100")
    return files_of(queue)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return fill(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def truth(whole: Files, tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return truth_of(tmp_path_factory.mktemp("truth"), whole)


def assert_only_lost(result: Result, truth: Truth, lost: set[Key], where: object) -> None:
    """Every row but the lost ones is there as it was, and no live row that is not in the queue."""
    for key, values in truth.rows.items():
        if key not in lost:
            assert result.sound.get(key) == values, (where, key)
    for key, values in result.live.items():
        assert key in lost or truth.rows.get(key) == values, (where, key)


def same_row(result: Result, key: Key, values: tuple[Any, ...]) -> bool:
    """Whether it was found; an old copy may lack the mark that an operator has set since, which no checksum covers."""
    found = result.sound.get(key, ())
    return found == values or (key[0] in ("message", "dead_letter") and found[:10] == values[:10])


# Whole files


def test_a_whole_file_gives_exactly_what_sqlite_reads(tmp_path: Path, whole: Files, truth: Truth) -> None:
    result = read(tmp_path, whole)
    assert result.live == truth.rows
    assert (result.doubtful, result.damaged) == ({}, [])
    summary = result.summary
    assert summary.wal is WalState.WHOLE
    assert (summary.pages_damaged, summary.frames_damaged, summary.rows_unreadable) == (0, 0, 0)
    assert summary.messages == sum(table == "message" for table, _ in truth.rows)
    assert summary.dead_letters == 6
    assert summary.inlet_rows == sum(table == "queue" for table, _ in truth.rows)


def test_the_sample_has_what_the_tests_need(tmp_path: Path, whole: Files, truth: Truth) -> None:
    assert {table for table, _ in truth.rows} == COLUMNS.keys() - {"salvage"}
    assert len(whole.frames()) > 40
    assert int.from_bytes(checkpointed(tmp_path, whole).page(1)[36:40], "big") > 3, "free pages"
    assert len(whole.overlaid()) < whole.pages


def test_nothing_that_was_removed_comes_back_from_a_file_that_was_used_for_long(tmp_path: Path) -> None:
    choice = random.Random(7)
    queue = make(tmp_path / "queue")
    with_1x = open_1x(queue.path)
    for _ in range(12):
        push_sizes(queue, choice.randrange(40), shift=choice.randrange(9))
        push_1x(with_1x)
        reader = activate(queue)
        for _ in range(choice.randrange(12)):
            claimed = reader.claim(choice.randrange(1, 9), 10**9)
            fate = choice.choice((Fate.ACCEPTED, Fate.DEAD))
            reader.settle([settlement(message, fate) for message in claimed[choice.randrange(2) :]])
        reader.tidy()
        reader.close()
        if choice.random() < 0.3:
            checkpoint(queue)
        queue.retry_dead_letters([letter.message.position for letter in queue.dead_letters()[::5]])
    with_1x.close()
    files = files_of(queue)
    result = read(tmp_path, files)
    assert result.live == truth_of(tmp_path, files).rows
    assert (result.doubtful, result.damaged, result.summary.pages_damaged) == ({}, [], 0)


def test_a_drained_queue_gives_no_message(tmp_path: Path) -> None:
    queue = make(tmp_path / "queue")
    push_sizes(queue, 100)
    drain(queue)
    result = read(tmp_path, files_of(queue))
    assert not [key for key in result.sound if key[0] == "message"]
    assert result.summary.pages_damaged == 0


def test_a_file_of_1x_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    connection = apsw.Connection(str(path))
    connection.pragma("auto_vacuum", 2)
    connection.pragma("journal_mode", "wal")
    connection.execute(
        "CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, ts TIMESTAMP DEFAULT CURRENT_TIMESTAMP, category TEXT NOT NULL, "
        "data_type TEXT NOT NULL, data_version INTEGER NOT NULL, reqid TEXT, data BLOB NOT NULL)"
    )
    for number in range(50):
        push_1x(connection, data=compress(random.randbytes(number * 100)))
    expected = {("queue", row[0]): tuple(row[1:]) for row in connection.execute("SELECT * FROM queue")}
    wal = path.with_name(path.name + "-wal").read_bytes()
    result = read(tmp_path, Files(path.read_bytes(), wal))
    connection.close()
    assert {key: row for key, row in result.live.items() if key[0] == "queue"} == expected


def test_rows_from_before_a_column_was_added_have_its_default(tmp_path: Path) -> None:
    queue = make(tmp_path / "queue")
    path = queue.path
    sql = query(path, "SELECT sql FROM sqlite_schema WHERE name = 'reader'")
    shorter = sql[: sql.index("clock_boot")].rstrip().rstrip(",") + ")"
    query(path, "DROP TABLE reader")
    query(path, shorter)
    query(path, "INSERT INTO reader (id, failures, pid) VALUES (1, 4, 77)")
    row = read(tmp_path, files_of(queue)).live["reader", 1]
    assert (row[0], row[3], len(row)) == (77, 4, len(COLUMNS["reader"]) - 1)


# A damaged page


def damaged_pages(files: Files, seed: int) -> Iterator[tuple[int, str, Files]]:
    choice = random.Random(seed)
    for number in range(1, files.pages + 1):
        page = bytearray(files.page(number))
        page[choice.randrange(PAGE)] ^= 1 << choice.randrange(8)
        yield number, "one bit flipped", files.with_page(number, bytes(page))
        yield number, "zeroed", files.with_page(number, bytes(PAGE))
        yield number, "random", files.with_page(number, choice.randbytes(PAGE))
        if number % 3 == 0:
            yield (
                number,
                "first sector zeroed",
                files.with_page(number, bytes(512) + files.page(number)[512:]),
            )


def test_each_page_damaged_in_turn_costs_what_lay_on_it(tmp_path: Path, whole: Files, truth: Truth) -> None:
    overlaid = whole.overlaid()
    for number, how, files in damaged_pages(whole, 1):
        if how != ("zeroed", "one bit flipped")[number // 2 % 2] or number % 2:
            continue  # the next test has more
        lost = set() if number in overlaid else truth.on_page.get(number, set())
        assert_only_lost(read(tmp_path, files), truth, lost, (number, how))


@pytest.mark.parametrize("in_each_way", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_each_page_damaged_in_turn_when_all_is_in_the_database(
    tmp_path: Path, whole: Files, truth: Truth, in_each_way: bool
) -> None:
    files = checkpointed(tmp_path, whole)
    for number, how, damaged in damaged_pages(files, 2):
        if not in_each_way and how != ("zeroed", "one bit flipped", "random")[number % 3]:
            continue
        result = read(tmp_path, damaged)
        lost = truth.on_page.get(number, set())
        assert_only_lost(result, truth, lost, (number, how))
        if how == "zeroed" and lost and damaged.page(number) != files.page(number):
            summary = result.summary
            assert summary.pages_damaged or summary.rows_damaged, number


def checkpointed(directory: Path, files: Files) -> Files:
    path = directory / "checkpointed.db"
    path.write_bytes(files.database)
    path.with_name(path.name + "-wal").write_bytes(files.wal)
    connection = apsw.Connection(str(path))
    connection.pragma("schema_version")  # it finds the log when it reads
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    connection.close()
    return Files(path.read_bytes(), b"")


@pytest.mark.parametrize("how", ["zeroed", "random"])
def test_page_1_and_the_pointer_map_destroyed_together(
    tmp_path: Path, whole: Files, truth: Truth, how: str
) -> None:
    files = checkpointed(tmp_path, whole)
    for number in (1, 2):
        files = files.with_page(number, bytes(PAGE) if how == "zeroed" else random.Random(5).randbytes(PAGE))
    result = read(tmp_path, files)
    for key, values in truth.rows.items():
        assert same_row(result, key, values), key
    assert result.summary.rows_doubtful > MESSAGES


def test_all_roots_destroyed_together(tmp_path: Path, whole: Files, truth: Truth) -> None:
    files = checkpointed(tmp_path, whole)
    lost: set[Key] = set()
    for number in range(3, 3 + len(COLUMNS) + 4):
        files = files.with_page(number, bytes(PAGE))
        lost |= truth.on_page.get(number, set())
    result = read(tmp_path, files)
    assert_only_lost(result, truth, lost, "roots")
    assert ("message", 150) in result.live


@pytest.mark.parametrize("free_list", ["whole", "lost"])
def test_a_damaged_pointer_map_brings_nothing_back_while_the_trees_are_whole(
    drained: Files, tmp_path: Path, free_list: str
) -> None:
    first = drained.page(1)
    for page in (bytes(PAGE), random.Random(3).randbytes(PAGE)):
        files = drained.with_page(2, page)
        if free_list == "lost":
            files = files.with_page(1, first[:32] + bytes(4) + first[36:])
        result = read(tmp_path, files)
        assert [key for key in result.sound if key[0] == "message"] == [
            ("message", n) for n in range(61, 181)
        ]
        assert result.doubtful == {}


@pytest.fixture(scope="module")
def drained(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Sixty messages were delivered; their leaves are free pages, with all that stood on them."""
    queue = make(tmp_path_factory.mktemp("drained"))
    push(queue, 180, size=400)
    settle_some(queue, 60)
    files = files_of(queue)
    return checkpointed(tmp_path_factory.mktemp("checkpointed"), files)


def test_a_pointer_that_leads_to_a_free_page_does_not_bring_back_what_was_on_it(
    drained: Files, tmp_path: Path
) -> None:
    truth = truth_of(tmp_path, drained)
    root = roots(drained)["message"]
    page = bytearray(drained.page(root))
    assert page[0] == 5
    free = next(
        number
        for number in range(3, drained.pages + 1)
        if drained.page(number)[0] == 13
        and number not in truth.on_page
        and b"metrics" in drained.page(number)
    )
    for at in (*struct.unpack_from(f">{page[4]}H", page, 12)[:3], 8):
        damaged = bytearray(page)
        damaged[at : at + 4] = free.to_bytes(4, "big")
        files = drained.with_page(root, bytes(damaged))
        result = read(tmp_path, files)
        assert result.live == truth.rows, at
        assert result.summary.pages_damaged
        # By the free list alone as well.
        result = read(tmp_path, files.with_page(2, bytes(PAGE)))
        assert result.live.items() <= truth.rows.items() <= result.sound.items()


def roots(files: Files) -> dict[str, int]:
    """Each table's root, as a file says whose log is empty."""
    connection = apsw.Connection(":memory:")
    try:
        connection.deserialize(
            "main", files.database[:18] + b"\1\1" + files.database[20:]
        )  # not a log's file
        return dict(connection.execute("SELECT name, rootpage FROM sqlite_schema WHERE type = 'table'"))
    finally:
        connection.close()


def test_a_separator_that_was_flipped_moves_no_message(drained: Files, tmp_path: Path) -> None:
    truth = truth_of(tmp_path, drained)
    root = roots(drained)["message"]
    page = drained.page(root)
    for start in struct.unpack_from(f">{page[4]}H", page, 12):
        for bit in (1, 2, 16, 64):
            damaged = bytearray(page)
            damaged[start + 4 + (page[start + 4] > 127)] ^= bit
            result = read(tmp_path, drained.with_page(root, bytes(damaged)))
            assert result.live == truth.rows, (start, bit)


def test_a_leaf_that_is_not_marked_as_one_is_read_when_its_rows_prove_themselves(
    drained: Files, tmp_path: Path
) -> None:
    truth = truth_of(tmp_path, drained)
    number = next(number for number, keys in truth.on_page.items() if ("message", 100) in keys)
    result = read(tmp_path, drained.with_page(number, b"\x0c" + drained.page(number)[1:]))
    assert result.sound == truth.rows
    assert result.doubtful.keys() == truth.on_page[number]


def test_lengths_that_no_file_could_hold_are_not_believed(drained: Files, tmp_path: Path) -> None:
    """A leaf full of rows that all claim to go on for 900 MB on a page that leads to itself."""
    truth = truth_of(tmp_path, drained)
    number = next(number for number, keys in truth.on_page.items() if ("message", 100) in keys)
    length = 900_000_000
    varint = bytes((0x80 | length >> shift & 0x7F) for shift in (28, 21, 14, 7)) + bytes((length & 0x7F,))
    local = 489 + (length - 489) % 4092
    local = local if local <= PAGE - 35 else 489
    cell = varint + b"\1" + bytes(local) + (drained.pages).to_bytes(4, "big")
    cells = 1000
    start = PAGE - len(cell)
    assert start > 8 + 2 * cells
    leaf = b"\x0d\0\0" + struct.pack(">HHB", cells, start, 0) + struct.pack(">H", start) * cells
    files = drained.with_page(number, leaf.ljust(start, b"\0") + cell)
    files = files.with_page(files.pages, files.pages.to_bytes(4, "big") + bytes(PAGE - 4))
    assert len(read(tmp_path, files).damaged) + len(read(tmp_path, files).live) > 100


def test_a_damaged_row_is_passed_on_with_what_is_left_of_it(tmp_path: Path) -> None:
    queue = make(tmp_path / "queue")
    push(queue, 3, size=20_000)
    checkpoint(queue)
    files = files_of(queue)
    truth = truth_of(tmp_path, files)
    number = next(
        number
        for number, keys in truth.on_page.items()
        if keys == {("message", 2)} and files.page(number)[0] == 0
    )
    result = read(tmp_path, Files(files.with_page(number, bytes(PAGE)).database, b""))
    assert {key for key in result.live if key[0] == "message"} == {("message", 1), ("message", 3)}
    (found,) = result.damaged
    assert isinstance(found, FoundMessage)
    assert (found.message.position, found.message.plain_length) == (2, -1)
    assert found.message.reqid == truth.rows["message", 2][4]
    assert found.message.data
    assert result.summary.rows_damaged == 1


def test_a_lost_page_is_found_again_in_the_log_of_the_past(tmp_path: Path) -> None:
    queue = make(tmp_path / "queue")
    push(queue, 100, size=200)
    checkpoint(queue)
    push(queue, 1, size=10)
    files = files_of(queue)
    truth = truth_of(tmp_path, files)
    for number in range(files.pages, 20, -1):
        if truth.on_page.get(number) and number not in files.overlaid():
            break
    result = read(tmp_path, files.with_page(number, bytes(PAGE)))
    assert truth.on_page[number] <= result.doubtful.keys()
    assert_only_lost(result, truth, set(), number)


# A file that was cut


def test_the_file_cut_at_each_page_costs_what_lay_behind(tmp_path: Path, whole: Files, truth: Truth) -> None:
    overlaid = whole.overlaid()
    behind: set[Key] = set()
    for number in range(whole.pages, 0, -1):
        if number not in overlaid:
            behind |= truth.on_page.get(number, set())
        if number % 2:
            continue
        cut = (number - 1) * PAGE + number % 3 * 1000
        result = read(tmp_path, Files(whole.database[:cut], whole.wal))
        assert_only_lost(result, truth, behind, number)
        assert result.summary.pages_damaged or result.summary.rows_damaged or not behind


@pytest.mark.parametrize(
    "database", [b"", b"\0" * 100, b"SQLite format 3\0", b"\0" * PAGE * 3, b"\xff" * PAGE * 9]
)
@pytest.mark.parametrize("wal", [b"", b"\0" * 32, b"\xff" * 40_000, b"\x37\x7f\x06\x82" + b"\0" * 9000])
def test_files_without_anything_in_them_give_nothing(tmp_path: Path, database: bytes, wal: bytes) -> None:
    result = read(tmp_path, Files(database, wal))
    assert (result.live, result.doubtful, result.damaged) == ({}, {}, [])


def test_a_file_that_is_gone_counts_as_empty_and_its_log_is_read(
    tmp_path: Path, whole: Files, truth: Truth
) -> None:
    (tmp_path / "x.db-wal").write_bytes(whole.wal)
    with Salvage(tmp_path / "x.db", tmp_path / "x.db-wal") as reading:
        found = list(reading)
    newest = max(key for table, key in truth.rows if table == "message")
    assert any(isinstance(row, FoundMessage) and row.message.position == newest for row in found)


def test_a_file_that_cannot_be_opened_is_an_error_and_leaves_none_open(tmp_path: Path) -> None:
    (tmp_path / "target").touch()
    (tmp_path / "x.db-wal").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match=r"x\.db-wal"):
        Salvage(tmp_path / "x.db", tmp_path / "x.db-wal")


# The log


@pytest.mark.parametrize("how", ["a bit of the page", "the header", "the salts", "all"])
def test_each_frame_damaged_in_turn_costs_what_stood_in_it_alone(
    tmp_path: Path, whole: Files, truth: Truth, how: str
) -> None:
    def change(frame: bytes) -> bytes:
        flipped = bytearray(frame)
        flipped[24 + 2000] ^= 4
        return {
            "a bit of the page": bytes(flipped),
            "the header": bytes(24) + frame[24:],
            "the salts": frame[:8] + bytes(8) + frame[16:],
            "all": bytes(FRAME),
        }[how]

    frames = whole.frames()
    last_commit = frames_up_to_commit(whole)
    for index in range(last_commit):
        number = frames[index]
        is_latest = number not in frames[index + 1 : last_commit]
        lost = truth.on_page.get(number, set()) if is_latest else set()
        result = read(tmp_path, whole.with_frame(index, change))
        messages = {
            key: values
            for key, values in truth.rows.items()
            if key[0] in ("message", "dead_letter", "queue") and key not in lost
        }
        for key, values in messages.items():
            assert same_row(result, key, values), (index, key)
        if index < last_commit - 1:
            assert result.summary.wal is WalState.DAMAGED
            assert result.summary.frames_damaged == 1 or how in ("the header", "all")


def frames_up_to_commit(files: Files) -> int:
    salts = files.wal[16:24]
    last = 0
    for index in range(len(files.wal) // FRAME):
        header = files.wal[32 + index * FRAME :][:24]
        if header[8:16] == salts and any(header[4:8]):
            last = index + 1
    return last


@pytest.mark.parametrize("at", [0, 4, 8, 12, 16, 20, 24, 28])
def test_a_log_whose_header_is_damaged_is_read_all_the_same(
    tmp_path: Path, whole: Files, truth: Truth, at: int
) -> None:
    wal = bytearray(whole.wal)
    wal[at + 3] ^= 0x10
    result = read(tmp_path, Files(whole.database, bytes(wal)))
    assert result.summary.wal is WalState.DAMAGED
    for key in truth.rows:
        if key[0] in ("message", "dead_letter"):
            assert key in result.sound


def test_without_its_log_a_file_gives_what_it_had_at_the_last_checkpoint(
    tmp_path: Path, whole: Files
) -> None:
    before = Files(whole.database, b"")
    result = read(tmp_path, before)
    assert result.live == truth_of(tmp_path, before).rows
    assert (result.doubtful, result.summary.wal) == ({}, WalState.ABSENT)


def test_a_transaction_that_was_not_committed_is_not_read(tmp_path: Path) -> None:
    queue = make(tmp_path / "queue")
    push(queue, 4)
    files = files_of(queue)
    expected = truth_of(tmp_path, files).rows
    count = len(files.frames())
    last = files.wal[32 + (count - 1) * FRAME :][:FRAME]
    page = last[24:].replace(b"metrics", b"METRICS")
    header = last[:4] + bytes(4) + last[8:16]
    sums = checksum(header[:8] + page, struct.unpack(">II", last[16:24]), big=False)
    uncommitted = header + struct.pack(">II", *sums) + page
    result = read(tmp_path, Files(files.database, files.wal[: 32 + count * FRAME] + uncommitted))
    assert result.live == expected
    assert (result.doubtful, result.summary.wal) == ({}, WalState.WHOLE)


def test_a_log_of_which_an_older_part_survived_hides_nothing_of_a_newer_database(
    tmp_path: Path, whole: Files, truth: Truth
) -> None:
    """All was copied into the database, then a frame at the beginning of the log was damaged."""
    newer = checkpointed(tmp_path, whole).database
    for index in (1, 5, len(whole.frames()) // 2):
        files = Files(newer, whole.wal).with_frame(index, lambda frame: frame[:100] + b"x" * 50 + frame[150:])
        result = read(tmp_path, files)
        assert result.summary.wal is WalState.DAMAGED
        for key, values in truth.rows.items():
            if key[0] in ("message", "dead_letter"):
                assert same_row(result, key, values), (index, key)


def test_big_endian_logs_are_read_as_well(tmp_path: Path, whole: Files, truth: Truth) -> None:
    wal = bytearray(whole.wal)
    wal[3] |= 1
    sums = checksum(bytes(wal[:24]), (0, 0), big=True)
    wal[24:32] = struct.pack(">II", *sums)
    for index in range(len(whole.frames())):
        at = 32 + index * FRAME
        sums = checksum(bytes(wal[at : at + 8] + wal[at + 24 : at + FRAME]), sums, big=True)
        wal[at + 16 : at + 24] = struct.pack(">II", *sums)
    result = read(tmp_path, Files(whole.database, bytes(wal)))
    assert (result.live, result.summary.wal) == (truth.rows, WalState.WHOLE)


# A log of another file


def test_the_log_of_another_queue_is_left_alone(tmp_path: Path) -> None:
    queues = []
    for name in ("one", "two"):
        queue = make(tmp_path / name)
        push_sizes(queue, 30)
        checkpoint(queue)
        push_sizes(queue, 10 if name == "one" else 25)
        queues.append(files_of(queue))
    one, two = queues
    result = read(tmp_path, Files(one.database, two.wal))
    assert result.summary.wal is WalState.FOREIGN
    assert result.live == truth_of(tmp_path, Files(one.database, b"")).rows
    assert result.doubtful == {}


def test_the_log_of_a_queue_that_is_further_on_is_left_alone(tmp_path: Path) -> None:
    """They have no position in common, but the log's pages do not fit into the database."""
    one = make(tmp_path / "one")
    push(one, 20, size=500)
    checkpoint(one)
    files = files_of(one)
    two = make(tmp_path / "two")
    push(two, 400, size=300)
    settle_some(two, 390)
    checkpoint(two)
    push(two, 30, size=300)
    result = read(tmp_path, Files(files.database, files_of(two).wal))
    assert result.summary.wal is WalState.FOREIGN
    assert result.live == truth_of(tmp_path, Files(files.database, b"")).rows


def settle_some(queue: Queue, number: int) -> None:
    reader = activate(queue)
    while number:
        claimed = reader.claim(min(number, 50), 10**9)
        reader.settle([settlement(message, Fate.ACCEPTED) for message in claimed])
        number -= len(claimed)
    reader.close()


def test_the_log_of_another_program_hides_nothing(tmp_path: Path, whole: Files) -> None:
    other = tmp_path / "other.db"
    connection = apsw.Connection(str(other))
    connection.pragma("page_size", 4096)
    connection.pragma("journal_mode", "wal")
    connection.execute("CREATE TABLE t (a, b)")
    for number in range(300):
        connection.execute("INSERT INTO t VALUES (?, ?)", (number, "x" * 900))
    wal = other.with_name("other.db-wal").read_bytes()
    connection.close()
    files = Files(checkpointed(tmp_path, whole).database, wal)
    result = read(tmp_path, files)
    expected = truth_of(tmp_path, Files(files.database, b"")).rows
    assert result.sound == expected


def test_a_log_of_another_page_size_is_left_alone(tmp_path: Path, whole: Files) -> None:
    wal = bytearray(whole.wal)
    wal[8:12] = (1024).to_bytes(4, "big")
    wal[24:32] = struct.pack(">II", *checksum(bytes(wal[:24]), (0, 0), big=False))
    result = read(tmp_path, Files(whole.database, bytes(wal)))
    assert result.summary.wal is WalState.FOREIGN
    assert result.live == truth_of(tmp_path, Files(whole.database, b"")).rows


# Anything at all


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_content_raises_or_loops(
    tmp_path_factory: pytest.TempPathFactory, small: Files, data: Any
) -> None:
    spots = st.lists(
        st.tuples(st.booleans(), st.integers(0, 2**20), st.binary(min_size=1, max_size=40)),
        min_size=1,
        max_size=12,
    )
    parts = {True: bytearray(small.database), False: bytearray(small.wal)}
    for in_database, at, spoiled in data.draw(spots):
        part = parts[in_database]
        begin = at % len(part)
        part[begin : begin + len(spoiled)] = spoiled
    directory = tmp_path_factory.getbasetemp() / "fuzz"
    directory.mkdir(exist_ok=True)
    read(directory, Files(bytes(parts[True]), bytes(parts[False])))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Files:
    queue = make(tmp_path_factory.mktemp("small"))
    push_sizes(queue, 30)
    bury(queue, 3)
    with_1x = open_1x(queue.path)
    push_1x(with_1x)
    with_1x.close()
    checkpoint(queue)
    push_sizes(queue, 6)
    return files_of(queue)


@settings(max_examples=60, deadline=None)
@given(pages=st.lists(st.tuples(st.sampled_from(b"\x05\x0d\x02\x00"), st.binary(max_size=200)), max_size=8))
def test_no_page_that_looks_like_one_raises(
    tmp_path_factory: pytest.TempPathFactory, pages: list[tuple[int, bytes]]
) -> None:
    made = b"".join((bytes([kind]) + rest).ljust(PAGE, rest[-1:] or b"\0") for kind, rest in pages)
    directory = tmp_path_factory.getbasetemp() / "fuzz"
    directory.mkdir(exist_ok=True)
    read(directory, Files(b"SQLite format 3\0".ljust(PAGE, b"\1") + made, b""))


def test_overflow_pages_that_lead_in_a_circle_end(tmp_path: Path, whole: Files, truth: Truth) -> None:
    files = checkpointed(tmp_path, whole)
    tangled = bytearray(files.database)
    for number, keys in truth.on_page.items():
        if len(keys) == 1 and files.page(number)[:1] == b"\0":
            tangled[(number - 1) * PAGE : (number - 1) * PAGE + 4] = number.to_bytes(4, "big")
    assert tangled != files.database
    result = read(tmp_path, Files(bytes(tangled), b""))
    assert result.damaged


def test_a_free_list_that_leads_in_a_circle_ends(tmp_path: Path, whole: Files, truth: Truth) -> None:
    files = checkpointed(tmp_path, whole)
    trunk = int.from_bytes(files.page(1)[32:36], "big")
    page = trunk.to_bytes(4, "big") + (1022).to_bytes(4, "big") + b"\0\0\0\7" * 1022
    assert read(tmp_path, files.with_page(trunk, page)).sound.items() >= truth.rows.items()


@pytest.mark.parametrize(
    ("keys", "mended"),
    [
        ([1, 2, 1 << 40, 4], [1, 2, 3, 4]),
        ([1, 2, 0, 4], [1, 2, 3, 4]),
        ([9, 2, 3], [1, 2, 3]),
        ([1 << 40, 2, 3], [1, 2, 3]),
        ([2, 2, 3], [1, 2, 3]),
        ([1, 1 << 40, 1 << 41, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
        ([2**63 - 1, -(2**63)], [-(2**63) - 1 + 1, -(2**63)]),
    ],
)
def test_keys_that_are_out_of_order_are_mended_from_their_neighbours(
    keys: list[int], mended: list[int]
) -> None:
    assert mend_keys(keys) == mended


def test_a_flipped_position_does_not_take_another_messages_place(tmp_path: Path) -> None:
    queue = make(tmp_path / "queue")
    push(queue, 40, size=300)
    checkpoint(queue)
    files = Files(files_of(queue).database, b"")
    truth = truth_of(tmp_path, files)
    number = next(number for number, keys in truth.on_page.items() if ("message", 20) in keys)
    page = bytearray(files.page(number))
    starts = struct.unpack_from(f">{int.from_bytes(page[3:5], 'big')}H", page, 8)
    at = next(start + 2 for start in starts if page[start + 2] == 20)
    page[at] = 21
    result = read(tmp_path, files.with_page(number, bytes(page)))
    assert {key for key in result.live if key[0] == "message"} == {
        key for key in truth.rows if key[0] == "message"
    }
    assert [values[4] for key, values in sorted(result.live.items()) if key[0] == "message"] == [
        values[4] for key, values in sorted(truth.rows.items()) if key[0] == "message"
    ]


def test_rows_of_the_1x_table_are_sound_when_their_stream_is_whole(tmp_path: Path) -> None:
    queue = make(tmp_path / "queue")
    with_1x = open_1x(queue.path)
    push_1x(with_1x, "a", compress(b"{}"))
    push_1x(with_1x, "b", compress(b"{}")[:-1])
    push_1x(with_1x, "c", b"")
    with_1x.close()
    result = read(tmp_path, files_of(queue))
    assert [values[4] for (table, _), values in result.live.items() if table == "queue"] == ["a"]
    assert [found.values[5] for found in result.damaged if isinstance(found, FoundRow)] == ["b", "c"]
