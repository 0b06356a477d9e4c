"""What one child process measures of itself, by Linux's books.

Imported by children in environments other than ours, so it needs the standard library only.
"""

from __future__ import annotations

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
    written_before = _written_bytes()
    cpu_before = time.process_time()
    measurement.started = time.monotonic()
    yield measurement
    measurement.ended = time.monotonic()
    measurement.cpu_seconds = time.process_time() - cpu_before
    measurement.written_bytes = _written_bytes() - written_before
    measurement.peak_bytes = memory_bytes("VmHWM")


def memory_bytes(name: str) -> int:
    """Return a line of ``/proc/self/status``: ``VmRSS`` is resident now, ``VmHWM`` its peak.

    ``ru_maxrss`` will not do for the peak: it is inherited over fork and exec, so a small child of a large
    parent would report the parent's.
    """
    return _number(Path("/proc/self/status"), name) * 1024


def _written_bytes() -> int:
    """Return the bytes that this process made the kernel write to storage so far (proc(5), ``write_bytes``)."""
    return _number(Path("/proc/self/io"), "write_bytes")


def _number(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise LookupError(f"{file} has no line {name!r}")
