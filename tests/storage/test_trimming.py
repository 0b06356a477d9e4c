"""The size limit: what goes, what stays, and how far above the limit a queue can be."""

from __future__ import annotations

import logging
import re
import time
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from queues import (
    GIB,
    UNEXPLAINED,
    activate,
    assert_sound,
    drain,
    make_1x_file,
    make_message,
    make_queue,
    open_1x,
    push,
    push_1x,
    query,
    run,
    settle_all,
    settlement,
)

from infi.ramen_client.storage import Fate, Settlement

if TYPE_CHECKING:
    from pathlib import Path

SMALLEST = 10 * 1024
PAGE = 4096


def test_the_smallest_queue_holds_messages_and_drops_the_oldest(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, max_bytes=SMALLEST)
    reqids = push(queue, 500, size=200)
    assert_sound(queue)
    books = queue.books()
    assert 10 <= books.waiting <= 60
    assert books.trimmed == 500 - books.waiting
    assert queue.bytes_used() <= SMALLEST
    assert drain(queue) == reqids[-books.waiting :]


def test_nothing_is_trimmed_below_the_limit(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, max_bytes=1024 * 1024)
    push(queue, 700, size=1000)
    assert queue.books().trimmed == 0


def test_mixed_sizes_keep_the_limit_at_every_push(tmp_path: Path) -> None:
    limit = 300_000
    queue = make_queue(tmp_path, max_bytes=limit)
    for number in range(300):
        size = (10, 200, 3000, 40_000, 100_000)[number % 5]
        push(queue, 1, size=size)
        assert queue.bytes_used() <= limit + size + 2 * PAGE
    assert_sound(queue)
    assert queue.books().trimmed > 200


def test_messages_in_flight_are_never_trimmed(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, max_bytes=100_000)
    reqids = push(queue, 20, size=1000)
    reader = activate(queue)
    claimed = reader.claim(10, GIB)
    push(queue, 500, size=1000)
    reader.settle([settlement(message, Fate.ACCEPTED) for message in claimed])
    assert queue.books().accepted == 10
    assert [message.reqid for message in claimed] == reqids[:10]
    assert_sound(queue)
    reader.close()


def test_a_claim_leaves_enough_that_can_be_trimmed(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, max_bytes=100_000)
    push(queue, 50, size=1500)
    reader = activate(queue)
    assert sum(len(message.data) for message in reader.claim(1000, GIB)) <= 100_000 / 8
    push(queue, 200, size=1500)
    assert queue.bytes_used() <= 100_000
    reader.close()


def test_the_newest_message_stays_whatever_its_size(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, max_bytes=SMALLEST)
    for size in (9000, 50_000, 100, 200_000, 10):
        (reqid,) = push(queue, 1, size=size)
        newest = query(queue.path, "SELECT reqid FROM message ORDER BY position DESC LIMIT 1")
        assert newest == reqid
    assert_sound(queue)


def test_a_message_as_large_as_the_limit_goes_with_the_next_pushes_and_takes_no_others_for_ever(
    tmp_path: Path,
) -> None:
    limit = 200_000
    queue = make_queue(tmp_path, max_bytes=limit)
    push(queue, 20, size=1000)
    push(queue, 1, size=limit)
    assert queue.size() == 1
    push(queue, 20, size=1000)
    assert queue.size() == 20
    assert_sound(queue)


def test_a_queue_comes_under_a_limit_that_was_lowered_step_by_step(tmp_path: Path) -> None:
    make_queue(tmp_path).push([make_message(size=1000) for _ in range(3000)])
    queue = make_queue(tmp_path, max_bytes=500_000)
    sizes = []
    for _ in range(60):
        push(queue, 1, size=10)
        sizes.append(queue.size())
    steps = [before - after for before, after in pairwise(sizes)]
    assert max(steps) <= 200
    assert queue.bytes_used() <= 500_000
    assert queue.size() > 300
    assert_sound(queue)


def test_dead_letters_beyond_their_share_go_before_waiting_messages(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, max_bytes=GIB)
    push(queue, 30, size=10_000)
    reader = activate(queue)
    settle_all(reader, Fate.DEAD)
    reader.close()
    small = make_queue(tmp_path, max_bytes=200_000)
    push(small, 50, size=1000)
    assert (small.size(), small.books().trimmed) == (50, 0)
    assert small.books().dead_discarded > 10
    assert_sound(small)


def test_one_dead_letter_cannot_keep_the_smallest_queue_from_holding_messages(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, max_bytes=SMALLEST)
    push(queue, 1, size=9000)
    reader = activate(queue)
    settle_all(reader, Fate.DEAD)
    reader.close()
    assert queue.books().dead == 1
    push(queue, 30, size=200)
    assert queue.size() > 10
    assert_sound(queue)


def test_dead_letters_that_may_yet_go_back_are_not_trimmed(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, max_bytes=SMALLEST)
    push(queue, 1, size=5000)
    reader = activate(queue)
    (message,) = reader.claim(1, GIB)
    reader.reject_unexplained(Settlement(message, Fate.DEAD, UNEXPLAINED), "https://server")
    push(queue, 50, size=200)
    assert queue.books().dead == 1
    assert_sound(queue)
    reader.close()


