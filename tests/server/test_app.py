"""The application without sockets: every answer, its order, and that nothing is written before the last step."""

import asyncio
import gzip
import json
import math
import re
import threading
import tracemalloc
import zlib
from itertools import count

import pytest
from backports import zstd
from collector_kit import NOON, target
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from infi.ramen_protocol import BatchOffer, Dedupe, Rule, Verdict, classify, compress
from infi.ramen_server import (
    Limits,
    MemoryStore,
    Outcome,
    Purpose,
    Scope,
    Selection,
    SqliteStore,
    StoreUnavailable,
)
from infi.ramen_server.admission import is_json

MIB = 1024 * 1024


class WatchedStore(MemoryStore):
    """Counts the calls; ``hold`` lets commits wait, ``fail`` makes them raise."""

    def __init__(self):
        super().__init__()
        self.groups = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.fail = None

    def commit(self, submissions, now_ms):
        self.groups.append(len(submissions))
        self.entered.set()
        assert self.go.wait(30)
        if self.fail is not None:
            raise self.fail
        return super().commit(submissions, now_ms)


def reqids(store):
    return [found.envelope.reqid for found in store.export(Selection())]


async def until(condition):
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not come to pass")


# What is taken


def test_a_message_is_accepted_stored_and_recognised(start):
    store = MemoryStore()
    client = start(store, now_ms=lambda: NOON)
    first, again = client.post(target("1"), b'{"a":1.10}'), client.post(target("1"), b'{"a":1.10}')
    assert (first.status, json.loads(first.body)) == (202, {"code": "ACCEPTED", "details": None})
    assert (again.status, again.code) == (202, "ACCEPTED")
    assert "duplicate" in json.loads(again.body)["details"]
    (found,) = store.export(Selection())
    assert (found.payload, found.token, found.received_at_ms) == (b'{"a":1.10}', "sender0", NOON)


@pytest.mark.parametrize(
    ("label", "encode"),
    [
        (b"gzip", compress),
        (b"gzip", gzip.compress),
        (b"gzip", bytes),
        (b"zstd", zstd.compress),
        (b"GZIP ", gzip.compress),
        (b"x-gzip", gzip.compress),
        (b"deflate", zlib.compress),
        (b"identity", bytes),
        (None, bytes),
    ],
)
def test_every_coding_of_the_protocol_is_read_with_the_bytes_of_1x_among_them(start, label, encode):
    store = MemoryStore()
    headers = [] if label is None else [(b"Content-Encoding", label)]
    reply = start(store).post(target("1"), encode(b'{"a": [1, 2]}'), headers)
    assert reply.code == "ACCEPTED"
    assert next(store.export(Selection())).payload == b'{"a": [1, 2]}'


def test_a_body_in_many_parts_and_without_a_length_is_one_body(start):
    store = MemoryStore()
    client = start(store)
    reply = client.run(client.send("POST", target("1"), chunks=[b'{"a"', b"", b":1", b"}"]))
    assert reply.code == "ACCEPTED"
    assert next(store.export(Selection())).payload == b'{"a":1}'


def test_every_answer_announces_the_codings_that_are_read_and_the_batches_that_are_taken(start):
    client = start()
    replies = [client.post(target("1")), client.post(target("2"), b"{", ()), client.post("/ramen/x")]
    replies += [client.post(target("3"), token="wrong"), client.post("/ramen/v2/batch")]
    for reply in replies:
        assert reply.headers["accept-encoding"] == "zstd, gzip, deflate"
        assert BatchOffer.parse(reply.headers["ramen-batch"]) == BatchOffer(
            "/ramen/v2/batch", 1000, 8 * MIB, Dedupe.BATCH, 3600
        )


# What is refused, and that it leaves nothing behind


