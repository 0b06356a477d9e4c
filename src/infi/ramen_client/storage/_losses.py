"""The log of losses: every message that is thrown away is said, in at most one line a minute.

What came within the minute is said with the next loss or use after it, and the rest at the end (``say_rest``: when the queue is
closed, dropped, or the interpreter ends).
"""

from __future__ import annotations

import logging
import time

logger = logging.getLogger("ramen_client")

_SAY_AGAIN_AFTER_SECONDS = 60.0


class LossLog:
    """Losses of one kind; ``text`` is completed by the count."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._unsaid = 0
        self._said_at: float | None = None

    def note(self, count: int) -> None:
        """So many messages were lost now; 0 only looks whether the minute is over."""
        self._unsaid += count
        if self._unsaid and (
            self._said_at is None or time.monotonic() - self._said_at >= _SAY_AGAIN_AFTER_SECONDS
        ):
            self.say_rest()

    def say_rest(self) -> None:
        """Say what is unsaid."""
        if self._unsaid:
            count, self._unsaid = self._unsaid, 0
            self._said_at = time.monotonic()
            logger.warning(self._text, count)
