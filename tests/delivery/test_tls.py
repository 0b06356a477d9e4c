"""TLS: verified, from 1.2 on, and its failures in words that name the remedy."""

from __future__ import annotations

import datetime as dt
import ssl
import subprocess
from typing import TYPE_CHECKING

import pytest
import trustme
from wire import (
    Connection,
    WireServer,
    accept_all,
    answer,
    answer_of,
    closed_port,
    failure_of,
    outcome_of,
    post,
)

from infi.ramen_client.delivery.transport import Answer, FailureKind, Transport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Build = Callable[..., Transport]


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def test_a_verified_server_gets_its_requests_over_one_session(
    open_transport: Build, authority: trustme.CA, ca_file: Path
) -> None:
    with WireServer(accept_all, tls=server_context(authority.issue_cert("localhost"))) as server:
        transport = open_transport(ca_file=ca_file)
        for _ in range(3):
            assert answer_of(transport, post(server.url("https", "localhost"))).status == 202
        assert server.connections == 1


@pytest.mark.system  # the openssl program computes the file's name
def test_a_directory_of_hashed_certificates_serves_as_well(
    open_transport: Build, authority: trustme.CA, ca_file: Path, tmp_path: Path
) -> None:
    with WireServer(accept_all, tls=server_context(authority.issue_cert("localhost"))) as server:
        failure = failure_of(open_transport(ca_file=tmp_path), post(server.url("https", "localhost")))
        assert failure.kind is FailureKind.TLS
        assert f"was not issued by an authority in {tmp_path}" in failure.text
        assert f"openssl rehash {tmp_path}" in failure.text
        command = ["openssl", "x509", "-noout", "-subject_hash", "-in", str(ca_file)]
        name = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        authority.cert_pem.write_to_path(tmp_path / f"{name}.0")
        assert (
            answer_of(open_transport(ca_file=tmp_path), post(server.url("https", "localhost"))).status == 202
        )


def test_an_unknown_authority_is_refused_naming_the_bundle(open_transport: Build, ca_file: Path) -> None:
    with WireServer(accept_all, tls=server_context(trustme.CA().issue_cert("localhost"))) as server:
        failure = failure_of(open_transport(ca_file=ca_file), post(server.url("https", "localhost")))
        assert (failure.kind, failure.connected) == (FailureKind.TLS, False)
        assert (
            f"the certificate of localhost:{server.port} was not issued by an authority in {ca_file}"
            in failure.text
        )
        assert server.received == []


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_certificate_for_another_name_is_refused(
    open_transport: Build, authority: trustme.CA, ca_file: Path, host: str
) -> None:
    with WireServer(accept_all, tls=server_context(authority.issue_cert("other.example"))) as server:
        failure = failure_of(open_transport(ca_file=ca_file), post(server.url("https", host)))
        assert (failure.kind, failure.connected) == (FailureKind.TLS, False)
        assert "is for another host name: check `hostname`" in failure.text
        assert str(ca_file) in failure.text
        assert server.received == []


@pytest.mark.parametrize(
    ("first_year", "last_year", "words"), [(2010, 2020, "has expired"), (2090, 2095, "is not valid yet")]
)
def test_a_certificate_out_of_its_time_is_refused(
    open_transport: Build, authority: trustme.CA, ca_file: Path, first_year: int, last_year: int, words: str
) -> None:
    certificate = authority.issue_cert(
        "localhost",
        not_before=dt.datetime(first_year, 1, 1, tzinfo=dt.UTC),
        not_after=dt.datetime(last_year, 1, 1, tzinfo=dt.UTC),
    )
    with WireServer(accept_all, tls=server_context(certificate)) as server:
        failure = failure_of(open_transport(ca_file=ca_file), post(server.url("https", "localhost")))
        assert (failure.kind, failure.connected) == (FailureKind.TLS, False)
        assert words in failure.text
        assert server.received == []


