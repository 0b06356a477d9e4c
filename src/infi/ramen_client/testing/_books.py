"""The test server's books: the scripts, what came, what was stored, and which of it again.

One lock (a condition) guards everything here; it is never held while a socket is used or a reply function runs.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING

from infi.ramen_client.testing._received import Received, ReceivedBatch, Refused, key_of
from infi.ramen_client.testing.replies import Accept, BatchReply, Refuse, Reply, stores
from infi.ramen_protocol import BatchId, Code, Dedupe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_FIRST_NUMBER = 1


class Books:
    """Lists of what came, each keeping the newest ``keep`` (None: all); counts and keys, which forget nothing."""

    def __init__(self, keep: int | None) -> None:
        self._changed = threading.Condition()
        self._received: deque[Received] = deque(maxlen=keep)
        self._accepted: deque[Received] = deque(maxlen=keep)
        self._duplicates: deque[Received] = deque(maxlen=keep)
        self._refused: deque[Refused] = deque(maxlen=keep)
        self._batches: deque[ReceivedBatch] = deque(maxlen=keep)
        self._received_count = 0
        self._batch_count = 0
        self._keys: set[bytes] = set()
        self._keys_of_version_1: set[bytes] = set()
        self._lanes: dict[str, tuple[BatchId, tuple[Reply, ...]]] = {}
        self._fault: Exception | None = None
        self._script: deque[Reply] = deque()
        self._batch_script: deque[BatchReply] = deque()

    def write_script(self, replies: Iterable[Reply]) -> None:
        """Append replies to messages of version 1."""
        with self._changed:
            self._script.extend(replies)

    def write_batch_script(self, replies: Iterable[BatchReply]) -> None:
        """Append replies to batches."""
        with self._changed:
            self._batch_script.extend(replies)

    def next_reply(self) -> Reply | None:
        """Take the next reply to a message of version 1."""
        with self._changed:
            return self._script.popleft() if self._script else None

    def next_batch_reply(self) -> BatchReply | None:
        """Take the next reply to a batch."""
        with self._changed:
            return self._batch_script.popleft() if self._batch_script else None

    def received(self) -> list[Received]:
        """All messages that came."""
        with self._changed:
            return list(self._received)

    def accepted(self) -> list[Received]:
        """Those that were stored, each at its first time."""
        with self._changed:
            return list(self._accepted)

    def duplicates(self) -> list[Received]:
        """Those that were stored before."""
        with self._changed:
            return list(self._duplicates)

    def refused(self) -> list[Refused]:
        """The requests that were no messages."""
        with self._changed:
            return list(self._refused)

    def batches(self) -> list[ReceivedBatch]:
        """All batches that could be read."""
        with self._changed:
            return list(self._batches)

    @property
    def fault(self) -> Exception | None:
        """What a reply function raised first."""
        return self._fault

    def fail(self, error: Exception) -> None:
        """Note that a reply function failed."""
        with self._changed:
            self._fault = self._fault or error
            self._changed.notify_all()

    def note_refused(self, request: Refused) -> None:
        """Note a request that was no message."""
        with self._changed:
            self._refused.append(request)
            self._changed.notify_all()

    def note(self, message: Received, dedupe: Dedupe) -> None:
        """Note a message of version 1, and store it if its reply does."""
        with self._changed:
            self._note_received(message)
            if message.reply is not None and stores(message.reply):
                key = key_of(message.path, message.reqid)
                known = self._keys if dedupe is Dedupe.MESSAGE else self._keys_of_version_1
                (self._duplicates if key in known else self._accepted).append(message)
                self._keys.add(key)
                self._keys_of_version_1.add(key)
            self._changed.notify_all()

    def known_batch(self, batch: BatchId, dedupe: Dedupe) -> tuple[Reply, ...] | Refuse | None:
        """Give what the batch's records got before, if it is the last of its lane, or how it is refused; None: it is new."""
        with self._changed:
            return self._known_batch(batch, dedupe)

    def note_batch(self, batch: ReceivedBatch, dedupe: Dedupe) -> ReceivedBatch:
        """Note a batch and its records, and store those that are accepted, if its reply stores; give it back as it was noted.

        It is recognised here once more, for another connection may have been quicker: then it gets what that one got.
        """
        with self._changed:
            if stores(batch.reply):
                known = self._known_batch(batch.batch, dedupe)
                if isinstance(known, Refuse):
                    batch = replace(
                        batch, reply=known, messages=_with_replies(batch, [known] * len(batch.messages))
                    )
                elif known is not None:
                    batch = replace(batch, repeated=True, messages=_with_replies(batch, known))
                else:
                    replies = tuple(message.reply for message in batch.messages if message.reply is not None)
                    self._lanes[batch.batch.lane] = batch.batch, replies
            for message in batch.messages:
                self._note_received(message)
                if stores(batch.reply) and isinstance(message.reply, Accept):
                    self._store_record(message, dedupe, repeated=batch.repeated)
            self._batches.append(batch)
            self._batch_count += 1
            self._changed.notify_all()
        return batch

    def wait(self, reached: Callable[[Books], int], count: int, what: str, timeout_seconds: float) -> None:
        """Wait until the number is reached. Raises ``AssertionError`` at the end of the time, or for a fault."""
        with self._changed:
            done = self._changed.wait_for(
                lambda: self._fault is not None or reached(self) >= count, timeout_seconds
            )
            if self._fault is not None:
                raise AssertionError("a reply function failed") from self._fault
            if not done:
                raise AssertionError(f"{count} {what} within {timeout_seconds:g} s: {self._summary()}")

    def accepted_count(self) -> int:
        """Tell how many different messages were accepted. For ``wait``."""
        return len(self._keys)

    def received_count(self) -> int:
        """Tell how many messages came. For ``wait``."""
        return self._received_count

    def batch_count(self) -> int:
        """Tell how many batches came. For ``wait``."""
        return self._batch_count

    def summary(self) -> str:
        """Say in one line what came so far."""
        with self._changed:
            return self._summary()

    # For those who hold the lock.

    def _note_received(self, message: Received) -> None:
        self._received.append(message)
        self._received_count += 1

    def _known_batch(self, batch: BatchId, dedupe: Dedupe) -> tuple[Reply, ...] | Refuse | None:
        if dedupe is Dedupe.MESSAGE:
            return None
        last = self._lanes.get(batch.lane)
        if last is not None and last[0] == batch:
            return last[1]
        expected = _FIRST_NUMBER if last is None else last[0].number + 1
        if batch.number == expected:
            return None
        return Refuse(Code.LANE_CONFLICT, f"this lane's next number is {expected}, not {batch.number}")

    def _store_record(self, message: Received, dedupe: Dedupe, *, repeated: bool) -> None:
        key = key_of(message.path, message.reqid)
        again = repeated or (dedupe is Dedupe.MESSAGE and key in self._keys)
        (self._duplicates if again else self._accepted).append(message)
        self._keys.add(key)

    def _summary(self) -> str:
        replies = Counter(type(message.reply).__name__ for message in self._received)
        parts = [f"{len(self._keys)} accepted of {self._received_count} received"]
        if replies:
            parts.append("replies: " + ", ".join(f"{count} {name}" for name, count in replies.items()))
        if self._batch_count:
            parts.append(f"{self._batch_count} batches")
        if self._duplicates:
            parts.append(f"{len(self._duplicates)} duplicates")
        if self._refused:
            parts.append(f"{len(self._refused)} refused, the last with {self._refused[-1].reply}")
        if left := len(self._script) + len(self._batch_script):
            parts.append(f"{left} replies still in the script")
        return "; ".join(parts)


def _with_replies(batch: ReceivedBatch, replies: Sequence[Reply]) -> tuple[Received, ...]:
    return tuple(
        replace(message, reply=reply) for message, reply in zip(batch.messages, replies, strict=True)
    )
