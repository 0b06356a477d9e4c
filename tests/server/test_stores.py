"""The contract of a store, through every store; then what each kind promises beside it."""

import json
import random
import resource
import sqlite3
import stat
from contextlib import closing

import apsw
import pytest
from collector_kit import NOON

from infi.ramen_protocol import BatchId, Dedupe, Envelope
from infi.ramen_server import (
    LaneConflict,
    MemoryStore,
    NewMessage,
    Outcome,
    Repeated,
    Selection,
    SqliteArchive,
    SqliteStore,
    StoreInUse,
    StoreUnavailable,
    Submission,
    UnusableFile,
)
from infi.ramen_server.stores import _archive, memory, sqlite

STORED, DUPLICATE = Outcome.STORED, Outcome.DUPLICATE
DAY = 86_400_000


def message(reqid, payload=b"{}", **parts):
    fields = {
        "category": "metrics",
        "system_serial": 1099,
        "sender": "imx",
        "data_type": "totals",
        "data_version": "v1",
        "system_version": "3.0",
        "reqid": reqid,
    }
    return NewMessage(Envelope(**{**fields, **parts}), payload, "field")


def one(reqid, payload=b"{}", **parts):
    return Submission((message(reqid, payload, **parts),))


def batch(lane, number, *reqids, digest="d", answer=b"answer"):
    return Submission(tuple(message(reqid) for reqid in reqids), BatchId(lane, number, digest), answer)


def commit(store, *submissions, at=NOON):
    outcomes = store.commit(submissions, at)
    store.maintain(at)
    return outcomes


def reqids(store, **selection):
    return [found.envelope.reqid for found in store.export(Selection(**selection))]


# Every store


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b' {"a": 1.10,\n "b": [1e400, 12345678901234567890123] } ',
        '{"ä":"\U0001f600\\ud800"}'.encode(),
        b'"' + b"x" * 1_000_000 + b'"',
        b"[]" + b" " * 5,
    ],
)
def test_a_message_comes_out_byte_for_byte_as_it_went_in(store, payload):
    new = message("a/b ü", payload, system_serial=2**63 - 1)
    assert commit(store, Submission((new,))) == [(STORED,)]
    (found,) = store.export(Selection())
    assert (found.envelope, found.payload, found.token) == (new.envelope, payload, "field")
    assert found.received_at_ms == NOON


def test_a_key_is_stored_once_whether_it_comes_again_in_the_same_commit_or_later(store):
    assert commit(store, one("1"), one("1"), one("2")) == [(STORED,), (DUPLICATE,), (STORED,)]
    assert commit(store, one("2", b"[]"), one("3")) == [(DUPLICATE,), (STORED,)]
    assert reqids(store) == ["1", "2", "3"]


def test_the_key_is_path_and_reqid_and_nothing_else(store):
    commit(store, one("1"))
    assert commit(store, one("1", system_version="4.0")) == [(DUPLICATE,)]
    others = [
        {"category": "events"},
        {"system_serial": 1100},
        {"sender": "imy"},
        {"data_type": "x"},
        {"data_version": "v2"},
    ]
    for parts in others:
        assert commit(store, one("1", **parts)) == [(STORED,)]


def test_a_batch_has_an_outcome_for_each_message_in_their_order(store):
    first = batch("lane", 1, "a", "b", "c")
    assert commit(store, first, one("z")) == [(STORED,) * 3, (STORED,)]
    assert reqids(store) == ["a", "b", "c", "z"]


def test_a_batch_that_is_sent_again_as_it_is_is_not_stored_again(store):
    commit(store, batch("lane", 1, "a", "b", answer=b"the first answer"))
    again = commit(store, batch("lane", 1, "a", "b", answer=b"another answer"))
    expected = {Dedupe.MESSAGE: (DUPLICATE, DUPLICATE), Dedupe.BATCH: Repeated(b"the first answer")}
    assert again == [expected[store.dedupe]]
    assert reqids(store) == ["a", "b"]
    assert store.totals().duplicates == 2


