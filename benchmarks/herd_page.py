"""``python -m benchmarks.herd_page``: simulate the herds of docs/pacing.md and write that page with its plot (about half an hour).

``--scale 0.02`` makes all herds and their servers smaller, for a look at it in a minute; ``--into DIRECTORY`` writes elsewhere.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from benchmarks.herd import Course, MakeClient, Scenario, fixed, paced, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"

_GIVE_UP_SECONDS = 2 * 3600.0
_PLOT_FROM, _PLOT_TO = -120, 1200


@dataclass(frozen=True, slots=True)
class Herd:
    """A row of the page's table."""

    words: str
    version: str
    make: MakeClient
    scenario: Scenario
    until: float = _GIVE_UP_SECONDS


_MAIN = Scenario(
    clients=100_000,
    capacity=10_000,
    outage_seconds=3600,
    noticed_within_seconds=10,
    backlogs=(1, 200),
)
_TENTH = replace(_MAIN, clients=10_000, capacity=1_000)

HERDS = (
    Herd("as described", "2.0", paced, _MAIN),
    Herd("as described", "1.x", fixed, _MAIN),
    Herd("all notice the outage in the same second", "2.0", paced, replace(_TENTH, noticed_within_seconds=1)),
    Herd("all notice the outage in the same second", "1.x", fixed, replace(_TENTH, noticed_within_seconds=1)),
    Herd(
        "a proxy names the date of the outage's end to all of them, and the server's own refusals name 5 s",
        "2.0", paced, replace(_TENTH, outage_names_its_end=True, refusal_names_seconds=5),
    ),
    Herd("every client has 200 requests waiting", "2.0", paced, replace(_TENTH, backlogs=(200,))),
    Herd(
        "half of them have 3,000 requests waiting (version 1, one message each)",
        "2.0", paced, replace(_MAIN, clients=5_000, capacity=500, backlogs=(1, 3000)), 8 * 3600.0,
    ),
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Return 0, or 1 when a herd of 2.0 broke what the page promises."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.herd_page", description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="of the herds and their servers (default 1)")
    parser.add_argument("--into", type=Path, default=DOCS, metavar="DIRECTORY", help="default docs/")
    options = parser.parse_args(arguments)
    courses = []
    for herd in HERDS:
        scenario = replace(
            herd.scenario,
            clients=max(200, int(herd.scenario.clients * options.scale)),
            capacity=max(20.0, herd.scenario.capacity * options.scale),
        )
        began = time.monotonic()
        course = simulate(scenario, herd.make, until=herd.until)
        courses.append(course)
        print(f"{time.monotonic() - began:5.0f} s  {_row(herd, course)}", file=sys.stderr, flush=True)
    (options.into / "pacing.svg").write_text(plot(courses[0], courses[1]))
    rows = "\n".join(_row(herd, course) for herd, course in zip(HERDS, courses, strict=True))
    text = Template((HERE / "herd_page.md").read_text()).substitute(
        _figures(courses[0], courses[1]), rows=rows
    )
    (options.into / "pacing.md").write_text(text)
    kept = all(
        course.peak_load <= 1.5 and course.drained_seconds < math.inf and not course.too_early
        for herd, course in zip(HERDS, courses, strict=True)
        if herd.make is paced
    )
    return 0 if kept else 1


def _row(herd: Herd, course: Course) -> str:
    scenario = course.scenario
    return (
        f"| {herd.words} | {scenario.clients:,} at {scenario.capacity:,.0f}/s | {herd.version} | {course.peak_load:.2f} | "
        f"{_used(course):.2f} | {_minutes(_single(course))} | {_minutes(course.drained_seconds)} | {course.too_early:,} |"
    )


def _figures(new: Course, old: Course) -> dict[str, str]:
    return {
        "peak": f"{new.peak_load:.2f}",
        "old_peak": f"{old.peak_load:.2f}",
        "drained": _minutes(new.drained_seconds),
        "asking": f"{_mean(new.load(-60)[:60]):.2f}",
        "first_minute": f"{max(new.load(-new.scenario.outage_seconds)[:60]):.1f}",
    }


