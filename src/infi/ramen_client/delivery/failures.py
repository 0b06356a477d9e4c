"""Why no usable answer came, in words.

libcurl's codes and texts are turned into words for a person: what failed, and what to do. Texts are our own
wherever a cause is known; where a piece of libcurl's text helps, it is shortened, freed of control characters and of
everything that looks like credentials in a URL (libcurl quotes a malformed proxy URL whole). No token can be in them:
libcurl's texts never quote what is sent.

``connected`` is False only when libcurl handed not one byte of the request to any connection, an earlier, reused one that
died included (``REQUEST_SIZE`` adds up over libcurl's own retries; a CONNECT to a proxy does not count).
"""

from __future__ import annotations

import errno as error_numbers
import os
import re
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from infi.ramen_protocol.verdict import MAX_ANSWER_BYTES

from .exchange import MAX_ANSWER_HEADER_BYTES, MAX_ANSWER_HEADERS
from .route import proxy_place

if TYPE_CHECKING:
    from collections.abc import Callable

    from .exchange import Request, Trace
    from .route import Route


class FailureKind(Enum):
    """Where on the way it failed."""

    RESOLVE = "resolve"
    """The server's name has no address."""
    CONNECT = "connect"
    """No connection to the server: refused, unreachable."""
    PROXY = "proxy"
    """The proxy cannot be reached or refuses."""
    TLS = "tls"
    """The TLS handshake or the verification of a certificate failed."""
    TIMEOUT = "timeout"
    """The request's time-out ran out, in whatever phase."""
    BROKEN = "broken"
    """The connection ended early, or what came is no HTTP answer."""
    OVERSIZED = "oversized"
    """The answer is larger than a client reads; its status was not believed."""
    SETUP = "setup"
    """Our own configuration: a CA file that cannot be read, a malformed proxy URL, an unsendable header."""


@dataclass(frozen=True, slots=True)
class Failure:
    """No usable answer. ``what`` failed and what to do about it (``remedy``, maybe empty), without secrets.

    ``connected`` is False only if no byte of the request can have reached the server; with True its outcome is unknown
    (what was given to a proxy counts as having reached the server, a CONNECT apart). ``trace``: with a traced request alone.
    """

    kind: FailureKind
    what: str
    connected: bool
    remedy: str = ""
    trace: Trace | None = None

    @property
    def text(self) -> str:
        """Both in one sentence."""
        return f"{self.what}: {self.remedy}" if self.remedy else self.what


@dataclass(frozen=True, slots=True)
class Facts:
    """What libcurl says about a transfer that failed; names and numbers are those of libcurl-errors(3)."""

    code: int
    detail: str
    errno: int = 0
    status: int = 0
    resolved: bool = False
    reached: bool = False
    request_bytes: int = 0
    body_bytes_sent: int = 0
    through_proxy: bool = False
    tunnel_status: int = 0
    verify_result: int = 0
    proxy_verify_result: int = 0
    trace: Trace | None = None


class _Code(IntEnum):
    OK = 0
    UNSUPPORTED_PROTOCOL = 1
    COULDNT_RESOLVE_PROXY = 5
    COULDNT_RESOLVE_HOST = 6
    COULDNT_CONNECT = 7
    WEIRD_SERVER_REPLY = 8
    PARTIAL_FILE = 18
    OPERATION_TIMEDOUT = 28
    SSL_CONNECT_ERROR = 35
    GOT_NOTHING = 52
    SEND_ERROR = 55
    RECV_ERROR = 56
    PEER_FAILED_VERIFICATION = 60
    FILESIZE_EXCEEDED = 63
    SSL_CACERT_BADFILE = 77
    PROXY = 97
    TOO_LARGE = 100


OVERSIZED_HEAD = int(_Code.TOO_LARGE)
"""The code under which our own bound on the answer's headers is reported."""

_MAX_DETAIL = 200
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")

