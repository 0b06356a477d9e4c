"""The certificate and the key by which a server knows this client: read from their files, and looked at before they are used.

libcurl says of every fault in them the same ("unable to set private key file"), so the faults that a look finds are told here:
a missing or unreadable file, one without a certificate or a key, an encrypted key. It is also never asked to open the files:
they are given to it as they were when they were read, so that a certificate and the key of its successor never meet.

**Encrypted keys are refused.** Their password would have to lie beside them, which protects nothing, and OpenSSL would ask
for it on the terminal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infi.ramen_client._config_sources import read_regular_file, warn_if_open_to_anybody
from infi.ramen_client.errors import ValidationError

from .failures import Failure, setup_failure

if TYPE_CHECKING:
    from .route import Route

MAX_PEM_BYTES = 256 * 1024
"""A chain of four large certificates and a key are 20 KiB."""

_CERTIFICATE = re.compile(rb"^-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----", re.MULTILINE)
_KEY = re.compile(rb"^-----BEGIN (?:[A-Z0-9]+ )?PRIVATE KEY-----", re.MULTILINE)
_ENCRYPTED_KEY = re.compile(
    rb"^-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: *4, *ENCRYPTED", re.MULTILINE
)


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """A certificate (with those between it and its authority) and its private key, as the texts of PEM files."""

    certificate: bytes
    key: bytes


def read_identity(route: Route) -> Identity | Failure | None:
    """What the route's files hold now; None where it names none. Whether the two belong together is not known yet."""
    if route.client_certificate is None:
        return None
    try:
        certificate, _ = _read("client_certificate", route.client_certificate)
        if not _CERTIFICATE.search(certificate):
            return _unusable(
                f"client_certificate {route.client_certificate} holds no certificate",
                "name a PEM file with the client's certificate",
            )
        field = "client_certificate" if route.client_key is None else "client_key"
        path = route.client_key or route.client_certificate
        key, mode = _read(field, path)
    except ValidationError as error:
        return _unusable(str(error), "check the file's place, owner and mode")
    if _ENCRYPTED_KEY.search(key):
        return _unusable(
            f"the private key in {path} is encrypted",
            f"store it without a password, as `openssl pkey -in {path}` writes it, in a file that only its owner can read",
        )
    if not _KEY.search(key):
        return _unusable(
            f"{field} {path} holds no private key",
            "put it there, or name its PEM file as `client_key`",
        )
    warn_if_open_to_anybody(f"the private key in {path!r}", mode)
    return Identity(certificate, key)


def _read(field: str, path: str) -> tuple[bytes, int]:
    return read_regular_file(f"{field} {path}", path, MAX_PEM_BYTES)


def _unusable(reason: str, remedy: str) -> Failure:
    return setup_failure(reason, remedy)
