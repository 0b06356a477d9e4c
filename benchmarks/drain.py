"""How fast does a backlog go out, on loopback, to a server that does nothing but count."""

from __future__ import annotations

import sys
from dataclasses import replace

from benchmarks.catalogue import RAW, V1, V2
from benchmarks.harness import Benchmark, Column, Figures, Run, RunError, Size, run_workers, start, summarise
from benchmarks.worker import Order


def measure(run: Run) -> tuple[Figures, dict[str, str]]:
    """Queue ``size.messages`` by one process, then drain them by another; fail unless every one arrived."""
    interpreter = run.variant.environment.interpreter()
    order = Order(
        task="fill",
        adapter=run.variant.adapter,
        directory=str(run.directory),
        options=run.variant.options,
        messages=run.size.messages,
    )
    run_workers(interpreter, [order])
    with start([sys.executable, "-m", "benchmarks.counting_server"]) as server:
        port = int(server.hear())
        (measurement,) = run_workers(interpreter, [replace(order, task="drain", port=port)])
        tally = server.finish()
    if not measurement.messages == tally["messages"] == run.size.messages:
        raise RunError(
            f"{run.size.messages} queued, {measurement.messages} delivered as the reader says, "
            f"{tally['messages']} as the server says"
        )
    busy = tally["cpu_seconds"] / (measurement.ended - measurement.started)
    return summarise([measurement]) | {"server_percent": 100 * busy}, measurement.versions


DRAIN = Benchmark(
    name="drain",
    title="Drain of a backlog of 1 KB samples, loopback, version 1 of the protocol",
    variants=(RAW, V1, V2),
    bases=("raw", "1.x"),
    headline="rate",
    columns=(
        Column("rate", "messages/s"),
        Column("cpu_us", "CPU µs each", 1),
        Column("written_bytes", "written B each"),
        Column("peak_mib", "peak MiB", 1),
        Column("server_percent", "server's CPU %"),
    ),
    measure=measure,
    normal=Size(4000),
    quick=Size(100),
)
BYTES = replace(
    DRAIN,
    name="drain-bytes",
    title="Bytes written to the disk for a message that is drained (less is better)",
    variants=(V1, V2),
    bases=("1.x",),
    headline="written_bytes",
)
