"""Version 2 at the collector: one verdict for each record, or one for the batch and nothing stored."""

import asyncio
import gzip
import json
import struct
import tracemalloc

import pytest
from backports import zstd
from batch_kit import PATH, codes, head, judged, post_batch, record, send_batch
from collector_kit import target
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_app import WatchedStore, reqids, until

from infi.ramen_protocol import (
    BatchId,
    BatchOffer,
    BatchOutcome,
    Coding,
    Rule,
    Verdict,
    batch_digest,
    compress_batch,
    judge_batch,
)
from infi.ramen_server import Limits, MemoryStore, Purpose, Scope, Selection, StoreUnavailable

MIB = 1024 * 1024


@pytest.mark.parametrize("coding", Coding)
def test_a_batch_is_stored_in_order_byte_for_byte_with_a_verdict_for_each_record(start, store, coding):
    client = start(store)
    payloads = [b"{}", b' {"a":\n 1.10} ', b'"' + b"x" * 100_000 + b'"', b"[]" + b"\n" * 5]
    records = [record(f"{place}/a b ü\n", payload) for place, payload in enumerate(payloads)]
    assert codes(post_batch(client, *records, coding=coding), 4) == ["ACCEPTED"] * 4
    found = list(store.export(Selection()))
    assert [message.payload for message in found] == payloads
    assert [message.envelope.reqid for message in found] == [f"{place}/a b ü\n" for place in range(4)]
    assert {message.token for message in found} == {"sender0"}
    assert (client.collector._bodies.memory.used, client.collector._in_flight) == (0, 0)


def test_each_record_is_answered_as_version_1_would_have_answered_it(start, store, settings):
    client = start(store, Limits(max_message_bytes=1000))
    rule = settings.add_rule(Rule(data_type="unwanted"))
    narrow = settings.add_token("narrow", scope=Scope(senders=("im*",)))
    reply = post_batch(
        client,
        "good",
        record("name", category="met rics"),
        record("scope", sender="other"),
        record("large", b'"' + b"x" * 1000 + b'"'),
        record("json", b'{"a": NaN}'),
        record("utf", b'"\xff"'),
        record("rule", data_type="unwanted"),
        record("", b"{}"),
        record("x" * 2049),
        record("serial", system_serial=-1),
        record("version", system_version="3 0"),
        "last",
        token=narrow,
    )
    assert codes(reply, 12) == [
        "ACCEPTED",
        "BAD_REQUEST",
        "FORBIDDEN",
        "PAYLOAD_TOO_LARGE",
        "BAD_REQUEST",
        "BAD_REQUEST",
        "DROPPED",
        "BAD_REQUEST",
        "BAD_REQUEST",
        "BAD_REQUEST",
        "BAD_REQUEST",
        "ACCEPTED",
    ]
    results = judged(reply, 12).results
    assert results[6].rule == rule.rule
    assert "category" in results[1].details
    assert reqids(store) == ["good", "last"]
    client.run(client.collector._write_hits())
    assert settings.list_rules()[0].hits == 1


def test_a_batch_of_which_nothing_is_good_is_answered_record_by_record(start, store):
    client = start(store)
    assert codes(post_batch(client, record("a", b"{"), record("b", b"")), 2) == ["BAD_REQUEST"] * 2
    assert reqids(store) == []
    assert codes(post_batch(client, "c", number=2), 1) == ["ACCEPTED"]


def test_the_rate_counts_messages_and_the_rest_of_a_batch_is_told_when_to_come_again(start):
    now = 0.0
    store = MemoryStore()
    client = start(store, Limits(messages_per_second=0.5, burst=3), monotonic=lambda: now)
    reply = post_batch(client, *"abcd", record("other", sender="other"), "e")
    assert codes(reply, 6) == ["ACCEPTED"] * 3 + ["TOO_MANY_REQUESTS", "ACCEPTED", "TOO_MANY_REQUESTS"]
    assert judged(reply, 6).results[3].retry_after == "2"
    assert reqids(store) == ["a", "b", "c", "other"]
    assert client.post(target("x")).status == 429, "one rate for both versions"


