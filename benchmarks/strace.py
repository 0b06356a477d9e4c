"""``strace`` before a command, in such a way that it stops it at a few calls only (``--seccomp-bpf``).

A thread goes at its own speed only from its first stop of that kind on: until then ``strace`` stops it at every call of any kind, and
one that never makes those few would be slowed thirtyfold for good. So the first call of every new thread is one of them
(``set_robust_list``, by the C library).

``strace`` stands behind the process (``-D``) and not before it: the child is the process itself, and a signal to it is one to that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.harness import installed

if TYPE_CHECKING:
    from collections.abc import Sequence

_FIRST_OF_A_THREAD = "set_robust_list"


def stopping_at(calls: Sequence[str], into: str, *more: str) -> tuple[str, ...]:
    """Return what to put before a command; what stops it is listed in a file. Raises ``RunError`` where ``strace`` is missing."""
    trace = ",".join((*calls, _FIRST_OF_A_THREAD))
    return (installed("strace"), "-D", "-f", "--seccomp-bpf", "-o", into, "-e", f"trace={trace}", *more)
