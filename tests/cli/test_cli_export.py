"""``ramen export``: what is chosen, how a line looks, and that neither the collector nor a closed pipe minds."""

import json
import subprocess
import sys
import threading
import time
from datetime import datetime

import pytest
from serve_kit import RAMEN, Serve, connect, environment, post

from infi.ramen_cli.main import run
from infi.ramen_protocol import Envelope
from infi.ramen_server import NewMessage, Settings, SqliteStore, Submission

HOUR_MS = 3_600_000
NOON = round(datetime(2026, 3, 1, 12).timestamp() * 1000)
"""Local noon, as a user writes it."""


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "data"


def store(directory, *messages):
    """Messages as (received_at_ms, category, data_type, sender, serial, payload)."""
    held = SqliteStore(directory)
    for number, (received_at, category, data_type, sender, serial, payload) in enumerate(messages):
        envelope = Envelope(category, serial, sender, data_type, "v1", "3.0", f"id-{number}")
        held.commit([Submission((NewMessage(envelope, payload, "first"),))], received_at)
    held.close()


@pytest.fixture
def three(directory):
    store(
        directory,
        (NOON - HOUR_MS, "metrics", "cpu", "imx", 1, b'{"n": 1.10}'),
        (NOON, "metrics", "disk", "ibox", 2, b"[1,\r\n 2]"),
        (NOON + HOUR_MS, "events", "cpu", "imx", 2, '"ä\u2028"'.encode()),
    )
    return directory


def exported(capfdbinary, directory, *options):
    assert run(["export", "--data-dir", str(directory), *options]) == 0
    return capfdbinary.readouterr().out.splitlines(keepends=True)


def test_a_line_has_the_envelope_the_time_and_the_payload_as_it_came(three, capfdbinary):
    lines = exported(capfdbinary, three)
    assert [line[-1:] for line in lines] == [b"\n"] * 3
    assert json.loads(lines[0]) == {
        "received_at": NOON - HOUR_MS,
        "category": "metrics",
        "system_serial": 1,
        "sender": "imx",
        "data_type": "cpu",
        "data_version": "v1",
        "system_version": "3.0",
        "reqid": "id-0",
        "data": {"n": 1.1},
    }
    assert b'"data":{"n": 1.10}}' in lines[0], "its digits"
    assert [json.loads(line)["data"] for line in lines[1:]] == [[1, 2], "ä\u2028"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--category", "metrics"], [0, 1]),
        (["--data-type", "cpu"], [0, 2]),
        (["--sender", "imx", "--system-serial", "2"], [2]),
        (["--system-serial", "2"], [1, 2]),
        (["--since", "2026-03-01T12:00"], [1, 2]),
        (["--until", "2026-03-01T12:00"], [0]),
        (["--since", "2026-03-01", "--until", "2026-03-02"], [0, 1, 2]),
        (["--since", "2026-03-01T11:30", "--until", "2026-03-01T12:00:00.001"], [1]),
        (["--since", "2026-03-02"], []),
        (["--category", "none"], []),
    ],
)
def test_what_is_asked_for_is_what_comes(three, capfdbinary, options, expected):
    lines = exported(capfdbinary, three, *options)
    assert [json.loads(line)["reqid"] for line in lines] == [f"id-{number}" for number in expected]


def test_how_long_ago_counts_from_now(directory, capfdbinary):
    now = time.time_ns() // 1_000_000
    store(
        directory,
        (now - 3 * HOUR_MS, "m", "a", "s", 1, b"1"),
        (now - HOUR_MS, "m", "a", "s", 1, b"2"),
    )
    assert [json.loads(line)["data"] for line in exported(capfdbinary, directory, "--since", "2h")] == [2]
    assert [json.loads(line)["data"] for line in exported(capfdbinary, directory, "--until", "2h")] == [1]


