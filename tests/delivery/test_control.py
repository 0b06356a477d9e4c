"""Waking, cancelling, closing, forking; descriptors and threads left behind."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from wire import (
    Connection,
    WireServer,
    accept_all,
    answer,
    answer_of,
    closed_port,
    failure_of,
    outcomes,
    post,
    unanswering_port,
)

from infi.ramen_client.delivery.transport import Answer, Request, Route, Transport

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent


def hang_after_request(connection: Connection) -> None:
    connection.request()
    connection.hang()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def settle(condition: Callable[[], bool], within_seconds: float = 10) -> None:
    """Wait for the clean-up thread's work to show."""
    latest = time.monotonic() + within_seconds
    while not condition():
        assert time.monotonic() < latest
        gc.collect()
        time.sleep(0.01)


def test_wait_returns_empty_when_its_time_is_over(transport: Transport) -> None:
    assert transport.wait(0) == []
    assert transport.wait(-1) == []
    assert transport.wait(0.05) == []


def test_wake_ends_a_wait_from_another_thread(transport: Transport) -> None:
    with WireServer(hang_after_request) as server:
        transport.start(1, post(server.url()))
        waker = threading.Timer(0.1, transport.wake)
        waker.start()
        began = time.monotonic()
        assert transport.wait(60) == []
        assert time.monotonic() - began < 10
        waker.join()
        assert transport.in_flight == 1


def test_wake_before_a_wait_ends_the_next_one_and_only_that(transport: Transport) -> None:
    for _ in range(100_000):  # more than a pipe holds
        transport.wake()
    began = time.monotonic()
    assert transport.wait(60) == []
    assert time.monotonic() - began < 10
    assert transport.wait(0.3) == []
    assert time.monotonic() - began >= 0.3


def test_no_wake_up_is_lost_however_they_fall(transport: Transport) -> None:
    stop = threading.Event()
    heard = threading.Semaphore(0)

    def ring() -> None:
        while not stop.is_set():
            transport.wake()
            assert heard.acquire(timeout=20)

    waker = threading.Thread(target=ring)
    waker.start()
    for _ in range(3000):
        began = time.monotonic()
        assert transport.wait(15) == []
        assert time.monotonic() - began < 10
        heard.release()
    stop.set()
    heard.release()
    waker.join()


def test_wake_ends_a_wait_from_a_signal_handler(transport: Transport) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: transport.wake())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        began = time.monotonic()
        assert transport.wait(60) == []
        assert time.monotonic() - began < 10
    finally:
        signal.signal(signal.SIGALRM, before)


class _StopNow(Exception):
    pass


def keep_busy(transport: Transport, request: Request) -> None:
    tag = 0
    latest = time.monotonic() + 10
    while time.monotonic() < latest:
        while transport.in_flight < 8:
            tag += 1
            transport.start(tag, request)
        transport.wait(1)


def test_an_exception_out_of_a_signal_handler_comes_through_under_full_load(transport: Transport) -> None:
    def raise_it(*_: object) -> None:
        raise _StopNow

    before = signal.signal(signal.SIGALRM, raise_it)
    gc.disable()  # Python swallows what is raised while a collector's callback runs (hypothesis has one)
    try:
        with WireServer(accept_all) as server:
            request = post(server.url())
            for _ in range(20):
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with pytest.raises(_StopNow):
                    keep_busy(transport, request)
                settled = outcomes(transport, transport.in_flight)
                assert all(isinstance(one, Answer) or "interrupted" in one.text for one in settled.values())
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()


def test_a_finished_transfer_is_reported_once_although_woken(transport: Transport) -> None:
    with WireServer(accept_all) as server:
        for tag in range(50):
            transport.start(tag, post(server.url()))
            transport.wake()
            assert set(outcomes(transport, 1)) == {tag}
        assert transport.wait(0) == []


def test_a_cancelled_transfer_is_neither_sent_on_nor_reported(transport: Transport) -> None:
    closed = threading.Event()

    def script(connection: Connection) -> None:
        if (request := connection.request()) and request.body == b"long":
            connection.hang()
            closed.set()
        else:
            connection.send(b"HTTP/1.1 202 OK\r\nContent-Length: 0\r\n\r\n")

    with WireServer(script) as server:
        transport.start(1, post(server.url(), b"long", timeout_seconds=60))
        transport.wait(0.01)
        server.wait_for_requests(1)
        transport.start(2, post(server.url(), b"short"))
        transport.cancel(1)
        assert transport.in_flight == 1
        assert closed.wait(10)
        assert set(outcomes(transport, 1)) == {2}
        transport.start(1, post(server.url(), b"short"))
        assert set(outcomes(transport, 1)) == {1}
        transport.cancel(77)


