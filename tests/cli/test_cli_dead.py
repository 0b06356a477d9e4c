"""``ramen dead``."""

import io
import json
import subprocess
import sys

import apsw
import pytest
from queue_kit import (
    INTEGER,
    MAYBE_INTEGER,
    MAYBE_TEXT,
    TEXT,
    TRUTH,
    Shape,
    answer,
    bury,
    has_shape,
    open_queue,
    push,
    ramen,
)

LETTER = {
    "position": INTEGER,
    "category": TEXT,
    "data_type": TEXT,
    "data_version": Shape([str, int]),
    "system_version": TEXT,
    "reqid": TEXT,
    "pushed_at": INTEGER,
    "plain_bytes": MAYBE_INTEGER,
    "stored_bytes": INTEGER,
    "died_at": INTEGER,
    "reason": TEXT,
    "status": MAYBE_INTEGER,
    "code": MAYBE_TEXT,
    "details": TEXT,
}
LIST = {"dead_letters": [LETTER], "next_after": MAYBE_INTEGER}
SHOWN = {**LETTER, "payload_text": TEXT, "payload_is_whole": TRUTH, "payload_is_damaged": TRUTH}
CHANGED = {"letters": INTEGER, "damaged": INTEGER, "missing": INTEGER}


@pytest.fixture
def queue(tmp_path):
    """Five letters: three usual ones, one of another kind, one that is damaged, in the place of a 1.x message."""
    with open_queue(tmp_path) as opened:
        bury(opened, 3, b'{"a": "\\u00e9"}')
        bury(opened, 1, b"[1,\n 2]", category="events", data_type="log", data_version=7)
        bury(opened, 1)
        connection = apsw.Connection(str(opened.path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.execute(
            "UPDATE dead_letter SET position = 5 - 4611686018427387904, plain_length = -1, category = x'1b', code = NULL, status = NULL "
            "WHERE position = 5"
        )
        connection.close()
        yield opened


DAMAGED = 5 - 2**62


def test_letters_are_listed_with_their_reasons_and_nothing_that_moves_the_cursor(queue, tmp_path, capsys):
    assert ramen("dead", "list", "--queue-dir", tmp_path) == 0
    out = capsys.readouterr().out
    assert out.count("the server refused it (400): no such [31mthing") == 5
    assert "\x1b" not in out
    assert "damaged" in out
    assert len(out.splitlines()) == 6


def test_a_list_comes_in_pages_and_selections(queue, tmp_path, capsys):
    assert ramen("dead", "list", "--queue-dir", tmp_path, "--limit", 4) == 0
    assert capsys.readouterr().out.endswith("There are more: --after 3\n")
    page = answer(capsys, "dead", "list", "--queue-dir", tmp_path, "--limit", 4)
    assert has_shape(page, LIST)
    assert [letter["position"] for letter in page["dead_letters"]] == [DAMAGED, 1, 2, 3]
    page = answer(
        capsys, "dead", "list", "--queue-dir", tmp_path, "--limit", 4, "--after", page["next_after"]
    )
    assert has_shape(page, LIST)
    assert ([letter["data_version"] for letter in page["dead_letters"]], page["next_after"]) == ([7], None)
    assert (
        answer(capsys, "dead", "list", "--queue-dir", tmp_path, "--after", DAMAGED, "--limit", 4)[
            "next_after"
        ]
        is None
    )
    page = answer(
        capsys, "dead", "list", "--queue-dir", tmp_path, "--category", "events", "--data-type", "log"
    )
    assert [letter["position"] for letter in page["dead_letters"]] == [4]
    assert answer(capsys, "dead", "list", "--queue-dir", tmp_path, "--older-than", "1h")["dead_letters"] == []


def test_no_letters_are_said(tmp_path, capsys):
    with open_queue(tmp_path):
        assert ramen("dead", "list", "--queue-dir", tmp_path) == 0
    assert capsys.readouterr().out == "No dead letters.\n"


def test_one_is_shown_with_its_payload(queue, tmp_path, capsys):
    assert ramen("dead", "show", "--queue-dir", tmp_path, 4) == 0
    said = capsys.readouterr()
    assert "reason          the server refused it (400)\n" in said.out
    assert said.out.endswith("\n[1,\n 2]\n")
    assert ramen("dead", "show", "--queue-dir", tmp_path, 4, "--bytes", 2) == 0
    said = capsys.readouterr()
    assert said.out.endswith("\n[1\n")
    assert said.err == "(the first 2 bytes; --bytes shows more)\n"
    found = answer(capsys, "dead", "show", "--queue-dir", tmp_path, 4)
    assert has_shape(found, SHOWN)
    assert (found["payload_text"], found["payload_is_whole"], found["plain_bytes"]) == ("[1,\n 2]", True, 7)


def test_a_damaged_one_at_a_place_below_0_is_shown_and_one_that_is_not_there_is_said(queue, tmp_path, capsys):
    found = answer(capsys, "dead", "show", "--queue-dir", tmp_path, DAMAGED)
    assert has_shape(found, SHOWN)
    assert (found["plain_bytes"], found["category"], found["status"]) == (None, "\x1b", None)
    assert ramen("dead", "show", "--queue-dir", tmp_path, 99) == 1
    assert capsys.readouterr().err == "There is no dead letter 99.\n"
    assert ramen("dead", "show", "--queue-dir", tmp_path, "x") == 2


@pytest.mark.parametrize(
    ("arguments", "changed", "code"),
    [
        ([1, 3], (2, 0, 0), 0),
        ([1, 99], (1, 0, 1), 1),
        ([DAMAGED], (0, 1, 0), 1),
        (["--category", "events"], (1, 0, 0), 0),
        (["--all"], (4, 1, 0), 1),
    ],
)
def test_letters_are_put_back_into_the_queue(queue, tmp_path, capsys, arguments, changed, code):
    found = answer(capsys, "dead", "retry", "--queue-dir", tmp_path, *arguments, code=code)
    assert has_shape(found, CHANGED)
    assert tuple(found.values()) == changed
    assert (queue.size(), queue.books().dead) == (changed[0], 5 - changed[0])
    assert queue.check() == []


def test_which_letters_must_be_said_once(queue, tmp_path):
    for command in (["retry"], ["discard", "--yes"]):
        assert ramen("dead", *command, "--queue-dir", tmp_path) == 2
        assert ramen("dead", *command, "--queue-dir", tmp_path, "--all", 1) == 2
    assert queue.books().dead == 5


@pytest.mark.parametrize(("said", "code", "left"), [("y\n", 0, 4), ("\n", 1, 5), ("", 130, 5)])
def test_throwing_away_asks_first(queue, tmp_path, capsys, monkeypatch, said, code, left):
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert ramen("dead", "discard", "--queue-dir", tmp_path, DAMAGED) == code
    assert "Throw dead letters of imx_1099.db away for good?" in capsys.readouterr().err
    assert queue.books().dead == left


def test_letters_are_thrown_away_and_counted(queue, tmp_path, capsys):
    found = answer(capsys, "dead", "discard", "--queue-dir", tmp_path, "--yes", 1, 99, code=1)
    assert has_shape(found, CHANGED)
    assert tuple(found.values()) == (1, 0, 1)
    assert ramen("dead", "discard", "--queue-dir", tmp_path, "--yes", "--all") == 0
    assert capsys.readouterr().out == "4 dead letters were thrown away.\n"
    assert queue.books().dead_discarded == 5
    assert queue.check() == []


def test_letters_are_exported_as_lines_of_json_and_stay(queue, tmp_path, capsysbinary):
    assert ramen("dead", "export", "--queue-dir", tmp_path) == 0
    lines = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    without_payload = [name for name in LETTER if name not in ("plain_bytes", "stored_bytes")]
    assert all(list(line)[:-1] == without_payload for line in lines)
    assert [list(line)[-1] for line in lines] == ["damaged_base64", *["payload"] * 4]
    assert lines[1]["payload"] == {"a": "é"}
    assert ramen("dead", "export", "--queue-dir", tmp_path, "--data-type", "log") == 0
    assert json.loads(capsysbinary.readouterr().out)["payload"] == [1, 2]
    assert queue.books().dead == 5


def test_an_export_whose_reader_has_enough_ends_well(tmp_path):
    with open_queue(tmp_path) as queue:
        bury(queue, 3, json.dumps("x" * 300_000).encode())
    command = [sys.executable, "-m", "infi.ramen_cli", "dead", "export", "--queue-dir", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(10)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_the_oldest_message_of_a_stream_is_made_a_dead_letter(tmp_path, capsys):
    with open_queue(tmp_path) as opened:
        push(opened, 2)
        assert (
            ramen("dead", "add", "metrics", "san", "--queue-dir", tmp_path, "--reason", "chokes the server")
            == 0
        )
        assert "is dead letter 1 now" in capsys.readouterr().out
        added = answer(capsys, "dead", "add", "metrics", "san", "--queue-dir", tmp_path)
        assert has_shape(added, {"position": INTEGER})
        (first, second) = opened.dead_letters()
        assert (first.death.details, second.death.details) == ("chokes the server", "")
        assert opened.check() == []
        assert ramen("dead", "add", "metrics", "san", "--queue-dir", tmp_path) == 1
        assert "No message of metrics/san waits" in capsys.readouterr().err
