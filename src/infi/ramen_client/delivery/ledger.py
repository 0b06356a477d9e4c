"""Settlements on their way to the disk: those of single messages are held for a moment and written together."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from infi.ramen_client.storage import Fate, Settlement

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infi.ramen_client.storage import ActiveReader, FrozenBatch, StoredMessage

HOLD_SECONDS = 0.05
"""How long an accepted message may wait for its settling: not longer than anybody who looks at the queue would notice."""

_MOST_HELD = 64
"""Settling one by one writes 23 kB a message to disk, 64 at a time 2 kB (measured)."""


class Ledger:
    """What has a fate and is still in the queue. When ``flush`` raises, it stays there, and is sent again."""

    def __init__(self, reader: ActiveReader, *, hold: bool, monotonic: Callable[[], float]) -> None:
        self._reader = reader
        self._hold = hold
        self._monotonic = monotonic
        self._held: list[Settlement] = []
        self._held_since = 0.0
        self._rule_hits: Counter[int] = Counter()
        self.handled = 0
        """How many messages have left the queue."""

    @property
    def holds(self) -> bool:
        """Whether anything waits to be written."""
        return bool(self._held)

    def hold(self, message: StoredMessage, fate: Fate) -> None:
        """Settle a message now or in a moment."""
        if not self._held:
            self._held_since = self._monotonic()
        self._held.append(Settlement(message, fate))
        is_due = len(self._held) >= _MOST_HELD or self._monotonic() - self._held_since >= HOLD_SECONDS
        if not self._hold or is_due:
            self.flush()

    def hit(self, rule_id: int) -> None:
        """Count a message that a rule drops; written with the next settlements."""
        self._rule_hits[rule_id] += 1

    def settle(self, settlements: Sequence[Settlement], batch: FrozenBatch | None = None) -> None:
        """Settle messages at once, after what is held; ``batch`` ends with them."""
        self.flush()
        self._reader.settle(settlements, rule_hits=self._rule_hits, batch=batch)
        self._rule_hits.clear()
        self.handled += len(settlements)

    def flush(self) -> None:
        """Write what is held."""
        if self._held:
            held = self._held
            self._reader.settle(held, rule_hits=self._rule_hits)
            self.handled += len(held)
            self._held = []
            self._rule_hits.clear()
