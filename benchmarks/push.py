"""How fast is a durable push, and how long may one take: one process alone, and four at one queue.

And the same question asked where the disk is slow, where a sync costs nothing (so that the processor's time is left), of many
messages at once, and of the bytes that go to the disk.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.catalogue import RAW, SQLITE_FULL, V1, V2, V2_NORMAL
from benchmarks.harness import Benchmark, Column, Figures, Run, RunError, Size, run_workers, summarise
from benchmarks.slow_disk import slow_flushes
from benchmarks.worker import BULK, Order

PROCESSES = 4
_MEMORY = Path("/dev/shm")
_VARIANTS = (RAW, V1, V2, V2_NORMAL)
_COLUMNS = (
    Column("rate", "pushes/s"),
    Column("p50_us", "p50 µs"),
    Column("p99_us", "p99 µs"),
    Column("max_us", "worst µs", over_rounds=max),
    Column("cpu_us", "CPU µs each", 1),
    Column("written_bytes", "written B each"),
    Column("peak_mib", "peak MiB", 1),
)


def measure(
    run: Run, *, processes: int, task: str = "push", flush_milliseconds: int = 0
) -> tuple[Figures, dict[str, str]]:
    """Push ``size.messages`` in all, by so many processes at once, on a disk whose flushes take so much longer."""
    before = slow_flushes(flush_milliseconds) if flush_milliseconds else ()
    orders = [
        Order(
            task=task,
            adapter=run.variant.adapter,
            directory=str(run.directory),
            options=run.variant.options,
            messages=run.size.messages // processes,
            worker=number,
        )
        for number in range(processes)
    ]
    measurements = run_workers(run.variant.environment.interpreter(), orders, before)
    return summarise(measurements), measurements[0].versions


def measure_without_sync(run: Run) -> tuple[Figures, dict[str, str]]:
    """Push by one process into memory (``/dev/shm``), where a sync is a system call that does nothing."""
    if not _MEMORY.is_dir():
        raise RunError(f"{_MEMORY} is missing")
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=_MEMORY) as directory:
        return measure(replace(run, directory=Path(directory)), processes=1)


ONE = Benchmark(
    name="push",
    title="Durable push of 1 KB samples, one process, one thread",
    variants=_VARIANTS,
    bases=("raw", "1.x"),
    headline="rate",
    columns=_COLUMNS,
    measure=partial(measure, processes=1),
    normal=Size(6000),
    quick=Size(200),
)
MANY = Benchmark(
    name="push-many",
    title=f"Durable push of 1 KB samples, {PROCESSES} processes at one queue",
    variants=_VARIANTS,
    bases=("raw", "1.x"),
    headline="rate",
    columns=_COLUMNS,
    measure=partial(measure, processes=PROCESSES),
    normal=Size(8000),
    quick=Size(400),
)


def _slow_disk(milliseconds: int, messages: int) -> Benchmark:
    return Benchmark(
        name=f"push-slow-disk-{milliseconds}ms",
        title=f"The same by {PROCESSES} processes on a disk whose flushes take {milliseconds} ms longer",
        variants=(RAW, SQLITE_FULL, V1, V2),
        bases=("raw", "SQLite FULL", "1.x"),
        headline="rate",
        columns=_COLUMNS,
        measure=partial(measure, processes=PROCESSES, flush_milliseconds=milliseconds),
        normal=Size(messages),
        quick=Size(80),
    )


SLOW_DISKS = (_slow_disk(2, 1600), _slow_disk(10, 400))

NO_SYNC = Benchmark(
    name="push-cpu",
    title="CPU time of a push where a sync costs nothing (less is better)",
    variants=(RAW, V1, V2, V2_NORMAL),
    bases=("1.x",),
    headline="cpu_us",
    columns=_COLUMNS,
    measure=measure_without_sync,
    normal=Size(6000),
    quick=Size(200),
)
BYTES = Benchmark(
    name="push-bytes",
    title="Bytes written to the disk for a durable push, one process (less is better)",
    variants=_VARIANTS,
    bases=("1.x",),
    headline="written_bytes",
    columns=_COLUMNS,
    measure=partial(measure, processes=1),
    normal=Size(6000),
    quick=Size(200),
)
BULKS = Benchmark(
    name="push-bulk",
    title=f"Durable push of {BULK} samples at once by push_many (1.x: one after the other)",
    variants=(RAW, V1, V2),
    bases=("raw", "1.x"),
    headline="rate",
    columns=_COLUMNS,
    measure=partial(measure, processes=1, task="push_bulk"),
    normal=Size(8_000),
    quick=Size(200),
)
