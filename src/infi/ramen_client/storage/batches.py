"""Frozen batches (protocol section 2): on disk and synced before the first byte is sent, until their outcome is known.

Invariants:

- A batch's members, their order, its lane, its number and its digest never change. Trimming, expiry, purging and looks pass over
  its members (``flight`` rows with its id).
- The numbers of a lane go up by one, in the transaction that freezes; a lane has one batch at a time.
- One transaction ends a batch: what was settled leaves the queue, what was not goes back to its place.
- The freezing is synced, whatever the queue's durability: a number that a power cut gave back would be used a second time.
- A batch that is found when the reader begins counts as sent. One that misses a member, or whose members are damaged, cannot be sent
  again as it was: its other members go back, counted as maybe twice, and its lane ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _statements as sql
from ._database import Kind
from ._heal import healing
from ._rows import StoredMessage, message_of, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import apsw

    from ._create import Place
    from ._database import Database
    from ._reader_work import ReaderWork

FRAMING = 1
"""The format of the records that digests are made of (protocol section 2)."""


@dataclass(frozen=True, slots=True)
class FrozenBatch:
    """A batch as it lies on disk."""

    batch_id: int
    lane: str
    number: int
    digest: str
    members: tuple[StoredMessage, ...]


class _MemberGone(Exception):
    """Raised to roll a freezing back."""


class FrozenBatches:
    """The batches of one queue; a part of ``ActiveReader``."""

    def __init__(self, work: ReaderWork, now_ms: Callable[[], int]) -> None:
        self._work = work
        self._now_ms = now_ms

    @property
    def database(self) -> Database:
        """The queue's file."""
        return self._work.database

    @property
    def place(self) -> Place:
        """Whose queue it is."""
        return self._work.place

    @healing
    def load(self, digest_of: Callable[[Sequence[StoredMessage]], str | None]) -> list[FrozenBatch]:
        """The batches that an earlier reader left, the oldest first; those that are not whole any more are ended.

        ``digest_of``: the digest of members as they would be sent now; another one than the batch's, or None, means not whole.
        """
        self._work.carry()
        whole: list[FrozenBatch] = []
        broken: list[FrozenBatch] = []
        with self.database.connection(Kind.READER) as connection:
            for batch_id, lane, number, framing, digest, messages in list(
                connection.execute(sql.READ_BATCHES)
            ):
                members = [
                    message
                    for row in connection.execute(sql.READ_MEMBERS, (batch_id,))
                    if (message := message_of(row)) is not None
                ]
                is_whole = (
                    framing == FRAMING and len(members) == messages and digest_of(members) == text_of(digest)
                )
                batch = FrozenBatch(batch_id, text_of(lane), number, text_of(digest), tuple(members))
                (whole if is_whole else broken).append(batch)
        for batch in broken:
            self.dissolve(batch, maybe_twice=True, end_lane=True)
        return whole

    @healing
    def free_lanes(self, origin: str) -> list[str]:
        """The lanes to a server that have no batch; those to other servers are forgotten."""
        self._work.carry()
        with self.database.transaction(Kind.READER) as connection:
            self._work.begin(connection, now_ms=self._now_ms())
            connection.execute(sql.FORGET_OTHER_LANES, (origin,))
            return [text_of(lane) for (lane,) in connection.execute(sql.READ_LANES, (origin,))]

    @healing
    def freeze(
        self, messages: Sequence[StoredMessage], *, lane: str, origin: str, digest: str
    ) -> FrozenBatch | None:
        """Freeze messages as the next batch of a lane, which is new if it is not known; synced when this returns.

        None, and nothing is done, when one of them is not in the queue any more.
        """
        self._work.carry()
        now = self._now_ms()
        try:
            with self.database.transaction(Kind.FULL) as connection:
                batch_id, number = self._freeze(connection, messages, lane, origin, digest, now)
        except _MemberGone:
            return None
        self._work.checkpoint_if_due()
        return FrozenBatch(batch_id, lane, number, digest, tuple(messages))

    def _freeze(
        self,
        connection: apsw.Connection,
        messages: Sequence[StoredMessage],
        lane: str,
        origin: str,
        digest: str,
        now: int,
    ) -> tuple[int, int]:
        self._work.begin(connection, now_ms=now)
        number: int = connection.execute(sql.NEXT_NUMBER, (lane, origin, now)).get
        batch_id: int = connection.execute(
            sql.FREEZE, (lane, number, FRAMING, digest, len(messages), now)
        ).get
        connection.executemany(
            sql.FREEZE_MEMBER,
            [(batch_id, place, message.position, message.reqid) for place, message in enumerate(messages)],
        )
        if connection.execute(sql.COUNT_MEMBERS, (batch_id,)).get != len(messages):
            raise _MemberGone
        return batch_id, number

    @healing
    def dissolve(self, batch: FrozenBatch, *, maybe_twice: bool, end_lane: bool) -> None:
        """End a batch of which nothing is settled: its members go back to their places.

        ``maybe_twice``: the server may have stored it. ``end_lane``: its numbers are of no use any more.
        """
        self._work.carry()
        with self.database.transaction(Kind.READER) as connection:
            self._work.begin(connection, now_ms=self._now_ms())
            if maybe_twice:
                members = connection.execute(sql.COUNT_MEMBERS, (batch.batch_id,)).get
                connection.execute(sql.COUNT_MAYBE_TWICE, (members,))
            end_batch(connection, batch.batch_id)
            if end_lane:
                connection.execute(sql.END_LANE, (batch.lane,))


def end_batch(connection: apsw.Connection, batch_id: int) -> None:
    """Take the batch away, in a running transaction; members that are still in the queue are free again."""
    connection.execute(sql.END_MEMBERS, (batch_id,))
    connection.execute(sql.END_BATCH, (batch_id,))
