"""How often a process asks its disk to make something certain, as ``strace`` sees it.

``strace`` stops a process at these calls only (``--seccomp-bpf``), which costs it some microseconds each. It stands behind the
process (``-D``) and not before it: so the child is the measured process itself, and a signal to it is one to that.

A thread goes at its own speed only from its first stop of that kind on: until then ``strace`` stops it at every call of any kind, and
one that never syncs would be slowed thirtyfold for good. So the first call of every new thread is one of those (``set_robust_list``, by
the C library), and is not counted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from benchmarks.harness import installed

if TYPE_CHECKING:
    from pathlib import Path

_SYNCS = ("fdatasync", "fsync", "sync_file_range", "msync")
_FIRST_OF_A_THREAD = "set_robust_list"
_CALL = re.compile(rf"^\d+ +(?:{'|'.join(_SYNCS)})\(", re.MULTILINE)
"""A call that began: a line that says how one ended (``resumed``), of a signal or of an exit looks different."""


def counting_syncs(into: Path) -> tuple[str, ...]:
    """Return what to put before a command, to have its syncs listed in a file; raises ``RunError`` where ``strace`` is missing."""
    calls = ",".join((*_SYNCS, _FIRST_OF_A_THREAD))
    return (installed("strace"), "-D", "-f", "--seccomp-bpf", "-o", str(into), "-e", f"trace={calls}")


def syncs(*listed_in: Path) -> int:
    """Return how many were made so far."""
    return sum(len(_CALL.findall(file.read_text())) for file in listed_in)
