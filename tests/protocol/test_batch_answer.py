"""What an answer says about a batch: the whole table, and that anything may come."""

from __future__ import annotations

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_protocol import (
    BatchOutcome,
    Code,
    RecordResult,
    Rule,
    Verdict,
    answer_body,
    classify,
    encode_results,
    judge_batch,
    max_batch_answer_bytes,
    status_of,
)
from infi.ramen_protocol.batch_answer import MAX_RESULT_BYTES

ABOUT_THE_MESSAGE = {400, 409, 411, 413, 414, 415, 422, 431}
REJECTING = {Code.BAD_REQUEST, Code.NOT_FOUND, Code.PAYLOAD_TOO_LARGE, Code.UNSUPPORTED_MEDIA_TYPE}
PATHLESS = {404: BatchOutcome.NO_BATCHES, 405: BatchOutcome.NO_BATCHES, 415: BatchOutcome.UNSUPPORTED_CODING}
PAGES = [b"", b"<html>Sign in to the network</html>", b"{}", b"null", b'{"code":"FINE"}', b'{"results":[]}']


@pytest.mark.parametrize("body", PAGES)
def test_every_status_without_a_protocol_body_is_unknown_but_for_those_that_speak_of_path_and_coding(
    body: bytes,
) -> None:
    for status in range(100, 600):
        judgement = judge_batch(status, {"content-type": "text/html"}, body, 2)
        assert judgement.outcome is PATHLESS.get(status, BatchOutcome.UNKNOWN), status
        assert (judgement.explained, judgement.results, judgement.code) == (False, (), None)
        assert judgement.details


@pytest.mark.parametrize("code", Code)
def test_every_status_with_every_protocol_body(code: Code) -> None:
    for status in range(100, 600):
        judgement = judge_batch(status, {"retry-after": "7"}, answer_body(code, "why"), 2)
        assert (judgement.outcome, judgement.explained) == expected(status, code), status
        assert judgement.code == (code.value if judgement.explained else None)
        assert (judgement.details == "why") is judgement.explained
        assert judgement.retry_after == "7"


def expected(status: int, code: Code) -> tuple[BatchOutcome, bool]:
    otherwise = PATHLESS.get(status, BatchOutcome.UNKNOWN)
    if code is Code.LANE_CONFLICT:
        return (BatchOutcome.LANE_CONFLICT, True) if status == 409 else (otherwise, False)
    if code in REJECTING and (status in ABOUT_THE_MESSAGE or status == 404):
        named = {413: BatchOutcome.TOO_LARGE} | PATHLESS
        return named.get(status, BatchOutcome.REFUSED), True
    if code in {Code.UNAUTHORIZED, Code.FORBIDDEN} and status in {401, 403}:
        return BatchOutcome.UNAUTHORISED, True
    if code is Code.TOO_MANY_REQUESTS and status == 429:
        return BatchOutcome.WAIT, True
    if code in {Code.ACCEPTED, Code.DROPPED}:
        return otherwise, status == 202
    return otherwise, code in {Code.INTERNAL_ERROR, Code.UNAVAILABLE} and status >= 500


RULE = Rule(category="events")
RESULTS = st.builds(
    lambda code, details, wait: RecordResult(
        status_of(code), code, details, RULE if code is Code.DROPPED else None, wait
    ),
    st.sampled_from([code for code in Code if code is not Code.LANE_CONFLICT]),
    st.none() | st.text(max_size=40),
    st.none() | st.floats(0, 10**7),
)


@given(st.lists(RESULTS, min_size=1, max_size=20))
def test_each_result_is_judged_as_version_1_judges_the_answer(results: list[RecordResult]) -> None:
    judgement = judge_batch(200, {}, encode_results(results), len(results))
    assert (judgement.outcome, judgement.explained) == (BatchOutcome.RESULTS, True)
    for result, found in zip(results, judgement.results, strict=True):
        alone = classify(result.status, {}, answer_body(result.code, result.details, result.rule))
        assert (found.verdict, found.code, found.rule) == (alone.verdict, alone.code, alone.rule)
        assert (found.details, found.explained) == (alone.details, True)
        if result.retry_after_seconds is not None and result.code is not Code.ACCEPTED:
            assert found.retry_after is not None
            assert min(result.retry_after_seconds, 3600) <= int(found.retry_after) <= 3600


def test_the_answer_to_good_records_is_the_one_of_the_protocol() -> None:
    body = encode_results([RecordResult(202, Code.ACCEPTED), RecordResult(202, Code.DROPPED, "no", RULE)])
    assert orjson.loads(body) == {
        "results": [
            {"status": 202, "code": "ACCEPTED", "details": None},
            {"status": 202, "code": "DROPPED", "details": "no", "rule": {"category": "events"}},
        ]
    }