def wrong_batches():
    good = record("a")
    yield "no type", {"content_type": None}, None, BatchOutcome.REFUSED
    yield "other type", {"content_type": "application/json"}, None, BatchOutcome.REFUSED
    yield "no id", {"ramen_batch_id": None}, None, BatchOutcome.REFUSED
    yield "void id", {"ramen_batch_id": 'lane="a"'}, None, BatchOutcome.REFUSED
    wrong = BatchId("lane", 1, "0" * 32).header()
    yield "other digest", {"ramen_batch_id": wrong}, None, BatchOutcome.REFUSED
    yield "coding", {"content_encoding": "br"}, None, BatchOutcome.UNSUPPORTED_CODING
    yield "no zstd", {}, b"{}", BatchOutcome.REFUSED
    yield "cut", {}, compress_batch(good, Coding.ZSTD)[:-3], BatchOutcome.REFUSED
    yield "more behind", {}, compress_batch(good, Coding.ZSTD) + b"x", BatchOutcome.REFUSED
    yield "length", {"content_length": "x"}, None, BatchOutcome.REFUSED
    yield "announced length", {"content_length": str(9 * MIB)}, None, BatchOutcome.TOO_LARGE
    yield "length in the bound", {"content_length": str(8 * MIB + 65536)}, None, BatchOutcome.RESULTS
    for name, plain in {
        "empty": b"",
        "no head": good[1:],
        "cut record": good[:-1],
        "too short": good.replace(b'"length":2', b'"length":1'),
        "too long": good.replace(b'"length":2', b'"length":3'),
        "huge length": good.replace(b'"length":2', b'"length":10000000000'),
        "negative length": good.replace(b'"length":2', b'"length":-2'),
        "second record": good + b"{}\n\n",
        "no members": b'{"length":2}\n{}\n',
        "deep head": b"[" * 10_000 + b"\n",
        "endless head": b'{"category":"' + b"x" * 20_000,
    }.items():
        yield (
            name,
            {"ramen_batch_id": BatchId("lane", 1, batch_digest(plain)).header()},
            compress_batch(plain, Coding.ZSTD),
            BatchOutcome.REFUSED,
        )


@pytest.mark.parametrize(("over", "body", "outcome"), [pytest.param(*rest, id=name) for name, *rest in wrong_batches()])  # fmt: skip
def test_what_is_wrong_with_a_batch_is_the_answer_to_all_of_it_and_nothing_is_stored(
    start, over, body, outcome
):
    store = WatchedStore()
    client = start(store)
    good = record("a")
    body = compress_batch(good, Coding.ZSTD) if body is None else body
    reply = client.run(client.send("POST", PATH, body, head(good, **over)))
    judgement = judged(reply, 1)
    assert judgement.outcome is outcome
    assert judgement.explained
    assert store.groups == ([1] if outcome is BatchOutcome.RESULTS else [])
    assert client.collector._bodies.memory.used == 0


def test_two_ids_or_types_are_none(start):
    client = start()
    headers = head(record("a"))
    for name in (b"ramen-batch-id", b"content-type"):
        doubled = [*headers, (name, dict(headers)[name])]
        reply = client.run(client.send("POST", PATH, compress_batch(record("a"), Coding.ZSTD), doubled))
        assert (reply.status, reply.code) == (400, "BAD_REQUEST")


def test_without_a_good_token_nobody_learns_what_a_batch_is(start, settings):
    client = start()
    for token in (None, "wrong"):
        assert judged(post_batch(client, b"nonsense", token=token), 1).outcome is BatchOutcome.UNAUTHORISED
    reply = client.run(client.send("GET", PATH))
    assert reply.status == 405


def test_a_token_that_is_revoked_while_the_body_comes_is_refused(start, settings):
    store = WatchedStore()
    client = start(store)
    plain = record("a")

    async def receive():
        settings.revoke_token("sender0")
        return {"type": "http.request", "body": compress_batch(plain, Coding.ZSTD), "more_body": False}

    reply = client.run(client.send("POST", PATH, headers=head(plain), receive=receive))
    assert reply.status == 401
    assert store.groups == []


def test_bounds_are_announced_and_kept(start, store):
    limits = Limits(max_batch_messages=3, max_batch_bytes=1000)
    client = start(store, limits)
    offer = BatchOffer.parse(client.post(target("x")).headers["ramen-batch"])
    assert (offer.path, offer.messages, offer.bytes, offer.dedupe) == (PATH, 3, 1000, store.dedupe)
    assert offer.window_seconds == store.window_seconds
    assert codes(post_batch(client, *"abc"), 3) == ["ACCEPTED"] * 3
    reply = post_batch(client, *"defg")
    assert judged(reply, 4).outcome is BatchOutcome.TOO_LARGE
    assert "3" in judged(reply, 4).details
    size = 1000 - len(record("h", b'"' + b"x" * 100 + b'"')) + 100
    assert codes(post_batch(client, record("h", b'"' + b"x" * size + b'"'), number=2), 1) == ["ACCEPTED"]
    reply = post_batch(client, record("i", b'"' + b"x" * (size + 1) + b'"'))
    assert (judged(reply, 1).outcome, "1000" in judged(reply, 1).details) == (BatchOutcome.TOO_LARGE, True)


