"""The headers of version 2: what is read, what is void, and that any text is one of the two."""

from __future__ import annotations

import hashlib
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infi.ramen_protocol import BatchId, BatchOffer, Dedupe, batch_digest
from infi.ramen_protocol.structured import MAX_FIELD_CHARS, OTHER, dictionary_field, parse_dictionary

OFFER = 'path="/ramen/v2/batch", messages=1000, bytes=8388608, dedupe="message"'
DIGEST = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("field", "members"),
    [
        ("", {}),
        ("a=1", {"a": 1}),
        ("  a=1  ", {"a": 1}),
        ("a=-1,b=0,c=007", {"a": -1, "b": 0, "c": 7}),
        ("a=1.5 ,\tb=-0.125", {"a": Decimal("1.5"), "b": Decimal("-0.125")}),
        ("a=999999999999999", {"a": 999_999_999_999_999}),
        ('a="", b="x \\" \\\\ y"', {"a": "", "b": 'x " \\ y'}),
        ("a, b;c;d=1, *e.f-g_h=2", {"a": OTHER, "b": OTHER, "*e.f-g_h": 2}),
        ("a=tok:en/*, b=*t, c=?1, d=:aGk=:, e=@-12, f=%\"f%c3%bc\"", dict.fromkeys("abcdef", OTHER)),
        ('a=(), b=( 1  "x";p=2 t ), c=(1);q', dict.fromkeys("abc", OTHER)),
        ('a=1;p="," ;q=?0', None),
        ('a=1;p=",";  q=?0', {"a": 1}),
        ("a=1, b=2, a=3", {"b": 2, "a": 3}),
        ("\ta=1", None),
    ],
)  # fmt: skip
def test_a_dictionary_is_read_as_rfc_9651_has_it(field: str, members: dict[str, object] | None) -> None:
    assert parse_dictionary(field) == members
    if members:
        assert list(parse_dictionary(field) or ()) == list(members), "the last of a key counts, in its place"


@pytest.mark.parametrize(
    "field",
    [
        "a=", "a=1,", ",a=1", "a=1,,b=2", "A=1", "1=1", "a =1", "a= 1", "a=1 b=2", "a=1.", "a=.5", "a=1.2345", "a=--1",
        "a=+1", "a=1234567890123456", "a=1234567890123.5", 'a="x', 'a="\\x"', 'a="\x7f"', 'a="ü"', "a=\u0661", "a=?2",
        "a=:a b:", "a=@1.5", 'a=%"%C3"', 'a=%"', "a=(1", "a=(1,2)", 'a=(1"x")', "a=1;", "a=1;P", "a=1;p=", "a=1\n",
        "a=1\x00", "a=()x", "a=\r\n1", "a=1" + " " * MAX_FIELD_CHARS,
    ],
)  # fmt: skip
def test_a_field_that_breaks_the_grammar_is_void_as_a_whole(field: str) -> None:
    assert parse_dictionary(field) is None
    assert parse_dictionary("b=1, " + field) is None
    assert BatchOffer.parse(OFFER + ", " + field) is None


@given(st.text(max_size=60) | st.text('ab="\\(),;:?@%.- 01', max_size=60))
@example("a=" + "(" * 60)
def test_any_text_is_read_or_void(field: str) -> None:
    members = parse_dictionary(field)
    assert members is None or all(isinstance(key, str) for key in members)


KEYS = st.from_regex(r"[a-z*][a-z0-9_.*-]{0,8}", fullmatch=True)
VALUES = st.text(
    st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), max_size=20
) | st.integers(-(10**15) + 1, 10**15 - 1)


@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_what_is_written_is_read_again(members: dict[str, str | int]) -> None:
    assert parse_dictionary(dictionary_field(members)) == members


@pytest.mark.parametrize("value", ["ü", "a\nb", "\x7f", 10**15, -(10**15)])
def test_what_no_field_can_hold_is_not_written(value: str | int) -> None:
    with pytest.raises(ValueError, match="header"):
        dictionary_field({"a": value})


def test_the_offer_of_the_protocol_is_read() -> None:
    offer = BatchOffer.parse(OFFER)
    assert offer == BatchOffer("/ramen/v2/batch", 1000, 8_388_608, Dedupe.MESSAGE)
    assert offer is not None
    assert offer.header() == OFFER


