"""Content codings: round trips, the 1.x quirks, bombs and damage."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_protocol import (
    BodyTooLarge,
    Coding,
    CodingError,
    UnsupportedCoding,
    accepted_codings,
    compress,
    decode_body,
    decompress_zlib,
    gzip_from_zlib,
)
from infi.ramen_protocol.codings import MAX_GZIP_MEMBERS

if TYPE_CHECKING:
    from collections.abc import Callable

PLAIN = b'{"a":[1,2,3],"text":"' + b"xyz " * 200 + b'"}'
LIMIT = 1 << 20
BODIES = st.binary(max_size=200) | st.builds(
    lambda part, times: part * times, st.binary(max_size=30), st.integers(0, 4000)
)


def reframed(plain: bytes) -> bytes:
    return gzip_from_zlib(compress(plain), plain_crc32=zlib.crc32(plain), plain_length=len(plain))


@given(BODIES)
def test_what_was_compressed_is_read_by_us_and_by_any_zlib(plain: bytes) -> None:
    stream = compress(plain)
    assert zlib.decompress(stream) == plain
    assert decompress_zlib(stream, max_bytes=len(plain)) == plain


@pytest.mark.parametrize(
    "size", [0, 1, 1000, 1_780, 1_781, 3_820, 3_821, 7_899, 7_900, 7_901, 65_535, 65_536, 65_537, 1_000_000]
)
def test_streams_of_every_size_begin_as_those_of_1x_and_are_as_small(size: int) -> None:
    plain = (PLAIN * (size // len(PLAIN) + 1))[:size]
    stream = compress(plain)
    assert stream[:2] == zlib.compress(plain)[:2] == b"\x78\x9c"
    assert zlib.decompress(stream) == plain
    assert len(stream) <= 1.01 * len(zlib.compress(plain)) + 2


@given(BODIES)
def test_a_reframed_stream_is_gzip_to_any_reader(plain: bytes) -> None:
    assert gzip.decompress(reframed(plain)) == plain
    assert decode_body(reframed(plain), "gzip", max_bytes=len(plain)) == plain


@pytest.mark.parametrize("stream", [b"", b"\x78", b"\x78\x9c", b"\x78\x9c\x00\x00\x00", PLAIN, gzip.compress(PLAIN, mtime=0), b"\x78\xbb" + b"x" * 20])  # fmt: skip
def test_what_is_no_zlib_stream_cannot_be_reframed(stream: bytes) -> None:
    with pytest.raises(CodingError, match="not a zlib stream"):
        gzip_from_zlib(stream, plain_crc32=0, plain_length=0)


@given(BODIES, st.integers(0, 2**32 - 1))
def test_a_wrong_checksum_makes_a_gzip_body_that_is_refused(plain: bytes, crc: int) -> None:
    body = gzip_from_zlib(compress(plain), plain_crc32=crc, plain_length=len(plain))
    if crc != zlib.crc32(plain):
        with pytest.raises(CodingError):
            decode_body(body, "gzip", max_bytes=LIMIT)


def test_each_coding_has_the_label_that_goes_on_the_wire() -> None:
    assert {coding.name: coding.label for coding in Coding} == {
        "LEGACY": "gzip", "GZIP": "gzip", "ZSTD": "zstd", "IDENTITY": "identity"}  # fmt: skip


@pytest.mark.parametrize("make", [zlib.compress, compress, gzip.compress, reframed, bytes])
@pytest.mark.parametrize("label", ["gzip", "GZip", " gzip\t", "x-gzip"])
def test_under_the_label_gzip_come_gzip_and_zlib_and_plain_json(
    make: Callable[[bytes], bytes], label: str
) -> None:
    assert decode_body(make(PLAIN), label, max_bytes=len(PLAIN)) == PLAIN
    with pytest.raises(BodyTooLarge):
        decode_body(make(PLAIN), label, max_bytes=len(PLAIN) - 1)


def test_the_connection_test_of_1x_is_two_plain_bytes_under_the_label_gzip() -> None:
    assert decode_body(b"{}", "gzip", max_bytes=LIMIT) == b"{}"


def test_no_json_text_begins_like_gzip_or_like_a_zlib_stream() -> None:
    """Of the bytes that a JSON text begins with only ``8`` could, and nothing that follows it in a number does."""
    followers = {ord("8"): b"0123456789.eE \t\r\n"}
    for first in b' \t\r\n{["-0123456789tfn':
        for second in followers.get(first, range(256)):
            body = bytes([first, second])
            assert decode_body(body, "gzip", max_bytes=2) == body
    assert decode_body(b"8", "gzip", max_bytes=2) == b"8"


@pytest.mark.parametrize(
    "body", [b"\x00", b"\xff\xfe", b"(\xb5/\xfd", b"BZh9", b"<html>", b"\x1f", b"x", b"\xef\xbb\xbf{}"]
)
def test_what_is_none_of_the_three_is_an_error(body: bytes) -> None:
    with pytest.raises(CodingError):
        decode_body(body, "gzip", max_bytes=LIMIT)


@pytest.mark.parametrize("label", [None, "identity", "Identity", ""])
def test_without_a_coding_the_body_is_taken_as_it_is(label: str | None) -> None:
    assert decode_body(b"\x1f\x8b any", label, max_bytes=6) == b"\x1f\x8b any"
    assert decode_body(b"", label, max_bytes=0) == b""
    with pytest.raises(BodyTooLarge):
        decode_body(b"1234567", label, max_bytes=6)


def test_deflate_is_a_zlib_stream_and_nothing_else() -> None:
    assert decode_body(zlib.compress(PLAIN), "deflate", max_bytes=LIMIT) == PLAIN
    raw = zlib.compressobj(wbits=-15)
    for body in (raw.compress(PLAIN) + raw.flush(), PLAIN, gzip.compress(PLAIN), b""):
        with pytest.raises(CodingError):
            decode_body(body, "deflate", max_bytes=LIMIT)


@pytest.mark.parametrize(
    "label", ["zst", "br", "gzip, gzip", "gzip,identity", "gzip;q=1", "gz\u0131p", "x" * 10_000, "*"]
)
def test_another_label_is_not_supported(label: str) -> None:
    with pytest.raises(UnsupportedCoding):
        decode_body(PLAIN, label, max_bytes=LIMIT)


@pytest.mark.parametrize("make", [zlib.compress, gzip.compress])
@pytest.mark.parametrize("limit", [0, 1, 1000, 65_536])
def test_a_bomb_is_stopped_at_the_limit_in_little_memory(make: Callable[[bytes], bytes], limit: int) -> None:
    bomb = make(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            decode_body(bomb, "gzip", max_bytes=limit)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_bomb_of_many_gzip_members_is_stopped_too() -> None:
    with pytest.raises(BodyTooLarge):
        decode_body(gzip.compress(bytes(100_000)) * 1000, "gzip", max_bytes=LIMIT)


@pytest.mark.parametrize("members", [2, 3, MAX_GZIP_MEMBERS])
def test_gzip_of_many_members_is_their_texts_in_a_row(members: int) -> None:
    assert decode_body(gzip.compress(b"[1]") * members, "gzip", max_bytes=LIMIT) == b"[1]" * members


def test_gzip_members_of_more_than_a_chunk_are_put_together() -> None:
    import random

    noise = random.Random(1).randbytes(200_000)
    body = gzip.compress(noise) + gzip.compress(b"") + gzip.compress(noise[:70_000])
    assert decode_body(body, "gzip", max_bytes=270_000) == noise + noise[:70_000]


def test_members_are_bounded_by_number_since_empty_ones_cost_work_but_no_output() -> None:
    with pytest.raises(CodingError, match="more than 1024"):
        decode_body(gzip.compress(b"") * 500_000, "gzip", max_bytes=LIMIT)


@pytest.mark.parametrize("make", [zlib.compress, gzip.compress])
@pytest.mark.parametrize("tail", [b"\x00", b"{}", b"\x00" * 100_000, b"\x1f", b"\x78\x9c"])
def test_bytes_after_the_end_are_an_error(make: Callable[[bytes], bytes], tail: bytes) -> None:
    with pytest.raises(CodingError):
        decode_body(make(PLAIN) + tail, "gzip", max_bytes=LIMIT)


def test_zlib_streams_do_not_follow_one_another() -> None:
    with pytest.raises(CodingError):
        decompress_zlib(compress(PLAIN) * 2, max_bytes=LIMIT)


@pytest.mark.parametrize("make", [zlib.compress, gzip.compress])
def test_a_body_cut_short_anywhere_is_an_error(make: Callable[[bytes], bytes]) -> None:
    body = make(PLAIN)
    for length in range(1, len(body)):
        with pytest.raises(CodingError):
            decode_body(body[:length], "gzip", max_bytes=LIMIT)


def test_a_flipped_bit_anywhere_is_an_error_or_harmless() -> None:
    """The stream's own checksum finds what changes the text."""
    body = compress(PLAIN)
    for bit in range(16, len(body) * 8):
        flipped = bytearray(body)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            plain = decompress_zlib(bytes(flipped), max_bytes=LIMIT)
        except CodingError:
            continue
        assert plain == PLAIN  # one of the bits that fill up the last byte of the data


