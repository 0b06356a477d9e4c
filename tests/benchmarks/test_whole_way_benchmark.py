"""The whole way beside syslog-ng, in a tiny form; and the server, the reader and the count of syncs that it measures by."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import pytest

from benchmarks import syslog_ng, whole_way
from benchmarks.counting_server import Counter
from benchmarks.delivery import counting_batches
from benchmarks.harness import Result, RunError, Size, run, start
from benchmarks.sample import samples
from benchmarks.slow_disk import slow_flushes
from benchmarks.syncs import counting_syncs, syncs
from benchmarks.variants import ramen
from benchmarks.whole_way import WHOLE_WAY
from benchmarks.worker import Order

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TINY = Size(5)
OURS = [variant.name for variant in WHOLE_WAY.variants if variant.name != "syslog-ng"]
NAMES = [variant.name for variant in WHOLE_WAY.variants]


def tiny(name: str, work: Path) -> Result:
    variants = tuple(variant for variant in WHOLE_WAY.variants if variant.name == name)
    return run(replace(WHOLE_WAY, variants=variants), rounds=1, size=TINY, work=work, say=lambda _: None)


@pytest.fixture
def uncounted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No syncs are counted, so no ``strace`` is needed."""
    monkeypatch.setattr(whole_way, "counting_syncs", lambda _into: ())
    monkeypatch.setattr(whole_way, "syncs", lambda *_listed_in: 0)


@pytest.mark.usefixtures("uncounted")
@pytest.mark.parametrize("name", OURS)
def test_a_tiny_run_of_our_whole_way_works(name: str, tmp_path: Path) -> None:
    result = tiny(name, tmp_path)
    assert result.failures == {}
    (figures,) = result.rounds[name]
    assert set(figures) == {column.key for column in WHOLE_WAY.columns}
    assert figures["rate"] > 0
    assert figures["cpu_us"] > 0


@pytest.mark.system
@pytest.mark.parametrize("name", NAMES)
def test_a_tiny_run_of_the_whole_way_counts_syncs(name: str, tmp_path: Path) -> None:
    result = tiny(name, tmp_path)
    assert result.failures == {}
    (figures,) = result.rounds[name]
    assert set(figures) == {column.key for column in WHOLE_WAY.columns}
    assert figures["rate"] > 0
    assert figures["written_bytes"] > 0
    if name == "v2, push":
        assert figures["syncs"] >= 1000
    if name == "syslog-ng":
        assert result.versions[name]["syslog-ng"][0].isdigit()


@pytest.mark.usefixtures("uncounted")
def test_a_way_on_which_a_message_gets_lost_has_no_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_way, "WARM_UP_PUSHES", whole_way.WARM_UP_PUSHES + 1)
    monkeypatch.setattr(whole_way, "PATIENCE_SECONDS", 2)
    reason = tiny("v2, push", tmp_path).failures["v2, push"]
    assert "26 handed in, 25 delivered as the reader says, 25 as the server says" in reason


def test_what_is_missing_is_named_with_what_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(RunError, match=r"^strace is missing; run tests/system/install$"):
        counting_syncs(tmp_path)
    with (
        pytest.raises(RunError, match=r"^syslog-ng is missing; run tests/system/install$"),
        syslog_ng.syslog_ng(tmp_path, 1),
    ):
        pass


# The server


def lines(first: int, last: int, end: bytes = b"") -> tuple[bytes, bytes, bytes]:
    return b"/", b"POST / HTTP/1.1", b"\n".join(b'{"id":%d}' % n for n in range(first, last + 1)) + end


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_the_counting_server_counts_each_different_line(end: bytes) -> None:
    counter = Counter(lines=True)
    answers = counter.answers([lines(1, 3, end), lines(4, 5, end), lines(2, 5, end)])
    assert counter.tally.messages == 5
    assert counter.tally.requests == answers.count(b"HTTP/1.1 202 ") == 3


def test_the_last_message_came_when_the_last_new_one_came() -> None:
    counter = Counter(lines=True)
    before = time.monotonic()
    counter.answers([lines(1, 3)])
    came_at = counter.tally.last_at
    assert before <= came_at <= time.monotonic()
    counter.answers([lines(1, 3)])
    assert counter.tally.last_at == came_at
    counter.answers([lines(3, 4)])
    assert counter.tally.last_at > came_at