def test_a_batch_of_which_nothing_is_to_be_stored_is_one_of_its_lane_all_the_same(store):
    assert commit(store, batch("lane", 1, "a"), batch("lane", 2), batch("lane", 3, "b")) == [
        (STORED,),
        (),
        (STORED,),
    ]
    assert commit(store, batch("lane", 4)) == [()]
    assert reqids(store) == ["a", "b"]


def test_the_next_batch_of_a_lane_is_stored(store):
    commit(store, batch("lane", 1, "a"))
    assert commit(store, batch("lane", 2, "b", digest="e")) == [(STORED,)]
    assert reqids(store) == ["a", "b"]


def test_the_books_count_messages_bytes_and_duplicates(store):
    commit(store, one("1", b"[1]"), one("2", b"{}"), one("1"))
    totals = store.totals()
    assert (totals.messages, totals.payload_bytes, totals.duplicates) == (2, 5, 1)


def test_an_empty_commit_is_none(store):
    assert commit(store) == []
    assert reqids(store) == []


def test_export_selects_by_time_and_by_every_part(store):
    commit(store, one("1"), at=NOON)
    commit(store, one("2", category="events", sender="b"), at=NOON + 10)
    commit(store, one("3", data_type="x", system_serial=5), at=NOON + 20)
    assert reqids(store, received_from_ms=NOON + 10) == ["2", "3"]
    assert reqids(store, received_before_ms=NOON + 10) == ["1"]
    assert reqids(store, received_from_ms=NOON + 1, received_before_ms=NOON + 20) == ["2"]
    assert reqids(store, category="events") == ["2"]
    assert reqids(store, data_type="x") == ["3"]
    assert reqids(store, sender="b") == ["2"]
    assert reqids(store, system_serial=5) == ["3"]
    assert reqids(store, category="events", data_type="x") == []


def test_export_goes_by_time_received_also_when_the_clock_went_back(store):
    commit(store, one("late"), at=NOON)
    commit(store, one("early"), at=NOON - 5000)
    commit(store, one("same time"), at=NOON)
    assert reqids(store) == ["early", "late", "same time"]


