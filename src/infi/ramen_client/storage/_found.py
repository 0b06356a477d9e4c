"""What a row that was read from a damaged file is: of which table, and whether it proves to be what was written.

Messages and dead letters prove themselves by ``row_crc32``, rows of the 1.x table by a zlib stream that is whole. Rows of the small tables
carry no checksum: theirs is the shape alone (how many columns, of which types).
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from . import _statements as sql
from ._rows import DeadLetter, StoredMessage, dead_letter_of, message_of, remains_of, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._cells import Row

Value = int | float | str | bytes | None


@dataclass(frozen=True, slots=True)
class FoundMessage:
    """A row of ``message``.

    ``is_damaged``: its checksum is wrong or part of it is gone, and ``message`` is what ``remains_of`` makes of it: it can only become a
    dead letter. ``is_doubtful``: it proves itself by its checksum, but may have left the queue already (an old copy).
    """

    message: StoredMessage
    retried_at_ms: int | None
    is_damaged: bool = False
    is_doubtful: bool = False
    row_crc32: int | None = None
    """The checksum that it proved itself by."""


@dataclass(frozen=True, slots=True)
class FoundDeadLetter:
    """A row of ``dead_letter``; the flags are those of ``FoundMessage``."""

    letter: DeadLetter
    is_damaged: bool = False
    is_doubtful: bool = False


@dataclass(frozen=True, slots=True)
class FoundRow:
    """A row of any other table, ``queue`` and ``sqlite_sequence`` included; texts are ``str``, the row's number stands in its column.

    A row that was written before a column was added has that column's default. ``is_damaged`` is for rows of ``queue`` alone: the zlib stream is not whole, or a value is not of its type (then it is what could be
    read of it; nothing that must not be null is).
    """

    table: str
    values: tuple[Value, ...]
    is_damaged: bool = False
    is_doubtful: bool = False


Found = FoundMessage | FoundDeadLetter | FoundRow

MESSAGE: Final = "message"
DEAD_LETTER: Final = "dead_letter"
INLET: Final = "queue"
BOOK: Final = "book"
_SEQUENCE: Final = "sqlite_sequence"
_META: Final = "meta"
_GROWING: Final = frozenset(
    (
        "last_position",
        "pushed",
        "accepted",
        "dropped",
        "blacklisted",
        "dead_discarded",
        "inlet_in",
        "inlet_out",
    )
)

_CREATE: Final = re.compile(r"^CREATE TABLE (?:IF NOT EXISTS )?(\w+) \((.*?)^\);", re.MULTILINE | re.DOTALL)
_COLUMN: Final = re.compile(r"^ +([a-z]\w*)([^\n]*?),?$", re.MULTILINE)


def _kinds(declared: str) -> str:
    """The kinds of value that a column may hold, as ``_cells`` names them."""
    if "INTEGER PRIMARY KEY" in declared:
        return "n"  # its value is the row's number
    kinds = next(
        (
            kinds
            for word, kinds in (("INTEGER", "i"), ("BLOB", "b"), ("T", "t"))
            if declared.startswith(f" {word}")
        ),
        "it",
    )
    return kinds if "NOT NULL" in declared or "PRIMARY KEY" in declared else kinds + "n"


def _default(declared: str) -> int | None:
    found = re.search(r"DEFAULT (\d+)", declared)
    return int(found[1]) if found else None


_TABLES: Final = {
    name: [(column, _kinds(declared), _default(declared)) for column, declared in _COLUMN.findall(columns)]
    for name, columns in _CREATE.findall(sql.SCHEMA)
}

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    **{name: tuple(column for column, _, _ in columns) for name, columns in _TABLES.items()},
    _SEQUENCE: ("name", "seq"),
}
"""The columns of every table of a queue's file, in the order of ``FoundRow.values``."""

