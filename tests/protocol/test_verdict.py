"""What an answer says about its message."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infi.ramen_protocol import (
    MAX_ANSWER_BYTES,
    MAX_RETRY_AFTER_SECONDS,
    Code,
    Rule,
    Verdict,
    answer_body,
    classify,
    parse_retry_after,
)

ABOUT_THE_MESSAGE = {400, 409, 411, 413, 414, 415, 422, 431}
REJECTING = {Code.BAD_REQUEST, Code.NOT_FOUND, Code.PAYLOAD_TOO_LARGE, Code.UNSUPPORTED_MEDIA_TYPE}
NOW = datetime(2025, 6, 1, 12, 0, 0, tzinfo=UTC)


def without_a_body(status: int) -> Verdict:
    if status in ABOUT_THE_MESSAGE:
        return Verdict.REJECTED
    return Verdict.UNAUTHORISED if status in {401, 403} else Verdict.RETRY


@pytest.mark.parametrize("body", [b"", b"<html>Sign in to the network</html>", b"{}", b"null"])
def test_every_status_without_a_protocol_body(body: bytes) -> None:
    for status in range(100, 600):
        judgement = classify(status, {"content-type": "text/html"}, body)
        assert judgement.verdict is without_a_body(status), status
        assert not judgement.explained
        assert judgement.code is None
        assert judgement.rule is None
        assert str(status) in judgement.details


@pytest.mark.parametrize("code", Code)
def test_every_status_with_every_protocol_body(code: Code) -> None:
    for status in range(100, 600):
        check_explained(status, code)


def check_explained(status: int, code: Code) -> None:
    judgement = classify(status, {}, answer_body(code, "why"))
    if code in {Code.ACCEPTED, Code.DROPPED}:
        agrees = status == 202
    elif code in REJECTING:
        agrees = status == 404 or status in ABOUT_THE_MESSAGE
    elif code in {Code.UNAUTHORIZED, Code.FORBIDDEN}:
        agrees = status in {401, 403}
    elif code is Code.LANE_CONFLICT:
        agrees = False  # version 1 has no lanes
    else:
        agrees = status == 429 if code is Code.TOO_MANY_REQUESTS else status >= 500
    assert judgement.explained is agrees, status
    assert judgement.code == (code.value if agrees else None)
    assert (judgement.details == "why") is agrees
    expected = without_a_body(status)
    if agrees and status == 202:
        expected = Verdict[code.name]
    elif agrees and status == 404:
        expected = Verdict.REJECTED
    assert judgement.verdict is expected, status


@pytest.mark.parametrize("status", [-1, 0, 1, 99, 600, 999, 10**9])
def test_a_status_that_http_does_not_have_is_retried(status: int) -> None:
    assert classify(status, {}, answer_body(Code.ACCEPTED)).verdict is Verdict.RETRY


ODD_202_BODIES = [
    b"", b" ", b"null", b"true", b"0", b'""', b'"ACCEPTED"', b"[]", b"{}", b'["ACCEPTED"]', b'[{"code":"ACCEPTED"}]',
    b"ACCEPTED", b"OK", b"<html></html>", b"{", b'{"code":"ACCEPTED"', b'{"code":"ACCEPTED"}}', b'{"code":"ACCEPTED"} x',
    b"{'code':'ACCEPTED'}", b'{"code":null}', b'{"code":true}', b'{"code":202}', b'{"code":["ACCEPTED"]}',
    b'{"code":{"ACCEPTED":1}}', b'{"code":""}', b'{"code":"accepted"}', b'{"code":"ACCEPTED "}', b'{"code":"ACCEPTED\\n"}',
    b'{"Code":"ACCEPTED"}', b'{"status":"ACCEPTED"}', b'{"code":"QUEUED"}', b'{"code":"BAD_REQUEST","details":"x"}',
    b'{"code":"TOO_MANY_REQUESTS"}', b'{"code":"UNAUTHORIZED"}', b'{"code":"ACCEPTED","code":"NO"}',
    b'\xef\xbb\xbf{"code":"ACCEPTED"}', b'\xff\xfe{\x00}\x00', b'{"code":"ACCEPTED\xff"}', b'{"code":"ACCEPTED","details":"\xc3"}',
    b'{"code":"ACCEPTED","details":"\\ud800"}', b'{"code":"ACCEPTED","details":NaN}', b'{"code":"ACCEPTED","details":1e999}',
    b'{"code":"ACCEPTED","n":' + b"9" * 60_000 + b"}", b'{"code":"ACCEPTED","a":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    b"[" * 60_000, b'{"a":' * 10_000, b"\x00" * 100, b"\x1f\x8b\x08\x00", b'{"code":"ACCEPTED"}\x00',
    b'{"code":"ACCEPTED","pad":"' + b"x" * MAX_ANSWER_BYTES + b'"}', b"//comment\n{}", b'{"code":"ACCEPTED",}',
]  # fmt: skip


@pytest.mark.parametrize("body", ODD_202_BODIES, ids=lambda body: repr(body[:24]))
def test_an_odd_202_body_is_no_acceptance(body: bytes) -> None:
    judgement = classify(202, {}, body)
    assert judgement.verdict is Verdict.RETRY
    assert not judgement.explained
    assert judgement.details.isprintable()


@pytest.mark.parametrize(
    "body",
    [
        b'{"code":"ACCEPTED"}', b' {"code" : "ACCEPTED", "details": null}\r\n', b'{"code":"ACCEPTED","new":[1]}',
        b'{"code":"ACCEPTED","details":{"a":1}}', b'{"code":"NO","code":"ACCEPTED"}', b'{"code":"ACCEPTED","rule":{}}',
        b'{"\\u0063ode":"ACCEPTED"}',
    ],
)  # fmt: skip
def test_a_202_that_says_accepted_is_an_acceptance(body: bytes) -> None:
    judgement = classify(202, {}, body)
    assert (judgement.verdict, judgement.details, judgement.rule, judgement.rule_problem) == (
        Verdict.ACCEPTED, "", None, None)  # fmt: skip


def test_a_dropped_answer_brings_its_rule() -> None:
    judgement = classify(
        202, {}, b'{"code":"DROPPED","details":"too much","rule":{"category":"metrics","system_serial":7}}'
    )
    assert judgement.verdict is Verdict.DROPPED
    assert judgement.rule == Rule(category="metrics", system_serial="7")
    assert judgement.rule_problem is None
    assert judgement.details == "too much"


@pytest.mark.parametrize(
    "rule", [{}, {"region": "eu"}, {"category": "a", "region": "eu"}, [], 1, "x", True, False, {"category": [1]}, {"category": None}]
)  # fmt: skip
def test_a_dropped_message_is_dropped_even_if_its_rule_is_unusable(rule: object) -> None:
    judgement = classify(202, {}, orjson.dumps({"code": "DROPPED", "details": None, "rule": rule}))
    assert judgement.verdict is Verdict.DROPPED
    assert judgement.rule is None
    assert judgement.rule_problem


@pytest.mark.parametrize("body", [b'{"code":"DROPPED"}', b'{"code":"DROPPED","rule":null}'])
def test_a_dropped_answer_without_a_rule_has_neither_rule_nor_problem(body: bytes) -> None:
    judgement = classify(202, {}, body)
    assert (judgement.verdict, judgement.rule, judgement.rule_problem) == (Verdict.DROPPED, None, None)


def test_details_are_bounded_and_cannot_steer_a_terminal() -> None:
    hostile = "\x1b]0;owned\x07\r\nFAKE LOG LINE \u202e" + "x" * 50_000
    judgement = classify(400, {}, orjson.dumps({"code": "BAD_REQUEST", "details": hostile}))
    assert judgement.explained
    assert len(judgement.details) <= 500
    assert judgement.details.isprintable()


def test_a_page_is_described_but_not_quoted() -> None:
    """It may repeat the request, with the token in it."""
    headers = {
        "content-type": "text/html\x1b[1m",
        "location": "https://portal.example/login\x07?token=secret",
    }
    judgement = classify(302, headers, b"<p>X-API-Token: secret</p>")
    assert judgement.details == (
        "status 302 without a protocol body (26 bytes of text/html [1m), redirecting to https://portal.example/login"
    )
    assert "secret" not in repr(judgement)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (b"<center>No required SSL certificate was sent</center>", "a client certificate is wanted"),
        (b"<center>The SSL certificate error</center>", "the client certificate is not accepted"),
        (b"<center>The plain HTTP request was sent to HTTPS port</center>", "TLS is spoken on this port"),
    ],
)
def test_a_page_that_common_servers_send_is_known_by_its_words(page: bytes, said: str) -> None:
    judgement = classify(400, {}, b"<html>" + page)
    assert (judgement.verdict, judgement.explained) == (Verdict.REJECTED, False)
    assert said in judgement.details


@pytest.mark.parametrize("header", ["120", "Sun, 06 Nov 1994 08:49:37 GMT", "soon"])
def test_retry_after_is_handed_on_for_any_verdict(header: str) -> None:
    assert classify(503, {"retry-after": header}, b"").retry_after == header
    assert classify(429, {"retry-after": header}, answer_body(Code.TOO_MANY_REQUESTS)).retry_after == header


@pytest.mark.parametrize("header", ["", "9" * 65, "1\n2", "\u0663", "\x1b[1m"])
def test_a_retry_after_that_cannot_be_true_is_not_handed_on(header: str) -> None:
    assert classify(503, {"retry-after": header}, b"").retry_after is None


@given(
    st.integers(-10, 700),
    st.dictionaries(st.sampled_from(["retry-after", "content-type", "location", "x"]), st.text()),
    st.binary(max_size=300),
)
def test_any_answer_gets_a_judgement(status: int, headers: dict[str, str], body: bytes) -> None:
    judgement = classify(status, headers, body)
    assert judgement.verdict is without_a_body(status)
    assert len(judgement.details) <= 500
    assert judgement.details.isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=20) | st.sampled_from(Code).map(lambda code: code.value),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
)  # fmt: skip


@given(st.sampled_from([202, 400, 404, 401, 429, 500, 200]), st.fixed_dictionaries({}, optional={"code": JSON, "details": JSON, "rule": JSON}) | JSON)  # fmt: skip
def test_any_json_gets_a_judgement_and_only_the_word_accepted_accepts(status: int, answer: object) -> None:
    judgement = classify(status, {}, orjson.dumps(answer))
    code = answer.get("code") if isinstance(answer, dict) else None
    assert (judgement.verdict is Verdict.ACCEPTED) is (status == 202 and code == "ACCEPTED")
    assert (judgement.verdict is Verdict.DROPPED) is (status == 202 and code == "DROPPED")
    assert (judgement.rule is not None) <= (judgement.verdict is Verdict.DROPPED)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0), ("120", 120.0), (" 5\t", 5.0), ("007", 7.0), ("3600", 3600.0), ("3601", 3600.0), ("99999", 3600.0),
        ("9" * 60, 3600.0), ("9" * 100_000, 3600.0), ("0" * 100_000 + "9", 9.0),
        ("Sun, 01 Jun 2025 12:01:30 GMT", 90.0), ("Sunday, 01-Jun-25 12:01:30 GMT", 90.0), ("Sun Jun  1 12:01:30 2025", 90.0),
        ("Sun, 01 Jun 2025 12:00:60 GMT", 59.0), ("Sun, 01 Jun 2025 11:59:59 GMT", 0.0), ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0), ("Sun Nov  6 08:49:37 1994", 0.0), ("Mon, 02 Jun 2025 12:00:00 GMT", 3600.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0), ("Friday, 31-Dec-75 23:59:59 GMT", 3600.0), ("Friday, 31-Dec-76 23:59:59 GMT", 0.0),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_seconds_and_dates_in_all_three_forms_are_understood(value: str, seconds: float) -> None:
    assert parse_retry_after(value, now=NOW) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "", " ", "-1", "+1", "1.5", "1e3", "0x10", "1_000", "1 2", "\u0663", "\uff11", "1\n", "soon", "NaN", "inf",
        "Sun, 32 Jun 2025 12:00:00 GMT", "Sun, 30 Feb 2025 12:00:00 GMT", "Sun, 01 Jun 2025 24:00:00 GMT",
        "Sun, 01 Jun 2025 12:00:61 GMT", "Sun, 01 Jun 0000 12:00:00 GMT", "Sun, 01 Jun 2025 12:00:00 +0000",
        "Sun, 01 Jun 2025 12:00:00", "Sun, 1 Jun 2025 12:00:00 GMT", "sun, 01 jun 2025 12:00:00 gmt", "2025-06-01T12:00:00Z",
        "Sun, \u0660\u0661 Jun 2025 12:00:00 GMT", "Sun, 01 Jun 2025 12:00:00 GMT\n", "x" * 100_000, "Sunday, 00-Jun-25 12:01:30 GMT",
    ],
    ids=lambda value: repr(value[:30]),
)  # fmt: skip
def test_anything_else_is_no_retry_after(value: str) -> None:
    assert parse_retry_after(value, now=NOW) is None


@given(st.text(max_size=70) | st.text(alphabet="0123456789 ,:-+.GMTJanSu", max_size=40))
@example("Sun, 01 Jun 2025 12:00:00 GMT")
def test_any_text_is_none_or_a_bounded_number_of_seconds(value: str) -> None:
    seconds = parse_retry_after(value, now=NOW)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_SECONDS


@given(st.integers(-5000, 5000), st.integers(-12, 12))
def test_a_date_is_the_same_wait_wherever_now_is_told(offset: int, hours: int) -> None:
    value = format_datetime(NOW + timedelta(seconds=offset), usegmt=True)
    now = NOW.astimezone(timezone(timedelta(hours=hours)))
    assert parse_retry_after(value, now=now) == min(max(offset, 0), MAX_RETRY_AFTER_SECONDS)


def test_a_naive_now_is_refused() -> None:
    with pytest.raises(ValueError, match="aware"):
        parse_retry_after("1", now=datetime(2025, 1, 1))