def test_export_in_small_pages_is_whole_and_in_order(store, monkeypatch):
    monkeypatch.setattr(_archive, "EXPORT_PAGE_MESSAGES", 3)
    monkeypatch.setattr(_archive, "EXPORT_PAGE_BYTES", 50)
    names = [str(number) for number in range(40)]
    for index, name in enumerate(names):
        commit(store, one(name, b'"' + b"x" * (index % 7 * 10) + b'"'), at=NOON + index // 5)
    assert reqids(store) == names


def test_an_export_under_way_and_new_commits_do_not_disturb_each_other(store, monkeypatch):
    monkeypatch.setattr(_archive, "EXPORT_PAGE_MESSAGES", 2)
    commit(store, *(one(str(number)) for number in range(6)))
    export = store.export(Selection())
    first = next(export)
    commit(store, one("new"), at=NOON + 1)
    names = [first.envelope.reqid] + [found.envelope.reqid for found in export]
    assert names[:6] == ["0", "1", "2", "3", "4", "5"]


def test_a_line_of_ndjson_is_one_line_of_json_with_the_payloads_own_digits(store):
    commit(store, one("1", b'{\r\n "a": 1.10,\n "b": "x\\ny"\n}'))
    (found,) = store.export(Selection())
    line = found.as_ndjson()
    assert line.count(b"\n") == 1
    assert b"1.10" in line
    assert json.loads(line) == {
        "received_at": NOON,
        "category": "metrics",
        "system_serial": 1099,
        "sender": "imx",
        "data_type": "totals",
        "data_version": "v1",
        "system_version": "3.0",
        "reqid": "1",
        "data": {"a": 1.1, "b": "x\ny"},
    }


# The kind dedupe="message"


def test_the_embedded_store_knows_a_message_by_its_key_whatever_version_it_came_by(sqlite_store):
    assert sqlite_store.dedupe is Dedupe.MESSAGE
    commit(sqlite_store, one("a"))
    assert commit(sqlite_store, batch("lane", 1, "a", "b")) == [(DUPLICATE, STORED)]
    assert commit(sqlite_store, batch("other", 7, "b", "c")) == [(DUPLICATE, STORED)]
    assert commit(sqlite_store, one("c")) == [(DUPLICATE,)]


def test_duplicates_are_known_after_a_restart(directory):
    store = SqliteStore(directory)
    commit(store, one("1"), at=NOON)
    commit(store, one("2"), at=NOON + DAY)
    store.close()
    store = SqliteStore(directory)
    assert commit(store, one("1"), one("2"), one("3"), at=NOON + 2 * DAY) == [
        (DUPLICATE,),
        (DUPLICATE,),
        (STORED,),
    ]
    assert [found.position for found in store.export(Selection())] == [1, 2, 3]
    store.close()


def day_tables(directory):
    with sqlite3.connect(f"file:{directory}/messages.db?mode=ro", uri=True) as connection:
        found = connection.execute(
            "SELECT name FROM sqlite_schema WHERE name GLOB 'seen_[0-9]*' ORDER BY name"
        )
        names = [name for (name,) in found]
    connection.close()
    return names


def test_a_day_has_its_own_table_and_the_first_made_goes_when_there_are_too_many(directory):
    store = SqliteStore(directory, remember_days=3)
    for day in range(6):
        commit(store, one(f"day {day}"), at=NOON + day * DAY)
    for day in range(2):
        assert commit(store, one(f"day {day}"), at=NOON + 5 * DAY) == [(STORED,)], "forgotten"
    for day in range(2, 6):
        assert commit(store, one(f"day {day}"), at=NOON + 5 * DAY) == [(DUPLICATE,)], "remembered"
    store.close()
    assert day_tables(directory) == [f"seen_{1_000_000_000 + 1000 * (20_000 + day)}" for day in range(2, 6)]


def test_tables_are_few_however_many_days_are_remembered_and_none_is_forgotten_too_early(directory):
    store = SqliteStore(directory, remember_days=30)
    for day in range(100):
        commit(store, one(f"day {day}"), at=NOON + day * DAY)
        for back in (1, 29, 30):
            if back <= day:
                assert commit(store, one(f"day {day - back}"), at=NOON + day * DAY) == [(DUPLICATE,)]
    assert len(day_tables(directory)) <= 10
    assert store.window_seconds == 30 * 86_400
    store.close()
    store = SqliteStore(directory, remember_days=3)
    assert commit(store, one("day 97"), one("new"), at=NOON + 99 * DAY) == [(DUPLICATE,), (STORED,)]
    for day in range(100, 105):
        commit(store, one(f"day {day}"), at=NOON + day * DAY)
        assert commit(store, one(f"day {day - 3}"), at=NOON + day * DAY) == [(DUPLICATE,)]
    assert len(day_tables(directory)) <= 5
    store.close()


def test_a_clock_that_steps_to_2099_and_back_forgets_nothing(directory):
    store = SqliteStore(directory, remember_days=3)
    commit(store, one("before"), at=NOON)
    commit(store, one("in 2099"), at=NOON + 27_000 * DAY)
    commit(store, one("after"), at=NOON + DAY)
    for reqid in ("before", "in 2099", "after"):
        assert commit(store, one(reqid), at=NOON + DAY) == [(DUPLICATE,)]
    store.close()


def test_a_clock_that_begins_in_1970_or_before_forgets_nothing_either(directory):
    store = SqliteStore(directory, remember_days=10)
    for day in (0, 1, 2, 999, 1000, 1001, -1, 20_000):
        commit(store, one(f"day {day}"), at=day * DAY)
        assert commit(store, one(f"day {day}"), one("day 0"), at=day * DAY) == [(DUPLICATE,)] * 2
    store.close()


def test_a_clock_that_was_behind_for_a_while_forgets_what_was_made_first_not_what_looks_oldest(directory):
    store = SqliteStore(directory, remember_days=2)
    commit(store, one("first"), at=NOON)
    commit(store, one("clock behind"), at=NOON - 1000 * DAY)
    commit(store, one("right again"), at=NOON + DAY)
    commit(store, one("next day"), at=NOON + 2 * DAY)
    assert commit(store, one("clock behind"), one("first"), at=NOON + 2 * DAY) == [(DUPLICATE,), (STORED,)]
    store.close()


def test_more_messages_than_are_to_be_remembered_make_the_oldest_keys_go_and_the_window_shorter(directory):
    store = SqliteStore(directory, remember_messages=80)
    assert store.window_seconds == 30 * 86_400
    for number in range(100):
        commit(store, one(str(number)), at=NOON + number * 60_000)
        kept = sum(count_keys(directory, table) for table in day_tables(directory))
        assert min(number + 1, 70) <= kept <= 80
    late = NOON + 100 * 60_000
    assert commit(store, one("0"), one("30"), one("99"), at=late) == [(STORED,), (DUPLICATE,), (DUPLICATE,)]
    assert 0 < store.window_seconds <= 80 * 60
    window = store.window_seconds
    assert window == 3600, "in whole hours"
    store.close()
    store = SqliteStore(directory, remember_messages=80)
    assert commit(store, one("30"), one("99"), at=late) == [(DUPLICATE,), (DUPLICATE,)]
    assert store.window_seconds == window
    store.close()


def count_keys(directory, table):
    with closing(sqlite3.connect(f"file:{directory}/messages.db?mode=ro", uri=True)) as connection:
        ((count,),) = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
    return count


def test_a_file_from_before_keys_were_counted_is_used_on(directory):
    SqliteStore(directory).close()
    with closing(sqlite3.connect(directory / "messages.db")) as connection, connection:
        for column in ("begun_at", "keys", "days"):
            connection.execute(f"ALTER TABLE seen_day DROP COLUMN {column}")
    store = SqliteStore(directory)
    assert commit(store, one("1"), one("1")) == [(STORED,), (DUPLICATE,)]
    store.close()


def test_a_table_named_by_the_day_alone_is_that_day_s(directory):
    store = SqliteStore(directory)
    commit(store, one("1"))
    store.close()
    with closing(sqlite3.connect(directory / "messages.db")) as connection, connection:
        connection.execute("ALTER TABLE seen_1020000000 RENAME TO seen_20000")
        connection.execute("UPDATE seen_day SET day = 20000, days = 1")
    store = SqliteStore(directory)
    assert commit(store, one("1"), one("2")) == [(DUPLICATE,), (STORED,)]
    assert commit(store, one("2"), at=NOON + DAY) == [(DUPLICATE,)]
    store.close()
    assert day_tables(directory) == ["seen_1020001000", "seen_20000"]


def test_an_error_of_our_own_in_the_middle_of_a_commit_leaves_nothing_of_it(
    directory, sqlite_store, monkeypatch
):
    whole = sqlite._row
    monkeypatch.setattr(
        sqlite, "_row", lambda position, *rest: 1 / 0 if position == 3 else whole(position, *rest)
    )
    with pytest.raises(ZeroDivisionError):
        commit(sqlite_store, *(one(str(number)) for number in range(5)))
    monkeypatch.undo()
    assert reqids(sqlite_store) == []
    assert commit(sqlite_store, *(one(str(number)) for number in range(5))) == [(STORED,)] * 5
    assert [found.position for found in sqlite_store.export(Selection())] == [1, 2, 3, 4, 5]


def test_files_and_directory_are_the_owners_alone(directory, sqlite_store):
    commit(sqlite_store, one("1"))
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()}
    assert modes == dict.fromkeys(
        ("messages.db", "messages.db-wal", "messages.db-shm", "messages.db.lock"), 0o600
    )


