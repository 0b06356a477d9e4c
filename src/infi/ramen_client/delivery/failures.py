"""Why no usable answer came: the values. ``sayings`` and ``_tls_sayings`` put them into words.

``connected`` is False only when libcurl handed not one byte of the request to any connection, an earlier, reused one that
died included (``REQUEST_SIZE`` adds up over libcurl's own retries; a CONNECT to a proxy does not count).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .exchange import Trace


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
    """Our own configuration: a CA file or a client's key that cannot be used, a malformed proxy URL, an unsendable header."""


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


class Code(IntEnum):
    """libcurl's codes, as far as there are words for them."""

    OK = 0
    UNSUPPORTED_PROTOCOL = 1
    COULDNT_RESOLVE_PROXY = 5
    COULDNT_RESOLVE_HOST = 6
    COULDNT_CONNECT = 7
    WEIRD_SERVER_REPLY = 8
    PARTIAL_FILE = 18
    OPERATION_TIMEDOUT = 28
    SSL_CONNECT_ERROR = 35
    BAD_FUNCTION_ARGUMENT = 43
    GOT_NOTHING = 52
    SEND_ERROR = 55
    RECV_ERROR = 56
    SSL_CERTPROBLEM = 58
    PEER_FAILED_VERIFICATION = 60
    FILESIZE_EXCEEDED = 63
    SSL_CACERT_BADFILE = 77
    PROXY = 97
    SSL_CLIENTCERT = 98
    TOO_LARGE = 100


OVERSIZED_HEAD = int(Code.TOO_LARGE)
"""The code under which our own bound on the answer's headers is reported."""


def setup_failure(reason: str, remedy: str = "") -> Failure:
    """The failure of a request that could not even be begun."""
    return Failure(FailureKind.SETUP, f"the request cannot be sent: {reason}", connected=False, remedy=remedy)
