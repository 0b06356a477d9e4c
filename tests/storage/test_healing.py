"""Damaged files: the queue goes on in a new one, what can be read comes over, and what was lost is counted and said once."""

from __future__ import annotations

import logging
import os
import random
import shutil
from typing import TYPE_CHECKING

import pytest
from damage_kit import MESSAGES, PAGE, change, deliver, goes_on, overwrite, pages_of, put_aside
from queues import (
    assert_sound,
    empty_wal,
    finish,
    make_1x_file,
    make_queue,
    push,
    start,
)

from infi.ramen_client.errors import QueueError, QueueGone, QueueUnusable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infi.ramen_client.storage import Queue


def test_every_page_zeroed_in_turn_costs_at_most_what_lay_on_it_and_the_books_say_how_many(
    model: tuple[Path, list[str]], tmp_path: Path
) -> None:
    directory, reqids = model
    whole = directory / "imx_1099.db"
    healed = 0
    for page in range(pages_of(whole)):
        copy = tmp_path / str(page)
        shutil.copytree(directory, copy)
        path = copy / "imx_1099.db"
        overwrite(path, page * PAGE, bytes(PAGE))
        delivered, queue = goes_on(path, reqids)
        lost = MESSAGES - len(delivered)
        assert lost <= 15, f"page {page + 1}"
        assert delivered == sorted(delivered, key=reqids.index), f"page {page + 1}: out of order"
        if put_aside(path):
            healed += 1
            if queue.books().pushed >= MESSAGES:  # its old books were found
                assert queue.books().damaged == lost, f"page {page + 1}"
        queue.close()
    assert healed > 20


