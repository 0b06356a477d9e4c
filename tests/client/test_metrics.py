"""Metrics of queues: the same values for Prometheus, the node exporter's file and OpenTelemetry, read when somebody asks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Sum
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from infi.ramen_client.errors import QueueUnusable
from infi.ramen_client.forwarder import Forwarder
from infi.ramen_client.health import Observation, Trouble, unreadable
from infi.ramen_client.metrics import METRICS, Kind, QueueFiles, collect
from infi.ramen_client.metrics import prometheus as prom
from infi.ramen_client.metrics._sources import Recent
from infi.ramen_client.metrics.opentelemetry import instrument
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import Refuse, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from infi.ramen_client.metrics import Source
    from infi.ramen_client.queue_reader import QueueReader
    from infi.ramen_client.testing import RamenServer

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parsed(text: bytes | str) -> Samples:
    """Prometheus' own reading of a text: values by name and labels."""
    decoded = text.decode() if isinstance(text, bytes) else text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(decoded)
        for sample in family.samples
    }


def value(samples: Samples, name: str, queue: str = "imx_1099", **labels: str) -> float | None:
    return samples.get((f"ramen_queue_{name}", tuple(sorted({"queue": queue, **labels}.items()))))


class Fixed:
    """A source that says what it is told, and counts how often it is asked."""

    def __init__(self, *seen: Observation) -> None:
        self.seen = seen
        self.asked = 0

    def observe(self) -> Sequence[Observation]:
        self.asked += 1
        return self.seen


def test_names_follow_the_conventions_of_prometheus_and_each_says_what_it_means() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert metric.name.startswith("ramen_queue_")
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.name.removesuffix("_total").endswith("_seconds") == (metric.unit == "s")
        assert metric.name.removesuffix("_total").endswith("_bytes") == (metric.unit == "By")
        assert metric.meaning.endswith(".")
        assert metric.opentelemetry_name.startswith("ramen.queue.")
    assert len({metric.opentelemetry_name for metric in METRICS}) == len(METRICS)


def test_the_values_are_those_of_the_queue_and_its_books(
    server: RamenServer, writer: QueueWriter, reader: QueueReader
) -> None:
    found = parsed(prom.text(reader))
    assert value(found, "last_success_timestamp_seconds") is None, "never is no number"
    assert value(found, "oldest_waiting_age_seconds") == 0
    writer.push_many([("a", "b", 1, n) for n in range(3)])
    reader.drain(10)
    server.answer_with(Refuse("BAD_REQUEST"))
    writer.push("a", "b", 1, 400)
    reader.drain(10)
    server.default = Status(503)
    writer.push("a", "b", 1, 503)
    reader.run(blocking=False)
    writer._queue.pop()
    writer.push("a", "b", 1, {"large": os.urandom(20_000).hex()})
    found = parsed(prom.text(reader))
    expected = {
        "up": 1, "healthy": 0, "messages_waiting": 1, "messages_in_flight": 0, "messages_pushed_total": 6, "messages_found_total": 0,
        "dead_letters": 1, "books_difference": 0, "limit_bytes": 5 * 1024**3, "failed_attempts": 1, "outages_total": 1,
        "reader_running": 0, "rules": 0, "messages_maybe_twice_total": 0,
    }  # fmt: skip
    assert {name: value(found, name) for name in expected} == expected
    assert value(found, "messages_settled_total", outcome="accepted") == 3
    assert value(found, "messages_lost_total", reason="purged") == 1
    assert value(found, "messages_lost_total", reason="trimmed") == 0
    assert value(found, "problem", trouble="refusals") == 1
    assert value(found, "problem", trouble="stuck") == 0
    for name in ("size_bytes", "disk_free_bytes", "dead_letter_bytes"):
        assert (value(found, name) or 0) > 0
    for name in ("oldest_waiting_age_seconds", "outage_seconds"):
        assert 0 <= (value(found, name) or 0) < 60
    for name in ("last_success_timestamp_seconds", "next_attempt_timestamp_seconds"):
        assert (value(found, name) or 0) > 1.7e9


