"""What stands on one page of a B-tree, read so that no content can raise: children and keys, rows and their values.

A page is believed as little as possible. Cells are found by its array of pointers; one that leads nowhere costs that row, not its
neighbours. Rows of a sound page have ascending numbers within what the parent says; a number that breaks this is damaged (no checksum covers
it) and is mended from its neighbours.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, NamedTuple

from ._pages import PAGE_BYTES, SCHEMA_PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._pages import Pages

BEFORE_ALL: Final = -(2**63) - 1
"""Below every row's number."""

AFTER_ALL: Final = 2**63 - 1

_INTERIOR: Final = 0x05
LEAF_MARK: Final = b"\x0d"
"""A table's leaf begins with it."""
_INDEX_KINDS: Final = frozenset((0x02, 0x0A))

_FILE_HEADER_BYTES: Final = 100
_MOST_LOCAL: Final = PAGE_BYTES - 35
_LEAST_LOCAL: Final = (PAGE_BYTES - 12) * 32 // 255 - 23
_CHAIN_BYTES: Final = PAGE_BYTES - 4
_MOST_COLUMNS: Final = 64
_LARGEST_ROW_BYTES: Final = 1_000_000_000
"""SQLite's own limit."""

_MORE: Final = 0x80
"""In a byte of a varint: others follow."""

_INTEGER_BYTES: Final = (0, 1, 2, 3, 4, 6, 8)
_REAL: Final = 7
_FORMS: Final = {1: "b", 2: "h", 3: "3s", 4: "i", 5: "6s", 6: "q", _REAL: "d"}
"""As ``struct`` reads them; what it cannot, as bytes."""
_ZERO, _ONE = 8, 9
_FIRST_BLOB: Final = 12


class Interior(NamedTuple):
    """An inner page: child by child with the greatest key under it, ``AFTER_ALL`` for the last one."""

    children: list[tuple[int, int]]
    is_sound: bool


class Cell(NamedTuple):
    """A row's place on its leaf."""

    key: int
    length: int
    start: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf of a table."""

    cells: list[Cell]
    unreadable: int
    """Pointers that lead to no row."""


class Row(NamedTuple):
    """A row's values as they are stored; text is ``bytes``, ``kinds`` tells it from a blob.

    ``kinds`` has a letter for each column: n(ull), i(nteger), r(eal), t(ext), b(lob). ``is_whole`` is False where part of it is gone; what is
    left of a text or blob is there, other values that are gone are None.
    """

    kinds: str
    values: list[int | float | bytes | None]
    is_whole: bool


def is_index_page(page: bytes) -> bool:
    """Whether it is a page of an index; none of them holds anything that the tables do not."""
    return page[:1] != b"" and page[0] in _INDEX_KINDS


def read_interior(page: bytes, number: int, low: int, high: int) -> Interior | None:
    """The children of an inner page whose keys should lie above ``low``, up to ``high``; None: it is no inner page of a table."""
    base = _FILE_HEADER_BYTES if number == SCHEMA_PAGE else 0
    if not page or page[base] != _INTERIOR:
        return None
    count, right = (
        struct.unpack_from(">H", page, base + 3)[0],
        int.from_bytes(page[base + 8 : base + 12], "big"),
    )
    array = base + 12
    is_sound = True
    if array + 2 * count > PAGE_BYTES:
        count, is_sound = 0, False
    children = []
    last = low
    for start in struct.unpack_from(f">{count}H", page, array):
        if not array + 2 * count <= start <= PAGE_BYTES - 5:
            is_sound = False
            continue
        key, _ = _varint(page, start + 4)
        is_sound = is_sound and last < key < high
        children.append((int.from_bytes(page[start : start + 4], "big"), key))
        last = key
    children.append((right, high))
    return Interior(children, is_sound)


def read_leaf(page: bytes, number: int = 0) -> Leaf | None:
    """The cells of a table's leaf; None: it is none, or none of its cells can be found."""
    base = _FILE_HEADER_BYTES if number == SCHEMA_PAGE else 0
    if not page or page[base] != LEAF_MARK[0]:
        return None
    count = int.from_bytes(page[base + 3 : base + 5], "big")
    array = base + 8
    end = array + 2 * count
    if end > PAGE_BYTES:
        return None
    cells = []
    for start in struct.unpack_from(f">{count}H", page, array):
        if not end <= start <= PAGE_BYTES - 4:
            continue
        length, at = _varint(page, start)
        key, at = _varint(page, at)
        if 0 < length <= _MOST_LOCAL:
            is_within = at + length <= PAGE_BYTES
        else:
            is_within = 0 < length <= _LARGEST_ROW_BYTES and at + _local(length) + 4 <= PAGE_BYTES
        if is_within:
            cells.append(Cell(key, length, at))
    if count and not cells:
        return None
    return Leaf(cells, count - len(cells))


def read_row(pages: Pages, page: bytes, cell: Cell) -> Row | None:
    """The values of a row; None: not even its columns can be told."""
    _, length, start = cell
    if length <= _MOST_LOCAL:
        return _decode(page[start : start + length], length)
    local = _local(length)
    first = int.from_bytes(page[start + local : start + local + 4], "big")
    return _decode(page[start : start + local] + pages.chain(first, length - local), length)


def read_head(page: bytes, cell: Cell) -> Row | None:
    """As ``read_row``, but only what lies on the leaf itself."""
    return _decode(page[cell.start : cell.start + _local(cell.length)], cell.length)


