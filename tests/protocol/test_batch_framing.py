"""Records: arbitrary bytes go round, and nothing that a head says is believed."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_protocol import (
    Envelope,
    FramingError,
    Record,
    RefusedRequest,
    TooManyRecords,
    check_envelope,
    decode_records,
    encode_record,
    message_target,
    parse_target,
)
from infi.ramen_protocol.batch_framing import MAX_RECORD_HEAD_BYTES

ENVELOPE = Envelope("metrics", 1099, "imx", "san_totals", "v1", "3.0.0.1", "4711")
GOOD = encode_record(ENVELOPE, b'{"a":1}')
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
ENVELOPES = st.builds(Envelope, TEXT, st.integers(-(2**63), 2**64 - 1), TEXT, TEXT, TEXT, TEXT, TEXT)
RECORDS = st.lists(st.tuples(ENVELOPES, st.binary(max_size=60)), min_size=1, max_size=8)


def test_a_record_is_the_one_of_the_protocol() -> None:
    assert GOOD == (
        b'{"category":"metrics","system_serial":1099,"sender":"imx","data_type":"san_totals","data_version":"v1",'
        b'"system_version":"3.0.0.1","reqid":"4711","length":7}\n{"a":1}\n'
    )


@given(RECORDS)
def test_any_envelope_and_any_payload_go_round(messages: list[tuple[Envelope, bytes]]) -> None:
    body = b"".join(encode_record(envelope, payload) for envelope, payload in messages)
    assert decode_records(body, max_records=len(messages)) == [Record(*message) for message in messages]
    if len(messages) > 1:
        with pytest.raises(TooManyRecords, match=str(len(messages) - 1)):
            decode_records(body, max_records=len(messages) - 1)


@given(RECORDS, st.data())
def test_a_body_that_is_damaged_is_refused_or_read_within_itself(
    messages: list[tuple[Envelope, bytes]], data: st.DataObject
) -> None:
    body = b"".join(encode_record(envelope, payload) for envelope, payload in messages)
    at = data.draw(st.integers(0, len(body) - 1))
    damaged = data.draw(
        st.sampled_from(
            [body[:at], body[at:], body[:at] + b"\n" + body[at:], body[:at] + b"\xff" + body[at + 1 :]]
        )
    )
    records: list[Record] = []
    with suppress(FramingError):
        records = decode_records(damaged, max_records=100)
    assert sum(len(record.payload) for record in records) <= max(0, len(damaged) - 1)


@given(st.binary(max_size=200))
def test_any_body_is_records_or_refused(body: bytes) -> None:
    with suppress(FramingError):
        assert decode_records(body, max_records=10)


def test_a_head_may_hold_more_than_is_known_here_and_be_written_otherwise() -> None:
    head = GOOD.replace(b'{"category"', b' {"later":[{}], "category" ').replace(
        b'"metrics"', b'"m\\u0065trics"', 1
    )
    assert decode_records(head, max_records=1) == decode_records(GOOD, max_records=1)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n",
        b"{}\n\n",
        b"[]\n\n",
        b"null\n\n",
        b'"category"\n\n',
        GOOD[:-1],
        GOOD[:-2],
        GOOD + b"\n",
        GOOD + GOOD[:30],
        GOOD[:-1] + b"x",
        GOOD[:-1] + b"\r\n",
        b"\xef\xbb\xbf" + GOOD,
        *(GOOD.replace(b'"length":7', b'"length":' + text) for text in (b"6", b"8", b"-1", b"7.0", b'"7"', b"true", b"null", b"10000000000", b"9" * 30, b"1e1")),
        *(GOOD.replace(b"1099", text) for text in (b'"1099"', b"1.5", b"true", b"null", b"9" * 30)),
        *(GOOD.replace(b'"imx"', text) for text in (b"1", b"null", b'["imx"]', b'"\xff"', b'"\\ud800"')),
        *(GOOD.replace(b'"' + name + b'"', b'"x"') for name in (b"category", b"reqid", b"length", b"system_serial")),
        b"[" * 5000 + b"\n",
        b'{"a":' * 5000 + b"\n",
    ],
)  # fmt: skip
def test_what_is_no_record_is_refused_with_its_place_and_none_of_its_content(body: bytes) -> None:
    for before in (b"", GOOD):
        if body or not before:
            with pytest.raises(FramingError, match=r"record|holds no") as refused:
                decode_records(before + body, max_records=10)
            assert "imx" not in str(refused.value)


def test_a_negative_length_cannot_lead_back_to_what_was_read() -> None:
    head = GOOD.partition(b"\n")[0].replace(b'"length":7', b'"length":-%03d')
    back = head % (len(head % 0) + 2) + b"\n"  # to the line end before this head
    with pytest.raises(FramingError, match="length that is none"):
        decode_records(GOOD + back, max_records=10)


def test_a_head_is_bounded_before_it_is_parsed() -> None:
    exact = replace(ENVELOPE, category="")
    room = MAX_RECORD_HEAD_BYTES - (encode_record(exact, b"").index(b"\n"))
    largest = encode_record(replace(ENVELOPE, category="x" * room), b"")
    assert decode_records(largest, max_records=1)
    with pytest.raises(ValueError, match="longer than"):
        encode_record(replace(ENVELOPE, category="x" * (room + 1)), b"")
    with pytest.raises(FramingError, match="head line"):
        decode_records(largest.replace(b"xx", b"xxx", 1), max_records=1)


def test_a_reqid_of_the_longest_kind_fits_a_head() -> None:
    worst = replace(ENVELOPE, reqid="\x01" * 2048)
    assert decode_records(encode_record(worst, b"{}"), max_records=1)[0].envelope == worst


@pytest.mark.parametrize(
    "part", [{"sender": "\ud800"}, {"system_serial": 2**64}, {"system_serial": -(2**63) - 1}]
)
def test_an_identity_that_could_not_be_read_again_is_not_written(part: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="identity"):
        encode_record(replace(ENVELOPE, **part), b"{}")  # type: ignore[arg-type]


def test_a_million_tiny_records_cost_no_more_than_those_that_are_taken() -> None:
    body = GOOD * 100_000
    tracemalloc.start()
    try:
        with pytest.raises(TooManyRecords):
            decode_records(body, max_records=1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


@pytest.mark.parametrize(
    "part",
    [
        {"category": ""},
        {"sender": "a.b"},
        {"data_type": "a\n"},
        {"data_version": "v 1"},
        {"system_version": "1/2"},
        {"system_serial": -1},
        {"system_serial": 2**63},
        {"reqid": ""},
        {"reqid": "x" * 2049},
        {"reqid": "ü" * 1025},
    ],
)
def test_an_envelope_that_breaks_a_rule_is_refused_like_the_target_of_version_1(
    part: dict[str, object],
) -> None:
    envelope = replace(ENVELOPE, **part)  # type: ignore[arg-type]
    with pytest.raises(RefusedRequest):
        check_envelope(envelope)
    with pytest.raises(RefusedRequest):
        parse_target(message_target(envelope))