def test_the_bytes_that_are_offered_fit_the_memory(start):
    client = start(MemoryStore(), Limits(max_body_bytes=MIB, max_message_bytes=MIB, max_memory_bytes=2 * MIB))
    offer = BatchOffer.parse(client.post(target("x")).headers["ramen-batch"])
    assert offer.bytes == MIB // 2
    big = record("a", b'"' + b"x" * (offer.bytes - 300) + b'"')
    for number, coding in enumerate(Coding, 1):
        assert codes(post_batch(client, big, coding=coding, number=number), 1) == ["ACCEPTED"]


@pytest.mark.parametrize("wrong", [0, 10_001, 0.5])
def test_a_number_of_messages_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="max_batch_messages"):
        Limits(max_batch_messages=wrong)


def bombs():
    size = 10 * 1024 * MIB
    zeros = gzip.compress(b"\0" * 64 * MIB, 9)
    yield "gzip", "gzip", zeros * 1000
    frame = zstd.compress(b"\0" * 64 * MIB)
    yield "zstd frames", "zstd", frame * 1000
    yield "a frame that announces 10 GB", "zstd", struct.pack("<IBQ", 0xFD2FB528, 0xC0, size) + frame[9:]
    yield "a window of 2 GiB", "zstd", struct.pack("<IBB", 0xFD2FB528, 0, 21 << 3) + b"\x03\x00\x00x"
    yield "a million skippable frames", "zstd", struct.pack("<II", 0x184D2A50, 0) * 1_000_000
    yield "a million empty members", "gzip", gzip.compress(b"") * 100_000


