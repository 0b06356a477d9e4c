"""The replies of the test server, as they look on the wire."""

from __future__ import annotations

import http.client
import json
from contextlib import closing

import pytest
from test_testing_kit_client import (
    TIMEOUT_SECONDS,
    connection_threads,
    dial,
    post,
    read_to_end,
    request_bytes,
    target,
)

from infi.ramen_client.testing import (
    Accept,
    Drop,
    Endless,
    Hang,
    RamenServer,
    Raw,
    Redirect,
    Refuse,
    Reset,
    SlowDrip,
    Status,
    StoreThenReset,
    Truncated,
)
from infi.ramen_protocol import MAX_ANSWER_BYTES, Code, Rule, Verdict, classify, status_of


@pytest.fixture
def server():
    with RamenServer() as running:
        yield running


def no_thread_is_left(server: RamenServer) -> bool:
    for thread in connection_threads(server):
        thread.join(TIMEOUT_SECONDS)
    return connection_threads(server) == []


class TestAnswers:
    def test_an_acceptance_carries_its_details_and_headers(self, server):
        server.answer_with(
            Accept("seen before", (("Accept-Encoding", "zstd, gzip"), ("X-A", "1"), ("X-A", "2")))
        )
        answer = post(server)
        assert (answer.status, answer.json()) == (202, {"code": "ACCEPTED", "details": "seen before"})
        assert answer.headers["accept-encoding"] == "zstd, gzip"
        assert answer.headers["content-type"] == "application/json"

    @pytest.mark.parametrize(
        ("rule", "sent"),
        [
            (
                Rule(category="metrics", system_serial="1099"),
                {"category": "metrics", "system_serial": "1099"},
            ),
            ({}, {}),
            (
                {"colour": "red", "data_version": 1, "sender": None},
                {"colour": "red", "data_version": 1, "sender": None},
            ),
        ],
    )
    def test_a_drop_carries_any_rule(self, server, rule, sent):
        server.answer_with(Drop(rule, "enough of it"))
        answer = post(server)
        assert (answer.status, answer.json()) == (
            202,
            {"code": "DROPPED", "details": "enough of it", "rule": sent},
        )
        assert classify(answer.status, answer.headers, answer.body).verdict is Verdict.DROPPED
        assert len(server.received) == 1
        assert server.accepted == []

    def test_a_drop_may_come_without_a_rule(self, server):
        server.answer_with(Drop(None))
        assert post(server).json() == {"code": "DROPPED", "details": None}

    @pytest.mark.parametrize("code", [code for code in Code if code not in {Code.ACCEPTED, Code.DROPPED}])
    def test_a_refusal_has_the_status_and_the_body_of_its_code(self, server, code):
        server.answer_with(Refuse(code, "because"), Refuse(code.value, "because"))
        for _ in range(2):
            answer = post(server)
            assert (answer.status, answer.json()) == (
                status_of(code),
                {"code": code.value, "details": "because"},
            )
        assert server.accepted == []

    @pytest.mark.parametrize("status", [200, 204, 304, 407, 418, 599, 999])
    def test_a_status_is_sent_as_it_is_and_stores_nothing(self, server, status):
        body = b"" if status in {204, 304} else b"<html>\x00"
        server.answer_with(Status(status, body, (("Content-Type", "text/html"),)))
        answer = post(server)
        assert (answer.status, answer.body, answer.headers["content-type"]) == (status, body, "text/html")
        assert server.accepted == []

    def test_a_redirect_names_its_place(self, server):
        server.answer_with(Redirect("http://other.example/x"), Redirect("/y", 307))
        first, second = post(server), post(server)
        assert (first.status, first.headers["location"], first.body) == (302, "http://other.example/x", b"")
        assert (second.status, second.headers["location"]) == (307, "/y")

    @pytest.mark.parametrize(
        "data", [b"", b"HTTP/1.1 202 Acc", b"SSH-2.0-x\r\n", b"HTTP/1.1 202 OK\r\n\r\nto the end"]
    )
    def test_raw_bytes_are_all_that_comes_before_the_end(self, server, data):
        server.answer_with(Raw(data))
        with dial(server) as sock:
            sock.sendall(request_bytes(server))
            assert read_to_end(sock) == data
        assert server.accepted == []

    @pytest.mark.parametrize(
        "make",
        [
            lambda: Accept(headers=(("X", "a\r\nSet: b"),)),
            lambda: Accept(headers=(("X y", "a"),)),
            lambda: Refuse("BAD_REQUEST", headers=(("Retry-After", "\u2603"),)),
            lambda: Refuse("ACCEPTED"),
            lambda: Refuse("LANE"),
            lambda: Status(100),
            lambda: Status(1000),
            lambda: Status(204, b"x"),
            lambda: Redirect("/\n"),
            lambda: Redirect("/", 200),
            lambda: SlowDrip(0),
        ],
    )
    def test_a_reply_that_could_not_be_sent_is_an_error_where_it_is_written(self, make):
        with pytest.raises(ValueError):  # noqa: PT011 - each has a text of its own
            make()

    def test_a_rule_that_is_no_json_is_an_error_where_it_is_written(self):
        with pytest.raises(TypeError):
            Drop({"category": object()})