_EXPIRED, _NOT_YET_VALID = 10, 9
_UNKNOWN_AUTHORITY = frozenset(
    {2, 18, 19, 20, 21}
)  # X509_V_ERR_…: no issuer found, self-signed, chain incomplete
_TUNNEL_MADE = 200
_AUTHENTICATION_REQUIRED = 407

_CHECK_THE_WAY = "check the server and what lies between"


class _Place(NamedTuple):
    """What the sentences need to know of the request and the route, free of secrets."""

    server: str
    host: str
    proxy: str
    tls: bool
    ca_file: str
    seconds: str
    body_bytes: int


_Said = tuple[FailureKind, str, str]
"""Where it failed, what failed, and what to do."""


def setup_failure(reason: str, remedy: str = "") -> Failure:
    """The failure of a request that could not even be begun."""
    return Failure(FailureKind.SETUP, f"the request cannot be sent: {reason}", connected=False, remedy=remedy)


def describe(facts: Facts, request: Request, route: Route) -> Failure:
    """The failure that these facts amount to."""
    place = _place(request, route)
    kind, what, remedy = _SAYINGS.get(facts.code, _say_other)(facts, place)
    return Failure(kind, what, facts.request_bytes > 0, remedy, facts.trace)


def _place(request: Request, route: Route) -> _Place:
    url = urlsplit(request.url)
    server = url.netloc.rpartition("@")[2]
    proxy = "the proxy that the environment names"
    if route.proxy:
        proxy = f"the proxy {proxy_place(route.proxy)}"
    return _Place(
        server=server,
        host=server.rpartition(":")[0] if re.search(r":[0-9]*\Z", server) else server,
        proxy=proxy,
        tls=url.scheme == "https",
        ca_file=route.ca_file or "",
        seconds=f"{request.timeout_seconds:g} s",
        body_bytes=len(request.body),
    )


def _clean(detail: str) -> str:
    """What libcurl says itself, harmless and short; whatever stands before an "@" may be a password."""
    return _UNPRINTABLE.sub(" ", detail.rpartition("@")[2])[:_MAX_DETAIL].strip()


def _say_unresolved(_facts: Facts, place: _Place) -> _Said:
    return (
        FailureKind.RESOLVE,
        f"the name {place.host} cannot be resolved",
        "check `hostname` and this machine's name service",
    )


def _say_proxy_unresolved(facts: Facts, place: _Place) -> _Said:
    # libcurl has one code for a name without address and for a URL that it cannot read; it quotes that URL whole.
    if "Could not resolve" in facts.detail:
        return (
            FailureKind.PROXY,
            f"the name of {place.proxy} cannot be resolved",
            "check `proxy` or the environment",
        )
    return (
        FailureKind.SETUP,
        "the proxy's URL is malformed",
        "check `proxy`, or the environment's proxy variables",
    )


def _say_unconnected(facts: Facts, place: _Place) -> _Said:
    if "Unsupported proxy" in facts.detail:
        return (
            FailureKind.SETUP,
            "the proxy's URL has a scheme that is not supported",
            "use http, https, socks5 or socks5h",
        )
    if facts.tunnel_status == _AUTHENTICATION_REQUIRED:
        return _say_proxy_authentication(facts, place)
    if facts.tunnel_status:
        return (
            FailureKind.PROXY,
            f"{place.proxy} refused a tunnel to {place.server} with status {facts.tunnel_status}",
            "check that it may reach this server and port",
        )
    kind, target = (
        (FailureKind.PROXY, place.proxy) if facts.through_proxy else (FailureKind.CONNECT, place.server)
    )
    if facts.errno == error_numbers.ECONNREFUSED:
        return (
            kind,
            f"{target} refused the connection",
            "check that it is running and that host and port are right",
        )
    reason = os.strerror(facts.errno) if facts.errno else "no connection could be made"
    return kind, f"{target} cannot be reached ({reason})", "check the network, host and port"


def _say_proxy_authentication(_facts: Facts, place: _Place) -> _Said:
    return (
        FailureKind.PROXY,
        f"{place.proxy} wants other credentials (407)",
        "check user and password in the proxy's URL",
    )


