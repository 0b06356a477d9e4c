"""Rate limits: one token bucket for each pair of token and sender.

A bucket holds up to ``burst`` messages and fills by ``per_second``. A pair without a bucket has a full one. At most
``MAX_BUCKETS`` are kept; the one unused longest goes, which at worst gives its pair a full bucket again.
"""

from __future__ import annotations

from collections import OrderedDict

MAX_BUCKETS = 10_000


class RateLimiter:
    """Used by one thread. ``per_second`` None: nothing is limited, nothing is kept."""

    def __init__(self, per_second: float | None, burst: int) -> None:
        self._per_second = per_second
        self._burst = float(burst)
        self._buckets: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    def take(self, token: str, sender: str, now: float) -> float | None:
        """Take one message out of the pair's bucket at ``now`` (monotonic seconds).

        Returns None when it was there, else after how many seconds it will be; nothing is taken then.
        """
        if self._per_second is None:
            return None
        pair = (token, sender)
        level, since = self._buckets.pop(pair, (self._burst, now))
        level = min(self._burst, level + max(0.0, now - since) * self._per_second)
        wait = None if level >= 1 else (1 - level) / self._per_second
        self._buckets[pair] = (level if wait is not None else level - 1, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return wait

    def __len__(self) -> int:
        return len(self._buckets)
