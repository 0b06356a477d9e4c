"""Connections: made, refused, kept, used again, gone stale; and what may have reached the server."""

from __future__ import annotations

import os
import selectors
import signal
import socket
import threading
import time
from time import monotonic
from typing import TYPE_CHECKING

import pycurl
import pytest
from wire import (
    ACCEPTED,
    Connection,
    WireServer,
    accept_all,
    answer_of,
    closed_port,
    failure_of,
    outcomes,
    post,
    unanswering_port,
)

from infi.ramen_client.delivery import _curl
from infi.ramen_client.delivery.transport import Answer, FailureKind, Transport

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_refused_connection_says_so_and_reached_nobody(transport: Transport) -> None:
    port = closed_port()
    failure = failure_of(transport, post(f"http://127.0.0.1:{port}/"))
    assert (failure.kind, failure.connected) == (FailureKind.CONNECT, False)
    assert f"127.0.0.1:{port} refused the connection" in failure.text


def test_a_name_that_does_not_exist_says_so(transport: Transport) -> None:
    failure = failure_of(transport, post("http://no-such-host.invalid:8080/", timeout_seconds=20))
    assert (failure.kind, failure.connected) == (FailureKind.RESOLVE, False)
    assert "the name no-such-host.invalid cannot be resolved" in failure.text


def test_connecting_that_hangs_ends_with_the_time_out(transport: Transport) -> None:
    with unanswering_port() as port:
        failure = failure_of(transport, post(f"http://127.0.0.1:{port}/", timeout_seconds=0.3))
    assert (failure.kind, failure.connected) == (FailureKind.TIMEOUT, False)
    assert f"no connection to 127.0.0.1:{port} within 0.3 s" in failure.text


def test_an_answer_that_hangs_ends_with_the_time_out(transport: Transport) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.hang()

    with WireServer(script) as server:
        failure = failure_of(transport, post(server.url(), timeout_seconds=0.3))
    assert (failure.kind, failure.connected) == (FailureKind.TIMEOUT, True)
    assert f"127.0.0.1:{server.port} did not answer within 0.3 s" in failure.text


@pytest.mark.parametrize("ending", ["reset", "close"])
def test_a_fresh_connection_that_ends_without_an_answer_is_a_failure_and_is_not_tried_again(
    transport: Transport, ending: str
) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        if ending == "reset":
            connection.reset()

    with WireServer(script) as server:
        failure = failure_of(transport, post(server.url()))
        assert (failure.kind, failure.connected) == (FailureKind.BROKEN, True)
        assert len(server.received) == 1


def test_requests_follow_one_another_on_one_connection(transport: Transport) -> None:
    with WireServer(accept_all) as server:
        for _ in range(20):
            answer_of(transport, post(server.url()))
        assert server.connections == 1


def test_connections_of_a_burst_are_kept_for_the_next_one_though_it_ends_one_by_one(
    transport: Transport,
) -> None:
    barrier = threading.Barrier(32)
    go = threading.Semaphore(0)

    def script(connection: Connection) -> None:
        while connection.request():
            barrier.wait(20)  # only when all are connected is any answered
            assert go.acquire(timeout=20)
            connection.send(ACCEPTED)

    with WireServer(script) as server:
        for _ in range(3):
            for tag in range(32):
                transport.start(tag, post(server.url()))
            for _ in range(32):
                go.release()
                assert all(isinstance(one, Answer) for one in outcomes(transport, 1).values())
        assert server.connections == 32


def test_a_kept_connection_that_the_server_closed_meanwhile_is_no_failure(transport: Transport) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(ACCEPTED)

    with WireServer(script) as server:
        for _ in range(5):
            assert answer_of(transport, post(server.url())).status == 202
            server.wait_until_no_connection()
        assert server.connections == 5


@pytest.mark.parametrize("ending", ["reset", "close"])
def test_a_reused_connection_that_dies_before_an_answer_is_replaced_and_the_post_sent_again(
    transport: Transport, ending: str
) -> None:
    """Libcurl's doing, and documented: the server, which has received it whole, recognises the reqid."""

    def script(connection: Connection) -> None:
        connection.request()
        connection.send(ACCEPTED)
        if connection.number == 0:
            connection.request()
            if ending == "reset":
                connection.reset()
        else:
            accept_all(connection)

    with WireServer(script) as server:
        answer_of(transport, post(server.url(), b"first"))
        assert answer_of(transport, post(server.url(), b"second " * 1000)).status == 202
    assert [(one.body, one.connection) for one in server.received] == [
        (b"first", 0),
        (b"second " * 1000, 0),
        (b"second " * 1000, 1),
    ]