def refusals():
    ok = target("1")
    yield "no JSON", ok, b"{", (), 400, "BAD_REQUEST"
    yield "NaN", ok, b'{"a": NaN}', (), 400, "BAD_REQUEST"
    yield "two texts", ok, b"{} {}", (), 400, "BAD_REQUEST"
    yield "empty", ok, b"", (), 400, "BAD_REQUEST"
    yield "no UTF-8", ok, b'"\xff"', (), 400, "BAD_REQUEST"
    yield "NUL", ok, b"{}\0", (), 400, "BAD_REQUEST"
    yield "too deep", ok, b"[" * 1001 + b"]" * 1001, (), 400, "BAD_REQUEST"
    yield "much too deep", ok, b"[" * 1_000_000, (), 400, "BAD_REQUEST"
    yield "damaged", ok, zlib.compress(b"{}")[:-2], ((b"content-encoding", b"gzip"),), 400, "BAD_REQUEST"
    yield "no zstd", ok, b"{}", ((b"content-encoding", b"zstd"),), 400, "BAD_REQUEST"
    yield "brotli", ok, b"{}", ((b"content-encoding", b"br"),), 415, "UNSUPPORTED_MEDIA_TYPE"
    yield "two codings", ok, b"{}", ((b"content-encoding", b"gzip, gzip"),), 415, "UNSUPPORTED_MEDIA_TYPE"
    yield (
        "two coding headers",
        ok,
        b"{}",
        ((b"content-encoding", b"gzip"), (b"content-encoding", b"gzip")),
        415,
        "UNSUPPORTED_MEDIA_TYPE",
    )
    yield "declared too large", ok, b"{}", ((b"content-length", b"99999999999"),), 413, "PAYLOAD_TOO_LARGE"
    yield "a length that is none", ok, b"{}", ((b"content-length", b"-1"),), 400, "BAD_REQUEST"
    yield "a huge length", ok, b"{}", ((b"content-length", b"9" * 5000),), 400, "BAD_REQUEST"
    yield "too large", ok, b'"' + b"x" * MIB + b'"', (), 413, "PAYLOAD_TOO_LARGE"
    yield "no reqid", ok.replace("&reqid=1", ""), b"{}", (), 400, "BAD_REQUEST"
    yield "two reqids", ok + "&reqid=2", b"{}", (), 400, "BAD_REQUEST"
    yield "bad name", target("1", category="a%20b"), b"{}", (), 400, "BAD_REQUEST"
    yield "long target", target("x" * 20_000), b"{}", (), 400, "BAD_REQUEST"
    yield "no batch", "/ramen/v2/batch", b"{}", (), 400, "BAD_REQUEST"
    yield "other path", "/ramen/v2/batch?x", b"{}", (), 404, "NOT_FOUND"
    yield "no path", "/ramen/", b"{}", (), 404, "NOT_FOUND"
    yield "another path", "/other", b"{}", (), 404, "NOT_FOUND"
    yield "a line end", "/ramen/v1/a\n/1/b.c.d/?version=1&reqid=1", b"{}", (), 400, "BAD_REQUEST"


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code"),
    [pytest.param(*rest, id=name) for name, *rest in refusals()],
)
def test_a_message_at_fault_is_refused_with_a_protocol_body_and_leaves_nothing(
    start, path, body, headers, status, code
):
    store = WatchedStore()
    client = start(store, Limits(max_body_bytes=MIB, max_message_bytes=MIB))
    reply = client.post(path, body, headers)
    assert (reply.status, reply.code) == (status, code)
    assert classify(reply.status, reply.headers, reply.body).explained
    assert store.groups == []


