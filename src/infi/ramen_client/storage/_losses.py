"""The log of losses: every message that is thrown away is said, in at most one line a minute.

What came within the minute is said with the next loss or use after it, and the rest at the end (``say_rest``: when the queue is
closed, dropped, or the interpreter ends). A forked child says nothing of what its parent lost.
"""

from __future__ import annotations

import logging
import os
import threading
import time

logger = logging.getLogger("ramen_client")

_SAY_AGAIN_AFTER_SECONDS = 60.0


class LossLog:
    """Losses of one kind; ``text`` is completed by the count. Threads may share it."""

    def __init__(self, level: int, text: str) -> None:
        self._level = level
        self._text = text
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        # Guards the next two; reentrant, since the garbage collector may come in between.
        self._guard = threading.RLock()
        self._unsaid = 0
        self._said_at: float | None = None

    def note(self, count: int) -> None:
        """So many messages were lost now; 0 only looks whether the minute is over.

        To be called after the transaction, so that what was rolled back is not said, and nobody waits for the log.
        """
        if count or self._unsaid:
            self._say(count, at_once=False)

    def say_rest(self) -> None:
        """Say what is unsaid."""
        if self._unsaid:
            self._say(0, at_once=True)

    def _say(self, count: int, *, at_once: bool) -> None:
        if self._pid != os.getpid():
            self._begin()
        with self._guard:
            self._unsaid += count
            now = time.monotonic()
            if not at_once and self._said_at is not None and now - self._said_at < _SAY_AGAIN_AFTER_SECONDS:
                return
            said, self._unsaid = self._unsaid, 0
            if said:
                self._said_at = now
        if said:
            logger.log(self._level, self._text, said)
