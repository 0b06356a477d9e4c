"""``ramen rules``: what is added counts in the collector that runs, is listed with its hits, and goes again."""

import json
import subprocess

import pytest
from serve_kit import RAMEN, Serve, client_config, connect, deliver, environment, post

from infi.ramen_cli.main import run
from infi.ramen_client import QueueReader
from infi.ramen_server import Settings


@pytest.fixture
def directory(tmp_path):
    directory = tmp_path / "data"
    Settings(directory).close()
    return directory


@pytest.fixture
def rules(directory, capsys):
    """Run a subcommand; its exit code, stdout and stderr."""

    def call(name, *arguments):
        code = run(["rules", name, "--data-dir", str(directory), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_a_rule_counts_in_a_running_collector_until_it_is_removed(tmp_path):
    directory = tmp_path / "data"

    def rules(*arguments):
        return subprocess.run(
            [*RAMEN, "rules", *arguments, "--data-dir", directory],
            capture_output=True, text=True, check=True, timeout=100, env=environment(),
        ).stdout  # fmt: skip

    with Serve(directory) as serve:
        with Settings(directory) as settings:
            token = settings.add_token("test")
        connection = connect(serve)
        assert post(connection, token, "1") == 202
        assert rules("add", "--category", "metrics", "--data-type", "answer") == (
            "Rule 1: category=metrics data_type=answer\n"
        )
        config = client_config(serve, token, tmp_path / "queue")
        assert deliver(config, {"wanted": False}) == 1
        with QueueReader(config) as reader:
            assert [(held.category, held.data_type) for held in reader.get_blacklist()] == [
                ("metrics", "answer")
            ]
        assert rules("remove", "1") == "Rule 1 is removed.\n"
        assert post(connection, token, "2") == 202
        connection.close()
        assert serve.end() == 0
    listed = subprocess.run(
        [*RAMEN, "export", "--data-dir", directory], capture_output=True, check=True, env=environment()
    )
    assert [json.loads(line)["data"] for line in listed.stdout.splitlines()] == [{"n": "1"}, {"n": "2"}]


def test_rules_are_listed_with_their_hits(directory, rules):
    assert rules("list") == (0, "There are no rules.\n", "")
    assert json.loads(rules("list", "--json")[1]) == {"rules": []}
    code, added, _ = rules("add", "--sender", "imx", "--system-serial", "7", "--json")
    assert code == 0
    added = json.loads(added)
    assert (added["number"], added["rule"], added["hits"]) == (1, {"system_serial": "7", "sender": "imx"}, 0)
    with Settings(directory) as settings:
        settings.add_hits({1: 12})
    assert json.loads(rules("list", "--json")[1]) == {"rules": [{**added, "hits": 12}]}
    lines = rules("list")[1].splitlines()
    assert lines[0].split() == ["rule", "hits", "added", "messages", "with"]
    assert lines[1].split()[:2] == ["1", "12"]
    assert lines[1].endswith("system_serial=7 sender=imx")


def test_the_same_rule_again_is_the_same_rule(rules):
    assert rules("add", "--category", "a")[1] == "Rule 1: category=a\n"
    assert rules("add", "--category", "a")[1] == "Rule 1: category=a\n"
    assert len(json.loads(rules("list", "--json")[1])["rules"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "names no field, so it would match every message"),
        (["--category", ""], "category is empty or holds characters that no name has"),
        (["--data-type", "cpu*"], "data_type is empty or holds characters that no name has"),
        (["--sender", "x" * 300], "sender is longer than 256 characters"),
    ],
)
def test_a_rule_that_cannot_be_used_is_refused_in_words(rules, arguments, words):
    code, said, error = rules("add", *arguments)
    assert (code, said) == (2, "")
    assert words in error
    assert rules("list")[1] == "There are no rules.\n"


def test_a_rule_that_is_not_there_cannot_be_removed(rules):
    assert rules("remove", "5") == (1, "", "There is no rule 5.\n")


@pytest.mark.parametrize("arguments", [["list"], ["add", "--category", "a"], ["remove", "1"]])
def test_where_no_collector_ran_nothing_is_made(tmp_path, capsys, arguments):
    assert run(["rules", *arguments, "--data-dir", str(tmp_path / "none")]) == 3
    assert "Has a collector run in this directory?" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
