"""The limit with ``overflow="reject"``: a push that does not fit is refused whole, and nothing that waits is thrown away for it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from queues import (
    GIB,
    UNEXPLAINED,
    activate,
    assert_sound,
    drain,
    make_message,
    make_queue,
    open_1x,
    push,
    push_1x,
    query,
    settle_all,
    settlement,
)

from infi.ramen_client.errors import QueueError, QueueFull
from infi.ramen_client.storage import Fate, Overflow, Settlement

if TYPE_CHECKING:
    from pathlib import Path

    from infi.ramen_client.storage import Queue

LIMIT = 200_000


def rejecting(directory: Path, max_bytes: int = LIMIT, **fields: Any) -> Queue:
    return make_queue(directory, max_bytes=max_bytes, overflow=Overflow.REJECT, **fields)


def fill(queue: Queue, size: int = 1000) -> list[str]:
    """Push until the queue is full; return the reqids of what it took."""
    reqids: list[str] = []
    with suppress(QueueFull):
        while len(reqids) < 1000:
            reqids += push(queue, 1, size=size)
    assert len(reqids) < 1000
    return reqids


def test_a_push_at_the_limit_raises_and_stores_nothing(tmp_path: Path) -> None:
    queue = rejecting(tmp_path)
    reqids = fill(queue)
    before = queue.books(), queue.bytes_used()
    for _ in range(20):
        with pytest.raises(
            QueueFull, match=r"at its limit of 200000 bytes; nothing was stored\. .*max_queue_size"
        ):
            push(queue, 1, size=1000)
    assert (queue.books(), queue.bytes_used()) == before
    assert queue.bytes_used() <= LIMIT
    assert 100 < len(reqids) == queue.books().pushed == queue.books().waiting
    assert drain(queue) == reqids
    assert_sound(queue)


def test_it_is_a_queue_error_that_says_the_file(tmp_path: Path) -> None:
    queue = rejecting(tmp_path)
    fill(queue)
    with pytest.raises(QueueError) as caught:
        push(queue, 1, size=1000)
    assert str(caught.value).startswith(f"{queue.path}: ")


def test_what_is_smaller_may_still_fit_where_a_large_message_was_refused(tmp_path: Path) -> None:
    queue = rejecting(tmp_path)
    push(queue, 100, size=1000)
    with pytest.raises(QueueFull):
        push(queue, 1, size=150_000)
    push(queue, 1, size=1000)
    assert queue.size() == 101


def test_several_messages_are_refused_together(tmp_path: Path) -> None:
    queue = rejecting(tmp_path)
    push(queue)
    with pytest.raises(QueueFull):
        queue.push([make_message(size=1000) for _ in range(300)])
    assert queue.size() == 1
    assert_sound(queue)


def test_after_the_reader_has_delivered_some_a_push_is_taken_again(tmp_path: Path) -> None:
    queue = rejecting(tmp_path)
    fill(queue)
    reader = activate(queue)
    claimed = reader.claim(20, GIB)
    with pytest.raises(QueueFull):
        push(queue, 1, size=1000)  # what is in flight waits as well
    reader.settle([settlement(message, Fate.ACCEPTED) for message in claimed])
    assert len(push(queue, 5, size=1000)) == 5
    assert queue.books().trimmed == 0
    reader.close()
    assert_sound(queue)


@pytest.mark.parametrize("limit", [10 * 1024, 200_000])
def test_a_queue_in_which_nothing_waits_takes_a_message_whatever_its_size_and_then_no_other(
    tmp_path: Path, limit: int
) -> None:
    queue = rejecting(tmp_path, limit)
    (reqid,) = push(queue, 1, size=2 * limit)
    with pytest.raises(QueueFull):
        push(queue, 1, size=10)
    assert drain(queue) == [reqid]
    push(queue, 1, size=10)


def test_the_smallest_queue_holds_messages(tmp_path: Path) -> None:
    assert len(fill(rejecting(tmp_path, 10 * 1024), size=200)) >= 10


def test_dead_letters_beyond_their_share_make_room_and_their_loss_is_counted(tmp_path: Path) -> None:
    wide = make_queue(tmp_path)
    push(wide, 30, size=10_000)
    reader = activate(wide)
    settle_all(reader, Fate.DEAD)
    reader.close()
    queue = rejecting(tmp_path)
    reqids = fill(queue)
    assert len(reqids) > 80
    assert queue.books().dead_discarded > 20
    assert_sound(queue)


def test_dead_letters_within_their_share_stay_and_leave_nine_tenths_to_messages(tmp_path: Path) -> None:
    queue = rejecting(tmp_path)
    push(queue, 19, size=1000)
    reader = activate(queue)
    settle_all(reader, Fate.DEAD)
    reader.close()
    reqids = fill(queue)
    assert queue.books().dead == 19
    assert sum(1000 for _ in reqids) > LIMIT * 0.6  # pages are not packed full
    assert_sound(queue)


def test_dead_letters_that_may_yet_go_back_are_not_discarded_for_it(tmp_path: Path) -> None:
    queue = rejecting(tmp_path, 30_000)
    push(queue, 1, size=20_000)
    reader = activate(queue)
    (message,) = reader.claim(1, GIB)
    reader.reject_unexplained(Settlement(message, Fate.DEAD, UNEXPLAINED), "https://server")
    reader.close()
    fill(queue)
    assert queue.books().dead == 1
    assert_sound(queue)


def test_a_refusal_gives_back_the_dead_letters_that_it_had_discarded(tmp_path: Path) -> None:
    wide = make_queue(tmp_path)
    push(wide, 1, size=60_000)
    reader = activate(wide)
    settle_all(reader, Fate.DEAD)
    reader.close()
    push(wide, 100, size=2000)
    queue = rejecting(tmp_path, 100_000)
    with pytest.raises(QueueFull):
        push(queue, 1, size=1000)
    assert queue.books().dead == 1
    assert_sound(queue)


def test_nothing_is_trimmed_where_the_limit_was_lowered(tmp_path: Path) -> None:
    push(make_queue(tmp_path), 300, size=1000)
    queue = rejecting(tmp_path)
    with pytest.raises(QueueFull):
        push(queue, 1, size=10)
    assert queue.size() == 300
    reader = activate(queue)
    for _ in range(30):
        reader.settle([settlement(message, Fate.ACCEPTED) for message in reader.claim(10, GIB)])
    reader.close()
    push(queue, 1, size=10)


def test_what_a_1x_writer_pushed_counts_and_is_not_thrown_away(tmp_path: Path) -> None:
    queue = rejecting(tmp_path)
    old = open_1x(queue.path)
    for _ in range(250):
        push_1x(old, data=make_message(size=1000).data)
    old.close()
    with pytest.raises(QueueFull):
        push(queue, 1, size=1000)
    assert query(queue.path, "SELECT count(*) FROM queue") == 250


def test_a_refused_push_frees_the_turn_and_leaves_other_writers_alone(tmp_path: Path) -> None:
    queue, other = rejecting(tmp_path), make_queue(tmp_path, max_bytes=LIMIT)
    fill(queue)
    push(other, 50, size=1000)  # this one drops the oldest
    with pytest.raises(QueueFull):
        push(queue, 1, size=100_000)
    assert other.books().trimmed >= 40
    assert other.bytes_used() <= LIMIT
    assert_sound(other)
