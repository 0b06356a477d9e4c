"""How many messages a second does the collector store durably, beside a handler that commits each by itself.

Here, and on a disk whose flushes take 10 ms: ``strace`` holds up every sync of either server by so much, the same way.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from benchmarks.catalogue import COLLECTOR, COLLECTOR_BATCHES, COMMIT_EACH
from benchmarks.collector_load import WARM_UP
from benchmarks.harness import Benchmark, Column, Figures, Run, RunError, Size, start, summarise
from benchmarks.measurement import Measurement
from benchmarks.slow_disk import slow_flushes

FLUSH_MILLISECONDS = 10


def measure(run: Run, *, slow_disk: bool) -> tuple[Figures, dict[str, str]]:
    """Send ``size.messages`` over keep-alive connections; fail unless the server holds every one of them."""
    before = slow_flushes(FLUSH_MILLISECONDS) if slow_disk else ()
    serve = [sys.executable, "-m", "benchmarks.collector_server", run.variant.adapter, str(run.directory)]
    with start([*before, *serve]) as server:
        place = json.loads(server.hear())
        batch = run.variant.options.get("batch", 1)
        order = [str(place["port"]), place["token"], str(run.size.messages), str(batch)]
        with start([sys.executable, "-m", "benchmarks.collector_load", *order]) as load:
            load.expect("ready")
            load.say("go")
            load.expect("quarter")
            early = _resident_bytes(place["pid"])
            measurement = Measurement(**load.finish())
            late = _resident_bytes(place["pid"])
        tally = server.finish()
    if tally["messages"] != run.size.messages + WARM_UP:
        raise RunError(f"{run.size.messages + WARM_UP} sent and answered, {tally['messages']} stored")
    figures = summarise([measurement])
    seconds = measurement.ended - measurement.started
    return {
        "rate": figures["rate"],
        "p50_ms": figures["p50_us"] / 1000,
        "p99_ms": figures["p99_us"] / 1000,
        "max_ms": figures["max_us"] / 1000,
        "cpu_us": tally["cpu_seconds"] / tally["messages"] * 1e6,
        "early_mib": early / 2**20,
        "late_mib": late / 2**20,
        "load_percent": 100 * measurement.cpu_seconds / seconds,
    }, tally["versions"]


def _resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise RunError("the collector has ended")


_COLUMNS = (
    Column("rate", "messages/s"),
    Column("p50_ms", "p50 ms", 1),
    Column("p99_ms", "p99 ms", 1),
    Column("max_ms", "worst ms", 1, max),
    Column("cpu_us", "CPU µs each"),
    Column("early_mib", "MiB at a quarter", 1),
    Column("late_mib", "MiB at the end", 1),
    Column("load_percent", "load's CPU %"),
)
HERE = Benchmark(
    name="collector",
    title="Messages stored durably over 64 keep-alive connections, 1 KB samples",
    variants=(COMMIT_EACH, COLLECTOR),
    bases=(COMMIT_EACH.name,),
    headline="rate",
    columns=_COLUMNS,
    measure=partial(measure, slow_disk=False),
    normal=Size(12_000),
    quick=Size(200),
)
SLOW_DISK = Benchmark(
    name="collector-slow-disk",
    title="The same on a disk whose flushes take 10 ms",
    variants=(COMMIT_EACH, COLLECTOR),
    bases=(COMMIT_EACH.name,),
    headline="rate",
    columns=_COLUMNS,
    measure=partial(measure, slow_disk=True),
    normal=Size(2000),
    quick=Size(200),
)
BATCHES = Benchmark(
    name="collector-batch",
    title="Messages stored durably in batches of 500 over 4 connections, beside one by one over 64, 1 KB samples",
    variants=(COLLECTOR, COLLECTOR_BATCHES),
    bases=(COLLECTOR.name,),
    headline="rate",
    columns=_COLUMNS,
    measure=partial(measure, slow_disk=False),
    normal=Size(20_000),
    quick=Size(1000),
)
