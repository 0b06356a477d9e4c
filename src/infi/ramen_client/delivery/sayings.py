"""Why no usable answer came, in words.

libcurl's codes and texts are turned into words for a person: what failed, and what to do. Texts are our own
wherever a cause is known; where a piece of libcurl's text helps, it is shortened, freed of control characters and of
everything that looks like credentials in a URL (libcurl quotes a malformed proxy URL whole). No token can be in them:
libcurl's texts never quote what is sent.
"""

from __future__ import annotations

import errno as error_numbers
import os
import re
from typing import TYPE_CHECKING

from ._place import Place, Said, clean, place_of
from ._tls_sayings import (
    alert_in,
    say_alert,
    say_handshake_failed,
    say_no_authorities,
    say_unusable_identity,
    say_unverified,
)
from .exchange import MAX_ANSWER_HEADER_BYTES, MAX_ANSWER_HEADERS
from .failures import Code, Facts, Failure, FailureKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from .exchange import Request
    from .route import Route

_TUNNEL_MADE = 200
_CREDENTIALS_REFUSED = frozenset({401, 407})
"""What proxies answer to a CONNECT with the wrong credentials; tinyproxy uses the first."""

_SOCKS_REPLY = re.compile(r"SOCKS5 connection to .*\(([0-9]+)\)\Z")
_SOCKS_REASONS = {
    1: "general failure, such as a name without an address",
    2: "its rules forbid it",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "it took too long",
    8: "an address of a kind that it does not support",
}
"""RFC 1928 section 6."""


def describe(facts: Facts, request: Request, route: Route) -> Failure:
    """The failure that these facts amount to."""
    kind, what, remedy = _SAYINGS.get(facts.code, _say_other)(facts, place_of(request, route))
    return Failure(kind, what, facts.request_bytes > 0, remedy, facts.trace)


def _say_unresolved(_facts: Facts, place: Place) -> Said:
    return (
        FailureKind.RESOLVE,
        f"the name {place.host} cannot be resolved",
        "check `hostname` and this machine's name service",
    )


def _say_proxy_unresolved(facts: Facts, place: Place) -> Said:
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


def _say_unconnected(facts: Facts, place: Place) -> Said:
    if "Unsupported proxy" in facts.detail:
        return (
            FailureKind.SETUP,
            "the proxy's URL has a scheme that is not supported",
            "use http, https, socks5 or socks5h",
        )
    if facts.tunnel_status in _CREDENTIALS_REFUSED:
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


def _say_proxy_authentication(facts: Facts, place: Place) -> Said:
    status = f" ({facts.tunnel_status or facts.status})" if facts.tunnel_status or facts.status else ""
    return (
        FailureKind.PROXY,
        f"{place.proxy} wants other credentials{status}",
        "check user and password in the proxy's URL",
    )


def _say_proxy_failed(facts: Facts, place: Place) -> Said:
    if "rejected" in facts.detail or "authentication" in facts.detail.lower():
        return _say_proxy_authentication(facts, place)
    reply = _SOCKS_REPLY.search(facts.detail)
    reason = _SOCKS_REASONS.get(int(reply[1])) if reply and len(reply[1]) == 1 else None
    return (
        FailureKind.PROXY,
        f"{place.proxy} did not connect to {place.server} ({reason or clean(facts.detail)})",
        "check the server, and the proxy's rules; with socks5h in place of socks5 the proxy looks the name up itself, "
        "and may try each of its addresses"
        if reason
        else "check its URL, credentials and rules",
    )


def _say_timed_out(facts: Facts, place: Place) -> Said:
    way = _way(facts, place)
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


def _say_broken(facts: Facts, place: Place) -> Said:
    detail = facts.detail.lower()
    if alert_in(facts.detail):  # since TLS 1.3 a server looks at the client's certificate after the handshake
        return say_alert(facts, place)
    if facts.request_bytes == 0 and facts.through_proxy and facts.tunnel_status != _TUNNEL_MADE:
        return FailureKind.PROXY, f"{place.proxy} broke the connection off", "check its URL and its rules"
    if "reset" in detail or "broken pipe" in detail:
        return (
            FailureKind.BROKEN,
            f"the connection to {place.server}{_way(facts, place)} was reset{_tls_hint(facts, place)}",
            _check_the_way(facts),
        )
    if facts.status or "chunk" in detail:
        return _say_truncated(facts, place)
    return (
        FailureKind.BROKEN,
        f"the connection to {place.server}{_way(facts, place)} broke ({clean(facts.detail)})",
        _check_the_way(facts),
    )


