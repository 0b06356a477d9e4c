"""The one module that knows pycurl: its handles behind typed surfaces, the options of every transfer, its facts.

**Bounds.** libcurl collects header lines and body pieces into lists by ``list.append``, called from C: no
Python frame runs inside libcurl for them, so they cost little, and none can swallow a KeyboardInterrupt. What
bounds the lists is libcurl itself: it ends a transfer whose body passes ``MAXFILESIZE`` (since 8.4.0 also one whose
length was not announced) or whose head passes 300 KiB or 5,000 lines.

**A handle lives until ``end`` is called.** Collecting a handle as garbage would clean it up wherever that
happens: in the middle of the caller's work, where waiting for a resolver's thread takes many seconds; at the
interpreter's end; in a forked child, where it would say goodbye on the parent's TLS connections and wait
for ever for threads that the child does not have. So each handle has one reference too many from the start, which
only ``end`` takes back. A forked child never calls ``end``, whether or not a hook told it that it was forked.
"""

from __future__ import annotations

import re
from ctypes import py_object, pythonapi
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pycurl

from infi.ramen_client.__version__ import __version__
from infi.ramen_protocol._text import clean_text

from .exchange import Answer, Certificate, Request, Trace, head_is_oversized, read_head
from .failures import OVERSIZED_HEAD, Facts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .identity import Identity
    from .route import Route

LEAST_LIBCURL = 0x080700
"""8.7.0: ``MAXFILESIZE`` bounds every body (8.4), and a transfer tells whether it went through a proxy (8.7). From 8.20
on (pycurl's wheels) a hanging resolver holds up neither a time-out nor a cancelled transfer; older ones wait for it."""

if pycurl.version_info()[2] < LEAST_LIBCURL:
    raise ImportError(
        f"libcurl 8.7.0 or newer is needed, this pycurl is linked with {pycurl.version_info()[1]}: install pycurl's wheel"
    )

CurlError: type[Exception] = pycurl.error

TIMER: int = pycurl.SOCKET_TIMEOUT
"""What ``Multi.socket_action`` takes in place of a socket when its timer has run out."""

POLL_REMOVE: int = pycurl.POLL_REMOVE
POLL_NONE: int = pycurl.POLL_NONE

_MAX_CONNECTIONS = 64
"""Idle connections are kept up to this many, whatever is under way: a burst's are there for the next one."""

_MAX_IDLE_SECONDS = 30
"""An idle connection is not used again after this long: many servers and middleboxes close it after a minute or
less, and a request that meets the closing is one that has to be sent twice."""

_MAX_LIFE_SECONDS = 300
"""No connection is used for a new request after this long: a server that has moved to another address, or another one
behind its balancer, is found by then although the old one goes on answering."""

_NAME_CACHE_SECONDS = 5
"""The addresses of a name serve the connections of one burst; each later one asks again, so that a name that was
pointed elsewhere during an outage is heeded by the next attempt."""

_UPLOAD_BUFFER_BYTES = 256 * 1024
"""A batch leaves in one turn of the loop, if its socket takes it: the reader does other work before the next turn."""

_KEEPALIVE_SECONDS = 30

_KEPT_BODY_BYTES = 64 * 1024
"""A pooled handle does not hold on to a larger body than this."""

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Easy(Protocol):
    """What is used of ``pycurl.Curl``."""

    def setopt(self, option: int, value: object) -> None: ...
    def getinfo(self, option: int) -> Any: ...
    def getinfo_raw(self, option: int) -> Any: ...
    def close(self) -> None: ...


class Multi(Protocol):
    """What is used of ``pycurl.CurlMulti``."""

    def setopt(self, option: int, value: object) -> None: ...
    def add_handle(self, easy: Easy) -> object: ...
    def remove_handle(self, easy: Easy) -> object: ...
    def socket_action(self, socket: int, events: int) -> tuple[int, int]: ...
    def info_read(self) -> tuple[int, list[Easy], list[tuple[Easy, int, str]]]: ...
    def close(self) -> None: ...


def new_multi(
    on_socket: Callable[[int, int, object, object], None], on_timer: Callable[[int], None]
) -> Multi:
    """A multi handle that reports its sockets and its timer; it lives until ``end``."""
    multi: Multi = pycurl.CurlMulti()
    pythonapi.Py_IncRef(py_object(multi))
    multi.setopt(pycurl.M_SOCKETFUNCTION, on_socket)
    multi.setopt(pycurl.M_TIMERFUNCTION, on_timer)
    multi.setopt(pycurl.M_MAXCONNECTS, _MAX_CONNECTIONS)
    return multi


def end(handle: Easy | Multi) -> None:
    """Close a handle for good. May take as long as a resolver hangs; only in the process that made it."""
    handle.close()
    pythonapi.Py_DecRef(py_object(handle))


