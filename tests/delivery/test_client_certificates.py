"""A server that wants to know its clients by certificate: what it takes, and what is said when it does not."""

from __future__ import annotations

import datetime as dt
import logging
import os
import ssl
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trustme
from wire import WireServer, accept_all, answer_of, failure_of, post

from infi.ramen_client.delivery.transport import Failure, FailureKind, Route, Transport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Build = Callable[..., Transport]

PAST = {
    "not_before": dt.datetime(2010, 1, 1, tzinfo=dt.UTC),
    "not_after": dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
}


@dataclass
class Identity:
    """A certificate and its key in two files."""

    certificate: Path
    key: Path

    def fields(self) -> dict[str, str]:
        return {"client_certificate": str(self.certificate), "client_key": str(self.key)}


@pytest.fixture
def issue(tmp_path: Path, authority: trustme.CA) -> Callable[..., Identity]:
    def issue(by: trustme.CA = authority, **fields: dt.datetime) -> Identity:
        leaf = by.issue_cert("client.example", **fields)
        number = len(list(tmp_path.iterdir()))
        identity = Identity(tmp_path / f"{number}.pem", tmp_path / f"{number}.key")
        identity.certificate.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
        identity.key.touch(mode=0o600)
        identity.key.write_bytes(leaf.private_key_pem.bytes())
        return identity

    return issue


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["TLS 1.2", "TLS 1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    return request.param


@pytest.fixture
def asking(authority: trustme.CA, version: ssl.TLSVersion) -> ssl.SSLContext:
    """For a server that asks for a certificate of the authority's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = version
    return context


def test_a_certificate_that_the_server_trusts_is_taken(
    open_transport: Build, ca_file: Path, asking: ssl.SSLContext, issue: Callable[..., Identity]
) -> None:
    identity = issue()
    together = identity.certificate.with_name("together.pem")
    together.touch(mode=0o600)
    together.write_bytes(identity.key.read_bytes() + identity.certificate.read_bytes())
    with WireServer(accept_all, tls=asking) as server:
        for fields in (identity.fields(), {"client_certificate": str(together)}):
            transport = open_transport(ca_file=ca_file, **fields)
            for _ in range(2):
                assert answer_of(transport, post(server.url("https", "localhost"))).status == 202
        assert server.connections == 2


def failure_with(
    open_transport: Build, ca_file: Path, asking: ssl.SSLContext, **fields: str | None
) -> Failure:
    with WireServer(accept_all, tls=asking) as server:
        transport = open_transport(ca_file=ca_file, **fields)
        failure = failure_of(transport, post(server.url("https", "localhost")))
        assert server.received == []
    assert "PRIVATE KEY" not in failure.text
    return failure


def test_a_server_that_wants_a_certificate_says_so(
    open_transport: Build, ca_file: Path, asking: ssl.SSLContext, version: ssl.TLSVersion
) -> None:
    failure = failure_with(open_transport, ca_file, asking)
    assert failure.kind is FailureKind.TLS
    if version is ssl.TLSVersion.TLSv1_3:
        assert "wants a client certificate: name one as `client_certificate`" in failure.text
    else:
        assert "if it wants a client certificate, name one as `client_certificate`" in failure.text


def test_a_certificate_of_an_authority_that_the_server_does_not_know_is_named(
    open_transport: Build, ca_file: Path, asking: ssl.SSLContext, issue: Callable[..., Identity]
) -> None:
    stranger = issue(trustme.CA())
    failure = failure_with(open_transport, ca_file, asking, **stranger.fields())
    assert failure.kind is FailureKind.TLS
    assert f"does not know the authority of the client certificate in {stranger.certificate}" in failure.text


def test_a_certificate_that_has_expired_is_named(
    open_transport: Build, ca_file: Path, asking: ssl.SSLContext, issue: Callable[..., Identity]
) -> None:
    expired = issue(**PAST)
    failure = failure_with(open_transport, ca_file, asking, **expired.fields())
    assert failure.kind is FailureKind.TLS
    assert f"says that the client certificate in {expired.certificate} is out of its time" in failure.text
    assert "renew it" in failure.text


def test_a_key_that_is_not_the_certificates_is_our_own_fault(
    open_transport: Build, ca_file: Path, asking: ssl.SSLContext, issue: Callable[..., Identity]
) -> None:
    one, other = issue(), issue()
    fields = {"client_certificate": str(one.certificate), "client_key": str(other.key)}
    failure = failure_with(open_transport, ca_file, asking, **fields)
    assert (failure.kind, failure.connected) == (FailureKind.SETUP, False)
    assert (
        f"the private key in {other.key} is damaged, or not that of the certificate in {one.certificate}"
        in failure.text
    )
    assert "openssl pkey" in failure.text


def test_a_mended_key_serves_at_the_next_attempt(
    open_transport: Build, ca_file: Path, asking: ssl.SSLContext, issue: Callable[..., Identity]
) -> None:
    one, other = issue(), issue()
    with WireServer(accept_all, tls=asking) as server:
        transport = open_transport(
            ca_file=ca_file, client_certificate=str(one.certificate), client_key=str(other.key)
        )
        assert failure_of(transport, post(server.url("https", "localhost"))).kind is FailureKind.SETUP
        other.key.unlink()
        assert failure_of(transport, post(server.url("https", "localhost"))).kind is FailureKind.SETUP
        one.key.rename(other.key)
        assert answer_of(transport, post(server.url("https", "localhost"))).status == 202


@pytest.mark.parametrize(
    ("which", "content", "words"),
    [
        ("certificate", None, "cannot be read: No such file or directory"),
        ("key", None, "cannot be read: No such file or directory"),
        ("certificate", b"", "holds no certificate"),
        ("certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "is damaged"),
        ("key", b"nothing", "holds no private key"),
        ("key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "is damaged, or not that"),
        ("certificate", b"x" * 300_000, "is larger than 262144 bytes"),
        (
            "key",
            b"-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n",
            "is encrypted",
        ),
    ],
)
def test_files_that_do_not_serve_are_named_with_what_is_wrong(
    open_transport: Build,
    ca_file: Path,
    authority: trustme.CA,
    issue: Callable[..., Identity],
    which: str,
    content: bytes | None,
    words: str,
) -> None:
    identity = issue()
    file = getattr(identity, which)
    file.unlink()
    if content is not None:
        file.touch(mode=0o600)
        file.write_bytes(content)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    failure = failure_with(open_transport, ca_file, context, **identity.fields())
    assert (failure.kind, failure.connected) == (FailureKind.SETUP, False)
    assert words in failure.text
    assert str(file) in failure.text
    assert failure.remedy


@pytest.mark.system  # the openssl program encrypts the key
def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(
    open_transport: Build, ca_file: Path, authority: trustme.CA, issue: Callable[..., Identity]
) -> None:
    identity = issue()
    encrypt = ["openssl", "pkey", "-in", str(identity.key), "-aes256", "-passout", "pass:hunter2"]
    identity.key.write_bytes(subprocess.run(encrypt, check=True, capture_output=True).stdout)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    failure = failure_with(open_transport, ca_file, context, **identity.fields())
    assert (failure.kind, failure.connected) == (FailureKind.SETUP, False)
    assert f"the private key in {identity.key} is encrypted: store it without a password" in failure.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_key_that_may_not_be_read_is_named(
    open_transport: Build, ca_file: Path, authority: trustme.CA, issue: Callable[..., Identity]
) -> None:
    identity = issue()
    identity.key.chmod(0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    failure = failure_with(open_transport, ca_file, context, **identity.fields())
    assert f"client_key {identity.key} cannot be read: Permission denied" in failure.text


def test_a_key_that_everybody_may_read_is_used_and_warned_of_once(
    open_transport: Build,
    ca_file: Path,
    asking: ssl.SSLContext,
    issue: Callable[..., Identity],
    caplog: pytest.LogCaptureFixture,
) -> None:
    identity = issue()
    identity.key.chmod(0o644)
    with caplog.at_level(logging.WARNING), WireServer(accept_all, tls=asking) as server:
        for _ in range(2):
            transport = open_transport(ca_file=ca_file, **identity.fields())
            assert answer_of(transport, post(server.url("https", "localhost"))).status == 202
    (line,) = caplog.messages
    assert (
        f"the private key in {str(identity.key)!r} can be read or written by every user (mode 0644)" in line
    )


def test_without_tls_no_certificate_is_needed(open_transport: Build, tmp_path: Path) -> None:
    with WireServer(accept_all) as server:
        transport = open_transport(client_certificate=str(tmp_path / "missing.pem"))
        assert answer_of(transport, post(server.url())).status == 202


def test_a_route_shows_its_files_and_not_what_is_in_them(issue: Callable[..., Identity]) -> None:
    shown = repr(Route(None, "/ca.pem", **issue().fields()))
    assert ".pem" in shown
    assert "BEGIN" not in shown
