"""``ramen blacklist``."""

import pytest
from queue_kit import INTEGER, answer, open_queue, ramen

from infi.ramen_client.storage import add_rule, load_rules
from infi.ramen_protocol import Rule

RULES = [
    Rule(category="metrics"),
    Rule(category="metrics", data_type="cpu"),
    Rule(system_serial="7", sender="x", data_version="1", system_version="3.0"),
]


@pytest.fixture
def queue(tmp_path):
    with open_queue(tmp_path) as opened:
        for rule in RULES:
            add_rule(opened, rule)
        yield opened


def test_rules_are_listed_and_when_they_end_where_that_is_configured(queue, tmp_path, capsys):
    assert ramen("blacklist", "list", "--queue-dir", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["number", "rule", "hits", "added", "last", "received", "ends", "in"]
    assert "category=metrics, data_type=cpu" in lines[2]
    assert "(see --config)" in lines[1]
    (tmp_path / "ramen.toml").write_text("blacklist_ttl = 7200\n")
    assert ramen("blacklist", "list", "--queue-dir", tmp_path, "-c", tmp_path / "ramen.toml") == 0
    assert "1 h 59 min" in capsys.readouterr().out


def test_json_has_the_documented_keys_and_types(queue, tmp_path, capsys):
    found = answer(capsys, "blacklist", "list", "--queue-dir", tmp_path)
    assert [rule["rule"] for rule in found["rules"]] == [rule.as_json() for rule in RULES]
    for rule in found["rules"]:
        assert list(rule) == ["number", "rule", "added_at", "last_seen_at", "hits"]
        assert {type(rule[name]) for name in ("number", "added_at", "last_seen_at", "hits")} == set(INTEGER)


@pytest.mark.parametrize(
    ("arguments", "left", "code"),
    [
        (["1", "3"], [1], 0),
        (["2", "99"], [0, 2], 1),
        (["--rule-category", "metrics"], [2], 0),
        (["--rule-category", "metrics", "--rule-data-type", "cpu"], [0, 2], 0),
        (["--rule-system-serial", "7", "--rule-sender", "x"], [0, 1], 0),
        (["--rule-sender", "y"], [0, 1, 2], 1),
        (["--all"], [], 0),
        ([], [0, 1, 2], 2),
        (["1", "--all"], [0, 1, 2], 2),
        (["x"], [0, 1, 2], 2),
    ],
)
def test_rules_are_lifted_by_number_by_what_they_name_or_all(queue, tmp_path, capsys, arguments, left, code):
    assert ramen("blacklist", "lift", "--queue-dir", tmp_path, *arguments) == code
    assert [stored.rule for stored in load_rules(queue)] == [RULES[number] for number in left]


def test_no_rules_are_said_and_lifting_all_of_none_is_well(tmp_path, capsys):
    with open_queue(tmp_path):
        assert ramen("blacklist", "list", "--queue-dir", tmp_path) == 0
        assert capsys.readouterr().out == "No rules.\n"
        assert ramen("blacklist", "lift", "--queue-dir", tmp_path, "--all") == 0
        assert capsys.readouterr().out == "0 rules lifted.\n"
