from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trustme

from infi.ramen_client.delivery.transport import Route, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_proxies_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def open_transport() -> Iterator[Callable[..., Transport]]:
    opened: list[Transport] = []

    def build(proxy: str | None = None, ca_file: object = None, **fields: Any) -> Transport:
        transport = Transport(Route(proxy=proxy, ca_file=None if ca_file is None else str(ca_file), **fields))
        opened.append(transport)
        return transport

    yield build
    for transport in opened:
        transport.close()


@pytest.fixture
def transport(open_transport: Callable[..., Transport]) -> Transport:
    return open_transport()