_SHAPES: Final[Mapping[str, tuple[str, ...]]] = {
    **{name: tuple(kinds for _, kinds, _ in columns) for name, columns in _TABLES.items()},
    # INTEGER affinity leaves what looks like no number as it is.
    INLET: ("n", "tn", "t", "t", "itr", "tn", "b"),
    _SEQUENCE: ("t", "i"),
}

_DEFAULTS: Final[Mapping[str, tuple[int | None, ...]]] = {
    **{name: tuple(default for _, _, default in columns) for name, columns in _TABLES.items()},
    _SEQUENCE: (None, None),
}

_MESSAGE_COLUMNS: Final = len(COLUMNS[MESSAGE])
_DEAD_COLUMNS: Final = len(COLUMNS[DEAD_LETTER])
_DATA: Final = COLUMNS[MESSAGE].index("data")
_DEAD_DATA: Final = COLUMNS[DEAD_LETTER].index("data")
_IDENTITY_END: Final = COLUMNS[MESSAGE].index("row_crc32") + 1
_RETRIED_AT: Final = COLUMNS[MESSAGE].index("retried_at")
_CHUNK_BYTES: Final = 64 * 1024


def table_of(row: Row) -> str | None:
    """Which table a row is of, by its shape alone; later columns of ``message`` and ``dead_letter`` do not matter."""
    for name, shape in _SHAPES.items():
        is_open = name in (MESSAGE, DEAD_LETTER)
        fits = len(row.kinds) >= len(shape) if is_open else len(row.kinds) == len(shape)
        if fits and _has_shape(row, shape):
            return name
    return None


def found_of(table: str, key: int, row: Row, *, is_doubtful: bool) -> Found | None:
    """What the row at ``key`` of a table is; None: nothing that could be used. A doubtful row must prove itself."""
    if table == MESSAGE:
        found: Found | None = _message(key, row, is_doubtful=is_doubtful)
    elif table == DEAD_LETTER:
        found = _dead_letter(key, row, is_doubtful=is_doubtful)
    elif table == INLET:
        found = _inlet_row(key, row, is_doubtful=is_doubtful)
    else:
        found = _small_row(table, key, row, is_doubtful=is_doubtful)
    return None if found is None or (is_doubtful and found.is_damaged) else found


def identity(row: Row) -> tuple[object, ...] | None:
    """What never changes of a row under its key, as far as two files can be told apart by it; None: no such row.

    ``row`` may lack what lies on overflow pages.
    """
    if len(row.values) >= _IDENTITY_END and _has_shape(row, _SHAPES[MESSAGE][:_IDENTITY_END]):
        return tuple(row.values[1:_IDENTITY_END])
    if len(row.values) == len(_SHAPES[INLET]) and _has_shape(row, _SHAPES[INLET]):
        return tuple(row.values[1:6])
    if len(row.values) == len(_SHAPES[_META]) and _has_shape(row, _SHAPES[_META]):
        return (row.values[COLUMNS[_META].index("queue_id")],)
    return None


def growing_counts(row: Row) -> list[int] | None:
    """What of the book can only grow; None: it is no row of it."""
    book = _book(row)
    return [value for name, value in book.items() if name in _GROWING] if book else None


def waiting_and_last(row: Row) -> tuple[int, int] | None:
    """How many rows of ``message`` the book knows of, and the position above which are those that it does not."""
    book = _book(row)
    return (book["waiting"], book["last_position"]) if book else None


def _book(row: Row) -> dict[str, int] | None:
    if len(row.kinds) != len(_SHAPES[BOOK]) or not _has_shape(row, _SHAPES[BOOK]):
        return None
    named = zip(COLUMNS[BOOK], row.values, strict=True)
    return {name: value for name, value in named if isinstance(value, int)}


