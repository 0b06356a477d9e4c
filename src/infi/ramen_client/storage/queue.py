"""The queue on disk, as a writer, a program and an operator see it; what the reader does is in ``active_reader``.

Invariants (each kept inside one transaction, so true after every crash):

1. A message is in exactly one of: ``message``, ``dead_letter``, the inlet, or counted under a reason in the books.
2. The books balance (``Books.difference() == 0``), and ``waiting`` and ``dead`` are the numbers of rows.
3. A position is never used for two messages of one file; a reqid that was made at push is never used twice at all.
4. ``push`` returns after the commit; nothing is stored when it raises, but for ``DurabilityError``.
5. What is in flight is not trimmed, and the newest message is not trimmed.

Limits: a message larger than ``max_message_bytes`` or than the queue is refused at push (``MessageTooLarge``); over
``max_queue_size`` the oldest go, counted and logged, or the push is refused with ``QueueFull`` (``_trim``); a full disk makes
``push`` raise ``DiskFull``; a file that was taken away makes it raise ``QueueGone``; one that is damaged is replaced (``_heal``). A push waits for the other writers, at most
``BUSY_TIMEOUT_SECONDS``, never for the network.
"""

from __future__ import annotations

import logging
import time
import weakref
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from infi.ramen_client.errors import DurabilityError, QueueClosed

from . import _statements as sql
from ._create import open_database
from ._database import Kind
from ._errors import Damaged, UncertainCommit
from ._expiry import Expiry
from ._filesystem import FreeSpace
from ._heal import healing
from ._inlet import move_inlet
from ._losses import LossLog
from ._reserve import SPARE_BYTES
from ._rows import (
    DeadLetter,
    Fate,
    NewMessage,
    Settlement,
    StoredMessage,
    dead_letter_of,
    message_of,
    remains_of,
)
from ._settle import bury_damaged, discard_all_dead, raise_dead, settle
from ._trim import Overflow, SizeLimit, after_push, before_push, live_bytes
from .books import LAST_POSITION, read_books
from .checking import check
from .reader_process import reader_holder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import apsw

    from ._connection import Meta
    from ._create import Place
    from ._database import Database
    from ._inlet import Moved
    from ._trim import Trimmed
    from .books import Books

_WRITER_CHECKPOINT_FRAMES = 400
"""1.6 MiB of WAL. A sync costs nearly twice as much while the WAL still grows as when it is written over (measured), so it
had better not grow for long; and a small queue shall not have a large one."""


@dataclass(frozen=True, slots=True)
class PushPoint:
    """How far a queue had been filled: everything pushed before it lies at or below."""

    position: int
    inlet_id: int


