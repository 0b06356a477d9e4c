"""The benchmarks that fill gigabytes, in a tiny form."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from benchmarks.__main__ import LONG
from benchmarks.harness import Size, run

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", LONG)
def test_a_tiny_run_measures_every_variant(name: str, tmp_path: Path) -> None:
    benchmark = LONG[name]
    result = run(benchmark, rounds=1, size=Size(16), work=tmp_path, say=lambda _: None)
    assert result.failures == {}
    for variant in benchmark.variants:
        (figures,) = result.rounds[variant.name]
        assert set(figures) >= {column.key for column in benchmark.columns}
        assert figures[benchmark.headline] > 0
