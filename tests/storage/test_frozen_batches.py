"""Frozen batches on disk: what lies there, what passes over it, and what ends it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from queues import DEATH, GIB, activate, assert_sound, push, query

from infi.ramen_client.storage import Fate, Matching, Settlement, purge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from infi.ramen_client.storage import ActiveReader, FrozenBatch, Queue, StoredMessage

ORIGIN = "https://server:443"


def digest_of(messages: Sequence[StoredMessage]) -> str:
    return ",".join(message.reqid for message in messages)


def freeze(reader: ActiveReader, count: int, lane: str = "lane") -> FrozenBatch:
    messages = reader.look_ahead(count, GIB).messages
    frozen = reader.batches.freeze(messages, lane=lane, origin=ORIGIN, digest=digest_of(messages))
    assert frozen is not None
    return frozen


def test_a_frozen_batch_is_there_as_it_was_for_the_next_reader(queue: Queue) -> None:
    reqids = push(queue, 5)
    reader = activate(queue)
    frozen = freeze(reader, 3)
    reader.close()
    later = activate(queue)
    assert later.batches.load(digest_of) == [frozen]
    assert [message.reqid for message in frozen.members] == reqids[:3]
    assert [message.reqid for message in later.claim(9, GIB)] == reqids[3:]
    later.close()
    assert_sound(queue)


def test_the_numbers_of_a_lane_count_up_by_one_and_survive(queue: Queue) -> None:
    push(queue, 6)
    reader = activate(queue)
    for number in (1, 2):
        frozen = freeze(reader, 1)
        assert (frozen.lane, frozen.number) == ("lane", number)
        reader.settle([Settlement(message, Fate.ACCEPTED) for message in frozen.members], batch=frozen)
    assert freeze(reader, 1, "other").number == 1
    reader.close()
    later = activate(queue)
    assert later.batches.free_lanes(ORIGIN) == ["lane"]
    assert freeze(later, 1).number == 3
    later.close()
    assert_sound(queue)


def test_lanes_of_another_server_are_forgotten_but_for_those_with_a_batch(queue: Queue) -> None:
    push(queue, 2)
    reader = activate(queue)
    done = freeze(reader, 1, "done")
    reader.settle([Settlement(message, Fate.ACCEPTED) for message in done.members], batch=done)
    held = freeze(reader, 1, "held")
    assert reader.batches.free_lanes("https://new:443") == []
    assert query(queue.path, "SELECT count(*) FROM lane") == 1
    assert reader.batches.load(digest_of) == [held]
    reader.close()


def test_what_is_settled_leaves_and_what_is_not_goes_back_to_its_place(queue: Queue) -> None:
    reqids = push(queue, 4)
    reader = activate(queue)
    frozen = freeze(reader, 4)
    first, second, _, _ = frozen.members
    reader.settle([Settlement(first, Fate.ACCEPTED), Settlement(second, Fate.DEAD, DEATH)], batch=frozen)
    assert query(queue.path, "SELECT count(*) FROM flight") == 0
    assert query(queue.path, "SELECT count(*) FROM batch") == 0
    reader.give_back()
    assert [message.reqid for message in reader.claim(9, GIB)] == reqids[2:]
    reader.close()
    books = queue.books()
    assert (books.accepted, books.dead, books.waiting) == (1, 1, 2)
    assert_sound(queue)


def test_trimming_purging_and_looking_pass_over_frozen_members(queue: Queue) -> None:
    push(queue, 5)
    reader = activate(queue)
    frozen = freeze(reader, 3)
    reader.close()
    assert purge(queue.database, Matching(), dry_run=False).messages == 2
    assert queue.oldest() is None
    later = activate(queue)
    assert later.batches.load(digest_of) == [frozen]
    assert later.look_ahead(9, GIB).messages == []
    later.close()
    assert_sound(queue)


def test_a_message_that_is_gone_cannot_be_frozen_and_nothing_is(queue: Queue) -> None:
    push(queue, 3)
    reader = activate(queue)
    messages = reader.look_ahead(3, GIB).messages
    assert queue.take_oldest() is not None
    assert reader.batches.freeze(messages, lane="lane", origin=ORIGIN, digest="x") is None
    assert query(queue.path, "SELECT count(*) FROM flight") == 0
    assert query(queue.path, "SELECT count(*) FROM lane") == 0
    reader.close()
    assert_sound(queue)


def test_a_batch_that_is_not_whole_any_more_gives_its_members_back_counted_and_its_lane_ends(
    queue: Queue,
) -> None:
    reqids = push(queue, 4)
    reader = activate(queue)
    freeze(reader, 4)
    reader.close()
    query(queue.path, "DELETE FROM message WHERE position = (SELECT min(position) FROM message)")
    later = activate(queue)
    assert later.batches.load(digest_of) == []
    assert later.batches.free_lanes(ORIGIN) == []
    assert [message.reqid for message in later.claim(9, GIB)] == reqids[1:]
    later.close()
    assert queue.books().maybe_twice == 3


def test_a_batch_whose_records_would_be_others_today_is_not_sent_again(queue: Queue) -> None:
    push(queue, 2)
    reader = activate(queue)
    freeze(reader, 2)
    assert reader.batches.load(lambda _messages: "another") == []
    reader.close()
    assert queue.books().maybe_twice == 2
    assert_sound(queue)


def test_a_dissolved_batch_gives_its_members_back_and_keeps_its_lane(queue: Queue) -> None:
    reqids = push(queue, 2)
    reader = activate(queue)
    frozen = freeze(reader, 2)
    reader.batches.dissolve(frozen, maybe_twice=False, end_lane=False)
    assert reader.batches.free_lanes(ORIGIN) == ["lane"]
    reader.give_back()
    assert [message.reqid for message in reader.claim(9, GIB)] == reqids
    reader.close()
    assert queue.books().maybe_twice == 0
    assert_sound(queue)
