"""Real measurements of this machine, by psutil, in sets as several programs on one host would push them.

The counters (processor time, bytes, packets) are the operating system's own, since the machine started, so a sample
says something however often it is taken. Each set has a source that always gives a sample and never pauses.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import psutil  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_MOST_PROCESSES = 5
_LIST_PROCESSES_EVERY_SECONDS = 1.0
"""Looking at every process takes some 20 ms."""


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of message: its names, and how to measure what is in it (a message for each item)."""

    category: str
    data_type: str
    data_version: str | int
    measure: Callable[[], Iterable[dict[str, Any]]]
    pause_seconds: float = 0.0


def samples(sources: tuple[Source, ...]) -> Iterator[tuple[Source, dict[str, Any]]]:
    """Measure for ever, one source after the other; each payload says when and where it was taken."""
    host = socket.gethostname()
    due = dict.fromkeys(sources, 0.0)
    while True:
        for source in sources:
            now = time.monotonic()
            if now < due[source]:
                continue
            due[source] = now + source.pause_seconds
            for measured in source.measure():
                yield source, {"at": datetime.now(UTC), "host": host, **measured}


def _cores() -> Iterator[dict[str, Any]]:
    for number, times in enumerate(psutil.cpu_times(percpu=True)):
        yield {"core": number, "seconds": times._asdict()}


def _memory() -> Iterator[dict[str, Any]]:
    yield {"memory": psutil.virtual_memory()._asdict(), "swap": psutil.swap_memory()._asdict()}


def _load() -> Iterator[dict[str, Any]]:
    one, five, fifteen = os.getloadavg()
    yield {"minutes_1": one, "minutes_5": five, "minutes_15": fifteen, "cores": psutil.cpu_count()}


def _file_systems() -> Iterator[dict[str, Any]]:
    yield {"mounted_at": "/", **psutil.disk_usage("/")._asdict()}
    for partition in psutil.disk_partitions():
        if partition.mountpoint == "/":
            continue
        try:
            usage = psutil.disk_usage(partition.mountpoint)._asdict()
        except OSError:  # a medium that is not in, or a mount that this user may not look at
            continue
        yield {"mounted_at": partition.mountpoint, "type": partition.fstype, **usage}


def _disks() -> Iterator[dict[str, Any]]:
    try:
        counters = psutil.disk_io_counters(perdisk=True) or {}
    except (OSError, NotImplementedError):  # some containers have no such counters
        return
    for name, counted in counters.items():
        if counted.read_bytes or counted.write_bytes:
            yield {"disk": name, **counted._asdict()}


def _interfaces() -> Iterator[dict[str, Any]]:
    for name, counted in psutil.net_io_counters(pernic=True).items():
        yield {"interface": name, **counted._asdict()}


def _scheduler() -> Iterator[dict[str, Any]]:
    yield {"processes": len(psutil.pids()), **psutil.cpu_stats()._asdict()}


def _busiest_processes() -> Iterator[dict[str, Any]]:
    fields = ["pid", "name", "cpu_percent", "memory_info", "num_threads"]
    every = [process.info for process in psutil.process_iter(fields)]
    every.sort(key=lambda process: process["cpu_percent"] or 0.0, reverse=True)
    for rank, process in enumerate(every[:_MOST_PROCESSES], 1):
        memory = process.pop("memory_info")
        yield {"rank": rank, **process, "resident_bytes": memory.rss if memory else None}


TELEMETRY = {
    "host": (
        Source("metrics", "cpu_core", "v1", _cores),
        Source("metrics", "memory", "v1", _memory),
    ),
    "devices": (
        Source("capacity", "file_system", "v1", _file_systems),
        Source("metrics", "disk_io", "v2", _disks),
    ),
    "processes": (
        Source("processes", "scheduler", "v1", _scheduler),
        Source("processes", "busiest", "v1", _busiest_processes, _LIST_PROCESSES_EVERY_SECONDS),
    ),
    "network": (
        Source("metrics", "load", 1, _load),
        Source("metrics", "network_interface", "v1", _interfaces),
    ),
}
"""The sets by name."""
