"""What do the everyday operations cost when millions of messages wait, beside the same with ten thousand.

`python -m benchmarks.scale '{…}'` is the child that is measured; another one has filled the queue by `push_many`.
"""

from __future__ import annotations

import json
import sys
import time
from statistics import median

from benchmarks.catalogue import Variant
from benchmarks.harness import Benchmark, Column, Figures, Run, Size, start
from benchmarks.measurement import memory_bytes
from benchmarks.variants import ramen
from infi.ramen_client._opening import open_queue

_SMALL = 10_000
_FILLED_AT_ONCE = 5000
_CLAIMED_AT_ONCE = 64
_REPEATED = 100


def measure(run: Run) -> tuple[Figures, dict[str, str]]:
    """Fill a queue with ``size.messages``, or ten thousand, in one process; measure in another, which finds it."""
    wanted = run.size.messages if run.variant.options["all"] else min(_SMALL, run.size.messages)
    answer = {}
    for task in ("fill", "use"):
        order = {"task": task, "directory": str(run.directory), "messages": wanted}
        with start([sys.executable, "-m", "benchmarks.scale", json.dumps(order)]) as child:
            answer = child.finish()
    return answer["figures"], ramen.versions()


SCALE = Benchmark(
    name="scale",
    title="Opening, queue_size(), claim and acknowledge: ten thousand messages wait (2.0), or millions",
    variants=(
        Variant("2.0", "benchmarks.variants.ramen", options={"all": False}),
        Variant("2.0, all", "benchmarks.variants.ramen", options={"all": True}),
    ),
    bases=("2.0",),
    headline="claim_us",
    columns=(
        Column("waiting", "messages"),
        Column("open_ms", "open ms", 2),
        Column("size_us", "queue_size() µs", 1),
        Column("push_us", "push µs", 1),
        Column("claim_us", "claim of 64 µs"),
        Column("settle_us", "acknowledge 64 µs"),
        Column("ready_mib", "MiB, open", 1),
        Column("used_mib", "peak MiB", 1),
    ),
    measure=measure,
    normal=Size(10_000_000),
    quick=Size(1_000_000),
)


# The children


def main() -> None:
    order = json.loads(sys.argv[1])
    figures = _fill(order) if order["task"] == "fill" else _use(order)
    print(json.dumps({"figures": figures}), flush=True)


def _config(order: dict[str, str]) -> ramen.QueueReaderConfig:
    # What is measured is not the disk's sync.
    options: dict[str, object] = {"durability": "normal", "max_queue_size": 2**40}
    return ramen.configuration(order["directory"], 1, options)


def _fill(order: dict[str, int]) -> Figures:
    payload = b'{"value": 42}'
    with ramen.QueueWriter(_config(order)) as writer:
        for first in range(0, order["messages"], _FILLED_AT_ONCE):
            rows = min(_FILLED_AT_ONCE, order["messages"] - first)
            writer.push_many(("metrics", "x", 1, payload) for _ in range(rows))
    return {}


def _use(order: dict[str, int]) -> Figures:
    from infi.ramen_client.storage import ActiveReader, Fate, Settlement

    opening = []
    for _ in range(5):
        before = time.perf_counter()
        writer = ramen.QueueWriter(_config(order))
        waiting = writer.queue_size()
        opening.append(time.perf_counter() - before)
        writer.close()
        del writer
    writer = ramen.QueueWriter(_config(order))
    ready = memory_bytes("VmRSS")
    sizes, pushes, claims, settles = [], [], [], []
    reader = ActiveReader.activate(open_queue(_config(order)))
    assert reader is not None
    for _ in range(_REPEATED):
        times = [time.perf_counter()]
        writer.queue_size()
        times.append(time.perf_counter())
        writer.push("metrics", "x", 1, b"{}")
        times.append(time.perf_counter())
        claimed = reader.claim(_CLAIMED_AT_ONCE, 2**20)
        times.append(time.perf_counter())
        reader.settle([Settlement(message, Fate.ACCEPTED) for message in claimed])
        times.append(time.perf_counter())
        for series, earlier, later in zip((sizes, pushes, claims, settles), times, times[1:], strict=False):
            series.append((later - earlier) * 1e6)
    reader.close()
    return {
        "waiting": waiting,
        "open_ms": median(opening) * 1000,
        "size_us": median(sizes),
        "push_us": median(pushes),
        "claim_us": median(claims),
        "settle_us": median(settles),
        "ready_mib": ready / 2**20,
        "used_mib": memory_bytes("VmHWM") / 2**20,
    }


if __name__ == "__main__":
    main()
