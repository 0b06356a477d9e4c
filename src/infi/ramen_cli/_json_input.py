"""JSON documents from a stream of bytes: one document, or one on each line (NDJSON), in bounded memory.

A document is checked and passed on as it is written, so that no digit of a number changes. It is JSON as RFC 8259 has it, in UTF-8
(a byte order mark in front is passed over): no NaN, no infinities. Lone surrogates, as escapes, pass.

Memory: one document or line of at most ``max_bytes``, what parsing it takes, and one read of ``_READ_BYTES``. Lines are handed out
as soon as they have come: what a slow program writes line by line does not wait for more.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol

import orjson

if TYPE_CHECKING:
    from collections.abc import Iterator

_READ_BYTES = 256 * 1024
_BLANK_BYTES = 1024
"""How much blank space, and a byte order mark, there may be around a document of the largest size."""

_MARK = b"\xef\xbb\xbf"

_CONSTANTS = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)')
"""Strings, and the constants outside of them."""


class Source(Protocol):
    """What is read from: ``read1`` gives what there is, at most so many bytes; nothing at the end."""

    def read1(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Document:
    """One JSON text, as it was written; ``line`` is where it begins."""

    line: int
    text: bytes


@dataclass(frozen=True, slots=True)
class BadInput:
    """What is no JSON document. Lines and columns count from 1, columns in characters; ``column`` 0: the whole line."""

    line: int
    column: int
    problem: str

    def __str__(self) -> str:
        where = f"line {self.line}, column {self.column}" if self.column else f"line {self.line}"
        return f"{where}: {self.problem}"


def read_lines(source: Source, max_bytes: int, *, first_line: int = 1) -> Iterator[list[Document | BadInput]]:
    """The documents of a stream that has one on each line; blank lines are passed over. A list for each read, never empty.

    A line that is longer than ``max_bytes`` is a ``BadInput``, and not kept in memory.
    """
    number = first_line
    begun = bytearray()  # a line whose end has not come yet
    too_long = False
    while piece := source.read1(_READ_BYTES):
        found: list[Document | BadInput] = []
        *whole, rest = piece.split(b"\n")
        for line in whole:
            found += _line(number, b"" if too_long else bytes(begun) + line, max_bytes, too_long=too_long)
            begun.clear()
            too_long = False
            number += 1
        begun += rest
        if len(begun) > max_bytes + _BLANK_BYTES:
            begun.clear()
            too_long = True
        if found:
            yield found
    if last := _line(number, bytes(begun), max_bytes, too_long=too_long):
        yield last


def read_document(source: Source, max_bytes: int) -> Document | BadInput:
    """The one document that the whole stream is."""
    text = _read_whole(source, max_bytes)
    return _too_long(1, "the document", max_bytes) if text is None else _check(1, text)


def read_either(source: Source, max_bytes: int) -> Iterator[list[Document | BadInput]]:
    """Find out by the first line that is not blank: it is a whole document, as in NDJSON, or the beginning of a longer one."""
    head = bytearray()
    line = 1
    while piece := source.read1(_READ_BYTES):
        head += piece
        blank = len(head) - len(head.lstrip())
        passed = head.rfind(b"\n", 0, blank) + 1
        line += head.count(b"\n", 0, passed)
        del head[:passed]
        if b"\n" in head or len(head) > max_bytes + _BLANK_BYTES:
            break
    if not head.strip():
        return
    first = _line(line, bytes(head.partition(b"\n")[0]), max_bytes, too_long=False)
    again = _Again(bytes(head), source)
    if any(isinstance(one, Document) for one in first):
        yield from read_lines(again, max_bytes, first_line=line)
        return
    text = _read_whole(again, max_bytes)
    # What is too long for one document was meant to be lines.
    yield first if text is None else [_check(line, text)]


class _Again:
    """A source whose first bytes were read before."""

    def __init__(self, head: bytes, source: Source) -> None:
        self._head = head
        self._source = source

    def read1(self, size: int, /) -> bytes:
        head, self._head = self._head, b""
        return head or self._source.read1(size)


def _line(number: int, line: bytes, max_bytes: int, *, too_long: bool) -> list[Document | BadInput]:
    """What stands on a line: nothing, or one thing."""
    text = line.removeprefix(_MARK) if number == 1 else line
    if too_long or len(text.strip()) > max_bytes:
        return [_too_long(number, "the line", max_bytes)]
    return [_check(number, text)] if text.strip() else []


def _read_whole(source: Source, max_bytes: int) -> bytes | None:
    """All there is; None: it is too long."""
    text = bytearray()
    while piece := source.read1(_READ_BYTES):
        text += piece
        if len(text) > max_bytes + _BLANK_BYTES:
            return None
    whole = bytes(text.removeprefix(_MARK))
    return whole if len(whole.strip()) <= max_bytes else None


def _check(line: int, written: bytes) -> Document | BadInput:
    """The document that begins on this line, without blank space around it; or what is wrong with it."""
    text = written.strip(b" \t\r\n")
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        # It refuses some good ones (lone surrogates, deep nesting), and its columns count bytes.
        return _check_exactly(line, written) or Document(line, text)
    return Document(line, text)


def _check_exactly(line: int, written: bytes) -> BadInput | None:
    try:
        plain = written.decode()
    except UnicodeDecodeError as error:
        return _bad(line, written[: error.start].decode(), "this is not UTF-8 text")
    try:
        # Numbers stay text: only their form counts, and Python refuses to convert very long ones.
        json.loads(plain, parse_int=str, parse_float=str, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return _bad(line, plain[: error.pos], f"this is no JSON: {error.msg}")
    except _NoConstant:
        found = next((match for match in _CONSTANTS.finditer(plain) if match[1]), None)
        return _bad(line, plain[: found.start()] if found else "", "JSON has no NaN and no infinities")
    except RecursionError:
        return BadInput(line, 0, "this nests too deeply")
    return None


class _NoConstant(Exception):
    """NaN or an infinity, which Python takes for JSON."""


def _refuse_constant(_name: str) -> NoReturn:
    raise _NoConstant


def _bad(line: int, before: str, problem: str) -> BadInput:
    """What is wrong with the character after ``before``, which begins on that line."""
    return BadInput(line + before.count("\n"), len(before) - before.rfind("\n"), problem)


def _too_long(line: int, what: str, max_bytes: int) -> BadInput:
    return BadInput(
        line, 0, f"{what} is longer than the largest message that the queue takes ({max_bytes} bytes)"
    )
