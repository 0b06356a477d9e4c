"""Tokens, rules and rates; the file that they lie in, shared by processes."""

import stat
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_protocol import Envelope, Rule
from infi.ramen_server import NameTaken, Purpose, Scope, Settings, UnusableFile
from infi.ramen_server.auth import MAX_TOKEN_CHARS
from infi.ramen_server.rate import MAX_BUCKETS, RateLimiter
from infi.ramen_server.rules import RuleBook, StoredRule


def envelope(**parts):
    fields = {
        "category": "metrics",
        "system_serial": 1099,
        "sender": "imx",
        "data_type": "totals",
        "data_version": "1",
        "system_version": "3.0",
        "reqid": "r",
    }
    return Envelope(**{**fields, **parts})


# Tokens


def test_a_token_is_found_by_its_text_alone(settings):
    text = settings.add_token("field")
    found = settings.current().tokens.find(text.encode())
    assert (found.name, found.purpose, found.revoked_at_ms) == ("field", Purpose.SEND, None)
    for wrong in (
        b"",
        text[:-1].encode(),
        text.encode() + b"x",
        b"field",
        b"x" * (MAX_TOKEN_CHARS + 1),
        b"\xff\x00",
    ):
        assert settings.current().tokens.find(wrong) is None


def test_the_text_of_a_token_is_in_no_file_and_no_repr(settings, directory):
    text = settings.add_token("field")
    brought = "brought-along-0123456789"
    settings.add_token("other", text=brought)
    settings.current().tokens.find(text.encode())
    seen = repr(settings.list_tokens()).encode() + b"".join(
        path.read_bytes() for path in directory.iterdir() if path.is_file()
    )
    assert text.encode() not in seen
    assert brought.encode() not in seen


def test_a_token_that_is_brought_along_must_be_long_and_plain(settings):
    settings.add_token("long", text="x" * 20)
    assert settings.current().tokens.find(b"x" * 20).name == "long"
    for bad in ("x" * 19, "x" * 513, "with a space in the middle", "umlaut-ä-0123456789012"):
        with pytest.raises(ValueError, match="a token must be") as refused:
            settings.add_token("bad", text=bad)
        assert bad not in str(refused.value)


@pytest.mark.parametrize("name", ["", "a b", "a\n", "x" * 65, "ä"])
def test_a_token_needs_a_plain_name(settings, name):
    with pytest.raises(ValueError, match="a token's name"):
        settings.add_token(name)


def test_a_name_and_a_text_are_given_once_also_after_revoking(settings):
    text = settings.add_token("field")
    with pytest.raises(NameTaken):
        settings.add_token("field")
    settings.revoke_token("field")
    with pytest.raises(NameTaken):
        settings.add_token("field")
    with pytest.raises(NameTaken) as refused:
        settings.add_token("another", text=text)
    assert text not in str(refused.value)


def test_a_revoked_token_is_refused_from_then_on_by_every_process_and_stays_in_the_list(settings, directory):
    text = settings.add_token("field").encode()
    with Settings(directory) as other:
        assert settings.current().tokens.find(text) is not None
        assert other.current().tokens.find(text) is not None
        assert other.revoke_token("field") is True
        assert settings.current().tokens.find(text) is None
        assert other.current().tokens.find(text) is None
    assert settings.revoke_token("field") is False
    assert settings.revoke_token("nobody") is False
    (listed,) = settings.list_tokens()
    assert listed.revoked_at_ms >= listed.added_at_ms


def test_the_first_token_is_made_once_even_by_several_at_the_same_time(directory):
    made = []

    def start():
        with Settings(directory) as settings:
            made.append(settings.add_first_token())

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (text,) = [token for token in made if token is not None]
    with Settings(directory) as settings:
        assert settings.current().tokens.find(text.encode()) is not None
        settings.revoke_token("first")
        assert settings.add_first_token() is None, "a revoked one counts: whoever revokes all wants none"


@pytest.mark.parametrize(
    ("senders", "serials", "sender", "serial", "covered"),
    [
        (("*",), ("*",), "imx", 1, True),
        (("imx",), ("*",), "imx", 1, True),
        (("imx",), ("*",), "imx2", 1, False),
        (("imx",), ("*",), "aimx", 1, False),
        (("imx-*",), ("*",), "imx-", 1, True),
        (("a", "b"), ("1", "2*"), "b", 29, True),
        (("a", "b"), ("1", "2*"), "b", 12, False),
        (("*x*",), ("*",), "axb", 1, True),
        (("IMX",), ("*",), "imx", 1, False),
    ],
)
def test_a_scope_covers_what_matches_both_patterns_whole(senders, serials, sender, serial, covered):
    assert Scope(senders, serials).covers(envelope(sender=sender, system_serial=serial)) is covered


