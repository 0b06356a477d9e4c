"""The flag that ends a run: set from any thread, and from a signal handler in the very thread that waits for it.

Not a ``threading.Event``: it takes a lock to set and to wait, and a signal handler that sets one while the thread below it is
inside ``wait`` holds that lock for ever. Here each step is one call into the interpreter, which no handler can split.
"""

from __future__ import annotations

import threading
from contextlib import suppress


class Stop:
    """Not set at first; once set, set for ever."""

    def __init__(self) -> None:
        self._is_set = False
        self._bell = threading.Lock()  # held by nobody in particular until ``set``
        self._bell.acquire()

    def is_set(self) -> bool:
        """Whether ``set`` was called."""
        return self._is_set

    def set(self) -> None:
        """Set it, and end every ``wait``. Never blocks."""
        self._is_set = True
        with suppress(RuntimeError):  # rung already
            self._bell.release()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until it is set, at most so long; whether it is."""
        if self._bell.acquire(timeout=timeout_seconds):
            self.set()  # the bell goes on to whoever else waits
        return self._is_set
