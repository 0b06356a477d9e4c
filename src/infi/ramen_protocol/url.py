"""The URL of version 1: one message, one target (protocol section 1, "Request").

    /ramen/v1/{category}/{system_serial}/{sender}.{data_type}.{data_version}/?version={system_version}&reqid={reqid}

Building percent-encodes whatever is not unreserved (RFC 3986 section 2.3), so nothing in a message can add a path
segment or a query key: 1.x let ``x&reqid=y`` through. Names need no encoding; those that an old queue may hold
(a trailing newline) are encoded like any other text and left to the server's verdict.

Parsing takes exactly what building makes, and 1.x's unescaped reqids where they are not ambiguous. The path is
half of the server's duplicate key, so each message has one spelling of it: no percent-encoding in names,
no leading zeros in the serial. Each length is bounded before anything else is looked at.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import AddressValueError, IPv6Address
from urllib.parse import quote, unquote_to_bytes

from infi.ramen_protocol.answers import Code, RefusedRequest
from infi.ramen_protocol.message import MAX_REQID_BYTES, Envelope, normalise_reqid
from infi.ramen_protocol.names import is_name, is_version

MAX_TARGET_CHARS = 16 * 1024
"""The longest target that is parsed: a reqid of 2 KiB with every byte escaped is 6 KiB, the rest is for names."""

MAX_SYSTEM_SERIAL = 2**63 - 1
"""The largest serial that is parsed: what a column of any store holds."""

_PREFIX = "/ramen/v1/"
_PLAIN = re.compile(r"[A-Za-z0-9._~-]*", re.ASCII).fullmatch
_PATH = re.compile(r"/ramen/v1/([^/]*)/([^/]*)/([^/.]*)\.([^/.]*)\.([^/.]*)/").fullmatch
_SERIAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII).fullmatch
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})").search
_VISIBLE = re.compile(r"[!-~]*", re.ASCII).fullmatch
_HOST_AND_PORT = re.compile(r"(\[[^\[\]]*\]|[^\[\]:]*)(?::([0-9]*))?", re.ASCII).fullmatch
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?", re.ASCII).fullmatch
_MAX_HOST_CHARS = 253
_MAX_PORT = 65535
_MAX_PORT_DIGITS = 5


def message_path(envelope: Envelope) -> str:
    """Build the path of a message: with its reqid, what a server knows it by. Raises as ``message_target``."""
    return _path(
        envelope.category, envelope.system_serial, envelope.sender, envelope.data_type, envelope.data_version
    )


@lru_cache(maxsize=256, typed=True)  # messages of one stream share it, and both sides need it for each
def _path(category: str, serial: int, sender: str, data_type: str, data_version: str) -> str:
    names = category, sender, data_type, data_version
    category, sender, data_type, data_version = names if _PLAIN("".join(names)) else map(_quote, names)
    return f"{_PREFIX}{category}/{serial}/{sender}.{data_type}.{data_version}/"


def message_target(envelope: Envelope) -> str:
    """Build the target (path and query) of a message: ASCII without spaces, whatever the message holds.

    Raises ``UnicodeEncodeError`` (a ``ValueError``) for a part that UTF-8 cannot express.
    """
    version, reqid = envelope.system_version, envelope.reqid
    if not _PLAIN(version + reqid):
        version, reqid = _quote(version), _quote(reqid)
    return f"{message_path(envelope)}?version={version}&reqid={reqid}"


def parse_target(target: str) -> Envelope:
    """Read the message that a target stands for: the undecoded target in origin form (RFC 9112 section 3.2.1).

    Raises ``RefusedRequest``: NOT_FOUND for a path of another shape; BAD_REQUEST for a target longer than
    ``MAX_TARGET_CHARS`` or with other characters than visible ASCII, for a part that breaks its rule, and for
    a query that does not hold ``version`` and ``reqid`` once each and nothing else. In the query ``+`` is a plus.
    """
    if len(target) > MAX_TARGET_CHARS:
        raise _bad(f"the URL is longer than {MAX_TARGET_CHARS} characters")
    if not _VISIBLE(target):
        raise _bad("the URL holds characters that must be percent-encoded")
    path, mark, query = target.partition("?")
    match = _PATH(path)
    if match is None:
        raise RefusedRequest(
            Code.NOT_FOUND,
            f"no such path; a message goes to {_PREFIX}CATEGORY/SERIAL/SENDER.TYPE.VERSION/ (names without dots)",
        )
    category, serial, sender, data_type, data_version = match.groups()
    # The pattern bounds the digits before int() sees them.
    if not _SERIAL(serial):
        raise _bad_serial()
    if not mark:
        raise _bad("the query must hold version and reqid")
    version, reqid = _parse_query(query)
    envelope = Envelope(category, int(serial), sender, data_type, data_version, version, reqid)
    check_envelope(envelope)
    return envelope


def check_envelope(envelope: Envelope) -> None:
    """Hold an envelope that came from outside, however it came, against the protocol's rules.

    Raises ``RefusedRequest`` (BAD_REQUEST) for the first part that breaks its rule.
    """
    fault = _fault_of_names(envelope.category, envelope.sender, envelope.data_type, envelope.data_version)
    if fault is not None:
        raise _bad(fault)
    if not 0 <= envelope.system_serial <= MAX_SYSTEM_SERIAL:
        raise _bad_serial()
    if not is_version(envelope.system_version):
        raise _bad("version must be one or more of A-Z a-z 0-9 . _ -")
    try:
        normalise_reqid(envelope.reqid)
    except ValueError as error:
        raise _bad(str(error)) from None


@lru_cache(maxsize=256)  # as the path
def _fault_of_names(category: str, sender: str, data_type: str, data_version: str) -> str | None:
    named = {"category": category, "sender": sender, "data_type": data_type, "data_version": data_version}
    for what, text in named.items():
        if not is_name(text):
            return f"{what} must be one or more of A-Z a-z 0-9 _ -"
    return None


def origin(hostname: str, *, ssl: bool) -> str:
    """Build the scheme and authority that a configured ``hostname`` stands for, as in ``https://ramen.example:8443``.

    Takes ``host``, ``host:port``, ``[IPv6]`` and ``[IPv6]:port``; without a port the scheme's own one is used.
    Raises ``ValueError`` for anything else: schemes, paths, user names, spaces, control and non-ASCII characters,
    ports outside 1 to 65535.
    """
    match = _HOST_AND_PORT(hostname) if len(hostname) <= _MAX_HOST_CHARS + 1 + _MAX_PORT_DIGITS else None
    if match is None:
        raise ValueError(f"must be host, host:port, [IPv6] or [IPv6]:port, {_not_this(hostname)}")
    host, port = match.groups()
    if host.startswith("["):
        if not _is_ipv6(host[1:-1]):
            raise ValueError("the part in brackets must be an IPv6 address without a zone")
    elif len(host) > _MAX_HOST_CHARS or not _HOST(host):
        raise ValueError(f"must be host, host:port, [IPv6] or [IPv6]:port, {_not_this(hostname)}")
    if port is not None and not (1 <= len(port) <= _MAX_PORT_DIGITS and 1 <= int(port) <= _MAX_PORT):
        raise ValueError(f"the port must be a number from 1 to {_MAX_PORT}")
    return f"{'https' if ssl else 'http'}://{host}{'' if port is None else f':{int(port)}'}"


def _quote(text: str) -> str:
    return quote(text, safe="", errors="strict")


def _bad(details: str) -> RefusedRequest:
    return RefusedRequest(Code.BAD_REQUEST, details)


def _bad_serial() -> RefusedRequest:
    return _bad(f"system_serial must be an integer from 0 to {MAX_SYSTEM_SERIAL} without leading zeros")


def _parse_query(query: str) -> tuple[str, str]:
    found: dict[str, str] = {}
    for pair in query.split("&"):
        key, mark, value = pair.partition("=")
        if key not in ("version", "reqid") or not mark:
            # 1.x did not escape the reqid: what follows an & in it arrives here. Cutting it off could make two
            # messages one.
            raise _bad(
                "the query must hold version and reqid and nothing else (is the reqid percent-encoded?)"
            )
        if key in found:
            raise _bad(f"the query holds {key} twice (is the reqid percent-encoded?)")
        if _BAD_ESCAPE(value):
            raise _bad(f"{key} holds a % that is no percent-encoding")
        found[key] = _unquote(key, value)
    for key in ("version", "reqid"):
        if not found.get(key):
            raise _bad(f"the query must hold {key}, and not empty")
    return found["version"], found["reqid"]


def _unquote(key: str, value: str) -> str:
    raw = unquote_to_bytes(value)
    if len(raw) > MAX_REQID_BYTES:
        raise _bad(f"{key} is longer than {MAX_REQID_BYTES} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise _bad(f"{key} is not UTF-8") from None


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except AddressValueError:
        return False
    return "%" not in text


def _not_this(hostname: str) -> str:
    if not hostname:
        return "not empty"
    if "@" in hostname:
        return "without a user name"  # and the text is not repeated: it may hold a password
    if "/" in hostname:
        return "without a scheme or a path"
    if hostname.count(":") > 1:
        return "with an IPv6 address in brackets"
    return "in ASCII without spaces (an international name in its xn-- form)"
