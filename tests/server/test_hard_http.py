"""Whatever comes over a socket to a real collector: an answer below 500 or none, never one meant for another request."""

import gzip
import json
import random
import re
import socket
import threading
import zlib
from contextlib import suppress
from itertools import pairwise

import pytest
from collector_kit import target
from hard_kit import CollectorProcess, stored
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from wire_kit import Wire, request

from infi.ramen_server import CollectorServer, Limits, ServerConfig, SqliteStore
from infi.ramen_server._http import MAX_PIPELINED

MIB = 1024 * 1024
LIMITS = {
    "max_body_bytes": MIB,
    "max_message_bytes": MIB,
    "max_memory_bytes": 8 * MIB,
    "head_seconds": 2,
    "body_idle_seconds": 2,
    "drain_seconds": 2,
}


# Pipelines


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A collector whose commits wait for ``go``."""
    go = threading.Event()
    commit = SqliteStore.commit

    def wait_and_commit(store, submissions, now_ms):
        go.wait(30)
        return commit(store, submissions, now_ms)

    monkeypatch.setattr(SqliteStore, "commit", wait_and_commit)
    limits = Limits(min_free_bytes=0, stop_seconds=1)
    with CollectorServer(ServerConfig(tmp_path / "data", port=0, limits=limits)) as server:
        server.go = go
        yield server
        go.set()


@pytest.mark.parametrize(
    "after",
    [
        b"no HTTP\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nA: " + b"x" * 40_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nX-API-Token: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * (MAX_PIPELINED + 1),
    ],
    ids=["no HTTP", "a bad length", "a large head", "a bad chunk", "too many"],
)
def test_a_bad_request_behind_a_good_one_is_not_answered_in_its_place(held, after):
    with Wire(held) as wire:
        wire.send(request(held.first_token, "good") + after)
        assert wire.answer() is None, "a 400 here would make a good message a dead letter"
    held.go.set()
    with Wire(held) as wire:
        answer = wire.post("good")
    assert answer.status == 202
    assert [message.envelope.reqid for message in stored(held.config.data_dir)] == ["good"]


def test_a_bad_chunk_after_the_answer_is_not_answered_again(held):
    with Wire(held) as wire:
        wire.send(request("wrong", "1", b"", b"Transfer-Encoding: chunked\r\n"))
        assert wire.answer().status == 401
        wire.send(b"ZZ\r\n")
        assert wire.answer() is None


def test_a_bad_chunk_of_the_request_that_is_read_is_answered(held):
    with Wire(held) as wire:
        wire.send(request(held.first_token, "1", b"", b"Transfer-Encoding: chunked\r\n") + b"1\r\n[\r\n")
        wire.send(b"ZZ\r\n")
        assert wire.answer().status == 400


def test_a_pipeline_that_is_as_long_as_allowed_is_answered_in_order(held):
    held.go.set()
    with Wire(held) as wire:
        for turn in range(3):
            wire.send(b"".join(request(held.first_token, f"{turn}-{n}") for n in range(MAX_PIPELINED)))
            assert [wire.answer().status for _ in range(MAX_PIPELINED)] == [202] * MAX_PIPELINED
    found = [message.envelope.reqid for message in stored(held.config.data_dir)]
    assert found == [f"{turn}-{n}" for turn in range(3) for n in range(MAX_PIPELINED)]


# Fuzz


@pytest.fixture(scope="module")
def collector(tmp_path_factory):
    with CollectorProcess(tmp_path_factory.mktemp("fuzz") / "data", **LIMITS) as collector:
        with Wire(collector) as wire:
            assert wire.post("first").status == 202
        yield collector


NAMES = [
    "Content-Encoding", "Content-Length", "Transfer-Encoding", "Content-Type", "Expect", "Connection", "Upgrade",
    "X-API-Token", "Host", "Accept-Encoding", "TE", "Trailer", "Cookie", "X-" + "y" * 300, "\x7f", "a b", "",
]  # fmt: skip
VALUES = [
    b"gzip", b"deflate", b"x-gzip", b"GZIP", b"identity", b"zstd", b"br", b"gzip, gzip", b"chunked", b"gzip, chunked",
    b"chunked, chunked", b"0", b"2", b"-1", b"+2", b"1e3", b"0x2", b"2, 2", b"99999999999999999999", b"100-continue",
    b"close", b"keep-alive", b"upgrade", b"h2c", b"websocket", b"", b"\xff\xfe", b"\x00", b"x" * 9000, b"a\r\n b",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass"))
PLAIN = st.one_of(
    st.binary(max_size=300),
    JSON,
    JSON.map(lambda text: text + b"\x00"),
    st.integers(0, 3000).map(lambda depth: b"[" * depth + b"]" * depth),
    st.integers(MIB - 3, MIB + 3).map(lambda size: b'"' + b"x" * (size - 2) + b'"'),
    st.integers(0, 8 * MIB).map(lambda size: b" " * size),
)
PACKERS = [
    bytes,
    zlib.compress,
    gzip.compress,
    lambda plain: zlib.compress(plain)[2:-4],
    lambda plain: gzip.compress(plain)[:-3],
    lambda plain: gzip.compress(plain) * 3,
    lambda plain: gzip.compress(b"") * 1030 + gzip.compress(plain),
    lambda plain: zlib.compress(zlib.compress(plain)),
    lambda plain: zlib.compress(plain) + b"x",
    lambda plain: b"\x78\xbb" + plain,
    lambda plain: b"\x1f\x8b" + plain,
]
ODD = "%0aAz/.?&=_-\\\x01\x7f\xff+;#: \ud83d"
TARGETS = st.one_of(
    st.just(target("fuzz")),
    st.text(ODD, max_size=30).map(target),
    st.text(ODD, max_size=30).map(lambda odd: target("fuzz", data_type=odd)),
    st.text(ODD, max_size=30).map(lambda odd: "/" + odd),
    st.text(ODD, max_size=10).map(lambda odd: target("fuzz").replace("1099", odd)),
    st.integers(-(10**30), 10**30).map(lambda serial: target("fuzz", serial=serial)),
    st.integers(15_000, 17_000).map(lambda size: target("x" * size)),
    st.sampled_from(
        ["*", "x:1", "http://[::1", "//", "/ramen/v1", "http://a b/ramen/v1/", "/healthz?%00", "/metrics"]
    ),
)


def chunked(body, cuts, trailers):
    """Frame a body in chunks that end at ``cuts`` (parts of it from 0 to 1)."""
    ends = sorted({0, len(body), *(int(cut * len(body)) for cut in cuts)})
    chunks = [b"%x;e=1\r\n%b\r\n" % (end - start, body[start:end]) for start, end in pairwise(ends)]
    return b"".join(chunks) + b"0\r\n" + trailers + b"\r\n"


@st.composite
def exchanges(draw):
    """Bytes of one to three requests on a connection, mostly well-formed, and where to cut them into packets."""
    wire = b""
    for _ in range(draw(st.integers(1, 3))):
        packer = draw(st.sampled_from(PACKERS))
        body = packer(draw(PLAIN))
        headers = [
            (draw(st.sampled_from(NAMES)), draw(st.sampled_from(VALUES)))
            for _ in range(draw(st.integers(0, 3)))
        ]
        if draw(st.integers(0, 9)):
            headers.append(("X-API-Token", b"TOKEN"))
        if draw(st.booleans()):
            headers.append(("Content-Encoding", draw(st.sampled_from(VALUES[:8]))))
        if draw(st.booleans()):
            headers.append(("Transfer-Encoding", b"chunked"))
            trailers = draw(
                st.sampled_from([b"", b"a: b\r\n", b"X-API-Token: x\r\n", b"Content-Length: 5\r\n"])
            )
            body = chunked(body, draw(st.lists(st.floats(0, 1), max_size=3)), trailers)
        else:
            headers.append(
                ("Content-Length", str(len(body) + draw(st.sampled_from([0, 0, 0, 0, -1, 1]))).encode())
            )
        method = draw(st.sampled_from(["POST", "POST", "POST", "GET", "HEAD", "PUT", "CONNECT", "BREW"]))
        path = draw(TARGETS).encode("utf-8", "surrogatepass")
        version = draw(
            st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b""])
        )
        head = [b"%b %b %b" % (method.encode(), path, version)]
        head += [b"%b: %b" % (name.encode("latin-1"), value) for name, value in headers]
        wire += b"\r\n".join([*head, b"", b""]) + body
    if draw(st.integers(0, 4)) == 0:  # a byte is wrong
        place = draw(st.integers(0, min(len(wire) - 1, 400)))
        wire = wire[:place] + draw(st.binary(max_size=2)) + wire[place + 1 :]
    return wire, draw(st.lists(st.integers(0, 300), max_size=3))


def statuses(collector, wire_bytes, cuts):
    """Send it in packets, then end our side; gives every answer's status. An answer that is no HTTP fails here."""
    data = wire_bytes.replace(b"TOKEN", collector.first_token.encode())
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    received = b""
    with Wire(collector) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):
            start = 0
            for end in ends:
                wire.send(data[start:end])
                start = end
            wire.socket.shutdown(socket.SHUT_WR)
        with suppress(ConnectionResetError):
            while more := wire.socket.recv(65536):
                received += more
    found = [int(status) for status in re.findall(rb"HTTP/1\.1 ([0-9]{3}) [A-Z]", received)]
    assert received == b"" or found, received
    return found


