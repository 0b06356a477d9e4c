"""A server's answers, and text made fit for one line."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_protocol import Code, RefusedRequest, Rule, Verdict, answer_body, classify, status_of
from infi.ramen_protocol._text import MAX_DETAILS_CHARS, clean_text

EXPECTED = {
    Code.ACCEPTED: Verdict.ACCEPTED,
    Code.DROPPED: Verdict.DROPPED,
    Code.BAD_REQUEST: Verdict.REJECTED,
    Code.NOT_FOUND: Verdict.REJECTED,
    Code.PAYLOAD_TOO_LARGE: Verdict.REJECTED,
    Code.UNSUPPORTED_MEDIA_TYPE: Verdict.REJECTED,
    Code.UNAUTHORIZED: Verdict.UNAUTHORISED,
    Code.FORBIDDEN: Verdict.UNAUTHORISED,
    Code.TOO_MANY_REQUESTS: Verdict.RETRY,
    Code.INTERNAL_ERROR: Verdict.RETRY,
    Code.UNAVAILABLE: Verdict.RETRY,
}


def test_the_answer_to_an_accepted_message_is_the_one_that_1x_knows() -> None:
    assert answer_body(Code.ACCEPTED) == b'{"code":"ACCEPTED","details":null}'


@pytest.mark.parametrize("code", EXPECTED)
def test_the_client_reads_each_answer_as_it_was_meant(code: Code) -> None:
    judgement = classify(status_of(code), {}, answer_body(code, "because"))
    assert judgement.verdict is EXPECTED[code]
    assert judgement.code == code.value
    assert judgement.details == "because"
    assert judgement.explained


def test_a_lane_conflict_says_nothing_about_a_message_of_version_1() -> None:
    assert set(Code) - set(EXPECTED) == {Code.LANE_CONFLICT}
    judgement = classify(409, {}, answer_body(Code.LANE_CONFLICT, "because"))
    assert (judgement.verdict, judgement.explained) == (Verdict.REJECTED, False)
    assert classify(500, {}, answer_body(Code.LANE_CONFLICT)).explained is False


def test_a_rule_goes_with_a_dropped_answer_only() -> None:
    rule = Rule.parse({"category": "metrics", "system_serial": 1})
    body = answer_body(Code.DROPPED, None, rule)
    assert orjson.loads(body) == {
        "code": "DROPPED",
        "details": None,
        "rule": {"category": "metrics", "system_serial": "1"},
    }
    assert classify(202, {}, body).rule == rule
    with pytest.raises(ValueError, match="only a DROPPED answer"):
        answer_body(Code.ACCEPTED, None, rule)


def test_a_refusal_knows_its_status_and_body() -> None:
    refused = RefusedRequest(Code.NOT_FOUND, "no such\npath\x1b[0m \ud800")
    assert refused.status == 404
    assert orjson.loads(refused.body) == {"code": "NOT_FOUND", "details": "no such path [0m"}


@given(st.text() | st.text(min_size=400, max_size=3000) | st.text(alphabet=st.characters(codec=None)))
def test_clean_text_is_one_bounded_printable_line(text: str) -> None:
    line = clean_text(text)
    assert len(line) <= MAX_DETAILS_CHARS
    assert line.isprintable()
    assert orjson.dumps(line)
    assert clean_text(line) == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain words, ünïcödé 😀", "plain words, ünïcödé 😀"),
        ("a\r\nb\tc\x00d\x7fe\x85f", "a b c d e f"),
        ("\x1b[31mred\x1b[0m \x9b1m", "[31mred [0m 1m"),
        ("left\u202eright\u2028next\u200bzero\u2066x", "left right next zero x"),
        ("  much   space \u00a0", "much space"),
        ("x" * 500, "x" * 500),
        ("x" * 501, "x" * 499 + "…"),
        ("\x00" * 10_000_000, "…"),
        ("", ""),
    ],
    ids=lambda _: None,
)
def test_what_is_not_printable_is_a_space_and_what_is_too_long_is_cut(text: str, line: str) -> None:
    assert clean_text(text) == line
