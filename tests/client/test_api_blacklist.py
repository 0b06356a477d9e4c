"""api-1x.md, `get_blacklist()` and `Blacklist`; protocol.md, "Blacklist rules"."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client import blacklist as blacklist_module
from infi.ramen_client.blacklist import MAX_RULES, StoredBlacklist
from infi.ramen_client.queue_reader import Blacklist, QueueReader
from infi.ramen_client.testing import Accept, Drop
from infi.ramen_protocol import Envelope, Rule

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.testing import RamenServer

ITEM = {"category": "metrics", "data_type": "x", "data_version": "v1"}
SIX = ("category", "system_serial", "sender", "data_type", "data_version", "system_version")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def blacklist(config: QueueReaderConfig, clock: Clock) -> Blacklist:
    return Blacklist(config, monotonic=clock)


# Blacklist


def test_a_blacklist_is_built_with_a_config_and_is_empty(config: QueueReaderConfig):
    blacklist = Blacklist(config)

    assert blacklist.get_list() == []
    assert blacklist.matches(ITEM) is False


@pytest.mark.parametrize(
    ("rule", "matches"),
    [
        ({"category": "metrics"}, True),
        ({"category": "events"}, False),
        ({"data_type": "x"}, True),
        ({"data_type": "y"}, False),
        ({"data_version": "v1"}, True),
        ({"data_version": "v2"}, False),
        ({"sender": "imx"}, True),
        ({"sender": "ibox"}, False),
        ({"system_serial": 1099}, True),
        ({"system_serial": "1099"}, True),
        ({"system_serial": 1}, False),
        ({"system_version": "3.0.0.1"}, True),
        ({"system_version": "4"}, False),
        ({"category": "metrics", "data_type": "x", "sender": None}, True),
        ({"category": "metrics", "data_type": "y"}, False),
        (dict.fromkeys(SIX) | {"data_type": "x"}, True),
    ],
    ids=repr,
)
def test_a_message_matches_when_every_field_that_is_present_equals_its_own(
    blacklist: Blacklist, rule: dict[str, Any], matches: bool
):
    """An item holds no more than category, data_type and data_version: the rest comes from the config."""
    blacklist.add(rule)

    assert blacklist.matches(ITEM) is matches


@pytest.mark.parametrize("in_rule", [1, "1"])
@pytest.mark.parametrize("in_item", [1, "1"])
def test_a_number_in_a_rule_equals_the_text_in_a_message(blacklist: Blacklist, in_rule: Any, in_item: Any):
    blacklist.add({"data_version": in_rule})

    assert blacklist.matches(ITEM | {"data_version": in_item}) is True
    assert blacklist.matches(ITEM | {"data_version": "01"}) is False


@pytest.mark.parametrize(
    "rule",
    [
        {},
        dict.fromkeys(SIX),
        {"colour": "red"},
        {"data_type": "x", "colour": "red"},
        {"data_type": ["x"]},
        {"data_type": True},
    ],
    ids=repr,
)
def test_a_rule_that_names_no_field_or_an_unknown_one_is_not_applied_and_logged(
    blacklist: Blacklist, rule: dict[str, Any], caplog: pytest.LogCaptureFixture
):
    blacklist.add(rule)

    assert blacklist.get_list() == []
    assert blacklist.matches(ITEM) is False
    assert "cannot be applied" in caplog.text


def test_each_rule_has_the_six_attributes_added_last_seen_and_a_readable_str(blacklist: Blacklist):
    before = datetime.now()
    blacklist.add({"category": "metrics", "system_serial": 1099, "data_version": 5})
    (rule,) = blacklist.get_list()

    assert {name: getattr(rule, name) for name in SIX} == {
        "category": "metrics",
        "system_serial": 1099,
        "sender": None,
        "data_type": None,
        "data_version": "5",
        "system_version": None,
    }
    assert before <= rule.added <= datetime.now()
    assert rule.last_seen == rule.added
    assert str(rule) == "Rule(category=metrics, system_serial=1099, data_version=5)"


def test_a_rule_that_is_received_again_is_refreshed_not_added_twice(blacklist: Blacklist, clock: Clock):
    blacklist.add({"data_type": "x"})
    (first,) = blacklist.get_list()
    added = first.added
    clock.now += 3000
    blacklist.add({"data_type": "x"})
    (second,) = blacklist.get_list()
    clock.now += 3000  # 6000 s after it was added, 3000 s after it was last seen; the ttl is 3600 s

    assert second.added == added <= second.last_seen
    assert blacklist.matches(ITEM)


def test_a_rule_lives_blacklist_ttl_seconds(blacklist: Blacklist, clock: Clock):
    blacklist.add({"data_type": "x"})
    clock.now += 3599
    assert blacklist.matches(ITEM)
    clock.now += 2

    assert not blacklist.matches(ITEM)
    assert blacklist.get_list() == []


def test_blacklist_ttl_may_be_assigned_afterwards(
    blacklist: Blacklist, clock: Clock, config: QueueReaderConfig
):
    blacklist.add({"data_type": "x"})
    clock.now += 3
    config.blacklist_ttl = 2
    assert blacklist.get_list() == []
    assert not blacklist.matches(ITEM)

    config.blacklist_ttl = 10
    blacklist.add({"data_type": "x"})
    clock.now += 9
    assert blacklist.matches(ITEM)


def test_two_blacklists_share_nothing(config: QueueReaderConfig, reader: QueueReader):
    one, other = Blacklist(config), Blacklist(config)
    one.add({"data_type": "x"})

    assert not other.matches(ITEM)
    assert other.get_list() == reader.get_blacklist() == []


# The reader's


def test_while_a_rule_lives_matching_messages_are_dropped_unsent_and_others_are_sent(
    server: RamenServer, writer: Any, reader: QueueReader
):
    server.answer_with(Drop({"data_version": 1}))
    for version in (1, 1, "1", 2, "01"):
        writer.push("metrics", "x", version, {})

    assert reader.run(blocking=False) == 5
    assert [message.envelope.data_version for message in server.accepted] == ["2", "01"]
    assert len(server.received) == 3
    books = writer._store.books()
    assert (books.dropped, books.blacklisted, books.accepted) == (1, 2, 2)
    assert books.difference() == 0


@pytest.mark.parametrize("rule", [{}, None, {"colour": "red", "data_type": "x"}], ids=repr)
def test_a_rule_that_cannot_be_applied_costs_the_message_that_it_came_with_and_no_other(
    server: RamenServer, writer: Any, reader: QueueReader, rule: Any, caplog: Any
):
    server.answer_with(Drop(rule))
    for number in range(4):
        writer.push("metrics", "x", "v1", {"n": number})

    assert reader.run(blocking=False) == 4
    assert [message.json()["n"] for message in server.accepted] == [1, 2, 3]
    assert reader.get_blacklist() == []


def test_get_blacklist_lists_the_rules_that_the_reader_holds(
    server: RamenServer, writer: Any, reader: QueueReader
):
    server.answer_with(Drop({"data_type": "x", "system_serial": 1099}), Drop({"category": "events"}))
    writer.push("metrics", "x", "v1", {})
    writer.push("events", "y", "v1", {})
    assert reader.get_blacklist() == []
    reader.run(blocking=False)

    first, second = reader.get_blacklist()
    assert (first.data_type, first.system_serial, first.category) == ("x", 1099, None)
    assert str(second) == "Rule(category=events)"
    assert isinstance(first.added, datetime)
    assert timedelta(0) <= datetime.now() - first.last_seen < timedelta(minutes=1)


def test_get_blacklist_may_be_called_while_the_reader_runs(
    server: RamenServer, writer: Any, reader: QueueReader, in_background: Any
):
    server.default = lambda message: Drop({"data_type": message.envelope.data_type})
    running = in_background(reader.run)
    for number in range(30):
        writer.push("metrics", f"x{number}", "v1", {})
        reader.get_blacklist()
    assert writer.wait_sent(10)

    assert len(reader.get_blacklist()) == 30
    reader.stop()
    running.join()


def test_blacklist_ttl_may_be_assigned_to_a_living_readers_config(
    server: RamenServer,
    writer: Any,
    reader: QueueReader,
    config: QueueReaderConfig,
    monkeypatch: pytest.MonkeyPatch,
    clock: Clock,
):
    reader._blacklist._monotonic = clock
    server.answer_with(Drop({"data_type": "x"}))
    writer.push("metrics", "x", "v1", {})
    assert reader.consume_one() == reader.DROPPED
    config.blacklist_ttl = 2
    clock.now += 3
    writer.push("metrics", "x", "v1", {})

    assert reader.get_blacklist() == []
    assert reader.consume_one() == reader.ACCEPTED


def test_rules_survive_a_restart(server: RamenServer, writer: Any, open_reader: Callable[..., QueueReader]):
    server.answer_with(Drop({"data_type": "x"}))
    writer.push("metrics", "x", "v1", {})
    with open_reader() as reader:
        assert reader.consume_one() == reader.DROPPED
        (rule,) = reader.get_blacklist()
    writer.push("metrics", "x", "v1", {})

    with open_reader() as reader:
        (kept,) = reader.get_blacklist()
        assert (str(kept), kept.added, kept.last_seen) == (str(rule), rule.added, rule.last_seen)
        assert reader.consume_one() == reader.DROPPED
    assert len(server.received) == 1


def test_a_rule_that_an_operator_lifted_is_lifted(server: RamenServer, writer: Any, reader: QueueReader):
    from infi.ramen_client.storage import remove_rule

    server.answer_with(Drop({"data_type": "x"}))
    writer.push("metrics", "x", "v1", {})
    reader.consume_one()
    (rule,) = reader.get_blacklist()
    remove_rule(writer._store, rule.rule_id)
    writer.push("metrics", "x", "v1", {})

    assert reader.consume_one() == reader.ACCEPTED


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The wall clock as the blacklist sees it, in seconds."""
    from infi.ramen_client.storage import rules

    wall = Clock()
    wall.now = 1_700_000_000.0
    for module in (blacklist_module, rules):
        monkeypatch.setattr(module, "now_ms", lambda: int(wall.now * 1000))
    return wall


