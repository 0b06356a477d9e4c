"""What goes wrong between two ends of TLS, in words: certificates, versions, and what the other side sends as an alert."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ._place import Place, Said, clean
from .failures import FailureKind

if TYPE_CHECKING:
    from .failures import Facts

_EXPIRED, _NOT_YET_VALID = 10, 9
_UNKNOWN_AUTHORITY = frozenset(
    {2, 18, 19, 20, 21}
)  # X509_V_ERR_…: no issuer found, self-signed, chain incomplete

_ALERT = re.compile(r"alert ([a-z][a-z ]*[a-z])")
_ABOUT_THE_CLIENT = frozenset(
    {
        "access denied",
        "bad certificate",
        "certificate expired",
        "certificate required",
        "certificate revoked",
        "certificate unknown",
        "decrypt error",
        "handshake failure",
        "unknown ca",
        "unsupported certificate",
    }
)
"""Alerts that a server sends to say something about a client's certificate, or that there was none."""


_ALERT_AS_VERIFICATION = "SSL certificate verification failed"
"""What libcurl says, without a reason behind it, when up to TLS 1.2 the *server* sends "certificate expired"."""


def alert_in(detail: str) -> str:
    """The name of the alert that libcurl tells of, in OpenSSL's words; empty: none."""
    found = _ALERT.search(detail.lower())
    return found[1] if found else ""


def say_handshake_failed(facts: Facts, place: Place) -> Said:
    """TLS was begun and did not come about."""
    peer, detail = _peer(facts, place), facts.detail.lower()
    if "wrong version number" in detail or "packet length too long" in detail or "http request" in detail:
        return (
            FailureKind.TLS,
            f"{peer} does not speak TLS on this port",
            "check the port, or set `ssl` to false",
        )
    if "protocol version" in detail or "unsupported protocol" in detail:
        newer = "" if place.min_tls_version == "1.2" else ", or `min_tls_version` lowered"
        return (
            FailureKind.TLS,
            f"{peer} speaks no TLS version from {place.min_tls_version} on",
            f"it has to be updated{newer}",
        )
    if alert_in(detail) in _ABOUT_THE_CLIENT:
        return say_alert(facts, place)
    return (
        FailureKind.TLS,
        f"the TLS handshake with {peer} failed ({clean(facts.detail)})",
        "check that side's TLS settings",
    )


def say_alert(facts: Facts, place: Place) -> Said:
    """The other side ended TLS, and sent why."""
    peer, alert = _peer(facts, place), alert_in(facts.detail) or "certificate required"
    if peer == place.server and alert in _ABOUT_THE_CLIENT:
        what, remedy = (
            _say_refused_identity(alert, place) if place.client_certificate else _say_anonymous(alert)
        )
        return FailureKind.TLS, f"{peer} {what}", remedy
    return FailureKind.TLS, f"{peer} ended the TLS session ({alert})", "check that side's TLS settings"


def _say_anonymous(alert: str) -> tuple[str, str]:
    if alert == "certificate required":
        return "wants a client certificate", "name one as `client_certificate`"
    # Up to TLS 1.2 this alert says it, and also that there is no cipher in common.
    return (
        f"ended the TLS session ({alert})",
        "check its TLS settings; if it wants a client certificate, name one as `client_certificate`",
    )


def _say_refused_identity(alert: str, place: Place) -> tuple[str, str]:
    shown = f"the client certificate in {place.client_certificate}"
    if alert == "certificate expired":
        return f"says that {shown} is out of its time", "renew it, and check that machine's clock"
    if alert == "certificate revoked":
        return f"says that {shown} is revoked", "have a new one issued"
    if alert == "unknown ca":
        return (
            f"does not know the authority of {shown}",
            "have it issued by one that the server trusts, and put the certificates between the two into the file",
        )
    return f"refuses {shown} ({alert})", "ask the server's operator which certificates it takes"


def say_unverified(facts: Facts, place: Place) -> Said:
    """Our own check of the other side's certificate failed."""
    result = facts.verify_result or facts.proxy_verify_result
    by_name = "subject name" in facts.detail
    if place.client_certificate and facts.detail == _ALERT_AS_VERIFICATION:
        what, remedy = _say_refused_identity("certificate expired", place)
        return FailureKind.TLS, f"{place.server} {what}", remedy
    if result == _EXPIRED:
        what, remedy = "has expired", "renew it there, and check this machine's clock"
    elif result == _NOT_YET_VALID:
        what, remedy = "is not valid yet", "check the clocks of both machines"
    elif result in _UNKNOWN_AUTHORITY:
        what = f"was not issued by an authority in {place.ca_file}"
        remedy = "add its authority there, or name its file as `ca_file`"
        if place.ca_is_directory:
            remedy = f"add its authority there and run `openssl rehash {place.ca_file}`"
    elif by_name:
        what, remedy = "is for another host name", f"check `hostname` (authorities: {place.ca_file})"
    else:
        what = f"is not trusted ({clean(facts.detail)})"
        remedy = f"check it against the authorities in {place.ca_file}"
    return FailureKind.TLS, f"the certificate of {_peer(facts, place)} {what}", remedy


def say_no_authorities(_facts: Facts, place: Place) -> Said:
    """The file that we check against is of no use."""
    return (
        FailureKind.SETUP,
        f"the certificate authorities in {place.ca_file} cannot be read",
        "name a readable PEM file as `ca_file`, or install the system's CA certificates",
    )


def say_unusable_identity(facts: Facts, place: Place) -> Said:
    """Certificate and key are there (see ``identity``), but do not serve."""
    if not place.client_certificate:
        return FailureKind.SETUP, f"the request cannot be sent ({clean(facts.detail)})", ""
    certificate, key = place.client_certificate, place.client_key
    if "private key" in facts.detail:
        return (
            FailureKind.SETUP,
            f"the private key in {key} is damaged, or not that of the certificate in {certificate}",
            f"`openssl pkey -in {key} -pubout` and `openssl x509 -in {certificate} -noout -pubkey` must print the same",
        )
    return (
        FailureKind.SETUP,
        f"the client certificate in {certificate} is damaged ({clean(facts.detail)})",
        f"look at it with `openssl x509 -in {certificate} -noout -text`",
    )


def _peer(facts: Facts, place: Place) -> str:
    """Whose TLS it was: an https proxy's comes first, and its result stays 0 once it is through."""
    of_proxy = facts.through_proxy and facts.proxy_verify_result != 0 and facts.verify_result == 0
    return place.proxy if of_proxy else place.server
