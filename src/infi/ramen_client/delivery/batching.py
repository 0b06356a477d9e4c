"""Batches on the way (protocol section 2): what goes into one, its frozen life, and what the answer means for its members.

    lines ── records, digest (``drafts``) ── freeze (synced) ── POST ── answer ── settle and end
                                   └────────── again, as it is ──────┘

Invariants:

- Nothing of a batch is sent before it lies frozen on disk, and while its outcome is unknown it is sent again as it is: same records,
  lane, number and digest. Only the content coding may change.
- A batch dissolves (its members go back to their places) only where nothing was stored for certain, or, counted as maybe twice, where
  the server will never say: its lane is in conflict, or its path has been gone for ``_GONE_SECONDS``.
- Batches form without waiting: what is there goes. While one is under way the next grows by itself.

**A batch that is refused as a whole** (400, say) holds a message that the server cannot take, or one that it cannot frame. Its members
come back, and the next batches are half as large as what is under suspicion, until a single one is refused: that is the one, and
becomes a dead letter. So one in a thousand costs some ten requests, and takes none of its neighbours with it.
"""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING

from infi.ramen_protocol import (
    BATCH_CONTENT_TYPE,
    BatchId,
    Coding,
    batch_digest,
    compress_batch,
    max_batch_answer_bytes,
)

from .drafts import Draft, record_of
from .exchange import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from infi.ramen_client.storage import ActiveReader, FrozenBatch, StoredMessage
    from infi.ramen_protocol import BatchOffer, Envelope

    from .judging import Headers

_MOST_BYTES = 2 * 1024 * 1024
"""Of plain bytes in a batch, whatever the server takes: some are in memory at once. A message that is larger goes alone."""

_RECORD_OVERHEAD_BYTES = 512
"""What a record takes beside its payload, as a rule. Where it is more, the server says so (413)."""

GONE_SECONDS = 3600


@dataclass(slots=True, eq=False)
class Sending:
    """A frozen batch on its way."""

    batch: FrozenBatch
    coding: Coding = Coding.GZIP
    """The one that it was sent in last."""
    plain_bytes: int = 0
    body: bytes | None = field(default=None, repr=False)
    """Its records under that coding, until they are sent for the first time."""
    is_doubtful: bool = False
    """Whether it may have been stored: an attempt ended without an outcome."""
    gone_since: float | None = None
    """Since when its path is not there."""
    not_before: float = 0.0
    has_coding_left: bool = True
    """Whether there is another coding to try, after one was refused."""