def test_the_backlog_of_1x_is_trimmed_oldest_first_wherever_it_lies(tmp_path: Path) -> None:
    path = tmp_path / "imx_1099.db"
    make_1x_file(path, 600)
    limit = 60_000
    queue = make_queue(tmp_path, max_bytes=limit)
    reader = activate(queue)
    reader.claim(1, 1)  # moves the first of them
    reader.close()
    assert query(path, "SELECT count(*) FROM message") == 200
    gone: list[int] = []
    for _ in range(12):
        push(queue, 1, size=2000)
        left = query(
            path,
            "SELECT min(id) FROM (SELECT position + 4611686018427387904 AS id FROM message WHERE position < 0 "
            "UNION ALL SELECT id FROM queue)",
        )
        gone.append(left or 601)
        assert_sound(queue)
    assert gone == sorted(gone)
    books = queue.books()
    assert books.trimmed == gone[-1] - 1
    assert 200 < books.trimmed < 600
    assert queue.bytes_used() <= limit + 2 * PAGE


def test_what_a_1x_writer_pushes_while_no_reader_runs_is_trimmed_last(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, max_bytes=SMALLEST)
    old = open_1x(queue.path)
    for _ in range(20):
        push_1x(old, data=make_message(size=1000).data)
    old.close()
    assert queue.size() == 20
    push(queue, 3, size=100)
    assert queue.bytes_used() <= SMALLEST
    assert query(queue.path, "SELECT count(*) FROM message") >= 1
    assert_sound(queue)


def test_a_trim_is_said_in_the_log_once_a_minute(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    queue = make_queue(tmp_path, max_bytes=SMALLEST)
    with caplog.at_level(logging.WARNING, "ramen_client"):
        push(queue, 300, size=200)
    assert len(caplog.records) == 1
    assert "thrown away unsent" in caplog.text


def test_a_push_trims_far_less_than_everything(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, max_bytes=2_000_000)
    queue.push([make_message(size=1000) for _ in range(1600)])
    before = queue.size()
    while queue.books().trimmed == 0:
        push(queue, 1, size=1000)
    assert queue.size() > before - 110


def test_every_trimmed_message_is_said_at_the_latest_when_the_queue_is_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue(tmp_path, max_bytes=10 * 1024)
    push(queue, 300, size=200)
    trimmed = queue.books().trimmed
    assert trimmed > 100
    queue.close()
    said = [
        int(found[1]) for found in re.finditer(r"the (\d+) oldest messages were thrown away", caplog.text)
    ]
    assert sum(said) == trimmed
    assert len(said) == 2


def said(text: str, what: str = "messages") -> list[int]:
    words = {
        "messages": r"the (\d+) oldest messages were",
        "dead letters": r"dead letters took .* the (\d+) oldest were",
    }
    return [int(found[1]) for found in re.finditer(words[what], text)]


def test_what_was_not_said_within_the_minute_is_said_by_the_next_push_after_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make_queue(tmp_path, max_bytes=SMALLEST)
    push(queue, 300, size=200)
    trimmed = queue.books().trimmed
    assert sum(said(caplog.text)) < trimmed
    drain(queue)
    later = time.monotonic() + 61
    monkeypatch.setattr("infi.ramen_client.storage._losses.time.monotonic", lambda: later)
    push(queue)
    assert sum(said(caplog.text)) == trimmed == queue.books().trimmed


def test_a_queue_that_is_dropped_unclosed_says_the_rest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue(tmp_path, max_bytes=SMALLEST)
    push(queue, 300, size=200)
    trimmed = queue.books().trimmed
    del queue
    assert sum(said(caplog.text)) == trimmed


FORKED = """
import logging
logging.basicConfig(stream=sys.stdout)
queue = make_queue(sys.argv[1], max_bytes=10 * 1024)
push(queue, 300, size=200)
sys.stdout.flush()
child = os.fork()
if child:
    os.waitpid(child, 0)
    print("trimmed:", queue.books().trimmed)
"""


def test_a_program_that_ends_says_the_rest_and_its_forked_child_does_not(tmp_path: Path) -> None:
    text = run(FORKED, tmp_path)
    trimmed = re.search(r"trimmed: (\d+)", text)
    assert trimmed is not None
    assert sum(said(text)) == int(trimmed[1])
    assert len(said(text)) == 2


def test_dead_letters_that_a_push_discards_are_an_error_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue(tmp_path, max_bytes=GIB)
    push(queue, 30, size=10_000)
    reader = activate(queue)
    settle_all(reader, Fate.DEAD)
    reader.close()
    small = make_queue(tmp_path, max_bytes=200_000)
    push(small, 50, size=1000)
    small.close()
    assert sum(said(caplog.text, "dead letters")) == queue.books().dead_discarded > 10
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


@pytest.mark.parametrize("explained", [True, False])
def test_dead_letters_that_the_reader_discards_are_all_said_in_few_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, explained: bool
) -> None:
    queue = make_queue(tmp_path, max_bytes=200_000)
    push(queue, 40, size=3000)
    reader = activate(queue)
    while claimed := reader.claim(1, GIB):
        if explained:
            reader.settle([settlement(claimed[0], Fate.DEAD)])
        else:
            reader.reject_unexplained(Settlement(claimed[0], Fate.DEAD, UNEXPLAINED), "https://server")
            query(queue.path, "DELETE FROM unexplained")  # each the first of a run, so that none comes back
    reader.close()
    discarded = queue.books().dead_discarded
    assert discarded > 20
    queue.close()
    assert sum(said(caplog.text, "dead letters")) == discarded
    assert len(said(caplog.text, "dead letters")) == 2
