"""Through tinyproxy, squid and a SOCKS server: every message arrives once; what a proxy says itself takes none."""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from real_programs import CREDENTIALS, PASSWORD, free_port, haproxy, microsocks, squid, tinyproxy
from test_hostile_server_kit import CANARY, Client, arrived, lines

from infi.ramen_client.diagnosis import diagnose
from infi.ramen_client.testing import RamenServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    import trustme

    Proxy = Callable[[Path, int], AbstractContextManager[None]]
    NewClient = Callable[..., Client]

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("no_proxies")]

PROXIES: dict[str, tuple[str, Proxy]] = {
    "tinyproxy": ("http", tinyproxy),
    "squid": ("http", lambda _, port: squid(port)),
    "microsocks": ("socks5h", microsocks),
    "microsocks, names resolved here": ("socks5", microsocks),
}


@pytest.fixture(autouse=True)
def _programs(need_program: Callable[[str], None]) -> None:
    for name in ("tinyproxy", "squid", "microsocks", "haproxy"):
        need_program(name)


@pytest.fixture(params=[False, True], ids=["plain", "TLS"])
def server(request: pytest.FixtureRequest, authority: trustme.CA) -> Iterator[RamenServer]:
    context = None
    if request.param:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    with RamenServer(token=CANARY, ssl_context=context) as server:
        server.tls = request.param  # type: ignore[attr-defined]
        yield server


@pytest.fixture
def new_client(server: RamenServer, ca_file: Path, tmp_path: Path) -> Iterator[NewClient]:
    made: list[Client] = []

    def build(proxy: str, **fields: Any) -> Client:
        given = {"ssl": server.tls, "ca_file": str(ca_file), "proxy": proxy} | fields  # type: ignore[attr-defined]
        # libcurl gives a socks5 proxy the first address of a name, and that may be one of IPv6.
        host = "127.0.0.1" if proxy.startswith("socks5://") else "localhost"
        made.append(Client(tmp_path / f"queue{len(made)}", f"{host}:{server.port}", **given))
        return made[-1]

    yield build
    for client in made:
        client.verify()
        client.close()


def assert_all_arrive(server: RamenServer, client: Client) -> None:
    with client.running():
        client.wait_empty(20)
    assert arrived(server) == client.pushed
    assert server.duplicates == []
    assert client.counts() == {"pushed": len(client.pushed), "accepted": len(client.pushed)}


def assert_all_kept(
    server: RamenServer, client: Client, caplog: pytest.LogCaptureFixture, *words: str
) -> None:
    """The attempts fail; each of ``words`` is in what is said of them, the proxy's password never."""
    caplog.clear()
    with client.running():
        client.wait_until(lambda: client.server_row().get("failures", 0) > 2)
    assert client.counts() == {"pushed": len(client.pushed), "waiting": len(client.pushed)}
    step = diagnose(client.config).failed
    assert step is not None
    said = [*lines(caplog), f"{step.text}: {step.remedy}"]
    for word in words:
        assert word in said[0], said
        assert word in said[-1], said
    assert PASSWORD not in "".join(said)
    assert "wrong-one" not in "".join(said)


@pytest.mark.parametrize(("scheme", "proxy"), PROXIES.values(), ids=PROXIES)
def test_with_the_right_credentials_all_arrives_once_and_with_wrong_ones_all_is_kept(
    server: RamenServer,
    new_client: NewClient,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    scheme: str,
    proxy: Proxy,
) -> None:
    port = free_port()
    with proxy(tmp_path, port):
        wrong = new_client(f"{scheme}://ramen:wrong-one@127.0.0.1:{port}")
        wrong.push(3)
        # To a plain request tinyproxy answers before it has read the body, and its closing is a reset.
        said = f"the proxy 127.0.0.1:{port}" + ("" if proxy is tinyproxy else " wants other credentials")
        assert_all_kept(server, wrong, caplog, said)
        assert server.received + server.refused == []
        right = new_client(f"{scheme}://{CREDENTIALS}@127.0.0.1:{port}")
        right.push(100)
        assert_all_arrive(server, right)
        assert diagnose(right.config).ok


@pytest.mark.parametrize(("scheme", "proxy"), PROXIES.values(), ids=PROXIES)
def test_a_proxy_whose_server_is_away_loses_nothing(
    server: RamenServer,
    new_client: NewClient,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    scheme: str,
    proxy: Proxy,
) -> None:
    port = free_port()
    client = new_client(f"{scheme}://{CREDENTIALS}@127.0.0.1:{port}")
    client.push(7)
    assert_all_kept(server, client, caplog, f"the proxy 127.0.0.1:{port} refused the connection")
    server.stop()
    with proxy(tmp_path, port):
        assert_all_kept(server, client, caplog)
        server.start()
        assert_all_arrive(server, client)


FORBIDDING: dict[str, Proxy] = {
    "squid": lambda _, port: squid(port, "http_access deny all"),
    "tinyproxy": lambda directory, port: tinyproxy(
        directory, port, f'ConnectPort 1\nFilter "{_everything(directory)}"\nFilterExtended On\n'
    ),
}


def _everything(directory: Path) -> Path:
    path = directory / "filter"
    path.write_text(".*\n")
    return path


@pytest.mark.parametrize("proxy", FORBIDDING.values(), ids=FORBIDDING)
def test_a_proxy_that_forbids_the_server_loses_nothing(
    server: RamenServer,
    new_client: NewClient,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    proxy: Proxy,
) -> None:
    port = free_port()
    client = new_client(f"http://{CREDENTIALS}@127.0.0.1:{port}")
    client.push(7)
    with proxy(tmp_path, port):
        assert_all_kept(server, client, caplog, "proxy")
    with tinyproxy(tmp_path, port):
        assert_all_arrive(server, client)


@contextmanager
def tls_before(directory: Path, certificate: Path, port: int, behind: int) -> Iterator[None]:
    """TLS on one port for what is plain on another."""
    section = f"""
listen proxy
    mode tcp
    bind 127.0.0.1:{port} ssl crt {certificate}
    server one 127.0.0.1:{behind}
"""
    with haproxy(directory, section, port):
        yield


def test_a_proxy_that_speaks_tls_itself_is_verified_first(
    server: RamenServer,
    new_client: NewClient,
    issue: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port, behind = free_port(), free_port()
    client = new_client(f"https://{CREDENTIALS}@localhost:{port}")
    client.push(20)
    with tinyproxy(tmp_path, behind):
        with tls_before(tmp_path, issue("other.example"), port, behind):
            words = f"the certificate of the proxy localhost:{port} is for another host name"
            assert_all_kept(server, client, caplog, words)
            assert server.received + server.refused == []
        with tls_before(tmp_path, issue("localhost"), port, behind):
            assert_all_arrive(server, client)
