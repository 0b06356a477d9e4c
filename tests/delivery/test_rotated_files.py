"""Files that are replaced under a running transport count from the next request on, and none under way fails for it."""

from __future__ import annotations

import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from wire import ACCEPTED, Connection, WireServer, accept_all, answer_of, outcome_of, outcomes, post

from infi.ramen_client.delivery import _files
from infi.ramen_client.delivery._files import FileWatch
from infi.ramen_client.delivery.transport import Answer, FailureKind, Transport

if TYPE_CHECKING:
    from collections.abc import Callable

    Build = Callable[..., Transport]


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_files, "LOOK_SECONDS", 0.02)


def replace(path: Path, content: bytes) -> None:
    beside = path.with_suffix(".new")
    beside.touch(mode=0o600)
    beside.write_bytes(content)
    beside.replace(path)


def await_rotation(transport: Transport, url: str) -> None:
    """Send until what was replaced is in use."""
    before, latest = transport._files, time.monotonic() + 20
    while transport._files is before:
        assert time.monotonic() < latest
        transport.start(99, post(url))
        assert set(outcomes(transport, 1)) == {99}


def common_name(stream: ssl.SSLSocket) -> str:
    names: tuple[tuple[str, str], ...] = stream.getpeercert()["subjectAltName"]  # type: ignore[index,assignment]
    return names[0][1]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_replaced_client_certificate_is_shown_without_a_failed_request(
    open_transport: Build, authority: trustme.CA, ca_file: Path, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """Neither a kept connection nor a resumed TLS session goes on with the old one."""
    shown: list[str] = []

    def script(connection: Connection) -> None:
        while connection.request():
            shown.append(common_name(connection.socket))
            connection.send(ACCEPTED)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = version
    files = tmp_path / "client.pem", tmp_path / "client.key"
    leaves = [authority.issue_cert(f"{name}.example") for name in ("first", "second", "third")]

    def install(leaf: trustme.LeafCert) -> None:
        replace(files[1], leaf.private_key_pem.bytes())
        replace(files[0], leaf.cert_chain_pems[0].bytes())

    install(leaves[0])
    with WireServer(script, tls=context) as server:
        transport = open_transport(
            ca_file=ca_file, client_certificate=str(files[0]), client_key=str(files[1])
        )
        for leaf, name in zip(leaves, ("first", "second", "third"), strict=True):
            install(leaf)
            latest = time.monotonic() + 20
            while not shown or shown[-1] != f"{name}.example":
                assert time.monotonic() < latest
                assert answer_of(transport, post(server.url("https", "localhost"))).status == 202
        latest = time.monotonic() + 20
        while len(server._open) > 1:  # those of before are let go of
            assert time.monotonic() < latest
            time.sleep(0.005)
        transport.close()
        assert server.connections == 3


def test_half_of_a_replaced_pair_is_never_used(
    open_transport: Build,
    authority: trustme.CA,
    ca_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A key comes after its certificate: what was read before stays in use until both have kept still."""
    monkeypatch.setattr(_files, "LOOK_SECONDS", 0.3)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    files = tmp_path / "client.pem", tmp_path / "client.key"
    first, second = (authority.issue_cert(f"{name}.example") for name in ("first", "second"))
    replace(files[0], first.cert_chain_pems[0].bytes())
    replace(files[1], first.private_key_pem.bytes())
    with WireServer(accept_all, tls=context) as server:
        transport = open_transport(
            ca_file=ca_file, client_certificate=str(files[0]), client_key=str(files[1])
        )
        answer_of(transport, post(server.url("https", "localhost")))
        replace(files[0], second.cert_chain_pems[0].bytes())
        whole = threading.Timer(0.15, replace, (files[1], second.private_key_pem.bytes()))
        whole.start()
        latest = time.monotonic() + 20
        while server.connections < 2:
            assert time.monotonic() < latest
            assert answer_of(transport, post(server.url("https", "localhost"))).status == 202
        whole.join()


def test_an_authority_that_was_taken_away_is_trusted_no_more(
    open_transport: Build, authority: trustme.CA, tmp_path: Path
) -> None:
    """Also by a transport that is connected, and that could resume a session."""
    bundle = tmp_path / "authorities.pem"
    replace(bundle, authority.cert_pem.bytes())
    with WireServer(accept_all, tls=_context(authority)) as server:
        transport = open_transport(ca_file=bundle)
        request = post(server.url("https", "localhost"))
        assert answer_of(transport, request).status == 202
        replace(bundle, trustme.CA().cert_pem.bytes())
        latest = time.monotonic() + 20
        while isinstance(outcome := outcome_of(transport, request), Answer):
            assert time.monotonic() < latest
        assert outcome.kind is FailureKind.TLS
        assert "was not issued by an authority" in outcome.text
        replace(bundle, authority.cert_pem.bytes())
        assert answer_of(transport, request).status == 202


def test_what_is_under_way_ends_on_its_own_connection(
    open_transport: Build, authority: trustme.CA, tmp_path: Path
) -> None:
    """Twice over: a transfer, a rotation, another, a rotation; then the answers come, the oldest last."""
    bundle = tmp_path / "authorities.pem"
    replace(bundle, authority.cert_pem.bytes())
    held = [threading.Event() for _ in range(3)]

    def script(connection: Connection) -> None:
        while received := connection.request():
            if received.body.isdigit():
                held[int(received.body)].wait(20)
            connection.send(ACCEPTED)

    with WireServer(script, tls=_context(authority)) as server:
        transport = open_transport(ca_file=bundle)
        url = server.url("https", "localhost")
        for tag in range(3):
            replace(bundle, authority.cert_pem.bytes() + b"\n" * (tag + 1))
            await_rotation(transport, url)
            transport.start(tag, post(url, str(tag).encode(), timeout_seconds=20))
            while not any(one.body == str(tag).encode() for one in server.received):
                assert transport.wait(0.01) == []
        for tag in (2, 1):
            held[tag].set()
            assert isinstance(outcomes(transport, 1)[tag], Answer)
        transport.wake()
        assert transport.wait(20) == []
        transport.cancel(0)
        assert transport.in_flight == 0
        assert answer_of(transport, post(url)).status == 202
        held[0].set()


def test_closing_ends_what_is_under_way_before_and_after_a_rotation(
    open_transport: Build, authority: trustme.CA, tmp_path: Path
) -> None:
    bundle = tmp_path / "authorities.pem"
    replace(bundle, authority.cert_pem.bytes())

    def script(connection: Connection) -> None:
        while (received := connection.request()) and received.body != b"hang":
            connection.send(ACCEPTED)
        connection.hang()

    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with WireServer(script, tls=_context(authority)) as server:
        transport = open_transport(ca_file=bundle)
        transport.start(1, post(server.url("https", "localhost"), b"hang", timeout_seconds=60))
        while not server.received:
            transport.wait(0.01)
        replace(bundle, authority.cert_pem.bytes() + b"\n")
        await_rotation(transport, server.url("https", "localhost"))
        transport.start(2, post(server.url("https", "localhost"), b"hang", timeout_seconds=60))
        while sum(one.body == b"hang" for one in server.received) < 2:
            assert transport.wait(0.01) == []
        transport.close()
        server.wait_until_no_connection()
    del transport
    latest = time.monotonic() + 10
    while len(list(Path("/proc/self/fd").iterdir())) > descriptors + 2:
        assert time.monotonic() < latest
        time.sleep(0.01)


def test_a_file_that_is_still_being_written_has_not_changed_yet(tmp_path: Path) -> None:
    now = 0.0
    path = tmp_path / "file"
    path.write_text("a")
    watch = FileWatch((str(path),), lambda: now)

    def looks(*contents: str | None) -> list[bool]:
        nonlocal now
        told = []
        for content in contents:
            if content is not None:
                path.write_text(content)
            now += 0.03
            told.append(watch.changed())
        return told

    assert looks(None, None) == [False, False]
    assert looks("bb", "bbb", "bbbb", None, None) == [False, False, False, True, False]
    now += 0.001
    path.write_text("c")
    assert not watch.changed(), "it looks no more often than that"
    path.unlink()
    assert looks(None, None, None) == [False, True, False]
    assert looks("d", None, None) == [False, True, False]


def _context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context
