"""The benchmarks' arithmetic is right, and a tiny run of each of them works."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.catalogue import RAW, SQLITE_FULL, V1, V2, Variant
from benchmarks.counting_server import MalformedRequestError, split_requests
from benchmarks.environment import Environment, EnvironmentMakeError
from benchmarks.harness import (
    Benchmark,
    Column,
    Ratio,
    Result,
    Run,
    RunError,
    Size,
    percentile,
    ratio,
    run,
    run_workers,
    start,
    summarise,
)
from benchmarks.machine import facts
from benchmarks.measurement import Measurement, measured
from benchmarks.push import SLOW_DISKS
from benchmarks.report import as_json, as_markdown
from benchmarks.sample import samples
from benchmarks.worker import Order

if TYPE_CHECKING:
    from _pytest.mark.structures import ParameterSet

TINY = Size(24)


def quiet(_text: str) -> None:
    pass


def scripted(rates: dict[str, list[float]], *, warm_up_rounds: int = 0) -> tuple[Benchmark, list[str]]:
    """Return a benchmark whose variants answer these rates in turn (a negative one fails), and its log of turns."""
    turns: list[str] = []

    def measure(one: Run) -> tuple[dict[str, float], dict[str, str]]:
        name = one.variant.name
        assert list(one.directory.iterdir()) == []
        (one.directory / "left").write_text("behind")
        turns.append(name)
        rate = rates[name].pop(0)
        if rate < 0:
            raise RunError("first line\nthe disk is on fire")
        return {"rate": rate, "worst": rate * 10}, {"library": "1.0"}

    benchmark = Benchmark(
        name="scripted",
        title="A script",
        variants=tuple(Variant(name, "none") for name in rates),
        bases=("a",),
        headline="rate",
        columns=(Column("rate", "things/s"), Column("worst", "worst", 1, max), Column("absent", "absent")),
        measure=measure,
        normal=TINY,
        quick=TINY,
        warm_up_rounds=warm_up_rounds,
    )
    return benchmark, turns


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (50, 50.0), (99, 99.0), (99.5, 100.0), (100, 100.0)]
)
def test_a_percentile_is_the_nearest_rank_in_any_order(percent: float, expected: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == expected


def test_a_percentile_of_one_value_is_that_value_and_of_none_an_error() -> None:
    assert percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_workers_figures_are_summed_over_the_time_from_first_start_to_last_end() -> None:
    early = Measurement(
        messages=30, started=100.0, ended=101.0, cpu_seconds=0.001, written_bytes=3000,
        peak_bytes=2 << 20, latencies=[1.0, 2.0, 3.0],
    )  # fmt: skip
    late = Measurement(
        messages=10, started=100.5, ended=102.0, cpu_seconds=0.003, written_bytes=1000,
        peak_bytes=5 << 20, latencies=[4.0],
    )  # fmt: skip
    assert summarise([late, early]) == {
        "rate": 20.0, "cpu_us": pytest.approx(100.0), "written_bytes": 100.0, "peak_mib": 5.0,
        "p50_us": 2.0, "p99_us": 4.0, "max_us": 4.0,
    }  # fmt: skip


def test_a_run_that_handled_nothing_is_no_figure() -> None:
    with pytest.raises(RunError, match="no message"):
        summarise([Measurement()])


def test_a_ratio_is_taken_within_each_round() -> None:
    fast = [{"rate": rate} for rate in (10.0, 40.0, 90.0)]
    slow = [{"rate": rate} for rate in (10.0, 20.0, 30.0)]
    assert ratio(fast, slow, "rate") == Ratio(median=2.0, least=1.0, most=3.0)
    assert ratio(fast, slow[:1], "rate") == Ratio(1.0, 1.0, 1.0)
    assert ratio(fast, [], "rate") is None


def test_a_figure_that_one_side_lacks_is_not_compared() -> None:
    assert ratio([{"rate": 4.0}], [{"rate": 2.0, "bytes": 1.0}], "bytes") is None
    assert ratio([{"rate": 4.0, "bytes": 1.0}], [{"rate": 2.0}], "bytes") is None


def test_further_columns_are_compared_as_the_headline_is(tmp_path: Path) -> None:
    benchmark, _ = scripted({"a": [1000], "b": [5]})
    result = run(replace(benchmark, further=("worst",)), rounds=1, size=TINY, work=tmp_path, say=quiet)
    lines = [line for line in as_markdown({}, [result]).splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    assert table[0][-2:] == ["/ a", "worst / a"]
    assert table[3][-2:] == ["0.0050 (0.0050..0.0050)"] * 2
    variants = as_json({}, [result])["benchmarks"]["scripted"]["variants"]
    assert variants["b"]["further"]["worst"]["a"]["median"] == 0.005


def test_variants_take_turns_in_fresh_directories_that_are_removed(tmp_path: Path) -> None:
    benchmark, turns = scripted({"a": [1, 2], "b": [3, 4], "c": [5, 6]})
    result = run(benchmark, rounds=2, size=TINY, work=tmp_path, say=quiet)
    assert turns == ["a", "b", "c", "a", "b", "c"]
    assert [figures["rate"] for figures in result.rounds["c"]] == [5, 6]
    assert list(tmp_path.iterdir()) == []


def test_warm_up_rounds_are_run_and_not_counted(tmp_path: Path) -> None:
    benchmark, turns = scripted({"a": [1, 2], "b": [3, 4]}, warm_up_rounds=1)
    result = run(benchmark, rounds=1, size=TINY, work=tmp_path, say=quiet)
    assert turns == ["a", "b", "a", "b"]
    assert [figures["rate"] for figures in result.rounds["a"]] == [2]


def test_a_variant_that_fails_is_left_out_with_its_reason_and_the_others_go_on(tmp_path: Path) -> None:
    benchmark, turns = scripted({"a": [10, 10, 10], "b": [20, -1, 20]})
    result = run(benchmark, rounds=3, size=TINY, work=tmp_path, say=quiet)
    assert turns == ["a", "b", "a", "b", "a"]
    assert result.failures == {"b": "RunError: first line\nthe disk is on fire"}
    assert list(tmp_path.iterdir()) == []
    text = as_markdown({}, [result])
    assert "- **b failed**: the disk is on fire" in text
    assert "2.00 (2.00..2.00)" in text


def test_the_table_shows_medians_worsts_and_ratios(tmp_path: Path) -> None:
    benchmark, _ = scripted({"a": [1000, 2000, 6000], "b": [500, 4000, 3000]})
    result = run(benchmark, rounds=3, size=TINY, work=tmp_path, say=quiet)
    lines = as_markdown({"cores": "2"}, [result]).splitlines()
    assert lines[0] == "- cores: 2"
    table = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines if line.startswith("|")]
    assert table[0] == ["variant", "things/s", "worst", "absent", "/ a"]
    assert table[2] == ["a", "2,000", "60,000.0", "-", "-"]
    assert table[3] == ["b", "3,000", "40,000.0", "-", "0.50 (0.50..2.00)"]
    assert len({len(line) for line in lines if line.startswith("|")}) == 1


def test_the_json_report_holds_each_round(tmp_path: Path) -> None:
    benchmark, _ = scripted({"a": [1, 3], "b": [2, 12]})
    result = run(benchmark, rounds=2, size=TINY, work=tmp_path, say=quiet)
    answer = json.loads(json.dumps(as_json({"cores": "2"}, [result])))
    assert answer["machine"] == {"cores": "2"}
    b = answer["benchmarks"]["scripted"]["variants"]["b"]
    assert [figures["rate"] for figures in b["rounds"]] == [2, 12]
    assert b["shown"] == {"rate": 7, "worst": 120, "absent": None}
    assert b["ratios"] == {"a": {"median": 3, "least": 2, "most": 4}}
    assert b["versions"] == {"library": "1.0"}


def test_a_measured_section_counts_its_writes_memory_and_time(tmp_path: Path) -> None:
    with measured() as measurement:
        held = bytearray(1 << 20)
        (tmp_path / "file").write_bytes(held)
    assert measurement.ended > measurement.started
    assert measurement.cpu_seconds > 0
    assert measurement.peak_bytes > len(held)
    if not facts(tmp_path)["file system of the work directory"].startswith("tmpfs"):
        assert measurement.written_bytes >= len(held)


def test_samples_are_a_kilobyte_all_different_and_the_same_for_the_same_seed() -> None:
    texts = [json.dumps(sample, separators=(",", ":")) for sample in samples(50, seed=1)]
    assert len(set(texts)) == 50
    assert all(900 <= len(text) <= 1200 for text in texts)
    assert texts == [json.dumps(sample, separators=(",", ":")) for sample in samples(50, seed=1)]


def test_the_counting_server_takes_requests_apart_wherever_they_are_cut() -> None:
    first = b"POST /a?reqid=1 HTTP/1.1\r\nHost: x\r\ncontent-length: 5\r\nA: b\r\n\r\n\r\n\r\n!"
    second = b"POST /a?reqid=2 HTTP/1.1\r\nContent-Length:2\r\n\r\n{}"
    stream = first + second
    for cut in range(len(stream) + 1):
        requests, rest = split_requests(stream[:cut])
        more, rest = split_requests(rest + stream[cut:])
        assert [(target, body) for target, _, body in requests + more] == [
            (b"/a?reqid=1", b"\r\n\r\n!"),
            (b"/a?reqid=2", b"{}"),
        ]
        assert rest == b""


@pytest.mark.parametrize(
    "length", [b"", b"Content-Length: x", b"Content-Length: 99999999", b"Content-Length: -1"]
)
def test_the_counting_server_refuses_a_request_without_a_usable_length(length: bytes) -> None:
    with pytest.raises(MalformedRequestError):
        split_requests(b"POST / HTTP/1.1\r\n" + length + b"\r\n\r\n")


def test_a_child_that_dies_is_reported_with_its_last_words() -> None:
    with start([sys.executable, "-c", "raise SystemExit('no disk')"]) as child:
        child.say("go")
        with pytest.raises(RunError, match=r"(?s)status 1.*no disk"):
            child.finish()


def test_a_worker_whose_adapter_cannot_be_imported_is_reported(tmp_path: Path) -> None:
    order = Order(task="push", adapter="benchmarks.variants.absent", directory=str(tmp_path), messages=1)
    with pytest.raises(RunError, match=r"No module named 'benchmarks\.variants\.absent'"):
        run_workers(Path(sys.executable), [order])


def test_a_drain_that_leaves_messages_behind_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever loses one message between filling and draining must not pass for a rate."""
    benchmark = replace(BENCHMARKS["drain"], variants=(RAW,))

    def lossy(interpreter: Path, orders: list[Order]) -> list[Measurement]:
        answer = run_workers(interpreter, orders)
        if orders[0].task == "fill":
            queued = next(tmp_path.iterdir()) / "raw"
            queued.write_bytes(queued.read_bytes()[400:])
        return answer

    monkeypatch.setattr("benchmarks.drain.run_workers", lossy)
    result = run(benchmark, rounds=1, size=TINY, work=tmp_path, say=quiet)
    assert "24 queued, 23 delivered as the reader says, 23 as the server says" in result.failures["raw"]


