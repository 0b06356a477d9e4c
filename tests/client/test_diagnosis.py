"""`diagnose`: each way to fail is told at its step, with what to do, from one real attempt; and no secret is told."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from infi.ramen_client.diagnosis import Diagnosis, Outcome, diagnose
from infi.ramen_client.errors import ValidationError
from infi.ramen_client.testing import Drop, Hang, RamenServer, Raw, Refuse, Reply, Reset, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_reader import QueueReader

    MakeConfig = Callable[..., QueueReaderConfig]

NAMES = ["configuration", "name", "proxy", "connection", "tls", "token", "answer"]


def outcomes(diagnosis: Diagnosis) -> dict[str, str]:
    """What became of the steps, after a look at what holds for every diagnosis."""
    assert [step.name for step in diagnosis.steps] == NAMES
    failed = [step for step in diagnosis.steps if step.outcome is Outcome.FAILED]
    assert failed == ([] if diagnosis.ok else [diagnosis.failed])
    for step in diagnosis.steps:
        assert (step.text + step.remedy).isprintable()
        assert step.outcome is Outcome.FAILED or not step.remedy
    if failed:
        behind = diagnosis.steps[diagnosis.steps.index(failed[0]) + 1 :]
        assert {step.outcome for step in behind} <= {Outcome.UNKNOWN}
    return {step.name: step.outcome.value for step in diagnosis.steps}


def failure(diagnosis: Diagnosis) -> tuple[str, str, str]:
    outcomes(diagnosis)
    assert diagnosis.failed is not None
    return diagnosis.failed.name, diagnosis.failed.text, diagnosis.failed.remedy


def test_a_plain_way_that_works(server: RamenServer, config: QueueReaderConfig, queue_dir: Path) -> None:
    diagnosis = diagnose(config)
    assert diagnosis.ok
    assert diagnosis.server == f"http://{server.hostname}"
    assert outcomes(diagnosis) == {
        "configuration": "ok",
        "name": "not needed",
        "proxy": "not needed",
        "connection": "ok",
        "tls": "not needed",
        "token": "ok",
        "answer": "ok",
    }
    (message,) = server.accepted
    assert (message.envelope.data_type, message.payload) == ("test", b"{}")
    assert not queue_dir.exists(), "no queue is needed"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(authority: trustme.CA, no_proxies: None, tmp_path: Path) -> Iterator[Callable[..., RamenServer]]:
    """Servers with certificates of the test's choice; the authority's is in tmp_path / "ca.pem"."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    running: list[RamenServer] = []

    def start(*names: str, **fields: Any) -> RamenServer:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names, **fields).configure_cert(context)
        running.append(RamenServer(ssl_context=context))
        running[-1].start()
        return running[-1]

    yield start
    for server in running:
        server.close()


@pytest.fixture
def tls_config(make_config: MakeConfig, tmp_path: Path) -> Callable[..., QueueReaderConfig]:
    def make(server: RamenServer, **fields: Any) -> QueueReaderConfig:
        given = {"hostname": f"localhost:{server.port}", "auth_token": server.token, "ssl": True}
        return make_config(**{**given, "ca_file": str(tmp_path / "ca.pem"), **fields})

    return make


def test_a_way_over_tls_shows_the_certificate_s_names_issuer_and_expiry(
    tls: Any, tls_config: Any, authority: trustme.CA
) -> None:
    until = dt.datetime(2125, 3, 4, tzinfo=dt.UTC)
    diagnosis = diagnose(tls_config(tls("localhost", "ramen.example", not_after=until)))
    assert diagnosis.ok
    found = outcomes(diagnosis)
    assert (found["name"], found["connection"], found["tls"]) == ("ok", "ok", "ok")
    (said,) = (step.text for step in diagnosis.steps if step.name == "tls")
    assert "DNS:localhost, DNS:ramen.example" in said
    assert "Mar  4 00:00:00 2125 GMT" in said or "Mar 4 00:00:00 2125 GMT" in said
    assert "trustme" in said
    assert "ca.pem" in said


