"""Names and versions: the whole string, ASCII only."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_protocol import is_name, is_version

NAME_CHARS = string.ascii_letters + string.digits + "_-"


@pytest.mark.parametrize("text", ["a", "Z", "0", "_", "-", "san_totals", "v1", "A-b_9", "x" * 5000])
def test_what_the_protocol_allows_is_a_name_and_a_version(text: str) -> None:
    assert is_name(text)
    assert is_version(text)


@pytest.mark.parametrize("text", ["3.0.0.1", ".", "..", "1.40.post3"])
def test_dots_are_for_versions_only(text: str) -> None:
    assert is_version(text)
    assert not is_name(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "a b", "a\n", "\na", "a\r", "a\x00", "a/b", "a?b", "a&b", "a%b", "a~", "a+", "\u00e4", "\uff41", "\u0663",
     "v\uff11", "a\u200b", "\ud800", "\u017f", "\u212a"],
)  # fmt: skip
def test_anything_else_is_neither(text: str) -> None:
    assert not is_name(text)
    assert not is_version(text)


@given(st.text(alphabet=NAME_CHARS, min_size=1))
def test_every_string_of_the_allowed_characters_is_a_name(text: str) -> None:
    assert is_name(text)


@given(st.text())
def test_a_name_has_allowed_characters_only(text: str) -> None:
    assert is_name(text) == (bool(text) and set(text) <= set(NAME_CHARS))
    assert is_version(text) == (bool(text) and set(text) <= set(NAME_CHARS + "."))


@given(st.text(alphabet=NAME_CHARS, min_size=1), st.sampled_from(["\n", "\r\n", "\x0b", "\u2028"]))
def test_a_trailing_line_break_is_no_part_of_a_name(text: str, ending: str) -> None:
    # What 1.x checked with: the control that this test can tell the difference.
    if ending == "\n":
        assert re.match("[a-zA-Z0-9_-]+$", text + ending)
    assert not is_name(text + ending)
    assert not is_version(text + ending)
