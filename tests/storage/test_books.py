"""The conservation law, operation by operation."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import TYPE_CHECKING

import pytest
from queues import (
    DEATH,
    GIB,
    ORIGIN,
    UNEXPLAINED,
    activate,
    assert_sound,
    drain,
    make_message,
    make_queue,
    push,
    query,
    settle_all,
    settlement,
)

from infi.ramen_client.storage import ActiveReader, FailureNote, Fate, Queue, ServerFacts, Settlement

if TYPE_CHECKING:
    from pathlib import Path


def test_a_new_queue_is_empty_and_its_books_balance(queue: Queue) -> None:
    assert_sound(queue)
    assert (queue.size(), queue.bytes_used(), queue.books().pushed) == (0, 0, 0)


def test_pushed_messages_are_counted_before_anybody_entered_them_into_the_books(queue: Queue) -> None:
    push(queue, 3)
    assert query(queue.path, "SELECT pushed, waiting, last_position FROM book") == (0, 0, 0)
    assert (queue.books().pushed, queue.books().waiting, queue.size()) == (3, 3, 3)
    assert_sound(queue)


def test_several_messages_are_pushed_all_or_none_and_in_order(queue: Queue) -> None:
    messages = [make_message() for _ in range(100)]
    queue.push(messages)
    with pytest.raises(TypeError):
        queue.push([make_message(), make_message(category=object())])
    assert queue.size() == 100
    assert_sound(queue)
    assert drain(queue) == [message.reqid for message in messages]


@pytest.mark.parametrize("fate", list(Fate))
def test_a_settled_message_is_counted_under_its_fate(queue: Queue, fate: Fate) -> None:
    push(queue, 3)
    reader = activate(queue)
    claimed = reader.claim(2, GIB)
    reader.settle([settlement(message, fate) for message in claimed])
    assert_sound(queue)
    books = queue.books()
    assert (books.waiting, getattr(books, fate.value)) == (1, 2)
    reader.close()
    assert_sound(queue)


def test_a_message_comes_back_as_it_was_pushed(queue: Queue) -> None:
    pushed = [
        make_message(b'{"a": 1}', data_version="01", reqid="ünique & ?=\x00", pushed_at_ms=5),
        make_message(data_version=7, system_version="1.2-x"),
        make_message(size=300_000, data_version=-(2**63) + 1),
    ]
    queue.push(pushed)
    reader = activate(queue)
    found = reader.claim(10, GIB)
    for before, after in zip(pushed, found, strict=True):
        assert {field.name: getattr(after, field.name) for field in fields(before)} == asdict(before)
    reader.close()


def test_settling_twice_counts_once(queue: Queue) -> None:
    push(queue)
    reader = activate(queue)
    (message,) = reader.claim(1, GIB)
    reader.settle([Settlement(message, Fate.ACCEPTED)])
    reader.settle([Settlement(message, Fate.DEAD, DEATH)])
    assert (queue.books().accepted, queue.books().dead) == (1, 0)
    assert_sound(queue)
    reader.close()


def test_what_is_claimed_and_not_settled_waits_again_after_close(queue: Queue) -> None:
    reqids = push(queue, 5)
    reader = activate(queue)
    assert [message.reqid for message in reader.claim(3, GIB)] == reqids[:3]
    reader.close()
    assert drain(queue) == reqids
    assert_sound(queue)


def test_what_is_given_back_is_claimed_again(queue: Queue) -> None:
    reqids = push(queue, 5)
    reader = activate(queue)
    assert [message.reqid for message in reader.claim(3, GIB)] == reqids[:3]
    assert [message.reqid for message in reader.claim(5, GIB)] == reqids[3:]
    reader.give_back()
    assert [message.reqid for message in reader.claim(5, GIB)] == reqids
    reader.give_back()
    assert query(queue.path, "SELECT count(*) FROM flight") == 0
    reader.close()


def test_a_claim_is_bounded_by_count_and_by_bytes_but_takes_at_least_one(queue: Queue) -> None:
    push(queue, 10, size=1000)
    reader = activate(queue)
    assert len(reader.claim(3, GIB)) == 3
    assert len(reader.claim(10, 2500)) == 2
    assert len(reader.claim(10, 1)) == 1
    reader.close()


def test_positions_are_never_used_again_also_when_the_last_message_goes(queue: Queue) -> None:
    seen: set[int] = set()
    for _ in range(20):
        push(queue, 2)
        reader = activate(queue)
        for message in reader.claim(10, GIB):
            assert message.position not in seen
            seen.add(message.position)
            reader.settle([settlement(message, Fate.ACCEPTED)])
        reader.close()
        push(queue)
        taken = queue.take_oldest()
        assert taken is not None
        assert taken.position not in seen
        seen.add(taken.position)
    assert len(seen) == 60
    assert_sound(queue)


def test_taking_the_oldest_counts_as_purged_and_passes_over_what_is_in_flight(queue: Queue) -> None:
    reqids = push(queue, 3)
    reader = activate(queue)
    reader.claim(1, GIB)
    oldest = queue.oldest()
    assert oldest is not None
    assert oldest.reqid == reqids[1]
    taken = queue.take_oldest()
    assert taken is not None
    assert taken.reqid == reqids[1]
    assert queue.books().purged == 1
    assert_sound(queue)
    reader.close()


def test_dead_letters_come_back_to_their_old_places(queue: Queue) -> None:
    reqids = push(queue, 4)
    reader = activate(queue)
    first, second, *_ = reader.claim(2, GIB)
    reader.settle([settlement(first, Fate.DEAD), settlement(second, Fate.DEAD)])
    assert [(letter.message.reqid, letter.death) for letter in queue.dead_letters()] == [
        (reqids[0], DEATH),
        (reqids[1], DEATH),
    ]
    assert queue.retry_dead_letters([second.position, 12345]) == 1
    assert_sound(queue)
    assert settle_all(reader) == reqids[1:]
    assert queue.discard_dead_letters() == 1
    assert_sound(queue)
    assert (queue.books().dead, queue.books().dead_discarded, queue.books().accepted) == (0, 1, 3)
    reader.close()


def test_dead_letters_have_a_share_of_their_own_and_the_newest_stays(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, max_bytes=100_000)
    push(queue, 10, size=4000)
    reader = activate(queue)
    settle_all(reader, Fate.DEAD)
    assert_sound(queue)
    assert (queue.books().dead, queue.books().dead_discarded) == (2, 8)
    reqids = push(queue, 1, size=12_000)
    settle_all(reader, Fate.DEAD)
    assert [letter.message.reqid for letter in queue.dead_letters()] == reqids
    assert_sound(queue)
    reader.close()


def reject(reader: ActiveReader, number: int, origin: str = ORIGIN) -> list[bool]:
    answers = []
    for _ in range(number):
        (message,) = reader.claim(1, GIB)
        answers.append(reader.reject_unexplained(Settlement(message, Fate.DEAD, UNEXPLAINED), origin))
    return answers


def test_the_fifth_unexplained_rejection_brings_all_five_back(queue: Queue) -> None:
    reqids = push(queue, 7)
    reader = activate(queue)
    assert reject(reader, 5) == [False] * 4 + [True]
    assert (queue.books().dead, queue.books().waiting) == (0, 7)
    assert_sound(queue)
    assert settle_all(reader) == reqids
    reader.close()


@pytest.mark.parametrize("fate", [Fate.ACCEPTED, Fate.DROPPED])
def test_an_acceptance_ends_the_run_of_unexplained_rejections(queue: Queue, fate: Fate) -> None:
    push(queue, 12)
    reader = activate(queue)
    assert reject(reader, 4) == [False] * 4
    (message,) = reader.claim(1, GIB)
    reader.settle([settlement(message, fate)])
    assert reject(reader, 4) == [False] * 4
    assert queue.books().dead == 8
    assert_sound(queue)
    reader.close()


@pytest.mark.parametrize("fate", [Fate.BLACKLISTED, Fate.DEAD, Fate.PURGED])
def test_what_is_no_acceptance_does_not_end_the_run(queue: Queue, fate: Fate) -> None:
    push(queue, 12)
    reader = activate(queue)
    reject(reader, 4)
    (message,) = reader.claim(1, GIB)
    reader.settle([settlement(message, fate)])
    assert reject(reader, 1) == [True]
    reader.close()


def test_the_run_of_unexplained_rejections_goes_on_over_a_restart(queue: Queue) -> None:
    push(queue, 7)
    reader = activate(queue)
    reject(reader, 4)
    reader.close()
    reader = activate(queue)
    assert reject(reader, 1) == [True]
    reader.close()


def test_each_server_has_its_own_run_of_unexplained_rejections(queue: Queue) -> None:
    push(queue, 9)
    reader = activate(queue)
    reject(reader, 4, "https://old")
    assert reject(reader, 5, "https://new") == [False] * 4 + [True]
    assert (queue.books().dead, queue.size()) == (4, 5)
    settle_all(reader)
    assert query(queue.path, "SELECT count(*) FROM unexplained") == 0
    assert_sound(queue)
    reader.close()


def test_a_run_whose_dead_letters_were_taken_away_ends_when_the_server_is_suspect(queue: Queue) -> None:
    push(queue, 12)
    reader = activate(queue)
    reject(reader, 2)
    query(queue.path, "UPDATE dead_letter SET plain_length = -1")  # cannot go back
    assert reject(reader, 3) == [False, False, True]
    assert (queue.books().dead, queue.size()) == (2, 10)
    assert query(queue.path, "SELECT count(*) FROM unexplained") == 0
    assert reject(reader, 4) == [False] * 4
    assert_sound(queue)
    reader.close()


def test_what_was_learned_of_a_server_survives(queue: Queue) -> None:
    reader = activate(queue)
    assert reader.load_server(ORIGIN) == ServerFacts()
    facts = ServerFacts(failures=3, suspect_since_ms=5, retry_at_ms=None)
    reader.note_failure(FailureNote("it is down", 503, 17), ORIGIN, facts)
    reader.close()
    reader = activate(queue)
    assert reader.load_server(ORIGIN) == facts
    reader.close()


def test_wait_sent_sees_exactly_what_was_pushed_before(queue: Queue) -> None:
    push(queue, 2)
    point = queue.push_point()
    push(queue)
    reader = activate(queue)
    for done in (False, True):
        assert queue.settled_up_to(point) is not True
        (message,) = reader.claim(1, GIB)
        reader.settle([settlement(message, Fate.ACCEPTED)])
        assert queue.settled_up_to(point) is done
    assert queue.size() == 1
    reader.close()


def test_check_says_in_words_what_is_wrong(queue: Queue) -> None:
    push(queue, 3)
    drain(queue)
    query(queue.path, "UPDATE book SET accepted = accepted - 1, dead = dead + 1")
    assert queue.check() == ["the books say 1 dead letters, the file holds 0"]
    query(queue.path, "UPDATE book SET dead = 0")
    assert queue.check() == ["the books do not balance: +1 of 3 pushed"]
