"""A damaged row never stops the reader, and is never delivered."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zlib import crc32

import pytest
from queues import (
    GIB,
    activate,
    assert_sound,
    drain,
    make_message,
    push,
    query,
    run,
    settle_all,
)

from infi.ramen_client.storage import Fate, ReqidOrigin

if TYPE_CHECKING:
    from infi.ramen_client.storage import Queue

FLIP = "CAST(substr(CAST({0} AS BLOB), 1, length(CAST({0} AS BLOB)) - 1) || x'ff' AS {1})"
DAMAGES = {
    "category": FLIP.format("category", "TEXT"),
    "category is empty": "''",
    "category is a number": "7",
    "data_type": FLIP.format("data_type", "TEXT"),
    "data_version": FLIP.format("data_version", "TEXT"),
    "data_version is a number": "1",
    "data_version is a fraction": "1.5",
    "data_version is a blob": "x'ff00'",
    "system_version": FLIP.format("system_version", "TEXT"),
    "reqid": FLIP.format("reqid", "TEXT"),
    "reqid is a blob": "x'ff'",
    "reqid_origin": "reqid_origin + 1",
    "reqid_origin is text": "CAST(x'ff' AS TEXT)",
    "pushed_at": "pushed_at + 256",
    "pushed_at is text": "CAST(x'ff' AS TEXT)",
    "pushed_at is a fraction": "9e999",
    "plain_length": "plain_length + 1",
    "plain_length is negative": "-1",
    "plain_crc32": "plain_crc32 + 1",
    "plain_crc32 is text": "CAST(x'fefe' AS TEXT)",
    "row_crc32": "row_crc32 + 1",
    "row_crc32 is a blob": "x'00'",
    "data": "substr(data, 1, length(data) - 1) || x'00'",
    "data is longer": "data || x'00'",
    "data is empty": "x''",
    "data is text": "CAST(x'fffe' AS TEXT)",
    "data is a number": "5",
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_message_damaged_in_one_column_becomes_a_dead_letter_and_the_others_go_on(
    queue: Queue, damage: str
) -> None:
    reqids = push(queue, 5, reqid_origin=ReqidOrigin.CALLER)
    column = damage.split(maxsplit=1)[0]
    run(
        "query(sys.argv[1], sys.argv[2])",
        queue.path,
        f"UPDATE message SET {column} = {DAMAGES[damage]} WHERE position IN (1, 3)",
    )
    assert drain(queue) == [reqids[1], reqids[3], reqids[4]]
    assert_sound(queue)
    books = queue.books()
    assert (books.waiting, books.accepted, books.dead) == (0, 3, 2)
    letters = queue.dead_letters()
    assert all("damaged" in letter.death.reason for letter in letters)
    assert queue.retry_dead_letters([letter.message.position for letter in letters]) == 0
    assert queue.discard_dead_letters() == 2
    assert_sound(queue)


def test_a_queue_of_damaged_messages_alone_ends_empty(queue: Queue) -> None:
    push(queue, 200)
    query(queue.path, "UPDATE message SET row_crc32 = row_crc32 + 1")
    reader = activate(queue)
    assert reader.claim(64, GIB) == []
    assert (queue.size(), queue.books().dead) == (0, 200)
    assert_sound(queue)
    reader.close()


def test_taking_the_oldest_passes_over_damaged_messages(queue: Queue) -> None:
    reqids = push(queue, 3)
    query(queue.path, "UPDATE message SET reqid = CAST(x'ff' AS TEXT) WHERE position = 1")
    oldest = queue.oldest()
    assert oldest is not None
    assert oldest.reqid == reqids[1]
    taken = [queue.take_oldest() for _ in range(3)]
    assert [message.reqid if message else None for message in taken] == [*reqids[1:], None]
    assert (queue.books().dead, queue.books().purged) == (1, 2)
    assert_sound(queue)


@pytest.mark.parametrize("column", ["reason", "code", "details", "category", "reqid", "data"])
def test_damaged_dead_letters_can_be_listed_and_discarded(queue: Queue, column: str) -> None:
    push(queue, 2)
    reader = activate(queue)
    settle_all(reader, Fate.DEAD)
    reader.close()
    query(queue.path, f"UPDATE dead_letter SET {column} = CAST(x'ff' AS TEXT) WHERE position = 1")
    assert len(queue.dead_letters()) == 2
    assert queue.discard_dead_letters() == 2
    assert (queue.books().dead, queue.size()) == (0, 0)


def test_a_dead_letter_that_was_damaged_dies_again_when_it_is_retried(queue: Queue) -> None:
    push(queue, 1)
    reader = activate(queue)
    settle_all(reader, Fate.DEAD)
    query(queue.path, "UPDATE dead_letter SET category = 'other'")
    assert queue.retry_dead_letters([1]) == 1
    assert settle_all(reader) == []
    assert queue.books().dead == 1
    assert_sound(queue)
    reader.close()


def test_books_that_say_nothing_waits_do_not_keep_messages_back(queue: Queue) -> None:
    reqids = push(queue, 2)
    query(queue.path, "UPDATE book SET waiting = -2")
    assert queue.size() == 0
    assert drain(queue) == reqids


def test_the_checksum_covers_every_column_and_its_encoding_is_fixed() -> None:
    message = make_message(
        b'{"a": 1}',
        category="c",
        data_type="t",
        data_version=1,
        system_version="3.0",
        reqid="ü",
        reqid_origin=1,
        pushed_at_ms=1_700_000_000_000,
        data=b"\x01\x02",
    )
    head = "c\x1ft\x1fi1\x1f3.0\x1f1\x1f1700000000000\x1f8\x1f4221669015\x1fü".encode()
    assert message.row_crc32() == crc32(head + b"\x01\x02") == 0xDA66225F
