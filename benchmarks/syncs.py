"""How often a process asks its disk to make something certain, as ``strace`` sees it: it costs it some microseconds each time."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from benchmarks.strace import stopping_at

if TYPE_CHECKING:
    from pathlib import Path

_SYNCS = ("fdatasync", "fsync", "sync_file_range", "msync")
_CALL = re.compile(rf"^\d+ +(?:{'|'.join(_SYNCS)})\(", re.MULTILINE)
"""A call that began: a line that says how one ended (``resumed``), of a signal or of an exit looks different."""


def counting_syncs(into: Path) -> tuple[str, ...]:
    """Return what to put before a command, to have its syncs listed in a file; raises ``RunError`` where ``strace`` is missing."""
    return stopping_at(_SYNCS, str(into))


def syncs(*listed_in: Path) -> int:
    """Return how many were made so far."""
    return sum(len(_CALL.findall(file.read_text())) for file in listed_in)
