"""zstd: round trips, frames in a row, bombs, damage, and a Python without it."""

from __future__ import annotations

import struct
import tracemalloc
from contextlib import suppress

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_protocol import (
    BodyTooLarge,
    Coding,
    CodingError,
    UnsupportedCoding,
    codings,
    compress_batch,
    decode_body,
    readable_codings,
)
from infi.ramen_protocol.codings import MAX_ZSTD_FRAMES

PLAIN = b'{"a":[1,2,3],"text":"' + b"xyz " * 200 + b'"}'
BODIES = st.binary(max_size=200) | st.builds(
    lambda part, times: part * times, st.binary(max_size=30), st.integers(0, 4000)
)
EMPTY_SKIPPABLE = struct.pack("<II", 0x184D2A50, 0)


def test_the_codings_that_are_read_are_listed_best_first() -> None:
    assert readable_codings() == ("zstd", "gzip", "deflate")


@given(BODIES, st.sampled_from(Coding))
def test_a_batch_is_read_under_each_coding_as_it_was_written(plain: bytes, coding: Coding) -> None:
    # Plain bytes under the label gzip are read only where they can be JSON; a record always begins with a brace.
    body = compress_batch(plain, coding)
    assert decode_body(body, coding.label, max_bytes=len(plain)) == plain


def test_a_large_batch_can_be_read_with_the_window_that_is_allowed() -> None:
    plain = PLAIN * 50_000
    assert decode_body(compress_batch(plain, Coding.ZSTD), "zstd", max_bytes=len(plain)) == plain


@pytest.mark.parametrize("frames", [1, 2, MAX_ZSTD_FRAMES])
def test_frames_in_a_row_are_their_texts_in_a_row(frames: int) -> None:
    body = zstd.compress(b"x") * frames
    assert decode_body(body, "ZSTD ", max_bytes=frames) == b"x" * frames


def test_frames_of_more_than_a_chunk_are_put_together_and_skippable_ones_skipped() -> None:
    part = bytes(range(256)) * 1000
    body = zstd.compress(part, 1) + struct.pack("<II", 0x184D2A5F, 3) + b"abc" + zstd.compress(part, 19)
    assert decode_body(body, "zstd", max_bytes=len(part) * 2) == part * 2


@pytest.mark.parametrize("frame", [EMPTY_SKIPPABLE, zstd.compress(b"")])
def test_frames_are_bounded_by_number_since_empty_ones_cost_work_but_no_output(frame: bytes) -> None:
    with pytest.raises(CodingError, match="1024"):
        decode_body(frame * (MAX_ZSTD_FRAMES + 1), "zstd", max_bytes=10)


@pytest.mark.parametrize("limit", [0, 1, 1000, 65_536])
def test_a_bomb_is_stopped_at_the_limit_in_little_memory(limit: int) -> None:
    bomb = zstd.compress(bytes(64 << 20)) * 10
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            decode_body(bomb, "zstd", max_bytes=limit)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_just_so_many_bytes_as_the_limit_are_no_bomb() -> None:
    body = compress_batch(PLAIN, Coding.ZSTD)
    assert decode_body(body, "zstd", max_bytes=len(PLAIN)) == PLAIN
    with pytest.raises(BodyTooLarge):
        decode_body(body, "zstd", max_bytes=len(PLAIN) - 1)


@pytest.mark.parametrize("window_log", [24, 27, 31])
def test_a_frame_that_wants_a_large_window_is_refused_before_it_gets_it(window_log: int) -> None:
    frame = struct.pack("<IBB", 0xFD2FB528, 0, (window_log - 10) << 3) + b"\x09\x00\x00x"
    with pytest.raises(CodingError, match="8 MiB"):
        decode_body(frame, "zstd", max_bytes=1 << 20)


@pytest.mark.parametrize("tail", [b"\0", b"{}", EMPTY_SKIPPABLE[:-1], b"\x1f\x8b"])
def test_bytes_after_the_end_are_an_error(tail: bytes) -> None:
    with pytest.raises(CodingError):
        decode_body(compress_batch(PLAIN, Coding.ZSTD) + tail, "zstd", max_bytes=10_000)


def test_a_body_cut_short_anywhere_is_an_error() -> None:
    body = compress_batch(PLAIN, Coding.ZSTD)
    for length in range(len(body)):
        with pytest.raises(CodingError):
            decode_body(body[:length], "zstd", max_bytes=10_000)


@given(st.binary(max_size=300), st.integers(0, 2000))
def test_any_body_is_decoded_within_its_limit_or_refused(body: bytes, limit: int) -> None:
    for start in (b"", b"\x28\xb5\x2f\xfd"):
        with suppress(CodingError):
            assert len(decode_body(start + body, "zstd", max_bytes=limit)) <= limit


def test_without_the_library_nothing_of_it_is_promised_or_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codings, "zstd", None)
    assert readable_codings() == ("gzip", "deflate")
    with pytest.raises(UnsupportedCoding):
        decode_body(b"", "zstd", max_bytes=10)
    with pytest.raises(UnsupportedCoding, match=r"backports\.zstd"):
        compress_batch(b"", Coding.ZSTD)
    assert decode_body(compress_batch(PLAIN, Coding.GZIP), "gzip", max_bytes=10_000) == PLAIN
