"""A tiny run of the collector's benchmarks works, and what was not stored is no rate."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from benchmarks import collector
from benchmarks.catalogue import COLLECTOR
from benchmarks.harness import Benchmark, Size, run

if TYPE_CHECKING:
    from pathlib import Path

SLOW_DISK = pytest.param(collector.SLOW_DISK, marks=pytest.mark.system)


@pytest.mark.parametrize(
    "benchmark", [collector.HERE, collector.BATCHES, SLOW_DISK], ids=lambda benchmark: benchmark.name
)
def test_a_tiny_run_of_both_servers_works(benchmark: Benchmark, tmp_path: Path) -> None:
    result = run(benchmark, rounds=1, size=Size(80), work=tmp_path, say=lambda _: None)
    assert result.failures == {}
    for figures in (figures for (figures,) in result.rounds.values()):
        assert set(figures) >= {column.key for column in benchmark.columns}
        assert all(value > 0 for value in figures.values())


def test_a_server_that_does_not_hold_every_message_has_no_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collector, "WARM_UP", collector.WARM_UP + 1)
    benchmark = replace(collector.HERE, variants=(COLLECTOR,))
    result = run(benchmark, rounds=1, size=Size(40), work=tmp_path, say=lambda _: None)
    assert "297 sent and answered, 296 stored" in result.failures["collector"]
