"""Files that are replaced while they are in use: the token's, the certificates'. What changed is told once it keeps still.

Somebody who replaces a file may write it in pieces, or two files that belong together one after the other. So a change
counts when two looks, ``LOOK_SECONDS`` apart, have seen the same: it is told one to two seconds after the last write, and what is in
use meanwhile stays in use. A look is one ``stat`` for each file, and follows symbolic links, so that a mounted secret whose
directory is exchanged has changed, too.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LOOK_SECONDS = 1.0
"""So often is looked, where requests go out more often than that; else at each request."""

_Stamp = tuple[int, int, int, int] | None


class FileWatch:
    """Tells once of each change to any of ``paths`` since it was built. Build it before reading the files."""

    __slots__ = ("_monotonic", "_next_look", "_paths", "_seen", "_told")

    def __init__(self, paths: Sequence[str], monotonic: Callable[[], float] = time.monotonic) -> None:
        self._paths = paths
        self._monotonic = monotonic
        self._told = self._seen = self._look()
        self._next_look = monotonic() + LOOK_SECONDS

    def changed(self) -> bool:
        """Whether the files are other ones than at the last True (or at the start), and have kept still."""
        now = self._monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_SECONDS
        before, self._seen = self._seen, self._look()
        if self._seen == self._told or self._seen != before:
            return False
        self._told = self._seen
        return True

    def _look(self) -> tuple[_Stamp, ...]:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: str) -> _Stamp:
    """What differs between a file and its successor; None for one that cannot be reached."""
    try:
        found = os.stat(path)  # noqa: PTH116 - one system call, made again and again
    except (OSError, ValueError):
        return None
    # The time of change, not of writing: who mends a file by chmod, or puts an old copy back, changes it, too.
    return found.st_dev, found.st_ino, found.st_size, found.st_ctime_ns
