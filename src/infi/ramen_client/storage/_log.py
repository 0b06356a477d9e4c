"""Whether the log at its path is the one that this process's connections have open.

Somebody may delete it under a living queue. SQLite does not notice: what it goes on to commit would be gone with the last process that
has the file open. So it is looked at whenever a connection is lent (``Database``).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ._files import Watched

if TYPE_CHECKING:
    from pathlib import Path


class LogWatch:
    """Of one process and one queue."""

    def __init__(self, database: Path) -> None:
        self._path = f"{database}-wal"
        self._opened: Watched | None = None

    def note_opened(self) -> None:
        """A connection has opened the log; where another one had before, it is the same."""
        if self._opened is None and os.path.lexists(self._path):
            self._opened = Watched(self._path)

    def note_closed(self) -> None:
        """No connection has it open any more."""
        self._opened = None

    def is_in_place(self) -> bool:
        """Whether the one that is open lies at the path."""
        return self._opened is None or self._opened.is_in_place()

    def has_successor(self) -> bool:
        """Whether another one lies at the path."""
        return not self.is_in_place() and os.path.lexists(self._path)
