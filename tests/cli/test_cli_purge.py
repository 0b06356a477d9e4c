"""``ramen purge``."""

import io

import pytest
from queue_kit import INTEGER, TRUTH, active_reader, answer, has_shape, open_queue, push, ramen

SCHEMA = {"purged": INTEGER, "in_flight": INTEGER, "dry_run": TRUTH}


@pytest.fixture
def queue(tmp_path):
    with open_queue(tmp_path) as opened:
        push(opened, 2, age=7200)
        push(opened, 3, data_type="cpu")
        yield opened


def test_what_to_purge_must_be_said(queue, tmp_path, capsys):
    assert ramen("purge", "--queue-dir", tmp_path, "--yes") == 2
    assert ramen("purge", "--queue-dir", tmp_path, "--yes", "--all", "--data-type", "cpu") == 2
    assert "or it is everything" in capsys.readouterr().err
    assert queue.size() == 5


def test_a_dry_run_counts_and_removes_nothing(queue, tmp_path, capsys):
    assert ramen("purge", "--queue-dir", tmp_path, "--older-than", "1h", "--dry-run") == 0
    assert capsys.readouterr().out == "2 messages would be removed.\n"
    found = answer(capsys, "purge", "--queue-dir", tmp_path, "--all", "--dry-run")
    assert has_shape(found, SCHEMA)
    assert found == {"purged": 5, "in_flight": 0, "dry_run": True}
    assert queue.size() == 5


@pytest.mark.parametrize(("said", "code", "left"), [("y\n", 0, 2), ("n\n", 1, 5), ("", 130, 5)])
def test_it_asks_with_the_number_before_it_removes(queue, tmp_path, capsys, monkeypatch, said, code, left):
    monkeypatch.setattr("sys.stdin", io.StringIO(said))
    assert ramen("purge", "--queue-dir", tmp_path, "--data-type", "cpu") == code
    assert "Remove 3 of the waiting messages of imx_1099.db for good?" in capsys.readouterr().err
    assert queue.size() == left
    assert queue.check() == []


def test_what_is_in_flight_stays_and_is_said(queue, tmp_path, capsys):
    with active_reader(queue) as reader:
        assert len(reader.claim(1, 1)) == 1
        assert ramen("purge", "--queue-dir", tmp_path, "--all", "--yes") == 0
    assert capsys.readouterr().out == "4 messages were removed.\n1 more are in flight and stayed.\n"
    assert has_shape(answer(capsys, "purge", "--queue-dir", tmp_path, "--all", "--yes"), SCHEMA)
    assert (queue.size(), queue.books().purged) == (0, 5)
    assert queue.check() == []