def test_an_expired_certificate_another_name_and_an_unknown_authority_fail_at_tls(
    tls: Any, tls_config: Any, tmp_path: Path
) -> None:
    past = dt.datetime(2001, 1, 1, tzinfo=dt.UTC)
    expired = failure(diagnose(tls_config(tls("localhost", not_after=past))))
    assert (expired[0], "renew it" in expired[2]) == ("tls", True)
    assert expired[1].endswith("has expired")

    other = failure(diagnose(tls_config(tls("ramen.example"))))
    assert other[0] == "tls"
    assert "another host name" in other[1]

    (tmp_path / "other.pem").write_bytes(trustme.CA().cert_pem.bytes())
    unknown = failure(diagnose(tls_config(tls("localhost"), ca_file=str(tmp_path / "other.pem"))))
    assert unknown[0] == "tls"
    assert "was not issued by an authority" in unknown[1]
    assert "ca_file" in unknown[2]


def test_a_server_that_wants_a_client_certificate_fails_at_tls_though_the_handshake_seemed_done(
    tls_config: Any, authority: trustme.CA, tmp_path: Path, no_proxies: None, in_background: Any
) -> None:
    """By TLS 1.3 the client has shaken hands, and sent its request, when the server says that it wants more."""
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED

    def serve(listener: socket.socket) -> None:
        with listener.accept()[0] as stream, stream.dup() as plain:
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(stream, server_side=True)
            while plain.recv(4096):  # to close with unread data would be a reset, and hide the alert
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_background(lambda: serve(listener))
        name, text, remedy = failure(diagnose(tls_config(_At(listener.getsockname()[1]))))
        serving.join()
    assert name == "tls"
    assert "wants a client certificate" in text
    assert "`client_certificate`" in remedy


