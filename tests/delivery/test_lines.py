"""The lines: what subtle there is about them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_client.delivery.lines import Lines, Ordering
from infi.ramen_client.storage import ReqidOrigin, StoredMessage


def message(position: int, data_type: str = "x") -> StoredMessage:
    return StoredMessage(
        position=position,
        category="metrics",
        data_type=data_type,
        data_version="v1",
        system_version="1",
        reqid=f"r{position}",
        reqid_origin=ReqidOrigin.PUSH,
        pushed_at_ms=0,
        plain_length=2,
        plain_crc32=0,
        data=b"data",
    )


@pytest.mark.parametrize(("ordering", "width"), [("stream", 1), ("stream", 4), ("none", 4)])
def test_starting_over_keeps_nothing_but_what_is_under_way(ordering: str, width: int) -> None:
    lines = Lines(Ordering(ordering), width)
    lines.add([message(1), message(2, "y"), message(3), message(4, "z")])
    taken = lines.take(1, 100)
    lines.start_over()
    assert lines.ready == 0
    assert lines.passed_over() == []
    lines.done(taken)
    assert lines._lines == {}
    assert lines._known == set()
    lines.add([message(2, "y"), message(3), message(4, "z")])
    assert lines.ready == 3 if ordering == "none" or width == 1 else lines.turns == 3


def test_a_stream_that_waits_is_looked_for_from_the_first_that_it_gave_up() -> None:
    lines = Lines(Ordering.STREAM, 4)
    lines.add([message(2), message(3)])
    taken = lines.take(2, 100)
    lines.add([message(1)])  # raised, while those behind it are under way
    lines.put_back(taken)
    assert len(lines.hold(("metrics", "x"), 10.0)) == 3
    lines.let_go(11.0)
    (want,) = lines.wants(11.0)
    assert want.after == 0


def test_a_stream_of_which_nothing_was_found_is_forgotten() -> None:
    lines = Lines(Ordering.STREAM, 4)
    lines.hold(("metrics", "x"), 10.0)
    lines.unseen(("metrics", "x"), 0)
    lines.let_go(11.0)
    (want,) = lines.wants(11.0)
    lines.found(want, [], 7, is_all=True)
    assert lines._lines == {}
    assert lines.is_alone(("metrics", "y"))


@given(
    ordering=st.sampled_from(Ordering),
    width=st.sampled_from([1, 8]),
    streams=st.lists(st.sampled_from("abc"), max_size=30),
    sizes=st.lists(st.integers(0, 60), min_size=30, max_size=30),
    most_messages=st.integers(1, 8),
    most_bytes=st.integers(1, 120),
    waiting=st.sampled_from(["", "a"]),
)
def test_what_is_ahead_is_what_is_taken_when_that_under_way_has_left(
    ordering: Ordering,
    width: int,
    streams: list[str],
    sizes: list[int],
    most_messages: int,
    most_bytes: int,
    waiting: str,
) -> None:
    lines = Lines(ordering, width)
    messages = [message(position, stream) for position, stream in enumerate(streams)]
    for each, size in zip(messages, sizes, strict=False):
        each.plain_length = size
    lines.add(messages)
    first = lines.take(most_messages, most_bytes)
    second = lines.take(most_messages, most_bytes)
    if waiting and not lines.are_one:
        lines.hold(("metrics", waiting), 10.0)
    ahead = lines.ahead(first, most_messages, most_bytes)
    lines.done(first)
    taken = lines.take(most_messages, most_bytes)
    assert ahead in (taken, [])
    left = [each for each in messages if each not in (*first, *second, *taken)]
    is_full = len(taken) == most_messages
    if is_full:
        assert ahead == taken
    elif ahead:  # the next one does not fit, though it may be sent
        assert sum(each.plain_length for each in taken) + max(each.plain_length for each in left) > most_bytes