@pytest.mark.parametrize(
    ("label", "body"), [pytest.param(label, body, id=name) for name, label, body in bombs()]
)
def test_a_bomb_is_refused_in_bounded_memory_and_time(start, label, body):
    store = WatchedStore()
    client = start(store)
    tracemalloc.start()
    try:
        reply = client.run(client.send("POST", PATH, body, head(b"", content_encoding=label)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reply.status in (400, 413)
    assert peak < 40 * MIB
    assert store.groups == []


def test_a_million_tiny_records_are_refused_at_the_first_one_too_many(start):
    client = start()
    plain = record("a")[:-1] + b"\n"
    tracemalloc.start()
    try:
        reply = post_batch(client, plain * (8 * MIB // len(plain)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert judged(reply, 1).outcome is BatchOutcome.TOO_LARGE
    assert peak < 40 * MIB


def test_a_batch_that_is_sent_again_is_answered_as_before_whatever_changed_meanwhile(start, settings):
    store = MemoryStore()
    client = start(store)
    records = (record("a"), record("bad", b"{"), record("b", data_type="later"))
    first = post_batch(client, *records)
    settings.add_rule(Rule(data_type="later"))
    again = post_batch(client, *records, coding=Coding.GZIP)
    assert again.body == first.body
    assert codes(first, 3) == ["ACCEPTED", "BAD_REQUEST", "ACCEPTED"]
    assert reqids(store) == ["a", "b"]
    assert client.collector.metrics.requests["repeated_batch"] == 1


def test_a_store_of_whole_batches_says_when_a_lane_is_not_where_the_client_believes(start):
    store = MemoryStore()
    client = start(store)
    assert codes(post_batch(client, "a"), 1) == ["ACCEPTED"]
    for number in (1, 3):
        reply = post_batch(client, "b", number=number)
        assert judged(reply, 1).outcome is BatchOutcome.LANE_CONFLICT
        assert "2" in judged(reply, 1).details
    assert reqids(store) == ["a"]
    assert client.collector.metrics.requests["lane_conflict"] == 2


def test_a_message_sent_once_by_each_version_is_stored_once(start, sqlite_store):
    client = start(sqlite_store)
    assert client.post(target("a")).code == "ACCEPTED"
    reply = post_batch(client, "a", "b", "b", number=17)
    assert codes(reply, 3) == ["ACCEPTED"] * 3
    assert [result.details for result in judged(reply, 3).results] == [
        "a duplicate: this message was accepted before",
        "",
        "a duplicate: this message was accepted before",
    ]
    assert "duplicate" in str(client.post(target("b")).body)
    assert codes(post_batch(client, "a", "c", lane="other", number=3), 2) == ["ACCEPTED"] * 2
    assert reqids(sqlite_store) == ["a", "b", "c"]
    assert sqlite_store.totals().duplicates == 4


def test_a_batch_and_messages_that_wait_share_one_commit(start):
    store = WatchedStore()
    client = start(store)
    store.go.clear()

    async def load():
        first = asyncio.ensure_future(client.send("POST", target("first")))
        await until(store.entered.is_set)
        rest = [
            asyncio.ensure_future(client.send("POST", target("second"))),
            asyncio.ensure_future(send_batch(client, record("a") + record("b"))),
            asyncio.ensure_future(send_batch(client, record("c"), lane="other")),
        ]
        await until(lambda: client.collector._commits.waiting == 3)
        store.go.set()
        return await asyncio.gather(first, *rest)

    assert [reply.status for reply in client.run(load())] == [202, 202, 200, 200]
    assert store.groups == [1, 3]


def test_a_commit_that_fails_is_an_unknown_outcome_to_the_client_and_nothing_is_stored(start):
    store = WatchedStore()
    client = start(store)
    store.fail = StoreUnavailable("full", 30)
    reply = post_batch(client, "a")
    assert (reply.status, reply.headers["retry-after"]) == (503, "30")
    assert judged(reply, 1).outcome is BatchOutcome.UNKNOWN
    store.fail = None
    assert codes(post_batch(client, "a"), 1) == ["ACCEPTED"]


def test_batches_and_their_records_are_counted(start, settings):
    client = start()
    reader = settings.add_token("reader", purpose=Purpose.READ)
    post_batch(client, "a", record("b", b"{"), "c")
    post_batch(client, "a", number=9)
    text = client.get("/metrics", [(b"x-api-token", reader.encode())]).body.decode()
    for line in (
        'ramen_requests_total{outcome="batch"} 1',
        'ramen_requests_total{outcome="lane_conflict"} 1',
        'ramen_batch_records_total{outcome="accepted"} 2',
        'ramen_batch_records_total{outcome="bad_request"} 1',
    ):
        assert line in text


def test_an_announced_window_follows_the_store(start):
    store = MemoryStore(window_seconds=100)
    client = start(store)
    assert BatchOffer.parse(client.post(target("1")).headers["ramen-batch"]).window_seconds == 100
    store.window_seconds = 50
    assert BatchOffer.parse(client.post(target("2")).headers["ramen-batch"]).window_seconds == 50


@pytest.fixture
def fuzzed(start):
    return start(MemoryStore(max_bytes=1 << 40), Limits(max_batch_messages=20))


GOOD = [record("a"), record("b", b'{"a": 1}'), record("c", b"{")]
PARTS = st.lists(st.sampled_from(GOOD) | st.binary(max_size=60), max_size=8)


@hypothesis_settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(PARTS, st.sampled_from(Coding), st.integers(0, 3), st.integers(0, 300), st.integers(1, 3))
def test_whatever_a_client_sends_the_answer_is_definite_and_what_is_accepted_is_stored(
    fuzzed, parts, coding, damage, at, number
):
    store = fuzzed.collector._store
    before = store.totals()
    plain = b"".join(parts)
    body = compress_batch(plain, coding)
    if damage and body:
        at %= len(body)
        body = {1: body[:at], 2: body[:at] + b"\x80" + body[at:], 3: body + body[:at]}[damage]
    reply = fuzzed.run(fuzzed.send("POST", PATH, body, head(plain, coding, number=number)))
    judgement = judge_batch(reply.status, reply.headers, reply.body, len(parts))
    assert reply.status < 500
    stored = store.totals().messages - before.messages
    accepted = 0
    if reply.status == 200:
        accepted = sum(result["code"] == "ACCEPTED" for result in json.loads(reply.body)["results"])
        assert all(result.verdict in (Verdict.ACCEPTED, Verdict.REJECTED) for result in judgement.results)
    else:
        assert judgement.explained
    assert stored in (0, accepted), "or it was the last batch of its lane again"
    assert fuzzed.collector._bodies.memory.used == 0