@given(
    st.from_regex(r"/[a-zA-Z0-9._~%!$&'()*+,;=:@-][a-zA-Z0-9/]{0,40}", fullmatch=True),
    st.integers(1, 10**15 - 1),
    st.integers(1, 10**15 - 1),
    st.sampled_from(Dedupe),
    st.none() | st.integers(1, 10**9).map(float),
)
def test_an_offer_is_read_as_it_was_written(
    path: str, messages: int, size: int, dedupe: Dedupe, window: float | None
) -> None:
    offer = BatchOffer(path, messages, size, dedupe, window)
    assert BatchOffer.parse(offer.header()) == offer


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('path="/ramen/v2/batch"', f'path="{path}"')
        for path in ("", "x", "//host/x", "http://host/x", "/a?b", "/a#b", "/a b", "/\\\\x\\\"\x7f", "/" + "x" * 256)
    ]
    + [
        ('path="/ramen/v2/batch", ', ""),
        ('path="/ramen/v2/batch"', "path=/x"),
        ("messages=1000", "messages=0"),
        ("messages=1000", "messages=-1"),
        ("messages=1000", "messages=1.5"),
        ("messages=1000", 'messages="1000"'),
        ("messages=1000, ", ""),
        ("bytes=8388608", "bytes=0"),
        ("bytes=8388608", "bytes"),
        ("bytes=8388608", "bytes=9999999999999999"),
        ('dedupe="message"', 'dedupe="lane"'),
        ('dedupe="message"', "dedupe=message"),
        ('dedupe="message"', 'dedupe="message", window=0'),
        ('dedupe="message"', 'dedupe="message", window=-5'),
        ('dedupe="message"', 'dedupe="message", window="60"'),
    ],
)  # fmt: skip
def test_an_offer_with_a_part_that_cannot_be_is_void(old: str, new: str) -> None:
    assert old in OFFER
    assert BatchOffer.parse(OFFER.replace(old, new)) is None


def test_an_offer_may_hold_more_than_is_known_here() -> None:
    assert BatchOffer.parse(OFFER + ", codings=(zstd gzip), later;x=1, window=3600.5") == BatchOffer(
        "/ramen/v2/batch", 1000, 8_388_608, Dedupe.MESSAGE, 3600.5
    )


def test_a_short_window_is_not_rounded_to_nothing() -> None:
    header = BatchOffer("/x", 1, 1, Dedupe.BATCH, 0.5).header()
    assert header.endswith('dedupe="batch", window=1')


@pytest.mark.parametrize("offer", [BatchOffer("x", 1, 1, Dedupe.BATCH), BatchOffer("/x", 0, 1, Dedupe.BATCH)])
def test_an_offer_that_nobody_would_take_is_not_written(offer: BatchOffer) -> None:
    with pytest.raises(ValueError, match="no offer"):
        offer.header()


@given(
    st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True), st.integers(1, 10**15 - 1), st.binary(max_size=50)
)
def test_a_batch_s_id_is_read_as_it_was_written(lane: str, number: int, records: bytes) -> None:
    batch = BatchId(lane, number, batch_digest(records))
    assert BatchId.parse(batch.header()) == batch
    assert batch.names(records)
    assert not batch.names(records + b"x")


def test_the_digest_is_a_prefix_of_the_sha_256_and_may_be_a_longer_one() -> None:
    whole = hashlib.sha256(b"records").hexdigest()
    assert batch_digest(b"records") == whole[:32]
    batch = BatchId.parse(f'lane="a", number=1, digest="{whole}", more=?1')
    assert batch is not None
    assert batch.names(b"records")


@pytest.mark.parametrize(
    "header",
    [
        "",
        f'number=1, digest="{DIGEST}"',
        f'lane="a", digest="{DIGEST}"',
        'lane="a", number=1',
        f'lane=a, number=1, digest="{DIGEST}"',
        f'lane="", number=1, digest="{DIGEST}"',
        f'lane="{"a" * 65}", number=1, digest="{DIGEST}"',
        f'lane="a b", number=1, digest="{DIGEST}"',
        f'lane="a", number=0, digest="{DIGEST}"',
        f'lane="a", number=-1, digest="{DIGEST}"',
        f'lane="a", number=1.0, digest="{DIGEST}"',
        f'lane="a", number=1, digest="{DIGEST[:-1]}"',
        f'lane="a", number=1, digest="{DIGEST * 2}0"',
        f'lane="a", number=1, digest="{DIGEST.upper()}"',
        f'lane="a", number=1, digest="{DIGEST}", lane="b c"',
    ],
)
def test_an_id_with_a_part_that_cannot_be_is_void(header: str) -> None:
    assert BatchId.parse(header) is None


def test_an_id_that_nobody_would_read_is_not_written() -> None:
    for batch in (BatchId("a b", 1, DIGEST), BatchId("a", 0, DIGEST), BatchId("a", 1, "x")):
        with pytest.raises(ValueError, match="no batch's id"):
            batch.header()