def test_a_second_collector_on_the_directory_is_refused(directory, sqlite_store):
    with pytest.raises(StoreInUse, match="another collector"):
        SqliteStore(directory)


def test_the_lock_is_free_again_after_close_and_after_a_failed_opening(directory):
    directory.mkdir()
    (directory / "messages.db").write_bytes(b"no database at all" * 1000)
    with pytest.raises(apsw.Error):
        SqliteStore(directory)
    (directory / "messages.db").unlink()
    SqliteStore(directory).close()
    SqliteStore(directory).close()


def test_a_planted_link_is_refused(directory, tmp_path):
    directory.mkdir()
    (tmp_path / "elsewhere").write_bytes(b"")
    (directory / "messages.db").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(apsw.CantOpenError):
        SqliteStore(directory)
    assert (tmp_path / "elsewhere").read_bytes() == b""


def test_a_file_of_a_newer_format_or_of_another_program_is_refused_untouched(directory):
    SqliteStore(directory).close()
    path = directory / "messages.db"
    for pragma, text in (("user_version = 2", "newer version"), ("application_id = 7", "another program")):
        connection = sqlite3.connect(path)
        connection.execute(f"PRAGMA {pragma}")
        connection.close()
        before = path.read_bytes()
        with pytest.raises(UnusableFile, match=text):
            SqliteStore(directory)
        with pytest.raises(UnusableFile, match=text):
            SqliteArchive(directory)
        assert path.read_bytes() == before


