"""Who and what a sentence about a failure is about: free of secrets, in short and printable words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from .failures import FailureKind
from .route import proxy_place

if TYPE_CHECKING:
    from .exchange import Request
    from .route import Route

_MAX_DETAIL = 200
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")

Said = tuple[FailureKind, str, str]
"""Where it failed, what failed, and what to do."""


class Place(NamedTuple):
    """What the sentences need to know of the request and the route."""

    server: str
    host: str
    proxy: str
    tls: bool
    ca_file: str
    client_certificate: str
    """Empty: none."""
    client_key: str
    min_tls_version: str
    seconds: str
    body_bytes: int
    max_answer_bytes: int

    @property
    def ca_is_directory(self) -> bool:
        """Whether the authorities are a directory's."""
        return Path(self.ca_file).is_dir()


def place_of(request: Request, route: Route) -> Place:
    """What is about to be spoken of."""
    url = urlsplit(request.url)
    server = url.netloc.rpartition("@")[2]
    proxy = "the proxy that the environment names"
    if route.proxy:
        proxy = f"the proxy {proxy_place(route.proxy)}"
    certificate = route.client_certificate or ""
    return Place(
        server=server,
        host=server.rpartition(":")[0] if re.search(r":[0-9]*\Z", server) else server,
        proxy=proxy,
        tls=url.scheme == "https",
        ca_file=route.ca_file or "",
        client_certificate=certificate,
        client_key=route.client_key or certificate,
        min_tls_version=route.min_tls_version,
        seconds=f"{request.timeout_seconds:g} s",
        body_bytes=len(request.body),
        max_answer_bytes=request.max_answer_bytes,
    )


def clean(detail: str) -> str:
    """What libcurl says itself, harmless and short; whatever stands before an "@" may be a password."""
    return _UNPRINTABLE.sub(" ", detail.rpartition("@")[2])[:_MAX_DETAIL].strip()
