"""The test server: what it remembers, what it refuses, how it starts and stops."""

from __future__ import annotations

import gc
import gzip
import http.client
import json
import socket
import ssl
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st
from test_testing_kit_client import (
    TIMEOUT_SECONDS,
    all_threads,
    connection_threads,
    dial,
    post,
    post_on,
    post_to,
    read_to_end,
    request_bytes,
    target,
)

from infi.ramen_client.testing import Accept, Hang, RamenServer, Received, Refuse, Reset, Status
from infi.ramen_client.testing._connection import (
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    BadHttp,
    Connection,
    parse_head,
)
from infi.ramen_protocol import Code, Envelope


@pytest.fixture
def server():
    with RamenServer() as running:
        yield running


class TestBooks:
    def test_a_message_is_accepted_and_remembered_as_it_came(self, server):
        body = zlib.compress(b'{"temperature": 21.5}')
        answer = post(server, target("a&b ü"), body, headers={"Content-Encoding": "gzip", "X-Odd": "yes"})
        assert (answer.status, answer.json()) == (202, {"code": "ACCEPTED", "details": None})
        (message,) = server.accepted
        assert message.envelope == Envelope("metrics", 1099, "imx", "san_totals", "v1", "3.0.0.1", "a&b ü")
        assert (message.path, message.reqid) == ("/ramen/v1/metrics/1099/imx.san_totals.v1/", "a&b ü")
        assert (message.body, message.payload, message.json()) == (
            body,
            b'{"temperature": 21.5}',
            {"temperature": 21.5},
        )
        assert message.headers["x-odd"] == "yes"
        assert (message.reply, message.connection) == (Accept(), 1)
        assert server.received == [message]
        assert (server.duplicates, server.refused) == ([], [])

    def test_the_same_path_and_reqid_is_a_duplicate_whatever_its_version_and_payload(self, server):
        post(server, target("7"))
        answer = post(server, target("7", system_version="4.0"), b"[]")
        assert answer.json()["code"] == "ACCEPTED"
        assert [message.payload for message in server.accepted] == [b'{"a": 1}']
        assert [message.payload for message in server.duplicates] == [b"[]"]

    def test_the_same_reqid_on_another_path_is_another_message(self, server):
        post(server, target("7"))
        post(server, target("7", data_type="events"))
        assert len(server.accepted) == 2
        assert server.duplicates == []

    def test_the_script_comes_first_and_in_order_then_the_default(self, server):
        server.answer_with(Status(503), Refuse("BAD_REQUEST", "no"))
        server.answer_with(Accept("third"))
        server.default = Refuse(Code.TOO_MANY_REQUESTS, headers=(("Retry-After", "3"),))
        answers = [post(server, target(str(number))) for number in range(5)]
        assert [answer.status for answer in answers] == [503, 400, 202, 429, 429]
        assert answers[1].json() == {"code": "BAD_REQUEST", "details": "no"}
        assert answers[2].json()["details"] == "third"
        assert answers[3].headers["retry-after"] == "3"
        assert [message.reqid for message in server.accepted] == ["2"]
        assert [message.reqid for message in server.received] == list("01234")

    def test_only_what_was_stored_makes_a_later_one_a_duplicate(self, server):
        server.answer_with(Status(503), Reset())
        post(server)
        with pytest.raises(ConnectionError):
            post(server)
        post(server)
        assert len(server.accepted) == 1
        assert server.duplicates == []

    def test_a_function_as_default_sees_the_message_and_chooses(self, server):
        seen = []

        def choose(message: Received):
            seen.append(message.reply)
            return Status(503) if message.json() == [1] else Accept("chosen")

        server.default = choose
        assert post(server, body=b"[1]").status == 503
        assert post(server, body=b"[2]").json()["details"] == "chosen"
        assert seen == [None, None]
        assert [message.reply for message in server.received] == [Status(503), Accept("chosen")]

    @pytest.mark.parametrize("function", [lambda _: 1 / 0, lambda _: None])
    def test_a_function_that_fails_is_answered_with_500_and_told_to_the_test(self, function):
        with pytest.raises(AssertionError, match="reply function") as leaving, RamenServer() as server:  # noqa: PT012
            server.default = function
            assert post(server).json()["code"] == "INTERNAL_ERROR"
            with pytest.raises(AssertionError, match="reply function") as waiting:
                server.wait_for(1)
            assert server.accepted == []
        assert isinstance(waiting.value.__cause__, ZeroDivisionError | TypeError)
        assert leaving.value.__cause__ is waiting.value.__cause__

    def test_what_is_no_reply_is_refused_when_the_script_is_written(self, server):
        with pytest.raises(TypeError, match="no reply"):
            server.answer_with(Accept(), 503)
        assert post(server).status == 202

    def test_waiting_ends_when_the_messages_are_there(self, server):
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(server.wait_for, 2)
            arriving = pool.submit(server.wait_for_received, 3)
            for reqid in "1", "1":
                post(server, target(reqid))
            assert not waiting.done()
            post(server, target("2"))
            waiting.result(TIMEOUT_SECONDS)
            arriving.result(TIMEOUT_SECONDS)

    def test_waiting_in_vain_says_what_came_instead(self, server):
        server.answer_with(Status(503), Accept(), Accept(), Hang())
        for _ in range(3):
            post(server)
        post(server, "/elsewhere")
        with pytest.raises(AssertionError) as failure:
            server.wait_for(2, timeout_seconds=0.01)
        text = str(failure.value)
        assert "2 messages were to be accepted within 0.01 s: 1 accepted of 3 received" in text
        for part in ("1 Status", "2 Accept", "1 duplicates", "1 refused", "NOT_FOUND", "1 replies still"):
            assert part in text
        assert server.token not in repr(server) + repr(server.received) + repr(server.refused)

    def test_the_lists_keep_as_many_as_asked_and_nothing_else_is_forgotten(self):
        with RamenServer(keep=1) as server:
            for reqid in "1", "2", "3", "1":
                post(server, target(reqid))
            assert [message.reqid for message in server.accepted] == ["3"]
            assert [message.reqid for message in server.duplicates] == ["1"]
            server.wait_for(3, timeout_seconds=0)
            server.wait_for_received(4, timeout_seconds=0)

    def test_parallel_connections_lose_and_mix_nothing(self, server):
        def send(worker: int) -> list[int]:
            with closing(http.client.HTTPConnection(server.hostname, timeout=TIMEOUT_SECONDS)) as connection:
                return [
                    post_on(
                        connection, server.token, target(f"{worker}-{n}"), b"[%d, %d]" % (worker, n)
                    ).status
                    for n in range(40)
                ]

        with ThreadPoolExecutor(8) as pool:
            assert [set(statuses) for statuses in pool.map(send, range(8))] == [{202}] * 8
        assert {message.reqid for message in server.accepted} == {
            f"{w}-{n}" for w in range(8) for n in range(40)
        }
        assert all(message.reqid == "{}-{}".format(*message.json()) for message in server.accepted)
        assert {message.connection for message in server.accepted} == set(range(1, 9))

    def test_each_reply_of_the_script_is_given_once_to_parallel_requests(self, server):
        server.answer_with(*[Status(500 + number) for number in range(40)])
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda number: post(server, target(str(number))).status, range(40)))
        assert sorted(statuses) == [500 + number for number in range(40)]


