"""Telemetry as a storage system sends it: about 1 KB of JSON, 400 to 550 bytes as a zlib stream."""

from __future__ import annotations

import random
from typing import Any

_COUNTERS = ("read_ops", "write_ops", "read_bytes", "write_bytes", "read_latency_us", "write_latency_us")


def samples(count: int, seed: int) -> list[dict[str, Any]]:
    """Return ``count`` different samples, the same ones for the same seed (so every variant pushes the same)."""
    source = random.Random(seed)
    return [_sample(source, index) for index in range(count)]


def _sample(source: random.Random, index: int) -> dict[str, Any]:
    return {
        "timestamp": 1_750_000_000_000 + index * 1000,
        "host": f"node-{index % 3 + 1}",
        "component": "san_totals",
        "healthy": True,
        "temperature_c": round(source.gauss(41, 3), 1),
        "cpu_percent": round(source.uniform(2, 98), 2),
        "volumes": [
            {"name": f"volume-{number}"}
            | {counter: round(source.lognormvariate(8, 2), 3) for counter in _COUNTERS}
            for number in range(6)
        ],
    }