def _say_empty(facts: Facts, place: Place) -> Said:
    who = f"{place.proxy}, or {place.server} behind it," if facts.through_proxy else place.server
    return (
        FailureKind.BROKEN,
        f"{who} closed the connection without an answer{_tls_hint(facts, place)}",
        _check_the_way(facts),
    )


def _say_truncated(facts: Facts, place: Place) -> Said:
    return (
        FailureKind.BROKEN,
        f"the answer of {place.server}{_way(facts, place)} broke off or is malformed ({clean(facts.detail)})",
        _check_the_way(facts),
    )


def _say_malformed(facts: Facts, place: Place) -> Said:
    if facts.request_bytes == 0 and facts.through_proxy:
        return (
            FailureKind.PROXY,
            f"{place.proxy} does not answer like an HTTP proxy",
            "check its URL and port",
        )
    if facts.request_bytes == 0:
        return FailureKind.SETUP, f"the request cannot be sent: {clean(facts.detail)}", ""
    return (
        FailureKind.BROKEN,
        f"the answer of {place.server} broke off in its head or is not HTTP/1.x",
        f"check host and port{_tls_hint(facts, place)}",
    )


def _way(facts: Facts, place: Place) -> str:
    return f" through {place.proxy}" if facts.through_proxy else ""


def _check_the_way(facts: Facts) -> str:
    return (
        "check the proxy's rules and log, and the server"
        if facts.through_proxy
        else "check the server and what lies between"
    )


def _tls_hint(facts: Facts, place: Place) -> str:
    return "" if place.tls or facts.through_proxy else " (if it speaks TLS on this port, set `ssl` to true)"


def _say_oversized(facts: Facts, place: Place) -> Said:
    excess = (
        f"more than {MAX_ANSWER_HEADERS} header lines or {MAX_ANSWER_HEADER_BYTES // 1024} KiB of them"
        if facts.code == Code.TOO_LARGE
        else f"more than {place.max_answer_bytes // 1024} KiB"
    )
    return (
        FailureKind.OVERSIZED,
        f"{place.server} answered {facts.status} with {excess}",
        "check that it is a Ramen server",
    )


def _say_other(facts: Facts, place: Place) -> Said:
    cause = f"({clean(facts.detail)}, libcurl {facts.code})"
    if facts.request_bytes > 0:
        return FailureKind.BROKEN, f"the exchange with {place.server} failed {cause}", ""
    return FailureKind.SETUP, f"the request cannot be sent {cause}", ""


_SAYINGS: dict[int, Callable[[Facts, Place], Said]] = {
    Code.OK: _say_proxy_authentication,
    Code.UNSUPPORTED_PROTOCOL: _say_malformed,
    Code.COULDNT_RESOLVE_PROXY: _say_proxy_unresolved,
    Code.COULDNT_RESOLVE_HOST: _say_unresolved,
    Code.COULDNT_CONNECT: _say_unconnected,
    Code.WEIRD_SERVER_REPLY: _say_malformed,
    Code.PARTIAL_FILE: _say_truncated,
    Code.OPERATION_TIMEDOUT: _say_timed_out,
    Code.SSL_CONNECT_ERROR: say_handshake_failed,
    Code.BAD_FUNCTION_ARGUMENT: say_unusable_identity,
    Code.GOT_NOTHING: _say_empty,
    Code.SEND_ERROR: _say_broken,
    Code.RECV_ERROR: _say_broken,
    Code.SSL_CERTPROBLEM: say_unusable_identity,
    Code.PEER_FAILED_VERIFICATION: say_unverified,
    Code.FILESIZE_EXCEEDED: _say_oversized,
    Code.SSL_CACERT_BADFILE: say_no_authorities,
    Code.PROXY: _say_proxy_failed,
    Code.SSL_CLIENTCERT: say_alert,
    Code.TOO_LARGE: _say_oversized,
}