class Transfer:
    """One easy handle with its constant options set, used for one request after another."""

    __slots__ = (
        "_chunks",
        "_headers",
        "_known_headers",
        "_known_lines",
        "_known_status",
        "_lines",
        "_max_answer_bytes",
        "_timeout_milliseconds",
        "_traced",
        "easy",
        "request",
        "tag",
    )

    def __init__(self, route: Route, identity: Identity | None) -> None:
        self.tag = 0
        self.request: Request | None = None
        self._lines: list[bytes] = []
        self._chunks: list[bytes] = []
        self._headers: tuple[tuple[str, str], ...] | None = None
        self._known_lines: list[bytes] = []
        self._known_status = 0
        self._known_headers: dict[str, str] = {}
        self._timeout_milliseconds = 0
        self._max_answer_bytes = 0
        self._traced = False
        self.easy: Easy = pycurl.Curl()
        pythonapi.Py_IncRef(py_object(self.easy))
        set_option = self.easy.setopt
        for option, value in _CONSTANT_OPTIONS:
            set_option(option, value)
        set_option(pycurl.HEADERFUNCTION, self._lines.append)
        set_option(pycurl.WRITEFUNCTION, self._chunks.append)
        if route.ca_file is not None:
            # A directory is what OpenSSL calls a CApath; REQUESTS_CA_BUNDLE may name one.
            is_directory = Path(route.ca_file).is_dir()
            set_option(pycurl.CAPATH if is_directory else pycurl.CAINFO, route.ca_file)
            set_option(pycurl.PROXY_CAPATH if is_directory else pycurl.PROXY_CAINFO, route.ca_file)
        set_option(pycurl.SSLVERSION, _TLS_VERSIONS[route.min_tls_version])
        set_option(pycurl.PROXY_SSLVERSION, _TLS_VERSIONS[route.min_tls_version])
        if identity is not None:
            set_option(pycurl.SSLCERT_BLOB, identity.certificate)
            set_option(pycurl.SSLKEY_BLOB, identity.key)
        if route.proxy is not None:
            set_option(pycurl.PROXY, route.proxy)
            set_option(pycurl.NOPROXY, "")

    def load(self, tag: int, request: Request) -> None:
        """Point the handle at a request. Raises ValueError, saying why, for one that cannot be put on the wire."""
        set_option = self.easy.setopt
        if request.headers is not self._headers and request.headers != self._headers:
            set_option(pycurl.HTTPHEADER, _header_lines(request.headers))
            self._headers = request.headers
        try:
            set_option(pycurl.URL, request.url)
        except ValueError:
            raise ValueError("the URL is not ASCII") from None
        milliseconds = max(1, round(request.timeout_seconds * 1000))
        if milliseconds != self._timeout_milliseconds:
            set_option(pycurl.TIMEOUT_MS, milliseconds)
            self._timeout_milliseconds = milliseconds
        if request.max_answer_bytes != self._max_answer_bytes:
            set_option(pycurl.MAXFILESIZE_LARGE, request.max_answer_bytes)
            self._max_answer_bytes = request.max_answer_bytes
        if request.traced != self._traced:
            set_option(pycurl.OPT_CERTINFO, request.traced)
            self._traced = request.traced
        set_option(pycurl.POSTFIELDS, request.body)
        self._lines.clear()
        self._chunks.clear()
        self.tag = tag
        self.request = request

    def unload(self) -> None:
        """Let go of the request and its answer."""
        if self.request is not None and len(self.request.body) > _KEPT_BODY_BYTES:
            self.easy.setopt(pycurl.POSTFIELDS, b"")
        self.request = None
        self._lines.clear()
        self._chunks.clear()

    def answer(self) -> Answer | Facts:
        """What came back of a transfer that libcurl calls complete."""
        info = self.easy.getinfo
        status: int = info(pycurl.RESPONSE_CODE)
        # One server's answers within a second mostly have the same head, its date included: it is read once.
        if self._lines != self._known_lines or status != self._known_status:
            if head_is_oversized(self._lines):
                return self.facts(OVERSIZED_HEAD, "")
            headers = read_head(self._lines, status)
            if headers is None:
                return self.facts(pycurl.E_FTP_WEIRD_SERVER_REPLY, "")
            self._known_lines, self._known_status, self._known_headers = self._lines.copy(), status, headers
        if status == _PROXY_AUTHENTICATION_REQUIRED and info(pycurl.USED_PROXY):
            return self.facts(pycurl.E_OK, "")
        return Answer(status, self._known_headers.copy(), b"".join(self._chunks), self._trace())

    def facts(self, code: int, detail: str) -> Facts:
        """What libcurl knows about a transfer that failed with this code and text."""
        info = self.easy.getinfo
        return Facts(
            # libcurl gives up on an endless head under several codes, none of which says so.
            code=OVERSIZED_HEAD if head_is_oversized(self._lines) else code,
            detail=detail,
            errno=info(pycurl.OS_ERRNO),
            status=info(pycurl.RESPONSE_CODE),
            resolved=info(pycurl.NAMELOOKUP_TIME_T) > 0,
            reached=info(pycurl.CONNECT_TIME_T) > 0,
            request_bytes=info(pycurl.REQUEST_SIZE),
            body_bytes_sent=info(pycurl.SIZE_UPLOAD_T),
            through_proxy=bool(info(pycurl.USED_PROXY)),
            tunnel_status=info(pycurl.HTTP_CONNECTCODE),
            verify_result=info(pycurl.SSL_VERIFYRESULT),
            proxy_verify_result=info(pycurl.PROXY_SSL_VERIFYRESULT),
            trace=self._trace(),
        )

    def _trace(self) -> Trace | None:
        if not self._traced:
            return None
        info = self.easy.getinfo
        address, port = info(pycurl.PRIMARY_IP), info(pycurl.PRIMARY_PORT)
        host = f"[{address}]" if ":" in address else address
        return Trace(
            resolved_after=_seconds(info(pycurl.NAMELOOKUP_TIME_T)),
            connected_after=_seconds(info(pycurl.CONNECT_TIME_T)),
            secured_after=_seconds(info(pycurl.APPCONNECT_TIME_T)),
            total=info(pycurl.TOTAL_TIME_T) / 1_000_000,
            address=f"{host}:{port}" if address else "",
            through_proxy=bool(info(pycurl.USED_PROXY)),
            certificate=_certificate(self.easy),
        )


