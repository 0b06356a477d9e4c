"""docs/guarantees.md: each promise has one of the four labels, and what shows it exists."""

import re
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS, LONG

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "guarantees.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith(("| promise |", "| --- |"))
]
NAMED = sorted(set(re.findall(r"\btests/[\w/]+\.py(?:::\w+)?", TEXT)))


def test_each_promise_is_a_row_of_three_cells_with_a_label_and_what_shows_it() -> None:
    assert len(ROWS) > 40
    for row in ROWS:
        assert len(row) == 3, row
        promise, label, shown_by = row
        kind = label.partition(":")[0].strip()
        assert kind in ("guarantee", "measured", "recommendation", "unsupported"), promise
        if kind == "measured":
            named = re.findall(r"`python -m benchmarks --only ([\w-]+)`", shown_by)
            assert named, promise
            assert set(named) <= {*BENCHMARKS, *LONG}, promise
        else:
            assert re.fullmatch(r"tests/\S+(, tests/\S+)*", shown_by), promise


def test_all_four_labels_are_used() -> None:
    assert {label.partition(":")[0] for _, label, _ in ROWS} == {
        "guarantee",
        "measured",
        "recommendation",
        "unsupported",
    }


@pytest.mark.parametrize("test", NAMED)
def test_each_named_test_exists(test: str) -> None:
    path, _, name = test.partition("::")
    source = (ROOT / path).read_text()
    assert re.search(
        rf"^\s*def {name}\(" if name else r"^\s*def test_|^Test\w+ =|^class Test", source, re.MULTILINE
    )