def mend_keys(keys: Sequence[int]) -> list[int]:
    """The keys of a leaf in their order: those that are out of it get the number after the one before (or before the one after).

    The longest ascending run of them is right: one flipped bit spoils one key.
    """
    tails: list[int] = []
    lengths = []
    for key in keys:
        place = bisect_left(tails, key)
        tails[place : place + 1] = [key]
        lengths.append(place + 1)
    mended = list(keys)
    wanted = len(tails)
    above = AFTER_ALL + 1
    first = 0
    is_right = [False] * len(keys)
    for index in reversed(range(len(keys))):
        if lengths[index] == wanted and keys[index] < above:
            is_right[index] = True
            first, above = index, keys[index]
            wanted -= 1
    for index in range(first + 1, len(keys)):
        if not is_right[index]:
            mended[index] = min(mended[index - 1] + 1, AFTER_ALL)
    for index in reversed(range(first)):
        mended[index] = max(mended[index + 1] - 1, BEFORE_ALL + 1)
    return mended


def is_ascending(keys: Sequence[int], low: int, high: int) -> bool:
    """Whether the keys of a leaf are in order, above ``low`` and up to ``high``."""
    for key in keys:
        if not low < key <= high:
            return False
        low = key
    return True


def _local(length: int) -> int:
    """How much of a row lies on the leaf itself."""
    if length <= _MOST_LOCAL:
        return length
    local = _LEAST_LOCAL + (length - _LEAST_LOCAL) % _CHAIN_BYTES
    return local if local <= _MOST_LOCAL else _LEAST_LOCAL


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A variable-length integer and where it ends; beyond the end of ``data`` there are zeros."""
    # Most take one byte or two, and every row has several.
    if at + 1 < len(data):
        byte = data[at]
        if byte < _MORE:
            return byte, at + 1
        second = data[at + 1]
        if second < _MORE:
            return (byte & 0x7F) << 7 | second, at + 2
    value = 0
    for at in range(at, min(at + 8, len(data))):  # noqa: PLR1704, B020
        byte = data[at]
        value = value << 7 | byte & 0x7F
        if byte < _MORE:
            return value, at + 1
    at += 1
    if at >= len(data):
        return value, at
    value = value << 8 | data[at]
    return value - (1 << 64) if value >> 63 else value, at + 1


class _Plan(NamedTuple):
    """What a sound row's header says: its kinds, and how to read its values."""

    kinds: str
    values: struct.Struct
    """Of what ``struct`` has no form for, the bytes."""
    constants: tuple[tuple[int, int | None], ...]
    """Columns whose value the header itself says."""
    odd_integers: tuple[int, ...]
    """Columns that are integers of three or six bytes."""


@lru_cache(maxsize=4096)
def _plan(header: bytes) -> _Plan | None:
    """The header of a row; None: it is none. Rows of a table have few different ones."""
    if header[-1] >= _MORE:
        return None  # its last number goes on behind it
    at = 0
    kinds, form = "", ">"
    constants: list[tuple[int, int | None]] = []
    odd_integers = []
    while at < len(header):
        kind, at = _varint(header, at)
        column = len(kinds)
        if kind >= _FIRST_BLOB:
            kinds += "t" if kind & 1 else "b"
            length = (kind - _FIRST_BLOB) >> 1
            if length > _LARGEST_ROW_BYTES:
                return None
            form += f"{length}s"
        elif kind in _FORMS:
            kinds += "r" if kind == _REAL else "i"
            form += _FORMS[kind]
            if _FORMS[kind].endswith("s"):
                odd_integers.append(column)
        elif kind in (0, _ZERO, _ONE):
            kinds += "i" if kind else "n"
            form += "0s"
            constants.append((column, kind - _ZERO if kind else None))
        else:
            return None
    if at != len(header):
        return None
    return _Plan(kinds, struct.Struct(form), tuple(constants), tuple(odd_integers))


def _values(payload: bytes, start: int, plan: _Plan) -> list[int | float | bytes | None]:
    """The values of a whole row."""
    values: list[int | float | bytes | None] = list(plan.values.unpack_from(payload, start))
    for column, constant in plan.constants:
        values[column] = constant
    for column in plan.odd_integers:
        stored = values[column]
        if isinstance(stored, bytes):
            values[column] = int.from_bytes(stored, "big", signed=True)
    return values


def _decode(payload: bytes, length: int) -> Row | None:
    header_end, at = _varint(payload, 0)
    if not at < header_end <= min(len(payload), at + 9 * _MOST_COLUMNS):
        return None
    plan = _plan(payload[at:header_end]) if len(payload) == length else None
    if plan is not None and header_end + plan.values.size == length:
        return Row(plan.kinds, _values(payload, header_end, plan), True)
    kinds = []
    values: list[int | float | bytes | None] = []
    start = header_end
    is_sound = True
    while at < header_end and is_sound:
        kind = payload[at]
        if kind < _MORE:
            at += 1
        else:
            kind, at = _varint(payload, at)
        if kind >= _FIRST_BLOB:
            size = (kind - _FIRST_BLOB) >> 1
            kinds.append("t" if kind & 1 else "b")
            values.append(payload[start : start + size])
        elif kind in (_ZERO, _ONE):
            size = 0
            kinds.append("i")
            values.append(kind - _ZERO)
        elif kind == _REAL or 0 < kind < _REAL:
            size = 8 if kind == _REAL else _INTEGER_BYTES[kind]
            part = payload[start : start + size]
            kinds.append("r" if kind == _REAL else "i")
            if len(part) < size:
                values.append(None)
            else:
                values.append(
                    struct.unpack(">d", part)[0]
                    if kind == _REAL
                    else int.from_bytes(part, "big", signed=True)
                )
        elif kind == 0:
            size = 0
            kinds.append("n")
            values.append(None)
        else:
            size = 0
            is_sound = False
        start += size
        is_sound = is_sound and start <= length
    is_whole = is_sound and at == header_end and start == length == len(payload)
    return Row("".join(kinds), values, is_whole)
