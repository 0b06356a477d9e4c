"""What the log says of outages: one warning when delivery stops working, one line when it works again.

Between them a changed reason is said, at most once a minute. A refused connection is no fault of the program: no traceback.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("ramen_client")

_SAY_AGAIN_AFTER_SECONDS = 60.0


class OutageLog:
    """Remembers whether delivery works, over the runs of one reader."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._began: float | None = None
        self._attempts = 0
        self._said = ""
        self._said_at = 0.0

    def failed(self, reason: str, origin: str, waiting: int) -> None:
        """An attempt failed; nothing is lost by it."""
        now = self._monotonic()
        self._attempts += 1
        if self._began is None:
            self._began = now
            logger.warning(
                "delivery to %s does not work: %s; retrying, %d waiting", origin, reason, waiting
            )
        elif reason != self._said and now - self._said_at >= _SAY_AGAIN_AFTER_SECONDS:
            logger.warning(
                "delivery to %s still does not work: %s; %d waiting", origin, reason, waiting
            )
        else:
            return
        self._said, self._said_at = reason, now

    def succeeded(self, origin: str) -> None:
        """The server took a message."""
        if self._began is None:
            return
        lasted = self._monotonic() - self._began
        logger.warning(
            "delivery to %s works again after %.0f s and %d failed attempts", origin, lasted, self._attempts
        )
        self._began = None
        self._attempts = 0
        self._said = ""
