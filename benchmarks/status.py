"""What does looking at a long queue cost, and what does it cost its writers.

`python -m benchmarks.status '{…}'` is one of the children. One fills the queue by `push_many`. Then four writers push 1 KB samples
without end, and windows of time without and with an operator take turns; the operator asks for the status again and again, as fast
as it is answered. What was pushed in a window is what the books say at its ends.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.catalogue import V2
from benchmarks.harness import Benchmark, Column, Figures, Run, Size, start
from benchmarks.sample import samples
from benchmarks.variants import ramen

if TYPE_CHECKING:
    from collections.abc import Callable

_WRITERS = 4
_FILLED_AT_ONCE = 5000
_WINDOW_SECONDS = 0.5
_PAIRS = 24
"""Many short windows: a disturbance of seconds falls on both sides. Fewer, where so few messages wait that nothing is measured."""
_COMMANDS = 5


def measure(run: Run) -> tuple[Figures, dict[str, str]]:
    """Fill a queue with ``size.messages``, then look at it beside writers."""
    directory = str(run.directory)
    with _child("fill", directory, run.size.messages) as child:
        child.finish()
    with ExitStack() as stack:
        writers = [stack.enter_context(_child("write", directory, number)) for number in range(_WRITERS)]
        for writer in writers:
            writer.expect("ready")
        operator = stack.enter_context(_child("look", directory, min(_PAIRS, 1 + run.size.messages // 100)))
        figures: Figures = operator.finish()
        for writer in writers:
            writer.finish()
    return figures, ramen.versions()


STATUS = Benchmark(
    name="status",
    title=f"Status of a queue with {_WRITERS} busy writers, and their rate without and with it, in turns",
    variants=(V2,),
    bases=(),
    headline="status_ms",
    columns=(
        Column("waiting", "messages"),
        Column("status_ms", "status() ms", 1),
        Column("worst_ms", "worst ms", 1, over_rounds=max),
        Column("snapshot_ms", "without rates ms", 2),
        Column("command_ms", "ramen status ms"),
        Column("alone", "pushes/s without"),
        Column("watched", "pushes/s with"),
        Column("ratio", "with / without", 3),
    ),
    measure=measure,
    normal=Size(1_000_000),
    quick=Size(5_000),
)


# The children


def _child(task: str, directory: str, number: int) -> Any:
    order = {"task": task, "directory": directory, "number": number}
    return start([sys.executable, "-m", "benchmarks.status", json.dumps(order)])


def main() -> None:
    order = json.loads(sys.argv[1])
    answer = {"fill": _fill, "write": _write, "look": _look}[order["task"]](
        order["directory"], order["number"]
    )
    print(json.dumps(answer), flush=True)


def _fill(directory: str, messages: int) -> Figures:
    config = ramen.configuration(directory, 1, {"durability": "normal"})
    with ramen.QueueWriter(config) as writer:
        for first in range(0, messages, _FILLED_AT_ONCE):
            rows = min(_FILLED_AT_ONCE, messages - first)
            writer.push_many(("metrics", "x", 1, b'{"value": 42}') for _ in range(rows))
    return {}


def _write(directory: str, number: int) -> Figures:
    """Push until standard input ends."""
    push = ramen.open_writer(directory, durability="full")
    pool = samples(500, seed=number)
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    print("ready", flush=True)
    for sample in cycle(pool):
        if ended.is_set():
            break
        push(sample)
    return {}


def _look(directory: str, pairs: int) -> Figures:
    from infi.ramen_client import QueueAdmin

    (path,) = Path(directory).glob("*.db")
    alone, watched = [], []
    times: list[float] = []
    with QueueAdmin(path) as admin:
        admin.status()  # the imports are not to be counted
        for pair in range(pairs):
            # Now the one first, now the other, so that a trend favours neither.
            for looks in (False, True) if pair % 2 else (True, False):
                if looks:
                    watched.append(_rate(admin, lambda seconds: _look_for(admin, seconds, times)))
                else:
                    alone.append(_rate(admin, time.sleep))
        snapshots = [_milliseconds(lambda: admin.status(sample_seconds=0)) for _ in range(100)]
        waiting = admin.books().waiting
    return {
        "waiting": waiting,
        "status_ms": median(times),
        "worst_ms": max(times),
        "snapshot_ms": median(snapshots),
        "command_ms": median(_milliseconds(lambda: _command(directory)) for _ in range(_COMMANDS)),
        "alone": median(alone),
        "watched": median(watched),
        "ratio": median(with_it / without for with_it, without in zip(watched, alone, strict=True)),
    }


def _rate(admin: Any, work: Callable[[float], None]) -> float:
    """Return how many messages a second were pushed while ``work`` went on."""
    before, began = admin.books().pushed, time.monotonic()
    work(_WINDOW_SECONDS)
    pushed, ended = admin.books().pushed - before, time.monotonic()
    return pushed / (ended - began)


def _look_for(admin: Any, seconds: float, times: list[float]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        times.append(_milliseconds(admin.status))


def _milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def _command(directory: str) -> None:
    import subprocess

    command = [sys.executable, "-m", "infi.ramen_cli", "status", "--json", "--queue-dir", directory]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
