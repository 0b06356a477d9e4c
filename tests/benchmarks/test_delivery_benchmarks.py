"""The benchmarks of the ways to deliver, in a tiny form; and the line and the server that they measure by."""

from __future__ import annotations

import socket
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from benchmarks import delivery
from benchmarks.__main__ import BENCHMARKS, WAYS
from benchmarks.counting_server import BATCH_PATH, Counter, MalformedRequestError, record_heads
from benchmarks.environment import HERE
from benchmarks.harness import Size, run, start
from benchmarks.whole_way import WHOLE_WAY
from infi.ramen_protocol import BatchOutcome, Coding, Envelope, compress_batch, encode_record, judge_batch

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.mark.structures import ParameterSet

TINY = Size(2)


def every_way(*, ours: bool) -> list[ParameterSet]:
    return [
        pytest.param(benchmark.name, variant.name, id=f"{benchmark.name}, {variant.name}")
        for benchmark in WAYS.values()
        for variant in benchmark.variants
        if (variant.environment == HERE) is ours and benchmark not in (delivery.LONG_LINE, WHOLE_WAY)
    ]


def tiny(name: str, variant: str, work: Path) -> None:
    benchmark = WAYS[name]
    variants = tuple(one for one in benchmark.variants if one.name == variant)
    result = run(replace(benchmark, variants=variants), rounds=1, size=TINY, work=work, say=lambda _: None)
    assert result.failures == {}
    (figures,) = result.rounds[variant]
    assert figures[benchmark.headline] > 0
    missing = {column.key for column in benchmark.columns} - set(figures)
    assert missing <= ({"wire_bytes"} if "collector" in variant else set())


@pytest.mark.parametrize(("name", "variant"), every_way(ours=True))
def test_a_tiny_run_of_each_way_works(name: str, variant: str, tmp_path: Path) -> None:
    tiny(name, variant, tmp_path)


@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "variant"), every_way(ours=False))
def test_a_tiny_run_of_the_real_1x_by_each_way_works(name: str, variant: str, tmp_path: Path) -> None:
    tiny(name, variant, tmp_path)


def test_the_ways_run_only_when_they_are_asked_for() -> None:
    assert not set(WAYS) & set(BENCHMARKS)


def test_a_way_that_loses_a_message_has_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = delivery.CountingServer.finish

    def forgetful(self: delivery.CountingServer) -> delivery.Tally:
        tally = original(self)
        return replace(tally, messages=tally.messages - 1)

    monkeypatch.setattr(delivery.CountingServer, "finish", forgetful)
    benchmark = replace(delivery.LOOPBACK, variants=delivery.LOOPBACK.variants[1:2])
    result = run(benchmark, rounds=1, size=TINY, work=tmp_path, say=lambda _: None)
    (reason,) = result.failures.values()
    assert "10 queued, 10 delivered as the reader says, 9 as the server says" in reason


def records(count: int) -> bytes:
    return b"".join(
        encode_record(Envelope("c", 1, "s", "t", "v1", "1", f"r{number}"), b'{"a":"\n}"}')
        for number in range(count)
    )


@pytest.mark.parametrize("coding", [Coding.ZSTD, Coding.GZIP, Coding.IDENTITY])
def test_the_counting_server_accepts_each_record_of_a_batch_once(coding: Coding) -> None:
    counter = Counter(batches=True)
    label = b"" if coding is Coding.IDENTITY else b"\r\nContent-Encoding: " + coding.label.encode()
    request = (BATCH_PATH, b"POST / HTTP/1.1" + label, compress_batch(records(7), coding))
    answers = counter.answers([request, request])
    assert counter.tally.messages == 7
    head, body = answers[: len(answers) // 2].split(b"\r\n\r\n")
    assert b"Ramen-Batch: path=" in head
    judgement = judge_batch(200, {}, body, 7)
    assert judgement.outcome is BatchOutcome.RESULTS


def test_the_counting_server_refuses_what_is_no_batch() -> None:
    with pytest.raises(MalformedRequestError):
        record_heads(records(1) + b"rubbish")


def test_what_goes_over_the_line_arrives_in_order_after_its_delay_and_ends_with_its_end() -> None:
    sent = b"".join(b"%07d" % number for number in range(100_000))
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        start(
            [sys.executable, "-m", "benchmarks.delaying_proxy", str(listener.getsockname()[1]), "30"]
        ) as proxy,
        socket.create_connection(("127.0.0.1", int(proxy.hear()))) as near,
    ):
        began = time.monotonic()
        far, _ = listener.accept()
        with far:
            far.sendall(b"hello")
            near.settimeout(30)
            assert near.recv(5) == b"hello"
            assert time.monotonic() - began >= 0.03
            near.sendall(sent)
            near.close()
            received = b""
            while some := far.recv(1 << 16):
                received += some
    assert received == sent