ROUTES = [
    target("1"),
    "/ramen/v1/metrics/1/imx.totals.v1/",
    "/ramen/v2/batch",
    "/ramen/",
    "/ramen/anything?x",
    "/",
    "/ramen/a\n",
    target("x" * 20_000),
]


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("missing", 401),
        ("empty", 401),
        ("wrong", 401),
        ("two", 401),
        ("long", 401),
        ("revoked", 401),
        ("reading", 403),
        ("out of scope", None),
    ],
)
def test_a_token_that_is_not_good_writes_nothing_on_any_route(start, settings, kind, status, route):
    store = WatchedStore()
    client = start(store)
    good = client.token
    headers = []
    if kind == "revoked":
        settings.revoke_token("sender0")
    token = {
        "missing": None,
        "empty": "",
        "wrong": good[:-1] + ("A" if good[-1] != "A" else "B"),
        "two": good,
        "long": "x" * 100_000,
        "revoked": good,
    }.get(kind)
    if kind == "two":
        headers = [(b"X-API-Token", good.encode())]
    elif kind == "reading":
        token = settings.add_token("reader", purpose=Purpose.READ)
    elif kind == "out of scope":
        token = settings.add_token("narrow", scope=Scope(("other",), ("7",)))
        status = 403 if route == target("1") else None
    reply = client.run(client.send("POST", route, b"{}", headers, token))
    if status is not None:
        assert reply.status == status
        assert reply.code == ("FORBIDDEN" if status == 403 else "UNAUTHORIZED")
        assert classify(reply.status, reply.headers, reply.body).verdict is Verdict.UNAUTHORISED
    assert reply.status in (400, 401, 403, 404)
    assert store.groups == []
    if token:
        assert token not in str(reply)


def test_a_good_message_after_a_refused_one_with_the_same_key_is_stored_so_no_key_was_left(
    start, settings, sqlite_store
):
    client = start(sqlite_store)
    narrow = settings.add_token("narrow", scope=Scope(("other",)))
    for token, body in ((None, b"{}"), ("wrong", b"{}"), (narrow, b"{}"), (client.token, b"{")):
        assert client.post(target("1"), body, token=token).status in (400, 401, 403)
    assert client.post(target("1")).code == "ACCEPTED"
    assert sqlite_store.totals().duplicates == 0
    assert reqids(sqlite_store) == ["1"]


def test_a_scope_lets_its_own_messages_through(start, settings):
    client = start()
    narrow = settings.add_token("narrow", scope=Scope(("imx",), ("10*",)))
    assert client.post(target("1"), token=narrow).code == "ACCEPTED"
    assert client.post(target("2", serial=2099), token=narrow).code == "FORBIDDEN"
    assert client.post(target("3", sender="imy"), token=narrow).code == "FORBIDDEN"


def test_a_token_that_is_revoked_while_the_body_comes_writes_nothing(start, settings):
    store = WatchedStore()
    client = start(store)

    async def receive():
        settings.revoke_token("sender0")
        return {"type": "http.request", "body": b"{}", "more_body": False}

    reply = client.run(client.send("POST", target("1"), receive=receive))
    assert reply.code == "UNAUTHORIZED"
    assert store.groups == []


def test_other_methods_are_refused_after_the_token(start):
    client = start()
    for method in ("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "BREW"):
        assert client.run(client.send(method, target("1"), token=None)).status == 401
        reply = client.run(client.send(method, target("1")))
        assert (reply.status, reply.headers["allow"]) == (405, "POST")


# JSON


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b" [1]\r\n\t",
        b"1",
        b'"\\ud800"',
        b"1" * 5000,
        b"-0.0e-999",
        b"null",
        '"ü\u2028"'.encode(),
        b"[" * 999 + b"]" * 999,
    ],
)
def test_every_json_text_is_one(payload):
    assert is_json(payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b" ",
        b"nan",
        b"Infinity",
        b"-Infinity",
        b"01",
        b"1.",
        b".5",
        b"+1",
        b"'a'",
        b"{a:1}",
        b"[1,]",
        b"/**/1",
        b'"\\x41"',
        b'"a\nb"',
        b"\xef\xbb\xbf{}",
        b'"\xed\xa0\x80"',
        b"0x10",
        b"{}\0",
        b"\x0c1",
        b"{}x",
    ],
)
def test_whatever_is_no_json_is_none_also_what_lenient_readers_take(payload):
    assert not is_json(payload)


def strict(payload):
    def refuse(name):
        raise ValueError(name)

    try:
        json.loads(payload.decode(), parse_constant=refuse, parse_int=str, parse_float=str)
    except ValueError:
        return False
    return not payload.startswith(b"\xef\xbb\xbf")


