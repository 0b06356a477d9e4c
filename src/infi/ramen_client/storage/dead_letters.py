"""Dead letters as an operator handles them: paged without their payloads, one by one with, back into the queue, or thrown away.

What changes something does so in transactions of at most ``STEP_LETTERS`` letters and about ``STEP_BYTES``, so that writers wait for none
of them long; between them letters may come and go.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import apsw

from . import _statements as sql
from ._database import Kind
from ._rows import Death, StoredMessage, dead_letter_of, message_of, remains_of
from ._settle import raise_dead
from .purging import Matching
from .queue import now_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Any

    from ._database import Database

STEP_LETTERS = 100
STEP_BYTES = 1024 * 1024

_BEFORE_ALL = -(2**63)
_CHECKPOINT_FRAMES = 400
_CHUNK_BYTES = 64 * 1024
_PLAIN_LENGTH = 8
"""Where it stands in a row's identity."""


@dataclass(frozen=True, slots=True)
class DeadHead:
    """A dead letter without its payload. Texts of a damaged one are what could be read of them."""

    position: int
    """Its number in this queue: by it a letter is named, and it finds its old place by it."""
    category: str
    data_type: str
    data_version: str | int
    system_version: str
    reqid: str
    pushed_at_ms: int
    plain_bytes: int | None
    """The payload's length as JSON; None: it is damaged, and cannot be sent again."""
    stored_bytes: int
    died_at_ms: int
    death: Death


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload, or the beginning of it."""

    plain: bytes
    is_whole: bool
    """False where there is more than was asked for, and where the rest is damaged."""
    is_damaged: bool


def dead_heads(database: Database, matching: Matching, *, after: int | None, limit: int) -> list[DeadHead]:
    """A page of dead letters that match, by position; ``after``: the last position of the page before."""
    bindings = {**matching.bindings(), "after": _BEFORE_ALL if after is None else after, "rows": limit}
    with database.connection(Kind.NORMAL) as connection:
        return [_head_of(row) for row in connection.execute(sql.DEAD_HEADS, bindings)]


def dead_head(database: Database, position: int) -> DeadHead | None:
    """One dead letter; None: there is none at this position."""
    with database.connection(Kind.NORMAL) as connection:
        for row in connection.execute(sql.DEAD_HEAD, (position,)):
            return _head_of(row)
    return None


def read_payload(database: Database, position: int, *, max_bytes: int) -> Payload | None:
    """The payload of a dead letter, decompressed as far as ``max_bytes``, in bounded memory; None: there is no such letter."""
    with database.connection(Kind.NORMAL) as connection:
        try:
            blob = connection.blob_open("main", "dead_letter", "data", position, False)
        except apsw.SQLError:  # no such row, or a value that is no blob
            found = connection.execute(sql.DEAD_HEAD, (position,)).get
            return None if found is None else Payload(b"", is_whole=False, is_damaged=True)
        try:
            return _decompress(iter(lambda: blob.read(_CHUNK_BYTES), b""), max_bytes)
        finally:
            blob.close()


def read_dead(database: Database, position: int) -> tuple[StoredMessage, bool] | None:
    """A dead letter's message with its payload as stored, and whether it is sound; None: there is none at this position."""
    with database.connection(Kind.NORMAL) as connection:
        for row in connection.execute(sql.READ_DEAD, (position,)):
            message = message_of(row)
            return (
                (remains_of(row), False) if message is None or message.plain_length < 0 else (message, True)
            )
    return None


@dataclass(frozen=True, slots=True)
class Changed:
    """What was done to dead letters."""

    letters: int = 0
    """Brought back, or thrown away."""
    damaged: int = 0
    """Left where they are, since a damaged payload cannot be sent."""
    missing: int = 0
    """Positions at which there was no dead letter."""

    def __add__(self, other: Changed) -> Changed:
        return Changed(
            self.letters + other.letters, self.damaged + other.damaged, self.missing + other.missing
        )


def retry_dead(database: Database, which: Matching | Iterable[int]) -> Changed:
    """Bring dead letters back to their old places in the queue."""
    changed = sum((_step(database, positions, _raise) for positions in _steps(database, which)), Changed())
    database.wake_readers()
    return changed


