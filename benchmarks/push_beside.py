"""What does a busy reader cost those who push: no reader, one in a thread of the same process, one in another process.

`python -m benchmarks.push_beside '{…}'` is the child that is measured, under the interpreter of its variant: it fills a queue, has a
reader begin to drain it (itself, or when it has said ``drain``), pushes at a steady pace, and says what each push took and how many
messages left the queue meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measurement import Measurement, measured
from benchmarks.sample import samples

if TYPE_CHECKING:
    from benchmarks.catalogue import Variant
    from benchmarks.harness import Benchmark, Figures, Run

_DIFFERENT_SAMPLES = 500
_FILLED_AT_ONCE = 1000
_WARM_UP_PUSHES = 20

_PUSHES_PER_SECOND = 500
"""Far below what any variant can do by itself, so that a push is late only by what is in its way."""

_BACKLOG = {"1.x": 2, "v1": 12, "v2": 40}
"""Messages that wait before, for each push: more than a reader of that kind can deliver during the pushes."""

_READER_STARTS_SECONDS = 0.3


# Read by the benchmark, which runs under our own interpreter


def measure(run: Run) -> tuple[Figures, dict[str, str]]:
    """Push ``size.messages``; fail if the reader had nothing left to do before the last."""
    from benchmarks.harness import REPOSITORY, RunError, percentile, start
    from benchmarks.worker import Order

    assert REPOSITORY
    place, kind = str(run.variant.options["reader"]), str(run.variant.options["kind"])
    interpreter = str(run.variant.environment.interpreter())
    batches = ("--batches",) if kind == "v2" else ()
    with start([sys.executable, "-m", "benchmarks.counting_server", *batches]) as server, ExitStack() as stack:
        port = int(server.hear())
        order = {
            "adapter": run.variant.adapter,
            "directory": str(run.directory),
            "messages": run.size.messages,
            "backlog": _BACKLOG[kind] * run.size.messages,
            "reads_on": port if place == "thread" else None,
        }
        child = stack.enter_context(start([interpreter, "-m", "benchmarks.push_beside", json.dumps(order)]))
        child.expect("filled")
        if place == "process":
            drain = Order("drain", run.variant.adapter, str(run.directory), port=port)
            command = [interpreter, "-m", "benchmarks.worker", json.dumps(asdict(drain))]
            reader = stack.enter_context(start(command))
            reader.expect("ready")
            reader.say("go")
        child.say("go")
        answer = child.finish()
        for one in (child, *([reader] if place == "process" else [])):
            one.process.kill()
    measurement = Measurement(**answer["measurement"])
    if place != "none" and not answer["left"]:
        raise RunError("the reader had drained the queue before the last push")
    return {
        "p50_us": percentile(measurement.latencies, 50),
        "p99_us": percentile(measurement.latencies, 99),
        "max_us": max(measurement.latencies),
        "delivered": answer["delivered"] / (measurement.ended - measurement.started),
    }, measurement.versions


def benchmark() -> Benchmark:
    """The benchmark; made here since the child cannot import what it needs."""
    from benchmarks.catalogue import ONE_X, Variant
    from benchmarks.environment import HERE
    from benchmarks.harness import Benchmark, Column, Size

    def variant(name: str, kind: str, reader: str) -> Variant:
        environment = ONE_X if kind == "1.x" else HERE
        return Variant(
            name, "benchmarks.variants.ramen", environment, options={"kind": kind, "reader": reader}
        )

    return Benchmark(
        name="push-beside",
        title=f"Durable push of 1 KB samples, {_PUSHES_PER_SECOND} a second, beside a reader that drains a backlog on loopback",
        variants=(
            variant("1.x alone", "1.x", "none"),
            variant("1.x, same process", "1.x", "thread"),
            variant("1.x, another process", "1.x", "process"),
            variant("2.0 alone", "v1", "none"),
            variant("v1, same process", "v1", "thread"),
            variant("v1, another process", "v1", "process"),
            variant("v2, same process", "v2", "thread"),
            variant("v2, another process", "v2", "process"),
        ),
        bases=("2.0 alone", "1.x alone"),
        headline="p99_us",
        columns=(
            Column("p50_us", "p50 µs"),
            Column("p99_us", "p99 µs"),
            Column("max_us", "worst µs", over_rounds=max),
            Column("delivered", "delivered/s meanwhile"),
        ),
        measure=measure,
        normal=Size(1500),
        quick=Size(100),
    )


# The child


def main() -> None:
    order = json.loads(sys.argv[1])
    adapter = import_module(order["adapter"])
    pool = samples(_DIFFERENT_SAMPLES, seed=1)
    _fill(adapter.open_bulk_writer(order["directory"]), pool, order["backlog"])
    writer = adapter.QueueWriter(adapter.configuration(order["directory"], 1, {}))
    for sample in pool[:_WARM_UP_PUSHES]:
        writer.push("metrics", "san_totals", "v1", sample)
    print("filled", flush=True)
    sys.stdin.readline()
    if order["reads_on"] is not None:
        drain = adapter.open_reader(order["directory"], order["reads_on"])
        threading.Thread(target=drain, daemon=True).start()
    time.sleep(_READER_STARTS_SECONDS)
    waiting = writer.queue_size()
    with measured() as measurement:
        measurement.latencies = _push(writer, pool, order["messages"])
    left = writer.queue_size()
    measurement.versions = adapter.versions()
    delivered = waiting + order["messages"] - left
    print(json.dumps({"measurement": asdict(measurement), "left": left, "delivered": delivered}), flush=True)
    os._exit(0)  # its reader is at work: whatever else ended it would wait


def _fill(push_all: Any, pool: list[dict[str, Any]], messages: int) -> None:
    for begin in range(0, messages, _FILLED_AT_ONCE):
        end = min(begin + _FILLED_AT_ONCE, messages)
        push_all([pool[index % _DIFFERENT_SAMPLES] for index in range(begin, end)])


def _push(writer: Any, pool: list[dict[str, Any]], messages: int) -> list[float]:
    """Push at the pace; return what each took, in microseconds."""
    latencies = []
    due = time.perf_counter()
    for number in range(messages):
        time.sleep(max(0.0, due - time.perf_counter()))
        sample = pool[number % _DIFFERENT_SAMPLES]
        before = time.perf_counter_ns()
        writer.push("metrics", "san_totals", "v1", sample)
        latencies.append((time.perf_counter_ns() - before) / 1000)
        due += 1 / _PUSHES_PER_SECOND
    return latencies


if __name__ == "__main__":
    main()
else:
    BESIDE = benchmark()