def _say_proxy_failed(facts: Facts, place: _Place) -> _Said:
    return (
        FailureKind.PROXY,
        f"{place.proxy} did not connect to {place.server} ({_clean(facts.detail)})",
        "check its URL, credentials and rules",
    )


def _say_timed_out(facts: Facts, place: _Place) -> _Said:
    way = f" through {place.proxy}" if facts.through_proxy else ""
    if facts.request_bytes > 0:
        if facts.body_bytes_sent < place.body_bytes:
            what = f"{place.server} did not take the whole request{way} within {place.seconds}"
        elif facts.status:
            what = f"{place.server} did not finish its answer{way} within {place.seconds}"
        else:
            what = f"{place.server} did not answer{way} within {place.seconds}"
        return FailureKind.TIMEOUT, what, "check the server and its load, or raise `server_timeout`"
    if not facts.resolved and "esolving" in facts.detail:
        return (
            FailureKind.TIMEOUT,
            f"the name {place.host} was not resolved{way} within {place.seconds}",
            "check this machine's name service",
        )
    if facts.reached and (place.tls or facts.through_proxy):
        missing = "no tunnel or TLS session" if facts.through_proxy else "no TLS session"
        return (
            FailureKind.TIMEOUT,
            f"{missing} with {place.server}{way} within {place.seconds}",
            "check that host and port are right",
        )
    return (
        FailureKind.TIMEOUT,
        f"no connection to {place.server}{way} within {place.seconds}",
        "check network, firewall, host and port",
    )


def _say_handshake_failed(facts: Facts, place: _Place) -> _Said:
    peer, detail = _tls_peer(facts, place), facts.detail.lower()
    if "wrong version number" in detail or "packet length too long" in detail or "http request" in detail:
        return (
            FailureKind.TLS,
            f"{peer} does not speak TLS on this port",
            "check the port, or set `ssl` to false",
        )
    if "protocol version" in detail or "unsupported protocol" in detail:
        return FailureKind.TLS, f"{peer} speaks no TLS version from 1.2 on", "it has to be updated"
    return (
        FailureKind.TLS,
        f"the TLS handshake with {peer} failed ({_clean(facts.detail)})",
        "check that side's TLS settings",
    )


def _say_unverified(facts: Facts, place: _Place) -> _Said:
    certificate = f"the certificate of {_tls_peer(facts, place)}"
    result = facts.verify_result or facts.proxy_verify_result
    if result == _EXPIRED:
        what, remedy = "has expired", "renew it there, and check this machine's clock"
    elif result == _NOT_YET_VALID:
        what, remedy = "is not valid yet", "check the clocks of both machines"
    elif result in _UNKNOWN_AUTHORITY:
        what = f"was not issued by an authority in {place.ca_file}"
        remedy = "add its authority there, or name its file as `ca_file`"
    elif "subject name" in facts.detail:
        what, remedy = "is for another host name", f"check `hostname` (authorities: {place.ca_file})"
    else:
        what = f"is not trusted ({_clean(facts.detail)})"
        remedy = f"check it against the authorities in {place.ca_file}"
    return FailureKind.TLS, f"{certificate} {what}", remedy


def _say_no_authorities(_facts: Facts, place: _Place) -> _Said:
    return (
        FailureKind.SETUP,
        f"the certificate authorities in {place.ca_file} cannot be read",
        "name a readable PEM file as `ca_file`, or install the system's CA certificates",
    )


def _tls_peer(facts: Facts, place: _Place) -> str:
    """Whose TLS it was: an https proxy's comes first, and its result stays 0 once it is through."""
    of_proxy = facts.through_proxy and facts.proxy_verify_result != 0 and facts.verify_result == 0
    return place.proxy if of_proxy else place.server