def test_a_zone_that_is_named_counts(directory, capfdbinary):
    noon_utc = 1_772_366_400_000
    store(directory, (noon_utc, "m", "a", "s", 1, b"1"))
    assert len(exported(capfdbinary, directory, "--since", "2026-03-01T12:00Z")) == 1
    assert len(exported(capfdbinary, directory, "--since", "2026-03-01T12:00:00+00:00")) == 1
    assert exported(capfdbinary, directory, "--since", "2026-03-01T12:00-01:00") == []


@pytest.mark.parametrize("when", ["yesterday", "5x", "", "2026-13-01", "99999999999999999999h", "nan"])
def test_a_time_that_is_none_is_refused(three, capsys, when):
    assert run(["export", "--data-dir", str(three), "--since", when]) == 2
    assert "is neither a date" in capsys.readouterr().err


def test_a_file_comes_whole_and_only_for_its_owner(three, tmp_path, capsys):
    target = tmp_path / "out.ndjson"
    target.write_text("before")
    assert run(["export", "--data-dir", str(three), "-o", str(target)]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("3 messages, ")
    assert len(target.read_bytes().splitlines()) == 3
    assert target.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.glob("*.unfinished")) == []


def test_a_file_whose_export_fails_is_what_it_was(three, tmp_path, monkeypatch, capsys):
    def fail(_lines, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("infi.ramen_cli.commands.export._write", fail)
    target = tmp_path / "out.ndjson"
    target.write_text("before")
    assert run(["export", "--data-dir", str(three), "-o", str(target)]) == 3
    assert capsys.readouterr().err == "ramen: No space left on device\n"
    assert target.read_text() == "before"
    assert list(tmp_path.glob("*.unfinished")) == []


def test_where_no_collector_ran_it_says_so_and_makes_nothing(directory, capsys):
    assert run(["export", "--data-dir", str(directory)]) == 3
    assert capsys.readouterr().err == (
        f"ramen: {directory}/messages.db: there is no such file. Has a collector run in this directory?\n"
    )
    assert not directory.exists()


def test_a_reader_that_has_enough_ends_it_quietly(directory):
    store(directory, *((NOON + n, "m", "a", "s", 1, b'"' + b"x" * 50_000 + b'"') for n in range(40)))
    with subprocess.Popen(
        [*RAMEN, "export", "--data-dir", directory],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout.readline().startswith(b'{"received_at":')
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_it_reads_beside_a_collector_that_goes_on_taking_messages(directory):
    with Serve(directory) as serve:
        with Settings(directory) as settings:
            token = settings.add_token("test")
        enough, stop = threading.Event(), threading.Event()
        answered = []

        def push():
            connection = connect(serve)
            while not stop.is_set():
                assert post(connection, token, str(len(answered))) == 202
                answered.append(len(answered))
                if len(answered) >= 50:
                    enough.set()
            connection.close()

        pushing = threading.Thread(target=push)
        pushing.start()
        assert enough.wait(60)
        before = len(answered)
        found = subprocess.run(
            [*RAMEN, "export", "--data-dir", directory],
            capture_output=True, check=True, timeout=100, env=environment(),
        )  # fmt: skip
        stop.set()
        pushing.join(60)
        exported = [json.loads(line)["data"]["n"] for line in found.stdout.splitlines()]
        assert exported == [str(number) for number in range(len(exported))]
        assert before <= len(exported) <= len(answered)
        assert serve.end() == 0


MEASURED = """
import resource, sys
from infi.ramen_cli.main import run
code = run(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def test_its_memory_does_not_grow_with_what_is_held(directory):
    payload = b'"' + b"x" * 1_000_000 + b'"'
    store(directory, *((NOON + n, "m", "a", "s", 1, payload) for n in range(100)))

    def peak(*options):
        found = subprocess.run(
            [sys.executable, "-c", MEASURED, "export", "--data-dir", directory, *options],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=True, timeout=100, env=environment(),
        )  # fmt: skip
        code, peak = found.stderr.split()
        assert int(code) == 0
        return int(peak)

    assert peak() - peak("--category", "none") < 40_000, "KiB, of 100 MB"