def test_one_that_is_cancelled_before_its_first_byte_never_arrives(transport: Transport) -> None:
    with WireServer(accept_all) as server:
        transport.start(1, post(server.url(), b"never"))
        transport.cancel(1)
        assert transport.wait(0.05) == []
        answer_of(transport, post(server.url(), b"this"))
        assert [one.body for one in server.received] == [b"this"]


def test_cancelling_a_failure_that_waits_to_be_reported_drops_it(transport: Transport) -> None:
    transport.start(1, post("http://h\u00e9/"))
    assert transport.in_flight == 1
    transport.cancel(1)
    assert (transport.in_flight, transport.wait(0)) == (0, [])


@pytest.mark.parametrize("what", ["connect", "answer", "tls"])
def test_close_returns_at_once_whatever_hangs(
    open_transport: Callable[..., Transport], ca_file: Path, what: str
) -> None:
    with WireServer(hang_after_request) as server, unanswering_port() as port:
        url = {
            "connect": f"http://127.0.0.1:{port}/",
            "answer": server.url(),
            "tls": server.url("https"),
        }[what]
        transport = open_transport(ca_file=ca_file)
        for tag in range(4):
            transport.start(tag, post(url, timeout_seconds=60))
        transport.wait(0.2)
        began = time.monotonic()
        transport.close()
        assert time.monotonic() - began < 1
        assert transport.in_flight == 0
        if what != "connect":
            server.wait_until_no_connection()


def test_a_transport_that_is_dropped_without_close_is_cleaned_up() -> None:
    with WireServer(accept_all) as server:
        transport = Transport(Route(None, None))
        answer_of(transport, post(server.url()))
        gone = weakref.ref(transport)
        del transport
        assert gone() is None
        server.wait_until_no_connection()


def test_descriptors_stay_flat_over_failing_requests(transport: Transport, ca_file: Path) -> None:
    with WireServer(answer(b"HTTP/1.1 202 OK\r\nContent-Length: 9\r\n\r\n")) as server:
        urls = [server.url(), f"http://127.0.0.1:{closed_port()}/", server.url("https"), "http://h.invalid/"]
        for url in urls:
            failure_of(transport, post(url))
        before = descriptors()
        for turn in range(200):
            failure_of(transport, post(urls[turn % 4]))
        settle(lambda: descriptors() <= before + 2)


def test_descriptors_and_threads_stay_flat_over_opened_and_closed_transports() -> None:
    with WireServer(hang_after_request) as server:
        before: tuple[int, int] | None = None
        for _ in range(50):
            transport = Transport(Route(None, None))
            transport.start(1, post(server.url(), timeout_seconds=60))
            server.wait_for_requests(0)
            transport.wait(0.01)
            transport.close()
            del transport
            if before is None:
                server.wait_until_no_connection()
                settle(lambda: "clean-up" not in str(threading.enumerate()))
                before = descriptors(), threading.active_count()
        settle(
            lambda: (
                before is not None and descriptors() <= before[0] and threading.active_count() <= before[1]
            )
        )