def _say_broken(facts: Facts, place: _Place) -> _Said:
    detail = facts.detail.lower()
    if "alert" in detail:
        return (
            FailureKind.TLS,
            f"{place.server} ended the TLS session ({_clean(facts.detail)})",
            "check its TLS settings (a client certificate cannot be given)",
        )
    if facts.request_bytes == 0 and facts.through_proxy and facts.tunnel_status != _TUNNEL_MADE:
        return FailureKind.PROXY, f"{place.proxy} broke the connection off", "check its URL and its rules"
    if "reset" in detail or "broken pipe" in detail:
        return (
            FailureKind.BROKEN,
            f"the connection to {place.server} was reset{_tls_hint(place)}",
            _CHECK_THE_WAY,
        )
    if facts.status or "chunk" in detail:
        return _say_truncated(facts, place)
    return (
        FailureKind.BROKEN,
        f"the connection to {place.server} broke ({_clean(facts.detail)})",
        _CHECK_THE_WAY,
    )


def _say_empty(_facts: Facts, place: _Place) -> _Said:
    return (
        FailureKind.BROKEN,
        f"{place.server} closed the connection without an answer{_tls_hint(place)}",
        _CHECK_THE_WAY,
    )


def _say_truncated(facts: Facts, place: _Place) -> _Said:
    return (
        FailureKind.BROKEN,
        f"the answer of {place.server} broke off or is malformed ({_clean(facts.detail)})",
        _CHECK_THE_WAY,
    )


def _say_malformed(facts: Facts, place: _Place) -> _Said:
    if facts.request_bytes == 0 and facts.through_proxy:
        return (
            FailureKind.PROXY,
            f"{place.proxy} does not answer like an HTTP proxy",
            "check its URL and port",
        )
    if facts.request_bytes == 0:
        return FailureKind.SETUP, f"the request cannot be sent: {_clean(facts.detail)}", ""
    return (
        FailureKind.BROKEN,
        f"the answer of {place.server} broke off in its head or is not HTTP/1.x",
        f"check host and port{_tls_hint(place)}",
    )


def _tls_hint(place: _Place) -> str:
    return "" if place.tls else " (if it speaks TLS on this port, set `ssl` to true)"


def _say_oversized(facts: Facts, place: _Place) -> _Said:
    excess = (
        f"more than {MAX_ANSWER_HEADERS} header lines or {MAX_ANSWER_HEADER_BYTES // 1024} KiB of them"
        if facts.code == _Code.TOO_LARGE
        else f"more than {MAX_ANSWER_BYTES // 1024} KiB"
    )
    return (
        FailureKind.OVERSIZED,
        f"{place.server} answered {facts.status} with {excess}",
        "check that it is a Ramen server",
    )


def _say_other(facts: Facts, place: _Place) -> _Said:
    cause = f"({_clean(facts.detail)}, libcurl {facts.code})"
    if facts.request_bytes > 0:
        return FailureKind.BROKEN, f"the exchange with {place.server} failed {cause}", ""
    return FailureKind.SETUP, f"the request cannot be sent {cause}", ""


_SAYINGS: dict[int, Callable[[Facts, _Place], _Said]] = {
    _Code.OK: _say_proxy_authentication,
    _Code.UNSUPPORTED_PROTOCOL: _say_malformed,
    _Code.COULDNT_RESOLVE_PROXY: _say_proxy_unresolved,
    _Code.COULDNT_RESOLVE_HOST: _say_unresolved,
    _Code.COULDNT_CONNECT: _say_unconnected,
    _Code.WEIRD_SERVER_REPLY: _say_malformed,
    _Code.PARTIAL_FILE: _say_truncated,
    _Code.OPERATION_TIMEDOUT: _say_timed_out,
    _Code.SSL_CONNECT_ERROR: _say_handshake_failed,
    _Code.GOT_NOTHING: _say_empty,
    _Code.SEND_ERROR: _say_broken,
    _Code.RECV_ERROR: _say_broken,
    _Code.PEER_FAILED_VERIFICATION: _say_unverified,
    _Code.FILESIZE_EXCEEDED: _say_oversized,
    _Code.SSL_CACERT_BADFILE: _say_no_authorities,
    _Code.PROXY: _say_proxy_failed,
    _Code.TOO_LARGE: _say_oversized,
}
