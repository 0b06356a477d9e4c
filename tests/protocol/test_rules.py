"""Blacklist rules: never wider than the server meant."""

from __future__ import annotations

import string
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_protocol import RULE_FIELDS, Envelope, Rule, UnusableRule
from infi.ramen_protocol.rules import MAX_RULE_VALUE_CHARS

MESSAGE = Envelope("metrics", 1099, "imx", "san_totals", "1", "3.0.0.1", "r")
VALUES = st.text(alphabet=string.ascii_letters + string.digits + "._-", min_size=1, max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
)


def test_a_rule_matches_when_every_field_that_it_names_equals_the_message_s() -> None:
    rule = Rule.parse({"category": "metrics", "data_type": "san_totals", "sender": None})
    assert rule.matches(MESSAGE)
    assert rule.matches(replace(MESSAGE, sender="other", system_serial=1))
    assert not rule.matches(replace(MESSAGE, category="events"))
    assert not rule.matches(replace(MESSAGE, data_type="san_total"))


@pytest.mark.parametrize("field", RULE_FIELDS)
def test_each_field_alone_makes_a_rule_that_tells_messages_apart(field: str) -> None:
    rule = Rule.parse({field: getattr(MESSAGE, field)})
    other: Any = 1 if field == "system_serial" else "other"
    assert rule.matches(MESSAGE)
    assert not rule.matches(replace(MESSAGE, **{field: other}))


@pytest.mark.parametrize(("field", "value"), [("system_serial", "1099"), ("system_serial", 1099), ("data_version", 1), ("data_version", "1")])  # fmt: skip
def test_values_are_compared_as_text(field: str, value: object) -> None:
    assert Rule.parse({field: value}).matches(MESSAGE)


@pytest.mark.parametrize("value", ["01", "1.0", 1.0, "1e0"])
def test_text_that_only_means_the_same_number_is_not_equal(value: object) -> None:
    assert not Rule.parse({"data_version": value}).matches(MESSAGE)


def test_the_parts_of_a_match_are_case_sensitive_and_whole() -> None:
    for value in ("Metrics", "metric", "metricss"):
        assert not Rule.parse({"category": value}).matches(MESSAGE)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({}, "names no field"),
        ({"category": None}, "names no field"),
        ({"category": None, "new": None}, "names no field"),
        ({"category": "metrics", "region": "eu"}, "region"),
        ({"category": "metrics", "Category": "metrics"}, "Category"),
        ({"category": "metrics", "": 1}, "not known"),
        ({"category": "metrics", 1: 1}, "not known"),
        ({"category": "metrics", "x\n\x1b[31m" * 100: 1}, "not known"),
        ({"category": ["metrics"]}, "neither text nor a number"),
        ({"category": {"eq": "metrics"}}, "neither text nor a number"),
        ({"category": True}, "neither text nor a number"),
        ({"system_serial": False}, "neither text nor a number"),
        ({"category": ""}, "no name has"),
        ({"category": "*"}, "no name has"),
        ({"category": "metrics\n"}, "no name has"),
        ({"category": "\u0663"}, "no name has"),
        ({"category": "\ud800"}, "no name has"),
        ({"category": float("inf"), "sender": "a b"}, "no name has"),
        ({"category": "x" * (MAX_RULE_VALUE_CHARS + 1)}, "longer"),
        ({"system_serial": 10**300}, "longer"),
        ({"system_serial": 1 << 10**6}, "longer"),
        (None, "not a JSON object"),
        ([], "not a JSON object"),
        ("category=metrics", "not a JSON object"),
        (7, "not a JSON object"),
        ([["category", "metrics"]], "not a JSON object"),
    ],
    ids=lambda _: None,
)
def test_what_is_not_understood_in_full_is_no_rule(value: object, problem: str) -> None:
    with pytest.raises(UnusableRule, match=problem) as caught:
        Rule.parse(value)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def test_an_unknown_field_that_is_null_says_nothing() -> None:
    assert Rule.parse({"category": "metrics", "region": None}) == Rule(category="metrics")


def test_no_rule_can_exist_that_matches_everything() -> None:
    with pytest.raises(UnusableRule):
        Rule()


def test_a_rule_shows_the_fields_that_it_names() -> None:
    assert str(Rule.parse({"data_type": "x", "category": "metrics"})) == "Rule(category=metrics, data_type=x)"


@given(st.dictionaries(st.sampled_from(RULE_FIELDS), VALUES | st.integers(0, 10**20), min_size=1))
def test_a_rule_survives_its_own_json(fields: dict[str, object]) -> None:
    rule = Rule.parse(fields)
    assert rule.as_json() == {name: str(value) for name, value in fields.items()}
    assert Rule.parse(orjson.loads(orjson.dumps(rule.as_json()))) == rule
    assert hash(rule) == hash(Rule.parse(rule.as_json()))


@given(JSON | st.dictionaries(st.sampled_from([*RULE_FIELDS, "x"]), JSON, max_size=4))
def test_any_value_is_a_usable_rule_or_refused(value: object) -> None:
    try:
        rule = Rule.parse(value)
    except UnusableRule:
        return
    assert isinstance(value, dict)
    # Never wider: a message that differs in a named field is not matched.
    for name, text in rule.as_json().items():
        assert text == str(value[name])
        changed: Any = -7 if name == "system_serial" else text + "x"
        assert not rule.matches(replace(MESSAGE, **{name: changed})) or text == str(changed)


@given(st.dictionaries(st.sampled_from(RULE_FIELDS), st.sampled_from(["a", "b", "1", "2"]), min_size=1),
       st.builds(Envelope, *[st.sampled_from(["a", "b"]), st.sampled_from([1, 2]), *[st.sampled_from(["a", "1"])] * 4, st.just("r")]))  # fmt: skip
def test_matching_is_equality_of_the_named_fields(fields: dict[str, str], message: Envelope) -> None:
    expected = all(str(getattr(message, name)) == value for name, value in fields.items())
    assert Rule.parse(fields).matches(message) is expected