@hypothesis_settings(max_examples=250)
@given(exchanges())
def test_no_exchange_is_answered_with_5xx(collector, exchange):
    for status in statuses(collector, *exchange):
        assert 200 <= status < 500 or status == 100


def test_after_the_fuzz_it_is_well_holds_only_json_and_has_logged_no_fault(collector):
    """After the test above, in the order of this file; by itself it looks at a collector that is new."""
    with Wire(collector) as wire:
        assert wire.post("after").status == 202
    assert collector.memory("VmHWM") < 250 * MIB
    log = collector.log()
    assert "Traceback" not in log
    assert "Exception" not in log
    assert collector.first_token not in log
    for message in stored(collector.directory):
        json.loads(message.payload)


def test_garbage_from_many_sides_at_once_hinders_no_message(collector):
    seed = random.SystemRandom().randrange(2**32)
    print("seed:", seed)
    over = threading.Event()

    def garble(worker):
        dice = random.Random(seed + worker)
        while not over.is_set():
            sent = bytearray(
                request(collector.first_token, "x", zlib.compress(b"{}"), b"Content-Encoding: gzip\r\n")
            )
            for _ in range(dice.randint(1, 5)):
                sent[dice.randrange(len(sent))] = dice.randrange(256)
            with suppress(OSError), Wire(collector) as wire:
                wire.send(bytes(sent))
                if dice.random() < 0.5:
                    wire.socket.recv(100)

    threads = [threading.Thread(target=garble, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    with Wire(collector) as wire:
        answers = [wire.post(f"among-{number}").status for number in range(200)]
    over.set()
    for thread in threads:
        thread.join(30)
    assert answers == [202] * 200