_json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(
    st.binary()
    | st.text(alphabet='{}[]",:0123456789.eE+-truefalsn \\u"\n').map(str.encode)
    | _json_values.map(lambda value: json.dumps(value).encode())
    | _json_values.map(lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
)
@example(b'"\\ud800\\u"')
def test_the_check_agrees_with_a_strict_reader(payload):
    assert is_json(payload) == strict(payload)


# Bounds


def bomb(size, wrap=zlib.compressobj):
    packer = wrap(9)
    parts = [packer.compress(b'"')]
    block = b"x" * MIB
    parts += [packer.compress(block) for _ in range(size // MIB)]
    return b"".join([*parts, packer.compress(b'"'), packer.flush()])


def test_a_decompression_bomb_is_refused_early_and_never_held(start):
    limits = Limits(max_body_bytes=MIB, max_message_bytes=4 * MIB, max_memory_bytes=8 * MIB)
    client = start(WatchedStore(), limits)
    once = bomb(200 * MIB)
    twice = zlib.compress(once)
    assert len(once) < MIB
    tracemalloc.start()
    reply = client.post(target("1"), once, [(b"Content-Encoding", b"gzip")])
    nested = client.post(target("2"), twice, [(b"Content-Encoding", b"gzip")])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (reply.status, reply.code) == (413, "PAYLOAD_TOO_LARGE")
    assert nested.status == 400
    assert peak < 20 * MIB


def test_a_payload_that_is_just_as_large_as_allowed_is_taken_however_well_it_packs(start):
    store = MemoryStore()
    client = start(store, Limits(max_body_bytes=MIB, max_message_bytes=4 * MIB, max_memory_bytes=8 * MIB))
    payload = b'"' + b"x" * (4 * MIB - 2) + b'"'
    for reqid, body, status in (("1", payload, 202), ("2", payload + b" ", 413)):
        reply = client.post(target(reqid), zlib.compress(body), [(b"Content-Encoding", b"gzip")])
        assert reply.status == status
    assert next(store.export(Selection())).payload == payload


def test_json_of_many_small_values_is_checked_without_building_them(start):
    payload = b"[" + b"[]," * 300_000 + b"[]]"
    tracemalloc.start()
    assert is_json(payload)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(payload)


def test_memory_for_bodies_is_bounded_and_given_back(start):
    limits = Limits(max_body_bytes=MIB, max_message_bytes=MIB, max_memory_bytes=3 * MIB)
    client = start(MemoryStore(), limits)

    async def load():
        release = asyncio.Event()

        async def receive():
            await release.wait()
            return {"type": "http.request", "body": b"{}", "more_body": False}

        length = [(b"Content-Length", str(MIB).encode())]
        held = [
            asyncio.ensure_future(client.send("POST", target(str(n)), headers=length, receive=receive))
            for n in range(3)
        ]
        await until(lambda: client.collector._bodies.memory.used == 3 * MIB)
        refused = await client.send("POST", target("more"), b"{}" * 10, [(b"Content-Length", b"20")])
        release.set()
        return refused, await asyncio.gather(*held)

    refused, held = client.run(load())
    assert (refused.status, refused.code, refused.headers["retry-after"]) == (503, "UNAVAILABLE", "1")
    assert {reply.status for reply in held} == {202}
    assert client.collector._bodies.memory.used == 0
    assert client.post(target("more")).status == 202


def test_a_body_without_a_length_is_counted_as_it_comes(start):
    limits = Limits(max_body_bytes=MIB, max_message_bytes=MIB, max_memory_bytes=3 * MIB)
    client = start(MemoryStore(), limits)
    endless = count()

    async def receive():
        next(endless)
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    reply = client.run(client.send("POST", target("1"), receive=receive))
    assert reply.code == "PAYLOAD_TOO_LARGE"
    assert next(endless) < MIB / 1000 + 10
    assert client.collector._bodies.memory.used == 0


def test_more_requests_at_a_time_than_allowed_are_told_to_come_again(start):
    store = WatchedStore()
    client = start(store, Limits(max_requests=5))
    store.go.clear()

    async def load():
        held = [asyncio.ensure_future(client.send("POST", target(str(n)))) for n in range(5)]
        await until(lambda: client.collector._in_flight == 5)
        refused = await client.send("POST", target("more"))
        store.go.set()
        return refused, await asyncio.gather(*held)

    refused, held = client.run(load())
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert {reply.status for reply in held} == {202}
    assert "more" not in reqids(store)


@pytest.mark.parametrize("limits", [{"body_idle_seconds": 0.05}, {"body_seconds": 0.05}])
def test_a_body_that_does_not_come_is_given_up(start, limits):
    client = start(WatchedStore(), Limits(**limits))

    async def receive():
        await asyncio.sleep(0.02 if "body_seconds" in limits else 60)
        return {"type": "http.request", "body": b" ", "more_body": True}

    reply = client.run(client.send("POST", target("1"), receive=receive))
    assert (reply.status, reply.headers["connection"]) == (408, "close")
    assert classify(reply.status, reply.headers, reply.body).verdict is Verdict.RETRY
    assert client.collector._in_flight == 0


def test_a_client_that_leaves_is_counted_and_leaves_nothing(start):
    store = WatchedStore()
    client = start(store)

    async def receive():
        return {"type": "http.disconnect"}

    reply = client.run(client.send("POST", target("1"), receive=receive))
    assert reply.status is None
    assert (
        client.collector.metrics.left,
        client.collector._in_flight,
        client.collector._bodies.memory.used,
    ) == (
        1,
        0,
        0,
    )
    assert store.groups == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_headers": 0},
        {"max_body_bytes": -1},
        {"head_seconds": math.nan},
        {"burst": True},
        {"max_connections": "many"},
        {"max_memory_bytes": 100 * MIB},
    ],
)
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Limits(**wrong)


# Group commit


def test_requests_that_come_while_one_is_committed_share_the_next_commit(start):
    store = WatchedStore()
    client = start(store)
    store.go.clear()

    async def load():
        first = asyncio.ensure_future(client.send("POST", target("first")))
        await until(store.entered.is_set)
        others = [asyncio.ensure_future(client.send("POST", target(str(n)))) for n in range(50)]
        await until(lambda: client.collector._commits.waiting == 50)
        assert not first.done()
        store.go.set()
        return await asyncio.gather(first, *others)

    replies = client.run(load())
    assert {reply.code for reply in replies} == {"ACCEPTED"}
    assert store.groups == [1, 50]


def test_no_answer_goes_out_before_its_commit_has_returned(start):
    store = WatchedStore()
    client = start(store)
    store.go.clear()

    async def load():
        request = asyncio.ensure_future(client.send("POST", target("1")))
        await until(store.entered.is_set)
        done, _ = await asyncio.wait([request], timeout=0.05)
        assert not done
        assert reqids(store) == []
        store.go.set()
        return await request

    assert client.run(load()).code == "ACCEPTED"
    assert reqids(store) == ["1"]


def test_a_group_is_bounded_in_number_and_bytes(start, monkeypatch):
    from infi.ramen_server import commits

    monkeypatch.setattr(commits, "MAX_GROUP", 20)
    monkeypatch.setattr(commits, "MAX_GROUP_BYTES", 1000)
    store = WatchedStore()
    client = start(store)
    store.go.clear()

    async def load():
        first = asyncio.ensure_future(client.send("POST", target("first")))
        await until(store.entered.is_set)
        bodies = [b"{}"] * 30 + [b'"' + b"x" * 400 + b'"'] * 6
        others = [
            asyncio.ensure_future(client.send("POST", target(str(n)), body)) for n, body in enumerate(bodies)
        ]
        await until(lambda: client.collector._commits.waiting == 36)
        store.go.set()
        await asyncio.gather(first, *others)

    client.run(load())
    assert store.groups == [1, 20, 13, 3]


def test_duplicates_that_come_together_are_stored_once(start, sqlite_store):
    client = start(sqlite_store)

    async def load():
        return await asyncio.gather(*(client.send("POST", target(str(n % 5))) for n in range(40)))

    replies = client.run(load())
    assert {reply.code for reply in replies} == {"ACCEPTED"}
    assert sum("duplicate" in str(reply.body) for reply in replies) == 35
    assert sorted(reqids(sqlite_store)) == list("01234")


@pytest.mark.parametrize(
    ("failure", "seconds"), [(StoreUnavailable("full", 30), "30"), (ZeroDivisionError("a bug"), "5")]
)
def test_when_a_commit_fails_everybody_in_it_is_told_to_come_again_and_the_next_one_works(
    start, failure, seconds, caplog
):
    store = WatchedStore()
    client = start(store)
    store.fail = failure

    async def load():
        return await asyncio.gather(*(client.send("POST", target(str(n))) for n in range(10)))

    for reply in client.run(load()):
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "UNAVAILABLE", seconds)
        assert classify(reply.status, reply.headers, reply.body).verdict is Verdict.RETRY
    assert ("Traceback" in caplog.text) == isinstance(failure, ZeroDivisionError)
    store.fail = None
    assert client.get("/healthz").status == 200
    assert client.post(target("1")).code == "ACCEPTED"
    assert reqids(store) == ["1"]