@given(st.binary(max_size=300) | st.binary(max_size=60).map(lambda tail: b"\x78\x9c" + tail) | st.binary(max_size=60).map(lambda tail: b"\x1f\x8b\x08\x00" + tail), st.sampled_from(["gzip", "deflate", None, "identity", "br"]), st.integers(0, 1000))  # fmt: skip
def test_any_body_is_decoded_within_its_limit_or_refused(body: bytes, label: str | None, limit: int) -> None:
    try:
        plain = decode_body(body, label, max_bytes=limit)
    except CodingError:
        return
    assert len(plain) <= limit


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("", {"identity"}),
        ("gzip", {"gzip", "identity"}),
        ("gzip, zstd", {"gzip", "zstd", "identity"}),
        (" GZIP ;q=0.5 ,\tzstd; Q=1.000", {"gzip", "zstd", "identity"}),
        ("x-gzip", {"gzip", "identity"}),
        ("gzip;q=0", {"identity"}),
        ("gzip;q=0.000, zstd;q=0.001", {"zstd", "identity"}),
        ("gzip, identity;q=0", {"gzip"}),
        ("*", {"gzip", "deflate", "zstd", "identity"}),
        ("zstd;q=0, *", {"gzip", "deflate", "identity"}),
        ("gzip, *;q=0", {"gzip"}),
        ("identity;q=0.1, *;q=0", {"identity"}),
        ("br, gzip", {"br", "gzip", "identity"}),
        ("gzip;q=2, zstd;q=-1, deflate;q=0.1234", {"identity"}),
        ("gzip;level=9", {"identity"}),
        ("gzip zstd", {"identity"}),
        (",,gzip,,", {"gzip", "identity"}),
        ("gzip;q=\u0661", {"identity"}),
        ("gz\u0131p", {"identity"}),
        ("gzip" + "," * 2000, {"identity"}),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value)[:30],
)
def test_accept_encoding_names_the_codings_with_a_weight(header: str, accepted: set[str]) -> None:
    assert accepted_codings(header) == accepted


@given(st.text(max_size=100) | st.text(alphabet="gzip,;q=01. *identity", max_size=60))
def test_any_accept_encoding_gives_lower_case_tokens(header: str) -> None:
    for name in accepted_codings(header):
        assert name == name.lower()
        assert name.isascii()
        assert name
        assert name != "*"