def discard_dead(database: Database, which: Matching | Iterable[int]) -> Changed:
    """Throw dead letters away, counted; also those that might have gone back by themselves."""
    return sum((_step(database, positions, _discard) for positions in _steps(database, which)), Changed())


def _step(
    database: Database, positions: Sequence[int], change: Callable[[apsw.Connection, Sequence[int]], Changed]
) -> Changed:
    with database.transaction(Kind.FULL) as connection:
        changed = change(connection, positions)
    database.checkpoint_above(_CHECKPOINT_FRAMES, Kind.NORMAL)
    return changed


def _raise(connection: apsw.Connection, positions: Sequence[int]) -> Changed:
    now = now_ms()
    letters = damaged = missing = 0
    for position in positions:
        if raise_dead(connection, position, now_ms=now):
            letters += 1
        elif connection.execute(sql.DEAD_HEAD, (position,)).get is None:
            missing += 1
        else:
            damaged += 1
    return Changed(letters, damaged, missing)


def _discard(connection: apsw.Connection, positions: Sequence[int]) -> Changed:
    letters = missing = size = 0
    for position in positions:
        head = connection.execute(sql.DEAD_HEAD, (position,)).get
        if head is None:
            missing += 1
            continue
        connection.execute(sql.DELETE_DEAD, (position,))
        connection.execute(sql.FORGET_UNEXPLAINED, (position,))
        letters += 1
        size += _head_of(head).stored_bytes
    connection.execute(sql.COUNT_DEAD_DISCARDED, (letters, size))
    return Changed(letters=letters, missing=missing)


def _steps(database: Database, which: Matching | Iterable[int]) -> Iterator[list[int]]:
    """Positions, in portions for one transaction each."""
    if isinstance(which, Matching):
        after: int | None = None
        while page := dead_heads(database, which, after=after, limit=STEP_LETTERS):
            after = page[-1].position
            yield from _portions(page)
    else:
        wanted = list(dict.fromkeys(which))
        for begin in range(0, len(wanted), STEP_LETTERS):
            heads = (
                dead_head(database, position) or position for position in wanted[begin : begin + STEP_LETTERS]
            )
            yield from _portions(heads)


def _portions(letters: Iterable[DeadHead | int]) -> Iterator[list[int]]:
    """Cut after every ``STEP_BYTES`` of payloads; of a position alone there is no letter."""
    portion: list[int] = []
    size = 0
    for letter in letters:
        if isinstance(letter, DeadHead):
            portion.append(letter.position)
            size += letter.stored_bytes
        else:
            portion.append(letter)
        if size >= STEP_BYTES:
            yield portion
            portion, size = [], 0
    if portion:
        yield portion


def _head_of(row: tuple[Any, ...]) -> DeadHead:
    *identity, stored_bytes, died_at, reason, status, code, details = row
    # Without its payload no checksum is right, so what is read is what could be read.
    letter = dead_letter_of((*identity, b"", died_at, reason, status, code, details))
    message = letter.message
    plain_length = identity[_PLAIN_LENGTH]
    return DeadHead(
        message.position,
        message.category,
        message.data_type,
        message.data_version,
        message.system_version,
        message.reqid,
        message.pushed_at_ms,
        plain_length if isinstance(plain_length, int) and plain_length >= 0 else None,
        stored_bytes or 0,
        letter.died_at_ms,
        letter.death,
    )


def _decompress(chunks: Iterator[bytes], max_bytes: int) -> Payload:
    decompressor = zlib.decompressobj()
    plain = b""
    rest = b""
    try:
        while not decompressor.eof and len(plain) <= max_bytes:
            chunk = rest or next(chunks, b"")
            part = decompressor.decompress(chunk, max_bytes + 1 - len(plain))
            rest = decompressor.unconsumed_tail
            plain += part
            # All input is consumed, and nothing more comes of it.
            if not chunk and not part and not decompressor.eof:
                return Payload(plain[:max_bytes], is_whole=False, is_damaged=True)
    except zlib.error:
        return Payload(plain[:max_bytes], is_whole=False, is_damaged=True)
    return Payload(plain[:max_bytes], is_whole=len(plain) <= max_bytes, is_damaged=False)
