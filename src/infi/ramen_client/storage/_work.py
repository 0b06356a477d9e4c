"""Who is at work on a file in this process, so that a fork, and whoever replaces the file, can wait for the end of it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from infi.ramen_client.errors import QueueError

from ._errors import BUSY_TIMEOUT_SECONDS
from ._locks import PATIENCE_SECONDS

if TYPE_CHECKING:
    from pathlib import Path

_FORK_PATIENCE_SECONDS = BUSY_TIMEOUT_SECONDS + 2 * PATIENCE_SECONDS
"""The longest that a transaction can wait for others. A fork that waited longer goes on; its child is refused the queue."""


class Work:
    """The pieces of work that are under way: whoever holds a connection or the writers' turn is in one, and may begin another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.reset_in_child()

    def reset_in_child(self) -> None:
        """In a forked child, where no other thread exists: nothing is under way."""
        self.guard = threading.RLock()
        """Guards everything below. Held by the forking thread over a fork."""
        self._ended = threading.Condition(self.guard)
        self._is_pausing = False
        self.threads: dict[int, int] = {}
        """What is under way (a number of its own), and in which thread."""

    def begin(self, work: int) -> None:
        """Note that the calling thread begins something; waits while others are kept away."""
        me = threading.get_ident()
        with self.guard:
            while self._is_pausing and me not in self.threads.values():
                self._ended.wait()
            self.threads[work] = me

    def end(self, work: int) -> None:
        """The end of it; harmless when it was noted before."""
        with self.guard:
            self.threads.pop(work, None)
            if self._is_pausing:
                self._ended.notify_all()

    def pause(self) -> None:
        """Keep other threads from beginning anything, wait for the end of what they have begun, and hold the guard until ``go_on``.

        After an error, and after ``_FORK_PATIENCE_SECONDS`` (``QueueError``), all is as before.
        """
        self.guard.acquire()
        try:
            self._is_pausing = True
            me = threading.get_ident()
            has_ended = self._ended.wait_for(
                lambda: all(thread == me for thread in self.threads.values()), _FORK_PATIENCE_SECONDS
            )
        except BaseException:
            self.go_on()
            raise
        if not has_ended:
            self.go_on()
            raise QueueError(f"{self._path}: a fork could not wait for a transaction to end")

    def go_on(self) -> None:
        """After ``pause``: let the others begin again."""
        self._is_pausing = False
        self._ended.notify_all()
        self.guard.release()
