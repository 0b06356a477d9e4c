"""``ramen export --to-1x``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from queue_kit import INTEGER, TEXT, active_reader, answer, bury, has_shape, open_queue, push, ramen

from infi.ramen_cli.commands.export import DEFAULT_DATA_DIR
from infi.ramen_server.config_file import DEFAULT_DATA_DIR as THE_COLLECTORS

SCHEMA = {
    "file": TEXT,
    "file_bytes": INTEGER,
    "messages": INTEGER,
    "perhaps_sent": INTEGER,
    "changed_versions": [
        {"category": TEXT, "data_type": TEXT, "data_version": TEXT, "becomes": TEXT, "messages": INTEGER}
    ],
    "damaged": INTEGER,
    "dead_letters": INTEGER,
    "pushed_meanwhile": INTEGER,
}


def test_what_waits_is_copied_and_the_operator_is_told_what_to_mind(tmp_path, capsys):
    with open_queue(tmp_path / "queue") as queue:
        bury(queue, 1)
        push(queue, 3)
        push(queue, 2, data_version="01")
    assert ramen("export", "--to-1x", tmp_path / "old", "--queue-dir", tmp_path / "queue") == 0
    said = capsys.readouterr()
    assert f"5 messages, 16.0 KiB, in {tmp_path}/old/imx_1099.db" in said.out
    assert "The queue itself stays as it is: let only one of the two deliver" in said.out
    assert "Dead letters, which stay here (`ramen dead export`): 1." in said.out
    assert "Sent by 1.x as version 1: 2 of metrics/san, version 01." in said.out
    assert said.err == ""
    with open_queue(tmp_path / "queue") as queue:
        assert queue.size() == 5
        assert queue.check() == []


def test_json_has_the_documented_shape(tmp_path, capsys):
    with open_queue(tmp_path / "queue") as queue:
        push(queue, 2)
        push(queue, 1, data_version="1e3")
    found = answer(capsys, "export", "--to-1x", tmp_path / "old", "--queue-dir", tmp_path / "queue")
    assert has_shape(found, SCHEMA)
    assert (found["messages"], found["changed_versions"][0]["becomes"]) == (3, "1000")


def test_the_queue_is_chosen_by_sender_and_serial(tmp_path, capsys):
    for sender, serial, messages in (("imx", 1, 1), ("imx", 2, 2), ("ibox", 2, 3)):
        with open_queue(tmp_path / "queue", sender, serial) as queue:
            push(queue, messages)
    where = ["--to-1x", tmp_path / "old", "--queue-dir", tmp_path / "queue"]
    found = answer(capsys, "export", *where, "--sender", "imx", "--system-serial", "2")
    assert (found["messages"], Path(found["file"]).name) == (2, "imx_2.db")
    assert ramen("export", *where, "--sender", "imx") == 2
    assert "there are 2 queues" in capsys.readouterr().err


def test_a_living_reader_and_a_file_that_is_there_are_refused(tmp_path, capsys):
    order = ["export", "--to-1x", tmp_path / "old", "--queue-dir", tmp_path / "queue"]
    with open_queue(tmp_path / "queue") as queue, active_reader(queue):
        assert ramen(*order) == 3
        assert "a reader is at work on it" in capsys.readouterr().err
    assert ramen(*order) == 0
    assert ramen(*order) == 3
    assert "is there already, and nothing is written over" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--to-1x", "x", "--data-dir", "y"], "--to-1x takes all that waits in a queue"),
        (["--to-1x", "x", "--category", "y"], "--to-1x takes all that waits in a queue"),
        (["--to-1x", "x", "--output", "y"], "--to-1x takes all that waits in a queue"),
        (["--queue-dir", "x"], "--queue-dir and --json go with --to-1x"),
        (["--json"], "--queue-dir and --json go with --to-1x"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, complaint, capsys):
    assert ramen("export", *options) == 2
    assert complaint in capsys.readouterr().err


def test_it_works_where_the_collectors_packages_are_not_installed(tmp_path):
    with open_queue(tmp_path / "queue") as queue:
        push(queue, 2)
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['starlette', 'uvicorn', 'httptools', 'infi.ramen_server']))\n"
        "from infi.ramen_cli.main import run\n"
        "sys.exit(run(sys.argv[1:]))"
    )
    order = ["export", "--to-1x", str(tmp_path / "old"), "--queue-dir", str(tmp_path / "queue"), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *order], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["messages"] == 2
    without = subprocess.run(
        [sys.executable, "-c", program, "export"], capture_output=True, text=True, check=False
    )
    assert (without.returncode, "are not installed" in without.stderr) == (3, True)


def test_the_collectors_directory_is_the_collectors_own_default():
    assert DEFAULT_DATA_DIR == THE_COLLECTORS
