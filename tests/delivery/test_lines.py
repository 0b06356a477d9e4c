"""The lines: what subtle there is about them."""

from __future__ import annotations

import pytest

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


def test_a_stream_of_which_nothing_was_found_is_forgotten() -> None:
    lines = Lines(Ordering.STREAM, 4)
    lines.hold(("metrics", "x"), 10.0)
    lines.unseen(("metrics", "x"), 0)
    lines.let_go(11.0)
    (want,) = lines.wants(11.0)
    lines.found(want, [], 7, is_all=True)
    assert lines._lines == {}
    assert lines.is_alone(("metrics", "y"))
