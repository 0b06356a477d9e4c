"""Every answer that a server, or somebody in its place, can give to one message: what becomes of it is the protocol's table.

The tables here are written from protocol section 1 alone; nothing of them comes from the package.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import TYPE_CHECKING

import pytest
from test_hostile_server_kit import CANARY, Client, arrived, raw_server, read_request

from infi.ramen_client.queue_reader import AuthenticationError, QueueReader
from infi.ramen_client.testing import Hang, RamenServer, Raw, Reply, Status

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path


class Fate(Enum):
    TAKEN = "accepted"
    DROPPED = "dropped"
    DEAD = "a dead letter, with the server's reason"
    DEAD_UNEXPLAINED = "a dead letter, without a reason of the server's"
    KEPT = "kept, to be sent again"
    KEPT_TOKEN = "kept, and the error is raised"


ABOUT_THE_MESSAGE = {400, 409, 411, 413, 414, 415, 422, 431}
REFUSALS = {"BAD_REQUEST", "NOT_FOUND", "PAYLOAD_TOO_LARGE", "UNSUPPORTED_MEDIA_TYPE"}
BODILESS = {204, 304}


def fate_of(status: int, code: str | None) -> Fate:
    """The protocol's table. ``code``: that of a protocol body; None: there is none."""
    if status == 202 and code == "ACCEPTED":
        return Fate.TAKEN
    if status == 202 and code == "DROPPED":
        return Fate.DROPPED
    if status in ABOUT_THE_MESSAGE:
        return Fate.DEAD if code in REFUSALS else Fate.DEAD_UNEXPLAINED
    if status == 404 and code in REFUSALS:
        return Fate.DEAD
    if status in {401, 403}:
        return Fate.KEPT_TOKEN
    return Fate.KEPT


@pytest.fixture
def server() -> Iterator[RamenServer]:
    with RamenServer(token=CANARY) as server:
        yield server


@pytest.fixture
def client(server: RamenServer, tmp_path: Path) -> Iterator[Client]:
    client = Client(tmp_path / "queue", server.hostname, server_timeout=1)
    yield client
    client.verify()
    client.close()


def try_one(client: Client, server: RamenServer, reply: Reply) -> Fate:
    """Send one message that gets this reply, then let the server be honest: nothing may be left of it all."""
    before = client.counts()
    (reqid,) = client.push()
    server.answer_with(reply)
    try:
        step = client.reader.consume_one()
    except AuthenticationError:
        fate = Fate.KEPT_TOKEN
    else:
        if step == QueueReader.ACCEPTED:
            fate = Fate.TAKEN
        elif step == QueueReader.DROPPED:
            fate = Fate.DROPPED
            if client.counts().get("dead", 0) > before.get("dead", 0):
                # The position of a dead letter is that of its message, so the newest is the last.
                (letter,) = (one for one in client.dead() if one.message.reqid == reqid)
                fate = Fate.DEAD if letter.death.code is not None else Fate.DEAD_UNEXPLAINED
        else:
            assert step == QueueReader.RETRY
            fate = Fate.KEPT
    kept = fate in {Fate.KEPT, Fate.KEPT_TOKEN}
    assert client.queue.size() == int(kept)
    # Honest again. An acceptance between keeps the server from becoming suspect, which is another test's matter.
    (after,) = client.push()
    while client.queue.size():
        assert client.reader.consume_one() == QueueReader.ACCEPTED
    assert arrived(server)[-2:] == [reqid, after] if kept else arrived(server)[-1] == after
    assert server.duplicates == []
    client.queue.discard_dead_letters()
    return fate


