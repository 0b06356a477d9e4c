"""Emptying the 1.x table ``queue`` into ours (docs/design/queue-file.md, "Taking over a 1.x file").

Rows that were there at the take-over keep their order before everything that 2.0 pushed; rows that a 1.x writer pushes later
come in as they arrive. A row that is no message any more (its stream is damaged, its names would not make a URL) goes to the
dead letters as it is.
"""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infi.ramen_protocol import MAX_REQID_BYTES, is_name

from . import _statements as sql
from ._rows import NewMessage, ReqidOrigin, remains_of

if TYPE_CHECKING:
    from pathlib import Path

    import apsw

    from ._connection import Meta

logger = logging.getLogger("ramen_client")

BACKLOG_OFFSET = 2**62
"""A backlog row's position is its row number less this: below every position that 2.0 gives."""

STEP_ROWS = 200
STEP_BYTES = 1024 * 1024

_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Moved:
    """What a step did: how many rows it moved, how many of them became dead letters, and why the first did."""

    rows: int = 0
    buried: int = 0
    first_reason: str = ""

    def say_buried(self, path: Path) -> None:
        """Log what could not be sent; to be called when the step is committed."""
        if self.buried:
            logger.error(
                "%s: %d messages of 1.x cannot be sent and are kept as dead letters; the first: %s",
                path,
                self.buried,
                self.first_reason,
            )


def move_inlet(connection: apsw.Connection, meta: Meta, system_version: str, *, now_ms: int) -> Moved:
    """Move the oldest rows of the inlet inside the running transaction, at most a step.

    ``system_version`` is that of rows that came after the take-over: their 1.x writer sends none, so it is the reader's.
    """
    if not connection.execute(sql.INLET_FILLED).get:
        return Moved()
    connection.execute(sql.ENTER_PUSHES)
    moved = buried = size = last = 0
    first_reason = ""
    # Row by row: two hundred of the largest would not fit into memory.
    for last, pushed_at, category, data_type, data_version, reqid, data in connection.execute(
        sql.OLDEST_IN_INLET, (STEP_ROWS,)
    ):
        if last <= meta.inlet_boundary:
            position, version = last - BACKLOG_OFFSET, meta.inlet_system_version
        else:
            position, version = connection.execute(sql.NEXT_POSITION).get, system_version
        # 1.x sends the row number where there is no reqid, and where it is empty.
        identity = (reqid, ReqidOrigin.CALLER) if reqid else (str(last).encode(), ReqidOrigin.ROW_NUMBER)
        row = (position, category, data_type, data_version, version.encode(), *identity, pushed_at or now_ms)
        message = message_of_1x(row, data)
        if isinstance(message, NewMessage):
            connection.execute(sql.INSERT_MESSAGE, (position, *message.columns()))
        else:
            remains = remains_of((*row, data))
            death = (now_ms, f"a 1.x message that cannot be sent: {message}", None, None, "")
            connection.execute(sql.INSERT_DEAD, (position, *remains.columns(), *death))
            connection.execute(sql.COUNT_INLET_BURIED, (len(remains.data),))
            buried += 1
            first_reason = first_reason or message
        moved += 1
        size += len(data or b"")
        if size >= STEP_BYTES:
            break
    connection.execute(sql.DELETE_FROM_INLET, (last,))
    connection.execute(sql.COUNT_INLET_MOVED, (moved - buried,))
    return Moved(moved, buried, first_reason)


def message_of_1x(row: tuple[Any, ...], data: bytes | None) -> NewMessage | str:
    """The message that a 1.x row is, or what is wrong with it.

    ``row`` is position, category, data_type, data_version, system_version, reqid, its origin and the time of the push; text as bytes.
    """
    _, category, data_type, data_version, system_version, reqid, origin, pushed_at = row
    measured = _measure(data or b"")
    if measured is None:
        return "its payload is damaged (not a whole zlib stream)"
    try:
        names = category.decode(), data_type.decode()
        version = data_version if isinstance(data_version, int) else data_version.decode()
        reqid_text = reqid.decode()
    except (AttributeError, UnicodeDecodeError):
        return "its names or its reqid are damaged"
    if not all(is_name(name) for name in (*names, str(version))):
        return "its names have characters that no URL of the protocol can hold"
    if len(reqid) > MAX_REQID_BYTES:
        return f"its reqid is longer than {MAX_REQID_BYTES} bytes"
    length, checksum = measured
    return NewMessage(
        names[0],
        names[1],
        version,
        system_version.decode(),
        reqid_text,
        origin,
        pushed_at,
        length,
        checksum,
        data or b"",
    )


def _measure(stream: bytes) -> tuple[int, int] | None:
    """Length and CRC-32 of the plain text, in bounded memory; None when the stream is damaged."""
    decompressor = zlib.decompressobj()
    length = checksum = 0
    try:
        while not decompressor.eof:
            plain = decompressor.decompress(stream, _CHUNK_BYTES)
            stream = decompressor.unconsumed_tail
            if not plain and not stream:
                break
            length += len(plain)
            checksum = zlib.crc32(plain, checksum)
    except zlib.error:
        return None
    return (length, checksum) if decompressor.eof else None
