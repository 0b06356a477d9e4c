"""Through a proxy: an explicit one, the environment's, one that refuses; credentials stay out of every text."""

from __future__ import annotations

import base64
import contextlib
import importlib.machinery
import importlib.util
import socket
import ssl
import sys
import threading
import types
from typing import TYPE_CHECKING

import pytest
from wire import (
    ACCEPTED,
    Connection,
    WireServer,
    accept_all,
    answer,
    answer_of,
    closed_port,
    failure_of,
    post,
    unanswering_port,
)

from infi.ramen_client.delivery.transport import Failure, FailureKind, Route, Transport, route_from

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import trustme

    Build = Callable[..., Transport]

CREDENTIALS = "us%2Fer:p%40ss%3AGeheim"
CREDENTIALS_IN_HEADER = "Basic " + base64.b64encode(b"us/er:p@ss:Geheim").decode()


def relay(one: socket.socket, other: socket.socket) -> None:
    """Bytes in both directions until either side closes."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=copy, args=(other, one), daemon=True)
    thread.start()
    copy(one, other)
    thread.join(10)


def http_proxy(connection: Connection) -> None:
    """CONNECT makes a tunnel, whatever the name, to the port on 127.0.0.1; all else is answered here."""
    while request := connection.request():
        if not request.line.startswith("CONNECT "):
            connection.send(ACCEPTED)
            continue
        port = int(request.line.split()[1].rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as onward:
            connection.send(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
            relay(connection.socket, onward)
        return


def socks5_proxy(connection: Connection) -> None:
    """RFC 1928 with user name and password (RFC 1929); notes what was asked for as a request line."""
    stream = connection.socket.makefile("rb")

    def read(count: int) -> bytes:
        return stream.read(count)

    read(read(2)[1])
    connection.send(b"\x05\x02")
    user = read(read(2)[1]).decode()
    password = read(read(1)[0]).decode()
    connection.send(b"\x01\x00")
    _, _, _, kind = read(4)
    if kind == 3:
        host = read(read(1)[0]).decode()
    else:
        host = socket.inet_ntop(*((socket.AF_INET, read(4)) if kind == 1 else (socket.AF_INET6, read(16))))
    port = int.from_bytes(read(2), "big")
    connection.server.names.append((user, password, host))  # type: ignore[attr-defined]
    with socket.create_connection(("127.0.0.1", port)) as onward:
        connection.send(b"\x05\x00\x00\x01" + bytes(6))
        relay(connection.socket, onward)


@pytest.fixture
def tls_server(authority: trustme.CA) -> Iterator[WireServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost", "far.example").configure_cert(context)
    with WireServer(accept_all, tls=context) as server:
        yield server


def test_plain_http_goes_to_the_explicit_proxy_with_its_credentials(open_transport: Build) -> None:
    with WireServer(http_proxy) as proxy:
        transport = open_transport(proxy=f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}")
        assert answer_of(transport, post("http://far.example:99/ramen/")).status == 202
        assert answer_of(transport, post("http://far.example:99/ramen/")).status == 202
        assert proxy.received[0].line == "POST http://far.example:99/ramen/ HTTP/1.1"
        assert proxy.received[0].headers["proxy-authorization"] == CREDENTIALS_IN_HEADER
        assert proxy.connections == 1


def test_https_goes_through_a_tunnel_and_the_proxy_sees_neither_token_nor_body(
    open_transport: Build, tls_server: WireServer, ca_file: Path
) -> None:
    with WireServer(http_proxy) as proxy:
        transport = open_transport(proxy=f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}", ca_file=ca_file)
        for _ in range(3):
            got = answer_of(transport, post(tls_server.url("https", "far.example")))
            assert (got.status, "via" in got.headers) == (202, False)
        transport.close()
        assert [one.line for one in proxy.received] == [f"CONNECT far.example:{tls_server.port} HTTP/1.1"]
        assert proxy.received[0].headers["proxy-authorization"] == CREDENTIALS_IN_HEADER
        assert "x-api-token" not in proxy.received[0].headers
        assert "proxy-authorization" not in tls_server.received[0].headers
        assert len(tls_server.received) == 3


def test_an_https_proxy_is_spoken_to_over_verified_tls(
    open_transport: Build, tls_server: WireServer, authority: trustme.CA, ca_file: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)

    def plain_only(connection: Connection) -> None:
        http_proxy(connection)

    with WireServer(plain_only, tls=context) as proxy:
        transport = open_transport(proxy=f"https://{CREDENTIALS}@localhost:{proxy.port}", ca_file=ca_file)
        assert answer_of(transport, post("http://far.example/")).status == 202
        assert proxy.received[0].headers["proxy-authorization"] == CREDENTIALS_IN_HEADER
        wrong_name = open_transport(proxy=f"https://{CREDENTIALS}@127.0.0.1:{proxy.port}", ca_file=ca_file)
        failure = failure_of(wrong_name, post("http://far.example/"))
        assert (failure.kind, failure.connected) == (FailureKind.TLS, False)
        assert f"the certificate of the proxy 127.0.0.1:{proxy.port} is for another host name" in failure.text
        assert len(proxy.received) == 1


@pytest.mark.parametrize(("scheme", "host"), [("socks5h", "far.example"), ("socks5", "localhost")])
def test_socks_proxies_take_credentials_and_resolve_as_their_scheme_says(
    open_transport: Build, tls_server: WireServer, ca_file: Path, scheme: str, host: str
) -> None:
    with WireServer(socks5_proxy) as proxy:
        proxy.names = []  # type: ignore[attr-defined]
        transport = open_transport(proxy=f"{scheme}://{CREDENTIALS}@127.0.0.1:{proxy.port}", ca_file=ca_file)
        assert answer_of(transport, post(tls_server.url("https", host))).status == 202
        transport.close()
        user, password, asked_for = proxy.names[0]  # type: ignore[attr-defined]
        assert (user, password) == ("us/er", "p@ss:Geheim")
        assert asked_for in ({host} if scheme == "socks5h" else {"127.0.0.1", "::1"})


@pytest.mark.parametrize("name", ["http_proxy", "ALL_PROXY", "all_proxy"])
def test_the_environments_proxy_is_used_where_none_is_configured(
    open_transport: Build, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with WireServer(http_proxy) as proxy:
        monkeypatch.setenv(name, f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}")
        assert answer_of(open_transport(), post("http://far.example/")).status == 202
        assert proxy.received[0].headers["proxy-authorization"] == CREDENTIALS_IN_HEADER


@pytest.mark.parametrize("name", ["https_proxy", "HTTPS_PROXY"])
def test_the_environments_proxy_for_https_is_used(
    open_transport: Build, tls_server: WireServer, ca_file: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with WireServer(http_proxy) as proxy:
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
        transport = open_transport(ca_file=ca_file)
        assert answer_of(transport, post(tls_server.url("https"))).status == 202
        transport.close()
        assert proxy.connections == 1


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
@pytest.mark.parametrize("value", ["127.0.0.1", "other.example,127.0.0.0/8", "*"])
def test_no_proxy_exempts_from_the_environments_proxy(
    open_transport: Build, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv(name, value)
    with WireServer(accept_all) as server:
        assert answer_of(open_transport(), post(server.url())).status == 202


def test_an_explicit_proxy_beats_the_environments_and_no_proxy(
    open_transport: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("no_proxy", "*")
    with WireServer(http_proxy) as proxy:
        transport = open_transport(proxy=f"http://127.0.0.1:{proxy.port}")
        assert answer_of(transport, post("http://far.example/")).status == 202


def check_no_secret(failure: Failure) -> None:
    for secret in ("p%40ss", "p@ss", "Geheim", "us%2Fer", "us/er", "tell-nobody", CREDENTIALS_IN_HEADER[6:]):
        assert secret not in failure.text


@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h"])
def test_a_proxy_that_refuses_the_connection_is_named(
    open_transport: Build, ca_file: Path, scheme: str
) -> None:
    port = closed_port()
    transport = open_transport(proxy=f"{scheme}://{CREDENTIALS}@127.0.0.1:{port}", ca_file=ca_file)
    for url in ("http://127.0.0.1:9/", "https://127.0.0.1:9/"):
        failure = failure_of(transport, post(url))
        assert (failure.kind, failure.connected) == (FailureKind.PROXY, False)
        assert f"the proxy 127.0.0.1:{port} refused the connection" in failure.text
        check_no_secret(failure)


def test_a_proxy_without_an_address_is_named(open_transport: Build) -> None:
    transport = open_transport(proxy=f"http://{CREDENTIALS}@no-such-proxy.invalid:3128")
    failure = failure_of(transport, post("http://127.0.0.1:9/"))
    assert (failure.kind, failure.connected) == (FailureKind.PROXY, False)
    assert "the name of the proxy no-such-proxy.invalid:3128 cannot be resolved" in failure.text
    check_no_secret(failure)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
            "wants other credentials (407)",
        ),
        (
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",  # tinyproxy
            "wants other credentials (401)",
        ),
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno\n",
            "refused a tunnel to far.example with status 403",
        ),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n", "with status 502"),
        (b"", "the proxy 127.0.0.1"),
        (b"not a proxy\r\n\r\n", "the proxy 127.0.0.1"),
    ],
)
def test_a_proxy_that_refuses_the_tunnel_is_named_and_the_server_was_not_reached(
    open_transport: Build, ca_file: Path, raw: bytes, words: str
) -> None:
    with WireServer(answer(raw)) as proxy:
        transport = open_transport(proxy=f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}", ca_file=ca_file)
        failure = failure_of(transport, post("https://far.example/"))
    assert (failure.kind, failure.connected) == (FailureKind.PROXY, False)
    assert words in failure.text
    check_no_secret(failure)


def test_a_proxys_own_407_to_a_plain_request_is_a_failure_of_the_proxy(open_transport: Build) -> None:
    with WireServer(answer(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")) as proxy:
        transport = open_transport(proxy=f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}")
        failure = failure_of(transport, post("http://far.example/"))
    assert failure.kind is FailureKind.PROXY
    assert "wants other credentials (407)" in failure.text
    check_no_secret(failure)


def test_a_socks_proxy_that_wants_other_credentials_is_named(open_transport: Build) -> None:
    def script(connection: Connection) -> None:
        connection.socket.recv(100)
        connection.send(b"\x05\xff")

    with WireServer(script) as proxy:
        transport = open_transport(proxy=f"socks5h://{CREDENTIALS}@127.0.0.1:{proxy.port}")
        failure = failure_of(transport, post("http://far.example/"))
    assert (failure.kind, failure.connected) == (FailureKind.PROXY, False)
    assert f"the proxy 127.0.0.1:{proxy.port} wants other credentials" in failure.text
    check_no_secret(failure)


@pytest.mark.parametrize(
    ("reply", "words"), [(2, "its rules forbid it"), (5, "connection refused"), (77, "(77)")]
)
def test_a_socks_proxy_that_does_not_get_through_says_why(
    open_transport: Build, reply: int, words: str
) -> None:
    def script(connection: Connection) -> None:
        connection.socket.recv(100)
        connection.send(b"\x05\x00")
        connection.socket.recv(100)
        connection.send(bytes([5, reply, 0, 1]) + bytes(6))

    with WireServer(script) as proxy:
        transport = open_transport(proxy=f"socks5h://127.0.0.1:{proxy.port}")
        failure = failure_of(transport, post("http://far.example/"))
    assert (failure.kind, failure.connected) == (FailureKind.PROXY, False)
    assert f"the proxy 127.0.0.1:{proxy.port} did not connect to far.example" in failure.text
    assert words in failure.text


def test_what_breaks_behind_or_at_a_proxy_names_it(open_transport: Build) -> None:
    """A proxy that refuses a request before it has read the body ends with a reset (tinyproxy does)."""

    def resets(connection: Connection) -> None:
        connection.request()
        connection.reset()

    for script, words in ((resets, "was reset"), (answer(b""), "closed the connection without an answer")):
        with WireServer(script) as proxy:
            failure = failure_of(
                open_transport(proxy=f"http://{CREDENTIALS}@127.0.0.1:{proxy.port}"),
                post("http://far.example/"),
            )
        assert words in failure.text
        assert f"the proxy 127.0.0.1:{proxy.port}" in failure.text
        assert "`ssl`" not in failure.text
        check_no_secret(failure)


def test_a_proxy_that_hangs_ends_with_the_time_out(open_transport: Build, ca_file: Path) -> None:
    def script(connection: Connection) -> None:
        connection.request()
        connection.hang()

    with WireServer(script) as hanging, unanswering_port() as unanswering:
        for port in (hanging.port, unanswering):
            transport = open_transport(proxy=f"http://{CREDENTIALS}@127.0.0.1:{port}", ca_file=ca_file)
            failure = failure_of(transport, post("https://far.example/", timeout_seconds=0.3))
            assert (failure.kind, failure.connected) == (FailureKind.TIMEOUT, False)
            assert f"through the proxy 127.0.0.1:{port}" in failure.text
            check_no_secret(failure)


@pytest.mark.parametrize(
    "url",
    [
        f"http://{CREDENTIALS}@127.0.0.1:port",
        "http://us/er:p@ss:Geheim@127.0.0.1:3128",
        "http://us er:p@ss Geheim@127.0.0.1:3128",
        "us/er:p%40ss:Geheim",
        f"gopher://{CREDENTIALS}@127.0.0.1:3128",
        f"http://{CREDENTIALS}@",
        "http://user:Geheim#host:1",
        "\u1234:Geheim",
    ],
)
@pytest.mark.parametrize("where", ["configured", "environment"])
def test_a_malformed_proxy_url_is_our_own_fault_and_is_not_quoted(
    open_transport: Build, monkeypatch: pytest.MonkeyPatch, url: str, where: str
) -> None:
    if where == "environment":
        monkeypatch.setenv("http_proxy", url)
    transport = open_transport(proxy=url if where == "configured" else None)
    failure = failure_of(transport, post("http://127.0.0.1:9/", timeout_seconds=5))
    assert failure.kind in {FailureKind.SETUP, FailureKind.PROXY}
    assert not failure.connected
    check_no_secret(failure)


def test_what_is_shown_of_a_route_holds_no_credentials() -> None:
    for proxy in (
        f"http://{CREDENTIALS}@proxy:3128",
        "http://a/b:p@ss:Geheim@proxy:3128",
        "us/er:p@ss:Geheim@proxy:3128",
    ):
        shown = repr(Route(proxy, None))
        assert "proxy:3128" in shown
        assert "Geheim" not in shown
        assert "er:" not in shown
    assert "hunter2" not in repr(Route("http://user:hunter2", None))


CA = "/somewhere/ca.pem"


def test_the_first_bundle_named_is_the_one(tmp_path: Path) -> None:
    system = tmp_path / "system.pem"
    system.touch()
    missing = str(tmp_path / "missing.pem")
    both = {"REQUESTS_CA_BUNDLE": "/requests.pem", "SSL_CERT_FILE": "/ssl.pem"}

    def found(
        ca_file: str | os.PathLike[str] | None, environ: dict[str, str], *system_files: str
    ) -> str | None:
        return route_from(ca_file=ca_file, environ=environ, system_files=system_files).ca_file

    assert found(tmp_path / "mine.pem", both, str(system)) == str(tmp_path / "mine.pem")
    assert found(None, both, str(system)) == "/requests.pem"
    assert found(None, {**both, "REQUESTS_CA_BUNDLE": ""}, str(system)) == "/ssl.pem"
    assert found(None, {}, missing, str(system)) == str(system)


def test_certifi_is_the_last_resort_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    certifi = types.ModuleType("certifi")
    certifi.__spec__ = importlib.machinery.ModuleSpec("certifi", None)
    certifi.where = lambda: "/certifi.pem"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "certifi", certifi)
    assert route_from(environ={}, system_files=()).ca_file == "/certifi.pem"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert route_from(environ={}, system_files=()).ca_file is None


def test_an_empty_proxy_counts_as_none() -> None:
    assert route_from(proxy="", environ={}).proxy is None