def test_maintenance_that_fails_stops_nothing(start, caplog):
    store = WatchedStore()
    store.maintain = lambda _now: 1 / 0
    client = start(store)
    for reqid in "12":
        assert client.post(target(reqid)).code == "ACCEPTED"
    assert "maintenance failed" in caplog.text


def test_a_request_that_is_cancelled_by_a_stop_is_answered_503_and_its_message_may_be_stored(start):
    store = WatchedStore()
    client = start(store)
    store.go.clear()

    async def load():
        request = asyncio.ensure_future(client.send("POST", target("1")))
        await until(store.entered.is_set)
        request.cancel()
        reply = await request
        store.go.set()
        return reply

    assert client.run(load()).code == "UNAVAILABLE"
    assert "duplicate" in str(client.post(target("1")).body)


def test_closing_the_group_commit_waits_for_everything_that_was_submitted():
    from test_stores import message

    from infi.ramen_server.commits import GroupCommit
    from infi.ramen_server.metrics import Metrics
    from infi.ramen_server.stores import Submission

    async def play():
        store = WatchedStore()
        store.go.clear()
        commits = GroupCommit(store, Metrics(), lambda: NOON)
        waiting = [asyncio.ensure_future(commits.commit(Submission((message(str(n)),)))) for n in range(5)]
        await until(store.entered.is_set)
        closing = asyncio.ensure_future(commits.close())
        done, _ = await asyncio.wait([closing], timeout=0.05)
        assert not done
        with pytest.raises(StoreUnavailable, match="stopping"):
            await commits.commit(Submission((message("late"),)))
        store.go.set()
        await closing
        assert not commits.alive
        assert await asyncio.gather(*waiting) == [(Outcome.STORED,)] * 5
        return reqids(store)

    assert sorted(asyncio.run(play())) == list("01234")


