"""A reader in its thread meets every kind of server, one after the other turns honest: all arrives once, and in order."""

from __future__ import annotations

import datetime as dt
import email.utils
import re
import ssl
import threading
import time
from typing import TYPE_CHECKING

import pytest
import trustme
from test_hostile_server_kit import (
    CANARY,
    Client,
    arrived,
    lines,
    raw_server,
    read_request,
    tracebacks,
)

from infi.ramen_client.testing import (
    Accept,
    Drop,
    Endless,
    Hang,
    RamenServer,
    Raw,
    Received,
    Redirect,
    Refuse,
    Reply,
    Reset,
    SlowDrip,
    Status,
    StoreThenReset,
    Truncated,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_proxies_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


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


PAGE = b"<!DOCTYPE html><title>Please sign in</title>"
GZIP_BOMB = bytes.fromhex("1f8b0800000000000203ecc101010000008090feafee08") + bytes(5000)

HOSTILE: dict[str, Reply] = {
    "a page for everything": Status(200, PAGE),
    "a redirect to itself": Redirect("/ramen/v1/"),
    "no content": Status(204),
    "a page that is not there": Status(404, PAGE),
    "wrong method": Status(405, b"", (("Allow", "GET"),)),
    "proxy authentication": Status(407, PAGE, (("Proxy-Authenticate", "Basic realm=x"),)),
    "request time-out": Status(408),
    "misdirected": Status(421),
    "too early": Status(425),
    "legal reasons": Status(451, PAGE),
    "too many requests": Refuse("TOO_MANY_REQUESTS", "slowly"),
    "bad gateway": Status(502, PAGE),
    "unavailable": Refuse("UNAVAILABLE", "maintenance"),
    "unknown token": Refuse("UNAUTHORIZED", "who are you"),
    "forbidden": Status(403, PAGE),
    "an empty 202": Status(202),
    "half an answer": Truncated(),
    "bad chunks": Raw(b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n"),
    "an endless answer": Endless(),
    "a gzip bomb": Status(202, GZIP_BOMB, (("Content-Encoding", "gzip"),)),
    "closing at once": Raw(b""),
    "a reset": Reset(),
    "a reset before the body": Reset(before_body=True),
    "garbage": Raw(bytes(range(256)) * 10),
}


@pytest.mark.parametrize("reply", HOSTILE.values(), ids=HOSTILE)
def test_all_arrives_once_and_in_order_when_the_server_is_honest_again(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture, reply: Reply
) -> None:
    server.answer_with(*[reply] * 3)
    with client.running():
        pushed = client.push(5)
        client.wait_empty()
    assert arrived(server) == pushed
    assert server.duplicates == []
    assert client.counts() == {"pushed": 5, "accepted": 5}
    assert client.state()["failing_since"] is None
    begun, over = lines(caplog)
    assert re.search(r"delivery to http://127\.0\.0\.1:\d+ does not work: .*; retrying, \d waiting$", begun)
    assert re.search(r"works again after \d s \(failed attempts: \d+\); \d waiting$", over)
    assert tracebacks(caplog) == []


@pytest.mark.parametrize("reply", [Hang(), Endless(), SlowDrip(0.2)], ids=["hang", "endless", "slow-loris"])
def test_no_answer_outlasts_the_time_out(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture, reply: Reply
) -> None:
    client.config.server_timeout = 1
    server.answer_with(reply)
    with client.running():
        began = time.monotonic()
        pushed = client.push(2)
        client.wait_empty()
        assert time.monotonic() - began < 8  # the drip alone would take 24 s
    assert arrived(server) == pushed
    assert client.counts() == {"pushed": 2, "accepted": 2}
    assert len(lines(caplog)) == 2


def test_a_changed_time_out_holds_for_the_next_attempt(server: RamenServer, client: Client) -> None:
    server.answer_with(Hang(), Hang())
    client.config.server_timeout = 1
    with client.running():
        client.push()
        server.wait_for_received(2)
        client.config.server_timeout = 60
        server.answer_with(Accept())
        client.wait_empty()
    assert len(server.accepted) == 1


@pytest.mark.parametrize("times", [1, 7])
def test_what_was_stored_although_the_answer_was_lost_comes_again_under_its_own_reqid(
    server: RamenServer, client: Client, times: int
) -> None:
    server.answer_with(*[StoreThenReset()] * times)
    with client.running():
        pushed = client.push(3)
        client.wait_empty()
    assert arrived(server) == pushed
    assert {message.reqid for message in server.duplicates} == {pushed[0]}
    assert {message.path for message in server.duplicates} == {server.accepted[0].path}
    assert len(server.duplicates) == times
    assert client.counts() == {"pushed": 3, "accepted": 3}


def test_an_outage_loses_nothing_and_keeps_the_order(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with client.running():
        pushed = client.push(3)
        server.wait_for(3)
        client.wait_empty()
        server.stop()
        for _ in range(5):
            pushed += client.push(10)
        client.wait_until(lambda: client.state()["failures"] >= 5)
        server.start()
        client.wait_empty()
    assert arrived(server) == pushed
    assert client.counts() == {"pushed": 53, "accepted": 53}
    begun, over = lines(caplog)
    assert "refused the connection" in begun
    assert "works again" in over
    assert tracebacks(caplog) == []


# Captive portals and proxies


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed_and_the_token_goes_nowhere_else(
    server: RamenServer, client: Client, status: int
) -> None:
    seen: list[bytes] = []

    def listen(stream: socket.socket) -> None:
        seen.append(stream.recv(65536))
        stream.sendall(b'HTTP/1.1 202 Accepted\r\nContent-Length: 20\r\n\r\n{"code": "ACCEPTED"}')

    with raw_server(listen) as elsewhere, client.running():
        server.answer_with(*[Redirect(f"http://{elsewhere}/login", status)] * 3)
        pushed = client.push(2)
        client.wait_empty()
    assert seen == []
    assert arrived(server) == pushed
    assert {request.envelope.category for request in server.received} == {"metrics"}


@pytest.mark.parametrize(
    "reply",
    [
        Status(200, PAGE),
        Redirect("http://portal.invalid/"),
        Status(404, PAGE),
        Status(407, PAGE),
        Status(511, PAGE),
    ],
    ids=["200", "302", "404", "407", "511"],
)
def test_a_captive_portal_takes_nothing_however_long_it_lasts(
    server: RamenServer, client: Client, reply: Reply
) -> None:
    pushed = client.push(20)
    server.default = reply
    for _ in range(40):
        assert client.reader.consume_one() == client.reader.RETRY
    assert client.counts() == {"pushed": 20, "waiting": 20}
    server.default = Accept()
    assert client.reader.run(blocking=False) == 20
    assert arrived(server) == pushed


# Memory


def _resident_peak_kib(reset: bool = False) -> int:
    if reset:
        with open("/proc/self/clear_refs", "w") as clear:  # noqa: PTH123
            clear.write("5")
    with open("/proc/self/status") as status:  # noqa: PTH123
        return int(next(line for line in status if line.startswith("VmHWM:")).split()[1])


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 202 Accepted\r\nContent-Length: 209715200\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\n\r\n",
        b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\nc800000\r\n",
        b"HTTP/1.1 202 Accepted\r\nX: ",
        b"HTTP/1.1 500 No\r\nContent-Length: 209715200\r\n\r\n",
    ],
    ids=["announced", "until the end", "one chunk", "a header", "an error"],
)
def test_200_MB_of_answer_take_no_memory_and_no_message(  # noqa: N802
    server: RamenServer, client: Client, head: bytes
) -> None:
    piece = b" " * (1 << 20)
    begun = threading.Semaphore(0)

    def flood(stream: socket.socket) -> None:
        read_request(stream)
        begun.release()
        stream.sendall(head)
        for _ in range(200):
            stream.sendall(piece)

    client.push(2)
    with raw_server(flood) as hostname:
        client.config.hostname = hostname
        assert client.reader.consume_one() == client.reader.RETRY
        before = _resident_peak_kib(reset=True)
        for _ in range(3):
            assert client.reader.consume_one() == client.reader.RETRY
        assert _resident_peak_kib() - before < 8 * 1024
    assert begun.acquire(timeout=0)
    client.config.hostname = server.hostname
    assert client.reader.run(blocking=False) == 2


# TLS


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA) -> Iterator[RamenServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with RamenServer(token=CANARY, ssl_context=context) as server:
        yield server


def test_https_on_a_plain_port_and_http_on_a_tls_port_keep_everything(
    server: RamenServer,
    tls: RamenServer,
    authority: trustme.CA,
    client: Client,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    pushed = client.push(3)
    client.config.ca_file = str(tmp_path / "ca.pem")
    for hostname, with_tls, words in (
        (server.hostname, True, "does not speak TLS on this port: check the port, or set `ssl` to false"),
        (tls.hostname, False, "if it speaks TLS on this port, set `ssl` to true"),
    ):
        client.config.hostname, client.config.ssl = hostname, with_tls
        reader = client.new_reader()
        for _ in range(3):
            assert reader.consume_one() == reader.RETRY
        assert words in client.state()["last_error"]
    client.config.ssl = True
    assert client.new_reader().run(blocking=False) == 3
    assert arrived(tls) == pushed
    assert len(lines(caplog)) == 2
    assert tracebacks(caplog) == []


def test_a_certificate_of_nobody_keeps_everything_and_the_token(
    tls: RamenServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    client.config.hostname, client.config.ssl = tls.hostname, True
    client.push(2)
    assert client.new_reader().consume_one() == client.reader.RETRY
    (said,) = lines(caplog)
    assert "was not issued by an authority in" in said
    assert "`ca_file`" in said
    assert tls.received == []
    assert client.counts() == {"pushed": 2, "waiting": 2}


# The token


def test_a_refused_token_keeps_everything_and_a_mended_one_is_used_without_a_restart(
    server: RamenServer, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text("wrong-token\n")
    client.config.auth_token, client.config.auth_token_file = None, str(file)
    pushed = client.push(5)
    with client.running():
        client.wait_until(lambda: client.state()["failures"] >= 5)
        assert client.counts() == {"pushed": 5, "waiting": 5}
        file.unlink()  # a moment in which there is none
        client.wait_until(lambda: any("tries again" in line for line in lines(caplog)))
        file.touch(0o600)
        file.write_text(f"{CANARY}\n")
        client.wait_empty()
    assert arrived(server) == pushed
    assert client.counts() == {"pushed": 5, "accepted": 5}
    said = lines(caplog)
    assert "the token is refused (the server answered 401 UNAUTHORIZED" in said[0]
    assert "check auth_token or auth_token_file" in said[0]
    assert "the reader cannot go on, and tries again: auth_token_file" in said[1]
    assert tracebacks(caplog) == []
    assert "wrong-token" not in caplog.text


def test_a_token_mended_in_the_configuration_is_used_by_the_next_attempt(
    server: RamenServer, client: Client
) -> None:
    client.config.auth_token = "another"
    with client.running():
        client.push(2)
        client.wait_until(lambda: client.state()["failures"] >= 2)
        client.config.auth_token = CANARY
        client.wait_empty()
    assert len(server.accepted) == 2


# Pacing


def _times(server: RamenServer) -> list[float]:
    seen: list[float] = []
    script: list[Reply] = []

    def note(message: Received) -> Reply:
        seen.append(time.monotonic())
        return script.pop(0) if script else Accept()

    server.default = note
    server.script = script  # type: ignore[attr-defined]
    return seen


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_run_obeys_retry_after(server: RamenServer, client: Client, form: str, status: int) -> None:
    seen = _times(server)
    asked = "1"
    if form == "date":
        then = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=2)
        asked = email.utils.format_datetime(then, usegmt=True)
    server.script.append(Status(status, b"", (("Retry-After", asked),)))  # type: ignore[attr-defined]
    with client.running():
        client.push(2)
        server.wait_for(2)
        client.wait_empty()
    # A date has whole seconds, so the one of two seconds ahead is more than one away.
    assert seen[1] - seen[0] >= 0.95
    assert len(seen) == 3


def test_retry_after_outlives_the_reader_but_consume_one_does_not_wait_for_it(
    server: RamenServer, client: Client
) -> None:
    server.answer_with(Status(503, b"", (("Retry-After", "1800"),)))
    client.push(2)
    assert client.reader.run(blocking=False) == 0
    assert len(server.received) == 1
    assert client.new_reader().run(blocking=False) == 0
    assert client.new_reader().drain(0.05) is False
    with client.running():
        time.sleep(0.05)  # it would have sent within a millisecond
    assert len(server.received) == 1
    server.answer_with(Reset())
    assert client.reader.consume_one() == client.reader.RETRY
    attempts = len(server.received)
    assert attempts > 1
    # Another failure since does not shorten what the server asked for.
    assert client.new_reader().run(blocking=False) == 0
    assert len(server.received) == attempts
    assert client.reader.consume_one() == client.reader.ACCEPTED
    # It accepts again, so the rest need not wait.
    assert client.reader.run(blocking=False) == 1


def test_retry_after_is_capped_at_an_hour(server: RamenServer, client: Client) -> None:
    far = "Fri, 31 Dec 2999 23:59:59 GMT"
    for asked in ("99999999999999999999", "86400", far):
        server.answer_with(Status(503, b"", (("Retry-After", asked),)))
        client.push()
        assert client.reader.consume_one() == client.reader.RETRY
        left = client.server_row()["retry_at"] / 1000 - time.time()
        assert 3590 < left <= 3600 + client.config.retry_delay
        assert client.reader.consume_one() == client.reader.ACCEPTED
        assert client.server_row()["retry_at"] is None


def test_a_retry_after_that_is_none_is_ignored(server: RamenServer, client: Client) -> None:
    for asked in ("soon", "-1", "1e3", "", "0", "Mon, 01 Jan 2001 00:00:00 GMT", "1" * 1000):
        server.answer_with(Status(503, b"", (("Retry-After", asked),)))
    with client.running():
        client.push()
        server.wait_for(1)
        client.wait_empty()
    assert len(server.received) == 8


def test_retry_after_of_one_server_is_not_for_another(server: RamenServer, client: Client) -> None:
    server.answer_with(Status(503, b"", (("Retry-After", "1800"),)))
    client.push()
    assert client.reader.run(blocking=False) == 0
    with RamenServer(token=CANARY) as other:
        client.config.hostname = other.hostname
        assert client.reader.run(blocking=False) == 1


# Rules


def test_what_was_queued_before_a_rule_came_is_dropped_under_it_and_counted(
    server: RamenServer, client: Client
) -> None:
    for data_type in ("noise", "san_totals", "noise", "noise", "san_totals"):
        client.push(data_type=data_type)
    server.answer_with(Drop({"data_type": "noise"}))
    assert client.reader.run(blocking=False) == 5
    assert len(server.received) == 3
    assert client.counts() == {"pushed": 5, "accepted": 2, "dropped": 1, "blacklisted": 2}
    (rule,) = client.rules()
    assert (rule.rule.as_json(), rule.hits) == ({"data_type": "noise"}, 2)


def test_rules_survive_a_restart_and_go_on_counting(server: RamenServer, client: Client) -> None:
    server.answer_with(Drop({"category": "metrics", "data_version": 7}))
    client.push(3, version=7)
    assert client.reader.run(blocking=False) == 3
    client.push(2, version="7")
    client.push(1, version="07")
    assert client.new_reader().run(blocking=False) == 3
    assert [message.envelope.data_version for message in server.received] == ["7", "07"]
    (rule,) = client.rules()
    assert rule.hits == 4
    (held,) = client.reader.get_blacklist()
    assert (held.category, held.data_version) == ("metrics", "7")


def test_a_rule_that_comes_again_is_refreshed_not_added(server: RamenServer, client: Client) -> None:
    rule = {"system_serial": 1099, "data_version": 1}
    server.default = Drop(rule)
    client.config.blacklist_ttl = 1
    client.push(version=1)
    assert client.reader.consume_one() == client.reader.DROPPED
    (first,) = client.rules()
    client.wait_until(lambda: client.reader.get_blacklist() == [])
    client.push(version=1)
    client.push(version="1")
    assert client.reader.run(blocking=False) == 2
    (second,) = client.rules()
    assert second.last_seen_at_ms > first.last_seen_at_ms
    assert len(server.received) == 2
    assert client.counts() == {"pushed": 3, "dropped": 2, "blacklisted": 1}


def test_a_rule_that_an_operator_lifts_holds_back_nothing_more(server: RamenServer, client: Client) -> None:
    from infi.ramen_client.storage import remove_rule

    client.reader._config.max_in_flight = 1
    lifted = threading.Event()

    def reply(message: Received) -> Reply:
        if message.envelope.data_type == "last" and not lifted.is_set():
            (rule,) = client.rules()
            remove_rule(client.queue, rule.rule_id)
            lifted.set()
        return Accept()

    server.default = reply
    server.answer_with(Drop({"data_type": "noise"}))
    client.push(data_type="noise")
    client.push(data_type="noise")
    client.push(data_type="last")
    # Claimed together with the others, while the rule was held.
    client.push(data_type="noise")
    assert client.reader.run(blocking=False) == 4
    assert [message.envelope.data_type for message in server.accepted] == ["last", "noise"]


def test_a_rule_without_a_field_drops_its_own_message_alone(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer_with(Drop({}), Drop({"category": "metrics", "region": "eu"}))
    pushed = client.push(50)
    assert client.reader.run(blocking=False) == 50
    assert arrived(server) == pushed[2:]
    assert client.counts() == {"pushed": 50, "accepted": 48, "dropped": 2}
    first, second = lines(caplog)
    assert "cannot be applied: the rule names no field" in first
    assert "not known here: region" in second
