"""How long one thing waits that fails by itself: a stream that the server refuses, the reader after a fault of its own.

Full jitter: each delay is drawn from between 0 and a ceiling, which is 1 s after the first failure in a row and doubles up to
the caller's limit. A time that the server named (``Retry-After``) is the least that is waited; what is added on top is at most
as much again, so that a server which paces its clients is not waited for much longer than it asked. Pure: no clock, no
sleeping; randomness is passed in. What is due to the server as a whole is the business of ``pacing``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from infi.ramen_protocol import MAX_RETRY_AFTER_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_CEILING_SECONDS = 1.0

MAX_DOUBLINGS = 12  # 4096 s is above every limit that a configuration may set (3600 s)


class Backoff:
    """The state of waiting for one thing that fails: how often in a row it has.

    ``random`` gives floats from 0 (included) to 1 (excluded), as ``random.random`` does.
    """

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._failures = 0

    def failed(self, limit_seconds: float, server_said_seconds: float | None = None) -> float:
        """Count one more failure; the seconds to wait before the next attempt.

        Without a time from the server: from 0 to ``min(limit_seconds, 2 ** (failures in a row - 1))``. With one
        (capped at an hour): from that time to, at most, twice it.
        """
        ceiling = min(limit_seconds, FIRST_CEILING_SECONDS * (1 << self._failures))
        self._failures = min(self._failures + 1, MAX_DOUBLINGS)
        least = min(max(server_said_seconds or 0.0, 0.0), MAX_RETRY_AFTER_SECONDS)
        # "Retry-After: 0" or a date of just now must not make a tight loop: the ordinary jitter applies.
        spread = min(ceiling, least) if least >= FIRST_CEILING_SECONDS else ceiling
        return least + self._random() * spread

    def succeeded(self) -> None:
        """Forget the failures: the next one waits at most a second again."""
        self._failures = 0
