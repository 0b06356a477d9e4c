"""Real telemetry of this machine, about 1 KB a message: how much one is like the one before shows in no made-up sample.

One message holds what the sources of the demonstration measure, but for disks, network interfaces and processes, whose number
is each machine's own.
"""

from __future__ import annotations

import socket
import time
from datetime import UTC, datetime
from functools import cache
from typing import Any

from demo.telemetry import TELEMETRY

_LEFT_OUT = frozenset(("disk_io", "network_interface", "busiest"))
_PAUSE_SECONDS = 0.01


@cache
def telemetry(count: int) -> list[dict[str, Any]]:
    """Measure so often, a hundred times a second; what was measured once serves all variants and rounds."""
    measured = []
    for _ in range(count):
        measured.append(_sample())
        time.sleep(_PAUSE_SECONDS)
    return measured


def _sample() -> dict[str, Any]:
    sources = (
        source for group in TELEMETRY.values() for source in group if source.data_type not in _LEFT_OUT
    )
    values = {source.data_type: list(source.measure()) for source in sources}
    return {"at": datetime.now(UTC).isoformat(), "host": socket.gethostname(), **values}
