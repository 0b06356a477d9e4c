"""Tokens that are not good, over sockets, on every route by every method: refused, and the disk as it was before."""

import threading
import time
import zlib
from itertools import product

import pytest
from collector_kit import target
from hard_kit import bytes_written, rows, stored
from wire_kit import Wire, request

from infi.ramen_protocol import Rule, UnusableRule
from infi.ramen_server import CollectorServer, Limits, Purpose, Scope, ServerConfig, Settings, SqliteStore

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "SEARCH", "get"]
MESSAGE = target("the-one")
ROUTES = [
    MESSAGE,
    target("other", data_type="noise"),
    "/ramen/v1/metrics/1099/imx.totals.v1/",
    "/ramen/v1/metrics/1099/imx.totals.v1?version=3.0&reqid=the-one",
    "/ramen/v1/",
    "/ramen/v2/batch",
    "/ramen",
    "/",
    "/docs",
    "/metrics",
    "/metrics/",
    "//metrics",
    "/healthz/",
    "/healthz/../metrics",
    "/%6detrics",
    "/%ff%00",
    "http://x" + MESSAGE,
]
OPEN = {"/healthz": {"GET", "HEAD"}, "/readyz": {"GET", "HEAD"}}
"""What needs no token, and says nothing but whether it is well."""


class Tokens:
    """Headers by the kind of token that they present; all of them should be refused for ``MESSAGE``."""

    def __init__(self, settings, good):
        self.good = good
        self.secrets = {good}
        settings.add_token("narrow-sender", scope=Scope(("other",)))
        kinds = {
            "none": b"",
            "empty": b"X-API-Token:\r\n",
            "wrong": b"X-API-Token: %b\r\n" % (good[:-1] + ("A" if good[-1] != "A" else "B")).encode(),
            "a part": b"X-API-Token: %b\r\n" % good[:-1].encode(),
            "another case": b"X-API-Token: %b\r\n" % good.swapcase().encode(),
            "with a NUL's neighbour": b"X-API-Token: %b\x01\r\n" % good.encode(),
            "not ASCII": b"X-API-Token: \xff\xfe\r\n",
            "long": b"X-API-Token: %b\r\n" % (b"x" * 20_000),
            "twice": b"X-API-Token: %b\r\n" % good.encode() * 2,
            "good and wrong": b"X-API-Token: %b\r\nx-api-token: y\r\n" % good.encode(),
            "a list": b"X-API-Token: %b, %b\r\n" % (good.encode(), good.encode()),
            "bearer": b"Authorization: Bearer %b\r\n" % good.encode(),
            "basic": b"Authorization: Basic %b\r\n" % good.encode(),
            "underscores": b"X_API_TOKEN: %b\r\n" % good.encode(),
            "cookie": b"Cookie: X-API-Token=%b\r\n" % good.encode(),
        }
        for name, fields in (
            ("revoked", {}),
            ("reading", {"purpose": Purpose.READ}),
            ("another sender", {"scope": Scope(("other",))}),
            ("another serial", {"scope": Scope(("*",), ("7", "109", "10990"))}),
            ("nearly the sender", {"scope": Scope(("im", "imx-*", "IMX"))}),
        ):
            text = settings.add_token(name.replace(" ", "-"), **fields)
            self.secrets.add(text)
            kinds[name] = b"X-API-Token: %b\r\n" % text.encode()
        settings.revoke_token("revoked")
        self.kinds = kinds


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("refusals") / "data"
    with (
        CollectorServer(ServerConfig(directory, port=0, limits=Limits(min_free_bytes=0))) as server,
        Settings(directory) as settings,
    ):
        settings.add_rule(Rule(data_type="noise"))
        with Wire(server) as wire:
            assert wire.post("stored-before").status == 202
        yield server, Tokens(settings, server.first_token)


KINDS = sorted(
    [
        "none", "empty", "wrong", "a part", "another case", "with a NUL's neighbour", "not ASCII", "long", "twice",
        "good and wrong", "a list", "bearer", "basic", "underscores", "cookie", "revoked", "reading",
        "another sender", "another serial", "nearly the sender",
    ]
)  # fmt: skip


def allowed(kind, method, route, status):
    """Whether this status is a refusal that says no more than it must."""
    if kind == "reading" and route in ("/metrics", "/%6detrics") and method != "get":
        return status == (200 if method in ("GET", "HEAD") else 405)
    in_scope_elsewhere = kind in ("another sender", "another serial", "nearly the sender")
    if in_scope_elsewhere:  # a good token: it may learn which paths there are not
        return status in (400, 403, 404, 405)
    return status in (400, 401, 403, 405)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_good_token_every_route_refuses_every_method_and_the_disk_stays_as_it_was(place, kind):
    server, tokens = place
    assert sorted(tokens.kinds) == KINDS
    directory = server.config.data_dir
    before, files_before = rows(directory), bytes_written(directory)
    header = tokens.kinds[kind]
    for route, method in product(ROUTES, METHODS):
        body = zlib.compress(b'{"n": 1}')
        with Wire(server) as wire:
            wire.send(
                f"{method} {route} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Encoding: gzip\r\n".encode()
                + b"Content-Length: %d\r\n" % len(body) + header + b"\r\n" + body
            )  # fmt: skip
            raw = read_all(wire)
        status = int(raw[9:12])
        assert allowed(kind, method, route, status), (method, route, raw)
        assert not any(secret.encode() in raw for secret in tokens.secrets)
        if method != "HEAD" and status in (401, 403):
            assert b'"code":"UNAUTHORIZED"' in raw or b'"code":"FORBIDDEN"' in raw
    assert rows(directory) == before
    assert bytes_written(directory) == files_before


