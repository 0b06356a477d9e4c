"""One child process of a benchmark: `python -m benchmarks.worker '{"task": …}'`.

It prepares, prints ``ready``, waits for a line, does the measured work and prints one JSON line (a
``Measurement``). It runs under any environment's interpreter, so it needs the standard library only.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from time import perf_counter_ns
from typing import Any

from benchmarks.measurement import Measurement, measured
from benchmarks.sample import samples

_DIFFERENT_SAMPLES = 500
WARM_UP_PUSHES = 20
BULK = 1000


@dataclass(frozen=True, slots=True)
class Order:
    """What a worker is to do. ``worker`` tells those of one run apart (they push different samples).

    Of samples there are ``different`` ones, pushed in turn; where many are pushed at once, ``bulk``. ``samples_file``: what to queue in
    place of made-up ones, a line of JSON each.
    """

    task: str
    adapter: str
    directory: str
    options: dict[str, Any] = field(default_factory=dict)
    messages: int = 0
    worker: int = 0
    port: int = 0
    different: int = _DIFFERENT_SAMPLES
    bulk: int = BULK
    samples_file: str | None = None


def push(order: Order, adapter: Any) -> Measurement:
    """Push ``messages`` samples, timing each one; a few more before that are not measured."""
    push_one = adapter.open_writer(order.directory, **order.options)
    pool = samples(order.different, seed=order.worker)
    for sample in pool[:WARM_UP_PUSHES]:
        push_one(sample)
    _await_go()
    latencies = []
    with measured() as measurement:
        for index in range(order.messages):
            sample = pool[index % order.different]
            before = perf_counter_ns()
            push_one(sample)
            latencies.append((perf_counter_ns() - before) / 1000)
    measurement.messages = order.messages
    measurement.latencies = latencies
    return measurement


def push_bulk(order: Order, adapter: Any) -> Measurement:
    """Push ``messages`` samples, ``bulk`` at once where the adapter can; latencies are those of each such step."""
    push_all = adapter.open_bulk_writer(order.directory, **order.options)
    pool = samples(order.different, seed=order.worker)
    push_all(pool[:WARM_UP_PUSHES])
    _await_go()
    latencies = []
    with measured() as measurement:
        for start in range(0, order.messages, order.bulk):
            end = min(start + order.bulk, order.messages)
            some = [pool[index % order.different] for index in range(start, end)]
            before = perf_counter_ns()
            push_all(some)
            latencies.append((perf_counter_ns() - before) / 1000)
    measurement.messages = order.messages
    measurement.latencies = latencies
    return measurement


def fill(order: Order, adapter: Any) -> Measurement:
    """Push exactly ``messages`` samples, for a drain to find."""
    push_one = adapter.open_writer(order.directory, **order.options)
    pool = samples(_DIFFERENT_SAMPLES, seed=order.worker)
    _await_go()
    with measured() as measurement:
        for index in range(order.messages):
            push_one(pool[index % _DIFFERENT_SAMPLES])
    measurement.messages = order.messages
    return measurement


def fill_bulk(order: Order, adapter: Any) -> Measurement:
    """The same, ``BULK`` at once where the adapter can, and all different: what repeats would be nothing to a batch's compression."""
    push_all = adapter.open_bulk_writer(order.directory, **order.options)
    ready_made = None
    if order.samples_file is not None:
        ready_made = [json.loads(line) for line in Path(order.samples_file).read_text().splitlines()]
    _await_go()
    with measured() as measurement:
        for begin in range(0, order.messages, BULK):
            end = min(begin + BULK, order.messages)
            push_all(ready_made[begin:end] if ready_made else samples(end - begin, seed=begin))
    measurement.messages = order.messages
    return measurement


def drain(order: Order, adapter: Any) -> Measurement:
    """Deliver all that is queued; ``messages`` is what the adapter says it delivered."""
    drain_all = adapter.open_reader(order.directory, order.port, **order.options)
    _await_go()
    with measured() as measurement:
        measurement.messages = drain_all()
    return measurement


def forward(order: Order, adapter: Any) -> Measurement:
    """Deliver what others push meanwhile, until the standard input ends; ``messages`` is what the adapter says it delivered."""
    deliver = adapter.open_forwarder(order.directory, order.port, **order.options)
    _await_go()
    with measured() as measurement:
        measurement.messages = deliver(sys.stdin.read)
    return measurement


def main() -> None:
    order = Order(**json.loads(sys.argv[1]))
    adapter = import_module(order.adapter)
    tasks = (push, push_bulk, fill, fill_bulk, drain, forward)
    measurement = {task.__name__: task for task in tasks}[order.task](order, adapter)
    measurement.versions = adapter.versions()
    print(json.dumps(asdict(measurement)), flush=True)


def _await_go() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
