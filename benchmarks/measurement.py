"""What one child process measures of itself, and what can be seen of another, by Linux's books.

Imported by children in environments other than ours, so it needs the standard library only.
"""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Measurement:
    """One worker's measured section.

    ``started`` and ``ended`` are seconds of the monotonic clock, which all processes of a machine share;
    ``latencies`` are microseconds, one for each operation, or empty where single operations cannot be seen.
    """

    messages: int = 0
    started: float = 0.0
    ended: float = 0.0
    cpu_seconds: float = 0.0
    written_bytes: int = 0
    peak_bytes: int = 0
    latencies: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


@contextmanager
def measured() -> Iterator[Measurement]:
    """Measure the body: wall time, CPU time of all threads, bytes written, peak memory of the process."""
    measurement = Measurement()
    written_before = written_bytes()
    cpu_before = time.process_time()
    measurement.started = time.monotonic()
    yield measurement
    measurement.ended = time.monotonic()
    measurement.cpu_seconds = time.process_time() - cpu_before
    measurement.written_bytes = written_bytes() - written_before
    measurement.peak_bytes = memory_bytes("VmHWM")


def memory_bytes(name: str) -> int:
    """Return a line of ``/proc/self/status``: ``VmRSS`` is resident now, ``VmHWM`` its peak.

    ``ru_maxrss`` will not do for the peak: it is inherited over fork and exec, so a small child of a large
    parent would report the parent's.
    """
    return _number(Path("/proc/self/status"), name) * 1024


def written_bytes(process: int | str = "self") -> int:
    """Return the bytes that a process made the kernel write to storage so far (proc(5), ``write_bytes``)."""
    return _number(Path(f"/proc/{process}/io"), "write_bytes")


def cpu_seconds(process: int) -> float:
    """Return what another process and all its threads have used of the processor so far, user and system."""
    # proc(5), ``stat``: the fields behind the name in parentheses, of which user and system time are the 12th and 13th.
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _number(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise LookupError(f"{file} has no line {name!r}")
