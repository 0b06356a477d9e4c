"""Facts of the machine, without which a figure says nothing."""

from __future__ import annotations

import os
import platform
import sqlite3
from datetime import UTC, datetime
from pathlib import Path


def facts(work: Path) -> dict[str, str]:
    """Return what to know of this machine and of the disk that ``work`` is on, in words."""
    load = os.getloadavg()[0]
    return {
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} ({_processor()})",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "file system of the work directory": _file_system(work),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "SQLite of Python's sqlite3": sqlite3.sqlite_version,
        "load before": f"{load:.2f}" + (" (not idle: look at the spread)" if load > 0.5 else ""),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _file_system(path: Path) -> str:
    """Return type and device of the mount that ``path`` is on (proc(5), ``mountinfo``)."""
    path = path.resolve()
    best, found = -1, "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        mount = Path(left.split()[4].replace("\\040", " "))
        # A later mount on the same point hides the earlier one, hence ">=".
        if path.is_relative_to(mount) and len(mount.parts) >= best:
            kind, device = right.split()[:2]
            best, found = len(mount.parts), f"{kind} on {device}"
    return found
