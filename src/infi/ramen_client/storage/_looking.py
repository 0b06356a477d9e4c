"""How the active reader finds the next messages: forwards from a frontier, each row once, whatever must be passed over.

A backlog may hold a million messages of a stream that waits in front of one message of a stream that does not. So the reader keeps
a *frontier*: the position up to which it has looked. It looks ahead of it for messages of any stream but those that its user asks to
be passed over, and later looks behind it for the messages of one of these (``look_at_stream``), from where it left that one. Each
look reads a bounded part of the table, in a read transaction of its own.

The frontier goes back to the beginning when something came in behind it: dead letters that were brought back, and what was carried
over from a damaged file. Then messages may be found a second time; whoever asks knows those that it has, and looks again behind the
frontier for what it had passed over (``starts``). What is frozen in a batch is not found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from . import _statements as sql
from ._errors import Damaged
from ._rows import StoredMessage, message_of, remains_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from typing import Any

    import apsw

Stream = tuple[str, str]
"""A category and a data_type: their messages are delivered in order."""

_BEFORE_ALL = -(2**63)

_MOST_POSITIONS = 20_000
"""How many rows a look may read: some milliseconds, in which nobody is held up, but the WAL cannot be cut."""

_LAST_OF_BACKLOG = -1
"""What a 1.x file had at its take-over stands below it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a look found, in order of position."""

    messages: list[StoredMessage]
    damaged: list[StoredMessage]
    """What is left of rows that are no messages any more."""
    is_all: bool
    """Whether nothing more is to be found for now in that direction."""


class Frontier:
    """How far has been looked. Used by one thread."""

    def __init__(self) -> None:
        self._position = _BEFORE_ALL
        self._brought_back: int | None = None
        self.starts = 1
        """How often it has begun to look from the beginning."""

    def start_over(self) -> None:
        """Look from the beginning again."""
        self._position = _BEFORE_ALL
        self.starts += 1

    def look_ahead(
        self,
        connection: apsw.Connection,
        *,
        most_messages: int,
        most_bytes: int,
        passing_over: Collection[Stream],
        only_backlog: bool,
    ) -> Found:
        """Find messages ahead of the frontier, and move it up to the last row that was looked at.

        ``only_backlog``: the 1.x table still holds some of what came before all that 2.0 pushed.
        """
        brought_back = connection.execute(sql.BROUGHT_BACK).get
        if brought_back != self._brought_back:
            self._brought_back = brought_back
            self.start_over()
        first, last = next(connection.execute(sql.WAITING_AFTER, (self._position,)))
        if first is None or (only_backlog and first > _LAST_OF_BACKLOG):
            return Found([], [], is_all=True)
        if first > last:  # pages in a wrong place: looking on from there would never end
            raise Damaged(f"{connection.filename}: its messages are out of order")
        # Never beyond what is there now: the next message to come gets the position after it.
        end = min(first + _MOST_POSITIONS, last)
        if only_backlog:
            end = min(end, _LAST_OF_BACKLOG)
        where: dict[str, Any] = {"after": first - 1, "end": end, "rows": most_messages}
        statement = sql.LOOK_AHEAD
        if passing_over:
            statement = sql.LOOK_AHEAD_PASSING_OVER
            where["streams"] = orjson.dumps([" ".join(stream) for stream in passing_over]).decode()
        messages, damaged, taken = _take(connection.execute(statement, where), most_messages, most_bytes)
        self._position = end if taken is None else taken
        return Found(messages, damaged, is_all=False)

    def look_at_stream(
        self, connection: apsw.Connection, stream: Stream, *, after: int, most_messages: int, most_bytes: int
    ) -> tuple[Found, int]:
        """Find messages of one stream behind the frontier; also return the position up to which it has been looked."""
        if after >= self._position:
            return Found([], [], is_all=True), after
        first, _ = next(connection.execute(sql.WAITING_AFTER, (after,)))
        if first is None or first > self._position:
            return Found([], [], is_all=True), self._position
        end = min(first + _MOST_POSITIONS, self._position)
        where = {
            "after": first - 1,
            "end": end,
            "rows": most_messages,
            "category": stream[0],
            "data_type": stream[1],
        }
        rows = connection.execute(sql.LOOK_AT_STREAM, where)
        messages, damaged, taken = _take(rows, most_messages, most_bytes)
        reached = end if taken is None else taken
        return Found(messages, damaged, is_all=reached >= self._position), reached


def _take(
    rows: Iterable[tuple[Any, ...]], most_messages: int, most_bytes: int
) -> tuple[list[StoredMessage], list[StoredMessage], int | None]:
    """At most so many messages and bytes, at least one if there is any; and the last position if there may be more."""
    messages: list[StoredMessage] = []
    damaged: list[StoredMessage] = []
    size = seen = 0
    last = _BEFORE_ALL
    for row in rows:
        message = message_of(row)
        if message is None:
            damaged.append(remains_of(row))
        else:
            size += len(message.data)
            if messages and size > most_bytes:
                return messages, damaged, last
            messages.append(message)
        seen += 1
        last = row[0]
    return messages, damaged, last if seen == most_messages else None
