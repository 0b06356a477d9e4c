"""The demo as a user starts it: what it says, how it exits, and that nothing of it is left behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SABOTAGE = Path(__file__).with_name("sabotage")
LIMIT_SECONDS = 90.0
"""Upper bound for "does not hang"."""


def start(
    temporary: Path, seconds: float, *, sabotage: str = "", stdout: int = subprocess.PIPE
) -> subprocess.Popen:
    env = os.environ | {"TMPDIR": str(temporary), "COLUMNS": "100"}
    # A proxy that is not there: the demo must not ask it for the way to itself.
    env |= {"http_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9"}
    if sabotage:
        paths = [str(SABOTAGE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        env |= {"SABOTAGE": sabotage, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.Popen(
        [sys.executable, "-m", "demo", "--seconds", str(seconds)],
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def workers(temporary: Path) -> list[psutil.Process]:
    """The demo's child processes that live; each has its directory among its arguments."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(argument.startswith(str(temporary)) for argument in process.info["cmdline"] or ()):
            with suppress(psutil.NoSuchProcess):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.05)


@contextmanager
def running(temporary: Path, *, stdout: int = subprocess.DEVNULL):
    """A demo whose reader has delivered something; killed at the end if it still runs."""
    demo = start(temporary, 60, stdout=stdout)
    try:
        wait_for(
            lambda: (
                demo.poll() is not None
                or any(file.stat().st_size for file in temporary.glob("*/arrived.jsonl"))
            ),
            "an arrival",
        )
        assert demo.poll() is None
        assert len(workers(temporary)) == 4
        yield demo
    finally:
        demo.kill()
        demo.wait()
        if demo.stdout is not None:
            demo.stdout.close()
        wait_for(lambda: not workers(temporary), "the end of the child processes")


@dataclass
class Ended:
    status: int
    text: str
    temporary: Path

    def count(self, row: str) -> int:
        [number] = re.findall(rf"^\s*{re.escape(row)}\s+([\d,]+)\s*$", self.text, re.MULTILINE)
        return int(number.replace(",", ""))


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> dict[str, Ended]:
    """A whole demo by each way of acknowledging; side by side, since each of them mostly waits."""
    places = {way: tmp_path_factory.mktemp(way or "sound") for way in ("", "unsent", "nothing")}
    demos = {way: start(place, 5, sabotage=way) for way, place in places.items()}
    try:
        texts = {way: demo.communicate(timeout=LIMIT_SECONDS)[0].decode() for way, demo in demos.items()}
    finally:
        for demo in demos.values():
            demo.kill()
    return {way: Ended(demos[way].returncode, texts[way], places[way]) for way in places}


def test_the_books_of_a_sound_run_balance_and_it_exits_0(played):
    ended = played[""]
    assert ended.status == 0, ended.text
    assert "The books balance: all" in ended.text
    pushed = ended.count("pushed (each written down by its writer)")
    assert pushed > 300
    assert ended.count("arrived, each counted once") == ended.count("accepted") == pushed
    assert (
        ended.count("lost (pushed, neither waiting nor arrived)") == ended.count("waiting in the queue") == 0
    )


def test_it_says_first_what_it_will_do_and_then_every_second_how_things_stand(played):
    plan, place, *rest = played[""].text.splitlines()
    assert "real telemetry of this machine" in plan
    assert "nothing leaves this machine" in plan
    assert str(played[""].temporary) in place
    assert sum(bool(re.search(r"waiting .* pushed .* arrived", line)) for line in rest) >= 5
    said = [line for line in rest if " == " in line]
    assert sum("SIGKILL to the reader" in line for line in said) == 2
    assert sum("503" in line for line in said) == 1


def test_the_reader_is_killed_with_a_backlog_and_while_it_drains(played):
    found, left = (
        int(number.replace(",", ""))
        for number in re.findall(r"(?:finds|drains:) ([\d,]+) (?:waiting|still wait)", played[""].text)
    )
    assert found > 100
    assert left > 0


def test_acknowledging_what_was_never_sent_is_lost_and_exits_1(played):
    ended = played["unsent"]
    assert ended.status == 1, ended.text
    lost = ended.count("lost (pushed, neither waiting nor arrived)")
    assert lost > 0
    assert f"{lost:,} messages are lost" in ended.text
    # The queue itself has noticed nothing: only the writers' record tells.
    assert ended.count("unaccounted for") == 0
    assert ended.count("waiting") == 0


def test_acknowledging_that_removes_nothing_does_not_drain_and_exits_1(played):
    ended = played["nothing"]
    assert ended.status == 1, ended.text
    waiting = ended.count("waiting in the queue")
    assert waiting > 300
    assert f"{waiting:,} messages still wait; " in ended.text
    again = ended.count("arrived again under the same id")
    assert f"{again:,} messages arrived again; the reader was killed 2 times" in ended.text
    assert ended.count("lost (pushed, neither waiting nor arrived)") == 0


def test_the_directory_is_removed_after_success_and_kept_after_failure(played):
    assert list(played[""].temporary.iterdir()) == []
    for way in "unsent", "nothing":
        [kept] = played[way].temporary.iterdir()
        assert f"For a closer look, {kept} is kept" in played[way].text
        assert (kept / "queue" / "demo_1.db").exists()


def test_no_process_outlives_the_demo(played):
    assert [workers(ended.temporary) for ended in played.values()] == [[], [], []]


def test_ctrl_c_on_a_terminal_cleans_up_and_exits_130(tmp_path):
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", buffering=0) as terminal, running(tmp_path, stdout=slave) as demo:
        os.close(slave)
        drawn = b""
        while drawn.count(b"waiting") < 3:  # the live display, drawn again and again
            drawn += terminal.read(65536)
        demo.send_signal(signal.SIGINT)
        with suppress(OSError):  # the last of the terminal's users is gone
            while chunk := terminal.read(65536):
                drawn += chunk
        assert demo.wait(LIMIT_SECONDS) == 130
    assert b"\x1b[" in drawn
    assert b"Interrupted" in drawn
    assert b"Traceback" not in drawn
    assert list(tmp_path.iterdir()) == []


def test_sigterm_cleans_up_and_exits_143(tmp_path):
    with running(tmp_path) as demo:
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(LIMIT_SECONDS) == 143
        assert workers(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_when_the_demo_itself_is_killed_its_processes_end(tmp_path):
    with running(tmp_path) as demo:
        demo.kill()
        wait_for(lambda: not workers(tmp_path), "the end of the child processes")


def test_a_process_that_dies_by_itself_ends_the_demo_with_its_log_and_exit_1(tmp_path):
    with running(tmp_path, stdout=subprocess.PIPE) as demo:
        [reader] = (process for process in workers(tmp_path) if "reader" in process.cmdline())
        reader.kill()
        text = demo.communicate(timeout=LIMIT_SECONDS)[0].decode()
    assert demo.returncode == 1
    assert "The demo ends early: the reader ended with status -9." in text
    assert len(list(tmp_path.iterdir())) == 1


def test_a_reader_of_its_output_that_goes_away_ends_it_without_a_trace(tmp_path):
    with running(tmp_path, stdout=subprocess.PIPE) as demo:
        demo.stdout.close()
        assert demo.wait(LIMIT_SECONDS) == 1
        assert workers(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_length_that_is_none_is_refused(seconds):
    ended = subprocess.run(
        [sys.executable, "-m", "demo", "--seconds", seconds], cwd=ROOT, capture_output=True, check=False
    )
    assert ended.returncode == 2
    assert b"--seconds" in ended.stderr
