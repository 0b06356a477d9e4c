"""How fast does a backlog go out by the ways that a reader has: over a long line, and on loopback; at what cost.

Each way drains so many messages that all of them take about as long: a variant's share of the benchmark's size. What is on the wire
counts both directions, heads of requests and answers included, as the server's sockets see it (without TCP's own).
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from benchmarks.catalogue import V1, Variant
from benchmarks.harness import (
    Benchmark,
    Child,
    Column,
    Figures,
    Run,
    RunError,
    Size,
    run_workers,
    start,
    summarise,
)
from benchmarks.measurement import cpu_seconds
from benchmarks.telemetry import telemetry
from benchmarks.worker import Order
from infi.ramen_server import SqliteArchive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tally:
    """What a server took; ``wire_bytes``: None where it does not count them."""

    messages: int
    cpu_seconds: float
    wire_bytes: int | None


class Server(Protocol):
    """A server in a process of its own, running."""

    port: int
    options: dict[str, object]
    """What a reader's configuration needs for it."""

    def finish(self) -> Tally:
        """End it."""


@dataclass(frozen=True, slots=True)
class CountingServer:
    """The counting server."""

    child: Child
    port: int
    options: dict[str, object] = field(default_factory=dict)

    def finish(self) -> Tally:
        tally = self.child.finish()
        return Tally(tally["messages"], tally["cpu_seconds"], tally["received_bytes"] + tally["sent_bytes"])


@contextmanager
def counting(_directory: Path, *more: str) -> Iterator[Server]:
    """The counting server."""
    with start([sys.executable, "-m", "benchmarks.counting_server", *more]) as child:
        yield CountingServer(child, int(child.hear()))


def counting_batches(directory: Path) -> AbstractContextManager[Server]:
    """The counting server, offering batches."""
    return counting(directory, "--batches")


@dataclass(frozen=True, slots=True)
class CollectorServer:
    """This repository's collector."""

    child: Child
    directory: Path
    port: int
    options: dict[str, object]

    def finish(self) -> Tally:
        process = self.child.process
        used = cpu_seconds(process.pid)
        process.terminate()
        process.wait()
        with SqliteArchive(self.directory) as archive:
            messages = archive.totals().messages
        return Tally(messages, used, None)


@contextmanager
def collector(directory: Path) -> Iterator[Server]:
    """This repository's collector, by its command: it answers when what it took is on the disk."""
    data, token = directory / "collector", directory / "token"
    command = [sys.executable, "-m", "infi.ramen_cli", "serve", "--data-dir", str(data), "--port", "0"]
    with start([*command, "--first-token-file", str(token), "--min-free-bytes", "0"]) as child:
        port = int(child.hear().rpartition(":")[2])
        child.hear()  # where the token is
        yield CollectorServer(child, data, port, {"auth_token": token.read_text().strip()})


@dataclass(frozen=True, slots=True)
class Way:
    """One way to deliver. ``share``: how many messages, for one of the benchmark's size."""

    variant: Variant
    share: int
    streams: int = 1
    server: Callable[[Path], AbstractContextManager[Server]] = counting


def measure(
    run: Run,
    *,
    ways: Mapping[str, Way],
    line_milliseconds: int = 0,
    take_samples: Callable[[int], list[dict[str, Any]]] | None = None,
) -> tuple[Figures, dict[str, str]]:
    """Queue messages by one process, then drain them by another; fail unless every one arrived.

    ``take_samples``: where so many messages come from that are not made up.
    """
    way = ways[run.variant.name]
    interpreter = run.variant.environment.interpreter()
    samples_file = None
    if take_samples is not None:
        samples_file = run.directory / "samples"
        samples_file.write_text("\n".join(map(json.dumps, take_samples(run.size.messages * way.share))))
    order = Order(
        task="fill_bulk",
        adapter=run.variant.adapter,
        directory=str(run.directory),
        options={"streams": way.streams},
        messages=run.size.messages * way.share,
        samples_file=None if samples_file is None else str(samples_file),
    )
    run_workers(interpreter, [order])
    with way.server(run.directory) as server, _line(server.port, line_milliseconds) as port:
        options = run.variant.options | server.options
        drain = Order(
            task="drain", adapter=order.adapter, directory=order.directory, options=options, port=port
        )
        (measurement,) = run_workers(interpreter, [drain])
        tally = server.finish()
    if not measurement.messages == tally.messages == order.messages:
        raise RunError(
            f"{order.messages} queued, {measurement.messages} delivered as the reader says, "
            f"{tally.messages} as the server says"
        )
    figures = summarise([measurement])
    figures["server_percent"] = 100 * tally.cpu_seconds / (measurement.ended - measurement.started)
    if tally.wire_bytes is not None:
        figures["wire_bytes"] = tally.wire_bytes / tally.messages
    return figures, measurement.versions


