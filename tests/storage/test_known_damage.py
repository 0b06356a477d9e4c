"""Known damage: one test a kind. The queue always opens, loses at most what was hit, and its books say how many."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from damage_kit import (
    MESSAGES,
    PAGE,
    PER_LEAF,
    change,
    goes_on,
    leaves_of,
    log_of,
    overwrite,
    pages_of,
    put_aside,
    read,
    root_of,
)
from queues import finish, make_queue, start

from infi.ramen_client.errors import QueueUnusable
from infi.ramen_client.storage._found import COLUMNS

if TYPE_CHECKING:
    from pathlib import Path

    Model = tuple[Path, list[str]]

FRAME = 24 + PAGE


def keeps_all(path: Path, model: Model) -> None:
    delivered, queue = goes_on(path, model[1])
    assert delivered == model[1]
    assert queue.books().damaged == 0
    queue.close()


def loses_at_most(most: int, path: Path, model: Model) -> None:
    """What comes through is in order, and the books say what does not, where they could be read.

    What was delivered before the damage was met may come again, under the same reqid.
    """
    every, queue = goes_on(path, model[1])
    delivered = list(dict.fromkeys(every))
    assert delivered == sorted(delivered, key=model[1].index)
    assert MESSAGES - len(delivered) <= most
    books = queue.books()
    if books.pushed >= MESSAGES and every == delivered:
        assert books.damaged + books.dead + len(delivered) >= MESSAGES
    queue.close()


def page_at(path: Path, number: int) -> bytes:
    return read(path, (number - 1) * PAGE, PAGE)


def write_page(path: Path, number: int, content: bytes) -> None:
    overwrite(path, (number - 1) * PAGE, content)


# The file as a whole


def test_a_file_of_no_bytes(hurt: Path, model: Model) -> None:
    hurt.write_bytes(b"")
    loses_at_most(MESSAGES, hurt, model)


def test_a_file_of_no_bytes_without_its_log(hurt: Path, model: Model) -> None:
    hurt.write_bytes(b"")
    log_of(hurt).unlink()
    loses_at_most(MESSAGES, hurt, model)


def test_a_file_that_is_gone_and_left_its_log(hurt_with_log: Path, model_with_log: Model) -> None:
    hurt_with_log.unlink()
    loses_at_most(MESSAGES, hurt_with_log, model_with_log)


def test_a_file_of_its_first_page_alone(hurt: Path, model: Model) -> None:
    os.truncate(hurt, PAGE)
    loses_at_most(MESSAGES, hurt, model)


def test_a_file_of_less_than_its_header(hurt: Path, model: Model) -> None:
    os.truncate(hurt, 50)
    loses_at_most(MESSAGES, hurt, model)


def test_a_file_cut_in_half(hurt: Path, model: Model) -> None:
    os.truncate(hurt, pages_of(hurt) // 2 * PAGE)
    loses_at_most(MESSAGES, hurt, model)


def test_a_file_whose_last_page_is_half_written(hurt: Path, model: Model) -> None:
    os.truncate(hurt, hurt.stat().st_size - PAGE // 2)
    loses_at_most(PER_LEAF, hurt, model)


def test_a_file_that_grew_by_zeros(hurt: Path, model: Model) -> None:
    os.truncate(hurt, hurt.stat().st_size + 10 * PAGE)
    keeps_all(hurt, model)


def test_a_file_that_grew_by_noise(hurt: Path, model: Model) -> None:
    with hurt.open("ab") as file:
        file.write(os.urandom(10 * PAGE + 7))
    keeps_all(hurt, model)


def test_a_file_of_zeros(hurt: Path, model: Model) -> None:
    hurt.write_bytes(bytes(hurt.stat().st_size))
    loses_at_most(MESSAGES, hurt, model)


def test_a_file_of_noise(hurt: Path, model: Model) -> None:
    hurt.write_bytes(os.urandom(hurt.stat().st_size))
    loses_at_most(MESSAGES, hurt, model)


def test_a_text_in_its_place(hurt: Path, model: Model) -> None:
    hurt.write_text("this is no queue\n" * 5000)
    loses_at_most(MESSAGES, hurt, model)


# The header


def test_a_header_of_zeros(hurt: Path, model: Model) -> None:
    overwrite(hurt, 0, bytes(100))
    keeps_all(hurt, model)


def test_a_first_page_of_noise(hurt: Path, model: Model) -> None:
    write_page(hurt, 1, os.urandom(PAGE))
    keeps_all(hurt, model)


def test_a_header_without_the_name_of_sqlite(hurt: Path, model: Model) -> None:
    overwrite(hurt, 0, b"SQLite formaT 3\0")
    keeps_all(hurt, model)


def test_a_header_that_says_another_page_size(hurt: Path, model: Model) -> None:
    overwrite(hurt, 16, (8192).to_bytes(2, "big"))
    keeps_all(hurt, model)


def test_a_header_that_asks_for_a_newer_sqlite(hurt: Path, model: Model) -> None:
    overwrite(hurt, 18, b"\x07\x07")
    keeps_all(hurt, model)


def test_a_header_that_says_another_text_encoding(hurt: Path, model: Model) -> None:
    overwrite(hurt, 56, (2).to_bytes(4, "big"))
    keeps_all(hurt, model)


def test_a_header_that_says_too_few_pages(hurt: Path, model: Model) -> None:
    overwrite(hurt, 28, (pages_of(hurt) // 2).to_bytes(4, "big"))
    loses_at_most(MESSAGES, hurt, model)


def test_a_header_that_says_too_many_pages(hurt: Path, model: Model) -> None:
    overwrite(hurt, 28, (pages_of(hurt) * 1000).to_bytes(4, "big"))
    keeps_all(hurt, model)


def test_a_header_that_names_another_program(hurt: Path, model: Model) -> None:
    overwrite(hurt, 68, b"RAMO")
    keeps_all(hurt, model)


def test_a_header_that_knows_of_no_pointer_map(hurt: Path, model: Model) -> None:
    overwrite(hurt, 52, bytes(4))
    keeps_all(hurt, model)


def test_a_free_list_that_begins_behind_the_end(hurt: Path, model: Model) -> None:
    overwrite(hurt, 32, (10**6).to_bytes(4, "big") + (5).to_bytes(4, "big"))
    keeps_all(hurt, model)


def test_a_free_list_that_holds_pages_in_use(hurt: Path, model: Model) -> None:
    overwrite(hurt, 32, leaves_of(hurt)[2].to_bytes(4, "big") + (1).to_bytes(4, "big"))
    loses_at_most(PER_LEAF, hurt, model)


# The schema


def test_no_row_says_what_the_file_is(hurt: Path, model: Model) -> None:
    change(hurt, "DELETE FROM meta")
    keeps_all(hurt, model)


def test_no_books(hurt: Path, model: Model) -> None:
    change(hurt, "DELETE FROM book")
    keeps_all(hurt, model)


def test_no_row_for_the_reader(hurt: Path, model: Model) -> None:
    change(hurt, "DELETE FROM reader")
    keeps_all(hurt, model)


def test_no_row_numbers_for_the_1x_table(hurt: Path, model: Model) -> None:
    change(hurt, "DELETE FROM sqlite_sequence")
    keeps_all(hurt, model)


def test_an_empty_schema(hurt: Path, model: Model) -> None:
    change(hurt, "DELETE FROM sqlite_schema")
    keeps_all(hurt, model)


@pytest.mark.parametrize("table", sorted(COLUMNS.keys() - {"sqlite_sequence"}))
def test_a_table_that_the_schema_forgot(hurt: Path, model: Model, table: str) -> None:
    change(hurt, f"DELETE FROM sqlite_schema WHERE name = '{table}'")
    keeps_all(hurt, model)


def test_a_schema_whose_words_are_noise(hurt: Path, model: Model) -> None:
    change(hurt, "UPDATE sqlite_schema SET sql = 'CREATE TABLE message (nonsense)' WHERE name = 'message'")
    keeps_all(hurt, model)


def test_a_schema_that_is_no_sql(hurt: Path, model: Model) -> None:
    change(hurt, "UPDATE sqlite_schema SET sql = x'00ff' WHERE name = 'message'")
    keeps_all(hurt, model)


def test_a_trigger_that_the_schema_forgot(hurt: Path, model: Model) -> None:
    change(hurt, "DELETE FROM sqlite_schema WHERE type = 'trigger'")
    keeps_all(hurt, model)


def test_a_root_behind_the_end_of_the_file(hurt: Path, model: Model) -> None:
    change(hurt, "UPDATE sqlite_schema SET rootpage = 100000 WHERE name = 'message'")
    keeps_all(hurt, model)


def test_a_root_that_is_another_tables(hurt: Path, model: Model) -> None:
    change(hurt, f"UPDATE sqlite_schema SET rootpage = {root_of(hurt, 'rule')} WHERE name = 'message'")
    keeps_all(hurt, model)


def test_two_tables_with_one_root(hurt: Path, model: Model) -> None:
    change(hurt, f"UPDATE sqlite_schema SET rootpage = {root_of(hurt, 'message')} WHERE name = 'dead_letter'")
    keeps_all(hurt, model)


@pytest.mark.parametrize("table", sorted(COLUMNS))
@pytest.mark.parametrize("content", ["zeros", "noise"])
def test_each_tables_root_page_destroyed_in_turn(hurt: Path, model: Model, table: str, content: str) -> None:
    write_page(hurt, root_of(hurt, table), bytes(PAGE) if content == "zeros" else os.urandom(PAGE))
    keeps_all(hurt, model)


# Pages of the trees


def test_a_pointer_map_of_zeros(hurt: Path, model: Model) -> None:
    write_page(hurt, 2, bytes(PAGE))
    keeps_all(hurt, model)


def test_a_pointer_map_of_noise(hurt: Path, model: Model) -> None:
    write_page(hurt, 2, os.urandom(PAGE))
    keeps_all(hurt, model)


def test_two_leaves_that_changed_places(hurt: Path, model: Model) -> None:
    first, second = leaves_of(hurt)[3:5]
    contents = page_at(hurt, first), page_at(hurt, second)
    write_page(hurt, first, contents[1])
    write_page(hurt, second, contents[0])
    delivered, _queue = goes_on(hurt, model[1])
    assert sorted(set(delivered)) == sorted(model[1])


def test_a_leaf_that_was_written_over_another(hurt: Path, model: Model) -> None:
    first, second = leaves_of(hurt)[3:5]
    write_page(hurt, second, page_at(hurt, first))
    loses_at_most(PER_LEAF, hurt, model)


def test_a_leaf_that_was_never_written(tmp_path: Path) -> None:
    """A lost write: the page is that of a while ago, whole and sound."""
    code = """