def taken_part_in(variant: Variant) -> list[ParameterSet]:
    return [
        pytest.param(name, marks=[pytest.mark.system] if benchmark in SLOW_DISKS else [])
        for name, benchmark in BENCHMARKS.items()
        if variant in benchmark.variants
    ]


def tiny(name: str, variant: Variant, work: Path) -> Result:
    benchmark = BENCHMARKS[name]
    variants = [one for one in benchmark.variants if one.name.startswith(variant.name)]
    result = run(replace(benchmark, variants=tuple(variants)), rounds=1, size=TINY, work=work, say=quiet)
    assert result.failures == {}
    for variant_ in variants:
        (figures,) = result.rounds[variant_.name]
        assert set(figures) >= {column.key for column in benchmark.columns}
        assert figures[benchmark.headline] > 0
    return result


@pytest.mark.parametrize("name", taken_part_in(RAW))
def test_a_tiny_run_of_the_raw_limit_works(name: str, tmp_path: Path) -> None:
    tiny(name, RAW, tmp_path)


@pytest.mark.parametrize("name", taken_part_in(SQLITE_FULL))
def test_a_tiny_run_of_plain_sqlite_works(name: str, tmp_path: Path) -> None:
    tiny(name, SQLITE_FULL, tmp_path)


@pytest.mark.parametrize("name", taken_part_in(V2))
def test_a_tiny_run_of_this_version_works(name: str, tmp_path: Path) -> None:
    result = tiny(name, V2, tmp_path)
    assert result.versions["2.0"]["infi.ramen_client"].startswith("2.")