_PROXY_AUTHENTICATION_REQUIRED = 407

_TLS_VERSIONS = {"1.2": pycurl.SSLVERSION_TLSv1_2, "1.3": pycurl.SSLVERSION_TLSv1_3}
"""The oldest version, in libcurl's number; it is no bound upwards."""


def _seconds(microseconds: int) -> float | None:
    return microseconds / 1_000_000 if microseconds > 0 else None


def _certificate(easy: Easy) -> Certificate | None:
    """What is known of the peer's certificate, the first of its chain; any byte may stand in its names."""
    for certificate in easy.getinfo_raw(pycurl.INFO_CERTINFO):
        said = {bytes(pair[0]): bytes(pair[1]) for pair in certificate}
        names, issuer, expires = (
            clean_text(said.get(key, b"").decode("latin-1"))
            for key in (b"X509v3 Subject Alternative Name", b"Issuer", b"Expire date")
        )
        return Certificate(names, issuer, expires)
    return None


def _header_lines(headers: Sequence[tuple[str, str]]) -> list[bytes]:
    """The header lines as libcurl takes them. A value may be a secret: no error names it."""
    # libcurl would ask leave (Expect: 100-continue) for a body above 1 MiB, and wait a second for it.
    lines = [b"Expect:"]
    for name, value in headers:
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header")
        if _CONTROL.search(value):
            raise ValueError(f"the value of the header {name} contains a control character or a line end")
        # "Name:" alone would mean to libcurl: do not send it.
        text = f"{name}: {value}" if value.strip() else f"{name};"
        try:
            lines.append(text.encode("latin-1"))
        except UnicodeEncodeError:
            raise ValueError(f"the value of the header {name} contains a character outside latin-1") from None
    return lines


_CONSTANT_OPTIONS: tuple[tuple[int, object], ...] = (
    (pycurl.POST, 1),
    (pycurl.USERAGENT, f"infi.ramen_client/{__version__}"),
    (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1),
    (pycurl.HTTP09_ALLOWED, 0),
    (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
    (pycurl.PATH_AS_IS, 1),
    (pycurl.FOLLOWLOCATION, 0),
    (pycurl.NETRC, pycurl.NETRC_IGNORED),
    (pycurl.NOSIGNAL, 1),
    (pycurl.TCP_NODELAY, 1),
    (pycurl.UPLOAD_BUFFERSIZE, _UPLOAD_BUFFER_BYTES),
    (pycurl.TCP_KEEPALIVE, 1),
    (pycurl.TCP_KEEPIDLE, _KEEPALIVE_SECONDS),
    (pycurl.TCP_KEEPINTVL, _KEEPALIVE_SECONDS),
    (pycurl.MAXAGE_CONN, _MAX_IDLE_SECONDS),
    (pycurl.MAXLIFETIME_CONN, _MAX_LIFE_SECONDS),
    (pycurl.DNS_CACHE_TIMEOUT, _NAME_CACHE_SECONDS),
    (pycurl.SSL_VERIFYPEER, 1),
    (pycurl.SSL_VERIFYHOST, 2),
    (pycurl.PROXY_SSL_VERIFYPEER, 1),
    (pycurl.PROXY_SSL_VERIFYHOST, 2),
    (pycurl.HTTPPROXYTUNNEL, 0),
)
