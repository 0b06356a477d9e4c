"""What 1.x got wrong, each proven by a script against it: 2.0 does not do it.

Here is what concerns a reader and its queue together. What an answer may do to the queue is in ``test_hostile_server_*``, names,
reqids, types and limits at push in ``test_api_push``, ``stop`` in ``test_api_stop``, proxies and TLS in ``tests/delivery``, damaged
files, crashes and many processes in ``tests/storage``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from test_hostile_server_kit import (
    CANARY,
    Client,
    arrived,
    lines,
    raw_server,
    read_request,
    tracebacks,
)

from infi.ramen_client.queue_reader import QueueReader
from infi.ramen_client.testing import (
    Accept,
    Drop,
    Hang,
    RamenServer,
    Received,
    Refuse,
    Reply,
    SlowDrip,
    Status,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path

ACCEPTED = b'HTTP/1.1 202 Accepted\r\nContent-Length: 20\r\n\r\n{"code": "ACCEPTED"}'


@pytest.fixture
def server(no_proxies: None) -> Iterator[RamenServer]:
    with RamenServer(token=CANARY) as server:
        yield server


@pytest.fixture
def client(server: RamenServer, tmp_path: Path) -> Iterator[Client]:
    client = Client(tmp_path / "queue", server.hostname)
    yield client
    client.verify()
    client.close()


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process of its own that speaks and is spoken to in lines."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def in_child(client: Client) -> str:
    """The line of code by which a child gets the same configuration."""
    return f"QueueReaderConfig({client.config_values()!r})"


# Messages that vanish, or come twice


def test_a_trim_between_claim_and_acknowledge_never_removes_an_unsent_message(
    server: RamenServer, tmp_path: Path
) -> None:
    """1.x: peek, send, and then remove "the first", which after a trim was another one."""
    client = Client(tmp_path / "queue", server.hostname, max_queue_size=64 * 1024)
    in_post, go_on = threading.Event(), threading.Event()

    def reply(message: Received) -> Reply:
        in_post.set()
        assert go_on.wait(10)
        return Accept()

    server.default = reply
    noise = os.urandom(600).hex()
    sent_first = client.push()[0]
    with client.running():
        assert in_post.wait(10)
        for n in range(400):  # several times the limit, while a POST is under way
            client.writer.push("metrics", "x", "v1", {"n": n, "noise": noise[n:]})
        assert client.queue.books().trimmed > 100
        go_on.set()
        client.wait_empty()
    books = client.queue.books()
    assert sent_first in arrived(server)  # not as the first one: the others are of another stream
    # Each one arrived or was counted as trimmed; none was taken for accepted that never arrived.
    assert books.accepted == len(server.accepted)
    assert books.accepted + books.trimmed == books.pushed == 401
    assert server.duplicates == []
    client.verify()
    client.close()


def test_trimming_under_load_loses_track_of_nothing(server: RamenServer, tmp_path: Path) -> None:
    """1.x: 2.7 % of what the reader handled under load."""
    client = Client(tmp_path / "queue", server.hostname, max_queue_size=64 * 1024)
    script = iter([None, Status(503), Refuse("BAD_REQUEST", "no"), Status(200)] * 100)
    server.default = lambda _message: next(script, None) or Accept()
    noise = os.urandom(400).hex()
    with client.running():
        for n in range(1500):
            client.writer.push("metrics", "x", "v1", {"n": n, "noise": noise[n % 400 :]})
        client.wait_empty(30)
    books = client.queue.books()
    assert books.accepted == len(server.accepted)
    assert books.pushed == books.accepted + books.trimmed + books.dead + books.dead_discarded
    assert server.duplicates == []
    client.verify()
    client.close()


def test_two_readers_neither_duplicate_nor_lose(server: RamenServer, client: Client) -> None:
    """1.x: they duplicate, and with any error of the server lose."""
    counter = iter(range(10**6))
    server.default = lambda _message: Status(503) if next(counter) % 5 == 4 else Accept()
    other = child(
        f"""
        import sys
        from infi.ramen_client.config import QueueReaderConfig
        from infi.ramen_client.utils import create_queue_reader_and_writer
        reader, writer = create_queue_reader_and_writer({in_child(client)})
        print("ready", flush=True)
        sys.stdin.readline()
        reader.stop()
        """
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "ready\n"
    with client.running(), client.running():
        for _ in range(20):
            client.push(25)
        client.wait_empty(30)
    other.communicate("end\n", timeout=10)
    assert sorted(arrived(server)) == sorted(client.pushed)
    assert server.duplicates == []
    assert client.counts() == {"pushed": 500, "accepted": 500}


def test_a_reader_takes_over_from_one_that_was_killed(server: RamenServer, client: Client) -> None:
    client.push(300)
    first = child(
        f"""
        from infi.ramen_client.config import QueueReaderConfig
        from infi.ramen_client.queue_reader import QueueReader
        QueueReader({in_child(client)}).run()
        """
    )
    server.wait_for(20)
    first.kill()
    first.communicate()
    with client.running():
        client.wait_empty()
    assert arrived(server) == client.pushed
    # What it had not settled yet came again, and is known by its reqid.
    assert len(server.duplicates) <= 65
    assert client.counts() == {"pushed": 300, "accepted": 300}


@pytest.mark.parametrize("reqid", ["a&b", "x&reqid=y", "a b", "a/../b?c#d", "%41", "+", "é☃", "\n", '"'])
def test_a_reqid_arrives_as_it_is_and_injects_nothing(
    server: RamenServer, client: Client, reqid: str
) -> None:
    client.writer.push("metrics", "x", "v1", {}, reqid=reqid)
    assert client.reader.run(blocking=False) == 1
    assert arrived(server) == [reqid]
    assert server.refused == []


# What killed the reader's thread for ever

HOLD_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


def test_a_file_that_another_process_holds_locked_does_not_end_the_reader(
    server: RamenServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infi.ramen_client.storage import _patience

    # A minute is a long time in a test.
    monkeypatch.setattr(_patience, "BUSY_TIMEOUT_SECONDS", 1)
    client = Client(tmp_path / "queue", server.hostname)
    client.push(100)
    with client.running():
        server.wait_for(100)
        client.wait_empty()
        server.default = Status(503)
        pushed = client.push(3)
        client.wait_until(lambda: client.state()["failures"] > 0)
        blocker = child(HOLD_LOCK, str(client.queue.path))
        assert blocker.stdout is not None
        assert blocker.stdout.readline() == "locked\n"
        server.default = Accept()
        deadline = time.monotonic() + 20
        while not any("tries again" in line for line in lines(caplog)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        blocker.communicate("end\n", timeout=10)
        client.wait_empty(20)
    assert arrived(server)[-3:] == pushed
    said = [line for line in lines(caplog) if "reader" in line]
    assert "another process held the queue" in said[0]
    assert "the reader works again after: " in said[-1]
    assert tracebacks(caplog) == []
    client.verify()
    client.close()


def test_a_disk_that_takes_no_more_does_not_end_the_reader(server: RamenServer, client: Client) -> None:
    """The size of files is limited instead of the disk: every write beyond it fails."""
    client.push(10)
    reader = child(
        f"""
        import logging, resource, sys, threading
        from infi.ramen_client.config import QueueReaderConfig
        from infi.ramen_client.queue_reader import QueueReader
        said = []
        class Handler(logging.Handler):
            def emit(self, record):
                said.append(record.getMessage())
                if "tries again" in said[-1]:
                    print("failed", flush=True)
        logging.getLogger("ramen_client").addHandler(Handler())
        reader = QueueReader({in_child(client)})
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, hard))
        thread = threading.Thread(target=reader.run)
        thread.start()
        sys.stdin.readline()
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.stdin.readline()
        assert thread.is_alive()
        reader.stop()
        thread.join()
        print(said[0], flush=True)
        """
    )
    assert reader.stdin is not None
    assert reader.stdout is not None
    assert reader.stdout.readline() == "failed\n"
    reader.stdin.write("mend\n")
    reader.stdin.flush()
    client.wait_empty()
    out, _ = reader.communicate("end\n", timeout=10)
    assert "the reader cannot go on, and tries again: " in out
    assert str(client.queue.path) in out
    assert arrived(server) == client.pushed
    assert client.counts() == {"pushed": 10, "accepted": 10}


def test_a_rule_that_makes_no_sense_does_not_end_the_reader_and_drops_nothing_else(
    server: RamenServer, client: Client
) -> None:
    server.answer_with(Drop({}), Drop({"colour": "red"}), Drop({"category": ["metrics"]}), Drop(None))
    with client.running():
        pushed = client.push(20)
        client.wait_empty()
    assert arrived(server) == pushed[4:]
    assert client.counts() == {"pushed": 20, "accepted": 16, "dropped": 4}


def test_an_error_of_our_own_does_not_end_the_reader(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infi.ramen_client.delivery import judging

    classify, failures = judging.classify, iter(range(3))

    def broken(*arguments: Any) -> Any:
        if next(failures, None) is not None:
            raise RecursionError("this cannot be")
        return classify(*arguments)

    monkeypatch.setattr(judging, "classify", broken)
    with client.running():
        pushed = client.push(3)
        client.wait_empty()
    assert arrived(server) == pushed
    assert len(tracebacks(caplog)) == 1


# Rules


def test_a_step_of_the_wall_clock_neither_ends_nor_prolongs_a_rule(
    server: RamenServer, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infi.ramen_client import blacklist

    now = [1000.0]
    held = blacklist.StoredBlacklist(client.config, client.queue, monotonic=lambda: now[0])
    from infi.ramen_protocol import Rule

    client.config.blacklist_ttl = 100
    held.receive(Rule(category="metrics"))
    real = blacklist.now_ms
    for step in (-(10**9), 10**9):
        monkeypatch.setattr(blacklist, "now_ms", lambda step=step: real() + step)
        held.reload()
        assert len(held.get_list()) == 1
    now[0] += 99
    held.reload()
    assert len(held.get_list()) == 1
    now[0] += 2
    monkeypatch.setattr(blacklist, "now_ms", lambda: real() - 10**9)
    held.reload()
    assert held.get_list() == []


def test_a_numeric_version_in_a_rule_matches_and_three_thousand_messages_make_one_rule(
    server: RamenServer, client: Client
) -> None:
    server.default = Drop({"data_type": "x", "data_version": 3})
    client.writer.push_many(("metrics", "x", 3, {}) for _ in range(1500))
    client.writer.push_many(("metrics", "x", "3", {}) for _ in range(1500))
    assert client.reader.run(blocking=False) == 3000
    assert len(server.received) == 1
    (rule,) = client.rules()
    assert rule.hits == 2999
    assert client.counts() == {"pushed": 3000, "dropped": 1, "blacklisted": 2999}


# The network


def test_a_refused_connection_logs_one_warning_an_outage_and_no_traceback(
    client: Client, server: RamenServer, caplog: pytest.LogCaptureFixture
) -> None:
    """1.x: 68 lines of traceback at every retry."""
    server.stop()
    client.push(3)
    with client.running():
        client.wait_until(lambda: client.state()["failures"] >= 20)
        (said,) = lines(caplog)
        server.start()
        client.wait_empty()
    assert "refused the connection: check that it is running" in said
    assert len(lines(caplog)) == 2
    assert tracebacks(caplog) == []


def test_netrc_is_not_read(
    server: RamenServer, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\ndefault login x password y\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    client.push()
    assert client.reader.run(blocking=False) == 1
    assert "authorization" not in server.received[0].headers


@pytest.fixture
def trap() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that nobody wants, and what it was sent; it accepts everything."""
    seen: list[bytes] = []

    def take(stream: socket.socket) -> None:
        while True:
            seen.append(read_request(stream))
            stream.sendall(ACCEPTED)

    with raw_server(take) as hostname:
        yield hostname, seen