def test_the_archive_reads_beside_the_collector_and_writes_nothing(directory, sqlite_store):
    with SqliteArchive(directory) as archive:
        commit(sqlite_store, one("1"))
        assert reqids(archive) == ["1"]
        assert archive.totals().messages == 1
        with pytest.raises(apsw.ReadOnlyError):
            archive._connection.execute("DELETE FROM message")


def test_the_archive_of_a_directory_without_a_collector_says_so(tmp_path):
    with pytest.raises(UnusableFile, match="Has a collector run"):
        SqliteArchive(tmp_path)
    (tmp_path / "messages.db").touch()
    with pytest.raises(UnusableFile, match="Has a collector run"):
        SqliteArchive(tmp_path)


def test_plain_sql_reads_the_payloads(directory, sqlite_store):
    commit(sqlite_store, one("1", b'{"temperature": 21.5}'))
    connection = sqlite3.connect(directory / "messages.db")
    found = connection.execute(
        "SELECT json_extract(payload, '$.temperature'), typeof(payload) FROM message"
    ).fetchall()
    connection.close()
    assert found == [(21.5, "text")]


def test_before_the_disk_is_full_nothing_is_taken_and_the_store_says_why(directory, caplog):
    free = 1_000_000
    store = SqliteStore(directory, min_free_bytes=500_000, free_bytes=lambda _path: free)
    commit(store, one("1"))
    assert store.problem() is None
    free = 505_000
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="no room") as refused:
            commit(store, one("2"))
    assert refused.value.retry_after_seconds > 0
    assert len(caplog.records) == 1, "said once, not for each commit"
    free = 499_000
    assert "min_free_bytes" in store.problem()
    free = 1_000_000
    assert commit(store, one("2"), one("1")) == [(STORED,), (DUPLICATE,)]
    assert store.problem() is None
    store.close()


def test_a_disk_that_is_full_in_the_middle_of_a_commit_leaves_nothing_of_it(directory, sqlite_store):
    commit(sqlite_store, one("before"))
    pages = sqlite_store._connection.pragma("page_count")
    sqlite_store._connection.pragma("max_page_count", pages + 20)
    with pytest.raises(StoreUnavailable, match="full"):
        commit(sqlite_store, *(one(f"{number}", b'"' + b"x" * 10_000 + b'"') for number in range(50)))
    assert reqids(sqlite_store) == ["before"]
    assert sqlite_store.problem() is not None
    sqlite_store._connection.pragma("max_page_count", 2**31)
    assert commit(sqlite_store, one("0"), one("before")) == [(STORED,), (DUPLICATE,)]
    assert sqlite_store.totals().messages == 2
    assert [found.position for found in sqlite_store.export(Selection())] == [1, 2]


def test_an_io_error_leaves_nothing_half_stored_and_the_next_commit_works(directory, sqlite_store):
    commit(sqlite_store, one("before"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (directory / "messages.db-wal").stat().st_size
    # Writing beyond this fails with EFBIG, which is an I/O error to SQLite.
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10_000, before[1]))
    try:
        with pytest.raises(StoreUnavailable, match="cannot write"):
            commit(sqlite_store, *(one(f"{number}", b'"' + b"x" * 10_000 + b'"') for number in range(50)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert reqids(sqlite_store) == ["before"]
    assert commit(sqlite_store, one("0"), one("before")) == [(STORED,), (DUPLICATE,)]
    assert sqlite_store.totals().messages == 2


def test_a_file_that_was_removed_or_replaced_under_the_collector_is_written_to_no_more(directory, caplog):
    store = SqliteStore(directory)
    commit(store, one("1"))
    moved = (directory / "messages.db").rename(directory / "moved.db")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="gone"):
            commit(store, one("2"))
    assert store.problem() is not None
    assert "no longer at its path" in caplog.text
    (directory / "messages.db").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match="gone"):
        commit(store, one("2"))
    moved.rename(directory / "messages.db")
    assert commit(store, one("2")) == [(STORED,)]
    store.close()


