"""The two locks of a queue, each a file of its own beside the database.

They are files of their own because closing any descriptor of the database file would drop SQLite's POSIX locks on it.

``WritersLock`` gives writers their turn in the order they came, since SQLite's own busy handler sleeps and starves; who had it wakes the
next (``_wakeup``). It is for fairness only: whoever waited ``PATIENCE_SECONDS`` goes on to ``BEGIN IMMEDIATE`` without it. 1.x writers never
take it, and a forked child can keep the lock of a dead parent.

``ReaderLock`` makes one reader the active one. It is a POSIX record lock, which dies with its process and is not inherited by
a forked child; since such a lock does not exclude the threads of its own process, a table in the process does that.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
import weakref
from contextlib import contextmanager
from typing import TYPE_CHECKING

from infi.ramen_client.errors import QueueBusy

from ._files import open_lock_file
from ._wakeup import Wakeup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from ._files import Access
    from ._patience import ReaderPatience

PATIENCE_SECONDS = 2.0
"""How long a writer waits for its turn before it relies on SQLite's busy time-out alone."""

_CONTENDED_FOR_SECONDS = 2.0
"""So long after it had to wait for the turn, a process takes the others to be still there. On a slow disk they meet seldom: where each
flush takes 10 ms, four processes push 2.6 times as much as with SQLite's own sync when that is 0.25 s, 3.1 times when it is 2 s (measured)."""

_LOOK_FOR_STOP_SECONDS = 0.01


class WritersLock:
    """The writers' queue, within this process by a thread lock and among processes by ``flock``.

    An exception of a signal handler may come between any two bytecodes, so ``release`` may be called in doubt and again.
    """

    def __init__(self, path: Path, access: Access) -> None:
        self._path = path
        self._access = access
        # Guards _descriptor, and gives this process's threads their turns. Reentrant only to know whose it is.
        self.reset_in_child()
        self._descriptor: int | None = None
        self._wakeup: Wakeup | None = None
        self._waited_at = float("-inf")

    @property
    def is_contended(self) -> bool:
        """Whether somebody else wanted the turn at the same time, now or a moment ago."""
        return time.monotonic() - self._waited_at < _CONTENDED_FOR_SECONDS

    def refuse_nesting(self) -> None:
        """Raise ``QueueBusy`` when this very thread has the turn (a signal handler in a push): it would wait for itself."""
        if self.is_mine():
            raise QueueBusy(
                f"{self._path.stem}: this thread is in the middle of another operation on the queue, which a signal handler "
                "interrupted; nothing was stored. Push from a thread, or later."
            )

    def acquire(self, patience: ReaderPatience | None = None) -> None:
        """Wait for the turn; after ``PATIENCE_SECONDS``, or what ``patience`` says, go on without it.

        Call ``refuse_nesting`` before.
        """
        if not (self._threads.acquire(blocking=False) or self._wait_for_threads(patience)):
            return
        if self._descriptor is None:
            self._descriptor = open_lock_file(self._path, self._access)
        if not _try_flock(self._descriptor):
            self._waited_at = time.monotonic()
            self._wait_for_flock(self._descriptor, patience)

    def _wait_for_threads(self, patience: ReaderPatience | None) -> bool:
        self._waited_at = time.monotonic()
        if patience is None:
            return self._threads.acquire(timeout=PATIENCE_SECONDS)
        began = time.monotonic()
        while not self._threads.acquire(timeout=_LOOK_FOR_STOP_SECONDS):
            if patience.is_over(began, PATIENCE_SECONDS):
                return False
        return True

    def _wait_for_flock(self, descriptor: int, patience: ReaderPatience | None) -> None:
        if self._wakeup is None:
            self._wakeup = Wakeup(descriptor)
        began = time.monotonic()
        while True:
            self._wakeup.wait()
            if _try_flock(descriptor):
                return
            if time.monotonic() - began > PATIENCE_SECONDS or (
                patience and patience.is_over(began, PATIENCE_SECONDS)
            ):
                return

    def release(self) -> None:
        """Give the turn to the next; harmless for who has it not."""
        if self.is_mine():
            try:
                if self._descriptor is not None:
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)
                    if self._wakeup is not None and self.is_contended:
                        self._wakeup.wake()
            finally:
                self._threads.release()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock, or go on without it, as ``acquire`` says."""
        self.refuse_nesting()
        try:
            self.acquire()
            yield
        finally:
            self.release()

    def close(self) -> None:
        """Close the descriptor; nobody may have the turn. The next turn opens it again."""
        self._wakeup = None  # it holds the file open, too
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def reset_in_child(self) -> None:
        """In a forked child: the parent's thread lock may have been held by a thread that is not here."""
        self._threads = threading.RLock()
        self.is_mine: Callable[[], bool] = self._threads._is_owned  # type: ignore[attr-defined]  # noqa: SLF001
        """Whether the calling thread has the turn."""


def _try_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_held: weakref.WeakValueDictionary[tuple[int, int], ReaderLock] = weakref.WeakValueDictionary()
_held_guard = threading.RLock()  # guards _held, and every open and close of a reader lock's file


class ReaderLock:
    """The right to be a queue's active reader; given back at the latest when nobody holds this object any more."""

    def __init__(self, path: Path, access: Access) -> None:
        self._path = path
        self._access = access
        self._descriptor: int | None = None
        self._key: tuple[int, int] | None = None

    def __del__(self) -> None:
        self.release()

    def acquire(self) -> bool:
        """Take the lock if nobody has it; never waits."""
        with _held_guard:
            # A file that this process holds locked must not even be opened: closing it again would drop the lock.
            try:
                found = self._path.stat(follow_symlinks=False)
            except FileNotFoundError:
                pass
            else:
                if (found.st_dev, found.st_ino) in _held:
                    return False
            descriptor = open_lock_file(self._path, self._access)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                os.close(descriptor)
                return False
            except OSError:
                os.close(descriptor)
                raise
            opened = os.fstat(descriptor)
            self._descriptor, self._key = descriptor, (opened.st_dev, opened.st_ino)
            _held[self._key] = self
            return True

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        with _held_guard:
            if self._descriptor is None or self._key is None:
                return
            _held.pop(self._key, None)
            os.close(self._descriptor)
            self._descriptor = self._key = None


def _forget_in_child() -> None:
    """A child of fork holds no record lock; closing the inherited descriptors leaves the parent's locks alone."""
    global _held_guard  # noqa: PLW0603
    _held_guard = threading.RLock()
    for lock in list(_held.values()):
        if lock._descriptor is not None:  # noqa: SLF001
            os.close(lock._descriptor)  # noqa: SLF001
            lock._descriptor = lock._key = None  # noqa: SLF001
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