@contextmanager
def _line(port: int, milliseconds: int) -> Iterator[int]:
    """The port of a line of that length to a port; of none: the port itself."""
    if not milliseconds:
        yield port
        return
    with start([sys.executable, "-m", "benchmarks.delaying_proxy", str(port), str(milliseconds)]) as proxy:
        yield int(proxy.hear())


def _ours(name: str, **options: object) -> Variant:
    return Variant(name, "benchmarks.variants.ramen", options=options)


_COLUMNS = (
    Column("rate", "messages/s", 1),
    Column("cpu_us", "CPU µs each", 1),
    Column("wire_bytes", "wire B each"),
    Column("peak_mib", "peak MiB", 1),
    Column("server_percent", "server's CPU %"),
)


def _benchmark(
    name: str, title: str, ways: tuple[Way, ...], messages: int, further: tuple[str, ...], milliseconds: int
) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        variants=tuple(way.variant for way in ways),
        bases=(V1.name,),
        headline="rate",
        columns=_COLUMNS,
        measure=partial(
            measure, ways={way.variant.name: way for way in ways}, line_milliseconds=milliseconds
        ),
        normal=Size(messages),
        quick=Size(max(2, messages // 20)),
        further=further,
    )


# A v2 batch holds up to 1000 messages: 1000 for each of 1.x are one round trip for each.
_OVER_A_LINE = (
    Way(V1, 1),
    Way(_ours("v1, 8 streams", max_in_flight=8), 8, streams=8),
    Way(_ours("v1, 8 unordered", max_in_flight=8, ordering="none"), 8),
    Way(_ours("v1, 32 unordered", max_in_flight=32, ordering="none"), 32),
    Way(_ours("v2, in order"), 1000, server=counting_batches),
)
_LINE_TITLE = (
    "Drain of a backlog of 1 KB samples over a line of {} ms each way; one stream but where it says so"
)
LINE = _benchmark("line", _LINE_TITLE.format(50), _OVER_A_LINE, 40, (), 50)
LONG_LINE = _benchmark("line-200ms", _LINE_TITLE.format(200), _OVER_A_LINE, 20, (), 200)

LOOPBACK = _benchmark(
    "loopback",
    "Drain of a backlog of 1 KB samples on loopback, one stream",
    (
        Way(V1, 1),
        Way(_ours("v1, 8 unordered", max_in_flight=8, ordering="none"), 5),
        Way(_ours("v1, in order"), 3),
        Way(_ours("v2"), 12, server=counting_batches),
        Way(_ours("v2, collector"), 12, server=collector),
    ),
    2500,
    ("cpu_us", "wire_bytes"),
    0,
)

_OF_TELEMETRY = (Way(V1, 1), Way(_ours("v1, in order"), 1), Way(_ours("v2"), 1, server=counting_batches))
WIRE = Benchmark(
    name="wire",
    title="Bytes on the wire for real telemetry of this machine, about 1 KB a message (less is better)",
    variants=tuple(way.variant for way in _OF_TELEMETRY),
    bases=(V1.name,),
    headline="wire_bytes",
    columns=_COLUMNS,
    measure=partial(measure, ways={way.variant.name: way for way in _OF_TELEMETRY}, take_samples=telemetry),
    normal=Size(2000),
    quick=Size(100),
)
