"""The variants by name, as the benchmarks list them."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.environment import HERE, ONE_X, Environment


@dataclass(frozen=True, slots=True)
class Variant:
    """One column of the comparison: an adapter (a module of ``benchmarks.variants``) and what it is given."""

    name: str
    adapter: str
    environment: Environment = HERE
    options: dict[str, object] = field(default_factory=dict)


RAW = Variant("raw", "benchmarks.variants.raw")
V1 = Variant("1.x", "benchmarks.variants.ramen", ONE_X)
V2 = Variant("2.0", "benchmarks.variants.ramen", options={"durability": "full"})
V2_NORMAL = Variant("2.0 normal", "benchmarks.variants.ramen", options={"durability": "normal"})
SQLITE_FULL = Variant("SQLite FULL", "benchmarks.variants.sqlite_full")
COLLECTOR = Variant("collector", "benchmarks.variants.collector")
COLLECTOR_BATCHES = Variant("collector v2", "benchmarks.variants.collector", options={"batch": 500})
COMMIT_EACH = Variant("commit each", "benchmarks.variants.collector_commit_each")
