"""The flag that ends a run, and the sign that the run still turns.

A run looks at its flag at every turn, so how long it has not looked tells a thread that hangs (on a disk that does not answer, in a
lock, in a resolver) from one that waits: ``silent_seconds``.

The flag is set from any thread, and from a signal handler in the very thread that waits for it. So it is no ``threading.Event``: that takes
a lock to set and to wait, and a signal handler that sets one while the thread below it is inside ``wait`` holds that lock for ever.
Here each step is one call into the interpreter, which no handler can split.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Stop:
    """Not set at first; once set, set for ever."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._due = monotonic()
        self._is_set = False
        self._bell = threading.Lock()  # held by nobody in particular until ``set``
        self._bell.acquire()

    def is_set(self) -> bool:
        """Whether ``set`` was called. For the run itself: it shows that the run turns."""
        self._due = self._monotonic()
        return self._is_set

    def set(self) -> None:
        """Set it, and end every ``wait``. Never blocks."""
        self._is_set = True
        with suppress(RuntimeError):  # rung already
            self._bell.release()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until it is set, at most so long; whether it is. For the run itself."""
        self._due = self._monotonic() + timeout_seconds
        if self._bell.acquire(timeout=timeout_seconds):
            self.set()  # the bell goes on to whoever else waits
        self._due = self._monotonic()
        return self._is_set

    def silent_seconds(self) -> float:
        """For how long the run has neither looked at it nor said that it would wait. From any thread."""
        return max(0.0, self._monotonic() - self._due)
