"""Books that do not add up, and damaged rows of the small tables: seen, set right, said once, and never in the way."""

from __future__ import annotations

import logging
import random
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from queues import (
    GIB,
    activate,
    assert_sound,
    drain,
    finish,
    make_queue,
    open_1x,
    push,
    push_1x,
    query,
    settle_all,
    settlement,
    start,
)

from infi.ramen_client.errors import QueueBusy, QueueUnusable
from infi.ramen_client.storage import ActiveReader, Fate, Queue, add_rule, load_rules, repair, take_snapshot
from infi.ramen_protocol import Rule

if TYPE_CHECKING:
    from pathlib import Path

COUNTERS = [
    *(
        "pushed",
        "waiting",
        "accepted",
        "dropped",
        "blacklisted",
        "dead",
        "dead_bytes",
        "dead_discarded",
        "trimmed",
    ),
    *("expired", "purged", "damaged", "found", "inlet_in", "inlet_out", "inlet_moved", "last_position"),
]
VALUES = ["+ 1", "+ 1024", "- 1", "+ (1 << 40)", "- (1 << 40)"]


def used_queue(directory: Path) -> tuple[Queue, list[str]]:
    """A queue in which every kind of message was, and the reqids of those that wait."""
    queue = make_queue(directory)
    push(queue, 20)
    reader = activate(queue)
    for fate in (Fate.ACCEPTED, Fate.DROPPED, Fate.BLACKLISTED, Fate.DEAD, Fate.PURGED):
        reader.settle([settlement(message, fate) for message in reader.claim(2, GIB)])
    old = open_1x(queue.path)
    push_1x(old, "of-1x")
    old.close()
    waiting = [message.reqid for message in reader.claim(100, GIB)]
    reader.close()
    push_again = push(queue, 5)
    return queue, waiting + push_again


def deliver(queue: Queue) -> list[str]:
    """As a reader does that runs on when all is delivered; the reqids."""
    reader = activate(queue)
    try:
        delivered = settle_all(reader)
        while reader.tidy():
            pass
        return delivered
    finally:
        reader.close()


def errors_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("counter", COUNTERS)
def test_a_counter_that_is_wrong_is_set_right_by_an_operator_and_the_books_balance(
    tmp_path: Path, counter: str
) -> None:
    for number, change in enumerate(VALUES):
        queue, waiting = used_queue(tmp_path / str(number))
        query(queue.path, f"UPDATE book SET {counter} = {counter} {change}")
        repaired = repair(queue.database)
        assert_sound(queue)
        assert repaired.counts_changed
        assert queue.size() == len(waiting)
        assert not repair(queue.database).counts_changed
        assert drain(queue) == waiting
        assert_sound(queue)


@pytest.mark.parametrize(
    "value", ["'text'", "x'ff00'", "1.5", "9e300", "9223372036854775807", "-9223372036854775808"]
)
@pytest.mark.parametrize("counter", ["pushed", "waiting", "trimmed", "inlet_out", "last_position"])
def test_a_counter_that_is_no_count_keeps_nobody_from_pushing_and_reading(
    tmp_path: Path, counter: str, value: str
) -> None:
    queue, waiting = used_queue(tmp_path)
    query(queue.path, f"UPDATE book SET {counter} = {value}")
    assert isinstance(queue.size(), int)
    waiting += push(queue, 2)
    assert deliver(queue) == waiting
    assert_sound(queue)
    assert queue.size() == 0


def test_the_reader_sets_wrong_books_right_when_it_begins_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue, waiting = used_queue(tmp_path)
    query(queue.path, "UPDATE book SET trimmed = trimmed + 7")
    caplog.clear()
    reader = activate(queue)
    assert len(reader.claim(100, GIB)) == len(waiting)
    reader.close()
    assert_sound(queue)
    assert queue.books().found == 7
    assert drain(queue) == waiting
    (said,) = errors_of(caplog)
    assert (
        "its books did not add up and were set right by counting: 7 messages of which they did not know"
        in said
    )


def test_what_the_books_knew_and_nobody_finds_is_entered_as_damaged(tmp_path: Path) -> None:
    queue, waiting = used_queue(tmp_path)
    query(queue.path, "DELETE FROM message WHERE position = (SELECT max(position) FROM message) - 2")
    repaired = repair(queue.database)
    assert (repaired.found, repaired.damaged) == (0, 1)
    assert queue.books().damaged == 1
    assert_sound(queue)
    assert len(drain(queue)) == len(waiting) - 1


def test_a_count_that_is_wrong_in_a_way_that_balances_is_found_when_the_queue_has_drained(
    tmp_path: Path,
) -> None:
    queue, waiting = used_queue(tmp_path)
    query(queue.path, "UPDATE book SET waiting = waiting + 9, pushed = pushed + 9")
    reader = activate(queue)
    claimed = reader.claim(100, GIB)
    assert len(claimed) == len(waiting)
    reader.settle([settlement(message, Fate.ACCEPTED) for message in claimed])
    assert queue.size() == 9
    while reader.tidy():
        pass
    reader.close()
    assert queue.size() == 0
    assert queue.books().damaged == 9
    assert_sound(queue)