class TestFaults:
    @pytest.mark.parametrize(("reply", "stored"), [(Reset(), 0), (StoreThenReset(), 1)])
    def test_a_reset_is_a_tcp_reset_without_a_byte_of_an_answer(self, server, reply, stored):
        server.answer_with(reply)
        with dial(server) as sock:
            sock.sendall(request_bytes(server))
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert len(server.accepted) == stored
        assert post(server).status == 202
        assert (len(server.accepted), len(server.duplicates)) == (1, stored)

    def test_a_reset_before_the_body_does_not_wait_for_it(self, server):
        server.answer_with(Reset(before_body=True))
        with dial(server) as sock:
            sock.sendall(request_bytes(server, body=bytes(1000))[:-1000])
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        (message,) = server.received
        assert (message.reply, message.body, message.envelope.reqid) == (Reset(before_body=True), b"", "1")

    def test_a_large_body_is_reset_while_it_is_sent(self, server):
        server.answer_with(Reset(before_body=True))
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            post(server, body=b'"' + b"a" * (32 << 20) + b'"')

    def test_a_truncated_answer_ends_before_its_announced_length(self, server):
        server.answer_with(Truncated())
        with pytest.raises(http.client.IncompleteRead) as failure:
            post(server)
        assert failure.value.partial.startswith(b'{"code":"ACC')
        assert server.accepted == []
        assert no_thread_is_left(server)

    def test_a_slow_drip_comes_byte_by_byte_and_complete(self, server):
        server.answer_with(SlowDrip(0.002))
        with dial(server) as sock:
            sock.sendall(request_bytes(server))
            pieces = []
            while piece := sock.recv(65536):
                pieces.append(piece)
        assert pieces[0] == b"H"
        assert len(pieces) > 20
        head, body = b"".join(pieces).split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 202 ")
        assert json.loads(body)["code"] == "ACCEPTED"
        assert len(server.accepted) == 1

    def test_a_slow_drip_ends_when_the_client_leaves_or_the_server_stops(self, server):
        server.answer_with(SlowDrip(3600), SlowDrip(3600))
        with dial(server) as sock:
            sock.sendall(request_bytes(server))
            assert sock.recv(10) == b"H"
        assert no_thread_is_left(server)
        with dial(server) as sock:
            sock.sendall(request_bytes(server))
            assert sock.recv(10) == b"H"
            server.stop()
            assert no_thread_is_left(server)
            assert read_to_end(sock) == b""

    def test_hanging_ends_when_the_client_leaves(self, server):
        server.answer_with(Hang())
        with dial(server) as sock:
            sock.sendall(request_bytes(server))
            server.wait_for_received(1)
            assert len(connection_threads(server)) == 1
        assert no_thread_is_left(server)
        assert server.accepted == []

    def test_hanging_requests_do_not_hold_up_others(self, server):
        server.answer_with(Hang(), Hang())
        with dial(server) as one, dial(server) as two:
            one.sendall(request_bytes(server))
            two.sendall(request_bytes(server))
            server.wait_for_received(2)
            assert post(server, target("other")).status == 202

    def test_an_endless_body_goes_on_and_looks_right_wherever_it_is_cut(self, server):
        server.answer_with(Endless())
        with closing(http.client.HTTPConnection(server.hostname, timeout=TIMEOUT_SECONDS)) as connection:
            connection.request("POST", target(), b"{}", {"X-API-Token": server.token})
            with connection.getresponse() as response:
                body = response.read(3 << 20)
        assert len(body) == 3 << 20
        assert json.loads(body[:MAX_ANSWER_BYTES]) == {"code": "ACCEPTED", "details": None}
        assert server.accepted == []
        assert no_thread_is_left(server)

    def test_an_endless_body_ends_broken_when_the_server_stops(self, server):
        server.answer_with(Endless())
        with dial(server) as sock:
            sock.sendall(request_bytes(server))
            assert sock.recv(12) == b"HTTP/1.1 202"
            server.stop()
            assert connection_threads(server) == []
            try:
                rest = read_to_end(sock)
            except ConnectionResetError:
                rest = b""
            assert not rest.endswith(b"\r\n0\r\n\r\n")
