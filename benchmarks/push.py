"""How fast is a durable push, and how long may one take: one process alone, and four at one queue."""

from __future__ import annotations

from functools import partial

from benchmarks.catalogue import RAW, V1, V2, V2_NORMAL
from benchmarks.harness import Benchmark, Column, Figures, Run, Size, run_workers, summarise
from benchmarks.worker import Order

PROCESSES = 4
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


def measure(run: Run, *, processes: int) -> tuple[Figures, dict[str, str]]:
    """Push ``size.messages`` in all, by so many processes at once."""
    orders = [
        Order(
            task="push",
            adapter=run.variant.adapter,
            directory=str(run.directory),
            options=run.variant.options,
            messages=run.size.messages // processes,
            worker=number,
        )
        for number in range(processes)
    ]
    measurements = run_workers(run.variant.environment.interpreter(), orders)
    return summarise(measurements), measurements[0].versions


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