def test_no_sender_makes_a_pattern_slow():
    scope = Scope(("*".join("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),))
    assert not scope.covers(envelope(sender="a" * 15_000 + "!"))  # with backtracking this would not end


@pytest.mark.parametrize(
    "patterns", [(), ("",), ("a.b",), ("a?",), ("[a]",), ("a\n",), ("x" * 257,), ("a",) * 101]
)
def test_a_scope_of_other_patterns_is_refused(patterns):
    with pytest.raises(ValueError, match="pattern"):
        Scope(patterns)
    with pytest.raises(ValueError, match="pattern"):
        Scope(("*",), patterns)


def test_scope_and_purpose_come_back_from_the_file(settings, directory):
    settings.add_token("field", scope=Scope(("a*", "b"), ("1",)), purpose=Purpose.READ)
    with Settings(directory) as again:
        (token,) = again.list_tokens()
    assert (token.scope, token.purpose) == (Scope(("a*", "b"), ("1",)), Purpose.READ)


def test_looking_does_not_wait_for_a_change_that_is_being_written(settings):
    text = settings.add_token("field").encode()
    with settings._write_lock:  # as while a change is being synced
        assert settings.current().tokens.find(text) is not None
        assert len(settings.list_tokens()) == 1


# Rules


def test_a_rule_is_kept_matched_and_removed_also_by_another_process(settings, directory):
    rule = Rule(data_type="totals", system_serial="1099")
    with Settings(directory) as other:
        stored = other.add_rule(rule)
        assert settings.current().rules.match(envelope()).rule == rule
        assert other.add_rule(rule).rule_id == stored.rule_id, "not added twice"
        assert [listed.rule for listed in settings.list_rules()] == [rule]
        assert other.remove_rule(stored.rule_id) is True
        assert other.remove_rule(stored.rule_id) is False
    assert settings.current().rules.match(envelope()) is None


def test_the_hits_of_a_rule_add_up_and_those_of_a_removed_one_are_forgotten(settings):
    first, second = settings.add_rule(Rule(sender="a")), settings.add_rule(Rule(sender="b"))
    settings.add_hits({first.rule_id: 3, second.rule_id: 1})
    settings.remove_rule(second.rule_id)
    settings.add_hits({first.rule_id: 4, second.rule_id: 1})
    assert [(listed.rule_id, listed.hits) for listed in settings.list_rules()] == [(first.rule_id, 7)]
    assert settings.add_rule(Rule(sender="c")).rule_id > second.rule_id, "a number is not used again"


_values = st.sampled_from(["a", "b", "1", "2"])
_rules = st.builds(
    lambda fields: Rule(**fields),
    st.dictionaries(
        st.sampled_from(
            ["category", "system_serial", "sender", "data_type", "data_version", "system_version"]
        ),
        _values,
        min_size=1,
    ),
)


@given(
    st.lists(_rules, max_size=12, unique=True),
    st.builds(Envelope, _values, st.sampled_from([1, 2]), _values, _values, _values, _values, st.just("r")),
)
def test_the_book_finds_what_looking_at_each_rule_in_turn_would_find(rules, message):
    stored = [StoredRule(number, rule, 0, 0) for number, rule in enumerate(rules)]
    expected = next((one for one in stored if one.rule.matches(message)), None)
    assert RuleBook(stored).match(message) == expected


# The file


def test_the_settings_file_is_the_owners_alone_and_refuses_others(settings, directory):
    assert stat.S_IMODE((directory / "settings.db").stat().st_mode) == 0o600
    (directory / "sub").mkdir()
    (directory / "sub" / "settings.db").write_bytes(other_kind(directory))
    with pytest.raises(UnusableFile, match="another kind"):
        Settings(directory / "sub")


def other_kind(directory):
    from infi.ramen_server import SqliteStore

    SqliteStore(directory / "store").close()
    return (directory / "store" / "messages.db").read_bytes()


# Rates


def test_a_bucket_lets_a_burst_through_and_then_the_rate():
    rates = RateLimiter(2.0, 3)
    assert [rates.take("t", "s", 0.0) for _ in range(3)] == [None] * 3
    assert rates.take("t", "s", 0.0) == pytest.approx(0.5)
    assert rates.take("t", "s", 0.25) == pytest.approx(0.25), "asking costs nothing"
    assert rates.take("t", "s", 0.5) is None
    assert rates.take("t", "s", 0.5) == pytest.approx(0.5)
    assert rates.take("t", "other", 0.5) is None
    assert rates.take("other", "s", 0.5) is None
    assert rates.take("t", "s", 0.4) is not None, "a clock that goes back gives nothing"


@given(st.lists(st.floats(0, 2), max_size=60), st.integers(1, 5), st.floats(0.1, 10))
def test_no_more_than_burst_and_rate_ever_get_through(steps, burst, per_second):
    rates = RateLimiter(per_second, burst)
    now = passed = 0
    for step in steps:
        now += step
        wait = rates.take("t", "s", now)
        passed += wait is None
        assert wait is None or wait > 0
        assert passed <= burst + now * per_second + 1e-6


def test_without_a_rate_nothing_is_kept_and_with_one_a_bounded_number():
    free, limited = RateLimiter(None, 1), RateLimiter(1.0, 1)
    for number in range(MAX_BUCKETS + 10):
        assert free.take("t", str(number), 0.0) is None
        assert limited.take("t", str(number), 0.0) is None
    assert (len(free), len(limited)) == (0, MAX_BUCKETS)
