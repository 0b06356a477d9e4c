"""Several 2.x on one file: an older program beside what a newer one added, and shut out by what it must not touch."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from damage_kit import change, deliver, overwrite
from queues import assert_sound, finish, make_message, make_queue, push, query, start

from infi.ramen_client.admin import QueueAdmin
from infi.ramen_client.errors import QueueUnusable
from infi.ramen_client.storage import Fate, export_to_1x

if TYPE_CHECKING:
    from pathlib import Path

NEWER_MINOR = [
    *(
        f"ALTER TABLE {table} ADD COLUMN later_{number} {kind}"
        for table in ("message", "dead_letter", "book", "reader", "rule", "server", "meta", "flight")
        for number, kind in enumerate(["TEXT", "INTEGER NOT NULL DEFAULT 7", "BLOB DEFAULT x'00ff'"])
    ),
    "CREATE TABLE later (id INTEGER PRIMARY KEY, note TEXT NOT NULL)",
    "INSERT INTO later (note) VALUES ('kept')",
    "CREATE INDEX later_index ON message (pushed_at)",
    "CREATE TRIGGER later_trigger AFTER INSERT ON message BEGIN INSERT INTO later (note) VALUES (new.reqid); END",
]
"""What a newer minor version may do without raising the minima."""


def contents_of(path: Path) -> dict[str, bytes]:
    """What the files hold; SQLite may make an empty log."""
    files = {file.name: file.read_bytes() for file in path.parent.iterdir() if not file.name.endswith("-shm")}
    return {name: content for name, content in files.items() if content}


def test_an_older_program_works_on_a_file_to_which_a_newer_one_added_columns_tables_indexes_and_triggers(
    hurt: Path, model: tuple[Path, list[str]]
) -> None:
    change(hurt, *NEWER_MINOR)
    queue = make_queue(hurt.parent)
    new = push(queue, 5, size=300)
    assert_sound(queue)
    assert deliver(queue) == model[1] + new
    assert_sound(queue)
    assert query(hurt, "SELECT count(*) FROM later") == 6, "the newer one's trigger ran"
    assert query(hurt, "SELECT later_1 FROM book") == 7


def test_what_the_older_one_pushed_has_the_newer_ones_defaults_and_its_rows_keep_what_the_newer_one_wrote(
    hurt: Path,
) -> None:
    change(hurt, *NEWER_MINOR, "UPDATE message SET later_0 = 'newer'")
    queue = make_queue(hurt.parent)
    push(queue, 1)
    found = "SELECT group_concat(DISTINCT coalesce(later_0, '-') || later_1 || hex(later_2)) FROM message"
    assert query(hurt, found) == "newer700FF,-700FF"
    assert queue.take_oldest() is not None
    assert query(hurt, "SELECT count(*) FROM message WHERE later_0 = 'newer'") == 199


def test_dead_letters_checks_trims_and_the_way_back_work_beside_a_newer_one(
    hurt: Path, model: tuple[Path, list[str]], tmp_path: Path
) -> None:
    from queues import GIB, activate, settlement

    change(hurt, *NEWER_MINOR)
    queue = make_queue(hurt.parent, max_bytes=40_960)
    push(queue, 20, size=2000)
    assert queue.books().trimmed > 0
    reader = activate(queue)
    reader.settle([settlement(message, Fate.DEAD) for message in reader.claim(3, GIB)])
    reader.close()
    letters = queue.dead_letters()
    assert letters
    assert queue.retry_dead_letters([letters[0].message.position]) == 1
    with QueueAdmin(hurt) as admin:
        assert admin.check() == []
        assert admin.status(sample_seconds=0).books.pushed == 220
    assert export_to_1x(queue.database, tmp_path / "old").messages == queue.size()


def test_a_damaged_file_of_a_newer_minor_version_is_healed_with_what_the_older_one_knows(
    hurt: Path, model: tuple[Path, list[str]]
) -> None:
    change(hurt, *NEWER_MINOR)
    overwrite(hurt, 0, bytes(100))
    queue = make_queue(hurt.parent)
    assert deliver(queue) == model[1]
    assert_sound(queue)


@pytest.mark.parametrize("minimum", ["min_reader", "min_writer"])
def test_a_file_that_needs_a_newer_program_is_refused_in_clear_words_and_not_a_byte_of_it_changed(
    hurt: Path, minimum: str
) -> None:
    change(hurt, *NEWER_MINOR, f"UPDATE meta SET {minimum} = 3")
    before = contents_of(hurt)
    with pytest.raises(
        QueueUnusable,
        match=r"used by a newer version \(format 3, this one knows 2\)\. Upgrade infi\.ramen_client",
    ):
        make_queue(hurt.parent)
    with pytest.raises(QueueUnusable, match="newer version"):
        QueueAdmin(hurt)
    assert contents_of(hurt) == before


def test_programs_that_have_the_file_open_are_shut_out_at_their_next_write_and_lose_nothing(
    tmp_path: Path,
) -> None:
    queue = make_queue(tmp_path)
    reqids = push(queue, 3)
    newer = """
import sqlite3
connection = sqlite3.connect(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
connection.execute("ALTER TABLE message ADD COLUMN later TEXT")
connection.execute("UPDATE meta SET min_writer = 3")
connection.execute("COMMIT")
"""
    finish(start(newer, queue.path))
    with pytest.raises(QueueUnusable, match="newer version"):
        queue.push((make_message(),))
    with pytest.raises(QueueUnusable, match="newer version"):
        deliver(queue)
    queue.close()
    rows = """
import sqlite3
print(*(reqid for (reqid,) in sqlite3.connect(sys.argv[1]).execute("SELECT reqid FROM message ORDER BY position")))
"""
    assert finish(start(rows, tmp_path / "imx_1099.db")).split() == reqids
    shutil.rmtree(tmp_path)
