"""What a store is to the collector: it commits submissions, and gives back what it holds.

Contract, which every store passes as one test suite:

- ``commit`` takes any number of submissions and stores each wholly or not at all. It returns after all are durable (as durable
  as the store is), with the outcome of each message; or it raises ``StoreUnavailable``, and nothing of any is stored.
- A message that is stored is stored once: one whose key (version 1 path, reqid) is remembered is a DUPLICATE, also when both came
  in the same ``commit``. How far a store remembers is ``dedupe`` and ``window_seconds``.
- ``Dedupe.MESSAGE``: the key counts for every message; batches have no lanes. ``Dedupe.BATCH``: a batch is the next of its lane
  and stored, whatever its messages' keys; or the last of its lane again (same number and digest), and ``Repeated``; or a
  ``LaneConflict``.
- ``commit`` and ``maintain`` are called by one thread at a time; everything else by any thread, at any time.
- Times are passed in, as integer milliseconds since the epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import orjson

from infi.ramen_protocol import Envelope, message_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from infi.ramen_protocol import BatchId, Dedupe

EXPORT_PAGE_MESSAGES = 1000
EXPORT_PAGE_BYTES = 4 * 1024 * 1024
"""What one page of an export holds in memory, and one message more."""


@dataclass(slots=True)
class NewMessage:
    """A message that was admitted. ``payload`` is one JSON text in UTF-8; ``token`` the name of the sender's token.

    Never changed, and not frozen for the same reason as the envelope.
    """

    envelope: Envelope
    payload: bytes = field(repr=False)
    token: str

    def key_text(self) -> bytes:
        """What makes it one of a kind; names and digits hold no NUL, so no two messages share it."""
        return f"{message_path(self.envelope)}\0{self.envelope.reqid}".encode()


@dataclass(frozen=True, slots=True)
class Submission:
    """What is stored wholly or not at all: one message of version 1 (no ``batch``), or a batch of version 2.

    ``messages`` are those of a batch's records that are to be stored; maybe none. ``answer`` is what the batch is answered when
    it is stored: a store with ``Dedupe.BATCH`` keeps it for the time that the batch comes again.
    """

    messages: tuple[NewMessage, ...]
    batch: BatchId | None = None
    answer: bytes = field(default=b"", repr=False)


class Outcome(Enum):
    """What became of a message."""

    STORED = "stored"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class Repeated:
    """The batch is the last of its lane, sent again. Nothing was stored; ``answer`` is what it was answered then."""

    answer: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class LaneConflict:
    """The batch is neither the next of its lane nor the last one again. Nothing was stored."""

    expected: int
    """The number of the lane's next batch."""


Committed = tuple[Outcome, ...] | Repeated | LaneConflict
"""What became of a submission: an outcome for each of its messages, or one of the other two for a batch."""


class StoreUnavailable(Exception):
    """Nothing was stored; ``reason`` is for the sender, and says nothing of the host."""

    def __init__(self, reason: str, retry_after_seconds: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """A message as it comes out again; ``position`` grows in the order of commit."""

    position: int
    received_at_ms: int
    token: str
    envelope: Envelope
    payload: bytes = field(repr=False)

    def as_ndjson(self) -> bytes:
        """Write the message as one line, with its end: its parts, and ``data``, the payload with its own digits."""
        envelope = self.envelope
        head = orjson.dumps(
            {
                "received_at": self.received_at_ms,
                "category": envelope.category,
                "system_serial": envelope.system_serial,
                "sender": envelope.sender,
                "data_type": envelope.data_type,
                "data_version": envelope.data_version,
                "system_version": envelope.system_version,
                "reqid": envelope.reqid,
            }
        )
        # In JSON a line end can only stand between values, where a space does as well.
        data = self.payload.replace(b"\n", b" ").replace(b"\r", b" ")
        return b'%b,"data":%b}\n' % (head[:-1], data)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which messages to export: those for which everything that is not None holds."""

    received_from_ms: int | None = None
    received_before_ms: int | None = None
    category: str | None = None
    data_type: str | None = None
    sender: str | None = None
    system_serial: int | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """What was ever stored here, and how many duplicates were recognised. Kept, not counted."""

    messages: int
    payload_bytes: int
    duplicates: int


class Store(Protocol):
    """Where messages go. See the module's docstring for what each implementation promises."""

    @property
    def dedupe(self) -> Dedupe:
        """How far it looks for duplicates."""

    @property
    def window_seconds(self) -> float | None:
        """For how long it remembers a message by its key, at least; it may change. None where nothing can be said."""

    def commit(self, submissions: Sequence[Submission], now_ms: int) -> list[Committed]:
        """Store them; say of each submission what became of it."""

    def maintain(self, now_ms: int) -> None:
        """Do what need not come before an answer. Called after each ``commit``."""

    def problem(self) -> str | None:
        """Say why a message would be refused now; None when it would be taken."""

    def free_bytes(self) -> int | None:
        """Tell the room for more data; None where there is no such number."""

    def totals(self) -> Totals:
        """Tell the books."""

    def export(self, selection: Selection) -> Iterator[StoredMessage]:
        """Give what is stored, by (time received, position), in bounded memory. What comes meanwhile may be in it."""

    def close(self) -> None:
        """Close everything; the store is of no use any more."""
