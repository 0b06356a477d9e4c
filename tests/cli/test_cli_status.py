"""``ramen status``."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from queue_kit import (
    INTEGER,
    MAYBE_INTEGER,
    MAYBE_NUMBER,
    MAYBE_TEXT,
    NUMBER,
    TEXT,
    TRUTH,
    active_reader,
    answer,
    bury,
    has_shape,
    open_queue,
    push,
    ramen,
)

from infi.ramen_client.storage import FailureNote, Fate, Place, Queue, ServerFacts, Settlement, add_rule
from infi.ramen_protocol import Rule

BOOKS = dict.fromkeys(
    [
        "pushed",
        "found",
        "waiting",
        "accepted",
        "dropped",
        "blacklisted",
        "dead",
        "dead_discarded",
        "trimmed",
        "expired",
        "purged",
        "damaged",
        "removed_by_1x",
        "maybe_twice",
    ],
    INTEGER,
)
SCHEMA = {
    "queue": TEXT,
    "sender": TEXT,
    "system_serial": INTEGER,
    "taken_at": INTEGER,
    "condition": TEXT,
    "waiting": INTEGER,
    "in_flight": INTEGER,
    "bytes_used": INTEGER,
    "max_queue_size": MAYBE_INTEGER,
    "oldest_waiting_seconds": MAYBE_NUMBER,
    "health": {
        "healthy": TRUTH,
        "since": MAYBE_INTEGER,
        "waiting": INTEGER,
        "oldest_waiting_seconds": MAYBE_NUMBER,
        "last_success_at": MAYBE_INTEGER,
        "problems": [{"trouble": TEXT, "text": TEXT, "since": MAYBE_INTEGER}],
    },
    "rates": {"in_per_second": NUMBER, "out_per_second": NUMBER, "lost_per_second": NUMBER, "seconds": NUMBER},
    "empty_in_seconds": MAYBE_NUMBER,
    "delivery": {
        "last_success_at": MAYBE_INTEGER,
        "failing_since": MAYBE_INTEGER,
        "failures": INTEGER,
        "last_error": MAYBE_TEXT,
        "last_error_at": MAYBE_INTEGER,
        "last_status": MAYBE_INTEGER,
        "remedy": MAYBE_TEXT,
        "next_retry_at": MAYBE_INTEGER,
        "server": MAYBE_TEXT,
        "suspect_since": MAYBE_INTEGER,
    },
    "reader": {"state": TEXT, "pid": MAYBE_INTEGER, "since": MAYBE_INTEGER, "stopped_at": MAYBE_INTEGER},
    "rules": [{"number": INTEGER, "rule": {"category": TEXT}, "added_at": INTEGER, "last_seen_at": INTEGER, "hits": INTEGER}],
    "waiting_streams": [
        {"category": TEXT, "data_type": TEXT, "waiting_since": INTEGER, "retry_at": INTEGER, "attempts": INTEGER, "last_error": TEXT}
    ],
    "dead_letters": {"count": INTEGER, "bytes": INTEGER},
    "last_1x_push_at": MAYBE_INTEGER,
    "damaged_files": INTEGER,
    "disk_free_bytes": MAYBE_INTEGER,
    "books": BOOKS,
}  # fmt: skip


def fail(reader, text="the server is away", status=503):
    now = time.time_ns() // 1_000_000
    facts = ServerFacts(3, now - 5000, None)
    reader.note_failure(FailureNote(text, status, now + 60_000), "https://ramen.example.com:443", facts)


def test_json_has_the_documented_keys_and_types_when_nothing_ever_happened(tmp_path, capsys):
    with open_queue(tmp_path):
        found = answer(capsys, "status", "--queue-dir", tmp_path)
    assert has_shape(found, SCHEMA)
    assert (found["condition"], found["waiting"], found["max_queue_size"]) == ("empty", 0, None)


def test_json_has_the_documented_keys_and_types_when_everything_happened(tmp_path, capsys):
    config = tmp_path / "ramen.toml"
    config.write_text(f'[ramen]\nqueue_dir = "{tmp_path}"\nmax_queue_size = 1000000\n')
    with open_queue(tmp_path) as queue:
        bury(queue)
        push(queue, 2, age=60)
        add_rule(queue, Rule(category="events"))
        connection = apsw.Connection(str(queue.path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.execute(
            "INSERT INTO queue (category, data_type, data_version, data) VALUES ('a', 'b', 1, x'00')"
        )
        connection.close()
        with active_reader(queue) as reader:
            (message,) = reader.claim(1, 1)
            reader.settle([Settlement(message, Fate.ACCEPTED)])
            fail(reader)
            push(queue)
            reader.claim(1, 1)
            found = answer(capsys, "status", "--config", config, "--over", "0.001s", code=1)
    assert [problem["trouble"] for problem in found["health"]["problems"]] == ["suspect_server"]
    assert has_shape(found, SCHEMA)
    assert (found["condition"], found["max_queue_size"], found["in_flight"]) == ("failing", 1_000_000, 1)
    assert None not in [*found["delivery"].values(), found["last_1x_push_at"]]
    assert found["reader"] == {**found["reader"], "state": "running", "pid": os.getpid(), "stopped_at": None}
    assert found["rules"][0]["rule"] == {"category": "events"}
    assert found["rates"]["seconds"] < 0.1


def test_the_page_says_at_a_glance_that_nothing_is_delivered_and_why(tmp_path, capsys):
    with open_queue(tmp_path) as queue:
        bury(queue, 2)
        push(queue, 3, age=7200)
        with active_reader(queue) as reader:
            reader.claim(1, 1)
            fail(reader, "the server answered \x1b[31m503")
            assert ramen("status", "--queue-dir", tmp_path) == 1
    page = capsys.readouterr().out
    assert page.startswith("imx_1099: NOT DELIVERING for 0.")
    for line in (
        "NOT WELL  https://ramen.example.com:443 refuses everything, without speaking the protocol",
        "          3 messages wait, and nothing was delivered for 2 h: the server answered [31m503",
        "3 messages, 1 of them in flight",
        "the oldest for 2 h",
        "not getting empty at these rates",
        "last success: never",
        "https://ramen.example.com:443 is SUSPECT since",
        "last error: the server answered [31m503 (",
        "The trouble is the server's, or that of a proxy before it",
        "next attempt: in 59 s",
        f"running, process {os.getpid()}, at work since",
        "2 dead letters, 20 B (ramen dead list)",
        "losses    none",
        "5 pushed = 3 waiting + 0 accepted + 2 dead",
    ):
        assert line in page
    assert "\x1b" not in page


def test_the_page_names_losses_and_books_that_do_not_balance(tmp_path, capsys):
    with open_queue(tmp_path) as queue:
        push(queue, 2)
        queue.take_oldest()
        ramen("status", "--queue-dir", tmp_path)
        page = capsys.readouterr().out
        assert "imx_1099: NOT DELIVERING: no reader runs\n" in page
        assert "losses    1 purged\n" in page
        assert "2 pushed = 1 waiting + 0 accepted + 1 lost\n" in page
        connection = apsw.Connection(str(queue.path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.execute("UPDATE book SET accepted = 5")
        connection.close()
        ramen("status", "--queue-dir", tmp_path)
        assert "THEY DO NOT BALANCE: -5" in capsys.readouterr().out


@pytest.mark.parametrize(("limit", "code"), [("30s", 1), ("0.5m", 1), ("119s", 0), ("1d", 0)])
def test_an_old_message_fails_the_check_that_was_asked_for_and_no_other(tmp_path, capsys, limit, code):
    with open_queue(tmp_path) as queue:
        assert ramen("status", "--queue-dir", tmp_path, "--fail-if-older", limit) == 0
        push(queue, age=60)
        assert ramen("status", "--queue-dir", tmp_path) == 0
        assert ramen("status", "--queue-dir", tmp_path, "--fail-if-older", limit) == code
        assert has_shape(
            answer(capsys, "status", "--queue-dir", tmp_path, "--fail-if-older", limit, code=code), SCHEMA
        )


def test_it_exits_with_1_when_nothing_gets_through_and_with_0_again_when_nothing_waits(tmp_path, capsys):
    with open_queue(tmp_path) as queue:
        push(queue, age=121)
        found = answer(capsys, "status", "--queue-dir", tmp_path, code=1)
        assert found["health"]["healthy"] is False
        assert [problem["trouble"] for problem in found["health"]["problems"]] == ["no_reader"]
        queue.take_oldest()
        assert answer(capsys, "status", "--queue-dir", tmp_path)["health"]["healthy"] is True


def test_it_exits_with_1_while_messages_are_being_lost(tmp_path, capsys):
    """The books say how many were ever lost, not when: so it counts while it looks."""
    ended = threading.Event()

    def lose():
        with closing(
            Queue(Place(str(tmp_path), "imx", 1099, "3.0"), max_bytes=20_000, durable=False)
        ) as queue:
            while not ended.is_set():
                push(queue, payload=os.urandom(1000))

    with open_queue(tmp_path):
        loser = threading.Thread(target=lose)
        loser.start()
        try:
            assert ramen("status", "--queue-dir", tmp_path, "--over", "1s", "--json") == 1
        finally:
            ended.set()
            loser.join(20)
    found = json.loads(capsys.readouterr().out)  # the log of losses may stand on stderr
    assert found["rates"]["lost_per_second"] > 0
    assert [problem["trouble"] for problem in found["health"]["problems"]] == ["losses"]


@pytest.mark.parametrize("wrong", ["1", "h", "1 h", "-1h", "1w", "1e3s", ""])
def test_a_duration_that_is_none_is_refused(tmp_path, capsys, wrong):
    assert ramen("status", "--queue-dir", tmp_path, "--fail-if-older", wrong) == 2
    assert "90s" in capsys.readouterr().err


def test_which_queue_is_meant_must_be_clear(tmp_path, capsys, monkeypatch):
    assert ramen("status", "--queue-dir", tmp_path) == 3
    assert "there is no queue" in capsys.readouterr().err
    assert ramen("status", "--queue-dir", tmp_path / "nowhere") == 3
    for sender, serial in (("a", 1), ("a", 2), ("b", 1)):
        with open_queue(tmp_path, sender, serial) as queue:
            push(queue, serial)
    assert ramen("status", "--queue-dir", tmp_path) == 2
    assert (
        "there are 3 queues; say which one by sender and system_serial: a_1.db, a_2.db, b_1.db"
        in capsys.readouterr().err
    )
    assert answer(capsys, "status", "--queue-dir", tmp_path, "--sender", "b")["sender"] == "b"
    assert (
        answer(capsys, "status", "--queue-dir", tmp_path, "--sender", "a", "--system-serial", "2")["waiting"]
        == 2
    )
    assert ramen("status", "--queue-dir", tmp_path, "--sender", "a/b") == 2
    assert ramen("status", "--queue-dir", tmp_path, "--system-serial", "x") == 2
    config = tmp_path / "ramen.toml"
    config.write_text(f'queue_dir = "{tmp_path}"\nsender = "a"\nsystem_serial = 1\n')
    monkeypatch.setenv("RAMEN_CONFIG", str(config))
    assert answer(capsys, "status")["max_queue_size"] == 5 * 1024**3
    monkeypatch.setenv("RAMEN_SYSTEM_SERIAL", "2")
    assert answer(capsys, "status")["system_serial"] == 2
    assert answer(capsys, "status", "--system-serial", "1")["system_serial"] == 1
    assert ramen("status", "--config", tmp_path / "no.toml") == 2


def test_a_queue_of_1x_that_nobody_took_over_is_said(tmp_path, capsys):
    connection = apsw.Connection(str(tmp_path / "imx_1.db"))
    connection.execute(
        "CREATE TABLE queue (id INTEGER PRIMARY KEY AUTOINCREMENT, ts TIMESTAMP DEFAULT CURRENT_TIMESTAMP, "
        "category TEXT NOT NULL, data_type TEXT NOT NULL, data_version INTEGER NOT NULL, reqid TEXT, data BLOB NOT NULL)"
    )
    connection.close()
    assert ramen("status", "--queue-dir", tmp_path) == 3
    assert "has not taken over yet; nothing waits in it" in capsys.readouterr().err


def test_the_command_works_as_a_process_and_sees_that_a_reader_was_killed(tmp_path):
    program = """
import sys, time
sys.path.insert(0, sys.argv[1])
from queue_kit import *
with open_queue(sys.argv[2]) as queue:
    push(queue)
    with active_reader(queue) as reader:
        reader.claim(1, 1)
        print("holding", flush=True)
        time.sleep(60)
"""
    here = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", program, here, str(tmp_path)], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"holding\n"
        command = [sys.executable, "-m", "infi.ramen_cli", "status", "--queue-dir", str(tmp_path)]
        page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "imx_1099: delivering\n" in page
        assert f"running, process {holder.pid}, at work since" in page
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        page = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "NOT DELIVERING: no reader runs" in page
    assert f"process {holder.pid}, at work since" in page
    assert "DIED without stopping" in page