def test_https_to_a_plain_port_fails_at_tls(server: RamenServer, tls_config: Any, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
    name, _, remedy = failure(diagnose(tls_config(server)))
    assert name == "tls"
    assert "ssl" in remedy


def test_a_handshake_that_hangs_fails_at_tls(tls_config: Any, no_proxies: None, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(trustme.CA().cert_pem.bytes())
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = tls_config(_At(silent.getsockname()[1]), server_timeout=1)
        name, text, _ = failure(diagnose(config))
    assert name == "tls"
    assert "within 1 s" in text


class _At:
    """Stands for a server at a port."""

    token = "x" * 10

    def __init__(self, port: int) -> None:
        self.port = port


@pytest.mark.parametrize(
    ("reply", "step", "token", "text", "remedy"),
    [
        (Refuse("UNAUTHORIZED"), "token", "failed", "the token is refused", "check auth_token"),
        (Refuse("FORBIDDEN", "not yours"), "token", "failed", "not yours", "meant for this server"),
        (Refuse("UNAVAILABLE", "disk full"), "answer", "unknown", "503 UNAVAILABLE: disk full", "its disk"),
        (Refuse("TOO_MANY_REQUESTS"), "answer", "unknown", "429", "raise the limit"),
        (Refuse("BAD_REQUEST", "no"), "answer", "ok", "400 BAD_REQUEST", "compare what is sent"),
        (Drop({"data_type": "test"}), "answer", "ok", "202 DROPPED", "blacklist rules"),
        (Status(400), "answer", "unknown", "status 400", "check hostname"),
        (Status(502), "answer", "unknown", "status 502", "the proxy"),
        (Status(200, b"<html>login</html>"), "answer", "unknown", "no Ramen server", "check hostname"),
        (Reset(), "answer", "unknown", "reset", "what lies between"),
        (Raw(b"SSH-2.0-x\r\n"), "answer", "unknown", "not HTTP", "check host and port"),
    ],
    ids=lambda value: repr(value)[:30] if isinstance(value, Reply) else "",
)
def test_what_the_server_answers_is_told_at_token_or_answer(
    server: RamenServer,
    config: QueueReaderConfig,
    reply: Reply,
    step: str,
    token: str,
    text: str,
    remedy: str,
) -> None:
    server.answer_with(*[reply] * 6)
    diagnosis = diagnose(config)
    found = failure(diagnosis)
    assert found[0] == step
    assert text in found[1]
    assert remedy in found[2]
    assert outcomes(diagnosis)["token"] == token


def test_a_server_that_hangs_fails_at_the_answer_and_one_that_is_away_at_the_connection(
    server: RamenServer, make_config: MakeConfig
) -> None:
    server.default = Hang()
    config = make_config(server_timeout=1)
    assert failure(diagnose(config))[0] == "answer"
    server.stop()
    assert failure(diagnose(config))[0] == "connection"


def test_a_name_without_an_address_fails_at_the_name(make_config: MakeConfig, no_proxies: None) -> None:
    name, text, remedy = failure(diagnose(make_config(hostname="nowhere.invalid")))
    assert name == "name"
    assert "nowhere.invalid" in text
    assert "hostname" in remedy


def test_what_is_wrong_with_our_own_files_fails_at_the_configuration(
    server: RamenServer, make_config: MakeConfig, tmp_path: Path
) -> None:
    for fields, said in (
        ({"auth_token": None, "auth_token_file": str(tmp_path / "none")}, "auth_token_file"),
        ({"ssl": True, "ca_file": str(tmp_path / "none")}, "cannot be read"),
    ):
        name, text, _ = failure(diagnose(make_config(**fields)))
        assert name == "configuration"
        assert said in text
    assert server.received == []


def test_wrong_fields_are_raised(make_config: MakeConfig) -> None:
    with pytest.raises(ValidationError):
        diagnose(make_config(hostname="http://x/"))


def test_a_proxy_that_is_away_fails_at_the_proxy_and_its_password_is_not_told(
    server: RamenServer, make_config: MakeConfig
) -> None:
    for host in ("127.0.0.1:1", "nowhere.invalid:8080"):
        diagnosis = diagnose(make_config(proxy=f"http://user:hunter2@{host}"))
        assert failure(diagnosis)[0] == "proxy"
        assert "hunter2" not in repr(diagnosis)


def test_a_plain_proxy_is_named_and_what_it_does_is_not_ours(
    server: RamenServer, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test server is no proxy, but it is reached as one; what it says then is told at the answer."""
    for fields in ({"proxy": f"http://u:hunter2@{server.hostname}"}, {}):
        monkeypatch.setenv("http_proxy", "" if fields else f"http://u:hunter2@{server.hostname}")
        diagnosis = diagnose(make_config(hostname="ramen.example", **fields))
        found = outcomes(diagnosis)
        assert (found["name"], found["proxy"], found["connection"]) == ("not needed", "ok", "not needed")
        assert failure(diagnosis)[0] == "answer"
        assert "hunter2" not in repr(diagnosis)


def test_no_diagnosis_holds_the_token(server: RamenServer, make_config: MakeConfig) -> None:
    canary = "canary-token-4711"
    for reply in (
        Refuse("UNAUTHORIZED", canary),
        Refuse("UNAVAILABLE", f"you sent {canary}"),
        Status(302, canary.encode()),
    ):
        server.token = canary
        server.answer_with(reply)
        assert canary not in repr(diagnose(make_config(auth_token=canary)))


def test_the_1_x_connection_test_says_in_the_log_where_it_fails_and_what_to_do(
    server: RamenServer, reader: QueueReader, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer_with(Refuse("UNAUTHORIZED"), Refuse("UNAVAILABLE"))
    assert reader.test_connection() is False
    assert reader.test_connection() is False
    refused, unavailable = (record.getMessage() for record in caplog.records)
    assert "failed (token): the token is refused" in refused
    assert ": check auth_token or auth_token_file" in refused
    assert "failed (answer): no message is taken now" in unavailable
    assert ": look at the server, its log and its disk" in unavailable


def test_it_runs_in_any_thread(server: RamenServer, config: QueueReaderConfig) -> None:
    found: list[Diagnosis] = []
    thread = threading.Thread(target=lambda: found.append(diagnose(config)))
    thread.start()
    thread.join(30)
    assert found[0].ok
