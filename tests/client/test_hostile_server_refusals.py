"""Messages that are refused for good, servers that only seem to refuse them, and what an operator reads of both."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

import pytest
from test_hostile_server_kit import CANARY, Client, arrived, lines, tracebacks

from infi.ramen_client.errors import AuthenticationError
from infi.ramen_client.testing import (
    Accept,
    Drop,
    Hang,
    RamenServer,
    Raw,
    Received,
    Redirect,
    Refuse,
    Reply,
    Reset,
    Status,
    Truncated,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server() -> Iterator[RamenServer]:
    with RamenServer(token=CANARY) as server:
        yield server


@pytest.fixture
def client(server: RamenServer, tmp_path: Path) -> Iterator[Client]:
    client = Client(tmp_path / "queue", server.hostname)
    yield client
    client.verify()
    client.close()


PROXY_PAGE = Status(400, b"<html>400 The plain HTTP request was sent to HTTPS port</html>")


def test_a_refusal_with_a_reason_makes_a_dead_letter_at_once_and_the_queue_goes_on(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer_with(
        Accept(),
        Refuse("BAD_REQUEST", "no such field"),
        Refuse("PAYLOAD_TOO_LARGE"),
        Refuse("NOT_FOUND", "x"),
    )
    pushed = client.push(6)
    assert client.reader.run(blocking=False) == 6
    assert len(server.received) == 6
    assert arrived(server) == [pushed[0], *pushed[4:]]
    assert client.counts() == {"pushed": 6, "accepted": 3, "dead": 3}
    letters = client.dead()
    assert [letter.message.reqid for letter in letters] == pushed[1:4]
    assert [(one.death.status, one.death.code, one.death.details) for one in letters] == [
        (400, "BAD_REQUEST", "no such field"),
        (413, "PAYLOAD_TOO_LARGE", ""),
        (404, "NOT_FOUND", "x"),
    ]
    first, second, third = lines(caplog)
    assert (
        "refused a message for good: the server answered 400 BAD_REQUEST: no such field; metrics/san_totals"
        in first
    )
    assert pushed[1] in first
    assert first.endswith("is kept as a dead letter")
    assert "413 PAYLOAD_TOO_LARGE" in second
    assert "404 NOT_FOUND: x" in third


def test_dead_letters_can_be_sent_again_under_their_reqids(server: RamenServer, client: Client) -> None:
    server.answer_with(Refuse("BAD_REQUEST"), Accept(), Refuse("BAD_REQUEST"))
    pushed = client.push(4)
    client.reader.run(blocking=False)
    assert client.queue.retry_dead_letters([letter.message.position for letter in client.dead()]) == 2
    assert client.reader.run(blocking=False) == 2
    assert arrived(server) == [pushed[1], pushed[3], pushed[0], pushed[2]]
    assert client.counts() == {"pushed": 4, "accepted": 4}


def test_a_thousand_refusals_are_counted_not_logged_one_by_one(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.default = Refuse("BAD_REQUEST", "no")
    client.push(300)
    assert client.reader.run(blocking=False) == 300
    assert client.counts() == {"pushed": 300, "dead": 300}
    _, rest = lines(caplog)
    assert rest == "imx_1099: 299 more messages were refused in the same words; they are kept as dead letters"


def test_refusals_in_other_words_are_not_counted_together(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer_with(
        Refuse("BAD_REQUEST", "no"), Refuse("BAD_REQUEST", "no"), Refuse("BAD_REQUEST", "never")
    )
    client.push(3)
    assert client.reader.run(blocking=False) == 3
    first, rest, other = lines(caplog)
    assert "BAD_REQUEST: no; " in first
    assert rest.startswith("imx_1099: 1 more messages were refused in the same words")
    assert "BAD_REQUEST: never; " in other


def test_dead_letters_take_a_tenth_of_the_queue_and_no_more(server: RamenServer, tmp_path: Path) -> None:
    client = Client(tmp_path / "queue", server.hostname, max_queue_size=400 * 1024)
    server.default = Refuse("BAD_REQUEST")
    noise = bytes(range(256)) * 8
    for round_ in range(5):
        client.writer.push_many(
            ("metrics", "big", "v1", json.dumps([round_, n, noise.hex()[n:]])) for n in range(30)
        )
        client.reader.run(blocking=False)
    books = client.queue.books()
    kept = sum(len(letter.message.data) for letter in client.dead())
    assert 0 < kept <= 40 * 1024
    assert (books.dead, books.dead + books.dead_discarded) == (len(client.dead()), 150)
    client.verify()
    client.close()


# The suspect server


def test_four_unexplained_refusals_cost_four_messages_and_the_fifth_brings_all_back(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    pushed = client.push(8)
    server.default = PROXY_PAGE
    for count in range(1, 5):
        assert client.reader.consume_one() == client.reader.DROPPED
        assert client.counts() == {"pushed": 8, "waiting": 8 - count, "dead": count}
    assert [letter.death.code for letter in client.dead()] == [None] * 4
    assert client.reader.consume_one() == client.reader.RETRY
    assert client.counts() == {"pushed": 8, "waiting": 8}
    for _ in range(10):
        assert client.reader.consume_one() == client.reader.RETRY
    assert client.counts() == {"pushed": 8, "waiting": 8}
    assert client.server_row()["suspect_since"] is not None
    assert "the server is suspect: it refuses one message after the other" in client.state()["last_error"]
    assert client.state()["failing_since"] is not None
    refused, put_back, suspect = lines(caplog)
    assert "refused a message: the server, or a proxy before it, answered with status 400 without" in refused
    assert "comes back if it refuses on without speaking the protocol" in refused
    assert "refused 5 messages in a row without speaking the protocol: they are back in the queue" in put_back
    assert "is suspect" in suspect
    assert "check hostname, ssl and proxy; retrying, 8 waiting" in suspect

    server.default = Accept()
    assert client.reader.run(blocking=False) == 8
    assert arrived(server) == pushed
    assert client.server_row()["suspect_since"] is None
    assert client.state()["failing_since"] is None
    assert "works again" in lines(caplog)[-1]


def test_a_run_brings_the_five_back_in_their_order(server: RamenServer, client: Client) -> None:
    server.answer_with(Accept(), Accept(), *[PROXY_PAGE] * 9)
    pushed = client.push(100)
    with client.running():
        client.wait_empty()
    assert arrived(server) == pushed
    assert server.duplicates == []
    assert client.counts() == {"pushed": 100, "accepted": 100}


def test_an_acceptance_between_starts_the_count_anew(server: RamenServer, client: Client) -> None:
    for taken in (Accept(), Drop(None)):
        server.answer_with(*[PROXY_PAGE] * 4, taken)
    server.answer_with(*[PROXY_PAGE] * 4)
    client.push(14)
    assert client.reader.run(blocking=False) == 14
    assert client.counts() == {"pushed": 14, "accepted": 1, "dropped": 1, "dead": 12}


@pytest.mark.parametrize(
    "between", [Refuse("BAD_REQUEST"), Status(503), Reset()], ids=["explained", "503", "reset"]
)
def test_what_is_no_acceptance_does_not_start_the_count_anew(
    server: RamenServer, client: Client, between: Reply
) -> None:
    server.answer_with(*[PROXY_PAGE] * 4, between, PROXY_PAGE)
    client.push(10)
    with client.running():
        client.wait_empty()
    explained = isinstance(between, Refuse) and between.code == "BAD_REQUEST"
    assert client.counts() == (
        {"pushed": 10, "accepted": 9, "dead": 1} if explained else {"pushed": 10, "accepted": 10}
    )


def test_a_suspect_server_that_explains_itself_refuses_for_good(server: RamenServer, client: Client) -> None:
    server.answer_with(*[PROXY_PAGE] * 5)
    pushed = client.push(6)
    for _ in range(5):
        client.reader.consume_one()
    server.answer_with(Refuse("BAD_REQUEST", "no"), PROXY_PAGE)
    assert client.reader.consume_one() == client.reader.DROPPED
    (letter,) = client.dead()
    assert (letter.message.reqid, letter.death.code) == (pushed[0], "BAD_REQUEST")
    # It did not accept anything, so it is suspect still.
    assert client.reader.consume_one() == client.reader.RETRY
    assert client.reader.run(blocking=False) == 5
    assert arrived(server) == pushed[1:]


CONSUME = """
import sys
from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.queue_reader import QueueReader
with QueueReader(QueueReaderConfig.load(sys.argv[1], environ={})) as reader:
    print(*(reader.consume_one() for _ in range(int(sys.argv[2]))))
