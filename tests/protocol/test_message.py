"""A message's reqid, and the ids that are made for those without one."""

from __future__ import annotations

import enum
import sys
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_protocol import MAX_REQID_BYTES, message_id, normalise_reqid


@given(st.text(min_size=1, max_size=300))
def test_text_is_taken_as_it_is(text: str) -> None:
    assert normalise_reqid(text) == text


@given(st.integers(min_value=-(10**40), max_value=10**40))
def test_an_int_becomes_its_digits(number: int) -> None:
    assert normalise_reqid(number) == str(number)


@given(st.uuids())
def test_a_uuid_becomes_its_canonical_text(value: uuid.UUID) -> None:
    assert normalise_reqid(value) == str(value)


def test_a_str_subclass_counts_by_its_characters_not_by_how_it_shows_itself() -> None:
    class Colour(enum.StrEnum):
        RED = "red"

    assert normalise_reqid(Colour.RED) == "red"
    assert type(normalise_reqid(Colour.RED)) is str


@pytest.mark.parametrize(
    "reqid", ["x" * MAX_REQID_BYTES, "ä" * (MAX_REQID_BYTES // 2), 10**2047], ids=["ascii", "two-byte", "int"]
)
def test_the_longest_reqid_fits(reqid: str | int) -> None:
    assert len(normalise_reqid(reqid).encode()) == MAX_REQID_BYTES


@pytest.mark.parametrize(
    "reqid",
    ["", "x" * (MAX_REQID_BYTES + 1), "ä" * (MAX_REQID_BYTES // 2) + "x", "a\ud800", 10**2048, -(10**2047)],
    ids=["empty", "long", "long in bytes", "surrogate", "long int", "long negative int"],
)  # fmt: skip
def test_empty_too_long_or_inexpressible_reqids_are_value_errors(reqid: str | int) -> None:
    with pytest.raises(ValueError, match="reqid must") as caught:
        normalise_reqid(reqid)
    assert "digits" not in str(caught.value)


def test_an_int_that_python_would_not_print_is_too_long_like_any_other() -> None:
    with pytest.raises(ValueError, match=r"^reqid must be at most 2048 bytes long$"):
        normalise_reqid(1 << 10**6)


@pytest.mark.parametrize("reqid", [None, True, False, 1.5, b"x", ["x"], object()])
def test_other_types_are_type_errors_that_name_the_type(reqid: object) -> None:
    with pytest.raises(TypeError, match=f"not {type(reqid).__name__}"):
        normalise_reqid(reqid)  # type: ignore[arg-type]


def test_an_id_is_a_uuid_of_version_7() -> None:
    """The example of RFC 9562, appendix A.6."""
    random = (0xCC3 << 64 | 0x18C4DC0C0C07398F).to_bytes(10, "big")
    assert message_id(0x017F22E279B0, random) == "017f22e2-79b0-7cc3-98c4-dc0c0c07398f"


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_an_id_is_well_formed_and_holds_its_time(milliseconds: int, random: bytes) -> None:
    text = message_id(milliseconds, random)
    parsed = uuid.UUID(text)
    assert str(parsed) == text
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int >> 80 == milliseconds


@given(st.integers(0, 2**48 - 2), st.binary(min_size=10, max_size=10), st.binary(min_size=10, max_size=10))
def test_later_ids_sort_after_earlier_ones(milliseconds: int, one: bytes, other: bytes) -> None:
    assert message_id(milliseconds, one) < message_id(milliseconds + 1, other)


@given(st.binary(min_size=10, max_size=10), st.integers(0, 79))
def test_each_random_bit_but_the_six_fixed_ones_makes_another_id(random: bytes, bit: int) -> None:
    other = (int.from_bytes(random, "big") ^ 1 << bit).to_bytes(10, "big")
    fixed = bit in {62, 63, 76, 77, 78, 79}
    assert (message_id(0, random) == message_id(0, other)) is fixed


@pytest.mark.parametrize(("milliseconds", "size"), [(-1, 10), (2**48, 10), (0, 9), (0, 11), (0, 0)])
def test_a_time_or_randomness_of_another_size_is_refused(milliseconds: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"48 bits|10 random bytes"):
        message_id(milliseconds, bytes(size))


def test_the_limit_of_digits_that_python_prints_is_above_ours() -> None:
    """Otherwise normalise_reqid could raise Python's error instead of its own."""
    assert sys.get_int_max_str_digits() == 0 or sys.get_int_max_str_digits() > MAX_REQID_BYTES
