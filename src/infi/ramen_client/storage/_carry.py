"""Carrying what can be read of a damaged file into the one that took its place.

Done by the active reader before it delivers anything, so that order is kept: in steps, each a transaction of bounded size that also
writes down how far it got, so that a program that is killed goes on from there. Writers go on pushing meanwhile: the new file's
positions begin above all old ones.

The books, inside the same transactions: what is carried is entered as *found*. At the end the old file's own books, if they could be
read, are added, *found* becomes what they explain, and what they say was there and was not found is *damaged*: lost, and logged
once. Without the old books nobody knows how many were lost.

Frozen batches are not carried: their messages are sent anew. Rules are, and what was learned about servers. A message that may have been
delivered already (an old copy of a page) is sent again under the same reqid, which the server recognises: better twice than lost.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from . import _statements as sql
from ._aside import finish_aside, waiting_aside
from ._database import Kind
from ._rows import Death
from ._salvage import COLUMNS, FoundDeadLetter, FoundMessage, FoundRow, Salvage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import apsw

    from ._database import Database
    from ._rows import DeadLetter, StoredMessage
    from ._salvage import Found, Value

logger = logging.getLogger("ramen_client")

_STEP_ROWS = 500
_STEP_BYTES = 2 * 1024 * 1024

_DAMAGED = Death("damaged on disk: its checksum is wrong", "", None)
_MOST = 2**60
_SETTLED = ("accepted", "dropped", "blacklisted", "dead_discarded", "trimmed", "expired", "purged")
"""Where messages went that are no longer in the file, ``damaged`` apart."""


class Carrier:
    """Carries what was put aside beside a queue's file. Used by its active reader alone."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._work: _Work | None = None

    def step(self) -> bool:
        """Carry on for a moment; False: there is nothing to carry.

        Raises as any transaction does; then nothing of this step is carried, and the next one begins where the last one ended.
        """
        try:
            return self._step()
        except BaseException:
            self.close()  # its rows are read already, and counted, but not in the file
            raise

    def _step(self) -> bool:
        if self._work is None:
            pending = waiting_aside(self._database.path)
            if not pending:
                return False
            self._work = self._begin(pending[0])
        work = self._work
        found = list(_step_of(work.rows))
        now = time.time_ns() // 1_000_000
        lost: int | None = None
        with self._database.transaction(Kind.READER) as connection:
            connection.execute(sql.ENTER_PUSHES)
            before = work.tally.messages_alive
            for item in found:
                work.tally.add(connection, item, now_ms=now)
            connection.execute(sql.COUNT_CARRIED, (work.tally.messages_alive - before, 0, 0))
            work.done += len(found)
            if not found:
                lost = _settle_accounts(connection, work.tally)
                work.tally.book = None  # not again, when somebody is killed before the file has its new name
            connection.execute(sql.SALVAGE_PROGRESS, (work.done, work.tally.as_json(), work.aside.name))
        if not found:
            self._end(work, lost)
        return True

    def _begin(self, aside: Path) -> _Work:
        with self._database.transaction(Kind.READER) as connection:
            connection.execute(sql.SALVAGE_BEGIN, (aside.name,))
            done, said = next(connection.execute(sql.READ_SALVAGE, (aside.name,)))
        reading = Salvage(aside, aside.with_name(aside.name + "-wal"))
        rows = islice(iter(reading), done, None)
        return _Work(aside, reading, rows, done, Tally.from_json(said))

    def _end(self, work: _Work, lost: int | None) -> None:
        self.close()
        kept = finish_aside(self._database.path, work.aside)
        carried = work.tally
        logger.error(
            "%s: was damaged; %d messages and %d dead letters of it were carried over, %s. What is left of it is %s; nobody needs it.",
            self._database.path,
            carried.messages + carried.inlet,
            carried.dead,
            "how many were lost cannot be known, since its books were damaged too"
            if lost is None
            else f"{lost} were lost",
            kept,
        )

    def close(self) -> None:
        """Let go of the file that is being read."""
        if self._work is not None:
            self._work.reading.close()
            self._work = None


@dataclass(slots=True)
class _Work:
    aside: Path
    reading: Salvage
    rows: Iterator[Found]
    done: int
    tally: Tally