def test_a_file_cut_at_every_page_gives_what_lay_before_the_cut(
    model: tuple[Path, list[str]], tmp_path: Path
) -> None:
    directory, reqids = model
    whole = directory / "imx_1099.db"
    for pages in range(0, pages_of(whole), 3):
        copy = tmp_path / str(pages)
        shutil.copytree(directory, copy)
        path = copy / "imx_1099.db"
        os.truncate(path, pages * PAGE + 100)
        path.with_name(path.name + "-wal").write_bytes(b"")
        delivered, queue = goes_on(path, reqids)
        # What was delivered before the cut was met may come again, under the same reqid.
        first = list(dict.fromkeys(delivered))
        assert first == sorted(first, key=reqids.index)
        assert len(first) >= min(MESSAGES, (pages - 26) * MESSAGES // 22)
        queue.close()


@pytest.mark.parametrize("seed", range(12))
def test_bits_that_flip_anywhere_lose_no_more_than_they_hit(
    hurt: Path, model: tuple[Path, list[str]], seed: int
) -> None:
    chance = random.Random(seed)
    for _ in range(3):
        offset = chance.randrange(hurt.stat().st_size)
        overwrite(hurt, offset, bytes([chance.randrange(256)]))
    delivered, _queue = goes_on(hurt, model[1])
    assert len(delivered) >= MESSAGES - 3 * 15


def zero_length(path: Path) -> None:
    path.write_bytes(b"")
    path.with_name(path.name + "-wal").unlink()


def header_gone(path: Path) -> None:
    overwrite(path, 0, bytes(100))


def first_page_gone(path: Path) -> None:
    overwrite(path, 0, os.urandom(PAGE))


def half_written(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def all_noise(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def another_kind_of_file(path: Path) -> None:
    path.write_text("this is a text, and no queue\n" * 1000)


def no_meta(path: Path) -> None:
    change(path, "DELETE FROM meta")


def no_book(path: Path) -> None:
    change(path, "DELETE FROM book")


def no_message_table(path: Path) -> None:
    change(path, "DELETE FROM sqlite_schema WHERE name = 'message'")


def no_book_table(path: Path) -> None:
    change(path, "DELETE FROM sqlite_schema WHERE name = 'book'")


def schema_is_noise(path: Path) -> None:
    change(path, "UPDATE sqlite_schema SET sql = 'CREATE TABLE message (nonsense)' WHERE name = 'message'")


def wrong_root(path: Path) -> None:
    change(path, "UPDATE sqlite_schema SET rootpage = 100000 WHERE name = 'message'")


def shm_is_noise(path: Path) -> None:
    path.with_name(path.name + "-shm").write_bytes(os.urandom(32768))


def wal_is_noise(path: Path) -> None:
    path.with_name(path.name + "-wal").write_bytes(os.urandom(100_000))


def wal_lost(path: Path) -> None:
    path.with_name(path.name + "-wal").unlink()


KEEPS_ALL = [
    header_gone,
    no_meta,
    no_book,
    no_message_table,
    no_book_table,
    schema_is_noise,
    wrong_root,
    shm_is_noise,
    wal_is_noise,
    wal_lost,
]
LOSES = [zero_length, all_noise, another_kind_of_file, half_written, first_page_gone]


@pytest.mark.parametrize("damage", KEEPS_ALL, ids=lambda damage: damage.__name__)
def test_every_message_comes_through_when_it_was_not_hit(
    hurt: Path, model: tuple[Path, list[str]], damage: Callable[[Path], None]
) -> None:
    damage(hurt)
    delivered, _queue = goes_on(hurt, model[1])
    assert delivered == model[1]


@pytest.mark.parametrize("damage", LOSES, ids=lambda damage: damage.__name__)
def test_the_queue_goes_on_whatever_became_of_its_file(
    hurt: Path, model: tuple[Path, list[str]], damage: Callable[[Path], None]
) -> None:
    damage(hurt)
    goes_on(hurt, model[1])


def test_a_damage_that_is_met_while_the_queue_is_open_does_not_reach_the_program(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue(tmp_path)
    other = make_queue(tmp_path)
    before = push(queue, MESSAGES, size=300)
    empty_wal(queue)
    ruin(queue)
    after = push(queue, 5, size=300)
    assert put_aside(queue.path)
    assert deliver(other) == before + after
    assert (queue.size(), other.size()) == (0, 0)
    assert_sound(queue)
    said = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert ["put aside" in record.getMessage() for record in said].count(True) == 1
    assert [
        "carried over" in record.getMessage() and "0 were lost" in record.getMessage() for record in said
    ].count(True) == 1


def ruin(queue: Queue) -> None:
    """Destroy the first page under everybody's hands."""
    code = "with open(sys.argv[1], 'r+b') as file:\n    file.write(os.urandom(4096))"
    finish(start(code, queue.path))  # a process of its own, for the sake of SQLite's locks in this one
    queue.database._close_idle()  # with their caches, in which the page is still whole


def test_other_processes_go_on_with_the_new_file(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    before = push(queue, 50, size=300)
    code = """
queue = make_queue(sys.argv[1])
print(*push(queue, 1, size=300), flush=True)
sys.stdin.readline()
print(*push(queue, 10, size=300), flush=True)
assert queue.size() >= 10
"""
    writer = start(code, tmp_path)
    assert writer.stdout is not None
    before += writer.stdout.readline().split()
    empty_wal(queue)
    queue.close()
    healed = Healed(queue, tmp_path)
    said, complaint = writer.communicate("go\n", timeout=60)
    assert writer.returncode == 0, complaint
    assert deliver(healed.queue) == before + said.split()
    assert_sound(healed.queue)


class Healed:
    """Damages a queue, and opens it anew in this process."""

    def __init__(self, queue: Queue, directory: Path) -> None:
        path = directory / "imx_1099.db"
        overwrite(path, 0, bytes(100))
        self.queue = make_queue(directory)
        assert put_aside(path)


def test_a_reader_that_is_killed_while_it_carries_is_followed_by_one_that_goes_on(
    hurt: Path, model: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    header_gone(hurt)
    code = """
from infi.ramen_client.storage import _carry
_carry._STEP_ROWS = 20
reader = activate(make_queue(sys.argv[1]))
for _ in range(int(sys.argv[2])):
    reader._work._carrier.step()
os.kill(os.getpid(), 9)
"""
    for steps in (0, 2, 3):
        killed = start(code, hurt.parent, steps)
        assert killed.wait(60) == -9
        killed.communicate()
    delivered, queue = goes_on(hurt, model[1])
    assert delivered == model[1]
    assert queue.books().damaged == 0
    assert queue.books().pushed == MESSAGES + 4


def test_a_disk_that_is_full_while_rows_are_carried_costs_none_of_them(
    hurt: Path, model: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from infi.ramen_client.storage import _carry

    header_gone(hurt)
    monkeypatch.setattr(_carry, "_STEP_ROWS", 20)
    queue = make_queue(hurt.parent)
    carrier = _carry.Carrier(queue.database)
    assert carrier.step()
    progress = _carry.sql.SALVAGE_PROGRESS
    monkeypatch.setattr(_carry.sql, "SALVAGE_PROGRESS", "INSERT INTO no_such_table VALUES (?, ?, ?)")
    with pytest.raises(QueueError):  # at the end of the step, as a commit on a full disk
        carrier.step()
    monkeypatch.setattr(_carry.sql, "SALVAGE_PROGRESS", progress)
    while carrier.step():
        pass
    assert deliver(queue) == model[1]
    assert (queue.books().damaged, queue.books().pushed) == (0, MESSAGES)
    assert_sound(queue)


def test_who_is_killed_before_a_salvaged_file_has_its_new_name_leaves_books_that_are_entered_once(
    hurt: Path, model: tuple[Path, list[str]]
) -> None:
    header_gone(hurt)
    code = """
from infi.ramen_client.storage import _carry
_carry.finish_aside = lambda *_: os.kill(os.getpid(), 9)
carrier = _carry.Carrier(make_queue(sys.argv[1]).database)
while carrier.step():
    pass
"""
    killed = start(code, hurt.parent)
    assert killed.wait(60) == -9
    killed.communicate()
    queue = make_queue(hurt.parent)
    assert deliver(queue) == model[1]
    assert (queue.books().damaged, queue.books().pushed) == (0, MESSAGES)
    assert_sound(queue)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_who_is_killed_while_putting_a_file_aside_leaves_it_to_the_next(
    hurt: Path, model: tuple[Path, list[str]], steps: int
) -> None:
    header_gone(hurt)
    code = """
from infi.ramen_client.storage import _aside
left = [int(sys.argv[2])]
def dying(call):
    def step(*args, **kwargs):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), 9)
        return call(*args, **kwargs)
    return step
os.rename = dying(os.rename)
Path.rename = dying(Path.rename)
Path.unlink = dying(Path.unlink)
make_queue(sys.argv[1])
"""
    killed = start(code, hurt.parent, steps)
    assert killed.wait(60) == -9
    killed.communicate()
    delivered, _queue = goes_on(hurt, model[1])
    assert delivered == model[1]


def test_pushes_come_after_everything_that_is_carried_over(hurt: Path, model: tuple[Path, list[str]]) -> None:
    header_gone(hurt)
    queue = make_queue(hurt.parent)
    new = push(queue, 5, size=300)
    assert queue.size() == 5  # the rest comes over when somebody reads
    assert deliver(queue) == model[1] + new


def test_rules_dead_letters_and_the_1x_table_come_over_too(tmp_path: Path) -> None:
    path = tmp_path / "imx_1099.db"
    code = """
from infi.ramen_protocol import Rule
from infi.ramen_client.storage.rules import add_rule
queue = make_queue(sys.argv[1])
add_rule(queue, Rule(category="logs"))
print(*push(queue, 20, size=300))
reader = activate(queue)
(first, *_) = reader.claim(1, 1000)
reader.settle([settlement(first, Fate.DEAD)])
reader.close()
old = open_1x(queue.path)
for _ in range(3):
    push_1x(old)
old.close()
empty_wal(queue)
"""
    finish(start(code, tmp_path))
    header_gone(path)
    queue = make_queue(tmp_path)
    delivered = deliver(queue)
    assert len(delivered) == 19 + 3
    assert len(queue.dead_letters()) == 1
    from infi.ramen_client.storage.rules import load_rules

    assert [rule.rule.category for rule in load_rules(queue)] == ["logs"]
    assert queue.books().damaged == 0
    assert queue.books().pushed == 23
    assert_sound(queue)


def test_only_the_latest_two_salvaged_files_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "imx_1099.db"
    for _ in range(4):
        finish(start("queue = make_queue(sys.argv[1])\npush(queue, 3)\nempty_wal(queue)", tmp_path))
        header_gone(path)
        finish(start("queue = make_queue(sys.argv[1])\ndrain(queue)", tmp_path))
    assert len([name for name in put_aside(path) if not name.endswith("-wal")]) == 2


def test_a_file_in_which_nothing_of_a_queue_can_be_read_is_refused_where_no_queue_was(tmp_path: Path) -> None:
    path = tmp_path / "imx_1099.db"
    path.write_text("a text " * 1000)
    with pytest.raises(QueueUnusable):
        make_queue(tmp_path)
    assert path.read_text() == "a text " * 1000


def test_a_file_that_somebody_else_replaced_is_still_gone(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    push(queue)
    queue.path.rename(tmp_path / "elsewhere")
    make_queue(tmp_path)
    with pytest.raises(QueueGone):
        push(queue)


def test_a_damaged_1x_file_gives_what_can_be_read_of_it(tmp_path: Path) -> None:
    path = tmp_path / "imx_1099.db"
    make_1x_file(path, 50)
    path.with_name(path.name + "-wal").unlink(missing_ok=True)
    overwrite(path, 0, bytes(100))
    queue = make_queue(tmp_path)
    assert len(deliver(queue)) == 50
    assert_sound(queue)