class Queue:
    """One queue. Any number of threads and processes may have one open; threads may share an object."""

    def __init__(
        self,
        place: Place,
        *,
        max_bytes: int,
        durable: bool = True,
        overflow: Overflow = Overflow.DROP_OLDEST,
        min_free_disk: int = 0,
        max_age_seconds: float | None = None,
    ) -> None:
        self._database: Database | None
        self._database = open_database(place)
        self._place = place
        path = self._database.path
        self._limit = SizeLimit(path, max_bytes, overflow, self.meta)
        self._disk = FreeSpace(path.parent, min_free_disk)
        self.expiry = None if max_age_seconds is None else Expiry(max_age_seconds)
        """What the active reader does about messages that are too old; None: they never are."""
        self._kind = Kind.FULL if durable else Kind.NORMAL
        where = str(path).replace("%", "%%")
        self._trimmed = LossLog(
            logging.WARNING,
            f"{where}: over its limit of {max_bytes} bytes; the %d oldest messages were thrown away unsent. "
            "Raise max_queue_size, or find out why nothing is delivered.",
        )
        self._trimmed_for_disk = LossLog(
            logging.WARNING,
            f"{where}: its file system has less than {min_free_disk} bytes free (min_free_disk); the %d oldest messages were "
            "thrown away unsent. Free some space.",
        )
        self.expired = LossLog(
            logging.WARNING,
            f"{where}: %d messages were older than {max_age_seconds} s (max_message_age_seconds) and were thrown away unsent. "
            "Raise it, or find out why they were not delivered in time.",
        )
        """Says which messages the active reader found too old."""
        self.damaged = LossLog(
            logging.ERROR,
            f"{where}: %d messages were damaged on disk and cannot be sent; they are kept as dead letters. Check the disk.",
        )
        """Says which messages the active reader found damaged."""
        self.dead_discarded = LossLog(
            logging.ERROR,
            f"{where}: dead letters took more than a tenth of the limit of {max_bytes} bytes; the %d oldest were "
            "thrown away. Find out why messages are refused, or raise max_queue_size.",
        )
        """Says which dead letters had to go, those that the active reader discards too."""
        self._losses = (
            self._trimmed,
            self._trimmed_for_disk,
            self.expired,
            self.damaged,
            self.dead_discarded,
        )
        for losses in self._losses:
            weakref.finalize(self, losses.say_rest)

    def __repr__(self) -> str:
        state = "closed" if self._database is None else str(self._database.path)
        return f"<Queue {state}>"

    @property
    def path(self) -> Path:
        """The database file."""
        return self.database.path

    @property
    def database(self) -> Database:
        """The open file; raises ``QueueClosed`` after ``close``."""
        if self._database is None:
            raise QueueClosed("this queue was closed; build a new writer or reader")
        return self._database

    @property
    def meta(self) -> Meta:
        """What the file says of itself."""
        return self.database.meta

    @property
    def place(self) -> Place:
        """Whose queue this is."""
        return self._place

    @property
    def max_bytes(self) -> int:
        """The soft limit on the queue's size."""
        return self._limit.max_bytes

    def close(self) -> None:
        """Let go of the file; it is closed when no other writer or reader of this process uses it."""
        self._database = None
        for losses in self._losses:
            losses.say_rest()

    def push(self, messages: Sequence[NewMessage]) -> None:
        """Store messages in one transaction: all of them or none, in their order.

        ``DurabilityError``, with the first one's reqid, when the disk did not confirm the commit: they may be found stored later.
        """
        database = self.database
        try:
            trimmed = self._store(database, messages)
        except UncertainCommit as error:
            raise DurabilityError(
                f"{error} Pushing again with the same reqid is safe.", messages[0].reqid
            ) from error
        database.wake_readers()
        self._trimmed.note(trimmed.messages)
        self._trimmed_for_disk.note(trimmed.for_disk)
        self.dead_discarded.note(trimmed.dead_letters)
        database.checkpoint_above(_WRITER_CHECKPOINT_FRAMES, Kind.NORMAL)

    @healing
    def _store(self, database: Database, messages: Sequence[NewMessage]) -> Trimmed:
        """Insert, and keep the limit."""
        size = sum([len(message.data) for message in messages])
        disk_is_low = self._disk.is_low(size)
        if self._limit.meta is not database.meta:  # its file was replaced
            self._limit = replace(self._limit, meta=database.meta)
        transaction = database.transaction(self._kind, spare_bytes=SPARE_BYTES)
        with transaction as connection:
            before = before_push(
                connection, self._limit, rows=len(messages), pushed_bytes=size, disk_is_low=disk_is_low
            )
            run = transaction.run
            position = transaction.head_before
            if position is None:
                position = _head(run, database)
                database.check_head(position)
            for message in messages:
                position += 1
                run(sql.INSERT_MESSAGE, (position, *message.columns()))
            transaction.new_head = position
            pages = transaction.pages = run(sql.PAGE_COUNT).get
            trimmed = after_push(connection, self._limit, before, newest=position, pages=pages)
        database.note_head(position)
        return trimmed

    @healing
    def size(self) -> int:
        """How many messages wait, those in flight included (kept, not counted)."""
        with self.database.connection(Kind.NORMAL) as connection:
            waiting: int = connection.execute(sql.WAITING).get
            return waiting

    @healing
    def bytes_used(self) -> int:
        """What waiting messages and dead letters take on disk, as the limit counts it."""
        with self.database.connection(Kind.NORMAL) as connection:
            return live_bytes(connection, self.meta.empty_pages)

    @healing
    def books(self) -> Books:
        """The books as of now."""
        with self.database.connection(Kind.NORMAL) as connection:
            return read_books(connection).books

    def check(self) -> list[str]:
        """Compare the books with themselves and with the rows, as ``checking.check`` does; what is wrong, in words."""
        return check(self.database)

    @healing
    def push_point(self) -> PushPoint:
        """Mark where the queue ends now, for ``settled_up_to``."""
        with self.database.connection(Kind.NORMAL) as connection:
            position = _head(connection.execute, self.database)
            return PushPoint(position, connection.execute(sql.INLET_LAST_ID).get)

    @healing
    def settled_up_to(self, point: PushPoint) -> bool:
        """Whether nothing that was pushed before ``point`` waits any more."""
        with self.database.connection(Kind.NORMAL) as connection:
            return not connection.execute(sql.ANY_UP_TO, (point.position, point.inlet_id)).get

    def oldest(self) -> StoredMessage | None:
        """The oldest message that is not in flight, without taking it."""
        return self._oldest(take=False)

    def take_oldest(self) -> StoredMessage | None:
        """Remove the oldest message that is not in flight and return it; it counts as purged."""
        return self._oldest(take=True)

    @healing
    def _oldest(self, *, take: bool) -> StoredMessage | None:
        database = self.database
        steps: list[Moved] = []
        # What a reader left behind that is gone is nobody's, but for what is frozen. (Asked before the turn is taken.)
        reader_lives = reader_holder(database.path) is not None
        with database.transaction(self._kind) as connection:
            message = self._first(connection, steps, reader_lives=reader_lives)
            if take and message is not None:
                settle(connection, [Settlement(message, Fate.PURGED)], now_ms=now_ms())
        for moved in steps:
            moved.say_buried(database.path)
        return message

    def _first(
        self, connection: apsw.Connection, steps: list[Moved], *, reader_lives: bool
    ) -> StoredMessage | None:
        """The first that can be sent; ``steps`` grows by what was done to the 1.x table on the way to it."""
        now = now_ms()
        while True:
            moved = move_inlet(connection, self.meta, self._place.system_version, now_ms=now)
            steps.append(moved)
            damaged = None
            for row in connection.execute(sql.FIRST_FREE, (reader_lives,)):
                message = message_of(row)
                if message is not None:
                    return message
                damaged = remains_of(row)
            if damaged is not None:
                bury_damaged(connection, [damaged], now_ms=now)
            elif not moved.rows:
                return None

    @healing
    def dead_letters(self, limit: int = 1000) -> list[DeadLetter]:
        """The dead letters, oldest position first, at most ``limit``."""
        with self.database.connection(Kind.NORMAL) as connection:
            return [dead_letter_of(row) for row in connection.execute(sql.LIST_DEAD, (limit,))]

    @healing
    def dead_letter_positions(self) -> list[int]:
        """The positions of all dead letters."""
        with self.database.connection(Kind.NORMAL) as connection:
            return [position for (position,) in connection.execute(sql.DEAD_POSITIONS)]

    @healing
    def retry_dead_letters(self, positions: Iterable[int]) -> int:
        """Bring dead letters back to their old places in the queue; return how many there were that could be sent."""
        wanted = list(positions)
        with self.database.transaction(self._kind) as connection:
            raised = sum(raise_dead(connection, position, now_ms=now_ms()) for position in wanted)
        self.database.wake_readers()
        return raised

    @healing
    def discard_dead_letters(self) -> int:
        """Throw every dead letter away, counted; return how many there were."""
        with self.database.transaction(self._kind) as connection:
            return discard_all_dead(connection)


def now_ms() -> int:
    """The wall clock as the file keeps it: milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _head(run: Callable[..., Any], database: Database) -> int:
    """The highest position in use."""
    head: int | None = run(sql.HEAD).get
    if head is None:
        raise Damaged(f"{database.path}: its books are gone")
    if head > LAST_POSITION:
        raise Damaged(f"{database.path}: its positions are damaged")
    return head