def test_the_counting_server_ends_when_so_many_have_come_and_been_answered() -> None:
    with start([sys.executable, "-m", "benchmarks.counting_server", "--lines", "--until", "5"]) as server:
        with socket.create_connection(("127.0.0.1", int(server.hear()))) as client:
            client.settimeout(30)
            for request in (lines(1, 4), lines(1, 5)):
                body = request[2]
                client.sendall(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                assert client.recv(1 << 16).startswith(b"HTTP/1.1 202 ")
            assert client.recv(1) == b""
        tally = json.loads(server.hear())
        assert server.process.wait(timeout=30) == 0
    assert (tally["messages"], tally["requests"]) == (5, 2)
    assert 0 < tally["last_at"] <= time.monotonic()


def test_the_counting_server_tells_what_had_come_when_its_input_ends_before() -> None:
    with start([sys.executable, "-m", "benchmarks.counting_server", "--until", "5"]) as server:
        with socket.create_connection(("127.0.0.1", int(server.hear()))) as client:
            client.sendall(b"POST /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            client.settimeout(30)
            assert client.recv(1 << 16)
        assert server.finish()["messages"] == 1


# The reader


def test_what_waits_when_a_forwarder_is_to_end_is_delivered_before(tmp_path: Path) -> None:
    ramen.open_bulk_writer(str(tmp_path))(samples(10, seed=0))
    with counting_batches(tmp_path) as server:
        assert ramen.open_forwarder(str(tmp_path), server.port)(lambda: None) == 10
        assert server.finish().messages == 10


def test_a_forwarder_whose_queue_is_empty_goes_on_until_its_input_ends(tmp_path: Path) -> None:
    with counting_batches(tmp_path) as server:
        order = Order("forward", ramen.__name__, str(tmp_path), port=server.port)
        with start([sys.executable, "-m", "benchmarks.worker", json.dumps(asdict(order))]) as child:
            child.expect("ready")
            child.say("go")
            with pytest.raises(subprocess.TimeoutExpired):
                child.process.wait(timeout=0.5)
            ramen.open_bulk_writer(str(tmp_path))(samples(10, seed=0))
            assert child.finish()["messages"] == 10


# The syncs


def test_a_sync_is_counted_where_it_begins_and_nothing_else_is(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text(
        "7 set_robust_list(0x7f19143a3da0, 24) = 0\n"
        "7 fdatasync(3)                      = 0\n"
        "7 fdatasync(3 <unfinished ...>\n"
        "1234567 fsync(4)                    = -1 EIO (Input/output error)\n"
        "7 <... fdatasync resumed>)          = 0\n"
        "7 --- SIGTERM {si_signo=SIGTERM} ---\n"
        "7 +++ exited with 0 +++\n"
    )
    other.write_text("8 msync(0x7f, 4096, MS_SYNC) = 0\n8 sync_file_range(3, 0, 1, 2) = 0\n")
    assert syncs(one) == 3
    assert syncs(one, other) == 5


MEASURED = """
import os, sys, threading
from pathlib import Path
def turns():
    for _ in range(20_000):
        os.getppid()
    status = Path(f"/proc/self/task/{threading.get_native_id()}/status").read_text()
    print(status.partition("\\nvoluntary_ctxt_switches:")[2].split()[0])
thread = threading.Thread(target=turns)
thread.start()
thread.join()
with open(sys.argv[1], "w") as file:
    for _ in range(7):
        os.fsync(file.fileno())
"""


@pytest.mark.system
@pytest.mark.parametrize("before", [counting_syncs, lambda _: slow_flushes(1)], ids=["counted", "slow"])
def test_a_thread_that_never_syncs_is_left_alone(
    before: Callable[[Path], tuple[str, ...]], tmp_path: Path
) -> None:
    """A stop by ``strace`` is a switch of the thread's, of its own will as the kernel sees it."""
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "file")]
    with start([*before(tmp_path / "syncs"), *command]) as child:
        assert int(child.hear()) < 2000
        assert child.process.wait(timeout=30) == 0


@pytest.mark.system
def test_the_syncs_of_a_process_are_counted(tmp_path: Path) -> None:
    listed = tmp_path / "syncs"
    with start([*counting_syncs(listed), sys.executable, "-c", MEASURED, str(tmp_path / "file")]) as child:
        assert child.process.wait(timeout=30) == 0
    assert syncs(listed) == 7


# syslog-ng


@pytest.mark.system
def test_syslog_ng_ends_with_its_block_whatever_happens(tmp_path: Path) -> None:
    seen = []

    def fail() -> None:
        with syslog_ng.syslog_ng(tmp_path, 9, counting_syncs(tmp_path / "syncs")) as (process, _):
            seen.append(process)
            assert "syslog-ng" in subprocess.check_output(
                ["ps", "-o", "comm=", "-p", str(process)], text=True
            )
            raise ValueError("something else")

    with pytest.raises(ValueError, match="something else"):
        fail()
    assert subprocess.run(["ps", "-p", str(seen[0])], stdout=subprocess.DEVNULL, check=False).returncode == 1


@pytest.mark.system
def test_a_syslog_ng_that_does_not_start_is_reported_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(syslog_ng, "_CONFIGURATION", "@version: 3.35\nno configuration\n")
    with (
        pytest.raises(RunError, match=r"(?s)ended with status \d.*syntax error"),
        syslog_ng.syslog_ng(tmp_path, 9),
    ):
        pass