def test_counters_go_on_in_another_process_and_after_a_restart(
    server: RamenServer, writer: QueueWriter, reader: QueueReader, queue_dir: Path
) -> None:
    writer.push("a", "b", 1, 1)
    reader.drain(10)
    reader.close()
    program = "import sys; from infi.ramen_client.metrics import QueueFiles, prometheus as p; print(p.text(QueueFiles(sys.argv[1])).decode())"
    said = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(queue_dir)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = parsed(said)
    assert value(found, "messages_settled_total", outcome="accepted") == 1
    assert value(found, "limit_bytes") is None, "it stands in no file of the queue"
    assert value(found, "outages_total") is None, "only the process that delivers knows"


def test_every_family_of_the_text_is_what_prometheus_client_makes_of_it(
    writer: QueueWriter, reader: QueueReader
) -> None:
    registry = CollectorRegistry()
    registry.register(prom.QueueCollector(Fixed(*reader.observe())))
    ours = prom.text(Fixed(*reader.observe())).decode()
    theirs = parsed(generate_latest(registry))
    differ = {"ramen_queue_disk_free_bytes"}
    assert {key: n for key, n in parsed(ours).items() if key[0] not in differ} == {
        key: n for key, n in theirs.items() if key[0] not in differ
    }
    assert ours.endswith("\n")
    assert ours.count("# TYPE ") == ours.count("# HELP ") == len(collect(reader))


def test_a_label_can_break_out_of_nothing(reader: QueueReader) -> None:
    name = 'a"} 1\n# b\\'
    seen = Observation(name, None, unreadable("x"), None)
    assert value(parsed(prom.text(Fixed(seen))), "up", queue=name) == 0


def test_a_queue_that_cannot_be_read_is_down_and_ill_and_has_no_other_value(tmp_path: Path) -> None:
    (tmp_path / "imx_1.db").write_bytes(b"no database" * 1000)
    found = parsed(prom.text(QueueFiles(tmp_path)))
    assert value(found, "up", queue="imx_1") == 0
    assert value(found, "healthy", queue="imx_1") == 0
    assert value(found, "problem", queue="imx_1", trouble="unreadable") == 1
    assert {name for name, _ in found} == {"ramen_queue_up", "ramen_queue_healthy", "ramen_queue_problem"}


def test_a_directory_is_looked_at_anew_each_time(make_config: Any, queue_dir: Path) -> None:
    source = QueueFiles(queue_dir, max_queue_size=77)
    (nowhere,) = source.observe()
    assert nowhere.status is None
    assert "there is no queue" in nowhere.health.reasons[0]
    for serial in (1, 2):
        QueueWriter(make_config(system_serial=serial)).close()
    assert [seen.queue for seen in source.observe()] == ["imx_1", "imx_2"]
    for file in queue_dir.glob("imx_1.db*"):
        file.unlink()
    (seen,) = source.observe()
    assert seen.queue == "imx_2"
    assert seen.status is not None
    assert seen.status.max_queue_size == 77
    assert len(source._open) == len(source._watches) == 1
    with QueueWriter(make_config(system_serial=1)) as writer:
        writer.push("a", "b", 1, 1)
        assert [one.status and one.status.waiting for one in source.observe()] == [1, 0]
    (seen,) = QueueFiles(queue_dir / "imx_1.db").observe()
    assert seen.queue == "imx_1"


