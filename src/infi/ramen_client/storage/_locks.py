"""The two locks of a queue, each a file of its own beside the database.

They are files of their own because closing any descriptor of the database file would drop SQLite's POSIX locks on it.

``WritersLock`` gives writers their turn in the order they came, since SQLite's own busy handler sleeps and starves. It is for
fairness only: whoever waited ``PATIENCE_SECONDS`` goes on to ``BEGIN IMMEDIATE`` without it. 1.x writers never take it, and a
forked child can keep the lock of a dead parent.

``ReaderLock`` makes one reader the active one. It is a POSIX record lock, which dies with its process and is not inherited by
a forked child; since such a lock does not exclude the threads of its own process, a table in the process does that.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE_SECONDS = 2.0
"""How long a writer waits for its turn before it relies on SQLite's busy time-out alone."""

_LOCK_RETRY_SECONDS = 0.0001
"""A push holds the lock for some 0.1 to 1 ms, so a waiter that looks this often gets in soon after its end."""


def open_lock_file(path: Path, mode: int) -> int:
    """Open (creating if needed) a lock file; never through a symbolic link."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, mode)


class WritersLock:
    """The writers' queue, within this process by a thread lock and among processes by ``flock``."""

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._threads = threading.Lock()  # guards _descriptor, and gives this process's threads their turns
        self._descriptor: int | None = None

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock, or, after ``PATIENCE_SECONDS``, go on without it."""
        if not self._threads.acquire(timeout=PATIENCE_SECONDS):
            yield
            return
        try:
            if self._descriptor is None:
                self._descriptor = open_lock_file(self._path, self._mode)
            held = self._wait(self._descriptor)
            try:
                yield
            finally:
                if held:
                    fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def _wait(self, descriptor: int) -> bool:
        deadline: float | None = None
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                now = time.monotonic()
                if deadline is None:
                    deadline = now + PATIENCE_SECONDS
                elif now > deadline:
                    return False
                time.sleep(_LOCK_RETRY_SECONDS)
            else:
                return True

    def close(self) -> None:
        """Close the descriptor; nobody may be inside ``turn``. The next turn opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def reset_in_child(self) -> None:
        """In a forked child: the parent's thread lock may have been held by a thread that is not here."""
        self._threads = threading.Lock()


_held: dict[tuple[int, int], ReaderLock] = {}
_held_guard = threading.Lock()  # guards _held, and every open and close of a reader lock's file


class ReaderLock:
    """The right to be a queue's active reader."""

    def __init__(self, path: Path, mode: int) -> None:
        self._path = path
        self._mode = mode
        self._descriptor: int | None = None
        self._key: tuple[int, int] | None = None

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
            descriptor = open_lock_file(self._path, self._mode)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                os.close(descriptor)
                return False
            opened = os.fstat(descriptor)
            self._descriptor, self._key = descriptor, (opened.st_dev, opened.st_ino)
            _held[self._key] = self
            return True

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        with _held_guard:
            if self._descriptor is None or self._key is None:
                return
            del _held[self._key]
            os.close(self._descriptor)
            self._descriptor = self._key = None


def _forget_in_child() -> None:
    """A child of fork holds no record lock; closing the inherited descriptors leaves the parent's locks alone."""
    global _held_guard  # noqa: PLW0603
    _held_guard = threading.Lock()
    for lock in _held.values():
        if lock._descriptor is not None:  # noqa: SLF001
            os.close(lock._descriptor)  # noqa: SLF001
            lock._descriptor = lock._key = None  # noqa: SLF001
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)
