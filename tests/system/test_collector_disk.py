"""The collector's disk runs full or fails under it: 503 before the disk is full, nothing half stored, well again by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest

sys.path.append(
    str(Path(__file__).parent.parent / "server")
)  # what the tests of the collector share is theirs

from hard_kit import CollectorProcess, rows, stored
from wire_kit import Wire

from infi.ramen_client import QueueReader, QueueReaderConfig, QueueWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.system

KIB, MIB = 1024, 1024 * 1024
BODY = b'"' + b"x" * 20_000 + b'"'


def free_bytes(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def fill(wire: Wire) -> list[str]:
    """Post until the collector takes no more; returns the reqids that it took."""
    taken: list[str] = []
    while True:
        answer = wire.post(f"fill-{len(taken)}", BODY)
        if answer.status != 202:
            assert answer.status == 503
            assert b'"UNAVAILABLE"' in answer.body
            assert int(answer.headers["retry-after"]) > 0
            return taken
        taken.append(f"fill-{len(taken)}")


def assert_whole(directory: Path, reqids: list[str]) -> None:
    """These messages, each with its key, and nothing else; a sound file."""
    assert [message.envelope.reqid for message in stored(directory)] == reqids
    tables = rows(directory)
    days = [day for _, day, *_ in tables["messages.db: seen_day"]]
    assert sum(len(tables[f"messages.db: seen_{day}"]) for day in days) == len(reqids)
    assert tables["messages.db: book"][0][3:5] == (len(reqids), len(reqids))
    with closing(
        apsw.Connection(str(directory / "messages.db"), flags=apsw.SQLITE_OPEN_READONLY)
    ) as connection:
        assert connection.pragma("integrity_check") == "ok"


def status_of(wire: Wire, path: str) -> int:
    return int(wire.send(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).answer().status)


def post_until_taken(collector: CollectorProcess, reqid: str) -> None:
    deadline = time.monotonic() + 60
    with Wire(collector) as wire:
        while wire.post(reqid, BODY).status != 202:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_before_the_disk_is_full_it_answers_503_and_goes_on_by_itself_when_there_is_room(
    small_disk: Path,
) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    with CollectorProcess(small_disk / "data", min_free_bytes=2 * MIB) as collector:
        with Wire(collector) as wire:
            taken = fill(wire)
            assert len(taken) > 20
            assert 2 * MIB - 4 * len(BODY) < free_bytes(small_disk), "before the disk is full"
            assert status_of(wire, "/healthz") == 200
            assert status_of(wire, "/readyz") == 503
            assert_whole(small_disk / "data", taken)
            subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
            assert status_of(wire, "/readyz") in (200, 503)  # 503: the last failure is shown for some seconds
        post_until_taken(collector, "after")
        assert "Traceback" not in collector.log()
    assert_whole(small_disk / "data", [*taken, "after"])


def test_a_disk_that_is_full_to_the_last_page_loses_nothing_that_was_answered(small_disk: Path) -> None:
    with CollectorProcess(small_disk / "data", min_free_bytes=0) as collector:
        with Wire(collector) as wire:
            taken = fill(wire)
            ballast = small_disk / "ballast"
            with ballast.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"x" * KIB)
                except OSError:
                    pass
            for number in range(5):
                assert wire.post(f"full-{number}", b"1").status in (202, 503)
            taken += [
                f"full-{number}" for number in range(5) if is_stored(small_disk / "data", f"full-{number}")
            ]
            assert_whole(small_disk / "data", taken)
            ballast.unlink()
            subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
        post_until_taken(collector, "after")
    assert_whole(small_disk / "data", [*taken, "after"])


def is_stored(directory: Path, reqid: str) -> bool:
    return any(message.envelope.reqid == reqid for message in stored(directory))


def test_a_client_keeps_what_the_full_collector_does_not_take_and_delivers_it_once_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    with CollectorProcess(small_disk / "data", min_free_bytes=6 * MIB) as collector:
        config = QueueReaderConfig(
            {
                "sender": "imx", "system_serial": 1099, "system_version": "3", "queue_dir": str(tmp_path / "queue"),
                "hostname": f"127.0.0.1:{collector.port}", "auth_token": collector.first_token, "ssl": False,
                "retry_delay": 0.05,
            }
        )  # fmt: skip
        with QueueWriter(config) as writer, QueueReader(config) as reader:
            reqids = [writer.push("metrics", "a", "v1", BODY) for _ in range(100)]
            before = reader.run(blocking=False)
            assert 0 < before < 100
            assert (writer.queue_size(), writer.books().accepted) == (100 - before, before)
            subprocess.run(["mount", "-o", "remount,size=32m", small_disk], check=True)
            deadline = time.monotonic() + 60
            while (
                writer.queue_size()
            ):  # each run obeys the Retry-After of 30 s; consume_one does not wait for it
                reader.consume_one()
                assert time.monotonic() < deadline
            assert writer.books().accepted == 100
    assert_whole(small_disk / "data", reqids)


# Errors of the system calls themselves, on the living process


@contextmanager
def failing(collector: CollectorProcess, fault: str) -> Iterator[None]:
    """``strace`` makes calls of the whole process fail for as long as this lasts."""
    attached = subprocess.Popen(
        ["strace", "-f", "-p", str(collector.process.pid), "-o", os.devnull, "-e", f"inject={fault}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert attached.stderr is not None
    line = attached.stderr.readline()
    assert "attached" in line, line
    try:
        yield
    finally:
        attached.send_signal(signal.SIGINT)
        attached.communicate(timeout=30)


@pytest.mark.parametrize(
    "fault",
    [
        "pwrite64:error=EDQUOT",
        "pwrite64:error=ENOSPC",
        "pwrite64:error=EIO",
        "fdatasync,fsync:error=EIO",
        "fdatasync,fsync:error=ENOSPC",
        "fdatasync,fsync:error=EDQUOT",
        "pwrite64:error=EDQUOT:when=2+3",
        "pwrite64:error=ENOSPC:when=3+4",
    ],
)
def test_while_calls_fail_it_answers_503_and_then_goes_on_by_itself(
    tmp_path: Path, fault: str, need_program: Callable[[str], None]
) -> None:
    need_program("strace")
    directory = tmp_path / "data"
    always = "when" not in fault
    with CollectorProcess(directory) as collector:
        with Wire(collector) as wire:
            taken = [f"before-{number}" for number in range(3)]
            assert [wire.post(reqid).status for reqid in taken] == [202] * 3
            refused = []
            with failing(collector, fault):
                for number in range(10):
                    status = wire.post(f"during-{number}", BODY).status
                    assert status == 503 or (status == 202 and not always)
                    (refused if status == 503 else taken).append(f"during-{number}")
                assert status_of(wire, "/healthz") == 200
                if always:
                    assert status_of(wire, "/readyz") == 503
            assert refused
            assert_answered_are_stored_once(directory, taken, refused)
        for reqid in [*refused, *taken, "after"]:  # as a client would send them again
            post_until_taken(collector, reqid)
        assert "Traceback" not in collector.log()
    assert sorted(message.envelope.reqid for message in stored(directory)) == sorted(
        [*taken, *refused, "after"]
    )


def assert_answered_are_stored_once(directory: Path, taken: list[str], refused: list[str]) -> None:
    """What was answered 202 is there; what was refused may be (a failed sync may have reached the disk), each once."""
    found = [message.envelope.reqid for message in stored(directory)]
    assert len(found) == len(set(found))
    assert set(taken) <= set(found) <= {*taken, *refused}