queue = make_queue(sys.argv[1])
print(*push(queue, 100, size=300), flush=True)
empty_wal(queue)
print(*push(queue, 5, size=300), flush=True)
sys.stdin.readline()
empty_wal(queue)
"""
    process = start(code, tmp_path)
    assert process.stdout is not None
    reqids = process.stdout.readline().split() + process.stdout.readline().split()
    path = tmp_path / "imx_1099.db"
    copy = tmp_path / "old"
    finish(start("import shutil\nshutil.copy(sys.argv[1], sys.argv[2])", path, copy))
    finish(process)
    last = pages_of(copy)
    write_page(path, last, page_at(copy, last))
    delivered, queue = goes_on(path, reqids)
    assert len(delivered) >= 100
    queue.close()


def test_a_leaf_whose_pointers_lead_nowhere(hurt: Path, model: Model) -> None:
    overwrite(hurt, (leaves_of(hurt)[4] - 1) * PAGE + 8, b"\xff\xff" * 4)
    loses_at_most(4, hurt, model)


def test_a_leaf_that_counts_too_many_rows(hurt: Path, model: Model) -> None:
    overwrite(hurt, (leaves_of(hurt)[4] - 1) * PAGE + 3, b"\x7f\xff")
    loses_at_most(PER_LEAF, hurt, model)


def test_a_leaf_that_counts_no_rows(hurt: Path, model: Model) -> None:
    overwrite(hurt, (leaves_of(hurt)[4] - 1) * PAGE + 3, b"\0\0")
    loses_at_most(PER_LEAF, hurt, model)


def test_a_leaf_that_says_it_is_an_inner_page(hurt: Path, model: Model) -> None:
    overwrite(hurt, (leaves_of(hurt)[4] - 1) * PAGE, b"\x05")
    loses_at_most(PER_LEAF, hurt, model)


def test_an_inner_page_that_leads_to_itself(hurt: Path, model: Model) -> None:
    root = root_of(hurt, "message")
    start = int.from_bytes(page_at(hurt, root)[12:14], "big")
    overwrite(hurt, (root - 1) * PAGE + start, root.to_bytes(4, "big"))
    keeps_all(hurt, model)


def test_an_inner_page_that_leads_to_one_child_twice(hurt: Path, model: Model) -> None:
    root = root_of(hurt, "message")
    first, second = (int.from_bytes(page_at(hurt, root)[at : at + 2], "big") for at in (12, 14))
    child = page_at(hurt, root)[first : first + 4]
    overwrite(hurt, (root - 1) * PAGE + second, child)
    delivered, _queue = goes_on(hurt, model[1])
    # The children before the fault may be out before it is met, and come again under the same ids.
    assert sorted(set(delivered)) == sorted(model[1])


def test_an_index_of_noise(hurt: Path, model: Model) -> None:
    change(hurt, "INSERT INTO server (origin, failures, learned_at) VALUES ('https://a:1', 1, 1)")
    write_page(hurt, root_of(hurt, "sqlite_autoindex_server_1"), os.urandom(PAGE))
    keeps_all(hurt, model)


def test_a_large_messages_overflow_page_of_noise(tmp_path: Path) -> None:
    code = "queue = make_queue(sys.argv[1])\nprint(*push(queue, 10, size=20_000))\nempty_wal(queue)"
    reqids = finish(start(code, tmp_path)).split()
    path = tmp_path / "imx_1099.db"
    write_page(path, pages_of(path) - 2, os.urandom(PAGE))
    delivered, queue = goes_on(path, reqids)
    assert len(delivered) == 9
    assert queue.books().dead + queue.books().damaged == 1


# The log and its index


def test_an_index_of_the_log_that_is_noise(hurt_with_log: Path, model_with_log: Model) -> None:
    hurt_with_log.with_name(hurt_with_log.name + "-shm").write_bytes(os.urandom(32768))
    keeps_all(hurt_with_log, model_with_log)


def test_an_index_of_the_log_that_is_gone(hurt_with_log: Path, model_with_log: Model) -> None:
    hurt_with_log.with_name(hurt_with_log.name + "-shm").unlink()
    keeps_all(hurt_with_log, model_with_log)


def test_a_log_that_is_gone_costs_what_was_pushed_since_the_last_checkpoint(
    hurt_with_log: Path, model_with_log: Model
) -> None:
    log_of(hurt_with_log).unlink()
    delivered, queue = goes_on(hurt_with_log, model_with_log[1])
    assert delivered == model_with_log[1][:100]
    queue.close()


def test_a_log_of_noise_costs_what_was_pushed_since_the_last_checkpoint(
    hurt_with_log: Path, model_with_log: Model
) -> None:
    log_of(hurt_with_log).write_bytes(os.urandom(100_000))
    delivered, queue = goes_on(hurt_with_log, model_with_log[1])
    assert delivered == model_with_log[1][:100]
    queue.close()


def test_a_log_cut_within_a_frame_costs_what_came_after(hurt_with_log: Path, model_with_log: Model) -> None:
    log = log_of(hurt_with_log)
    os.truncate(log, 32 + 30 * FRAME + 1000)
    delivered, queue = goes_on(hurt_with_log, model_with_log[1])
    assert delivered == model_with_log[1][: len(delivered)]
    assert len(delivered) > 110
    queue.close()


def test_a_log_that_belongs_to_another_queue_is_taken_for_ours_by_sqlite_but_the_queue_goes_on(
    hurt: Path, model: Model, tmp_path: Path
) -> None:
    code = "queue = make_queue(sys.argv[1])\nprint(*push(queue, 60, size=300))\nempty_wal(queue)\nprint(*push(queue, 50, size=300))"
    others = finish(start(code, tmp_path / "other")).split()
    shutil.copy(log_of(tmp_path / "other" / "imx_1099.db"), log_of(hurt))
    hurt.with_name(hurt.name + "-shm").unlink(missing_ok=True)
    delivered, queue = goes_on(hurt, model[1] + others)
    assert delivered
    queue.close()


def test_a_log_whose_header_is_damaged(hurt_with_log: Path, model_with_log: Model) -> None:
    overwrite(log_of(hurt_with_log), 8, b"\xff\xff\xff\xff")
    delivered, queue = goes_on(hurt_with_log, model_with_log[1])
    assert delivered == model_with_log[1][: len(delivered)]
    assert len(delivered) >= 100
    queue.close()


def test_all_together(hurt_with_log: Path, model_with_log: Model) -> None:
    overwrite(hurt_with_log, 0, bytes(100))
    write_page(hurt_with_log, 2, os.urandom(PAGE))
    overwrite(log_of(hurt_with_log), 32 + 40 * FRAME + 500, b"\0\1\2\3")
    loses_at_most(MESSAGES // 2, hurt_with_log, model_with_log)


# In turn, the long form; a part of it runs always, in test_healing.py


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_each_page_of_noise_in_turn(model: Model, tmp_path: Path) -> None:
    for page in range(1, pages_of(model[0] / "imx_1099.db") + 1):
        copy = tmp_path / str(page)
        shutil.copytree(model[0], copy)
        write_page(copy / "imx_1099.db", page, os.urandom(PAGE))
        loses_at_most(PER_LEAF, copy / "imx_1099.db", model)
        shutil.rmtree(copy)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_file_cut_at_each_page_in_turn(model: Model, tmp_path: Path) -> None:
    whole = model[0] / "imx_1099.db"
    first_leaf = min(leaves_of(whole))
    for pages in range(pages_of(whole)):
        copy = tmp_path / str(pages)
        shutil.copytree(model[0], copy)
        os.truncate(copy / "imx_1099.db", pages * PAGE)
        behind = pages_of(whole) - max(pages, first_leaf - 1)
        loses_at_most(min(MESSAGES, behind * 2 * PER_LEAF), copy / "imx_1099.db", model)
        shutil.rmtree(copy)


# What is no damage of ours


def test_a_file_of_a_newer_version_is_no_damage_and_stays_as_it_is(hurt: Path) -> None:
    change(hurt, "UPDATE meta SET min_reader = 3")
    before = hurt.read_bytes()
    with pytest.raises(QueueUnusable, match="newer version"):
        make_queue(hurt.parent)
    assert hurt.read_bytes() == before
    assert put_aside(hurt) == []