def test_after_begin_stop_new_messages_are_told_to_come_again_and_those_in_flight_are_stored(start):
    store = WatchedStore()
    client = start(store)
    store.go.clear()

    async def load():
        request = asyncio.ensure_future(client.send("POST", target("1")))
        await until(store.entered.is_set)
        client.collector.begin_stop()
        late = await client.send("POST", target("2"))
        ready = await client.send("GET", "/readyz")
        store.go.set()
        return late, ready, await request

    late, ready, first = client.run(load())
    assert (late.status, ready.status, first.status) == (503, 503, 202)
    assert reqids(store) == ["1"]


# Rules and rates


def test_a_message_that_falls_under_a_rule_is_dropped_with_the_rule_counted_and_not_stored(start, settings):
    store = WatchedStore()
    client = start(store)
    rule = settings.add_rule(Rule(data_type="totals", sender="imx"))
    for reqid in "12":
        reply = client.post(target(reqid))
        judgement = classify(reply.status, reply.headers, reply.body)
        assert (judgement.verdict, judgement.rule) == (Verdict.DROPPED, rule.rule)
    assert client.post(target("3", data_type="other")).code == "ACCEPTED"
    assert store.groups == [1]
    client.run(client.collector._write_hits())
    assert settings.list_rules()[0].hits == 2
    settings.remove_rule(rule.rule_id)
    assert client.post(target("1")).code == "ACCEPTED"
    assert "duplicate" not in str(client.post(target("2")).body)