def envelope() -> Envelope:
    return Envelope("metrics", 1099, "imx", "x", "v1", "3.0.0.1", "r")


@pytest.mark.parametrize("step", [-86400, 86400], ids=["back", "forward"])
def test_a_step_of_the_wall_clock_neither_prolongs_nor_ends_a_rule_of_a_living_reader(
    config: QueueReaderConfig, writer: Any, clock: Clock, wall: Clock, step: float
):
    blacklist = StoredBlacklist(config, writer._store, monotonic=clock)
    blacklist.receive(Rule(data_type="x"))
    wall.now += step
    clock.now += 10
    assert len(blacklist.get_list()) == 1  # somebody looks at the list, which must not count by another clock
    blacklist.reload()
    assert blacklist.match(envelope())
    clock.now += 3580
    blacklist.reload()
    assert blacklist.match(envelope())
    clock.now += 20
    blacklist.reload()

    assert blacklist.match(envelope()) is None
    assert blacklist.get_list() == []


@pytest.mark.parametrize(
    ("step", "left"), [(-86400, 3600), (1000, 2600), (86400, 0)], ids=["back", "a while", "forward"]
)
def test_over_a_restart_a_rules_age_is_the_wall_clocks_within_nothing_and_the_ttl(
    config: QueueReaderConfig, writer: Any, clock: Clock, wall: Clock, step: float, left: float
):
    StoredBlacklist(config, writer._store, monotonic=clock).receive(Rule(data_type="x"))
    wall.now += step
    clock.now = 5.0  # the machine was started anew

    again = StoredBlacklist(config, writer._store, monotonic=clock)
    again.reload()
    clock.now += max(left - 1, 0)
    assert bool(again.match(envelope())) is (left > 0) or left == 0
    clock.now += 2
    again.reload()
    assert again.match(envelope()) is None