def test_the_configured_proxy_beats_the_environments(
    client: Client, trap: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []

    def proxy(stream: socket.socket) -> None:
        while True:
            seen.append(read_request(stream))
            stream.sendall(ACCEPTED)

    monkeypatch.setenv("http_proxy", f"http://{trap[0]}")
    monkeypatch.setenv("all_proxy", f"http://{trap[0]}")
    monkeypatch.setenv("no_proxy", "*")
    client.push(2)
    with raw_server(proxy) as hostname:
        client.config.proxy = f"http://{hostname}"
        assert client.reader.run(blocking=False) == 2
        client.reader.close()
    assert trap[1] == []
    assert [request.split()[:2] for request in seen] == [
        [b"POST", f"http://{client.config.hostname}{path}".encode()]
        for path in (
            f"/ramen/v1/metrics/1099/imx.san_totals.v1/?version=3.0.0.1&reqid={reqid}"
            for reqid in client.pushed
        )
    ]


@pytest.mark.parametrize("when", ["while it is idle", "when the next request comes"])
def test_an_idle_connection_that_the_server_closes_costs_no_retry_delay(
    client: Client, caplog: pytest.LogCaptureFixture, when: str
) -> None:
    """1.x: 30 s in 18 % of the cases."""
    client.config.retry_delay = 3600
    taken: list[bytes] = []

    def one_answer(stream: socket.socket) -> None:
        taken.append(read_request(stream))
        stream.sendall(ACCEPTED)
        if when == "when the next request comes":
            read_request(stream)

    with raw_server(one_answer) as hostname:
        client.config.hostname = hostname
        with client.running():
            for _ in range(30):
                client.push()
                client.wait_empty()
    assert len(taken) == 30
    assert lines(caplog) == []


def test_a_dripping_answer_outlasts_neither_the_time_out_nor_stop(
    server: RamenServer, client: Client
) -> None:
    client.config.server_timeout = 1
    server.default = SlowDrip(0.3)
    client.push()
    began = time.monotonic()
    assert client.reader.consume_one() == QueueReader.RETRY
    assert time.monotonic() - began < 8  # the answer takes more than half a minute
    client.config.server_timeout = 600
    count = len(server.received)
    with client.running():
        server.wait_for_received(count + 1)
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert client.queue.size() == 1


# Idleness, forks


def test_an_idle_reader_writes_nothing(server: RamenServer, client: Client) -> None:
    """1.x: VACUUM at every poll."""
    client.config.polling_delay = 0.01
    with client.running():
        client.push()
        client.wait_empty()
        # The success is noted, and the file given back to the disk, soon after; then nothing more.
        previous, deadline = "", time.monotonic() + 20
        quiet = 0
        while quiet < 10:
            assert time.monotonic() < deadline
            time.sleep(0.05)
            now = _written(client)
            quiet = quiet + 1 if now == previous else 0
            previous = now


def _written(client: Client) -> str:
    from pathlib import Path

    return repr(
        [
            (path.name, path.stat().st_mtime_ns, path.stat().st_size)
            for path in sorted(Path(client.config.queue_dir).iterdir())
            if not path.name.endswith("-shm")
        ]
    )


def test_a_fork_in_the_middle_of_everything_loses_nothing_on_either_side(
    server: RamenServer, client: Client
) -> None:
    """1.x: a parent that exits takes the child's acknowledged messages with it (200 of 200)."""
    program = child(
        f"""
        import os, sys
        from infi.ramen_client.config import QueueReaderConfig
        from infi.ramen_client.utils import create_queue_reader_and_writer
        reader, writer = create_queue_reader_and_writer({in_child(client)})
        for n in range(20):
            writer.push("metrics", "before", "v1", {{"n": n}})
        if os.fork():
            for n in range(20):
                writer.push("metrics", "parent", "v1", {{"n": n}})
            os._exit(0)  # at once, its reader in the middle of its work
        for n in range(100):
            writer.push("metrics", "child", "v1", {{"n": n}})
        # The thread has not survived the fork: the child can read for itself all the same.
        assert reader.drain(20)
        os._exit(0)
        """
    )
    program.communicate(timeout=60)
    assert program.returncode == 0
    with client.running():
        server.wait_for(140)
        client.wait_empty()
    assert client.counts() == {"pushed": 140, "accepted": 140}
    assert len(server.accepted) == 140


def test_a_program_that_forks_while_its_reader_works_goes_on_in_the_parent(
    server: RamenServer, client: Client
) -> None:
    program = child(
        f"""
        import os, sys
        from infi.ramen_client.config import QueueReaderConfig
        from infi.ramen_client.utils import create_queue_reader_and_writer
        reader, writer = create_queue_reader_and_writer({in_child(client)})
        for n in range(100):
            writer.push("metrics", "parent", "v1", {{"n": n}})
            if n % 20 == 10:
                pid = os.fork()
                if not pid:
                    os._exit(0)
                os.waitpid(pid, 0)
        assert writer.wait_sent(20)
        reader.stop()
        """
    )
    program.communicate(timeout=60)
    assert program.returncode == 0
    assert [message.json()["n"] for message in server.accepted] == list(range(100))
    assert server.duplicates == []


def test_an_interrupted_run_can_be_begun_again(server: RamenServer, client: Client) -> None:
    """Ctrl-C in the middle of a POST, in a program that goes on."""
    pushed = client.push(3)
    server.answer_with(Accept(), Hang())
    program = child(
        f"""
        import signal
        from infi.ramen_client.config import QueueReaderConfig
        from infi.ramen_client.queue_reader import QueueReader
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
        reader = QueueReader({in_child(client)})
        try:
            reader.run()
        except KeyboardInterrupt:
            print(reader.run(blocking=False), flush=True)
        """
    )
    server.wait_for_received(2)
    program.send_signal(signal.SIGINT)
    out, _ = program.communicate(timeout=30)
    assert out == "2\n"
    assert arrived(server) == pushed
    assert server.duplicates == []
