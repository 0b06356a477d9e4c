"""What does a busy reader cost those who push: no reader, one in a thread of the same process, one in another process."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict

from benchmarks.catalogue import Variant
from benchmarks.environment import HERE, ONE_X
from benchmarks.harness import Benchmark, Column, Figures, Run, RunError, Size, percentile, start
from benchmarks.measurement import Measurement
from benchmarks.push_beside_child import PUSHES_PER_SECOND
from benchmarks.worker import Order

_BACKLOG = {"1.x": 3, "v1": 20, "v2": 60}
"""Messages that wait before, for each push: more than a reader of that kind can deliver during the pushes."""


def measure(run: Run) -> tuple[Figures, dict[str, str]]:
    """Push ``size.messages``; fail if the reader had nothing left to do before the last."""
    kind, place = str(run.variant.options["kind"]), run.variant.options["reader"]
    python = str(run.variant.environment.interpreter())
    serve = [sys.executable, "-m", "benchmarks.counting_server", *(["--batches"] if kind == "v2" else [])]
    with ExitStack() as stack:
        port = int(stack.enter_context(start(serve)).hear())
        order = {
            "adapter": run.variant.adapter,
            "directory": str(run.directory),
            "messages": run.size.messages,
            "backlog": _BACKLOG[kind] * run.size.messages,
            "reads_to": port if place == "thread" else None,
        }
        child = stack.enter_context(start([python, "-m", "benchmarks.push_beside_child", json.dumps(order)]))
        child.expect("filled")
        if place == "process":
            drain = Order("drain", run.variant.adapter, str(run.directory), port=port)
            command = [python, "-m", "benchmarks.worker", json.dumps(asdict(drain))]
            reader = stack.enter_context(start(command))
            stack.callback(reader.process.kill)
            reader.expect("ready")
            reader.say("go")
        child.say("go")
        answer = child.finish()
    measurement = Measurement(**answer["measurement"])
    if place is not None and not answer["left"]:
        raise RunError("the reader had drained the queue before the last push")
    return {
        "p50_us": percentile(measurement.latencies, 50),
        "p99_us": percentile(measurement.latencies, 99),
        "max_us": max(measurement.latencies),
        "delivered": answer["delivered"] / (measurement.ended - measurement.started),
    }, measurement.versions


def _variant(name: str, kind: str, reader: str | None) -> Variant:
    return Variant(
        name,
        "benchmarks.variants.ramen",
        ONE_X if kind == "1.x" else HERE,
        options={"kind": kind, "reader": reader},
    )


BESIDE = Benchmark(
    name="push-beside",
    title=f"Durable push of 1 KB samples, {PUSHES_PER_SECOND} a second, beside a reader that drains a backlog (less is better)",
    variants=(
        _variant("1.x alone", "1.x", None),
        _variant("1.x, same process", "1.x", "thread"),
        _variant("1.x, another process", "1.x", "process"),
        _variant("2.0 alone", "v1", None),
        _variant("v1, same process", "v1", "thread"),
        _variant("v1, another process", "v1", "process"),
        _variant("v2, same process", "v2", "thread"),
        _variant("v2, another process", "v2", "process"),
    ),
    bases=("1.x alone", "2.0 alone"),
    headline="p99_us",
    columns=(
        Column("p50_us", "p50 µs"),
        Column("p99_us", "p99 µs"),
        Column("max_us", "worst µs", over_rounds=max),
        Column("delivered", "delivered/s meanwhile"),
    ),
    measure=measure,
    normal=Size(1000),
    quick=Size(100),
    further=("p50_us",),
)