@dataclass(slots=True)
class Batcher:
    """The batches of one queue towards one server. Used by one thread."""

    reader: ActiveReader
    origin: str
    envelope: Callable[[StoredMessage], Envelope]
    waiting: deque[Sending] = field(default_factory=deque)
    """Frozen, and to be sent (again)."""
    _free_lanes: list[str] = field(default_factory=list)
    _suspects: set[int] = field(default_factory=set)
    _draft: Draft | None = None

    def load(self) -> list[StoredMessage]:
        """Take up what an earlier reader left; return the members of the batches that wait now."""
        frozen = self.reader.batches.load(self._digest_of)
        self._free_lanes = self.reader.batches.free_lanes(self.origin)
        self.waiting.extend(Sending(batch, is_doubtful=True) for batch in frozen)
        return [message for batch in frozen for message in batch.members]

    def limits(self, offer: BatchOffer, learned_bytes: int | None) -> tuple[int, int]:
        """How many messages and plain bytes the next batch may take."""
        most_bytes = min(offer.bytes, _MOST_BYTES, offer.bytes if learned_bytes is None else learned_bytes)
        return offer.messages, max(1, most_bytes - offer.messages * _RECORD_OVERHEAD_BYTES)

    def portion(self, messages: list[StoredMessage]) -> list[StoredMessage]:
        """The first of these that may go in one batch: fewer where some are under suspicion."""
        if self._suspects.isdisjoint(message.position for message in messages):
            return messages
        return messages[: max(1, len(self._suspects) // 2)]

    def draft(self, messages: list[StoredMessage], coding: Coding) -> None:
        """Begin to make messages ready for the next batch, which may turn out to be another one."""
        self._draft = Draft(messages, coding, self.envelope)

    @property
    def drafted(self) -> list[StoredMessage]:
        """What is made ready, or is being made; empty: nothing."""
        return self._draft.messages if self._draft else []

    def go_on(self) -> bool:
        """Do a piece of the work on the draft; False when there is nothing to do."""
        if self._draft is None or self._draft.is_complete:
            return False
        self._draft.go_on()
        return True

    def freeze(
        self, messages: list[StoredMessage], coding: Coding
    ) -> tuple[Sending | None, list[StoredMessage]]:
        """Freeze messages as a batch; None when one is not in the queue any more.

        Also those that no record can be made of, which are not in the batch: then nothing is frozen.
        """
        draft = self._draft
        if draft is not None and (draft.messages == messages or draft.shares(messages)):
            self._draft = None
        if draft is None or draft.messages != messages:
            draft = Draft(messages, coding, self.envelope)
        while not draft.is_complete:
            draft.go_on()
        if draft.faulty:
            return None, draft.faulty
        lane = self._free_lanes.pop() if self._free_lanes else token_hex(16)
        try:
            frozen = self.reader.batches.freeze(messages, lane=lane, origin=self.origin, digest=draft.digest)
        except BaseException:
            self._free_lanes.append(lane)
            raise
        if frozen is None:
            self._free_lanes.append(lane)
            return None, []
        return Sending(frozen, draft.coding, draft.plain_bytes, draft.body), []

    def request(
        self, sending: Sending, headers: Headers, *, path: str, coding: Coding, timeout_seconds: float
    ) -> Request:
        """The POST of a batch."""
        batch = sending.batch
        body, sending.body = sending.body, None
        if body is None or sending.coding is not coding:
            plain = self._plain(batch.members)
            sending.coding, sending.plain_bytes = coding, len(plain)
            body = compress_batch(plain, coding)
        lines = {
            **dict(headers),
            "Content-Type": BATCH_CONTENT_TYPE,
            "Content-Encoding": coding.label,
            "Ramen-Batch-Id": BatchId(batch.lane, batch.number, batch.digest).header(),
        }
        if coding is Coding.IDENTITY:
            del lines["Content-Encoding"]
        return Request(
            self.origin + path,
            tuple(lines.items()),
            body,
            timeout_seconds,
            max_answer_bytes=max_batch_answer_bytes(len(batch.members)),
        )

    def ended(self, sending: Sending) -> None:
        """Its members were settled one by one, and its lane goes on."""
        self._free_lanes.append(sending.batch.lane)

    def left(self, messages: Iterable[StoredMessage]) -> None:
        """Messages left the queue, in a batch or not: they are under suspicion no more."""
        if self._suspects:
            self._suspects.difference_update(message.position for message in messages)

    def refused(self, sending: Sending) -> bool:
        """It was refused as a whole; True when it holds a single message, which is the one. Else it is dissolved."""
        members = sending.batch.members
        if len(members) == 1:
            return True
        self.dissolve(sending)
        self._suspects = {message.position for message in members}
        return False

    def dissolve(self, sending: Sending, *, maybe_twice: bool = False, end_lane: bool = False) -> None:
        """Its members go back to their places."""
        self.reader.batches.dissolve(sending.batch, maybe_twice=maybe_twice, end_lane=end_lane)
        if not end_lane:
            self._free_lanes.append(sending.batch.lane)

    def _digest_of(self, members: Sequence[StoredMessage]) -> str | None:
        try:
            return batch_digest(self._plain(members))
        except (ValueError, zlib.error):
            return None

    def _plain(self, members: Iterable[StoredMessage]) -> bytes:
        return b"".join(record_of(message, self.envelope) for message in members)
