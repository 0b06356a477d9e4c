"""Dictionaries of structured header fields (RFC 9651 section 3.2): what the headers of version 2 are.

``parse_dictionary`` reads the whole grammar, so that a member or a parameter that a later version adds does no harm,
but keeps only what these headers are made of: texts and numbers. Anything else comes out as ``OTHER``. A field that breaks
the grammar anywhere counts as absent (section 4.2), and so does one that is longer than ``MAX_FIELD_CHARS``.
"""

from __future__ import annotations

import re
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_FIELD_CHARS = 2048
"""The longest field that is looked at. Ours are about a hundred characters."""

MAX_INTEGER = 10**15 - 1
"""The largest integer that a field can hold (section 3.3.1)."""


class Other(Enum):
    """The type of ``OTHER``."""

    OTHER = "other"


OTHER: Final = Other.OTHER
"""A value that is well-formed, but neither a text nor a number."""

Value = str | int | Decimal | Other

_KEY = re.compile(r"[a-z*][a-z0-9_.*-]*", re.ASCII).match
_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,3})?", re.ASCII).match
_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"', re.ASCII).match
_ESCAPED = re.compile(r'\\(["\\])', re.ASCII)
# Token, byte sequence, boolean, date, display string.
_OTHER = re.compile(
    r"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*|:[A-Za-z0-9+/]*={0,2}:|\?[01]|@-?[0-9]{1,15}"
    r'|%"(?:[ !#$&-~]|%[0-9a-f]{2})*"',
    re.ASCII,
).match
_SPACES = re.compile(r" *", re.ASCII).match
_OPTIONAL_WHITESPACE = re.compile(r"[ \t]*", re.ASCII).match
_MAX_INTEGER_DIGITS_OF_A_DECIMAL = 12


class _Malformed(Exception):
    """The field breaks the grammar."""


def parse_dictionary(field: str) -> dict[str, Value] | None:
    """Read a field's members by key, of several with one key the last; None for a field that is void."""
    if len(field) > MAX_FIELD_CHARS:
        return None
    try:
        return _Reader(field.strip(" ")).dictionary()
    except _Malformed:
        return None


def dictionary_field(members: Mapping[str, str | int]) -> str:
    """Write a field. Raises ``ValueError`` for a text that is not printable ASCII, or a number beyond 15 digits."""
    return ", ".join(f"{key}={_written(value)}" for key, value in members.items())


def _written(value: str | int) -> str:
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise ValueError(f"{value} has more digits than a header can hold")
        return str(value)
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"{value!r} is not printable ASCII, so it cannot stand in a header")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class _Reader:
    """A place in a field. Each method reads on from there, or raises ``_Malformed``."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._at = 0

    def dictionary(self) -> dict[str, Value]:
        members: dict[str, Value] = {}
        while self._at < len(self._field):
            key = self._take(_KEY)
            value: Value = OTHER  # a key alone means true
            if self._skip("="):
                value = self._inner_list() if self._skip("(") else self._bare_item()
            self._parameters()
            members.pop(key, None)
            members[key] = value
            self._take(_OPTIONAL_WHITESPACE)
            if self._at == len(self._field):
                break
            if not self._skip(","):
                raise _Malformed
            self._take(_OPTIONAL_WHITESPACE)
            if self._at == len(self._field):
                raise _Malformed  # a trailing comma
        return members

    def _inner_list(self) -> Value:
        while True:
            self._take(_SPACES)
            if self._skip(")"):
                return OTHER
            self._bare_item()
            self._parameters()
            if self._field[self._at : self._at + 1] not in (" ", ")"):
                raise _Malformed

    def _parameters(self) -> None:
        while self._skip(";"):
            self._take(_SPACES)
            self._take(_KEY)
            if self._skip("="):
                self._bare_item()

    def _bare_item(self) -> Value:
        first = self._field[self._at : self._at + 1]
        if first == '"':
            return _ESCAPED.sub(r"\1", self._take(_STRING)[1:-1])
        if first == "-" or first.isdigit():
            return _number(self._take(_NUMBER))
        self._take(_OTHER)
        return OTHER

    def _take(self, pattern: Callable[[str, int], re.Match[str] | None]) -> str:
        match = pattern(self._field, self._at)
        if match is None:
            raise _Malformed
        self._at = match.end()
        return match[0]

    def _skip(self, character: str) -> bool:
        if not self._field.startswith(character, self._at):
            return False
        self._at += 1
        return True


def _number(text: str) -> int | Decimal:
    whole, point, _ = text.partition(".")
    if not point:
        return int(text)
    if len(whole.lstrip("-")) > _MAX_INTEGER_DIGITS_OF_A_DECIMAL:
        raise _Malformed
    return Decimal(text)
