"""What a server answers, well or badly, and what the caller gets of it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import pytest
from wire import (
    ACCEPTED,
    Connection,
    WireServer,
    accept_all,
    answer,
    answer_of,
    failure_of,
    outcome_of,
    outcomes,
    post,
)

from infi.ramen_client.__version__ import __version__
from infi.ramen_client.delivery.transport import Answer, Failure, FailureKind, Request, Transport
from infi.ramen_protocol.verdict import MAX_ANSWER_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def test_a_post_arrives_as_it_was_given_and_its_answer_comes_back(transport: Transport) -> None:
    with WireServer(accept_all) as server:
        got = answer_of(transport, post(server.url(), b"\0body\xff"))
    assert (got.status, got.headers["content-type"], got.body) == (
        202,
        "application/json",
        b'{"code": "ACCEPTED"}',
    )
    request = server.received[0]
    assert request.line == "POST /ramen/v1/metrics/1/imx.x.v1/?version=1&reqid=a HTTP/1.1"
    assert request.body == b"\0body\xff"
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": f"infi.ramen_client/{__version__}",
        "accept": "*/*",
        "x-api-token": "tell-nobody",
        "content-type": "application/json",
        "content-length": "6",
    }


def test_an_empty_body_is_sent_as_one(transport: Transport) -> None:
    with WireServer(accept_all) as server:
        answer_of(transport, post(server.url(), b""))
    assert server.received[0].headers["content-length"] == "0"


def test_a_large_body_is_sent_at_once_without_asking_leave(transport: Transport) -> None:
    body = bytes(3 << 20)
    with WireServer(accept_all) as server:
        answer_of(transport, post(server.url(), body))
    assert server.received[0].body == body
    assert "expect" not in server.received[0].headers


def test_headers_change_from_one_request_to_the_next(transport: Transport) -> None:
    with WireServer(accept_all) as server:
        for headers in (
            (("X-API-Token", "a"),),
            (("X-API-Token", "b"), ("Empty", "")),
            (("X-API-Token", "b"),),
        ):
            answer_of(transport, Request(server.url(), headers, b"{}", 10))
    assert [request.headers["x-api-token"] for request in server.received] == ["a", "b", "b"]
    assert [request.headers.get("empty") for request in server.received] == [None, "", None]


@pytest.mark.parametrize("status", [200, 204, 301, 304, 400, 401, 404, 407, 413, 429, 500, 503])
def test_every_status_is_an_answer(transport: Transport, status: int) -> None:
    with WireServer(answer(b"HTTP/1.1 %d Whatever\r\nContent-Length: 0\r\n\r\n" % status)) as server:
        assert answer_of(transport, post(server.url())).status == status


def test_lines_of_one_name_are_joined_and_names_are_lower_case(transport: Transport) -> None:
    raw = b"HTTP/1.1 202 OK\r\nAccept-Encoding: gzip\r\nACCEPT-ENCODING:zstd \r\nOdd: caf\xe9\r\nContent-Length: 0\r\n\r\n"
    with WireServer(answer(raw)) as server:
        got = answer_of(transport, post(server.url()))
    assert got.headers == {"accept-encoding": "gzip, zstd", "odd": "café", "content-length": "0"}


def test_answers_before_the_final_one_are_passed_over(transport: Transport) -> None:
    raw = b"HTTP/1.1 100 Continue\r\nA: 1\r\n\r\nHTTP/1.1 103 Early Hints\r\nB: 2\r\n\r\n"
    with WireServer(answer(raw + ACCEPTED)) as server:
        got = answer_of(transport, post(server.url()))
    assert got.status == 202
    assert set(got.headers) == {"content-type", "content-length"}


def test_an_http_1_0_server_is_understood(transport: Transport) -> None:
    with WireServer(answer(b'HTTP/1.0 202 OK\r\nA: b\r\n\r\n{"code":', b' "ACCEPTED"}')) as server:
        got = answer_of(transport, post(server.url()))
    assert (got.status, got.headers, got.body) == (202, {"a": "b"}, b'{"code": "ACCEPTED"}')


def test_a_chunked_answer_is_joined_and_its_trailers_are_ignored(transport: Transport) -> None:
    raw = b"HTTP/1.1 202 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{  \r\n1;x=y\r\n}\r\n0\r\nRetry-After: 9\r\n\r\n"
    with WireServer(answer(raw)) as server:
        got = answer_of(transport, post(server.url()))
    assert (got.status, got.body) == (202, b"{  }")
    assert "retry-after" not in got.headers


def test_the_same_head_twice_gives_headers_that_are_not_shared(transport: Transport) -> None:
    with WireServer(accept_all) as server:
        first = answer_of(transport, post(server.url()))
        first.headers.clear()
        assert answer_of(transport, post(server.url())).headers["content-length"] == "20"


def test_a_redirect_is_an_answer_and_the_token_goes_nowhere_else(transport: Transport) -> None:
    with WireServer(accept_all) as elsewhere:
        for status in (301, 302, 303, 307, 308):
            redirect = f"HTTP/1.1 {status} Moved\r\nLocation: {elsewhere.url()}\r\nContent-Length: 0\r\n\r\n".encode()
            with WireServer(answer(redirect)) as server:
                assert answer_of(transport, post(server.url())).status == status
    assert elsewhere.received == []


def test_no_netrc_and_no_cookie_is_sent(
    transport: Transport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(connection: Connection) -> None:
        while connection.request():
            connection.send(ACCEPTED.replace(b"\r\n\r\n", b"\r\nSet-Cookie: a=b\r\n\r\n"))

    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    with WireServer(script) as server:
        answer_of(transport, post(server.url()))
        answer_of(transport, post(server.url()))
    assert len(server.received) == 2
    for request in server.received:
        assert "authorization" not in request.headers
        assert "cookie" not in request.headers


BROKEN_ANSWERS = {
    "nothing": b"",
    "garbage": b"\x16\x03\x01 hello\r\n\r\n",
    "a head that breaks off": b"HTTP/1.1 202 Accepted\r\nContent-Le",
    "a rejection's head that breaks off": b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n",
    "only a status line": b"HTTP/1.1 400 Bad Request\r\n",
    "a body that breaks off": b"HTTP/1.1 202 Accepted\r\nContent-Length: 200\r\n\r\n{}",
    "chunks that break off": b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "a chunk length that is none": b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a chunk longer than it says": b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{}\r\n0\r\n\r\n",
    "two lengths": b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a negative length": b"HTTP/1.1 202 Accepted\r\nContent-Length: -2\r\n\r\n{}",
    "a line without colon": b"HTTP/1.1 202 Accepted\r\nnonsense\r\nContent-Length: 0\r\n\r\n",
    "another version": b"HTTP/2 202\r\nContent-Length: 0\r\n\r\n",
    "a status of two digits": b"HTTP/1.1 20 Accepted\r\nContent-Length: 0\r\n\r\n",
    "a status of four digits": b"HTTP/1.1 2020 Accepted\r\nContent-Length: 0\r\n\r\n",
    "an answer before the final one, and no final one": b"HTTP/1.1 100 Continue\r\n\r\n",
    "a TLS alert": b"\x15\x03\x03\x00\x02\x02\x0a",
}


@pytest.mark.parametrize("raw", BROKEN_ANSWERS.values(), ids=BROKEN_ANSWERS.keys())
def test_a_broken_answer_is_a_failure(transport: Transport, raw: bytes) -> None:
    with WireServer(answer(raw)) as server:
        failure = failure_of(transport, post(server.url(), timeout_seconds=5))
    assert failure.kind is FailureKind.BROKEN
    assert failure.connected
    assert f"127.0.0.1:{server.port}" in failure.text


def test_a_reset_in_the_middle_of_the_answer_is_a_failure(transport: Transport) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(b"HTTP/1.1 202 Accepted\r\nContent-Length: 100\r\n\r\n{")
        connection.reset()

    with WireServer(script) as server:
        failure = failure_of(transport, post(server.url()))
    assert (failure.kind, failure.connected) == (FailureKind.BROKEN, True)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 209715200\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nc800000\r\n",
    ],
    ids=["announced", "until the end", "one chunk"],
)
def test_an_answer_of_200_MB_is_refused_before_it_is_read(transport: Transport, head: bytes) -> None:  # noqa: N802
    taken = 0

    def script(connection: Connection) -> None:
        nonlocal taken
        connection.request()
        connection.send(head)
        for _ in range(200):
            connection.send(bytes(1 << 20))
            taken += 1

    with WireServer(script) as server:
        failure = failure_of(transport, post(server.url()))
        server.wait_until_no_connection()
    assert failure.kind is FailureKind.OVERSIZED
    assert "202" in failure.text
    assert taken < 20  # MiB; what the kernel's buffers took


def test_an_answer_of_just_the_bound_is_taken(transport: Transport) -> None:
    for extra, expected in ((0, Answer), (1, Failure)):
        raw = b"HTTP/1.1 202 Accepted\r\n\r\n" + bytes(MAX_ANSWER_BYTES + extra)
        with WireServer(answer(raw)) as server:
            assert isinstance(outcome_of(transport, post(server.url())), expected)


def test_a_hundred_headers_are_taken_and_one_more_is_not(transport: Transport) -> None:
    for count, expected in ((99, Answer), (100, Failure)):  # and Content-Length
        raw = b"HTTP/1.1 202 Accepted\r\n" + b"A: b\r\n" * count + b"Content-Length: 0\r\n\r\n"
        with WireServer(answer(raw)) as server:
            assert isinstance(outcome_of(transport, post(server.url())), expected)


@pytest.mark.parametrize(
    ("first", "again"),
    [
        (b"HTTP/1.1 202 Accepted\r\n", b"A: b\r\n" * 1000),
        (b"HTTP/1.1 202 Accepted\r\n", b"A" * 10000),
        (b"HTTP/1.1 202 Accepted\r\n", b"A: " + b"b" * 9000 + b"\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    ],
    ids=["endless headers", "an endless name", "long headers", "endless early answers"],
)
def test_an_endless_head_is_refused(transport: Transport, first: bytes, again: bytes) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(first)
        while True:
            connection.send(again)

    with WireServer(script) as server:
        failure = failure_of(transport, post(server.url()))
        server.wait_until_no_connection()
    assert failure.kind is FailureKind.OVERSIZED


def test_a_head_of_more_than_64_KiB_is_refused(transport: Transport) -> None:  # noqa: N802
    raw = b"HTTP/1.1 202 Accepted\r\n" + (b"A: " + b"b" * 1000 + b"\r\n") * 66 + b"Content-Length: 0\r\n\r\n"
    with WireServer(answer(raw)) as server:
        assert failure_of(transport, post(server.url())).kind is FailureKind.OVERSIZED


@pytest.mark.parametrize("part", ["head", "body", "early answers"])
def test_an_answer_that_drips_does_not_outlast_the_time_out(transport: Transport, part: str) -> None:
    drip = {"head": b"A: b\r\n", "body": b" ", "early answers": b"HTTP/1.1 102 Wait\r\n\r\n"}[part]

    def script(connection: Connection) -> None:
        connection.request()
        if part != "early answers":
            connection.send(b"HTTP/1.1 202 Accepted\r\n")
        if part == "body":
            connection.send(b"Content-Length: 1000\r\n\r\n")
        while True:
            connection.send(drip)
            time.sleep(0.05)

    with WireServer(script) as server:
        began = time.monotonic()
        failure = failure_of(transport, post(server.url(), timeout_seconds=0.5))
        assert time.monotonic() - began < 5
    assert (failure.kind, failure.connected) == (FailureKind.TIMEOUT, True)
    assert "0.5 s" in failure.text


def test_a_server_that_takes_the_body_slowly_does_not_outlast_the_time_out(transport: Transport) -> None:
    seen = threading.Event()

    def script(connection: Connection) -> None:
        while not seen.wait(0.05) and connection.socket.recv(1000):
            pass

    with WireServer(script) as server:
        failure = failure_of(transport, post(server.url(), bytes(30 << 20), timeout_seconds=0.5))
        seen.set()
    assert failure.kind is FailureKind.TIMEOUT
    assert "did not take the whole request" in failure.text


def test_an_early_refusal_of_a_large_body_is_an_answer(transport: Transport) -> None:
    def script(connection: Connection) -> None:
        connection.socket.recv(1000)
        connection.send(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        connection.hang()

    with WireServer(script) as server:
        assert answer_of(transport, post(server.url(), bytes(10 << 20))).status == 413


def test_many_at_once_get_each_their_own_answer(transport: Transport) -> None:
    def script(connection: Connection) -> None:
        while request := connection.request():
            connection.send(
                b"HTTP/1.1 202 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(request.body), request.body)
            )

    with WireServer(script) as server:
        for round_ in range(3):
            for tag in range(32):
                transport.start(tag, post(server.url(), b"%d.%d" % (round_, tag)))
            assert transport.in_flight == 32
            got = outcomes(transport, 32)
            assert transport.in_flight == 0
            assert [one.body for _, one in sorted(got.items()) if isinstance(one, Answer)] == [
                b"%d.%d" % (round_, tag) for tag in range(32)
            ]
        assert server.connections <= 32


def test_one_that_hangs_does_not_hold_up_the_others(transport: Transport) -> None:
    with WireServer(lambda connection: connection.hang()) as stuck, WireServer(accept_all) as server:
        transport.start(0, post(stuck.url(), timeout_seconds=60))
        for tag in range(1, 9):
            transport.start(tag, post(server.url()))
        got = outcomes(transport, 8)
        assert set(got) == set(range(1, 9))
        assert transport.in_flight == 1


def test_misuse_raises(open_transport: Callable[[], Transport]) -> None:
    transport = open_transport()
    with WireServer(lambda connection: connection.hang()) as server:
        transport.start(1, post(server.url()))
        with pytest.raises(ValueError, match="tag 1"):
            transport.start(1, post(server.url()))
        transport.close()
        for use in (
            lambda: transport.start(2, post(server.url())),
            lambda: transport.wait(0),
            lambda: transport.cancel(1),
        ):
            with pytest.raises(RuntimeError, match="closed"):
                use()
    transport.wake()
    transport.close()


@pytest.mark.parametrize(
    ("url", "header", "words"),
    [
        ("http://127.0.0.1/", ("X-API-Token", "a\r\nEvil: b"), "X-API-Token contains a control character"),
        (
            "http://127.0.0.1/",
            ("X-API-Token", "sekr\u1234t"),
            "X-API-Token contains a character outside latin-1",
        ),
        ("http://127.0.0.1/", ("X API", "a"), "'X API' is no name of a header"),
        ("http://h\u00e9/", ("A", "a"), "not ASCII"),
        ("http://h\0/", ("A", "a"), "the URL"),
        ("http://a b/", ("A", "a"), "cannot be sent"),
        ("ftp://127.0.0.1/", ("A", "a"), "cannot be sent"),
        ("file:///etc/passwd", ("A", "a"), "cannot be sent"),
    ],
)
def test_a_request_that_cannot_be_sent_is_a_failure_of_ours(
    transport: Transport, url: str, header: tuple[str, str], words: str
) -> None:
    failure = failure_of(transport, Request(url, (header,), b"{}", 5))
    assert (failure.kind, failure.connected) == (FailureKind.SETUP, False)
    assert words in failure.text
    assert "sekr" not in failure.text
    with WireServer(accept_all) as server:  # and the transport goes on working
        assert answer_of(transport, post(server.url())).status == 202


def test_what_is_shown_of_a_request_holds_no_token_and_no_body() -> None:
    shown = repr(Request("http://h/", (("x-api-token", "tell-nobody"), ("A", "b")), b"secret body", 5))
    assert "tell-nobody" not in shown
    assert "secret body" not in shown
    assert "('A', 'b')" in shown
