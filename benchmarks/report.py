"""Results as JSON for machines and as Markdown for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.harness import ratio

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from benchmarks.harness import Column, Figures, Ratio, Result


def as_json(machine: dict[str, str], results: Iterable[Result]) -> dict[str, Any]:
    """Return everything: each round's figures, what the table shows of them, ratios, versions, failures."""
    return {"machine": machine, "benchmarks": {one.benchmark.name: _benchmark_json(one) for one in results}}


def as_markdown(machine: dict[str, str], results: Iterable[Result]) -> str:
    """Return the machine's facts and one aligned table a benchmark."""
    parts = ["\n".join(f"- {name}: {value}" for name, value in machine.items())]
    parts += [_benchmark_markdown(result) for result in results]
    return "\n\n".join(parts) + "\n"


def _benchmark_json(result: Result) -> dict[str, Any]:
    benchmark = result.benchmark
    return {
        "title": benchmark.title,
        "headline": benchmark.headline,
        "messages": result.size.messages,
        "variants": {
            name: {
                "rounds": rounds,
                "shown": {column.key: _shown(column, rounds) for column in benchmark.columns},
                "ratios": _ratios_json(result, name, benchmark.headline),
                "further": {key: _ratios_json(result, name, key) for key in benchmark.further},
                "versions": result.versions.get(name, {}),
            }
            for name, rounds in result.rounds.items()
        },
        "failures": result.failures,
    }


def _ratios_json(result: Result, name: str, key: str) -> dict[str, dict[str, float]]:
    return {
        base: {"median": found.median, "least": found.least, "most": found.most}
        for base in result.benchmark.bases
        if (found := _ratio(result, name, base, key)) is not None
    }


def _benchmark_markdown(result: Result) -> str:
    benchmark = result.benchmark
    headings = {column.key: column.heading for column in benchmark.columns}
    headline = headings[benchmark.headline]
    compared = [(key, base) for key in (benchmark.headline, *benchmark.further) for base in benchmark.bases]
    heads = [
        f"/ {base}" if key == benchmark.headline else f"{headings[key]} / {base}" for key, base in compared
    ]
    rows = [["variant", *headings.values(), *heads]]
    for name, rounds in result.rounds.items():
        cells = [_number(_shown(column, rounds), column.digits) for column in benchmark.columns]
        rows.append([name, *cells, *(_times(_ratio(result, name, base, key)) for key, base in compared)])
    count = max(map(len, result.rounds.values()), default=0)
    note = (
        f"Rounds: {count}; messages in each: {result.size.messages}. Medians; the worst is of all rounds. "
        f'"/ base" divides {headline} by the base\'s of the same round: median (least..most).'
    )
    lines = [
        f"## {benchmark.name}: {benchmark.title}",
        "",
        *_table(rows),
        "",
        note,
    ]
    for name, versions in result.versions.items():
        if versions:
            listed = ", ".join(f"{library} {version}" for library, version in versions.items())
            lines.append(f"- {name}: {listed}")
    for name, reason in result.failures.items():
        # The last line of a traceback or of pip's complaint is the one that says why; the JSON has it all.
        lines.append(f"- **{name} failed**: {reason.strip().splitlines()[-1]}")
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return (
            "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]) + " |"
        )

    ruler = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    return [line(rows[0]), ruler, *map(line, rows[1:])]


def _shown(column: Column, rounds: Sequence[Figures]) -> float | None:
    values = [figures[column.key] for figures in rounds if column.key in figures]
    return column.over_rounds(values) if values else None


def _ratio(result: Result, name: str, base: str, key: str) -> Ratio | None:
    if name == base:
        return None
    return ratio(result.rounds[name], result.rounds.get(base, []), key)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _times(found: Ratio | None) -> str:
    if found is None:
        return "-"
    # Two digits would make nothing of a hundredth.
    digits = 2 if found.median >= 0.1 else 4
    return f"{found.median:.{digits}f} ({found.least:.{digits}f}..{found.most:.{digits}f})"