"""


def _in_another_process(client: Client, tmp_path: Path, times: int) -> list[int]:
    file = tmp_path / "ramen.toml"
    config = client.config
    file.touch(0o600)
    file.write_text(
        f'sender = "imx"\nsystem_serial = 1099\nsystem_version = "3.0.0.1"\nqueue_dir = "{config.queue_dir}"\n'
        f'hostname = "{config.hostname}"\nauth_token = "{CANARY}"\nssl = false\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", CONSUME, str(file), str(times)], capture_output=True, text=True, check=True
    )
    return [int(word) for word in done.stdout.split()]


def test_the_count_and_the_suspicion_outlive_reader_and_process(
    server: RamenServer, client: Client, tmp_path: Path
) -> None:
    pushed = client.push(8)
    server.default = PROXY_PAGE
    assert client.reader.consume_one() == client.reader.DROPPED
    assert client.new_reader().consume_one() == client.reader.DROPPED
    dropped, retry = client.reader.DROPPED, client.reader.RETRY
    assert _in_another_process(client, tmp_path, 2) == [dropped, dropped]
    assert client.counts() == {"pushed": 8, "waiting": 4, "dead": 4}
    assert client.new_reader().consume_one() == retry
    assert client.counts() == {"pushed": 8, "waiting": 8}
    assert _in_another_process(client, tmp_path, 6) == [retry] * 6
    assert client.new_reader().run(blocking=False) == 0
    assert client.counts() == {"pushed": 8, "waiting": 8}
    server.default = Accept()
    assert _in_another_process(client, tmp_path, 2) == [client.reader.ACCEPTED] * 2
    assert client.server_row()["suspect_since"] is None
    assert client.new_reader().run(blocking=False) == 6
    assert arrived(server) == pushed


def test_the_five_are_those_of_one_server(server: RamenServer, client: Client) -> None:
    """Another host's refusals are another host's."""
    server.default = PROXY_PAGE
    with RamenServer(token=CANARY) as other:
        other.default = PROXY_PAGE
        client.push(8)
        for hostname in (server.hostname, other.hostname) * 4:
            client.config.hostname = hostname
            assert client.reader.consume_one() == client.reader.DROPPED
        client.push()
        assert client.reader.consume_one() == client.reader.RETRY
    assert client.counts() == {"pushed": 9, "waiting": 5, "dead": 4}


def test_dead_letters_of_the_run_stay_while_others_make_room(server: RamenServer, tmp_path: Path) -> None:
    """Four that may yet come back are more than the share: they stay, and the fifth brings them all back."""
    client = Client(tmp_path / "queue", server.hostname, max_queue_size=400 * 1024)
    server.default = PROXY_PAGE
    noise = "".join(f"{n * n:x}" for n in range(12000))
    pushed = client.writer.push_many(("metrics", "big", "v1", json.dumps([n, noise])) for n in range(6))
    for _ in range(4):
        assert client.reader.consume_one() == client.reader.DROPPED
    assert sum(len(letter.message.data) for letter in client.dead()) > 40 * 1024
    assert client.reader.consume_one() == client.reader.RETRY
    server.default = Accept()
    assert client.reader.run(blocking=False) == 6
    assert arrived(server) == pushed
    client.verify()
    client.close()


# What an operator reads

SAID: dict[str, tuple[Reply, str]] = {
    "portal": (
        Status(200, b"<html>", (("Content-Type", "text/html"),)),
        (
            "something that is no Ramen server answered with status 200 without a protocol body (6 bytes of text/html): "
            "check hostname, ssl and proxy"
        ),
    ),
    "redirect": (
        Redirect("http://portal.invalid/login?token=1"),
        (
            "something that is no Ramen server answered with status 302 without a protocol body, redirecting to "
            "http://portal.invalid/login: check hostname, ssl and proxy"
        ),
    ),
    "unavailable": (
        Refuse("UNAVAILABLE", "maintenance until noon"),
        (
            "no message is taken now (the server answered 503 UNAVAILABLE: maintenance until noon): "
            "look at the server, its log and its disk"
        ),
    ),
    "too many": (
        Refuse("TOO_MANY_REQUESTS"),
        (
            "no more is taken for now (the server answered 429 TOO_MANY_REQUESTS): nothing is to be done, unless it lasts: "
            "then raise the limit"
        ),
    ),
    "bad gateway": (
        Status(502, b"<html>bad gateway"),
        (
            "the server, or a proxy before it, answered with status 502 without a protocol body (17 bytes): "
            "look at the server, and at the proxy if there is one"
        ),
    ),
    "token": (
        Refuse("FORBIDDEN", "not for this system"),
        (
            "the token is refused (the server answered 403 FORBIDDEN: not for this system): check auth_token or "
            "auth_token_file, and that the token is meant for this server"
        ),
    ),
    "hostile words": (
        Refuse("UNAVAILABLE", "a\nb\x1b[31m\u202e" + "x" * 5000),
        "no message is taken now (the server answered 503 UNAVAILABLE: a b [31m "
        + "x" * 490
        + "…): look at the server, its log and its disk",
    ),
}


@pytest.mark.parametrize("kind", SAID)
def test_what_is_said_of_an_answer_is_one_line_that_says_what_to_do(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    reply, text = SAID[kind]
    server.answer_with(*[reply] * 3)
    client.push(2)
    for _ in range(3):
        if kind == "token":
            with pytest.raises(AuthenticationError) as raised:
                client.reader.consume_one()
            assert str(raised.value) == text
        else:
            assert client.reader.consume_one() == client.reader.RETRY
    assert client.state()["last_error"] == text
    assert lines(caplog) == [
        f"imx_1099: delivery to http://{server.hostname} does not work: {text}; retrying, 2 waiting"
    ]


@pytest.mark.parametrize(
    "reply",
    [Reset(), Raw(b""), Truncated(), Raw(b"SSH-2.0-OpenSSH_9.2p1\r\n"), Hang()],
    ids=["reset", "closed", "truncated", "ssh", "hang"],
)
def test_what_is_said_of_a_broken_connection_is_one_line_without_a_traceback(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture, reply: Reply
) -> None:
    client.config.server_timeout = 1
    server.answer_with(*[reply] * (1 if isinstance(reply, Hang) else 6))
    client.push()
    assert client.reader.consume_one() == client.reader.RETRY
    (said,) = lines(caplog)
    assert said.startswith(f"imx_1099: delivery to http://{server.hostname} does not work: ")
    assert said.endswith("; retrying, 1 waiting")
    assert tracebacks(caplog) == []


def test_a_changed_reason_is_said_at_most_once_a_minute(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer_with(*[Status(502), Refuse("UNAVAILABLE")] * 5)
    client.push()
    for _ in range(10):
        assert client.reader.consume_one() == client.reader.RETRY
    assert len(lines(caplog)) == 1


# The token


def _echo(message: Received) -> Reply:
    """A server that repeats what it was sent, as debug pages do."""
    token = message.headers["x-api-token"]
    number = message.json()["n"]
    words = f"you sent X-API-Token: {token}"
    script: list[Reply] = [
        Refuse("BAD_REQUEST", words),
        Status(400, words.encode(), (("Content-Type", f"text/{token}"),)),
        Drop({"category": "metrics", token: "1"}, words),
        Drop({"category": f"metrics {token}"}, words),
        Status(202, json.dumps({"code": "ACCEPTED", "details": words, "rule": token}).encode()),
    ]
    return script[number] if number < len(script) else Accept(words)


KEEP: list[tuple[str, bytes, tuple[tuple[str, str], ...]]] = [
    ("503", b'{"code": "UNAVAILABLE", "details": "%b"}', ()),
    ("401", b'{"code": "UNAUTHORIZED", "details": "not %b"}', ()),
    ("403", b"%b", ()),
    ("200", b"<html>%b", (("Content-Type", "text/%s"), ("Retry-After", "%s"))),
    ("302", b"", (("Location", "http://127.0.0.1:1/%s/?x=%s"), ("Server", "%s"))),
    ("502", b"", (("Content-Type", "%s"),)),
]


def test_a_canary_token_is_nowhere_but_on_the_wire(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    said = [repr(client.config), repr(client.reader), repr(client.writer), str(vars(client.reader)["_queue"])]
    server.default = _echo
    client.push(8)
    for status, template, headers in KEEP:
        body = template.replace(b"%b", CANARY.encode())
        named = tuple((name, value.replace("%s", CANARY)) for name, value in headers)
        server.answer_with(Status(int(status), body, named))
        try:
            assert client.reader.consume_one() == client.reader.RETRY
        except AuthenticationError as error:
            said.append("".join(traceback.format_exception(error)))
        said.append(str(client.state()) + str(client.server_row()))
        assert "the answer repeats the token, so it is not shown" in client.state()["last_error"]
        assert status in client.state()["last_error"]
    assert client.reader.run(blocking=False) == 8
    assert client.counts() == {"pushed": 8, "accepted": 4, "dropped": 2, "dead": 2}
    said += [repr(client.dead()), repr(client.rules()), repr(client.reader.get_blacklist())]
    server.answer_with(Refuse("UNAUTHORIZED", f"not {CANARY}"), Status(400, CANARY.encode()))
    assert client.reader.test_connection() is False
    assert client.reader.test_connection() is False
    # A password in a proxy's URL is as secret.
    client.config.proxy = "http://user:" + CANARY + "@127.0.0.1:1"
    client.push()
    client.new_reader().run(blocking=False)
    said.append(str(client.state()) + repr(client.config))
    lines(caplog, logging.DEBUG)
    assert CANARY not in "".join(said)
    assert CANARY not in caplog.text
    assert CANARY.encode() not in client.files()
    assert {message.headers["x-api-token"] for message in server.received} == {CANARY}


def test_what_an_operator_does_meanwhile_does_not_touch_the_message_that_is_under_way(
    server: RamenServer, client: Client
) -> None:
    """Dead letters that come back before it, and a removal behind it: only what was answered is settled."""
    server.answer_with(Refuse("BAD_REQUEST"), Accept(), Refuse("BAD_REQUEST"))
    pushed = client.push(8)
    for _ in range(3):
        client.reader.consume_one()
    once = iter([True])

    def reply(message: Received) -> Reply:
        if next(once, False):
            assert client.queue.retry_dead_letters([letter.message.position for letter in client.dead()]) == 2
            taken = client.queue.take_oldest()
            assert taken is not None
            assert taken.reqid == pushed[0]
        return Accept()

    server.default = reply
    with client.running():
        client.wait_empty()
    assert sorted(arrived(server)) == sorted(pushed[1:])
    assert arrived(server)[:2] == [pushed[1], pushed[3]]
    assert server.duplicates == []
    assert client.counts() == {"pushed": 8, "accepted": 7, "purged": 1}