def test_the_reader_says_once_that_it_drops_messages(
    server: RamenServer, writer: Any, reader: QueueReader, caplog: pytest.LogCaptureFixture
):
    server.answer_with(Drop({"data_type": "x"}))
    for _ in range(5):
        writer.push("metrics", "x", "v1", {})
    with caplog.at_level(logging.WARNING, logger="ramen_client"):
        reader.run(blocking=False)

    assert caplog.text.count("Rule(data_type=x)") == 1


def test_a_rule_received_while_others_wait_in_hand_applies_to_them(
    server: RamenServer, writer: Any, config: QueueReaderConfig
):
    reader = QueueReader(config)
    server.answer_with(Accept(), Drop({"data_type": "y"}))
    for data_type in ("x", "y", "y", "x", "y"):
        writer.push("metrics", data_type, "v1", {})

    assert reader.run(blocking=False) == 5
    assert [message.envelope.data_type for message in server.accepted] == ["x", "x"]
    assert len(server.received) == 3


def test_what_a_rule_drops_at_the_end_of_the_queue_leaves_it_at_once(
    server: RamenServer, writer: Any, config: QueueReaderConfig
) -> None:
    server.answer_with(Drop({"data_type": "x"}))
    with QueueReader(config) as reader:
        writer.push("metrics", "x", "v1", {})
        writer.push("metrics", "x", "v1", {})
        reader.start_thread()
        assert writer.wait_sent(10)
        assert reader.books().blacklisted == 1


def test_a_server_that_sends_rules_without_end_cannot_slow_delivery_down(config: QueueReaderConfig) -> None:
    blacklist = Blacklist(config)
    for number in range(MAX_RULES + 10):
        blacklist.add({"data_type": f"type-{number}"})
    assert len(blacklist.get_list()) == MAX_RULES