def read_all(wire):
    parts = []
    while data := wire.socket.recv(65536):
        parts.append(data)
    return b"".join(parts)


@pytest.mark.parametrize(("route", "methods"), OPEN.items())
def test_health_needs_no_token_and_takes_nothing(place, route, methods):
    server, _ = place
    before = rows(server.config.data_dir)
    for method in METHODS[:-1]:
        with Wire(server) as wire:
            wire.send(
                f"{method} {route} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{{}}".encode()
            )
            raw = read_all(wire)
        assert int(raw[9:12]) == (200 if method in methods else 405), method
    assert rows(server.config.data_dir) == before


def test_what_comes_after_a_body_is_no_header(place):
    """Trailers come when the head was judged, or with it in one packet: what they say must not depend on that."""
    server, tokens = place
    before = rows(server.config.data_dir)
    token = f"X-API-Token: {tokens.good}\r\n".encode()
    for in_head, trailers, status in (
        (b"", token, 401),
        (token, b"Content-Encoding: zstd\r\n" + token, 400),
        (token, b"a: b\r\n" * 5000, 400),
        (token, b"a: " + b"b" * 33_000 + b"\r\n", 400),
    ):
        head = f"POST {MESSAGE} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n".encode() + in_head
        for pause in (0, 0.05):
            with Wire(server) as wire:
                begin, rest = head + b"\r\n1\r\n{\r\n", b"0\r\n" + trailers + b"\r\n"
                if pause:
                    wire.send(begin)
                    time.sleep(pause)
                    wire.send(rest)
                else:
                    wire.send(begin + rest)
                assert wire.answer().status == status
    assert rows(server.config.data_dir) == before


def test_a_message_that_was_refused_for_its_token_left_no_key_and_is_stored_when_it_comes_with_a_good_one(
    place,
):
    server, tokens = place
    with Wire(server) as wire:
        answer = wire.send(request(tokens.good, "the-one")).answer()
        assert (answer.status, b"duplicate" in answer.body) == (202, False)
        answer = wire.send(request(tokens.good, "the-one")).answer()
        assert (answer.status, b"duplicate" in answer.body) == (202, True)
    assert [message.envelope.reqid for message in stored(server.config.data_dir)] == [
        "stored-before",
        "the-one",
    ]


def test_a_token_that_is_revoked_while_messages_come_stores_none_after_revoke_has_returned(tmp_path):
    """Also not one that was under way: its head was let in, its body came later."""
    directory = tmp_path / "data"
    with (
        CollectorServer(ServerConfig(directory, port=0, limits=Limits(min_free_bytes=0))) as server,
        Settings(directory) as settings,
    ):
        token = settings.add_token("leaving")
        revoked_at = []
        answers = []

        def post(worker):
            with Wire(server) as wire:
                for number in range(10_000):
                    sent = request(token, f"{worker}-{number}")
                    half = len(sent) - 1
                    wire.send(sent[:half])
                    late = bool(revoked_at)
                    status = wire.send(sent[half:]).answer().status
                    answers.append((late, status, f"{worker}-{number}"))
                    if status == 401:
                        return

        threads = [threading.Thread(target=post, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        while len(answers) < 50:
            time.sleep(0.001)
        with Wire(server) as slow, Wire(server) as other:
            body_to_come = request(token, "slow")
            slow.send(body_to_come[:-1])
            assert other.post("other").status == 202  # by now the head before it was let in
            assert settings.revoke_token("leaving")
            assert slow.send(body_to_come[-1:]).answer().status == 401
        revoked_at.append(True)
        for thread in threads:
            thread.join(30)
    assert [status for late, status, _ in answers if late] == [401] * sum(late for late, *_ in answers)
    accepted = {reqid for _, status, reqid in answers if status == 202}
    assert {message.envelope.reqid for message in stored(directory)} == accepted | {"other"}
    assert len(answers) - len(accepted) == 4


def test_with_no_token_at_all_nobody_gets_in(tmp_path):
    directory = tmp_path / "data"
    SqliteStore(directory).close()
    with Settings(directory) as settings:
        text = settings.add_token("only")
        settings.revoke_token("only")
    with CollectorServer(ServerConfig(directory, port=0, limits=Limits(min_free_bytes=0))) as server:
        assert server.first_token is None, "a token once revoked is no reason to make one for everything"
        with Wire(server) as wire:
            for token in (text, "None", "x" * 20, "''"):
                assert wire.send(request(token, "1")).answer().status == 401
    assert stored(directory) == []


@pytest.mark.parametrize(
    "values", [{"data_type": "a\nb"}, {"sender": "ü"}, {"category": ""}, {"data_type": "x" * 257}]
)
def test_a_rule_that_could_not_be_read_again_is_refused_and_the_collector_goes_on(tmp_path, values):
    directory = tmp_path / "data"
    with (
        CollectorServer(ServerConfig(directory, port=0, limits=Limits(min_free_bytes=0))) as server,
        Settings(directory) as settings,
        Wire(server) as wire,
    ):
        with pytest.raises(UnusableRule):
            settings.add_rule(Rule(**values))
        assert settings.list_rules() == []
        assert settings.add_rule(Rule(system_serial=7)).rule == Rule(system_serial="7")  # type: ignore[arg-type]
        assert wire.post("1").status == 202