@dataclass(slots=True)
class Tally:
    """What was carried of one file so far."""

    messages: int = 0
    """Rows of ``message``; those that were damaged are dead letters now."""
    messages_alive: int = 0
    """Of these, those that can be sent."""
    dead: int = 0
    """Rows of ``dead_letter``."""
    inlet: int = 0
    """Rows of the 1.x table."""
    top: int = 0
    """The highest position."""
    book: dict[str, int] | None = field(default=None)
    """The old file's books."""

    @classmethod
    def from_json(cls, text: str) -> Tally:
        """As ``as_json`` wrote it."""
        return cls(**json.loads(text))

    def as_json(self) -> str:
        """For the ``salvage`` table."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__})

    def add(self, connection: apsw.Connection, found: Found, *, now_ms: int) -> None:
        """Carry one thing."""
        match found:
            case FoundMessage(message) if found.is_damaged:
                self.messages += _bury(connection, message, None, now_ms, doubtful=found.is_doubtful)
            case FoundMessage():
                self.messages += self._message(connection, found)
            case FoundDeadLetter(letter):
                self.dead += _bury(connection, letter.message, letter, now_ms, doubtful=found.is_doubtful)
            case FoundRow("book", values):
                if self.book is None:
                    self.book = _numbers(values)
            case FoundRow("queue", values):
                self.inlet += _inlet(connection, values)
            case FoundRow("rule", values) if not found.is_doubtful:
                connection.execute(sql.CARRY_RULE, values)
            case FoundRow("server", values) if not found.is_doubtful:
                connection.execute(sql.CARRY_SERVER, values)
            case _:
                pass

    def _message(self, connection: apsw.Connection, found: FoundMessage) -> int:
        message = found.message
        *identity, data = message.columns(found.row_crc32)
        columns = (*identity, found.retried_at_ms, data)
        connection.execute(sql.CARRY_IN_PLACE, (message.position, *columns))
        if connection.changes():
            self.top = max(self.top, message.position)
        else:
            position = _place(connection, message, doubtful=found.is_doubtful)
            if position is None:
                return 0
            connection.execute(sql.CARRY_MESSAGE, (position, *columns))
        self.messages_alive += 1
        return 1


def _place(connection: apsw.Connection, message: StoredMessage, *, doubtful: bool) -> int | None:
    """The position for a row: its own, but where that is taken or was never given out (a flipped bit; no checksum covers it).

    None for a row that is here already.
    """
    there = connection.execute(sql.REQID_AT, (message.position,)).get
    if there is not None and (doubtful or there == message.reqid):
        return None
    if there is None and message.position <= connection.execute(sql.LAST_POSITION).get:
        return message.position
    position: int = connection.execute(sql.NEXT_POSITION).get
    return position


def _bury(
    connection: apsw.Connection,
    message: StoredMessage,
    letter: DeadLetter | None,
    died_at_ms: int,
    *,
    doubtful: bool,
) -> int:
    position = _place(connection, message, doubtful=doubtful)
    if position is None:
        return 0
    death = _DAMAGED if letter is None else letter.death
    at = died_at_ms if letter is None else letter.died_at_ms
    fate = (at, death.reason, death.status, death.code, death.details)
    connection.execute(sql.INSERT_DEAD, (position, *message.columns(), *fate))
    connection.execute(sql.COUNT_CARRIED, (0, 1, len(message.data)))
    return 1


def _inlet(connection: apsw.Connection, values: tuple[Value, ...]) -> int:
    """The inlet takes whatever it is: who empties it looks at each row."""
    row_id, at, *rest, reqid, data = values
    connection.execute(
        sql.CARRY_INLET,
        (row_id, at, *(b"" if value is None else value for value in rest), reqid, data or b""),
    )
    return connection.changes()


def _step_of(rows: Iterator[Found]) -> Iterator[Found]:
    size = 0
    for found in islice(rows, _STEP_ROWS):
        yield found
        match found:
            case FoundMessage(message):
                size += len(message.data)
            case FoundDeadLetter(letter):
                size += len(letter.message.data)
            case FoundRow("queue", values):
                size += len(values[-1]) if isinstance(values[-1], bytes) else 0
        if size >= _STEP_BYTES:
            return


def _settle_accounts(connection: apsw.Connection, tally: Tally) -> int | None:
    """Add the old file's books; return how many messages were lost, None when nobody knows.

    Written for the law that ``Books`` gives, which holds before and after: what comes in on one side comes in on the other.
    """
    if tally.book is None:
        return None
    old = tally.book
    pushed_after = max(0, tally.top - old["last_position"])
    waited = old["waiting"] + pushed_after
    inlet_pushed = old["inlet_base"] + old["inlet_in"]
    inlet_waited = inlet_pushed - old["inlet_out"]
    removed_by_1x = old["inlet_out"] - old["inlet_moved"]
    lost = [
        waited - tally.messages,
        old["dead"] - tally.dead,
        inlet_waited - tally.inlet,
    ]
    found = old["found"] - min(waited, tally.messages) - min(old["dead"], tally.dead) + max(0, -lost[2])
    entered = {
        "pushed": old["pushed"] + pushed_after + inlet_pushed - tally.inlet - removed_by_1x,
        "found": found,
        "damaged": old["damaged"] + sum(max(0, number) for number in lost),
        "removed_by_1x": removed_by_1x,
        **{name: old[name] for name in _SETTLED},
        "returned": old["returned"],
        "maybe_twice": old["maybe_twice"],
    }
    # The old books may have been damaged in a way that leaves them readable: what does not add up was lost, or found.
    surplus = (
        entered["pushed"] + tally.inlet + removed_by_1x + entered["found"] + tally.messages + tally.dead
    ) - (
        tally.messages
        + tally.dead
        + tally.inlet
        + removed_by_1x
        + entered["damaged"]
        + sum(old[name] for name in _SETTLED)
    )
    entered["damaged" if surplus > 0 else "found"] += abs(surplus)
    connection.execute(sql.ENTER_OLD_BOOK, entered)
    return sum(max(0, number) for number in lost)


def _numbers(values: tuple[Value, ...]) -> dict[str, int]:
    """The book as it should be: no counter below zero or beyond what SQLite can add up."""
    named = zip(COLUMNS["book"], values, strict=True)
    return {name: min(max(0, value), _MOST) if isinstance(value, int) else 0 for name, value in named}
