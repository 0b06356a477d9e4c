"""The collector's memory under steady load: what it has taken leaves nothing behind."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.append(
    str(Path(__file__).parent.parent / "server")
)  # what the tests of the collector share is theirs

from hard_kit import CollectorProcess
from wire_kit import Wire

MIB = 1024 * 1024
BODY = b'{"text": "' + b"x" * 1000 + b'"}'


def load(collector: CollectorProcess, seconds: float) -> tuple[int, int, int]:
    """Eight connections for so long; returns memory at a quarter of the time and at its end, and how many were taken."""
    end = time.monotonic() + seconds
    counts = [0] * 8

    def post(worker: int) -> None:
        with Wire(collector) as wire:
            while time.monotonic() < end:
                for kind in range(8):
                    # One of eight is a duplicate, one is at fault.
                    reqid = f"{worker}-{counts[worker]}-{kind if kind != 1 else 0}"
                    answer = wire.post(reqid, b"{" if kind == 2 else BODY)
                    assert answer.status == (400 if kind == 2 else 202)
                counts[worker] += 1

    threads = [threading.Thread(target=post, args=(worker,)) for worker in range(len(counts))]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 4)
    early = collector.memory("VmRSS")
    for thread in threads:
        thread.join(seconds + 60)
    return early, collector.memory("VmRSS"), sum(counts) * 8


@pytest.mark.system
def test_memory_stays_flat_for_15_seconds(tmp_path: Path) -> None:
    with CollectorProcess(tmp_path / "data") as collector:
        early, late, count = load(collector, 15)
        assert count > 1000
        assert late - early < 16 * MIB


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_memory_stays_flat_for_two_minutes(tmp_path: Path) -> None:
    with CollectorProcess(tmp_path / "data") as collector:
        early, late, count = load(collector, 120)
        print(f"{early / MIB:.1f} MiB at 30 s, {late / MIB:.1f} MiB at 120 s, {count} requests")
        assert late - early < 8 * MIB