GOOD = {"status": 202, "code": "ACCEPTED", "details": None}


@pytest.mark.parametrize("count", [0, 1, 3, 1000])
def test_results_of_another_number_are_void(count: int) -> None:
    judgement = judge_batch(200, {}, orjson.dumps({"results": [GOOD] * count}), 2)
    assert (judgement.outcome, judgement.results) == (BatchOutcome.UNKNOWN, ())
    assert judgement.details == f"{count} results for 2 records"


@pytest.mark.parametrize(
    "result",
    [
        None,
        [],
        "ACCEPTED",
        {},
        {**GOOD, "code": "FINE"},
        {**GOOD, "code": None},
        {**GOOD, "code": "LANE_CONFLICT", "status": 409},
        {**GOOD, "status": 200},
        {**GOOD, "status": "202"},
        {**GOOD, "status": 202.5},
        {**GOOD, "status": True},
        {**GOOD, "status": 2**63},
        {**GOOD, "status": 400},
        {**GOOD, "code": "BAD_REQUEST"},
        {"status": 500, "code": "ACCEPTED"},
    ],
)
def test_one_result_that_is_none_of_the_protocol_s_makes_all_void(result: object) -> None:
    judgement = judge_batch(200, {}, orjson.dumps({"results": [GOOD, result]}), 2)
    assert (judgement.outcome, judgement.results) == (BatchOutcome.UNKNOWN, ())
    assert judgement.details.startswith("result 2 is none")


@pytest.mark.parametrize("status", [201, 202, 203, 206, 207, 302, 500])
def test_good_results_under_another_status_are_void(status: int) -> None:
    assert judge_batch(status, {}, orjson.dumps({"results": [GOOD]}), 1).outcome is BatchOutcome.UNKNOWN


@pytest.mark.parametrize(
    ("wait", "seconds"),
    [(0, "0"), (1.2, "2"), (3600, "3600"), (10**30, "3600"), (-1, None), (True, None), ("5", None), (None, None), (1e308, "3600")],
)  # fmt: skip
def test_a_wait_is_bounded_before_it_is_believed(wait: object, seconds: str | None) -> None:
    result = {"status": 429, "code": "TOO_MANY_REQUESTS", "retry_after": wait}
    (judgement,) = judge_batch(200, {}, json.dumps({"results": [result]}).encode(), 1).results
    assert (judgement.verdict, judgement.retry_after) == (Verdict.RETRY, seconds)


def test_a_rule_that_is_not_understood_drops_its_record_alone() -> None:
    dropped = {"status": 202, "code": "DROPPED", "rule": {}}
    (judgement,) = judge_batch(200, {}, orjson.dumps({"results": [dropped]}), 1).results
    assert (judgement.verdict, judgement.rule) == (Verdict.DROPPED, None)
    assert judgement.rule_problem


def test_an_answer_beyond_its_bound_is_not_looked_at_and_the_longest_real_one_is_within() -> None:
    value = "x" * 256
    rule = Rule(value, value, value, value, value, value)
    longest = RecordResult(202, Code.DROPPED, "\U0001f600" * 499 + '"', rule, 3600)
    body = encode_results([longest] * 1000)
    assert len(body) <= 1000 * MAX_RESULT_BYTES
    assert judge_batch(200, {}, body, 1000).outcome is BatchOutcome.RESULTS
    small = orjson.dumps({"results": [GOOD]})
    padded = small + b" " * (max_batch_answer_bytes(1) - len(small))
    assert judge_batch(200, {}, padded, 1).outcome is BatchOutcome.RESULTS
    assert judge_batch(200, {}, padded + b" ", 1).outcome is BatchOutcome.UNKNOWN


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.sampled_from(list(Code)).map(lambda code: code.value),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["results", "status", "code", "details", "rule", "retry_after"]), inner),
    max_leaves=20,
)  # fmt: skip


@given(
    st.integers(-5, 1000) | st.sampled_from([200, 202, 409, 413, 429]),
    st.binary(max_size=100) | JSON.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(["retry-after", "content-type", "location"]), st.text(max_size=80)),
    st.integers(1, 5),
)
def test_any_answer_is_judged(status: int, body: bytes, headers: dict[str, str], records: int) -> None:
    judgement = judge_batch(status, headers, body, records)
    assert len(judgement.results) == (records if judgement.outcome is BatchOutcome.RESULTS else 0)
    assert judgement.details.isprintable()
    assert len(judgement.details) <= 500
