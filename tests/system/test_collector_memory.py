"""The collector's memory under steady load, and under many large messages at once: what it has taken leaves nothing behind."""

from __future__ import annotations

import sys
import threading
import time
import zlib
from pathlib import Path

import pytest

sys.path.append(
    str(Path(__file__).parent.parent / "server")
)  # what the tests of the collector share is theirs

from hard_kit import CollectorProcess
from wire_kit import Wire, packed, post_at_once

MIB = 1024 * 1024
LARGEST = 64 * MIB
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


@pytest.mark.system
def test_large_messages_at_once_take_what_the_design_says_and_give_it_back(tmp_path: Path) -> None:
    """At most ``max_memory_bytes``, and what SQLite's check and SQLite's commit need beside it."""
    text = b'"' + b"x" * (LARGEST - 2) + b'"'
    numbers = b"[" + b"1," * (LARGEST // 2 - 2) + b"1]"
    with CollectorProcess(tmp_path / "data") as collector:
        for payload in (text, numbers):
            body = zlib.compress(payload, 1)
            messages = [packed(body, f"large-{payload[1]}-{number}") for number in range(8)]
            statuses = post_at_once(collector, messages)
            assert set(statuses) <= {202, 503}
            assert 202 in statuses
        assert collector.memory("VmHWM") < 800 * MIB
        deadline = time.monotonic() + 20
        while (left := collector.memory("VmRSS")) > 95 * MIB:
            assert time.monotonic() < deadline, (
                f"{left // MIB} MiB: a thread keeps a payload that it is done with"
            )
            time.sleep(0.01)