def test_a_reused_connection_that_dies_within_the_answer_is_a_failure(transport: Transport) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.send(ACCEPTED)
        connection.request()
        connection.send(b"HTTP/1.1 202 Accepted\r\nContent-L")

    with WireServer(script) as server:
        answer_of(transport, post(server.url()))
        assert failure_of(transport, post(server.url())).connected
        assert len(server.received) == 2


def test_however_many_kept_connections_die_the_post_is_sent_a_bounded_number_of_times(
    transport: Transport,
) -> None:
    barrier = threading.Barrier(16)

    def script(connection: Connection) -> None:
        connection.request()
        if connection.number < 16:
            barrier.wait(20)
        connection.send(ACCEPTED)
        connection.request()
        connection.reset()

    with WireServer(script) as server:
        for tag in range(16):
            transport.start(tag, post(server.url()))
        outcomes(transport, 16)
        transport.start(99, post(server.url(), b"last"))
        outcomes(transport, 1)
        sent = [one for one in server.received if one.body == b"last"]
    assert 2 <= len(sent) <= 6


def test_a_post_that_a_dead_connection_took_along_counts_as_possibly_received(transport: Transport) -> None:
    """The retry is refused, so the failure is one of connecting; but the first attempt reached the server whole."""

    def script(connection: Connection) -> None:
        connection.request()
        connection.send(ACCEPTED)
        connection.request()
        connection.server.stop_listening()
        connection.reset()

    with WireServer(script) as server:
        answer_of(transport, post(server.url()))
        failure = failure_of(transport, post(server.url()))
        assert len(server.received) == 2
    assert (failure.kind, failure.connected) == (FailureKind.CONNECT, True)


def test_a_new_transport_shares_no_connection_with_another(open_transport: Callable[[], Transport]) -> None:
    with WireServer(accept_all) as server:
        answer_of(open_transport(), post(server.url()))
        answer_of(open_transport(), post(server.url()))
        assert server.connections == 2


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_name_with_addresses_of_both_kinds_is_reached_at_either(transport: Transport, address: str) -> None:
    with WireServer(accept_all, address=address) as server:
        assert answer_of(transport, post(server.url(host="localhost"))).status == 202


def test_an_address_of_ipv6_is_one(transport: Transport) -> None:
    with WireServer(accept_all, address="::1") as server:
        assert answer_of(transport, post(server.url(host="[::1]"))).status == 202
        assert server.received[0].headers["host"] == f"[::1]:{server.port}"
    failure = failure_of(transport, post(f"http://[::1]:{closed_port()}/"))
    assert failure.kind is FailureKind.CONNECT
    assert "[::1]:" in failure.text


def test_a_connection_that_has_lived_long_takes_no_new_request(
    open_transport: Callable[[], Transport], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a server that has moved is found, though its old address goes on answering."""
    shortened = tuple(
        (option, 1 if option == pycurl.MAXLIFETIME_CONN else value)
        for option, value in _curl._CONSTANT_OPTIONS
    )
    assert shortened != _curl._CONSTANT_OPTIONS
    monkeypatch.setattr(_curl, "_CONSTANT_OPTIONS", shortened)
    transport = open_transport()
    with WireServer(accept_all) as server:
        latest = monotonic() + 20
        while server.connections < 2:
            assert monotonic() < latest
            assert answer_of(transport, post(server.url())).status == 202
            time.sleep(0.05)
        assert len(server.received) > 2


def test_a_connection_that_a_forked_child_holds_open_wakes_nobody_when_it_has_ended(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, forked, ended = threading.Event(), threading.Event(), threading.Event()

    def script(connection: Connection) -> None:
        connection.request()
        asked.set()
        assert forked.wait(20)
        connection.send(ACCEPTED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        connection.socket.shutdown(socket.SHUT_RDWR)  # a close would leave the child's copy of this end open
        ended.set()

    with WireServer(script) as server:
        transport.start(1, post(server.url()))
        while not asked.is_set():
            assert not transport.wait(0.01)
        child = os.fork()
        if not child:
            signal.pause()
            os._exit(0)
        try:
            forked.set()
            assert len(outcomes(transport, 1)) == 1
            assert ended.wait(20)
            waits = []
            select = selectors.DefaultSelector.select

            def counting(self: selectors.DefaultSelector, timeout: float | None = None) -> object:
                waits.append(timeout)
                return select(self, timeout)

            monkeypatch.setattr(selectors.DefaultSelector, "select", counting)
            assert not transport.wait(0.3)
            assert len(waits) < 10
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
