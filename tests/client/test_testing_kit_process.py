"""The test server as a process: ``python -m infi.ramen_client.testing``."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from test_testing_kit_client import TIMEOUT_SECONDS, post_to, target

from infi.ramen_client.testing import DEFAULT_TOKEN


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "infi.ramen_client.testing", *arguments]


@contextmanager
def running(record, *arguments: str):
    """The process and what it said when it was ready; killed at the end if it still runs."""
    with subprocess.Popen(
        command("--record", str(record), *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


def lines(record) -> list[dict]:
    return [json.loads(line) for line in record.read_text().splitlines()]


def ended_by(process: subprocess.Popen, number: int) -> int:
    process.send_signal(number)
    return process.wait(TIMEOUT_SECONDS)


@pytest.fixture
def record(tmp_path):
    return tmp_path / "record.jsonl"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_says_where_it_listens_records_what_it_accepts_and_ends_on_a_signal(record, number):
    with running(record) as (process, ready):
        assert ready == {"hostname": f"127.0.0.1:{ready['port']}", "port": ready["port"]}
        for reqid in "a", "ü&", "a":
            assert post_to(ready["hostname"], DEFAULT_TOKEN, target(reqid)).status == 202
        # Before the process has ended: each line was there before its answer.
        path = target().partition("?")[0]
        assert lines(record) == [
            {"reqid": "a", "path": path, "duplicate": False},
            {"reqid": "ü&", "path": path, "duplicate": False},
            {"reqid": "a", "path": path, "duplicate": True},
        ]
        assert ended_by(process, number) == 0
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


def test_the_token_is_the_given_one_and_what_is_refused_is_not_recorded(record):
    with running(record, "--token", "mine") as (_, ready):
        assert post_to(ready["hostname"], DEFAULT_TOKEN, target()).status == 401
        assert post_to(ready["hostname"], "mine", "/elsewhere").status == 404
        assert post_to(ready["hostname"], "mine", target()).status == 202
    assert len(lines(record)) == 1


def test_a_restart_on_the_same_port_knows_the_duplicates_of_before(record):
    with running(record) as (process, ready):
        post_to(ready["hostname"], DEFAULT_TOKEN, target("1"))
        assert ended_by(process, signal.SIGTERM) == 0
    with running(record, "--port", str(ready["port"])) as (_, again):
        assert again == ready
        answer = post_to(ready["hostname"], DEFAULT_TOKEN, target("1"))
        assert answer.json() == {"code": "ACCEPTED", "details": "a duplicate"}
        post_to(ready["hostname"], DEFAULT_TOKEN, target("2"))
        post_to(ready["hostname"], DEFAULT_TOKEN, target("1", data_type="events"))
    assert [(line["reqid"], line["duplicate"]) for line in lines(record)] == [
        ("1", False),
        ("1", True),
        ("2", False),
        ("1", False),
    ]


def test_what_a_killed_process_answered_is_in_the_record_and_its_torn_line_is_cut_off(record):
    with running(record) as (process, ready):
        post_to(ready["hostname"], DEFAULT_TOKEN, target("1"))
        process.kill()
    whole = record.read_bytes()
    record.write_bytes(whole + b'{"reqid": "2", "pa')
    with running(record) as (_, ready):
        assert record.read_bytes() == whole
        for reqid in "2", "1":
            post_to(ready["hostname"], DEFAULT_TOKEN, target(reqid))
    assert [(line["reqid"], line["duplicate"]) for line in lines(record)] == [
        ("1", False),
        ("2", False),
        ("1", True),
    ]


@pytest.mark.parametrize("line", [b"hello\n", b"[]\n", b'{"reqid": "1"}\n', b"\xff\n", b"\n"])
def test_a_file_that_is_no_record_is_left_alone(record, line):
    record.write_bytes(b'{"reqid": "1", "path": "/", "duplicate": false}\n' + line)
    before = record.read_bytes()
    ended = subprocess.run(
        command("--record", str(record)), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1
    assert "line 2 of" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert record.read_bytes() == before


@pytest.mark.parametrize("arguments", [["--port", "99999"], ["--port", "-1"]])
def test_a_port_that_cannot_be_had_is_one_line_and_exit_1(record, arguments):
    ended = subprocess.run(
        command("--record", str(record), *arguments), capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("ramen test server: ")
    assert len(ended.stderr.splitlines()) == 1


def test_sigusr1_begins_and_ends_an_outage_of_503(record):
    with running(record) as (process, ready):

        def answers_until(status: int) -> None:
            deadline = time.monotonic() + TIMEOUT_SECONDS
            while (answer := post_to(ready["hostname"], DEFAULT_TOKEN, target())).status != status:
                assert time.monotonic() < deadline
            if status == 503:
                assert answer.json()["code"] == "UNAVAILABLE"

        answers_until(202)
        process.send_signal(signal.SIGUSR1)
        answers_until(503)
        recorded = len(lines(record))
        assert post_to(ready["hostname"], DEFAULT_TOKEN, target("during")).status == 503
        assert len(lines(record)) == recorded
        process.send_signal(signal.SIGUSR1)
        answers_until(202)
        assert ended_by(process, signal.SIGTERM) == 0


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit (Linux)")
def test_a_line_that_cannot_be_written_is_answered_with_500_and_leaves_no_trace(record):
    with running(record) as (process, ready):
        post_to(ready["hostname"], DEFAULT_TOKEN, target("1"))
        before = record.read_bytes()
        soft, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (len(before) + 10, hard))
        assert post_to(ready["hostname"], DEFAULT_TOKEN, target("2")).status == 500
        assert record.read_bytes() == before
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (soft, hard))
        assert post_to(ready["hostname"], DEFAULT_TOKEN, target("2")).status == 202
        assert [line["duplicate"] for line in lines(record)] == [False, False]
        assert ended_by(process, signal.SIGTERM) == 0
        assert os.strerror(27) in process.stderr.read()