def test_a_server_of_tls_1_2_is_refused_where_1_3_is_asked_for(
    open_transport: Build, authority: trustme.CA, ca_file: Path
) -> None:
    context = server_context(authority.issue_cert("localhost"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with WireServer(accept_all, tls=context) as server:
        request = post(server.url("https", "localhost"))
        assert answer_of(open_transport(ca_file=ca_file), request).status == 202
        failure = failure_of(open_transport(ca_file=ca_file, min_tls_version="1.3"), request)
        assert len(server.received) == 1
    assert (failure.kind, failure.connected) == (FailureKind.TLS, False)
    assert "speaks no TLS version from 1.3 on" in failure.text
    assert "min_tls_version" in failure.text


def test_an_address_of_ipv6_is_checked_against_the_certificate_like_a_name(
    open_transport: Build, authority: trustme.CA, ca_file: Path
) -> None:
    for name, taken in (("::1", True), ("::2", False)):
        context = server_context(authority.issue_cert(name))
        with WireServer(accept_all, tls=context, address="::1") as server:
            outcome = outcome_of(open_transport(ca_file=ca_file), post(server.url("https", "[::1]")))
            assert isinstance(outcome, Answer) is taken, outcome
            if not taken:
                assert f"the certificate of [::1]:{server.port} is for another host name" in outcome.text


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_a_server_without_tls_1_2_is_refused(
    open_transport: Build, authority: trustme.CA, ca_file: Path
) -> None:
    context = server_context(authority.issue_cert("localhost"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    with WireServer(accept_all, tls=context) as server:
        failure = failure_of(open_transport(ca_file=ca_file), post(server.url("https", "localhost")))
    assert (failure.kind, failure.connected) == (FailureKind.TLS, False)
    assert "speaks no TLS version from 1.2 on" in failure.text


def test_https_to_a_plain_port_says_so(open_transport: Build, ca_file: Path) -> None:
    def script(connection: Connection) -> None:
        connection.socket.recv(65536)
        connection.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with WireServer(script) as server:
        failure = failure_of(open_transport(ca_file=ca_file), post(server.url("https")))
    assert (failure.kind, failure.connected) == (FailureKind.TLS, False)
    assert "does not speak TLS on this port" in failure.text


def test_plain_http_to_a_tls_port_hints_at_it(transport: Transport, authority: trustme.CA) -> None:
    with WireServer(accept_all, tls=server_context(authority.issue_cert("localhost"))) as server:
        failure = failure_of(transport, post(server.url()))
    assert failure.kind is FailureKind.BROKEN
    assert "if it speaks TLS on this port, set `ssl` to true" in failure.text


@pytest.mark.parametrize("ending", ["reset", "close"])
def test_a_server_that_ends_the_handshake_was_not_reached(
    open_transport: Build, ca_file: Path, ending: str
) -> None:
    def script(connection: Connection) -> None:
        connection.socket.recv(65536)
        if ending == "reset":
            connection.reset()

    with WireServer(script) as server:
        failure = failure_of(open_transport(ca_file=ca_file), post(server.url("https")))
    assert (failure.kind, failure.connected) == (FailureKind.TLS, False)
    assert f"the TLS handshake with 127.0.0.1:{server.port} failed" in failure.text


def test_a_handshake_that_hangs_ends_with_the_time_out(open_transport: Build, ca_file: Path) -> None:
    with WireServer(Connection.hang) as server:
        failure = failure_of(open_transport(ca_file=ca_file), post(server.url("https"), timeout_seconds=0.3))
    assert (failure.kind, failure.connected) == (FailureKind.TIMEOUT, False)
    assert f"no TLS session with 127.0.0.1:{server.port}" in failure.text


def test_an_answer_cut_off_under_tls_is_a_failure(
    open_transport: Build, authority: trustme.CA, ca_file: Path
) -> None:
    """Without a length only the TLS goodbye tells a whole answer from one that somebody cut."""
    script = answer(b'HTTP/1.1 400 Bad Request\r\n\r\n{"code": "BAD_REQUEST"')
    with WireServer(script, tls=server_context(authority.issue_cert("localhost"))) as server:
        failure = failure_of(open_transport(ca_file=ca_file), post(server.url("https", "localhost")))
    assert (failure.kind, failure.connected) == (FailureKind.BROKEN, True)


@pytest.mark.parametrize("content", [None, "", "no certificate at all\n"])
def test_a_bundle_that_cannot_be_read_is_our_own_fault_and_is_named(
    open_transport: Build, authority: trustme.CA, tmp_path: Path, content: str | None
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_text(content)
    with WireServer(accept_all, tls=server_context(authority.issue_cert("localhost"))) as server:
        transport = open_transport(ca_file=bundle)
        failure = failure_of(transport, post(server.url("https", "localhost")))
        assert (failure.kind, failure.connected) == (FailureKind.SETUP, False)
        assert str(bundle) in failure.text
        authority.cert_pem.write_to_path(bundle)  # and once it is there, it serves
        assert answer_of(transport, post(server.url("https", "localhost"))).status == 202


def test_a_mended_bundle_is_read_without_a_restart(
    open_transport: Build, authority: trustme.CA, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle.pem"
    trustme.CA().cert_pem.write_to_path(bundle)
    with WireServer(accept_all, tls=server_context(authority.issue_cert("localhost"))) as server:
        transport = open_transport(ca_file=bundle)
        assert failure_of(transport, post(server.url("https", "localhost"))).kind is FailureKind.TLS
        authority.cert_pem.write_to_path(bundle)
        assert answer_of(transport, post(server.url("https", "localhost"))).status == 202


def test_without_any_bundle_https_is_refused_and_http_works(transport: Transport) -> None:
    failure = failure_of(transport, post(f"https://127.0.0.1:{closed_port()}/"))
    assert (failure.kind, failure.connected) == (FailureKind.SETUP, False)
    assert "no bundle of certificate authorities" in failure.text
    with WireServer(accept_all) as server:
        assert answer_of(transport, post(server.url())).status == 202