@pytest.mark.system
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", taken_part_in(V1))
def test_a_tiny_run_of_the_real_1x_works(name: str, tmp_path: Path) -> None:
    """Makes benchmarks/.env-1x where there is none yet, for which pip needs its index."""
    result = tiny(name, V1, tmp_path)
    assert result.versions["1.x"]["infi.ramen_client"] == "1.40.post3"


@pytest.mark.timeout(300)
def test_an_environment_that_cannot_be_made_says_what_pip_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.environment.__file__", str(tmp_path / "environment.py"))
    environment = Environment(".env-x", (("--no-index", "no-such-distribution-at-all"),))
    with pytest.raises(EnvironmentMakeError, match="no-such-distribution-at-all"):
        environment.interpreter()
    assert not (tmp_path / ".env-x" / ".ready").exists()


def test_the_command_writes_both_reports_and_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    benchmark, turns = scripted({"a": [1, 2, 3], "b": [4, 5, -1]})
    monkeypatch.setitem(BENCHMARKS, "scripted", benchmark)
    written = ["--json", str(tmp_path / "j"), "--markdown", str(tmp_path / "m")]
    assert main(["--only", "scripted", "--quick", *written]) == 0
    assert turns == ["a", "b"] * 2
    text = (tmp_path / "m").read_text()
    assert capsys.readouterr().out == text
    assert "file system of the work directory" in text
    assert json.loads((tmp_path / "j").read_text())["benchmarks"]["scripted"]["failures"] == {}
    assert main(["--only", "scripted", "--rounds", "1", *written]) == 1
    assert capsys.readouterr().out == (tmp_path / "m").read_text()


def test_the_command_refuses_no_rounds() -> None:
    with pytest.raises(SystemExit):
        main(["--rounds", "0"])
