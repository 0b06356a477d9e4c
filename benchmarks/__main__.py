"""`python -m benchmarks`: measure, write benchmarks/out/, print a table."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from benchmarks import collector, delivery, drain, machine, push, push_beside, report
from benchmarks.footprint import FOOTPRINT
from benchmarks.harness import Size, run
from benchmarks.heal import HEAL
from benchmarks.limit import LIMIT
from benchmarks.scale import SCALE
from benchmarks.status import STATUS
from benchmarks.whole_way import WHOLE_WAY

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        *(push.ONE, push.MANY, push.BULKS, push.NO_SYNC, push.BYTES, *push.SLOW_DISKS),
        *(drain.DRAIN, drain.BYTES, FOOTPRINT, STATUS, collector.HERE),
        *(collector.BATCHES, collector.SLOW_DISK),
    )
}
LONG = {benchmark.name: benchmark for benchmark in (LIMIT, SCALE, HEAL)}
"""Those that fill gigabytes: only when they are asked for by name."""
WAYS = {
    benchmark.name: benchmark
    for benchmark in (
        *(delivery.LINE, delivery.LONG_LINE, delivery.LOOPBACK, delivery.WIRE),
        *(push_beside.BESIDE, WHOLE_WAY),
    )
}
"""The ways to deliver, minutes each: only when they are asked for by name, too."""

_BY_NAME_ONLY = LONG | WAYS

_OUT = Path(__file__).parent / "out"
_ROUNDS = 5
_QUICK_ROUNDS = 2


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 1 when any variant failed (what could be measured is reported all the same)."""
    options = _parser().parse_args(arguments)
    rounds = options.rounds or (_QUICK_ROUNDS if options.quick else _ROUNDS)
    _OUT.mkdir(exist_ok=True)
    results = []
    # Beside the results, not in the system's temporary directory, which may be memory: then a sync is free.
    with tempfile.TemporaryDirectory(prefix="work-", dir=_OUT) as work:
        facts = machine.facts(Path(work))
        for name in options.only or BENCHMARKS:
            benchmark = (BENCHMARKS | _BY_NAME_ONLY)[name]
            size = benchmark.quick if options.quick else benchmark.normal
            if options.size:
                size = Size(options.size)
            results.append(run(benchmark, rounds=rounds, size=size, work=Path(work), say=_say))
    markdown = report.as_markdown(facts, results)
    options.markdown.write_text(markdown)
    options.json.write_text(json.dumps(report.as_json(facts, results), indent=1) + "\n")
    print(markdown, end="")
    return 1 if any(result.failures for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=[*BENCHMARKS, *_BY_NAME_ONLY], metavar="NAME",
        help=f"only this benchmark ({', '.join([*BENCHMARKS, *_BY_NAME_ONLY])}; the last {len(_BY_NAME_ONLY)} run only so); may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=_positive, metavar="N", help=f"default {_ROUNDS}, quick {_QUICK_ROUNDS}"
    )
    parser.add_argument(
        "--size",
        type=_positive,
        metavar="N",
        help="so many messages a round instead of the benchmark's own number (heal: MiB)",
    )
    parser.add_argument("--quick", action="store_true", help="see that it works; the figures mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", default=_OUT / "results.json")
    parser.add_argument("--markdown", type=Path, metavar="FILE", default=_OUT / "results.md")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
