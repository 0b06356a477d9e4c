"""How long the active reader waits for other processes: as long as a writer does, but hardly at all once it is told to stop.

A program that holds the file for long (a 1.x writer at its size limit does) must not hold up the end of a ``run``. What is given
up here is only the reader's own business: a claim, or an acknowledgement, whose messages are sent again under the same reqids.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ._errors import BUSY_TIMEOUT_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

_STOPPING_SECONDS = 0.03
"""Longer than any push holds the file, so that a stop costs no acknowledgement while others are busy pushing."""

_LOOK_AGAIN_SECONDS = 0.001


def _never() -> bool:
    return False


class ReaderPatience:
    """An object of its own, since SQLite's busy handler must not hold the ``Database`` alive."""

    def __init__(self) -> None:
        self.is_told_to_stop: Callable[[], bool] = _never
        self._began = 0.0

    def reset(self) -> None:
        """Nobody reads now."""
        self.is_told_to_stop = _never

    def is_over(self, began: float, limit_seconds: float) -> bool:
        """Whether who has waited since ``began`` (monotonic) should give up."""
        waited = time.monotonic() - began
        return waited >= limit_seconds or (waited >= _STOPPING_SECONDS and self.is_told_to_stop())

    def handle_busy(self, calls: int) -> bool:
        """SQLite's busy handler: whether to try again, after a short sleep."""
        if calls == 0:
            self._began = time.monotonic()
        if self.is_over(self._began, BUSY_TIMEOUT_SECONDS):
            return False
        time.sleep(_LOOK_AGAIN_SECONDS)
        return True
