"""Runs variants in turn, and makes figures of what they say.

Times of a shared machine mean little by themselves, so variants are interleaved (A B C A B C …) and compared
within a round, pair by pair: what disturbs the machine for longer than a round disturbs both sides of a pair.
Every run is a fresh process (or several) in a fresh directory. A variant that fails is named with its reason and
left out of the following rounds; the others go on.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.measurement import Measurement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.catalogue import Variant
    from benchmarks.worker import Order

Figures = dict[str, float]
"""One round of one variant, by column key."""

REPOSITORY = Path(__file__).resolve().parent.parent
_RUN_TIMEOUT_SECONDS = 900
_STDERR_SHOWN = 2000


class RunError(Exception):
    """A child ended badly, too late, or did not do what was asked; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Column:
    """One figure as shown: ``over_rounds`` makes one number of all rounds (their median, or the worst)."""

    key: str
    heading: str
    digits: int = 0
    over_rounds: Callable[[Sequence[float]], float] = median


@dataclass(frozen=True, slots=True)
class Size:
    """How much work a round is; each benchmark says what its messages are."""

    messages: int


@dataclass(frozen=True, slots=True)
class Run:
    """One variant's turn in one round: ``directory`` is empty and removed afterwards."""

    variant: Variant
    directory: Path
    size: Size


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A question, its variants, and how to measure one of them once.

    ``headline`` is the column that is compared with each of ``bases`` (names of variants), and so are the columns ``further``.
    ``warm_up_rounds`` come first and are not counted.
    """

    name: str
    title: str
    variants: tuple[Variant, ...]
    bases: tuple[str, ...]
    headline: str
    columns: tuple[Column, ...]
    measure: Callable[[Run], tuple[Figures, dict[str, str]]]
    normal: Size
    quick: Size
    warm_up_rounds: int = 0
    further: tuple[str, ...] = ()


@dataclass(slots=True)
class Result:
    """All rounds of one benchmark, by variant's name; ``failures`` says why a variant has none (or fewer)."""

    benchmark: Benchmark
    size: Size
    rounds: dict[str, list[Figures]] = field(default_factory=dict)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A variant's headline over a base's, of the same round each time."""

    median: float
    least: float
    most: float


# Running


def run(
    benchmark: Benchmark, *, rounds: int, size: Size, work: Path, say: Callable[[str], None] = print
) -> Result:
    """Run every variant ``rounds`` times, one after the other in each round; ``work`` is on the disk to be measured."""
    result = Result(benchmark, size, rounds={variant.name: [] for variant in benchmark.variants})
    for number in range(1 - benchmark.warm_up_rounds, rounds + 1):
        for variant in benchmark.variants:
            if variant.name in result.failures:
                continue
            try:
                figures, versions = _turn(benchmark, variant, size, work)
            except Exception as error:
                result.failures[variant.name] = f"{type(error).__name__}: {error}"
                say(f"{benchmark.name}, {variant.name}: failed, left out from here on")
                continue
            if number > 0:
                result.rounds[variant.name].append(figures)
                result.versions[variant.name] = versions
                say(
                    f"{benchmark.name}, round {number} of {rounds}, {variant.name}: "
                    f"{benchmark.headline} {figures[benchmark.headline]:.1f}"
                )
    return result


def _turn(benchmark: Benchmark, variant: Variant, size: Size, work: Path) -> tuple[Figures, dict[str, str]]:
    work.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(dir=work))
    try:
        return benchmark.measure(Run(variant, directory, size))
    finally:
        shutil.rmtree(directory)


def run_workers(interpreter: Path, orders: Sequence[Order], before: Sequence[str] = ()) -> list[Measurement]:
    """Run one worker an order: they get ready one after the other, and then work at once.

    ``before`` is put before each worker's command (``SLOW_DISK``, say).
    """
    with ExitStack() as stack:
        children = []
        for order in orders:
            command = [*before, str(interpreter), "-m", "benchmarks.worker", json.dumps(asdict(order))]
            child = stack.enter_context(start(command))
            # One by one, because 1.x processes that make a queue at the same time fail ("no such table").
            child.expect("ready")
            children.append(child)
        os.sync()  # what earlier runs left to be written must not be written during this one
        for child in children:
            child.say("go")
        return [Measurement(**child.finish()) for child in children]


@dataclass(frozen=True, slots=True)
class Child:
    """A process that talks by lines; it is killed when it takes too long, or when its ``start`` block ends."""

    process: subprocess.Popen[str]
    errors: Path

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it is dead: the next `hear` says why
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def hear(self) -> str:
        """Return its next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            text = self.errors.read_text(errors="replace")[-_STDERR_SHOWN:].strip()
            raise RunError(f"ended with status {self.process.returncode}, before it had answered\n{text}")
        return line.strip()

    def expect(self, line: str) -> None:
        heard = self.hear()
        if heard != line:
            raise RunError(f"said {heard[:200]!r}, not {line!r}")

    def finish(self) -> dict[str, Any]:
        """Return its JSON line; its standard input is closed, which ends those that wait for it."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        answer = json.loads(self.hear())
        if not isinstance(answer, dict):
            raise RunError(f"answered with a {type(answer).__name__}, not an object")
        return answer


@contextmanager
def start(command: Sequence[str]) -> Iterator[Child]:
    """Start a child in the repository's root; it is ended with the block, whatever happens."""
    with tempfile.NamedTemporaryFile(prefix="benchmark-stderr-") as errors:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=_child_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        watchdog = threading.Timer(_RUN_TIMEOUT_SECONDS, process.kill)
        watchdog.start()
        try:
            yield Child(process, Path(errors.name))
        finally:
            watchdog.cancel()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(BrokenPipeError):
                        pipe.close()
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def installed(program: str) -> str:
    """Return where a program of the operating system is; raises ``RunError`` where it is missing."""
    # Daemons are where the PATH of a user who is not root does not look.
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None:
        raise RunError(f"{program} is missing; run tests/system/install")
    return found


def _child_environment() -> dict[str, str]:
    """Return our environment without what would change the measured: proxies (1.x obeys them), Python's switches."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON") and not name.lower().endswith("_proxy")
    }


# Statistics


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least value that at least ``percent`` per cent of ``values`` do not exceed (nearest rank)."""
    if not values:
        raise ValueError("no values")
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


def summarise(measurements: Sequence[Measurement]) -> Figures:
    """Make one round's figures of its workers' measurements: all messages over the time from first start to last end."""
    messages = sum(measurement.messages for measurement in measurements)
    if messages < 1:
        raise RunError("no message was handled")
    seconds = max(one.ended for one in measurements) - min(one.started for one in measurements)
    figures = {
        "rate": messages / seconds,
        "cpu_us": sum(one.cpu_seconds for one in measurements) / messages * 1e6,
        "written_bytes": sum(one.written_bytes for one in measurements) / messages,
        "peak_mib": max(one.peak_bytes for one in measurements) / 2**20,
    }
    latencies = [latency for one in measurements for latency in one.latencies]
    if latencies:
        figures |= {
            "p50_us": percentile(latencies, 50),
            "p99_us": percentile(latencies, 99),
            "max_us": max(latencies),
        }
    return figures


def ratio(rounds: Sequence[Figures], base: Sequence[Figures], key: str) -> Ratio | None:
    """Compare pair by pair; rounds that only one of them finished, or has this figure of, are left out. None without any pair."""
    pairs = [
        one[key] / other[key]
        for one, other in zip(rounds, base, strict=False)
        if key in one and other.get(key)
    ]
    return Ratio(median(pairs), min(pairs), max(pairs)) if pairs else None
