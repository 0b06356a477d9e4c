"""The active reader's hand on the queue: claim messages, settle them, remember what the server taught.

Invariants:

- There is at most one ``ActiveReader`` for a queue on the host (``ReaderLock``), and it lives for one ``run`` or ``consume_one``.
- What it has claimed and not settled is in ``flight``, so that no writer trims it. A claim gives back what an earlier one took and
  nobody settled (a dead reader's, or one's whose step ended in an error), so that no message can be left behind.
- Its commits are not synced: an acknowledgement lost in a power cut means a re-send under the same reqid.
- Nothing is written while there is nothing to do: an idle queue costs no write at all.
- After a damaged file was replaced, what can be read of it comes over before anything is claimed or settled, so order is kept.
- No transaction stays open between calls, so the WAL can always be checkpointed while a POST is under way.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infi.ramen_client.errors import QueueBusy, QueueError

from . import _statements as sql
from ._carry import Carrier
from ._database import Kind
from ._errors import plain_errors
from ._heal import Replaced, healing
from ._inlet import move_inlet
from ._locks import ReaderLock
from ._rows import Fate, Settlement, StoredMessage, message_of, remains_of
from ._settle import bury_damaged, dead_letters_share, discard_surplus_dead, raise_dead, settle
from .queue import now_ms

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import apsw

    from ._create import Place
    from ._database import Database
    from .queue import Queue

CHECKPOINT_FRAMES = 300
"""Before a writer would: it has the time."""

SUSPECT_AFTER = 5
"""Rejections without a protocol body in a row that make a server suspect (protocol section 1)."""

_CLAIM_SHARE = 8
"""A claim takes at most an eighth of the size limit, so that trimming finds something that is not in flight."""

_SPARE_PAGES = 256
"""1 MiB of free pages stays in the file, since a queue that just drained is about to be filled again."""

_SUCCESS_EVERY_MS = 1000
"""How often "last success" is brought up to date while all goes well."""


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What is known of a server over restarts. Times are milliseconds since the epoch, None: not so."""

    failures: int = 0
    suspect_since_ms: int | None = None
    retry_at_ms: int | None = None


@dataclass(frozen=True, slots=True)
class FailureNote:
    """A failed attempt, for ``status``."""

    text: str
    status: int | None
    retry_at_ms: int