def _single(course: Course) -> float:
    """How long the last of the clients with one request waited; the last of all where each has more."""
    backlogs = course.scenario.backlogs
    smallest = min(backlogs)
    return max(
        seconds
        for index, seconds in enumerate(course.drained_after)
        if backlogs[index % len(backlogs)] == smallest
    )


def _used(course: Course) -> float:
    """The share of the capacity that was used until nine tenths of the clients were through."""
    through = sorted(course.drained_after)[int(0.9 * len(course.drained_after)) - 1]
    origin = int(course.scenario.outage_seconds)
    taken = (
        course.taken[origin:] if math.isinf(through) else course.taken[origin : origin + math.ceil(through)]
    )
    return _mean(taken) / course.scenario.capacity


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _minutes(seconds: float) -> str:
    if math.isinf(seconds):
        return "unfinished"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def plot(new: Course, old: Course) -> str:
    """Draw the load over time of both as an SVG."""
    width, height, left, bottom, top = 860, 380, 56, 44, 34
    inner_width, inner_height = width - left - 20, height - bottom - top
    highest = max(2.5, math.ceil(2 * old.peak_load + 0.2) / 2)

    def x(second: float) -> float:
        return round(left + inner_width * (second - _PLOT_FROM) / (_PLOT_TO - _PLOT_FROM), 1)

    def y(load: float) -> float:
        return round(top + inner_height * (1 - load / highest), 1)

    def line(course: Course) -> str:
        loads = course.load(_PLOT_FROM)[: _PLOT_TO - _PLOT_FROM]
        return " ".join(f"{x(_PLOT_FROM + second)},{y(load)}" for second, load in enumerate(loads))

    def rule(load: float, colour: str, words: str) -> str:
        return (
            f'<line x1="{left}" x2="{width - 20}" y1="{y(load)}" y2="{y(load)}" stroke="{colour}" stroke-dasharray="5 4"/>'
            f'<text x="{width - 24}" y="{y(load) - 5}" text-anchor="end" fill="{colour}">{words}</text>'
        )

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<rect x="{left}" y="{top}" width="{x(0) - left}" height="{inner_height}" fill="#eee"/>',
        f'<text x="{left + 6}" y="{top + 16}" fill="#555">server down</text>',
        (
            f'<text x="{left}" y="20" fill="#222">Load on the server (requests a second / capacity) around its return after an hour; '
            f"{new.scenario.clients:,} clients, {new.scenario.capacity:,.0f} requests/s</text>"
        ),
    ]
    parts += [
        f'<text x="{left - 8}" y="{y(load / 2) + 4}" text-anchor="end" fill="#555">{load / 2:.1f}</text>'
        f'<line x1="{left}" x2="{width - 20}" y1="{y(load / 2)}" y2="{y(load / 2)}" stroke="#e4e4e4"/>'
        for load in range(int(2 * highest) + 1)
    ]
    parts += [
        f'<text x="{x(60 * minute)}" y="{height - bottom + 18}" text-anchor="middle" fill="#555">{minute}</text>'
        for minute in range(_PLOT_FROM // 60, _PLOT_TO // 60 + 1, 2)
    ]
    parts += [
        f'<text x="{left + inner_width / 2}" y="{height - 8}" text-anchor="middle" fill="#555">minutes since the return</text>',
        f'<polyline points="{line(old)}" fill="none" stroke="#c2410c" stroke-width="1"/>',
        f'<polyline points="{line(new)}" fill="none" stroke="#1d4ed8" stroke-width="1.6"/>',
        rule(1.0, "#222", "capacity"),
        rule(1.5, "#777", "1.5"),
        f'<text x="{x(0) + 8}" y="{top + 16}" fill="#c2410c">1.x: every 30 s</text>',
        f'<text x="{x(0) + 118}" y="{top + 16}" fill="#1d4ed8">2.0</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    sys.exit(main())
