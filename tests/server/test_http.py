"""The collector on real sockets: what uvicorn alone would not bound, and what clients really do on a connection."""

import logging
import socket
import time
import zlib

import pytest
from collector_kit import target
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from wire_kit import Wire, code, request

from infi.ramen_protocol import classify
from infi.ramen_server import CollectorServer, Limits, Purpose, ServerConfig, Settings, SqliteArchive
from infi.ramen_server.server import _listen

MIB = 1024 * 1024
LIMITS = Limits(
    max_body_bytes=MIB,
    max_message_bytes=2 * MIB,
    max_memory_bytes=16 * MIB,
    head_seconds=0.5,
    body_idle_seconds=0.5,
    drain_seconds=0.5,
    keep_alive_seconds=1,
    stop_seconds=1,
    min_free_bytes=0,
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with CollectorServer(ServerConfig(tmp_path_factory.mktemp("data"), port=0, limits=LIMITS)) as server:
        yield server


@pytest.fixture
def wire(server):
    with Wire(server) as wire:
        yield wire


def patient(tmp_path, **limits):
    """A collector whose times are too long to end a test's connection."""
    return CollectorServer(ServerConfig(tmp_path, port=0, limits=Limits(min_free_bytes=0, **limits)))


def send_until_cut_off(wire, data, pause=0.0):
    """Send the same again and again until the other side has had enough; returns how many bytes went out."""
    sent = 0
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            sent += wire.socket.send(data)
        except (ConnectionResetError, BrokenPipeError):
            return sent
        time.sleep(pause)
    raise AssertionError(f"still connected after {sent} bytes")


def stored(server):
    with SqliteArchive(server.config.data_dir) as archive:
        return archive.totals().messages


def test_messages_come_one_after_the_other_on_one_connection(wire):
    for number in range(20):
        assert wire.post(f"keep-alive-{number}").status == 202


def test_pipelined_messages_are_answered_in_their_order(server, wire):
    wire.send(
        b"".join(
            request(server.first_token, f"pipe-{number}", b"{}" if number != 5 else b"{")
            for number in range(10)
        )
    )
    assert [wire.answer().status for _ in range(10)] == [202] * 5 + [400] + [202] * 4


def test_many_pipelined_heads_are_not_taken_for_one_large_head(server, wire):
    wire.send((b"GET /readyz HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 8000 + b"\r\n\r\n") * 256)
    assert [wire.answer().status for _ in range(256)] == [200] * 256


def test_a_chunked_body_is_read_and_bounded(server, wire):
    chunked = b"Transfer-Encoding: chunked\r\n"
    assert wire.post("chunked", b"1\r\n[\r\n3\r\n1]\n\r\n0\r\n\r\n", chunked).status == 202
    wire.send(request(server.first_token, "chunked-2", b"", chunked))
    for _ in range(17):
        wire.send(b"10000\r\n" + b" " * 65536 + b"\r\n")
    assert wire.answer().status == 413, "while it is still being sent"


def test_a_message_that_is_too_large_is_told_so_although_it_was_still_being_sent(tmp_path):
    with patient(tmp_path, max_body_bytes=MIB) as server, Wire(server) as wire:
        body = b'"' + b"x" * (8 * MIB) + b'"'
        answer = wire.post("large", body)  # sends everything before it reads, as 1.x does
        assert (answer.status, code(answer)) == (413, "PAYLOAD_TOO_LARGE")
        assert wire.post("after").status == 202, "the connection goes on"


def test_a_large_body_that_waits_for_100_continue_is_refused_without_being_sent(wire):
    headers = b"Content-Length: 99999999\r\nExpect: 100-continue\r\n"
    assert wire.post("expect", b"", headers).status == 413


def test_a_small_body_that_waits_for_100_continue_is_asked_for(server, wire):
    wire.send(request(server.first_token, "expect-2", b"", b"Content-Length: 2\r\nExpect: 100-continue\r\n"))
    assert wire.answer().status == 100
    assert wire.send(b"{}").answer().status == 202


def test_whoever_drips_on_after_a_refusal_is_cut_off(wire):
    answer = wire.post("drip", b"x", b"Content-Length: 99999999\r\n")
    assert answer.status == 413
    send_until_cut_off(wire, b"x", pause=0.01)


@pytest.mark.parametrize("begin", [b"", b"P", b"\r\n", b"POST /", b"POST / HTTP/1.1\r\nA: b\r\nC"])
def test_a_head_that_does_not_come_to_its_end_is_cut_off(wire, begin):
    wire.send(begin)
    assert wire.is_closed()


def test_a_head_that_drips_is_cut_off(wire):
    send_until_cut_off(wire, b"\r\n", pause=0.01)


def test_a_body_that_stops_is_answered_408(wire):
    answer = wire.post("stops", b"{", b"Content-Length: 2\r\n")
    assert answer.status == 408
    assert wire.is_closed()


def test_an_idle_connection_is_closed_in_the_end(wire):
    assert wire.post("idle").status == 202
    assert wire.is_closed()


def test_an_idle_connection_is_closed_in_the_end_also_after_a_drained_body(wire):
    answer = wire.post("drained", b"x" * (MIB + 1))
    assert answer.status == 413
    assert wire.is_closed()


def test_a_connection_that_is_idle_for_longer_than_a_head_may_take_is_still_good(tmp_path):
    with patient(tmp_path, head_seconds=0.2) as server, Wire(server) as wire:
        assert wire.post("1").status == 202
        time.sleep(0.5)  # longer than the head's time; there is nothing to wait for
        assert wire.post("2").status == 202


def test_a_head_has_its_whole_time_also_late_in_the_idle_time_after_a_drained_body(tmp_path):
    with (
        patient(tmp_path, max_body_bytes=MIB, keep_alive_seconds=1, head_seconds=1) as server,
        Wire(server) as wire,
    ):
        assert wire.post("drained", b"x" * (MIB + 1)).status == 413
        time.sleep(0.6)
        whole = request(server.first_token, "slow-head")
        wire.send(whole[:30])
        time.sleep(0.8)
        assert wire.send(whole[30:]).answer().status == 202


def test_half_a_head_that_came_before_the_last_answer_is_cut_off(server, wire):
    wire.send(request(server.first_token, "and-a-half") + b"POST / HTTP/1.1\r\nA: ")
    assert wire.answer().status == 202
    send_until_cut_off(wire, b"x", pause=0.01)


@pytest.mark.parametrize(
    "head",
    [
        b"POST /" + b"x" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * 70 + b"\r\n",
        b"POST / HTTP/1.1\r\na: " + b"x" * 40_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + b"".join(b"a%d: %s\r\n" % (n, b"x" * 1000) for n in range(40)) + b"\r\n",
    ],
)
def test_a_head_that_is_too_large_is_refused(wire, head):
    answer = wire.send(head).answer()
    assert (answer.status, code(answer)) == (400, "BAD_REQUEST")
    assert wire.is_closed()


@pytest.mark.parametrize("begin", [b"POST /", b"POST / HTTP/1.1\r\na: ", b"POST / HTTP/1.1\r\n" + b"x" * 10])
def test_a_head_without_end_is_cut_off_after_a_bounded_number_of_bytes(tmp_path, begin):
    with patient(tmp_path) as server, Wire(server) as wire:
        wire.send(begin)
        sent = send_until_cut_off(wire, b"x" * 65536)
    assert sent < 32 * MIB  # what the sockets' own buffers take, and a read or two


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50,
        b"GET\r\n\r\n",
        b"POST / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
        b"POST /\xff HTTP/1.1\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"POST / HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\n{}",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    ],
)
def test_what_is_no_http_gets_a_4xx_or_nothing(server, wire, garbage, caplog):
    before = stored(server)
    answer = wire.send(garbage).answer()
    assert answer is None or 400 <= answer.status < 500
    assert "Exception in ASGI" not in caplog.text
    assert stored(server) == before


def test_a_message_that_wants_another_protocol_is_refused_at_once_and_its_body_not_waited_for(tmp_path):
    with patient(tmp_path) as server, Wire(server) as wire:
        answer = wire.post("upgrade", headers=b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n")
        assert (answer.status, code(answer)) == (400, "BAD_REQUEST")
        assert wire.is_closed()


def test_http_1_0_is_answered_and_closed(server, wire):
    wire.send(request(server.first_token, "1.0").replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert wire.answer().status == 202
    assert wire.is_closed()


def test_more_connections_than_allowed_are_told_to_come_again(tmp_path):
    with patient(tmp_path, max_connections=2) as server, Wire(server) as first, Wire(server) as second:
        assert (first.post("1").status, second.post("2").status) == (202, 202)
        with Wire(server) as third:
            answer = third.answer()
            assert (answer.status, answer.headers["retry-after"], code(answer)) == (503, "1", "UNAVAILABLE")
            assert third.is_closed()
        assert first.post("3").status == 202
        second.socket.close()
        deadline = time.monotonic() + 20
        while True:
            with Wire(server) as third:
                if third.post("4").status == 202:
                    break
            assert time.monotonic() < deadline


def test_a_client_that_does_not_read_its_answers_is_cut_off_and_others_go_on(tmp_path, monkeypatch):
    from infi.ramen_server import _http

    monkeypatch.setattr(_http, "WRITE_SECONDS", 0.3)
    with (
        patient(tmp_path) as server,
        Settings(tmp_path) as settings,
        Wire(server) as deaf,
        Wire(server) as other,
    ):
        reader = settings.add_token("reader", purpose=Purpose.READ)
        # Each answer is some 3 KB: a few thousand fill what the kernel takes of them.
        ask = f"GET /metrics HTTP/1.1\r\nHost: x\r\nX-API-Token: {reader}\r\n\r\n".encode()
        send_until_cut_off(deaf, ask * 100)
        assert other.post("1").status == 202


def test_the_listening_socket_is_named_tcp_so_that_answers_are_not_held_back(tmp_path):
    with _listen(ServerConfig(tmp_path, port=0)) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_the_answer_names_no_server_software_and_the_log_no_token(wire, server, caplog):
    caplog.set_level(logging.DEBUG)
    answer = wire.post("log")
    wire.post("log2", b"{")
    assert "server" not in answer.headers
    assert server.first_token not in caplog.text


def test_a_bomb_over_a_socket_is_refused(server):
    packed = zlib.compress(b"x" * (100 * MIB))
    with Wire(server) as wire:
        assert wire.post("bomb", packed, b"Content-Encoding: gzip\r\n").status == 413


_lines = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"POST /ramen/v1/a/1/b.c.d/?version=1&reqid=1 HTTP/1.1",
            b"Content-Length: 5",
            b"Content-Length: -5",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip, chunked",
            b"Expect: 100-continue",
            b"Connection: close",
            b"Connection: upgrade",
            b"Upgrade: h2c",
            b"X-API-Token: TOKEN",
            b"",
            b"5",
            b"hello",
            b"0",
            b" folded",
        ]
    ),
)


@hypothesis_settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(_lines, max_size=12), st.sampled_from([b"\r\n", b"\n"]))
def test_no_bytes_on_a_socket_are_answered_with_5xx(server, lines, end):
    data = end.join([*lines, b"", b""]).replace(b"TOKEN", server.first_token.encode())
    with Wire(server) as wire:
        wire.send(data)
        wire.socket.shutdown(socket.SHUT_WR)
        while (answer := wire.answer()) is not None:
            assert answer.status < 500, (data, answer)
            if answer.status == 400:
                assert classify(answer.status, answer.headers, answer.body).explained
    with Wire(server) as wire:
        assert wire.post("still-there").status == 202


def test_the_target_may_be_in_absolute_form(server, wire):
    assert wire.post("absolute", path="http://x" + target("absolute")).status == 202
