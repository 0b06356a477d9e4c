"""How long may a push take at the size limit, and while space goes back to the disk; how large do the files become.

`python -m benchmarks.limit '{…}'` is the child that is measured: it fills a queue by `push_many` as full as its variant says, then
pushes one by one, and looks at the sizes of the files in between.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from time import perf_counter_ns
from typing import TYPE_CHECKING

from benchmarks.catalogue import Variant
from benchmarks.harness import Benchmark, Column, Figures, Run, Size, percentile, start
from benchmarks.sample import samples
from benchmarks.variants import ramen
from infi.ramen_client._opening import open_queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infi.ramen_client.queue_writer import QueueWriter
    from infi.ramen_client.storage import Queue

_LIMIT_BYTES_PER_PUSH = 256 * 1024
"""The limit that goes with a size: 1 GiB for 4096 pushes."""

_DIFFERENT_SAMPLES = 500
_FILLED_AT_ONCE = 500
_WARM_UP_PUSHES = 20
_FAR_BELOW = 0.1


def measure(run: Run) -> tuple[Figures, dict[str, str]]:
    """Push ``size.messages`` one by one into a queue that was filled before."""
    order = {
        "directory": str(run.directory),
        "messages": run.size.messages,
        "limit": max(2**22, run.size.messages * _LIMIT_BYTES_PER_PUSH),
        **run.variant.options,
    }
    with start([sys.executable, "-m", "benchmarks.limit", json.dumps(order)]) as child:
        answer = child.finish()
    return answer["figures"], ramen.versions()


def _variant(name: str, filled: float, *, giving_back: bool = False) -> Variant:
    options: dict[str, object] = {"filled": filled, "giving_back": giving_back}
    return Variant(name, "benchmarks.variants.ramen", options=options)


LIMIT = Benchmark(
    name="limit",
    title="Durable push of 1 KB samples: far below the size limit, at it, and while a drained file shrinks",
    variants=(
        _variant("2.0", _FAR_BELOW),
        _variant("2.0, at the limit", 1.0),
        _variant("2.0, giving back", 1.0, giving_back=True),
    ),
    bases=("2.0",),
    headline="max_us",
    columns=(
        Column("max_us", "worst µs"),
        Column("p99_us", "p99 µs"),
        Column("p50_us", "p50 µs"),
        Column("trimmed", "trimmed"),
        Column("file_share", "file / limit", 3, over_rounds=max),
        Column("wal_mib", "-wal MiB", 1, over_rounds=max),
    ),
    measure=measure,
    normal=Size(4096),
    quick=Size(64),
)


# The child


def main() -> None:
    order = json.loads(sys.argv[1])
    config = ramen.configuration(order["directory"], 1, {"max_queue_size": order["limit"]})
    writer, queue = ramen.QueueWriter(config), open_queue(config)
    pool = [json.dumps(sample).encode() for sample in samples(_DIFFERENT_SAMPLES, seed=1)]
    _fill(writer, queue, pool, int(order["filled"] * order["limit"]))
    trimmed_before = writer.books().trimmed
    if order["giving_back"]:
        _drain(queue)
    for payload in pool[:_WARM_UP_PUSHES]:
        writer.push("metrics", "san_totals", "v1", payload)
    os.sync()
    with _giving_back(queue, order["giving_back"]):
        latencies, file_bytes, wal_bytes = _push(writer, queue.path, pool, order["messages"])
    figures = {
        "max_us": max(latencies),
        "p99_us": percentile(latencies, 99),
        "p50_us": percentile(latencies, 50),
        "trimmed": writer.books().trimmed - trimmed_before,
        "file_share": file_bytes / order["limit"],
        "wal_mib": wal_bytes / 2**20,
    }
    print(json.dumps({"figures": figures}), flush=True)


def _fill(writer: QueueWriter, queue: Queue, pool: list[bytes], enough: int) -> None:
    """Fill up to so many bytes; up to the limit itself: until it had to trim."""
    number = 0
    while queue.bytes_used() < enough and not writer.books().trimmed:
        writer.push_many(
            ("metrics", "san_totals", "v1", pool[(number + more) % len(pool)])
            for more in range(_FILLED_AT_ONCE)
        )
        number += _FILLED_AT_ONCE


def _push(
    writer: QueueWriter, database: Path, pool: list[bytes], messages: int
) -> tuple[list[float], int, int]:
    """Push; return the latencies in microseconds, and the largest sizes of the database and of its log."""
    wal = database.with_name(database.name + "-wal")
    latencies, file_bytes, wal_bytes = [], 0, 0
    for number in range(messages):
        before = perf_counter_ns()
        writer.push("metrics", "san_totals", "v1", pool[number % len(pool)])
        latencies.append((perf_counter_ns() - before) / 1000)
        file_bytes = max(file_bytes, _size(database))
        wal_bytes = max(wal_bytes, _size(wal))
    return latencies, file_bytes, wal_bytes


def _size(path: Path) -> int:
    return path.stat().st_size


def _drain(queue: Queue) -> None:
    """Empty the queue, so that its file is nothing but free pages."""
    from infi.ramen_client.storage import ActiveReader, Fate, Settlement

    reader = ActiveReader.activate(queue)
    assert reader is not None
    while claimed := reader.claim(20_000, 2**24):
        reader.settle([Settlement(message, Fate.ACCEPTED) for message in claimed])
    reader.close()


@contextmanager
def _giving_back(queue: Queue, wanted: bool) -> Iterator[None]:
    """Meanwhile another process gives the free pages back, step after step: harder than a reader, which waits for a quiet moment."""
    from infi.ramen_client.storage import ActiveReader

    if not wanted:
        yield
        return
    child = os.fork()
    if child == 0:
        reader = ActiveReader.activate(queue)
        while reader is not None and os.getppid() != 1:
            reader.tidy()
        os._exit(0)
    try:
        yield
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