class ActiveReader:
    """The one active reader of a queue; use ``activate``."""

    def __init__(self, queue: Queue, lock: ReaderLock) -> None:
        self._queue = queue
        self._database = queue.database
        self._lock = lock
        self._begun = False
        self._may_be_unexplained = True  # rejections on record; not known yet
        self._failing = True  # what the reader row says is not known yet
        self._success_noted_ms = 0
        self._tidied = False
        self._vacuumed = False
        self._carrier = Carrier(queue.database)
        self._carried_into = (
            0  # of how many files of this queue it is known that nothing is to be carried into them
        )

    @classmethod
    def activate(
        cls, queue: Queue, is_told_to_stop: Callable[[], bool] = lambda: False
    ) -> ActiveReader | None:
        """Become the active reader, or None when there is one already; never waits.

        Once ``is_told_to_stop`` is true, nothing here waits longer than some ten milliseconds for other processes: it raises
        ``QueueBusy`` instead, and what was claimed stays in the queue.
        """
        path = queue.path
        queue.database.check_in_place()
        lock = ReaderLock(path.with_name(path.name + ".reader"), queue.database.access)
        with plain_errors(path):
            if not lock.acquire():
                return None
        queue.database.reader_patience.is_told_to_stop = is_told_to_stop
        return cls(queue, lock)

    def close(self) -> None:
        """Give back what was claimed and stand down."""
        try:
            with suppress(QueueError):
                if self._begun:
                    with self._database.transaction(Kind.READER) as connection:
                        connection.execute(sql.VOID_LEASES)
                        connection.execute(sql.READER_STOPPED, (now_ms(),))
        finally:
            self._carrier.close()
            self._database.reader_patience.reset()
            self._lock.release()

    @property
    def database(self) -> Database:
        """The queue's file."""
        return self._database

    @property
    def place(self) -> Place:
        """Whose queue it is."""
        return self._queue.place

    # Waiting for messages

    def waiting(self) -> int:
        """How many messages wait, those in flight included."""
        return self._queue.size()

    def check_in_place(self) -> None:
        """Raise ``QueueGone`` when the file was taken away."""
        self._database.check_in_place()

    def change_mark(self) -> tuple[int, int]:
        """A value that changes when somebody else has committed; 3 microseconds."""
        return self._database.change_mark()

    def add_waker(self, wake: Callable[[], None]) -> None:
        """Have ``wake`` called after each push of this process."""
        self._database.add_waker(wake)

    def remove_waker(self, wake: Callable[[], None]) -> None:
        """Undo ``add_waker``."""
        self._database.remove_waker(wake)

    # Messages

    def _carry(self) -> None:
        """Bring over what can be read of damaged files that were put aside; ``QueueBusy`` when told to stop meanwhile."""
        files = self._database.files
        while self._carried_into != files:
            if not self._carrier.step():
                self._carried_into = files
            elif self._database.reader_patience.is_told_to_stop():
                raise QueueBusy(f"{self._database.path}: messages of a damaged file are being carried over")
            self._database.checkpoint_above(CHECKPOINT_FRAMES, Kind.READER)

    @healing
    def claim(self, max_messages: int, max_bytes: int) -> list[StoredMessage]:
        """Take the oldest messages, in order; at least one if there is any. Nothing of an earlier claim is held any more.

        ``max_bytes`` counts payloads as stored. Damaged messages on the way become dead letters, those that are too old expire;
        while there are many of these, a stop ends it with nothing claimed.
        """
        self._carry()
        most_bytes = min(max_bytes, self._queue.max_bytes // _CLAIM_SHARE)
        self._queue.dead_discarded.note(0)
        self._queue.expired.note(0)
        self._queue.damaged.note(0)
        while self._anything_waits():
            with self._database.transaction(Kind.READER) as connection:
                self._begin(connection)
                connection.execute(sql.VOID_LEASES)
                now = now_ms()
                moved = move_inlet(connection, self._queue.meta, self._queue.place.system_version, now_ms=now)
                expired = self._expire(connection)
                # What is too old goes first, so that none of it is sent.
                claimed, damaged = ([], []) if expired else _claim(connection, max_messages, most_bytes)
                bury_damaged(connection, damaged, now_ms=now)
                discarded = self._keep_dead_share(connection) if moved.rows or damaged else 0
            moved.say_buried(self._database.path)
            self._queue.dead_discarded.note(discarded)
            self._queue.expired.note(expired)
            self._queue.damaged.note(len(damaged))
            if claimed or expired:
                self._tidied = False
            if claimed:
                return claimed
            if expired:
                self._database.checkpoint_above(CHECKPOINT_FRAMES, Kind.READER)
                if self._database.reader_patience.is_told_to_stop():
                    break
            elif not moved.rows and not damaged:
                break
        return []

    def _expire(self, connection: apsw.Connection) -> int:
        expiry = self._queue.expiry
        return 0 if expiry is None else expiry.expire(connection)

    def give_back(self) -> None:
        """Hold nothing any more: what was claimed and not settled may be trimmed, and is claimed again. Never raises.

        Also the next ``claim`` does it; this is for who will not claim for a while.
        """
        with suppress(QueueError), self._database.transaction(Kind.READER) as connection:
            connection.execute(sql.VOID_LEASES)

    def _anything_waits(self) -> bool:
        # Not by the books: where they were damaged, the messages are still to be delivered.
        with self._database.connection(Kind.READER) as connection:
            return bool(connection.execute(sql.ANY_WAITING).get)

    def _begin(self, connection: apsw.Connection) -> None:
        if self._carried_into != self._database.files:
            raise Replaced
        if not self._begun:
            connection.execute(sql.READER_STARTED, (os.getpid(), now_ms()))
            self._begun = True

    @healing
    def settle(self, settlements: Sequence[Settlement], *, rule_hits: dict[int, int] | None = None) -> None:
        """Acknowledge: take messages out of the queue, each under its fate; one transaction.

        ``rule_hits`` adds to the counts of the rules that dropped the blacklisted ones.
        """
        self._carry()
        now = now_ms()
        heard = any(settlement.fate in (Fate.ACCEPTED, Fate.DROPPED) for settlement in settlements)
        with self._database.transaction(Kind.READER) as connection:
            self._begin(connection)
            settle(connection, settlements, now_ms=now)
            died = any(settlement.fate is Fate.DEAD for settlement in settlements)
            discarded = self._keep_dead_share(connection) if died else 0
            for rule_id, hits in (rule_hits or {}).items():
                connection.execute(sql.HIT_RULE, (hits, rule_id))
            if heard:
                self._note_success(connection, now)
        self._queue.dead_discarded.note(discarded)
        if heard:
            self._may_be_unexplained = self._failing = False
        self._database.checkpoint_above(CHECKPOINT_FRAMES, Kind.READER)

    @healing
    def reject_unexplained(self, settlement: Settlement, origin: str) -> bool:
        """Make a message a dead letter whose rejection had no protocol body.

        True when this was the fifth in a row from the server at ``origin``, over restarts too. Then the server is to be
        suspected, the five are back in the queue in their old places, and nothing is claimed any more: claim again.
        """
        self._carry()
        with self._database.transaction(Kind.READER) as connection:
            self._begin(connection)
            now = now_ms()
            settle(connection, [settlement], now_ms=now)
            connection.execute(sql.NOTE_UNEXPLAINED, (settlement.message.position, origin))
            discarded = self._keep_dead_share(connection)
            run = [position for (position,) in connection.execute(sql.READ_UNEXPLAINED, (origin,))]
            suspect = len(run) >= SUSPECT_AFTER
            if suspect:
                for position in run:
                    raise_dead(connection, position, now_ms=now)
                connection.execute(sql.END_UNEXPLAINED, (origin,))
                connection.execute(sql.VOID_LEASES)
        self._queue.dead_discarded.note(discarded)
        self._may_be_unexplained = True
        return suspect

    def _keep_dead_share(self, connection: apsw.Connection) -> int:
        return discard_surplus_dead(connection, share_bytes=dead_letters_share(self._queue.max_bytes))

    def _note_success(self, connection: apsw.Connection, now: int) -> None:
        if self._may_be_unexplained:
            connection.execute(sql.CLEAR_UNEXPLAINED)
        if self._failing or not 0 <= now - self._success_noted_ms < _SUCCESS_EVERY_MS:
            connection.execute(sql.READER_SUCCEEDED, (now,))
            self._success_noted_ms = now

    @healing
    def note_failure(self, note: FailureNote, origin: str, facts: ServerFacts) -> None:
        """Write down a failed attempt, for ``status``, and what it taught about the server, for the next start."""
        self._carry()
        with self._database.transaction(Kind.READER) as connection:
            self._begin(connection)
            connection.execute(sql.READER_FAILED, (now_ms(), note.text, note.status, note.retry_at_ms))
            _save_server(connection, origin, facts)
        self._failing = True
        self._database.checkpoint_above(CHECKPOINT_FRAMES, Kind.READER)

    # The server

    @healing
    def load_server(self, origin: str) -> ServerFacts:
        """What is known of a server."""
        with self._database.connection(Kind.READER) as connection:
            for row in connection.execute(sql.READ_SERVER, (origin,)):
                return ServerFacts(*row)
        return ServerFacts()

    @healing
    def save_server(self, origin: str, facts: ServerFacts) -> None:
        """Remember what was learned of a server."""
        with self._database.transaction(Kind.READER) as connection:
            _save_server(connection, origin, facts)

    # Upkeep

    @healing
    def tidy(self) -> bool:
        """Give a step of the drained queue's space back to the disk; True when there is more to do.

        To be called when there has been nothing else to do for a while; costs nothing once all is done.
        """
        if self._tidied:
            return False
        with self._database.connection(Kind.READER) as connection:
            free = connection.execute(sql.FREELIST_COUNT).get
        if free > _SPARE_PAGES:
            with self._database.transaction(Kind.READER) as connection:
                # One page a step of the statement: it must be stepped to its end.
                for _ in connection.execute(sql.VACUUM_STEP):
                    pass
                left = connection.execute(sql.FREELIST_COUNT).get
            self._vacuumed = True
            self._database.checkpoint_above(CHECKPOINT_FRAMES, Kind.READER)
            # Some old file has no auto-vacuum: its space is used again, but cannot be given back.
            if left < free:
                return True
        if self._vacuumed:
            self._database.checkpoint(Kind.READER)  # only this shortens the file
            self._vacuumed = False
        self._tidied = True
        return False


def _save_server(connection: apsw.Connection, origin: str, facts: ServerFacts) -> None:
    row = (origin, facts.failures, facts.suspect_since_ms, facts.retry_at_ms, now_ms())
    connection.execute(sql.SAVE_SERVER, row)


def _claim(
    connection: apsw.Connection, max_messages: int, max_bytes: int
) -> tuple[list[StoredMessage], list[StoredMessage]]:
    """Put the next messages in flight; return them, and what is left of damaged ones on the way."""
    claimed: list[StoredMessage] = []
    damaged: list[StoredMessage] = []
    size = 0
    for row in connection.execute(sql.CLAIM, (max_messages,)):
        message = message_of(row)
        if message is None:
            damaged.append(remains_of(row))
            continue
        size += len(message.data)
        if claimed and size > max_bytes:
            break
        claimed.append(message)
    for message in claimed:
        connection.execute(sql.INSERT_FLIGHT, (message.position,))
    return claimed, damaged