def run_python(
    script: str, *arguments: str, inside: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a script with this directory's helpers in a process of its own."""
    return subprocess.run(
        [*inside, sys.executable, "-W", "ignore", "-c", script, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )


FREEING = """
import gc, time, pycurl
from wire import *
from infi.ramen_client.delivery.transport import Transport, Route

def handles():
    gc.collect()
    return sum(isinstance(one, (pycurl.Curl, pycurl.CurlMulti)) for one in gc.get_objects())

with WireServer(accept_all) as server:
    transport = Transport(Route(None, None))
    for tag in range(8):
        transport.start(tag, post(server.url()))
    outcomes(transport, 8)
    assert handles() == 9, handles()
    transport.close()
    del transport
    latest = time.monotonic() + 10
    while handles():
        assert time.monotonic() < latest, handles()
        time.sleep(0.01)
"""


def test_closing_frees_every_handle() -> None:
    done = run_python(FREEING)
    assert (done.returncode, done.stderr) == (0, "")


FORKING = """
import ctypes, gc, os, sys, time
import trustme, ssl
from wire import *
from infi.ramen_client.delivery.transport import Transport, Route

fork = {"hooked": os.fork, "unseen": ctypes.PyDLL(None).fork}[sys.argv[1]]
authority = trustme.CA()
authority.cert_pem.write_to_path(sys.argv[2])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
authority.issue_cert("127.0.0.1").configure_cert(context)
server = WireServer(accept_all, tls=context).__enter__()  # no with: the child must not end it
transport = Transport(Route(None, sys.argv[2]))
request = post(server.url("https"))
answer_of(transport, request)
transport.start(5, request)
early = dict(transport.wait(0))
quiet = Transport(Route(None, None))
child = fork()
if child == 0:
    for use in (lambda: transport.start(1, request), lambda: transport.wait(0), lambda: transport.cancel(5)):
        try:
            use()
        except RuntimeError as error:
            assert "forked" in str(error)
        else:
            os._exit(9)
    quiet.wake()
    transport.close()
    if sys.argv[1] == "hooked":
        own = Transport(Route(None, sys.argv[2]))
        answer_of(own, post(server.url("https"), b"child"))
        own.close()
    del transport
    gc.collect()
    if sys.argv[1] == "unseen":
        os._exit(0)  # Python itself may hang in a thread or at its end after such a fork
    sys.exit(0)  # the whole end of an interpreter
latest = time.monotonic() + 30
while True:
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        break
    if time.monotonic() > latest:
        os.kill(child, 9)
        sys.exit("the child hangs")
    time.sleep(0.01)
assert status == 0, status
assert (early or outcomes(transport, 1))[5].status == 202
for _ in range(3):
    answer_of(transport, request)
began = time.monotonic()
assert quiet.wait(0.3) == []
assert time.monotonic() - began >= 0.3  # the child's wake() is not heard here
mine = {one.connection for one in server.received if one.body == b"{}"}
print("connections", len(mine))
transport.close()
quiet.close()
"""


@pytest.mark.parametrize("kind", ["hooked", "unseen"])
def test_a_forked_child_never_touches_its_parents_connections(kind: str, tmp_path: Path) -> None:
    done = run_python(FORKING, kind, str(tmp_path / "ca.pem"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["connections", "1"]


ENDING = """
import sys, time
from wire import *
from infi.ramen_client.delivery.transport import Transport, Route
with WireServer(lambda connection: (connection.request(), connection.hang())) as server:
    transport = Transport(Route(None, None))
    for tag in range(4):
        transport.start(tag, post(server.url(), timeout_seconds=60))
    transport.wait(0.05)
    if sys.argv[1] == "closed":
        transport.close()
    if sys.argv[1] == "in a cycle":
        me = [transport]
        me.append(me)
        del transport
"""


@pytest.mark.parametrize("how", ["closed", "left open", "in a cycle"])
def test_a_process_ends_quietly_with_transfers_in_flight(how: str) -> None:
    done = run_python(ENDING, how)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


RESOLVING = """
import socket, sys, time
from wire import *
from infi.ramen_client.delivery.transport import Transport, Route, Failure, FailureKind
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 53))

def timed(what, *arguments):
    began = time.monotonic()
    result = what(*arguments)
    assert time.monotonic() - began < 1, (what, time.monotonic() - began)
    return result

transport = Transport(Route(None, None))
transport.start(1, post("http://hangs.example.com/", timeout_seconds=60))
assert transport.wait(0.3) == []
timed(transport.cancel, 1)
failure = failure_of(transport, post("http://hangs.example.com/", timeout_seconds=0.3))
assert failure.kind is FailureKind.TIMEOUT and not failure.connected, failure
assert "was not resolved" in failure.text, failure
with WireServer(accept_all) as server:
    for tag in range(4):
        transport.start(tag, post(f"http://hangs{tag}.example.com/", timeout_seconds=60))
    transport.start(9, post(server.url()))
    assert set(outcomes(transport, 1)) == {9}
    timed(transport.close)
    fresh = Transport(Route(None, None))
    answer_of(fresh, post(server.url()))
    left = Transport(Route(None, None))
    left.start(1, post("http://hangs.example.com/", timeout_seconds=60))
    left.wait(0.2)
print("until here")
"""


@pytest.mark.system  # the programs unshare and ip make it a network of its own
def test_a_resolver_that_hangs_holds_up_neither_cancel_nor_close_nor_the_time_out_nor_the_end() -> None:
    namespace = ("unshare", "--user", "--map-root-user", "--net", "--mount")
    # A name server that takes questions and never answers.
    prepare = (
        'ip link set lo up && echo nameserver 127.0.0.1 >$0 && mount --bind $0 /etc/resolv.conf && exec "$@"'
    )
    began = time.monotonic()
    done = run_python(RESOLVING, inside=(*namespace, "sh", "-c", prepare, os.devnull))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "until here\n")
    assert time.monotonic() - began < 5  # the resolver's own patience is 10 s