class TestProtocol:
    @pytest.mark.parametrize("token", ["", "wrong", "token-of-the-test-serve", "tök"])
    def test_a_wrong_token_is_refused_and_takes_no_reply(self, server, token):
        server.answer_with(Accept("the script"))
        answer = post_to(server.hostname, token.encode().decode("latin-1"), target())
        assert (answer.status, answer.json()["code"]) == (401, "UNAUTHORIZED")
        assert server.received == []
        assert server.refused[0].reply.code is Code.UNAUTHORIZED
        assert post(server).json()["details"] == "the script"

    def test_a_request_without_a_token_is_refused(self, server):
        with closing(http.client.HTTPConnection(server.hostname, timeout=TIMEOUT_SECONDS)) as connection:
            connection.request("POST", target(), b"{}")
            assert connection.getresponse().status == 401

    def test_a_token_of_any_characters_is_compared_as_utf_8(self):
        with RamenServer(token="geheim-ü") as server:
            assert post_to(server.hostname, "geheim-ü".encode().decode("latin-1"), target()).status == 202

    @pytest.mark.parametrize(
        ("path", "status", "code"),
        [
            ("/", 404, "NOT_FOUND"),
            ("/ramen/v2/batch", 404, "NOT_FOUND"),
            ("/ramen/v1/me%20trics/1/a.b.c/?version=1&reqid=1", 400, "BAD_REQUEST"),
            ("/ramen/v1/metrics/1099/imx.san_totals.v1/?version=3.0.0.1", 400, "BAD_REQUEST"),
        ],
    )
    def test_what_is_no_message_is_refused_by_the_protocol(self, server, path, status, code):
        answer = post(server, path)
        assert (answer.status, answer.json()["code"]) == (status, code)
        assert answer.json()["details"]
        assert (server.refused[0].method, server.refused[0].target) == ("POST", path)
        assert server.received == []

    @pytest.mark.parametrize(
        ("label", "encode"),
        [
            ("gzip", zlib.compress),
            ("gzip", gzip.compress),
            ("gzip", bytes),
            ("deflate", zlib.compress),
            ("identity", bytes),
        ],
    )
    def test_every_coding_of_the_protocol_is_taken_off(self, server, label, encode):
        assert post(server, body=encode(b'{"a": 2}'), headers={"Content-Encoding": label}).status == 202
        assert server.accepted[0].payload == b'{"a": 2}'

    @pytest.mark.parametrize(
        "body", [b"1" * 10_000, b"[" * 50_000 + b"]" * 50_000, b'"\\ud800"', b"1e400", b' {"a":1}\n']
    )
    def test_json_that_python_dislikes_is_still_json(self, server, body):
        assert post(server, body=body).status == 202

    @pytest.mark.parametrize(
        "body", [b"", b"{", b"NaN", b"[-Infinity]", b"\xff", b"{} {}", b"\xef\xbb\xbf{}"]
    )
    def test_a_body_that_is_not_json_is_refused(self, server, body):
        answer = post(server, body=body)
        assert (answer.status, answer.json()["code"]) == (400, "BAD_REQUEST")
        assert len(server.refused) == 1

    def test_an_unknown_coding_is_answered_with_those_that_are_known(self, server):
        answer = post(server, headers={"Content-Encoding": "br"})
        assert (answer.status, answer.json()["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
        assert answer.headers["accept-encoding"] == "zstd, gzip, deflate"

    def test_a_bomb_is_refused_before_it_explodes(self, server):
        piece = zlib.compressobj(9)
        bomb = b"".join(piece.compress(bytes(1 << 20)) for _ in range(65)) + piece.flush()
        answer = post(server, body=bomb, headers={"Content-Encoding": "gzip"})
        assert (answer.status, answer.json()["code"]) == (413, "PAYLOAD_TOO_LARGE")

    def test_another_method_than_post_is_refused(self, server):
        answer = post(server, method="GET", body=None)
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert server.refused[0].method == "GET"


class TestHttp:
    def test_a_connection_is_kept_for_the_next_request_also_after_a_refusal(self, server):
        with closing(http.client.HTTPConnection(server.hostname, timeout=TIMEOUT_SECONDS)) as connection:
            post_on(connection, server.token, target("1"))
            assert post_on(connection, "wrong", target("2"), b"x" * 100_000).status == 401
            assert post_on(connection, server.token, target("3"), b"no json").status == 400
            post_on(connection, server.token, target("4"))
        assert [(message.reqid, message.connection) for message in server.accepted] == [("1", 1), ("4", 1)]
        assert [refused.connection for refused in server.refused] == [1, 1]

    def test_requests_sent_ahead_are_answered_in_turn(self, server):
        with dial(server) as sock:
            sock.sendall(
                request_bytes(server, target("1"))
                + request_bytes(server, target("2"), more="Connection: close\r\n")
            )
            assert read_to_end(sock).count(b"HTTP/1.1 202") == 2
        assert [message.reqid for message in server.accepted] == ["1", "2"]

    def test_a_request_that_comes_byte_by_byte_is_read(self, server):
        with dial(server) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in request_bytes(server, more="Connection: close\r\n"):
                sock.sendall(bytes([byte]))
            assert read_to_end(sock).startswith(b"HTTP/1.1 202 Accepted\r\n")

    def test_no_answer_waits_for_more_to_send_with_it(self, server):
        options = []

        def look(message: Received):
            with server._listener._lock:
                (connection,) = server._listener._connections
            options.append(connection._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            return Accept()

        server.default = look
        post(server)
        assert options[0] != 0

    @pytest.mark.parametrize("end", ["HTTP/1.1 and close", "HTTP/1.0", "a closing reply"])
    def test_a_connection_that_shall_not_be_kept_is_closed_in_order(self, server, end):
        data = request_bytes(server, more="Connection: Close\r\n" if end == "HTTP/1.1 and close" else "")
        if end == "HTTP/1.0":
            data = data.replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        if end == "a closing reply":
            server.answer_with(Accept(headers=(("Connection", "close"),)))
        with dial(server) as sock:
            sock.sendall(data)
            answer = read_to_end(sock)
        assert answer.count(b"Connection: close") == 1
        assert answer.endswith(b'{"code":"ACCEPTED","details":null}')

    def test_a_client_that_waits_for_continue_gets_it(self, server):
        data = request_bytes(server, body=b"[1]", more="Expect: 100-continue\r\nConnection: close\r\n")
        with dial(server) as sock:
            sock.sendall(data[:-3])
            assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            sock.sendall(b"[1]")
            assert read_to_end(sock).startswith(b"HTTP/1.1 202")

    @pytest.mark.parametrize(
        ("data", "status"),
        [
            (b"\x16\x03\x01\x02\x00", 400),
            (b"hello\r\n\r\n", 400),
            (b"POST / HTTP/2.0\r\n\r\n", 400),
            (b"POST  / HTTP/1.1\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nno colon\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nA: b\nC: d\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\n\r\n", 411),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 411),
            (b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1), 413),
            (b"POST / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
            (b"POST /" + b"a" * (MAX_HEAD_BYTES + 1), 431),
            (b"POST /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n", 431),
        ],
    )
    def test_garbage_is_answered_and_the_connection_closed(self, server, data, status):
        with dial(server) as sock:
            sock.sendall(data)
            assert read_to_end(sock).startswith(b"HTTP/1.1 %d " % status)
        assert [refused.reply.code for refused in server.refused] == [status]
        assert post(server).status == 202

    def test_the_refusal_of_a_large_body_reaches_a_client_that_sends_all_of_it_first(self, server):
        with dial(server) as sock:
            sock.sendall(b"POST / HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n")
            sock.sendall(bytes(16 << 20))
            assert read_to_end(sock).startswith(b"HTTP/1.1 413 ")

    @pytest.mark.parametrize("part", [0, 10, -3])
    def test_a_client_that_leaves_in_the_middle_leaves_no_thread(self, server, part):
        with dial(server) as sock:
            sock.sendall(request_bytes(server)[:part])
            server_side = wait_for_connection_threads(server, 1)
        for thread in server_side:
            thread.join(TIMEOUT_SECONDS)
            assert not thread.is_alive()
        assert server.received == []

    @given(st.lists(st.integers(1, 60), max_size=8))
    def test_requests_are_read_however_they_were_cut_into_pieces(self, lengths):
        data = b"".join(b"POST /%d HTTP/1.1\r\nContent-Length: 4\r\n\r\nab\r\n" % n for n in (1, 2))
        pieces = []
        rest = data
        for length in lengths:
            pieces.append(rest[:length])
            rest = rest[length:]
        connection = Connection(InPieces([*filter(None, pieces), *[bytes([byte]) for byte in rest], b""]), 1)
        for wanted in "/1", "/2":
            head = connection.read_head()
            assert (head.target, connection.read_body(head)) == (wanted, b"ab\r\n")
        assert connection.read_head() is None

    def test_a_client_that_sends_more_has_not_left(self):
        sock = InPieces([b"more", b"and more", b""])
        assert Connection(sock, 1).left_within(None)
        assert sock.pieces == []

    @given(
        st.binary(max_size=300)
        | st.lists(
            st.sampled_from([b"POST / HTTP/1.1", b"\r\n", b"a: b", b":", b"\x00", b" ", b"Content-Length: 5"])
        ).map(b"".join)
    )
    def test_a_head_of_any_bytes_is_parsed_or_refused(self, data):
        try:
            head = parse_head(data)
        except BadHttp as bad:
            assert bad.status in {400, 411, 413, 431}  # noqa: PT017 - both outcomes are right
        else:
            assert 0 <= head.length <= MAX_BODY_BYTES


class InPieces:
    """A socket that receives just these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def recv(self, size: int) -> bytes:
        return self.pieces.pop(0)

    def settimeout(self, seconds: float | None) -> None:
        pass


def wait_for_connection_threads(server: RamenServer, count: int) -> list[threading.Thread]:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while len(threads := connection_threads(server)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return threads


class TestLife:
    def test_an_outage_refuses_connections_and_ends_on_the_same_port(self, server):
        hostname = server.hostname
        post(server, target("1"))
        for _ in range(3):
            server.stop()
            with pytest.raises(ConnectionRefusedError):
                dial(server)
            server.start()
            assert server.hostname == hostname
            assert post(server, target("1")).status == 202
        assert (len(server.accepted), len(server.duplicates)) == (1, 3)

    def test_nobody_else_can_take_the_port_during_an_outage(self, server):
        server.stop()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", server.port))

    def test_the_end_of_the_block_gives_the_port_back(self):
        with RamenServer() as server:
            pass
        with socket.socket() as other:
            other.bind(("127.0.0.1", server.port))

    def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_open(self, server):
        second = RamenServer(port=server.port)
        with pytest.raises(OSError, match="in use"):
            second.start()

    def test_starting_and_stopping_twice_changes_nothing(self, server):
        server.start()
        assert post(server).status == 202
        server.stop()
        server.stop()
        server.close()
        server.close()
        server.start()
        assert post(server).status == 202

    def test_a_server_that_was_never_started_has_no_port_and_can_be_closed(self):
        server = RamenServer()
        with pytest.raises(RuntimeError, match="start"):
            server.port  # noqa: B018
        server.stop()
        server.close()

    def test_stopping_cuts_connections_in_every_state_and_leaves_no_thread(self, server):
        server.answer_with(Hang())
        with dial(server) as idle, dial(server) as in_head, dial(server) as in_body, dial(server) as hanging:
            in_head.sendall(request_bytes(server)[:20])
            in_body.sendall(request_bytes(server, "/other")[:-2])
            hanging.sendall(request_bytes(server))
            server.wait_for_received(1)
            wait_for_connection_threads(server, 4)
            server.stop()
            assert all_threads(server) == []
            for sock in (idle, in_head, in_body, hanging):
                assert read_to_end(sock) == b""

    def test_stopping_cuts_an_answer_that_nobody_reads(self, server):
        server.answer_with(Status(200, bytes(64 << 20)))
        with dial(server) as sock:
            sock.sendall(request_bytes(server))
            server.wait_for_received(1)
            server.stop()
            assert all_threads(server) == []

    def test_a_reply_function_may_stop_the_server(self, server):
        def choose(message: Received):
            server.stop()
            return Accept()

        server.default = choose
        with pytest.raises((ConnectionError, http.client.BadStatusLine)):
            post(server)
        server.default = Accept()
        server.start()
        assert post(server).status == 202
        assert len(server.duplicates) == 1

    def test_a_reply_function_that_never_returns_is_named(self, server, monkeypatch):
        monkeypatch.setattr("infi.ramen_client.testing._listener._JOIN_SECONDS", 0.01)
        entered, go = threading.Event(), threading.Event()

        def choose(message: Received):
            entered.set()
            go.wait(TIMEOUT_SECONDS)
            return Accept()

        server.default = choose
        with dial(server) as sock:
            sock.sendall(request_bytes(server))
            assert entered.wait(TIMEOUT_SECONDS)
            (thread,) = connection_threads(server)
            with pytest.raises(RuntimeError, match="reply function"):
                server.stop()
        go.set()
        thread.join(TIMEOUT_SECONDS)

    def test_a_stopped_server_that_is_forgotten_leaves_nothing_open(self):
        server = RamenServer()
        server.start()
        server.stop()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del server
            gc.collect()
        assert caught == []

    def test_starting_and_stopping_is_quick(self):
        begin = time.monotonic()
        for _ in range(20):
            with RamenServer() as server, dial(server):
                wait_for_connection_threads(server, 1)
        assert time.monotonic() - begin < 10


class TestTls:
    @pytest.fixture
    def contexts(self):
        authority = trustme.CA()
        ours = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(ours)
        theirs = ssl.create_default_context()
        authority.configure_trust(theirs)
        return ours, theirs

    def test_messages_come_by_tls(self, contexts):
        ours, theirs = contexts
        with RamenServer(ssl_context=ours) as server:
            connection = http.client.HTTPSConnection(server.hostname, timeout=TIMEOUT_SECONDS, context=theirs)
            with closing(connection):
                for reqid in "1", "2":
                    assert post_on(connection, server.token, target(reqid)).status == 202
                answer = post_on(connection, server.token, target("3"), headers={"Connection": "close"})
                assert answer.json()["code"] == "ACCEPTED"
            assert len(server.accepted) == 3

    def test_a_close_without_a_length_is_a_clean_end_of_tls(self, contexts):
        ours, theirs = contexts
        with (
            RamenServer(ssl_context=ours) as server,
            theirs.wrap_socket(dial(server), server_hostname="127.0.0.1", suppress_ragged_eofs=False) as sock,
        ):
            sock.sendall(request_bytes(server, more="Connection: close\r\n"))
            assert read_to_end(sock).startswith(b"HTTP/1.1 202")

    def test_a_plain_request_to_a_tls_port_is_cut(self, contexts):
        with RamenServer(ssl_context=contexts[0]) as server:
            with pytest.raises((ConnectionError, http.client.BadStatusLine)):
                post(server)
            assert server.received == []

    def test_an_untrusting_client_gets_no_further(self, contexts):
        with RamenServer(ssl_context=contexts[0]) as server:
            with dial(server) as sock, pytest.raises(ssl.SSLCertVerificationError):
                ssl.create_default_context().wrap_socket(sock, server_hostname="127.0.0.1")
            assert server.received == []

    def test_stopping_cuts_handshakes_and_hanging_requests(self, contexts):
        ours, theirs = contexts
        with RamenServer(ssl_context=ours) as server:
            server.answer_with(Hang())
            with dial(server), theirs.wrap_socket(dial(server), server_hostname="127.0.0.1") as hanging:
                hanging.sendall(request_bytes(server))
                server.wait_for_received(1)
                wait_for_connection_threads(server, 2)
                server.stop()
                assert all_threads(server) == []

    def test_a_reset_is_a_reset_under_tls_too(self, contexts):
        ours, theirs = contexts
        with RamenServer(ssl_context=ours) as server:
            server.answer_with(Reset())
            with theirs.wrap_socket(dial(server), server_hostname="127.0.0.1") as sock:
                sock.sendall(request_bytes(server))
                plain = socket.socket(fileno=sock.detach())  # the TLS layer would report a reset as an end
                plain.settimeout(TIMEOUT_SECONDS)
                with plain, pytest.raises(ConnectionResetError):
                    read_to_end(plain)


def test_the_example_of_the_class_holds():
    with RamenServer() as server:
        for reply in (Status(503), Accept()):
            server.answer_with(reply)
            post(server)
        server.wait_for(1)
        assert json.loads(server.accepted[0].payload) == {"a": 1}