def test_hits_are_written_at_the_stop(settings):
    from collector_kit import AsgiClient

    from infi.ramen_server import Collector

    settings.add_rule(Rule(sender="imx"))
    with AsgiClient(Collector(MemoryStore(), settings, Limits()), settings.add_token("t")) as client:
        client.post(target("1"))
    assert settings.list_rules()[0].hits == 1


def test_beyond_the_rate_a_sender_is_told_when_to_come_again_and_others_are_not(start, settings):
    now = 0.0
    store = MemoryStore()
    client = start(store, Limits(messages_per_second=0.1, burst=2), monotonic=lambda: now)
    assert [client.post(target(str(n))).status for n in range(3)] == [202, 202, 429]
    reply = client.post(target("3"))
    assert (reply.code, reply.headers["retry-after"]) == ("TOO_MANY_REQUESTS", "10")
    assert client.post(target("3", sender="other")).status == 202
    assert client.post(target("3"), b"{").status == 400, "at fault: told so at once"
    settings.add_rule(Rule(data_type="unwanted"))
    assert client.post(target("3", data_type="unwanted")).status == 202
    now = 9.0
    assert client.post(target("3")).headers["retry-after"] == "1"
    now = 10.0
    assert client.post(target("3")).status == 202
    assert reqids(store) == ["0", "1", "3", "3"]


# Health and metrics


def test_health_and_readiness_need_no_token_and_say_what_keeps_messages_out(start, directory):
    free = 1000
    store = SqliteStore(directory, min_free_bytes=500, free_bytes=lambda _path: free)
    client = start(store)
    assert (client.get("/healthz").status, client.get("/readyz").status) == (200, 200)
    free = 100
    reply = client.get("/readyz")
    assert (reply.status, b"min_free_bytes" in reply.body) == (503, True)
    assert client.get("/healthz").status == 200
    assert client.post(target("1")).status == 503
    store.close()


def test_a_failed_commit_makes_it_unready_for_a_while_but_not_for_ever(start, directory):
    now = 0.0
    store = SqliteStore(directory, monotonic=lambda: now)
    client = start(store)
    store._connection.pragma("max_page_count", store._connection.pragma("page_count"))
    assert client.post(target("1"), b'"' + b"x" * 20_000 + b'"').status == 503
    assert client.get("/readyz").status == 503
    now = 11.0
    assert client.get("/readyz").status == 200
    store.close()


def test_metrics_need_a_token_for_reading_and_are_prometheus_text(start, settings):
    client = start()
    settings.add_rule(Rule(data_type="unwanted"))
    client.post(target("1"))
    client.post(target("1"))
    client.post(target("2"), b"{")
    client.post(target("3", data_type="unwanted"))
    client.post(target("evil"), token='x"} 1\nfake 1')
    reader = settings.add_token("reader", purpose=Purpose.READ).encode()
    for headers in ([], [(b"X-API-Token", client.token.encode())], [(b"Authorization", b"Basic " + reader)]):
        assert client.get("/metrics", headers).status in (401, 403)
    reply = client.get("/metrics", [(b"Authorization", b"Bearer " + reader)])
    assert reply.body == client.get("/metrics", [(b"X-API-Token", reader)]).body
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = reply.body.decode().splitlines()
    samples = {}
    for line in lines:
        if not line.startswith("# "):
            match = re.fullmatch(r'([a-z_]+(?:\{[a-z_]+="[^"\\\n]*"\})?) (-?[0-9.e+-]+)', line)
            assert match, line
            samples[match[1]] = float(match[2])
        else:
            assert re.fullmatch(r"# (HELP [a-z_]+ .+|TYPE [a-z_]+ (counter|gauge|histogram))", line)
    for outcome, number in (
        ("accepted", 1),
        ("duplicate", 1),
        ("bad_request", 1),
        ("dropped", 1),
        ("unauthorized", 1),
    ):
        assert samples[f'ramen_requests_total{{outcome="{outcome}"}}'] == number
    assert samples['ramen_rule_hits_total{rule_id="1"}'] == 1
    assert samples["ramen_store_messages"] == 1
    assert samples["ramen_commit_seconds_count"] == samples['ramen_commit_seconds_bucket{le="+Inf"}'] == 2
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))


