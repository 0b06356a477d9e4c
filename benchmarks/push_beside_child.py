"""The pusher of ``push-beside``: `python -m benchmarks.push_beside_child '{…}'`, under the interpreter of its variant.

It fills a queue, prints ``filled``, waits for a line, pushes at a steady pace (with a reader in a thread of its own, if it is told
where to), and prints one JSON line: a ``Measurement``, how many messages left the queue meanwhile, and how many are left in it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from importlib import import_module
from typing import Any

from benchmarks.measurement import measured
from benchmarks.sample import samples

PUSHES_PER_SECOND = 500
"""Far below what any variant can do by itself, so that a push is late only by what is in its way."""

_DIFFERENT_SAMPLES = 500
_FILLED_AT_ONCE = 1000
_WARM_UP_PUSHES = 20
_READER_STARTS_SECONDS = 0.3


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
    if order["reads_to"] is not None:
        drain = adapter.open_reader(order["directory"], order["reads_to"])
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
        due += 1 / PUSHES_PER_SECOND
    return latencies


if __name__ == "__main__":
    main()
