"""The herd simulation, small: the promises that docs/pacing.md makes of the large one, and the page's making."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from benchmarks import herd_page
from benchmarks.herd import Course, Scenario, fixed, paced, simulate

if TYPE_CHECKING:
    from pathlib import Path

# Of the clients' retries all are at their slowest after the first minute: a longer outage changes nothing.
SMALL = Scenario(clients=2_000, capacity=200, outage_seconds=180, noticed_within_seconds=10, backlogs=(1, 50))


def highest_over_5_seconds(course: Course) -> float:
    """200 requests a second are not many: chance alone makes single seconds 20 % higher."""
    load = course.load()
    return max(sum(load[second : second + 5]) / 5 for second in range(len(load) - 5))


@pytest.mark.parametrize(
    "scenario",
    [
        SMALL,
        replace(SMALL, outage_names_its_end=True, refusal_names_seconds=5),
        replace(SMALL, noticed_within_seconds=0.5, backlogs=(30,)),
    ],
    ids=["plain 503", "times named, the same to all", "all at once, all with a backlog"],
)
def test_a_herd_that_comes_back_does_not_flatten_the_server(scenario: Scenario) -> None:
    course = simulate(scenario, paced, until=1800)
    assert highest_over_5_seconds(course) <= 1.5
    assert course.drained_seconds < 600
    assert course.too_early == 0
    accepted = sum(course.taken)
    assert accepted == sum(scenario.backlogs) * scenario.clients / len(scenario.backlogs)


def test_without_pacing_the_same_herd_does() -> None:
    course = simulate(replace(SMALL, noticed_within_seconds=0.5), fixed, until=60)
    assert highest_over_5_seconds(course) > 1.9
    assert course.peak_load > 8
    assert course.drained_seconds == math.inf


def test_clients_that_ignore_what_was_named_are_noticed() -> None:
    course = simulate(replace(SMALL, clients=100, outage_names_its_end=True), fixed, until=10)
    assert course.too_early >= 100


def test_the_page_and_its_plot_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = tuple(
        replace(herd, until=600.0, scenario=replace(herd.scenario, outage_seconds=150, backlogs=(1, 3)))
        for herd in herd_page.HERDS
    )
    monkeypatch.setattr(herd_page, "HERDS", quick)
    herd_page.main(["--scale", "0.001", "--into", str(tmp_path)])
    page = (tmp_path / "pacing.md").read_text()
    assert "pacing.svg" in page
    assert "$" not in page
    assert page.count("| 2.0 |") == sum(herd.version == "2.0" for herd in quick)
    lines = [node for node in ET.parse(tmp_path / "pacing.svg").iter() if node.tag.endswith("polyline")]
    assert len(lines) == 2
