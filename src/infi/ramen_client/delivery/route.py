"""The way to the server: the proxy, and who is trusted on the way and how we show who we are.

**Proxy.** One that is configured is used as it is given, for every host: the environment's ``NO_PROXY`` does not
apply to it (who names a proxy for this one server means it). Without one, libcurl reads the environment at each
new connection: ``https_proxy``, ``all_proxy``, ``no_proxy`` in either case, ``http_proxy`` in lower case only
(the upper-case name can be set by a request to a CGI program).

**Certificate authorities.** Verification is always on. pycurl's wheels bring an OpenSSL of their own that knows
nothing of the system's certificates, so the bundle is named explicitly, the first of: the configuration's
``ca_file``, ``REQUESTS_CA_BUNDLE``, ``SSL_CERT_FILE``, the system's, certifi's where that is installed. One that
was named by somebody and cannot be read is an error, never a reason to trust another one. A directory holds one
file for each authority, under the names that ``openssl rehash`` gives.

**Client certificate.** It is shown to the server, never to a proxy; see ``identity``.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from infi.ramen_client.config import QueueReaderConfig

SYSTEM_CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Gentoo
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat, Fedora
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # Red Hat, newer
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # Alpine, the BSDs, macOS
)

_PLACE = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")

_CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


@dataclass(frozen=True, slots=True, repr=False)
class Route:
    """The network options of a transport. Two that are equal mean the same files, not the same contents.

    ``proxy``: URL of a proxy (``http``, ``https``, ``socks5``, ``socks5h``, with or without credentials), or
    None for the environment's. ``ca_file``: PEM bundle (or a directory of hashed certificates) of the
    authorities that are trusted, for the server and for an ``https`` proxy alike; None where this machine has
    none, and every TLS connection is refused. ``client_certificate``, ``client_key``: PEM files; without the second,
    the key is in the first. ``min_tls_version``: towards the server and an ``https`` proxy.
    """

    proxy: str | None
    ca_file: str | None
    client_certificate: str | None = None
    client_key: str | None = None
    min_tls_version: Literal["1.2", "1.3"] = "1.2"

    @property
    def files(self) -> tuple[str, ...]:
        """The files and directories whose contents count."""
        return tuple(
            path for path in (self.ca_file, self.client_certificate, self.client_key) if path is not None
        )

    def __repr__(self) -> str:
        shown = None if self.proxy is None else proxy_place(self.proxy)
        return (
            f"Route(proxy={shown!r}, ca_file={self.ca_file!r}, client_certificate={self.client_certificate!r}, "
            f"client_key={self.client_key!r}, min_tls_version={self.min_tls_version!r})"
        )


def route_of(config: QueueReaderConfig) -> Route:
    """The route of a validated configuration on this machine. Never raises for a file."""
    return route_from(
        proxy=config.proxy,
        ca_file=config.ca_file,
        client_certificate=config.client_certificate,
        client_key=config.client_key,
        min_tls_version=config.min_tls_version,
    )


def route_from(
    *,
    proxy: str | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    client_certificate: str | os.PathLike[str] | None = None,
    client_key: str | os.PathLike[str] | None = None,
    min_tls_version: Literal["1.2", "1.3"] = "1.2",
    environ: Mapping[str, str] = os.environ,
    system_files: Sequence[str] = SYSTEM_CA_FILES,
) -> Route:
    """The route that these fields of a configuration mean on this machine. Never raises for a file."""
    return Route(
        proxy=_with_port(proxy) if proxy else None,
        ca_file=_find_ca_file(ca_file, environ, system_files),
        client_certificate=None if client_certificate is None else os.fspath(client_certificate),
        client_key=None if client_key is None else os.fspath(client_key),
        min_tls_version=min_tls_version,
    )


def _with_port(url: str) -> str:
    """A proxy's URL with the port that its scheme has: libcurl would take 1080 for every kind, 1.x took these."""
    scheme, mark, rest = url.rpartition("://")
    usual = {"": 80, "http": 80, "https": 443}.get(scheme.lower())
    place = rest.rpartition("@")[2].rstrip("/")
    if usual is None or place.rpartition("]")[2].count(":"):
        return url
    return f"{scheme}{mark}{rest.rstrip('/')}:{usual}"


def proxy_place(url: str) -> str:
    """Host and port of a proxy's URL, to be shown; "…" where it does not look like these (it may be a password)."""
    place = url.rpartition("://")[2].rpartition("@")[2].rstrip("/")
    return place if _PLACE.fullmatch(place) else "…"


def _find_ca_file(
    configured: str | os.PathLike[str] | None, environ: Mapping[str, str], system_files: Sequence[str]
) -> str | None:
    if configured is not None:
        return os.fspath(configured)
    for variable in _CA_VARIABLES:
        if named := environ.get(variable):
            return named
    for candidate in system_files:
        if Path(candidate).is_file():
            return candidate
    if importlib.util.find_spec("certifi") is not None:
        certifi = importlib.import_module("certifi")
        return str(certifi.where())
    return None