def test_books_that_are_right_are_not_written_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    queue, _ = used_queue(tmp_path)
    before = query(queue.path, "PRAGMA data_version")
    log = queue.path.with_name(queue.path.name + "-wal").read_bytes()
    reader = ActiveReader.activate(queue)
    assert reader is not None
    reader.tidy()
    reader.close()
    assert queue.path.with_name(queue.path.name + "-wal").read_bytes() == log
    assert query(queue.path, "PRAGMA data_version") == before
    assert errors_of(caplog) == []


def test_counting_for_a_repair_lets_others_push_and_their_messages_are_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infi.ramen_client.storage import repairing

    queue, waiting = used_queue(tmp_path)
    query(queue.path, "UPDATE book SET waiting = waiting + 3")
    original = repairing.count

    def meanwhile(database: object) -> object:
        counted = original(database)
        waiting.extend(push(queue, 4))
        return counted

    monkeypatch.setattr(repairing, "count", meanwhile)
    repair(queue.database)
    assert_sound(queue)
    assert queue.size() == len(waiting)


def test_an_operator_does_not_repair_beside_a_living_reader(tmp_path: Path) -> None:
    queue, _ = used_queue(tmp_path)
    reader = activate(queue)
    with pytest.raises(QueueBusy, match="Stop it first"):
        repair(queue.database)
    reader.close()


def test_damaged_rules_are_not_applied_are_said_and_forgotten(
    queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    kept = add_rule(queue, Rule(category="logs"))
    for value in ("x'ff'", "CAST(x'ff' AS TEXT)", "''", "NULL", "'a b'"):
        rule_id = add_rule(queue, Rule(data_type="noise"))
        query(queue.path, f"UPDATE rule SET data_type = {value} WHERE rule_id = {rule_id}")
    late = add_rule(queue, Rule(sender="imx"))
    query(queue.path, f"UPDATE rule SET last_seen_at = 1 << 60 WHERE rule_id = {late}")
    assert [stored.rule_id for stored in load_rules(queue)] == [kept]
    assert queue.check() == ["6 blacklist rules are damaged; they are not applied"]
    push(queue)
    drain(queue)
    assert_sound(queue)
    assert [stored.rule_id for stored in load_rules(queue)] == [kept]
    assert (
        sum("6 blacklist rules were damaged on disk and are forgotten" in said for said in errors_of(caplog))
        == 1
    )


# Each bit of a row in turn

CELLS = {
    "rule": "SELECT rowid FROM rule",
    "meta": "SELECT rowid FROM meta",
    "book": "SELECT rowid FROM book",
    "reader": "SELECT rowid FROM reader",
}
STEP = {"rule": 11, "meta": 23, "book": 13, "reader": 11}


def leaf_of(path: Path, table: str) -> tuple[int, int]:
    """Where the one row of a small table lies in the file, and its length."""
    page = (query(path, "SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)) - 1) * 4096
    content = path.read_bytes()[page : page + 4096]
    assert content[0] == 0x0D
    start = int.from_bytes(content[8:10], "big")
    return page + start, 4096 - start


@pytest.mark.parametrize("table", list(CELLS))
@pytest.mark.parametrize(
    "step", [pytest.param(0, id="some"), pytest.param(1, id="all", marks=pytest.mark.soak)]
)
def test_each_bit_of_a_small_row_flipped_in_turn_keeps_nobody_from_pushing_and_reading(
    tmp_path: Path, table: str, step: int
) -> None:
    code = """
from infi.ramen_client.storage import add_rule
from infi.ramen_protocol import Rule
queue = make_queue(sys.argv[1])
print(*push(queue, 3))
add_rule(queue, Rule(category="logs", data_type="noise", system_version="3.0.0.1"))
reader = activate(queue)
reader.claim(1, 1)
reader.close()
empty_wal(queue)
"""
    reqids = finish(start(code, tmp_path / "model")).split()
    path = tmp_path / "model" / "imx_1099.db"
    offset, length = leaf_of(path, table)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    stride = step or STEP[table]
    for bit in range(random.Random(table).randrange(stride) if stride > 1 else 0, 8 * length, stride):
        copy = tmp_path / "copy"
        shutil.copytree(tmp_path / "model", copy)
        hurt = copy / "imx_1099.db"
        content = bytearray(hurt.read_bytes())
        content[offset + bit // 8] ^= 1 << bit % 8
        hurt.write_bytes(content)
        try:
            _is_used(copy, reqids)
        except QueueUnusable as error:
            # The one thing that cannot be told from damage.
            if "newer version" not in str(error):
                raise AssertionError(f"bit {bit}") from error
        shutil.rmtree(copy)


def _is_used(directory: Path, reqids: list[str]) -> None:
    queue = make_queue(directory)
    try:
        queue.size()
        queue.bytes_used()
        for stored in load_rules(queue):
            assert any((stored.rule.category, stored.rule.data_type, stored.rule.system_version))
        with suppress(QueueUnusable):  # who only looks does not mend
            take_snapshot(queue.database, queue.meta)
        new = push(queue, 2)
        assert deliver(queue) == reqids + new
        # What is left over in a row that nobody needs does no harm, and is said by a check.
        assert all(problem.startswith("integrity") for problem in queue.check())
        assert queue.size() == 0
    finally:
        queue.close()
