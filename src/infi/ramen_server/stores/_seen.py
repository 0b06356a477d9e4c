"""What the embedded store remembers of messages: their keys, in tables that are dropped one by one.

A table takes the keys of a span of days, an eighth of ``remember_days``: each key is looked up in every table, so there must not be
many (31 tables make a commit 8 times as long as one). A new one is begun when the span is over, and when the current one holds an
eighth of ``remember_messages``. The first made is dropped when those between it and the current one span ``remember_days``, or when there
are more keys than ``remember_messages``. By spans and not by age: a clock that stepped to 2099 for a minute must not forget everything.

So a message is recognised for at least ``remember_days`` days, of which only spans count in which something was stored, unless
there were more messages than ``remember_messages`` since. ``window_seconds`` tells for how long at least, as things are; it is
what the server announces.

Invariants: keys, counts and tables change in the caller's transaction; what this object knows of them changes by ``committed``,
after it. One thread, one connection; after a failure the object is made anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import apsw

PARTS = 8
"""So many tables share ``remember_days`` and ``remember_messages``; what is forgotten at a time is one part more."""

_MS_PER_DAY = 86_400_000
_SLOTS_PER_DAY = 1000
_FIRST_SLOT = 10**9  # of 1970; a number far below is a day's, from when each day had one table
_SECONDS_PER_DAY = 86_400
_SECONDS_PER_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Table:
    """One table of keys. ``made`` counts up for ever, from 1; ``days`` is the length of its span."""

    made: int
    slot: int
    begun_at_ms: int
    keys: int
    days: int

    @property
    def day(self) -> int:
        """The span's first day, in days since 1970."""
        if self.slot < _FIRST_SLOT // 2:
            return self.slot
        return (self.slot - _FIRST_SLOT) // _SLOTS_PER_DAY

    def holds(self, day: int) -> bool:
        """Whether the day is in the span."""
        return self.day <= day < self.day + self.days

    @property
    def name(self) -> str:
        """The table's name; a number follows, so it can stand in a statement."""
        return f"seen_{self.slot}"


class SeenKeys:
    """The keys in one file. ``remember_days`` and ``remember_messages`` are 1 or more."""

    def __init__(self, connection: apsw.Connection, *, remember_days: int, remember_messages: int) -> None:
        if "keys" not in {column for _, column, *_ in connection.execute("PRAGMA table_info(seen_day)")}:
            # A file from before keys were counted: those in it count for their days, not for their number.
            connection.execute("ALTER TABLE seen_day ADD COLUMN begun_at INTEGER NOT NULL DEFAULT 0")
            connection.execute("ALTER TABLE seen_day ADD COLUMN keys INTEGER NOT NULL DEFAULT 0")
            connection.execute("ALTER TABLE seen_day ADD COLUMN days INTEGER NOT NULL DEFAULT 1")
        self._connection = connection
        self._remember_days = remember_days
        self._span_days = -(-remember_days // PARTS)
        self._remember_messages = remember_messages
        rows = connection.execute("SELECT made, day, begun_at, keys, days FROM seen_day ORDER BY made")
        self._tables = [Table(*row) for row in rows]
        self._open_tables = list(self._tables)
        self._added = 0
        self._current: Table
        self._enter = self._probe = ""

    def begin(self, now_ms: int) -> None:
        """Make ready for keys at this time. In the transaction."""
        self._open_tables = list(self._tables)
        self._added = 0
        today = now_ms // _MS_PER_DAY
        current = next((table for table in reversed(self._open_tables) if table.holds(today)), None)
        if current is None:
            current = self._make(_first_slot(today), now_ms)
        elif (
            current.keys >= self._remember_messages / PARTS
            and current.slot % _SLOTS_PER_DAY < _SLOTS_PER_DAY - 1
        ):
            current = self._make(max(current.slot, _first_slot(current.day)) + 1, now_ms)
        self._current = current
        self._know()

    def add(self, key: bytes) -> bool:
        """Remember a key; False when it is known. In the transaction, after ``begin``."""
        if self._probe and self._connection.execute(self._probe, (key,)).get:
            return False
        self._connection.execute(self._enter, (key,))
        if self._connection.changes() != 1:
            return False
        self._added += 1
        return True

    def finish(self) -> None:
        """Write how many keys were added. In the transaction."""
        self._connection.execute(
            "UPDATE seen_day SET keys = keys + ? WHERE day = ?", (self._added, self._current.slot)
        )

    def committed(self) -> None:
        """Believe what was done since ``begin``: the transaction is committed."""
        changed = replace(self._current, keys=self._current.keys + self._added)
        self._tables = [changed if table is self._current else table for table in self._open_tables]

    def surplus(self) -> Table | None:
        """Name the table that should be dropped next, if any."""
        if len(self._tables) <= 1:
            return None
        first, last = self._tables[0], self._tables[-1]
        between = {table.day: table.days for table in self._tables if table.day not in (first.day, last.day)}
        too_many = sum(table.keys for table in self._tables) > self._remember_messages
        return first if too_many or sum(between.values()) >= self._remember_days else None

    def drop(self, table: Table) -> None:
        """Drop a table. In a transaction; ``dropped`` comes after it."""
        self._connection.execute(f"DROP TABLE {table.name}")
        self._connection.execute("DELETE FROM seen_day WHERE day = ?", (table.slot,))

    def dropped(self, table: Table) -> None:
        """Believe that the table is gone."""
        self._tables.remove(table)

    def window_seconds(self, now_ms: int) -> float:
        """Tell for how long, at least, a message is remembered now; in whole hours, where it is so long."""
        whole = float(self._remember_days * _SECONDS_PER_DAY)
        first = self._tables[0] if self._tables else None
        if first is None or first.made == 1:
            return whole  # nothing was ever forgotten
        seconds = max(1, (now_ms - first.begun_at_ms) // 1000)
        return min(whole, float(max(seconds - seconds % _SECONDS_PER_HOUR, min(seconds, _SECONDS_PER_HOUR))))

    def _make(self, slot: int, now_ms: int) -> Table:
        self._connection.execute(
            "INSERT INTO seen_day (day, begun_at, days) VALUES (?, ?, ?)", (slot, now_ms, self._span_days)
        )
        table = Table(self._connection.last_insert_rowid(), slot, now_ms, 0, self._span_days)
        self._connection.execute(f"CREATE TABLE {table.name} (key BLOB PRIMARY KEY) WITHOUT ROWID")
        self._open_tables.append(table)
        return table

    def _know(self) -> None:
        """Write the two statements; the same text each time, so that SQLite's statement cache finds them."""
        self._enter = f"INSERT OR IGNORE INTO {self._current.name} (key) VALUES (?)"  # noqa: S608 - a number
        # The newest first: that is where what is sent again most likely is.
        others = (table.name for table in reversed(self._open_tables) if table is not self._current)
        parts = [f"EXISTS (SELECT 1 FROM {name} WHERE key = ?1)" for name in others]  # noqa: S608 - numbers
        self._probe = f"SELECT {' OR '.join(parts)}" if parts else ""


def _first_slot(day: int) -> int:
    return _FIRST_SLOT + day * _SLOTS_PER_DAY