def _message(key: int, row: Row, *, is_doubtful: bool) -> FoundMessage:
    values = _padded(row, _MESSAGE_COLUMNS)
    columns = (key, *values[1:_IDENTITY_END], values[_DATA])
    message = message_of(columns)
    retried_at = values[_RETRIED_AT]
    retried_at_ms = retried_at if isinstance(retried_at, int) else None
    if message is None:
        return FoundMessage(remains_of(columns), retried_at_ms, is_damaged=True, is_doubtful=is_doubtful)
    row_crc = values[_IDENTITY_END - 1]
    return FoundMessage(
        message,
        retried_at_ms,
        is_doubtful=is_doubtful,
        row_crc32=row_crc if isinstance(row_crc, int) else None,
    )


def _dead_letter(key: int, row: Row, *, is_doubtful: bool) -> FoundDeadLetter:
    values = _padded(row, _DEAD_COLUMNS)
    identity_and_data = (key, *values[1:_IDENTITY_END], values[_DEAD_DATA])
    died_at, reason, status, code, details = values[_IDENTITY_END:_DEAD_DATA]
    death = (
        died_at if isinstance(died_at, int) else 0,
        reason,
        status if isinstance(status, int) else None,
        code if isinstance(code, bytes) else None,
        details,
    )
    is_sound = message_of(identity_and_data) is not None
    return FoundDeadLetter(
        dead_letter_of((*identity_and_data, *death)), is_damaged=not is_sound, is_doubtful=is_doubtful
    )


def _inlet_row(key: int, row: Row, *, is_doubtful: bool) -> FoundRow:
    _, ts, category, data_type, data_version, reqid, data = _padded(row, len(COLUMNS[INLET]))
    is_sound = (
        row.is_whole
        and len(row.kinds) == len(COLUMNS[INLET])
        and _has_shape(row, _SHAPES[INLET])
        and isinstance(data, bytes)
        and _is_whole_stream(data)
        and all(value is None or _is_text(value) for value in (ts, category, data_type, reqid))
        and (not isinstance(data_version, bytes) or _is_text(data_version))
    )
    values = (
        key,
        None if ts is None else text_of(ts),
        text_of(category),
        text_of(data_type),
        text_of(data_version) if isinstance(data_version, bytes) else data_version or 0,
        None if reqid is None else text_of(reqid),
        data if isinstance(data, bytes) else b"",
    )
    return FoundRow(INLET, values, is_damaged=not is_sound, is_doubtful=is_doubtful)


def _small_row(table: str, key: int, row: Row, *, is_doubtful: bool) -> FoundRow | None:
    shape = _SHAPES[table]
    if not row.is_whole or not _has_shape(row, shape) or (is_doubtful and len(row.kinds) != len(shape)):
        return None
    values: list[Value] = []
    for kind, allowed, value in zip(row.kinds, shape, row.values, strict=False):
        if kind == "t":
            if not _is_text(value):
                return None
            values.append(text_of(value))
        else:
            values.append(key if allowed == "n" else value)
    return FoundRow(table, (*values, *_DEFAULTS[table][len(values) :]), is_doubtful=is_doubtful)


def _has_shape(row: Row, shape: tuple[str, ...]) -> bool:
    return all(kind in kinds for kind, kinds in zip(row.kinds, shape, strict=False))


def _padded(row: Row, columns: int) -> list[int | float | bytes | None]:
    missing = columns - len(row.values)
    return row.values + [None] * missing if missing > 0 else row.values[:columns]


def _is_text(value: object) -> bool:
    try:
        return isinstance(value, bytes) and value.decode() is not None
    except UnicodeDecodeError:
        return False


def _is_whole_stream(data: bytes) -> bool:
    """Whether it is a zlib stream to its end, in bounded memory."""
    decompressor = zlib.decompressobj()
    rest = data
    try:
        while not decompressor.eof:
            plain = decompressor.decompress(rest, _CHUNK_BYTES)
            rest = decompressor.unconsumed_tail
            if not plain and not rest:
                break
    except zlib.error:
        return False
    return decompressor.eof
