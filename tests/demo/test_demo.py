"""The demo as a user starts it: what it says, how it exits, and that nothing of it is left behind."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from demo.__main__ import main
from demo.stage import Interruption

ROOT = Path(__file__).resolve().parent.parent.parent
SABOTAGE = Path(__file__).with_name("sabotage")
ALL_WORKERS = 8
"""A gate, a collector, four writers, two readers."""
LIMIT_SECONDS = 100.0
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
        [sys.executable, "-m", "short_demo" if sabotage else "demo", "--seconds", str(seconds)],
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
    """A demo all of whose processes do their work; killed at the end if it still runs."""
    demo = start(temporary, 60, stdout=stdout)
    try:
        wait_for(
            lambda: (
                demo.poll() is not None
                or (
                    len(workers(temporary)) == ALL_WORKERS
                    and any(file.stat().st_size for file in temporary.glob("*/pushed-*.txt"))
                )
            ),
            "a push",
        )
        assert demo.poll() is None
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

    def counts(self, what: str, who: str) -> list[int]:
        """A row of the books: the main queue, the small one, both."""
        row = rf"^\s*{re.escape(what)}\s+{re.escape(who)}((?:\s+-?[\d,]+){{3}})\s*$"
        [numbers] = re.findall(row, self.text, re.MULTILINE)
        return [int(number.replace(",", "")) for number in numbers.split()]


WAYS = ("", "unsent:main nothing:small", "early:main uncounted:small")


@pytest.fixture(scope="module")
def played(tmp_path_factory) -> dict[str, Ended]:
    """A whole demo, and short ones that are broken in one way for each queue; side by side, since they mostly wait."""
    places = {way: tmp_path_factory.mktemp(f"way{number}") for number, way in enumerate(WAYS)}
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
    assert re.search(r"The books balance: [\d,]+ pushed = .*None is lost\.", ended.text)
    *_, pushed = ended.counts("pushed", "the writers' records")
    *_, stored = ended.counts("stored, each counted once", "the collector's archive")
    assert ended.counts("accepted", "the queue's books")[2] == stored > 300
    by_rule = sum(
        ended.counts(what, "the queue's books")[2]
        for what in ("dropped by the collector's rule", "dropped under it by the reader")
    )
    assert ended.counts("gone, of the unwanted kind", "compared by reqid") == [by_rule, 0, by_rule]
    _, trimmed, all_trimmed = ended.counts("trimmed, over the limit", "the queue's books")
    assert ended.counts("gone, of another kind", "compared by reqid") == [0, trimmed, trimmed]
    assert pushed == stored + by_rule + all_trimmed
    assert by_rule > 0
    assert trimmed > 0
    assert (
        ended.counts("unaccounted for", "the difference")
        == ended.counts("waiting", "the queue's rows")
        == [0, 0, 0]
    )


def test_it_says_first_what_it_will_do_and_then_every_second_how_things_stand(played):
    plan, place, *rest = played[""].text.splitlines()
    assert "real telemetry of this machine" in plan
    assert "nothing leaves this machine" in plan
    assert str(played[""].temporary) in place
    assert sum(bool(re.search(r"pushed .* waiting.* in flight .* arrived", line)) for line in rest) >= 10


@pytest.mark.parametrize(
    "act",
    [
        "SIGKILL to the main queue's reader",
        "SIGKILL to it while it drains",
        "SIGKILL to the collector",
        "The small queue is full",
        "429 and Retry-After: 1",
        "503",
        "captive portal",
        "page under 404",
        "blacklist rule, Rule(category=processes)",
        "arrives again",
    ],
)
def test_every_act_is_said_when_it_happens(played, act):
    said = [line for line in played[""].text.splitlines() if " == " in line]
    assert sum(act in line for line in said) == 1


def test_the_reader_and_the_collector_are_killed_in_the_middle_of_their_work(played):
    found, *_left = (
        int(number.replace(",", ""))
        for number in re.findall(
            r"(?:finds|drains:|work:) ([\d,]+) (?:waiting|still wait|wait\.)", played[""].text
        )
    )
    assert found > 40
    # Of what was found nothing may be left when the next kill comes: a batch takes it all. It is under way then.
    assert len(_left) == 2


def test_acknowledging_what_was_never_sent_is_lost_and_exits_1(played):
    ended = played["unsent:main nothing:small"]
    assert ended.status == 1, ended.text
    # The queue itself has noticed nothing: only the writers' record and the collector tell.
    lost, *_ = ended.counts("gone, of another kind", "compared by reqid")
    assert lost > 0
    assert re.search(r"main: [\d,]+ messages are lost", ended.text)
    assert "main: the books do not balance" not in ended.text


def test_acknowledging_that_removes_nothing_does_not_drain_and_exits_1(played):
    ended = played["unsent:main nothing:small"]
    assert ended.status == 1, ended.text
    _, waiting, _ = ended.counts("waiting", "the queue's rows")
    assert f"small: {waiting:,} messages still wait; " in ended.text


def test_a_collector_that_answers_before_it_stores_loses_messages_in_its_kill_and_exits_1(played):
    ended = played["early:main uncounted:small"]
    assert ended.status == 1, ended.text
    lost, *_ = ended.counts("gone, of another kind", "compared by reqid")
    assert lost > 0
    stored, *_ = ended.counts("stored, each counted once", "the collector's archive")
    accepted, *_ = ended.counts("accepted", "the queue's books")
    assert f"main: the queue's books say {accepted:,} accepted; the collector holds {stored:,}." in ended.text
    assert accepted > stored


def test_a_trim_that_is_not_counted_is_a_loss_and_exits_1(played):
    ended = played["early:main uncounted:small"]
    assert ended.status == 1, ended.text
    _, lost, _ = ended.counts("gone, of another kind", "compared by reqid")
    assert lost > 0
    assert f"small: {lost:,} messages are lost" in ended.text
    assert ended.counts("unaccounted for", "the difference")[1] == lost
    assert "The demo did NOT show everything:\n  The small queue was not trimmed." in ended.text


def test_the_directory_is_removed_after_success_and_kept_after_failure(played):
    assert list(played[""].temporary.iterdir()) == []
    for way in WAYS[1:]:
        [kept] = played[way].temporary.iterdir()
        assert f"For a closer look, {kept} is kept" in played[way].text
        assert (kept / "queues" / "main_1.db").exists()


def test_no_process_outlives_the_demo(played):
    assert [workers(ended.temporary) for ended in played.values()] == [[], [], []]


def test_ctrl_c_on_a_terminal_cleans_up_and_exits_130(tmp_path):
    master, slave = pty.openpty()
    drawn = bytearray()

    def watch() -> None:
        with suppress(OSError):  # the last of the terminal's users is gone
            while chunk := os.read(master, 65536):
                drawn.extend(chunk)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with running(tmp_path, stdout=slave) as demo:
            os.close(slave)
            wait_for(lambda: drawn.count(b"waiting main") >= 3, "the live display, drawn again and again")
            demo.send_signal(signal.SIGINT)
            assert demo.wait(LIMIT_SECONDS) == 130
    finally:
        watching.join()
        os.close(master)
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
        [reader] = (process for process in workers(tmp_path) if process.cmdline()[-1] == "small")
        reader.kill()
        text = demo.communicate(timeout=LIMIT_SECONDS)[0].decode()
    assert demo.returncode == 1
    assert "The demo ends early: the reader-small ended with status -9." in text
    assert len(list(tmp_path.iterdir())) == 1


def test_a_reader_of_its_output_that_goes_away_ends_it_without_a_trace(tmp_path):
    with running(tmp_path, stdout=subprocess.PIPE) as demo:
        demo.stdout.close()
        assert demo.wait(LIMIT_SECONDS) == 1
        assert workers(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_length_that_is_none_is_refused(seconds, monkeypatch, capsys):
    monkeypatch.setattr(Interruption, "watch", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        main(["--seconds", seconds])
    assert ended.value.code == 2
    assert "--seconds" in capsys.readouterr().err