def complete(status: int, body: bytes) -> Reply:
    """The answer as a server sends it; where HTTP has no body, it is sent all the same."""
    if status in BODILESS:
        return Raw(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
    return Status(status, body, (("Content-Type", "application/json"),))


def protocol_body(code: str) -> bytes:
    return json.dumps({"code": code, "details": "in the server's words"}).encode()


BODIES: dict[str, tuple[bytes, str | None]] = {
    "no body": (b"", None),
    "a page": (b"<!DOCTYPE html><title>Sign in</title>", None),
    "ACCEPTED": (protocol_body("ACCEPTED"), "ACCEPTED"),
    "BAD_REQUEST": (protocol_body("BAD_REQUEST"), "BAD_REQUEST"),
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("hundreds", range(2, 6))
def test_each_status_has_the_outcome_that_the_protocol_names(
    server: RamenServer, client: Client, hundreds: int, body: str
) -> None:
    data, code = BODIES[body]
    statuses = range(100 * hundreds, 100 * hundreds + 100)
    outcomes = {status: try_one(client, server, complete(status, data)) for status in statuses}
    assert outcomes == {status: fate_of(status, None if status in BODILESS else code) for status in statuses}


@pytest.mark.parametrize(
    "code",
    [
        "ACCEPTED",
        "DROPPED",
        "BAD_REQUEST",
        "NOT_FOUND",
        "PAYLOAD_TOO_LARGE",
        "UNSUPPORTED_MEDIA_TYPE",
        "UNAUTHORIZED",
        "FORBIDDEN",
        "TOO_MANY_REQUESTS",
        "SOMETHING_NEW",
        "",
    ],
)
def test_each_code_counts_under_its_own_statuses_alone(
    server: RamenServer, client: Client, code: str
) -> None:
    statuses = sorted(
        {200, 201, 202, 302, 401, 403, 404, 405, 407, 408, 429, 500, 502, 503, *ABOUT_THE_MESSAGE}
    )
    outcomes = {status: try_one(client, server, Status(status, protocol_body(code))) for status in statuses}
    assert outcomes == {status: fate_of(status, code) for status in statuses}


def test_statuses_beyond_599_are_no_verdict(server: RamenServer, client: Client) -> None:
    for status in (600, 799, 999):
        assert try_one(client, server, Status(status, protocol_body("ACCEPTED"))) is Fate.KEPT
    for line in (b"HTTP/1.1 2020 X", b"HTTP/1.1 20 X", b"HTTP/1.1 000 X", b"HTTP/1.1 abc X", b"HTTP/1.1"):
        answer = line + b"\r\nContent-Length: 39\r\n\r\n" + protocol_body("ACCEPTED")
        assert try_one(client, server, Raw(answer)) is Fate.KEPT, line


INTERIM = [status for status in range(100, 200) if status != 101]


def test_an_interim_answer_and_then_nothing_keeps_the_message(server: RamenServer, client: Client) -> None:
    for status in range(100, 200):
        assert try_one(client, server, Raw(b"HTTP/1.1 %d X\r\n\r\n" % status)) is Fate.KEPT, status


def test_an_interim_answer_that_pretends_to_accept_keeps_the_message(
    server: RamenServer, client: Client
) -> None:
    body = protocol_body("ACCEPTED")
    for status in (100, 101, 102, 103, 199):
        raw = b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
        assert try_one(client, server, Raw(raw)) is Fate.KEPT, status


def test_an_interim_answer_and_then_silence_ends_with_the_time_out(
    server: RamenServer, client: Client
) -> None:
    def wait_for_ever(stream: socket.socket) -> None:
        read_request(stream)
        stream.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
        while stream.recv(65536):
            pass

    (reqid,) = client.push()
    with raw_server(wait_for_ever) as hostname:
        client.config.hostname = hostname
        assert client.reader.consume_one() == QueueReader.RETRY
    client.config.hostname = server.hostname
    assert client.reader.consume_one() == QueueReader.ACCEPTED
    assert arrived(server) == [reqid]
    assert try_one(client, server, Hang()) is Fate.KEPT


def test_an_interim_answer_is_followed_by_the_real_one(server: RamenServer, client: Client) -> None:
    accepted = b"HTTP/1.1 202 Accepted\r\nContent-Length: 20\r\n\r\n" + b'{"code": "ACCEPTED"}'
    for status in INTERIM:
        assert (
            try_one(client, server, Raw(b"HTTP/1.1 %d X\r\nA: b\r\n\r\n" % status + accepted)) is Fate.TAKEN
        )
    refused = b"HTTP/1.1 400 Bad\r\nContent-Length: 23\r\n\r\n" + b'{"code": "BAD_REQUEST"}'
    assert try_one(client, server, Raw(b"HTTP/1.1 100 X\r\n\r\n" + refused)) is Fate.DEAD
    # Nobody asked for another protocol: what follows 101 is none of HTTP.
    assert try_one(client, server, Raw(b"HTTP/1.1 101 X\r\n\r\n" + accepted)) is Fate.KEPT


ODD = {
    "nothing": b"",
    "a space": b" ",
    "null": b"null",
    "true": b"true",
    "a number": b"202",
    "a text": b'"ACCEPTED"',
    "a bare word": b"ACCEPTED",
    "a list": b"[]",
    "a list of one": b'[{"code": "ACCEPTED"}]',
    "an empty object": b"{}",
    "no code": b'{"details": null}',
    "a null code": b'{"code": null}',
    "a code in a list": b'{"code": ["ACCEPTED"]}',
    "a code in an object": b'{"code": {"code": "ACCEPTED"}}',
    "a code that is a number": b'{"code": 202}',
    "a code that is true": b'{"code": true}',
    "lower case": b'{"code": "accepted"}',
    "a key in upper case": b'{"CODE": "ACCEPTED"}',
    "spaces in the code": b'{"code": " ACCEPTED "}',
    "a line end in the code": b'{"code": "ACCEPTED\\n"}',
    "a code of another status": b'{"code": "BAD_REQUEST"}',
    "an unknown code": b'{"code": "QUEUED"}',
    "another word": b'{"status": "ACCEPTED"}',
    "inside something": b'{"result": {"code": "ACCEPTED"}}',
    "half of it": b'{"code": "ACCEP',
    "without its end": b'{"code": "ACCEPTED"',
    "twice": b'{"code": "ACCEPTED"}{"code": "ACCEPTED"}',
    "garbage behind": b'{"code": "ACCEPTED"} thanks',
    "garbage before": b'ok {"code": "ACCEPTED"}',
    "single quotes": b"{'code': 'ACCEPTED'}",
    "a comma too many": b'{"code": "ACCEPTED",}',
    "a comment": b'{"code": "ACCEPTED" /* ok */}',
    "not UTF-8": b'{"code": "ACCEPTED", "details": "\xff"}',
    "a byte order mark": b'\xef\xbb\xbf{"code": "ACCEPTED"}',
    "UTF-16": '{"code": "ACCEPTED"}'.encode("utf-16"),
    "a zero byte": b'{"code": "ACCEPTED"}\0',
    "NaN": b'{"code": "ACCEPTED", "details": NaN}',
    "gzip": bytes.fromhex("1f8b0800000000000003") + b"\0" * 20,
    "deep": b"[" * 20000,
    "deep and whole": b'{"code":"ACCEPTED","x":' + b"[" * 30000 + b"]" * 30000 + b"}",
    "a page": b"<html><body>Welcome to the hotel</body></html>",
    "65 KiB": b'{"code": "ACCEPTED"}' + b" " * (65 * 1024),
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
def test_a_202_that_is_not_the_servers_keeps_the_message(
    server: RamenServer, client: Client, body: bytes
) -> None:
    assert try_one(client, server, Status(202, body)) is Fate.KEPT


FINE = {
    "no details": b'{"code":"ACCEPTED"}',
    "details": '{"code":"ACCEPTED","details":"déjà vu"}'.encode(),
    "details of another kind": b'{"code":"ACCEPTED","details":[1,{"a":2}]}',
    "something new beside": b'{"code":"ACCEPTED","details":null,"trace":"abc"}',
    "blank space": b'\r\n\t {"code" : "ACCEPTED"} \n',
    "escapes": b'{"code":"\\u0041CCEPTED"}',
    "a rule": b'{"code":"ACCEPTED","rule":{"category":"metrics"}}',
    "63 KiB": b'{"code": "ACCEPTED"}' + b" " * (63 * 1024),
}


@pytest.mark.parametrize("body", FINE.values(), ids=FINE)
def test_an_acceptance_in_any_spelling_is_one(server: RamenServer, client: Client, body: bytes) -> None:
    assert try_one(client, server, Status(202, body)) is Fate.TAKEN
    assert client.rules() == []


USELESS_RULES = {
    "no rule": b"",
    "null": b', "rule": null',
    "no field": b', "rule": {}',
    "nulls": b', "rule": {"category": null, "sender": null}',
    "an unknown field": b', "rule": {"category": "metrics", "region": "eu"}',
    "an unknown field alone": b', "rule": {"region": "eu"}',
    "a list": b', "rule": ["metrics"]',
    "a text": b', "rule": "metrics"',
    "a list in a field": b', "rule": {"category": ["metrics"]}',
    "true in a field": b', "rule": {"category": true}',
    "empty text": b', "rule": {"category": ""}',
    "a long text": b', "rule": {"category": "' + b"m" * 300 + b'"}',
    "a long number": b', "rule": {"system_serial": ' + b"9" * 300 + b"}",
}


@pytest.mark.parametrize("rule", USELESS_RULES.values(), ids=USELESS_RULES)
def test_a_drop_with_a_rule_that_cannot_be_applied_drops_its_own_message_alone(
    server: RamenServer, client: Client, rule: bytes
) -> None:
    assert try_one(client, server, Status(202, b'{"code": "DROPPED"' + rule + b"}")) is Fate.DROPPED
    assert client.rules() == []
    assert client.counts() == {"pushed": 2, "accepted": 1, "dropped": 1}


HEADS = {
    "no status line": b"Content-Length: 20\r\n\r\n",
    "HTTP/0.9": b"",
    "HTTP/2": b"HTTP/2 202 Accepted\r\nContent-Length: 20\r\n\r\n",
    "another protocol": b"ICY 202 OK\r\nContent-Length: 20\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    "SMTP": b"220 mail ESMTP\r\n",
    "TLS": bytes.fromhex("15030100020246"),
    "zeros": bytes(100),
    "two lengths": b"HTTP/1.1 202 Accepted\r\nContent-Length: 20\r\nContent-Length: 40\r\n\r\n",
    "a negative length": b"HTTP/1.1 202 Accepted\r\nContent-Length: -1\r\n\r\n",
    "a longer length": b"HTTP/1.1 202 Accepted\r\nContent-Length: 200\r\n\r\n",
    "a shorter length": b"HTTP/1.1 202 Accepted\r\nContent-Length: 10\r\n\r\n",
    "chunks that are none": b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a chunk without its end": b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n",
    "chunks without the last": b'HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n{"code": "ACCEPTED"}\r\n',
    "a huge chunk": b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    "a head without its end": b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\n",
    "half a header": b"HTTP/1.1 202 Accepted\r\nContent-Le",
    "half a status line": b"HTTP/1.1 20",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_an_answer_that_is_no_http_or_not_whole_keeps_the_message(
    server: RamenServer, client: Client, head: bytes
) -> None:
    whole = head.endswith(b"\r\n\r\n") or not head
    assert try_one(client, server, Raw(head + (b'{"code": "ACCEPTED"}' if whole else b""))) is Fate.KEPT
