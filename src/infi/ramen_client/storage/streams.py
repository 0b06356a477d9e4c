"""Streams that were told to wait, as an operator sees them, and the way to get their heads out of the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _statements as sql
from ._database import Kind
from ._rows import Fate, Settlement, message_of, text_of
from ._settle import settle
from .queue import now_ms
from .reader_process import reader_holder

if TYPE_CHECKING:
    import apsw

    from ._database import Database
    from ._rows import Death, StoredMessage


@dataclass(frozen=True, slots=True)
class WaitingStream:
    """A stream that the server put off while it took others. Times are milliseconds since the epoch."""

    category: str
    data_type: str
    waiting_since_ms: int
    retry_at_ms: int
    last_error: str
    attempts: int
    """How often its head was tried in vain."""


def read_waiting_streams(connection: apsw.Connection, most: int) -> tuple[WaitingStream, ...]:
    """At most so many, those that wait longest."""
    return tuple(
        WaitingStream(text_of(category), text_of(data_type), since, retry_at, text_of(error), attempts)
        for category, data_type, since, retry_at, error, attempts in connection.execute(
            sql.WAITING_STREAMS, (most,)
        )
    )


def bury_head(database: Database, category: str, data_type: str, death: Death) -> StoredMessage | None:
    """Make the oldest message of a stream a dead letter; None when there is none that is not under way."""
    reader_lives = reader_holder(database.path) is not None
    which = {"category": category, "data_type": data_type, "reader_lives": reader_lives}
    # Looked for outside the writers' turn: there may be a million others in front of it.
    with database.connection(Kind.NORMAL) as connection:
        row = next(connection.execute(sql.HEAD_OF_STREAM, which), None)
    message = None if row is None else message_of(row)
    if message is None:
        return None
    with database.transaction(Kind.FULL) as connection:
        held = {"position": message.position, "reader_lives": reader_lives}
        if connection.execute(sql.IS_HELD, held).get:
            return None
        settle(connection, [Settlement(message, Fate.DEAD, death)], now_ms=now_ms())
        connection.execute(sql.END_ATTEMPT, (message.position,))
        connection.execute(sql.STREAM_FLOWS, (category, data_type))
    return message
