"""nginx and HAProxy in front of the server: what they say themselves is no verdict, and every message arrives once."""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from real_programs import free_port, haproxy, nginx
from test_hostile_server_kit import CANARY, Client, arrived, lines, tracebacks

from infi.ramen_client.diagnosis import diagnose
from infi.ramen_client.testing import Accept, Hang, RamenServer, StoreThenReset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Issue = Callable[..., Path]
    NewClient = Callable[..., Client]

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_proxies")]

PAST = {
    "not_before": dt.datetime(2010, 1, 1, tzinfo=dt.UTC),
    "not_after": dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
}
FUTURE = {
    "not_before": dt.datetime(2090, 1, 1, tzinfo=dt.UTC),
    "not_after": dt.datetime(2095, 1, 1, tzinfo=dt.UTC),
}


@pytest.fixture(autouse=True)
def _programs(need_program: Callable[[str], None]) -> None:
    for name in ("nginx", "haproxy"):
        need_program(name)


@pytest.fixture
def server() -> Iterator[RamenServer]:
    with RamenServer(token=CANARY) as server:
        yield server


@pytest.fixture
def front() -> int:
    """The port of what stands before the server."""
    return free_port()


@pytest.fixture
def new_client(tmp_path: Path, front: int) -> Iterator[NewClient]:
    made: list[Client] = []

    def build(**fields: Any) -> Client:
        name = "localhost" if fields.get("ssl") else "127.0.0.1"
        made.append(Client(tmp_path / f"queue{len(made)}", f"{name}:{front}", **fields))
        return made[-1]

    yield build
    for client in made:
        client.verify()
        client.close()


def plain(front: int, server: RamenServer, settings: str = "", location: str = "") -> str:
    return (
        f"server {{ listen 127.0.0.1:{front}; {settings} location / {{ "
        f"proxy_http_version 1.1; proxy_set_header Connection ''; proxy_pass http://{server.hostname}; {location} }} }}"
    )


def over_tls(front: int, server: RamenServer, certificate: Path, settings: str = "") -> str:
    return plain(
        front, server, f"ssl_certificate {certificate}; ssl_certificate_key {certificate}; {settings}"
    ).replace(f"127.0.0.1:{front};", f"127.0.0.1:{front} ssl http2;")


def deliver_all(client: Client, count: int, seconds: float = 20) -> list[str]:
    pushed = client.push(count)
    with client.running():
        client.wait_empty(seconds)
    return pushed


def assert_exactly_once(server: RamenServer, client: Client) -> None:
    assert arrived(server) == client.pushed
    assert server.duplicates == []
    assert client.counts() == {"pushed": len(client.pushed), "accepted": len(client.pushed)}


def test_all_arrives_in_order_through_nginx_over_tls_with_http_2_offered(
    server: RamenServer, new_client: NewClient, front: int, issue: Issue, ca_file: Path, tmp_path: Path
) -> None:
    client = new_client(ssl=True, ca_file=str(ca_file))
    with nginx(tmp_path, over_tls(front, server, issue("localhost")), front):
        deliver_all(client, 300)
        assert diagnose(client.config).ok
    assert [one for one in arrived(server) if one in client.pushed] == client.pushed
    assert server.duplicates == []


def test_a_message_that_nginx_finds_too_large_is_a_dead_letter_and_can_be_sent_once_it_may_pass(
    server: RamenServer, new_client: NewClient, front: int, tmp_path: Path
) -> None:
    client = new_client()
    with nginx(tmp_path, plain(front, server, "client_max_body_size 4k;"), front):
        small = deliver_all(client, 3)
        large = client.writer.push("metrics", "san_totals", "v1", {"noise": os.urandom(8000).hex()})
        small += deliver_all(client, 3)
    assert arrived(server) == small
    (dead,) = client.dead()
    assert (dead.message.reqid, dead.death.status) == (large, 413)
    assert "413" in dead.death.reason + dead.death.details
    with nginx(tmp_path, plain(front, server, "client_max_body_size 40k;"), front):
        client.reader.retry_dead_letters()
        deliver_all(client, 0)
    assert arrived(server) == [*small, large]
    assert server.duplicates == []


