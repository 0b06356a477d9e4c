"""A disk whose flushes take long: ``strace`` holds up every sync of a process by so much, whatever it is."""

from __future__ import annotations

from benchmarks.strace import stopping_at


def slow_flushes(milliseconds: int) -> tuple[str, ...]:
    """Return what to put before a command; raises ``RunError`` where ``strace`` is missing."""
    delay = f"inject=fdatasync,fsync:delay_exit={milliseconds * 1000}"
    return stopping_at(("fdatasync", "fsync"), "/dev/null", "-e", delay)
