"""A store in memory, of the kind ``dedupe="batch"``: for tests, trials, and as the pattern of stores that keep batches whole.

Version 1 by key, within a window of time; version 2 by lane. A lane is opened by its batch number 1. Then: the next number is
stored; the last number again, with the same digest, is answered as it was; anything else is a conflict.

It forgets everything when the process ends. It is bounded by ``max_bytes`` of payloads (nothing is taken beyond it),
``MAX_LANES`` and the ``MAX_ANSWERS_BYTES`` of their last answers, and ``MAX_KEYS``; the key or lane that is oldest goes.
"""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infi.ramen_protocol import Dedupe

from . import (
    Committed,
    LaneConflict,
    Outcome,
    Repeated,
    Selection,
    StoredMessage,
    StoreUnavailable,
    Submission,
    Totals,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from infi.ramen_protocol import BatchId

    from . import NewMessage

MAX_LANES = 10_000
MAX_ANSWERS_BYTES = 64 * 1024 * 1024
MAX_KEYS = 1_000_000
_FULL_RETRY_SECONDS = 30
_FIRST_NUMBER = 1


@dataclass(frozen=True, slots=True)
class _Lane:
    last: BatchId
    answer: bytes
    """Compressed: a thousand acceptances are 47 KB of the same words."""


class MemoryStore:
    """Holds at most ``max_bytes`` of payloads, and remembers version 1 messages for ``window_seconds``."""

    dedupe = Dedupe.BATCH

    def __init__(self, *, window_seconds: float = 3600, max_bytes: int = 256 * 1024 * 1024) -> None:
        self.window_seconds: float | None = window_seconds
        self._window_ms = int(window_seconds * 1000)
        self._max_bytes = max_bytes
        self._lock = threading.Lock()  # guards everything below
        self._messages: list[StoredMessage] = []
        self._keys: OrderedDict[bytes, int] = OrderedDict()
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()
        self._answers_bytes = 0
        self._payload_bytes = 0
        self._duplicates = 0

    def commit(self, submissions: Sequence[Submission], now_ms: int) -> list[Committed]:
        """Store them; there is nothing more durable here than the process."""
        wanted = sum(len(message.payload) for submission in submissions for message in submission.messages)
        with self._lock:
            if self._payload_bytes + wanted > self._max_bytes:
                raise StoreUnavailable("the collector's memory is full", _FULL_RETRY_SECONDS)
            return [self._store(submission, now_ms) for submission in submissions]

    def maintain(self, now_ms: int) -> None:
        """Forget the keys whose window is over."""
        with self._lock:
            while self._keys:
                key, seen_at = next(iter(self._keys.items()))
                if now_ms - seen_at < self._window_ms:
                    break
                del self._keys[key]

    def problem(self) -> str | None:
        """Say when there is no room."""
        return None if self.free_bytes() > 0 else "the memory for messages is full"

    def free_bytes(self) -> int:
        """Tell how many bytes of payloads still fit."""
        return self._max_bytes - self._payload_bytes

    def totals(self) -> Totals:
        """Tell the books."""
        with self._lock:
            return Totals(len(self._messages), self._payload_bytes, self._duplicates)

    def export(self, selection: Selection) -> Iterator[StoredMessage]:
        """Give what is stored now."""
        with self._lock:
            chosen = [message for message in self._messages if _is_selected(message, selection)]
        chosen.sort(key=lambda message: (message.received_at_ms, message.position))
        yield from chosen

    def close(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._messages, self._payload_bytes = [], 0

    def _store(self, submission: Submission, now_ms: int) -> Committed:
        if submission.batch is not None:
            return self._store_batch(submission.batch, submission, now_ms)
        return tuple(self._store_by_key(message, now_ms) for message in submission.messages)

    def _store_batch(self, batch: BatchId, submission: Submission, now_ms: int) -> Committed:
        lane = self._lanes.get(batch.lane)
        if lane is not None and lane.last == batch:
            self._duplicates += len(submission.messages)
            return Repeated(zlib.decompress(lane.answer))
        expected = _FIRST_NUMBER if lane is None else lane.last.number + 1
        if batch.number != expected:
            return LaneConflict(expected)
        for message in submission.messages:
            self._keep(message, now_ms)
        self._move_lane(batch, submission.answer)
        return (Outcome.STORED,) * len(submission.messages)

    def _move_lane(self, batch: BatchId, answer: bytes) -> None:
        former = self._lanes.pop(batch.lane, None)
        now = self._lanes[batch.lane] = _Lane(batch, zlib.compress(answer))
        self._answers_bytes += len(now.answer) - (0 if former is None else len(former.answer))
        while len(self._lanes) > MAX_LANES or self._answers_bytes > MAX_ANSWERS_BYTES:
            _, silent = self._lanes.popitem(last=False)
            self._answers_bytes -= len(silent.answer)

    def _store_by_key(self, message: NewMessage, now_ms: int) -> Outcome:
        key = message.key_text()
        seen_at = self._keys.get(key)
        if seen_at is not None and now_ms - seen_at < self._window_ms:
            self._duplicates += 1
            return Outcome.DUPLICATE
        self._keys[key] = now_ms
        self._keys.move_to_end(key)
        if len(self._keys) > MAX_KEYS:
            self._keys.popitem(last=False)
        self._keep(message, now_ms)
        return Outcome.STORED

    def _keep(self, message: NewMessage, now_ms: int) -> None:
        self._messages.append(
            StoredMessage(len(self._messages) + 1, now_ms, message.token, message.envelope, message.payload)
        )
        self._payload_bytes += len(message.payload)


def _is_selected(message: StoredMessage, selection: Selection) -> bool:
    envelope = message.envelope
    return (
        (selection.received_from_ms is None or message.received_at_ms >= selection.received_from_ms)
        and (selection.received_before_ms is None or message.received_at_ms < selection.received_before_ms)
        and selection.category in (None, envelope.category)
        and selection.data_type in (None, envelope.data_type)
        and selection.sender in (None, envelope.sender)
        and selection.system_serial in (None, envelope.system_serial)
    )
