"""The active reader's hand on the queue: claim messages, settle them, remember what the server taught.

Invariants:

- There is at most one ``ActiveReader`` for a queue on the host (``ReaderLock``), and it lives for one ``run`` or ``consume_one``.
- What is sent one by one is leased before: it is in ``flight``, so that no writer trims it. A lease ends with its settlement, when
  it is given back, and with its reader, unless its outcome is not known (``unsettled``). What is sent in a batch is frozen
  (``batches``).
- Its commits are not synced, but for a batch's freezing: an acknowledgement lost in a power cut means a re-send under the same reqid.
- Nothing is written while there is nothing to do: an idle queue costs no write at all.
- After a damaged file was replaced, what can be read of it comes over before anything is claimed or settled, so order is kept.
- No transaction stays open between calls, so the WAL can always be checkpointed while a POST is under way.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infi.ramen_client.errors import QueueError

from . import _statements as sql
from ._database import Kind
from ._errors import plain_errors
from ._heal import healing
from ._inlet import move_inlet
from ._locks import ReaderLock
from ._looking import Found, Stream
from ._reader_work import ReaderWork
from ._rows import Fate, Settlement, StoredMessage
from ._settle import bury_damaged, dead_letters_share, discard_surplus_dead, raise_dead, settle
from .batches import FrozenBatch, FrozenBatches, end_batch
from .queue import now_ms
from .repairing import mend
from .server_facts import ServerFacts, read_server, save_server
from .streams import WaitingStream, read_waiting_streams

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    import apsw

    from ._create import Place
    from ._database import Database
    from .queue import Queue

SUSPECT_AFTER = 5
"""Rejections without a protocol body in a row that make a server suspect (protocol section 1)."""

_CLAIM_SHARE = 8
"""A claim takes at most an eighth of the size limit, so that trimming finds something that is not in flight."""

_SPARE_PAGES = 256
"""1 MiB of free pages stays in the file, since a queue that just drained is about to be filled again."""

_MOST_STREAMS = 10_000
"""More would be told to wait once more."""

_SUCCESS_EVERY_MS = 1000
"""How often "last success" is brought up to date while all goes well."""


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
        self._work = ReaderWork(queue)
        self.batches = FrozenBatches(self._work, now_ms)
        """What was frozen and has no outcome yet."""
        self._may_be_unexplained = True  # rejections on record; not known yet
        self._failing = True  # what the reader row says is not known yet
        self._success_noted_ms = 0
        self._tidied = False
        self._vacuumed = False

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
                if self._work.has_begun:
                    with self._database.transaction(Kind.READER) as connection:
                        self._work.void_leases(connection)
                        connection.execute(sql.READER_STOPPED, (now_ms(),))
        finally:
            self._work.close()
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

    def claim(
        self, max_messages: int, max_bytes: int, passing_over: Collection[Stream] = ()
    ) -> list[StoredMessage]:
        """``look_ahead``, and lease what it finds."""
        return self.lease(self.look_ahead(max_messages, max_bytes, passing_over).messages)

    @healing
    def look_ahead(self, max_messages: int, max_bytes: int, passing_over: Collection[Stream] = ()) -> Found:
        """Find the next messages in order, but those of streams to be passed over: at least one if there is any.

        ``max_bytes`` counts payloads as stored. Those that were found before come again only after ``give_back``, and when something
        came into the queue behind them. Damaged messages on the way become dead letters, those that are too old expire; while there
        are many of these, and while much is passed over, a stop ends it with nothing found.
        """
        most_bytes = min(max_bytes, self._queue.max_bytes // _CLAIM_SHARE)
        for losses in (self._queue.dead_discarded, self._queue.expired, self._queue.damaged):
            losses.note(0)
        while True:
            self._work.carry()
            if not self._anything_waits():
                return Found([], [], is_all=True)
            expired, moved, only_backlog = self._upkeep()
            # What is too old goes first, so that none of it is sent.
            if not expired:
                found = self._look_ahead(max_messages, most_bytes, passing_over, only_backlog=only_backlog)
                self._bury(found.damaged)
                if found.messages:
                    self._tidied = False
                    return found
                if found.is_all and not moved:
                    return found
            if self._database.reader_patience.is_told_to_stop():
                return Found([], [], is_all=False)

    @property
    def starts(self) -> int:
        """How often it was looked from the beginning: when this changes, what was passed over may have got something behind it."""
        return self._work.frontier.starts

    def _look_ahead(
        self, most_messages: int, most_bytes: int, passing_over: Collection[Stream], *, only_backlog: bool
    ) -> Found:
        with self._database.connection(Kind.READER) as connection:
            return self._work.frontier.look_ahead(
                connection,
                most_messages=most_messages,
                most_bytes=most_bytes,
                passing_over=passing_over,
                only_backlog=only_backlog,
            )

    @healing
    def look_at_stream(
        self, stream: Stream, *, after: int, max_messages: int, max_bytes: int
    ) -> tuple[Found, int]:
        """Find messages of a stream that was passed over, behind what ``look_ahead`` has seen; and how far that is looked."""
        self._work.carry()
        most_bytes = min(max_bytes, self._queue.max_bytes // _CLAIM_SHARE)
        with self._database.connection(Kind.READER) as connection:
            found, reached = self._work.frontier.look_at_stream(
                connection, stream, after=after, most_messages=max_messages, most_bytes=most_bytes
            )
        self._bury(found.damaged)
        return found, reached

    @healing
    def lease(self, messages: Sequence[StoredMessage]) -> list[StoredMessage]:
        """Hold messages, so that nobody takes them out of the queue; return those that still were in it."""
        self._work.carry()
        if not messages:
            return []
        held = []
        with self._database.transaction(Kind.READER) as connection:
            self._begin(connection)
            for message in messages:
                connection.execute(sql.LEASE, (message.position, message.reqid))
                if connection.changes():
                    held.append(message)
        return held

    @property
    def unsettled(self) -> set[int]:
        """Positions of messages that were sent by themselves and whose outcome is not known; for the courier to keep.

        Their leases outlive this reader, so that the next one knows, too.
        """
        return self._work.unsettled

    @healing
    def release(self, messages: Iterable[StoredMessage]) -> None:
        """End the leases of messages that stay in the queue."""
        self._work.carry()
        with self._database.transaction(Kind.READER) as connection:
            self._begin(connection)
            connection.executemany(sql.END_FLIGHT, [(message.position,) for message in messages])

    def _upkeep(self) -> tuple[int, int, bool]:
        """A step of emptying the 1.x table and of removing what is too old; and whether 1.x's backlog is not all moved."""
        with self._database.connection(Kind.READER) as connection:
            is_filled = bool(connection.execute(sql.INLET_FILLED).get)
        if not is_filled and self._queue.expiry is None:
            return 0, 0, False
        with self._database.transaction(Kind.READER) as connection:
            self._begin(connection)
            moved = move_inlet(
                connection, self._queue.meta, self._queue.place.system_version, now_ms=now_ms()
            )
            expired = 0 if self._queue.expiry is None else self._queue.expiry.expire(connection)
            discarded = self._keep_dead_share(connection) if moved.rows else 0
            only_backlog = bool(connection.execute(sql.BACKLOG_LEFT, (self._queue.meta.inlet_boundary,)).get)
        moved.say_buried(self._database.path)
        self._queue.dead_discarded.note(discarded)
        self._queue.expired.note(expired)
        self._work.checkpoint_if_due()
        return expired, moved.rows, only_backlog

    def _bury(self, damaged: Sequence[StoredMessage]) -> None:
        if not damaged:
            return
        with self._database.transaction(Kind.READER) as connection:
            self._begin(connection)
            bury_damaged(connection, damaged, now_ms=now_ms())
            discarded = self._keep_dead_share(connection)
        self._queue.dead_discarded.note(discarded)
        self._queue.damaged.note(len(damaged))

    def give_back(self) -> None:
        """Hold nothing any more: what was claimed and not settled may be trimmed, and is found again. Never raises."""
        self._work.frontier.start_over()
        with suppress(QueueError), self._database.transaction(Kind.READER) as connection:
            self._work.void_leases(connection)

    def _anything_waits(self) -> bool:
        # Not by the books: where they were damaged, the messages are still to be delivered.
        with self._database.connection(Kind.READER) as connection:
            return bool(connection.execute(sql.ANY_WAITING).get)

    def _begin(self, connection: apsw.Connection) -> None:
        self._work.begin(connection, now_ms=now_ms())

    @healing
    def settle(
        self,
        settlements: Sequence[Settlement],
        *,
        rule_hits: dict[int, int] | None = None,
        batch: FrozenBatch | None = None,
    ) -> None:
        """Acknowledge: take messages out of the queue, each under its fate; one transaction.

        ``rule_hits`` adds to the counts of the rules that dropped the blacklisted ones. ``batch`` ends with it: its members that are
        not settled are back in the queue.
        """
        self._work.carry()
        now = now_ms()
        heard = any(settlement.fate in (Fate.ACCEPTED, Fate.DROPPED) for settlement in settlements)
        with self._database.transaction(Kind.READER) as connection:
            self._begin(connection)
            settle(connection, settlements, now_ms=now, are_leased=batch is None)
            died = any(settlement.fate is Fate.DEAD for settlement in settlements)
            discarded = self._keep_dead_share(connection) if died else 0
            for rule_id, hits in (rule_hits or {}).items():
                connection.execute(sql.HIT_RULE, (hits, rule_id))
            if batch is not None:
                end_batch(connection, batch.batch_id)
            if heard:
                self._note_success(connection, now)
        self._queue.dead_discarded.note(discarded)
        if heard:
            self._may_be_unexplained = self._failing = False
        self._work.checkpoint_if_due()

    @healing
    def reject_unexplained(self, settlement: Settlement, origin: str) -> bool:
        """Make a message a dead letter whose rejection had no protocol body.

        True when this was the fifth in a row from the server at ``origin``, over restarts too. Then the server is to be
        suspected, and the five are back in the queue in their old places.
        """
        self._work.carry()
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
        self._work.carry()
        with self._database.transaction(Kind.READER) as connection:
            self._begin(connection)
            connection.execute(sql.READER_FAILED, (now_ms(), note.text, note.status, note.retry_at_ms))
            save_server(connection, origin, facts, now_ms=now_ms())
        self._failing = True
        self._work.checkpoint_if_due()

    # The server

    def next_attempt_ms(self) -> int | None:
        """When the last failure's next attempt was to be made, in milliseconds since the epoch; None: nothing failed since."""
        with self._database.connection(Kind.READER) as connection:
            at: int | None = connection.execute(sql.NEXT_ATTEMPT).get
        return at

    @healing
    def load_server(self, origin: str) -> ServerFacts:
        """What is known of a server."""
        with self._database.connection(Kind.READER) as connection:
            return read_server(connection, origin)

    @healing
    def save_server(self, origin: str, facts: ServerFacts) -> None:
        """Remember what was learned of a server."""
        with self._database.transaction(Kind.READER) as connection:
            save_server(connection, origin, facts, now_ms=now_ms())

    # Streams that wait

    @healing
    def waiting_streams(self) -> list[WaitingStream]:
        """The streams that were told to wait when the last reader wrote it down."""
        with self._database.connection(Kind.READER) as connection:
            return list(read_waiting_streams(connection, _MOST_STREAMS))

    @healing
    def note_waiting_stream(self, message: StoredMessage, note: FailureNote) -> int:
        """Write down that a stream must wait because of its head; return how often that was tried in vain."""
        self._work.carry()
        stream = (message.category, message.data_type)
        now = now_ms()
        with self._database.transaction(Kind.READER) as connection:
            self._begin(connection)
            connection.execute(sql.STREAM_WAITS, (*stream, now, note.retry_at_ms, note.text))
            attempt = (message.position, now, note.retry_at_ms, note.status, note.text)
            attempts: int = connection.execute(sql.NOTE_ATTEMPT, attempt).get
        self._work.checkpoint_if_due()
        return attempts

    @healing
    def note_flowing_stream(self, stream: Stream, head: int | None) -> None:
        """Write down that a stream flows again; ``head``: the position of the message that it waited for."""
        self._work.carry()
        with self._database.transaction(Kind.READER) as connection:
            self._begin(connection)
            connection.execute(sql.STREAM_FLOWS, stream)
            if head is not None:
                connection.execute(sql.END_ATTEMPT, (head,))

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
            self._work.checkpoint_if_due()
            # Some old file has no auto-vacuum: its space is used again, but cannot be given back.
            if left < free:
                return True
        if self._vacuumed:
            self._database.checkpoint(Kind.READER)  # only this shortens the file
            self._vacuumed = False
        mend(self._database)
        self._tidied = True
        return False
