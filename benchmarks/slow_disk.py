"""A disk whose flushes take long: ``strace`` holds up every sync of a process by so much, whatever it is."""

from __future__ import annotations

from benchmarks.harness import installed


def slow_flushes(milliseconds: int) -> tuple[str, ...]:
    """Return what to put before a command; raises ``RunError`` where ``strace`` is missing.

    Only syncs are stopped at (``--seccomp-bpf``); every other system call goes at its own speed.
    """
    return (
        installed("strace"), "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync,fsync",
        "-e", f"inject=fdatasync,fsync:delay_exit={milliseconds * 1000}",
    )  # fmt: skip
