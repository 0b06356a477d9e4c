"""The collector's numbers, and their Prometheus text (exposition format 0.0.4).

Counters are plain ints, each written by one thread only (the event loop, or the commit thread) and read by the loop. Label
values are the collector's own words and numbers, never a client's text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

COMMIT_BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
"""From a fast disk's sync to one that must be looked after."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(slots=True)
class Histogram:
    """How often a value fell into each bucket; bounds are upper and inclusive."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True)
class Metrics:
    """What is counted since the start."""

    requests: Counter[str] = field(default_factory=Counter)
    """Answers under ``/ramen/`` by outcome. Loop."""

    records: Counter[str] = field(default_factory=Counter)
    """Records of batches that were decided upon, by outcome. Loop."""

    rule_hits: Counter[int] = field(default_factory=Counter)
    """Messages dropped, by rule. Loop."""

    body_bytes: int = 0
    """Bodies as received. Loop."""

    left: int = 0
    """Requests whose client went before the answer. Loop."""

    commits: Histogram = field(default_factory=lambda: Histogram(COMMIT_BUCKETS_SECONDS))
    """Seconds of each commit. Commit thread."""

    committed_submissions: int = 0
    failed_commits: int = 0


def exposition(metrics: Metrics, gauges: Mapping[str, tuple[str, float]]) -> bytes:
    """Write the text; ``gauges`` are (help, value) by name."""
    lines: list[str] = []
    _family(
        lines,
        "ramen_requests_total",
        "counter",
        "Answers to messages and to batches, by outcome.",
        ((f'{{outcome="{outcome}"}}', count) for outcome, count in sorted(metrics.requests.items())),
    )
    _family(
        lines,
        "ramen_batch_records_total",
        "counter",
        "Records of batches, by outcome.",
        ((f'{{outcome="{outcome}"}}', count) for outcome, count in sorted(metrics.records.items())),
    )
    _family(
        lines,
        "ramen_rule_hits_total",
        "counter",
        "Messages dropped by a blacklist rule.",
        ((f'{{rule_id="{rule_id}"}}', count) for rule_id, count in sorted(metrics.rule_hits.items())),
    )
    plain = (
        ("ramen_body_bytes_total", "Bytes of bodies received.", metrics.body_bytes),
        ("ramen_clients_left_total", "Requests whose client went before its answer.", metrics.left),
        (
            "ramen_committed_submissions_total",
            "Messages and batches in commits, duplicates too.",
            metrics.committed_submissions,
        ),
        ("ramen_failed_commits_total", "Commits that stored nothing.", metrics.failed_commits),
    )
    for name, text, count in plain:
        _family(lines, name, "counter", text, (("", count),))
    _histogram(lines, "ramen_commit_seconds", "Time of each commit, its sync included.", metrics.commits)
    for name, (text, value) in gauges.items():
        _family(lines, name, "gauge", text, (("", value),))
    return ("\n".join(lines) + "\n").encode()


def _family(lines: list[str], name: str, kind: str, text: str, samples: Iterable[tuple[str, float]]) -> None:
    lines.append(f"# HELP {name} {text}")
    lines.append(f"# TYPE {name} {kind}")
    lines.extend(f"{name}{labels} {value}" for labels, value in samples)


def _histogram(lines: list[str], name: str, text: str, histogram: Histogram) -> None:
    counts = list(accumulate(histogram.counts))
    bounds = [f"{bound:g}" for bound in histogram.bounds] + ["+Inf"]
    samples: list[tuple[str, float]] = [
        (f'_bucket{{le="{bound}"}}', count) for bound, count in zip(bounds, counts, strict=True)
    ]
    _family(lines, name, "histogram", text, [*samples, ("_sum", histogram.total), ("_count", counts[-1])])