def test_a_source_is_asked_at_most_once_a_second_and_a_broken_one_breaks_nobody() -> None:
    now = [0.0]
    fixed = Fixed()
    recent = Recent(fixed, lambda: now[0])
    threads = [threading.Thread(target=recent.observe) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fixed.asked == 1
    now[0] = 1.0
    recent.observe()
    assert fixed.asked == 2

    class Broken:
        def observe(self) -> Sequence[Observation]:
            raise QueueUnusable("no")

    assert list(prom.QueueCollector(Broken()).collect()) == []


# The file


def test_the_file_is_replaced_in_one_step_readable_by_all_with_nothing_left_beside_it(
    writer: QueueWriter, reader: QueueReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "ramen.prom"
    target.write_text("old")
    held = target.open()
    prom.write_textfile(reader, target)
    assert held.read() == "old", "who has it open goes on reading the old one"
    held.close()
    assert value(parsed(target.read_text()), "up") == 1
    assert target.stat().st_mode & 0o777 == 0o644

    def full(*_arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    before = target.read_bytes()
    monkeypatch.setattr("infi.ramen_client.metrics.prometheus.os.fchmod", full)
    with pytest.raises(OSError, match="No space"):
        prom.write_textfile(reader, target)
    assert target.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["queue", "ramen.prom"]


# OpenTelemetry


def exported(reader: InMemoryMetricReader) -> dict[str, Any]:
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return {
        metric.name: metric
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def test_opentelemetry_gets_the_same_values_with_one_look_for_all_instruments(
    writer: QueueWriter, reader: QueueReader
) -> None:
    writer.push("a", "b", 1, 1)
    source = Fixed(*reader.observe())
    sink = InMemoryMetricReader()
    with_sdk = MeterProvider([sink], shutdown_on_exit=False)
    instrument(source, with_sdk.get_meter("test"))
    found = exported(sink)
    assert source.asked == 1
    assert found.keys() == {metric.opentelemetry_name for metric, _ in collect(source)}
    waiting = found["ramen.queue.messages_waiting"]
    (point,) = waiting.data.data_points
    assert (point.value, dict(point.attributes), waiting.unit) == (
        1,
        {"ramen.queue": "imx_1099"},
        "{message}",
    )
    lost = found["ramen.queue.messages_lost"]
    assert isinstance(lost.data, Sum)
    assert lost.data.is_monotonic
    assert {point.attributes["ramen.reason"] for point in lost.data.data_points} >= {"trimmed", "expired"}
    assert len(found["ramen.queue.problem"].data.data_points) == len(Trouble)
    with_sdk.shutdown()


def test_opentelemetry_without_an_sdk_costs_nothing_and_a_closed_queue_has_no_values(
    writer: QueueWriter, reader: QueueReader
) -> None:
    source = Fixed()
    instrument(source)
    assert source.asked == 0
    sink = InMemoryMetricReader()
    with_sdk = MeterProvider([sink], shutdown_on_exit=False)
    instrument(reader, with_sdk.get_meter("test"))
    reader.close()
    assert exported(sink) == {}
    with_sdk.shutdown()


def test_neither_package_is_needed_for_the_text_nor_loaded_by_the_package(
    run_python: Callable[..., str],
) -> None:
    program = """
        import sys
        import infi.ramen_client.queue_reader, infi.ramen_client.metrics.opentelemetry
        from infi.ramen_client.metrics import prometheus
        print([name for name in sys.modules if name.startswith(("prometheus_client", "opentelemetry"))])
    """
    assert run_python(program) == "[]\n"


# A forwarder as a source


def test_a_forwarder_sees_every_queue_of_its_directory_and_those_that_it_cannot_open(
    server: RamenServer, make_config: Any, queue_dir: Path
) -> None:
    def load(**fields: Any) -> Any:
        return make_config(**fields)

    for serial in (1, 2):
        QueueWriter(make_config(system_serial=serial)).close()
    (queue_dir / "bad_3.db").write_bytes(b"no database" * 1000)
    with Forwarder(load, queue_dir) as forwarder:
        forwarder.look()
        source: Source = forwarder
        seen = {one.queue: one for one in source.observe()}
        assert {name: one.health.healthy for name, one in seen.items()} == {
            "imx_1": True,
            "imx_2": True,
            "bad_3": False,
        }
        assert forwarder.hanging() == {}
        assert seen["imx_1"].outages == 0
    with Forwarder(load) as single:
        single.look()
        assert [one.health.healthy for one in single.observe()] == [True]
        for file in queue_dir.glob("imx_1099.db*"):
            file.unlink()
        (running,) = single._running.values()
        running.thread.join(20)
        for _ in range(2):  # before and after it has noticed
            (gone,) = single.observe()
            assert [problem.trouble for problem in gone.health.problems] == [Trouble.UNREADABLE]
            single.look()