# Fuzz


_codings = st.sampled_from(
    [b"gzip", b"deflate", b"x-gzip", b"identity", b"zstd", b"br", b"", b"gzip,gzip", b"\xff"]
)
_bodies = st.one_of(
    st.binary(max_size=2000),
    st.binary(max_size=500).map(zlib.compress),
    st.binary(max_size=500).map(gzip.compress),
    _json_values.map(lambda value: zlib.compress(json.dumps(value).encode())),
    st.tuples(st.integers(0, 4 * MIB), st.integers(0, 20)).map(
        lambda pair: zlib.compress(b"x" * pair[0])[: -pair[1] or None]
    ),
)
_targets = st.one_of(
    st.text(st.characters(max_codepoint=255), max_size=60).map(lambda text: "/ramen/" + text),
    st.text(st.characters(max_codepoint=255), max_size=60).map(lambda text: "/" + text),
    st.text(alphabet="%0aA/.?&=_-\\\x00\xff+;#", max_size=40).map(
        lambda text: target("x").replace("imx", text)
    ),
    st.text(alphabet="%0aA/.?&=_-\\\x00\xff+;#", max_size=40).map(target),
    st.just(target("x")),
)
_headers = st.lists(
    st.tuples(
        st.sampled_from(
            [b"content-encoding", b"content-length", b"content-type", b"x-api-token", b"expect", b"x"]
        ),
        st.binary(max_size=30) | _codings | st.integers(-5, 10**20).map(lambda number: str(number).encode()),
    ),
    max_size=5,
)


@hypothesis_settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(["POST", "POST", "POST", "GET", "X"]), _targets, _headers, _bodies, st.booleans())
def test_nothing_that_a_client_sends_is_answered_with_5xx_or_stays_in_memory(
    fuzzed, method, path, headers, body, with_token
):
    reply = fuzzed.run(fuzzed.send(method, path, body, headers, fuzzed.token if with_token else None))
    assert reply.status < 500, reply
    assert len(reply.body) < 2000
    assert (fuzzed.collector._bodies.memory.used, fuzzed.collector._in_flight) == (0, 0)
    if reply.status in (400, 404, 413, 415):
        assert classify(reply.status, reply.headers, reply.body).explained


@pytest.fixture
def fuzzed(start):
    return start(
        MemoryStore(max_bytes=1 << 40),
        Limits(max_body_bytes=MIB, max_message_bytes=MIB, max_memory_bytes=3 * MIB),
    )


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(max_size=2000), max_size=6), st.sampled_from([b"gzip", b"deflate", b"identity"]))
def test_whatever_is_accepted_comes_out_as_valid_json(fuzzed, parts, coding):
    store = fuzzed.collector._store
    before = store.totals().messages
    reply = fuzzed.run(
        fuzzed.send("POST", target("x"), headers=[(b"content-encoding", coding)], chunks=parts or [b"{}"])
    )
    stored = store.totals().messages - before
    assert stored <= (reply.status == 202)
    if stored:
        *_, last = store.export(Selection())
        assert strict(last.payload)


def test_outcomes_of_a_store_are_what_the_application_knows():
    assert {outcome.name for outcome in Outcome} == {"STORED", "DUPLICATE"}
