"""How long it takes to heal a damaged queue, beside a plain copy of its file, and how much memory.

`python -m benchmarks.heal '{…}'` is the child that is measured: it fills a queue of so many MiB, destroys the first page and one in a
thousand of the others, and then copies the file, or opens the queue as a reader does until all that can be read was carried over.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import apsw

from benchmarks.catalogue import Variant
from benchmarks.harness import Benchmark, Column, Figures, Run, Size, start
from benchmarks.measurement import memory_bytes
from benchmarks.sample import samples
from benchmarks.variants import ramen
from infi.ramen_client._opening import open_queue
from infi.ramen_client.storage import ActiveReader
from infi.ramen_client.storage._database import Kind

_DIFFERENT_SAMPLES = 500
_FILLED_AT_ONCE = 500
_PAGE = 4096
_ONE_IN = 1000


def measure(run: Run) -> tuple[Figures, dict[str, str]]:
    """Fill (in a process of its own), destroy, and heal or copy; ``size.messages`` is MiB here."""
    order = {"directory": str(run.directory), "mebibytes": run.size.messages, **run.variant.options}
    for step in ("fill", "work"):
        with start([sys.executable, "-m", "benchmarks.heal", json.dumps(order | {"step": step})]) as child:
            answer = child.finish()
    return answer["figures"], ramen.versions()


def _variant(name: str, how: str) -> Variant:
    return Variant(name, "benchmarks.variants.ramen", options={"how": how})


HEAL = Benchmark(
    name="heal",
    title="Healing a damaged queue of 1 GiB, beside a plain copy of its file (cp, synced)",
    variants=(_variant("copy", "copy"), _variant("2.0", "heal")),
    bases=("copy",),
    headline="seconds",
    columns=(
        Column("seconds", "seconds", 1),
        Column("mib_per_second", "MiB/s", 1),
        Column("messages_per_second", "messages/s"),
        Column("peak_mib", "peak MiB", over_rounds=max),
        Column("lost", "lost", over_rounds=max),
    ),
    measure=measure,
    normal=Size(1024),
    quick=Size(8),
)


# The child


def main() -> None:
    order = json.loads(sys.argv[1])
    config = ramen.configuration(order["directory"], 1, {"max_queue_size": 2**40})
    if order["step"] == "fill":
        path = _fill(config, order["mebibytes"] * 2**20)
        _destroy(path)
        os.sync()
        print(json.dumps({"path": str(path)}), flush=True)
        return
    path = next(Path(order["directory"]).glob("**/*.db"))
    size = path.stat().st_size
    began = time.perf_counter()
    messages = lost = 0
    if order["how"] == "copy":
        copy = path.with_suffix(".copy")
        subprocess.run(["cp", "--reflink=never", path, copy], check=True)
        descriptor = os.open(copy, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    else:
        queue = open_queue(config)
        reader = ActiveReader.activate(queue)
        assert reader is not None
        assert reader.claim(1, 1)
        books = queue.books()
        messages, lost = books.waiting, books.damaged
    seconds = time.perf_counter() - began
    figures = {
        "seconds": seconds,
        "mib_per_second": size / 2**20 / seconds,
        "messages_per_second": messages / seconds,
        "peak_mib": memory_bytes("VmHWM") / 2**20,
        "lost": lost,
    }
    print(json.dumps({"figures": figures}), flush=True)
    os._exit(0)  # closing is not measured


def _fill(config: ramen.QueueReaderConfig, enough: int) -> Path:
    pool = [json.dumps(sample).encode() for sample in samples(_DIFFERENT_SAMPLES, seed=1)]
    writer, queue = ramen.QueueWriter(config), open_queue(config)
    while queue.bytes_used() < enough:
        writer.push_many(("metrics", "san_totals", "v1", payload) for payload in pool[:_FILLED_AT_ONCE])
    path = queue.path
    queue.database.checkpoint(Kind.NORMAL)
    with queue.database.connection(Kind.NORMAL) as connection:
        connection.wal_checkpoint(
            mode=apsw.SQLITE_CHECKPOINT_TRUNCATE
        )  # nothing is to be found in the log again
    queue.close()
    writer.close()
    return path


def _destroy(path: Path) -> None:
    """Noise on the first page, and on one in a thousand of the others."""
    chance = random.Random(1)
    with path.open("r+b") as file:
        file.write(chance.randbytes(_PAGE))
        pages = path.stat().st_size // _PAGE
        for _ in range(max(1, pages // _ONE_IN)):
            file.seek(chance.randrange(2, pages) * _PAGE)
            file.write(chance.randbytes(_PAGE))


if __name__ == "__main__":
    main()