def test_the_wal_is_checkpointed_and_stays_small(directory, sqlite_store, monkeypatch):
    monkeypatch.setattr(sqlite, "CHECKPOINT_FRAMES", 50)
    for number in range(60):
        commit(sqlite_store, one(f"{number}", b'"' + b"x" * 20_000 + b'"'))
    assert (directory / "messages.db-wal").stat().st_size < 1_000_000
    assert (directory / "messages.db").stat().st_size > 1_000_000


def test_every_commit_is_synced(directory, sqlite_store):
    assert sqlite_store._connection.pragma("synchronous") == 2
    assert sqlite_store._connection.pragma("journal_mode") == "wal"


# The kind dedupe="batch"


def test_in_a_lane_only_the_next_number_or_the_last_one_again_is_taken():
    store = MemoryStore()
    assert store.dedupe is Dedupe.BATCH
    assert commit(store, batch("lane", 2, "a")) == [LaneConflict(1)], "a lane opens with number 1"
    assert commit(store, batch("lane", 1, "a", "b", digest="x")) == [(STORED, STORED)]
    assert commit(store, batch("lane", 1, "a", "c", digest="y")) == [LaneConflict(2)], "another digest"
    assert commit(store, batch("lane", 3, "d")) == [LaneConflict(2)], "a gap"
    assert commit(store, batch("lane", 2, "d", digest="z")) == [(STORED,)]
    assert commit(store, batch("lane", 1, "a", "b", digest="x")) == [LaneConflict(3)], "too old"
    assert commit(store, batch("other", 1, "a")) == [(STORED,)], "by lane, not by key"
    assert reqids(store) == ["a", "b", "d", "a"]


def test_a_window_that_is_over_forgets_a_key():
    store = MemoryStore(window_seconds=10)
    commit(store, one("1"), at=NOON)
    assert commit(store, one("1"), at=NOON + 9_999) == [(DUPLICATE,)]
    assert commit(store, one("1"), at=NOON + 10_000) == [(STORED,)]


def test_lanes_and_keys_are_bounded_and_the_oldest_goes(monkeypatch):
    monkeypatch.setattr(memory, "MAX_LANES", 2)
    monkeypatch.setattr(memory, "MAX_KEYS", 2)
    store = MemoryStore()
    for lane in "abc":
        commit(store, batch(lane, 1, lane))
    assert commit(store, batch("a", 2, "x"), batch("b", 2, "y")) == [LaneConflict(1), (STORED,)]
    commit(store, one("1"), one("2"), one("3"))
    assert commit(store, one("3"), one("1")) == [(DUPLICATE,), (STORED,)]


def test_the_answers_of_lanes_are_bounded_by_size_too(monkeypatch):
    monkeypatch.setattr(memory, "MAX_ANSWERS_BYTES", 2500)
    store = MemoryStore()
    for lane in "abc":
        commit(store, batch(lane, 1, lane, answer=random.Random(lane).randbytes(1000)))
    assert commit(store, batch("a", 1, "a"), batch("b", 2, "y")) == [(STORED,), (STORED,)], "a is forgotten"
    assert commit(store, batch("c", 1, "c")) == [Repeated(random.Random("c").randbytes(1000))]


def test_a_memory_that_is_full_takes_nothing():
    store = MemoryStore(max_bytes=10)
    commit(store, one("1", b'"12345"'))
    assert store.free_bytes() == 3
    with pytest.raises(StoreUnavailable):
        commit(store, one("2", b"{}"), one("3", b"{}"))
    assert reqids(store) == ["1"]
