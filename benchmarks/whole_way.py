"""How fast do messages get from a program to a server while they are pushed, at what cost and with how many syncs; beside syslog-ng.

The clock runs from the first message handed in to the last that has come to the counting server. What is counted is all that stands
between a program's data and the server: of ours the process that pushes (which makes JSON of each sample and compresses it) and the
one that delivers, of syslog-ng syslog-ng itself. Its lines are made before, and who writes them to its socket is not counted: a
program pays that, too.

Each variant handles so many messages that all take about as long: its share of the benchmark's size. A run counts only if the server
got every message, and each is different.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.catalogue import Variant
from benchmarks.harness import Benchmark, Child, Column, Figures, Run, RunError, Size, start
from benchmarks.measurement import Measurement, cpu_seconds, written_bytes
from benchmarks.sample import samples
from benchmarks.syncs import counting_syncs, syncs
from benchmarks.syslog_ng import syslog_ng, version
from benchmarks.worker import WARM_UP_PUSHES, Order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

_DIFFERENT_SAMPLES = 2000
"""More than a batch of version 2 holds: what repeats within one would be nothing to its compression."""

_AT_ONCE = 500
PATIENCE_SECONDS = 120.0
"""How long a message may be on its way when the last has been handed in."""


@dataclass(frozen=True, slots=True)
class Way:
    """One variant, and how it is measured. ``share``: how many messages, for one of the benchmark's size."""

    variant: Variant
    share: int
    measure: Callable[[Run, int], tuple[Figures, dict[str, str]]]


def measure(run: Run, *, ways: Mapping[str, Way]) -> tuple[Figures, dict[str, str]]:
    way = ways[run.variant.name]
    return way.measure(run, run.size.messages * way.share)


def _by_syslog_ng(run: Run, messages: int) -> tuple[Figures, dict[str, str]]:
    """Write lines to syslog-ng while it delivers."""
    lines = _lines(messages)
    listed = run.directory / "syncs"
    with (
        _server("--lines", messages) as (server, port),
        syslog_ng(run.directory, port, counting_syncs(listed)) as (process, program),
    ):
        program.settimeout(PATIENCE_SECONDS)
        os.sync()  # what earlier runs left to be written must not be written during this one
        before = (cpu_seconds(process), written_bytes(process), syncs(listed))
        started = time.monotonic()
        for some in lines:
            program.sendall(some)
        tally = _everything(server)
        after = (cpu_seconds(process), written_bytes(process), syncs(listed))
    _check(messages, tally)
    costs = [new - old for new, old in zip(after, before, strict=True)]
    return _figures(messages, started, tally, *costs), {"syslog-ng": version()}


def _by_ours(run: Run, messages: int, *, task: str) -> tuple[Figures, dict[str, str]]:
    """Push by one process while another delivers."""
    coming = messages + WARM_UP_PUSHES
    listed = (run.directory / "syncs of the writer", run.directory / "syncs of the reader")
    with ExitStack() as stack:
        server, port = stack.enter_context(_server("--batches", coming))
        pushes = Order(
            task, run.variant.adapter, str(run.directory), run.variant.options, messages,
            different=_DIFFERENT_SAMPLES, bulk=_AT_ONCE,
        )  # fmt: skip
        writer, reader = (
            stack.enter_context(_worker(order, file))
            for order, file in zip((pushes, replace(pushes, task="forward", port=port)), listed, strict=True)
        )
        os.sync()  # as above
        before = syncs(*listed)
        reader.say("go")
        writer.say("go")
        pushed = Measurement(**writer.finish())
        tally = _everything(server)
        delivered = Measurement(**reader.finish())
        synced = syncs(*listed) - before
    _check(coming, tally, delivered.messages)
    both = (pushed, delivered)
    cpu, written = sum(one.cpu_seconds for one in both), sum(one.written_bytes for one in both)
    return _figures(messages, pushed.started, tally, cpu, written, synced), pushed.versions


@contextmanager
def _worker(order: Order, syncs_into: Path) -> Iterator[Child]:
    command = [sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(order))]
    with start([*counting_syncs(syncs_into), *command]) as child:
        child.expect("ready")
        yield child


@contextmanager
def _server(kind: str, messages: int) -> Iterator[tuple[Child, int]]:
    """Run the counting server, until so many have come: the server, and its port."""
    command = [sys.executable, "-m", "benchmarks.counting_server", kind, "--until", str(messages)]
    with start(command) as server:
        yield server, int(server.hear())


def _everything(server: Child) -> dict[str, Any]:
    """Return what the server says when everything has come, or what had come when there was no patience left."""
    assert server.process.stdin is not None
    giving_up = threading.Timer(PATIENCE_SECONDS, server.process.stdin.close)
    giving_up.start()
    try:
        tally: dict[str, Any] = json.loads(server.hear())
    finally:
        giving_up.cancel()
    return tally


def _check(messages: int, tally: dict[str, Any], delivered: int | None = None) -> None:
    if tally["messages"] != messages or delivered not in {None, messages}:
        said = "" if delivered is None else f"{delivered} delivered as the reader says, "
        raise RunError(f"{messages} handed in, {said}{tally['messages']} as the server says")


def _figures(
    messages: int, started: float, tally: dict[str, Any], cpu: float, written: float, synced: float
) -> Figures:
    seconds = tally["last_at"] - started
    return {
        "rate": messages / seconds,
        "cpu_us": cpu / messages * 1e6,
        "written_bytes": written / messages,
        "syncs": synced / messages * 1000,
        "server_percent": 100 * tally["cpu_seconds"] / seconds,
    }


def _lines(messages: int) -> list[bytes]:
    """Return samples as lines of JSON, many in each piece; each line has a number of its own, as each of our messages has its id."""
    pool = [
        json.dumps(sample, separators=(",", ":"))[1:].encode()
        for sample in samples(_DIFFERENT_SAMPLES, seed=0)
    ]
    return [
        b"".join(
            b'{"id":%d,%s\n' % (number, pool[number % _DIFFERENT_SAMPLES])
            for number in range(start, min(start + _AT_ONCE, messages))
        )
        for start in range(0, messages, _AT_ONCE)
    ]


def _ours(name: str, share: int, task: str, durability: str) -> Way:
    variant = Variant(name, "benchmarks.variants.ramen", options={"durability": durability})
    return Way(variant, share, partial(_by_ours, task=task))


_WAYS = (
    Way(Variant("syslog-ng", "benchmarks.syslog_ng"), 40, _by_syslog_ng),
    _ours("v2, push_many(500)", 10, "push_bulk", "full"),
    _ours("v2, push", 1, "push", "full"),
    _ours("v2, normal, push_many(500)", 10, "push_bulk", "normal"),
    _ours("v2, normal, push", 5, "push", "normal"),
)
WHOLE_WAY = Benchmark(
    name="whole-way",
    title="1 KB samples from a program to a server, the whole way, while they are pushed",
    variants=tuple(way.variant for way in _WAYS),
    bases=("syslog-ng",),
    headline="rate",
    columns=(
        Column("rate", "messages/s"),
        Column("cpu_us", "CPU µs each", 1),
        Column("written_bytes", "written B each"),
        Column("syncs", "syncs per 1000", 1),
        Column("server_percent", "server's CPU %"),
    ),
    measure=partial(measure, ways={way.variant.name: way for way in _WAYS}),
    normal=Size(5000),
    quick=Size(100),
    further=("cpu_us",),
)
