"""The way to the server: proxy and trusted certificate authorities.

**Proxy.** One that is configured is used as it is given, for every host: the environment's ``NO_PROXY`` does not
apply to it (who names a proxy for this one server means it). Without one, libcurl reads the environment at each
new connection: ``https_proxy``, ``all_proxy``, ``no_proxy`` in either case, ``http_proxy`` in lower case only
(the upper-case name can be set by a request to a CGI program).

**Certificate authorities.** Verification is always on. pycurl's wheels bring an OpenSSL of their own that knows
nothing of the system's certificates, so the bundle is named explicitly, the first of: the configuration's
``ca_file``, ``REQUESTS_CA_BUNDLE``, ``SSL_CERT_FILE``, the system's, certifi's where that is installed. One that
was named by somebody and cannot be read is an error, never a reason to trust another one.
"""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    """The network options of a transport.

    ``proxy``: URL of a proxy (``http``, ``https``, ``socks5``, ``socks5h``, with or without credentials), or
    None for the environment's. ``ca_file``: PEM bundle (or a directory of hashed certificates) of the
    authorities that are trusted, for the server and for an ``https`` proxy alike; None where this machine has
    none, and every TLS connection is refused.
    """

    proxy: str | None
    ca_file: str | None

    def __repr__(self) -> str:
        shown = None if self.proxy is None else proxy_place(self.proxy)
        return f"Route(proxy={shown!r}, ca_file={self.ca_file!r})"


def route_from(
    *,
    proxy: str | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] = os.environ,
    system_files: Sequence[str] = SYSTEM_CA_FILES,
) -> Route:
    """The route that a configuration's ``proxy`` and ``ca_file`` mean on this machine. Never raises for a file."""
    return Route(
        proxy=_with_port(proxy) if proxy else None, ca_file=_find_ca_file(ca_file, environ, system_files)
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