def test_an_nginx_that_finds_everything_too_large_empties_no_queue(
    server: RamenServer, new_client: NewClient, front: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client()
    client.push(9)
    with nginx(tmp_path, plain(front, server, "client_max_body_size 1;"), front), client.running():
        client.wait_until(lambda: client.server_row().get("suspect_since") is not None)
        client.wait_until(lambda: client.server_row()["failures"] > 2)
    assert client.counts() == {"pushed": 9, "waiting": 9}
    assert any("the server is suspect" in line and "413" in line for line in lines(caplog))
    with nginx(tmp_path, plain(front, server), front):
        deliver_all(client, 0)
    assert_exactly_once(server, client)


def test_the_pace_that_nginx_asks_for_loses_nothing(
    server: RamenServer, new_client: NewClient, front: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client(retry_delay=0.05)
    zone = "limit_req_zone $server_port zone=all:1m rate=30r/s; limit_req_status 429; "
    with nginx(tmp_path, zone + plain(front, server, location="limit_req zone=all;"), front):
        deliver_all(client, 40)
    assert_exactly_once(server, client)
    assert any("no more is taken for now" in line and "429" in line for line in lines(caplog))


def test_a_502_of_nginx_keeps_everything_until_the_server_is_there(
    server: RamenServer, new_client: NewClient, front: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client()
    server.stop()
    with nginx(tmp_path, plain(front, server), front), client.running():
        client.push(5)
        client.wait_until(lambda: client.server_row().get("failures", 0) > 2)
        assert client.counts() == {"pushed": 5, "waiting": 5}
        server.start()
        client.wait_empty()
    assert_exactly_once(server, client)
    begun, over = lines(caplog)
    assert "502" in begun
    assert "look at the server, and at the proxy if there is one" in begun
    assert "works again" in over
    assert tracebacks(caplog) == []


def test_a_504_of_nginx_keeps_its_message_although_the_server_may_have_it(
    server: RamenServer, new_client: NewClient, front: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client()
    server.answer_with(Hang(), StoreThenReset(), Accept())
    with nginx(tmp_path, plain(front, server, location="proxy_read_timeout 1s;"), front):
        deliver_all(client, 2)
    assert arrived(server) == client.pushed
    assert client.counts() == {"pushed": 2, "accepted": 2}
    assert any("504" in line for line in lines(caplog))


@pytest.mark.parametrize(
    ("name", "stranger", "times", "words"),
    [
        ("localhost", False, PAST, "has expired: renew it there"),
        ("localhost", False, FUTURE, "is not valid yet: check the clocks"),
        ("other.example", False, {}, "is for another host name: check `hostname`"),
        ("localhost", True, {}, "was not issued by an authority in"),
    ],
    ids=["expired", "not yet valid", "another name", "unknown authority"],
)
def test_a_certificate_of_nginx_that_does_not_hold_keeps_everything_and_the_token_until_it_is_renewed(
    server: RamenServer,
    new_client: NewClient,
    front: int,
    issue: Issue,
    ca_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    stranger: bool,
    times: dict[str, dt.datetime],
    words: str,
) -> None:
    client = new_client(ssl=True, ca_file=str(ca_file))
    client.push(5)
    wrong = issue(name, by=trustme.CA(), **times) if stranger else issue(name, **times)
    with nginx(tmp_path, over_tls(front, server, wrong), front):
        step = diagnose(client.config).failed
        assert step is not None
        assert (step.name, words in f"{step.text}: {step.remedy}") == ("tls", True)
        with client.running():
            client.wait_until(lambda: client.server_row().get("failures", 0) > 2)
    assert client.counts() == {"pushed": 5, "waiting": 5}
    assert server.received + server.refused == []
    assert any(words in line for line in lines(caplog))
    with nginx(tmp_path, over_tls(front, server, issue("localhost")), front):
        deliver_all(client, 0)
    assert_exactly_once(server, client)


def test_nginx_that_wants_a_client_certificate_answers_without_the_protocol_and_empties_no_queue(
    server: RamenServer, new_client: NewClient, front: int, issue: Issue, ca_file: Path, tmp_path: Path
) -> None:
    """It makes the connection all the same, and answers every request with a page of its own, status 400."""
    anonymous = new_client(ssl=True, ca_file=str(ca_file))
    known = new_client(ssl=True, ca_file=str(ca_file), client_certificate=str(issue("client.example")))
    unknown = new_client(
        ssl=True, ca_file=str(ca_file), client_certificate=str(issue("client.example", by=trustme.CA()))
    )
    mutual = f"ssl_client_certificate {ca_file}; ssl_verify_client on;"
    with nginx(tmp_path, over_tls(front, server, issue("localhost"), mutual), front):
        for client, said in (
            (anonymous, "a client certificate is wanted (`client_certificate`)"),
            (unknown, "the client certificate is not accepted"),
        ):
            step = diagnose(client.config).failed
            assert step is not None
            assert said in step.text
            client.push(7)
            with client.running():
                client.wait_until(lambda client=client: client.server_row().get("suspect_since") is not None)
            assert client.counts() == {"pushed": 7, "waiting": 7}
        assert server.received == []
        deliver_all(known, 20)
    assert_exactly_once(server, known)


def haproxy_over_tls(front: int, server: RamenServer, certificate: Path, settings: str) -> str:
    return f"""
listen front
    bind 127.0.0.1:{front} ssl crt {certificate} alpn h2,http/1.1 {settings}
    server one {server.hostname}
"""


@pytest.mark.parametrize("version", ["ssl-max-ver TLSv1.2", "ssl-min-ver TLSv1.3"])
def test_haproxy_that_wants_a_client_certificate_ends_tls_and_that_is_said(
    server: RamenServer,
    new_client: NewClient,
    front: int,
    issue: Issue,
    ca_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    version: str,
) -> None:
    mutual = f"ca-file {ca_file} verify required {version}"
    trusting = {"ssl": True, "ca_file": str(ca_file)}
    expired, stranger = issue("client.example", **PAST), issue("client.example", by=trustme.CA())
    with haproxy(tmp_path, haproxy_over_tls(front, server, issue("localhost"), mutual), front):
        for identity, words in (
            (None, "name one as `client_certificate`"),
            (expired, f"says that the client certificate in {expired} is out of its time"),
            (stranger, f"does not know the authority of the client certificate in {stranger}"),
        ):
            client = new_client(**trusting, client_certificate=None if identity is None else str(identity))
            client.push(3)
            caplog.clear()
            with client.running():
                client.wait_until(lambda client=client: client.server_row().get("failures", 0) > 1)
            assert client.counts() == {"pushed": 3, "waiting": 3}
            assert any(words in line for line in lines(caplog)), lines(caplog)
            step = diagnose(client.config).failed
            assert step is not None
            assert step.name == "tls"
        assert server.received == []
        known = new_client(**trusting, client_certificate=str(issue("client.example")))
        deliver_all(known, 20)
    assert_exactly_once(server, known)


def test_haproxy_without_a_server_behind_it_keeps_everything(
    server: RamenServer, new_client: NewClient, front: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client()
    listening = (
        f"listen front\n    bind 127.0.0.1:{front}\n    timeout server 1s\n    server one {server.hostname}\n"
    )
    server.stop()
    with haproxy(tmp_path, listening, front), client.running():
        client.push(5)
        client.wait_until(lambda: client.server_row().get("failures", 0) > 2)
        assert client.counts() == {"pushed": 5, "waiting": 5}
        server.answer_with(Hang())  # its 504
        server.start()
        client.wait_empty()
    assert_exactly_once(server, client)
    assert any("503" in line for line in lines(caplog))


def test_a_token_and_certificates_that_are_replaced_under_load_fail_no_message(
    server: RamenServer,
    new_client: NewClient,
    front: int,
    issue: Issue,
    ca_file: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    token_file, identity = tmp_path / "token", tmp_path / "client.pem"

    def replace(path: Path, content: bytes) -> None:
        beside = path.with_suffix(".new")
        beside.touch(mode=0o600)
        beside.write_bytes(content)
        beside.replace(path)

    replace(token_file, CANARY.encode())
    replace(identity, issue("one.example").read_bytes())
    client = new_client(
        token=None,
        auth_token_file=str(token_file),
        ssl=True,
        ca_file=str(ca_file),
        client_certificate=str(identity),
    )
    seen: set[tuple[str, str]] = set()

    def note(message: Any) -> Accept:
        seen.add((message.headers["x-serial"], message.headers["x-token"]))
        return Accept()

    server.default = note
    sections = haproxy_over_tls(front, server, issue("localhost"), f"ca-file {ca_file} verify required")
    # In a rotation the server takes both tokens for a while; this one knows the first.
    sections += f"""
    http-request set-header X-Serial %[ssl_c_serial,hex]
    http-request set-header X-Token %[req.hdr(X-API-Token)]
    http-request set-header X-API-Token {CANARY}
"""
    with haproxy(tmp_path, sections, front), client.running():
        while len({serial for serial, _ in seen}) < 2 or len({token for _, token in seen}) < 2:
            client.push(5)
            client.wait_empty()
            if len(client.pushed) == 50:
                replace(identity, issue("two.example").read_bytes())
                replace(ca_file, ca_file.read_bytes() + trustme.CA().cert_pem.bytes())
                replace(token_file, f"{CANARY}-2".encode())
            assert len(client.pushed) < 50_000
    assert_exactly_once(server, client)
    assert lines(caplog) == []
