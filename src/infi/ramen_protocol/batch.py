"""What version 2 of the protocol speaks about: offers, lanes and batches, and the headers that carry them (section 2).

    Ramen-Batch: path="/ramen/v2/batch", messages=1000, bytes=8388608, dedupe="message"
    Ramen-Batch-Id: lane="8f0c…", number=17, digest="5e88…"

Both are RFC 9651 dictionaries (``structured``). A header that is malformed, lacks a part, or holds one that cannot be, is
void as a whole: no part of it is believed. Members that are not known here are passed over.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING

from infi.ramen_protocol.structured import MAX_INTEGER, dictionary_field, parse_dictionary

if TYPE_CHECKING:
    from infi.ramen_protocol.answers import Code
    from infi.ramen_protocol.rules import Rule

BATCH_CONTENT_TYPE = "application/vnd.ramen.batch"
"""What a batch's ``Content-Type`` is."""

DIGEST_CHARS = 32
"""How many hexadecimal digits of the SHA-256 ``batch_digest`` gives: 128 bits."""

MAX_PATH_CHARS = 256
MAX_LANE_CHARS = 64

_SHA256_CHARS = 64
# One path of the same origin: "//host" would be another one, and a query or fragment no path.
_PATH = re.compile(r"/(?!/)[!-\"$->@-~]*", re.ASCII).fullmatch
_LANE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII).fullmatch
_DIGEST = re.compile(rf"[0-9a-f]{{{DIGEST_CHARS},{_SHA256_CHARS}}}", re.ASCII).fullmatch


class Dedupe(Enum):
    """How far a server looks for duplicates; ``value`` is the text in its ``Ramen-Batch`` header."""

    MESSAGE = "message"
    """By (version 1 path, reqid), whatever version the message came by."""

    BATCH = "batch"
    """Version 2 by lane and number; version 1 by key, within a window."""


_DEDUPES = {dedupe.value: dedupe for dedupe in Dedupe}


@dataclass(frozen=True, slots=True)
class BatchOffer:
    """What a server announces in its ``Ramen-Batch`` header."""

    path: str
    """One absolute path of the same origin."""

    messages: int
    """The most records in a batch, 1 or more."""

    bytes: int
    """The most bytes of a batch after decoding, 1 or more."""

    dedupe: Dedupe

    window_seconds: float | None = None
    """How long a message is remembered by its key, more than 0; None where nothing was announced."""

    @classmethod
    def parse(cls, header: str) -> BatchOffer | None:
        """Read the header's value; None when it is void."""
        members = parse_dictionary(header)
        if members is None:
            return None
        path, dedupe = members.get("path"), members.get("dedupe")
        messages, size = members.get("messages"), members.get("bytes")
        window = members.get("window")
        if not isinstance(path, str) or len(path) > MAX_PATH_CHARS or not _PATH(path):
            return None
        if not isinstance(messages, int) or messages < 1 or not isinstance(size, int) or size < 1:
            return None
        if not isinstance(dedupe, str) or dedupe not in _DEDUPES:
            return None
        if window is not None and (not isinstance(window, int | Decimal) or window <= 0):
            return None
        return cls(path, messages, size, _DEDUPES[dedupe], None if window is None else float(window))

    def header(self) -> str:
        """Write the header's value; a window is rounded down to whole seconds, but for those below 1.

        Raises ``ValueError`` for an offer that ``parse`` would not read.
        """
        members: dict[str, str | int] = {
            "path": self.path,
            "messages": self.messages,
            "bytes": self.bytes,
            "dedupe": self.dedupe.value,
        }
        if self.window_seconds is not None:
            members["window"] = max(1, int(self.window_seconds))
        field = dictionary_field(members)
        if BatchOffer.parse(field) is None:
            raise ValueError(f"{self} is no offer that a client would take")
        return field


@dataclass(frozen=True, slots=True)
class BatchId:
    """Which batch this is; with it a server recognises one that is sent again."""

    lane: str
    """The unbroken line of batches that it belongs to, an id that the client made at random: 1 to 64 of
    ``A-Z a-z 0-9 _ -``."""

    number: int
    """Its place in the lane, counting up by one from 1."""

    digest: str
    """The first 32 to 64 hexadecimal digits of the SHA-256 of the decoded records; see ``batch_digest``."""

    @classmethod
    def parse(cls, header: str) -> BatchId | None:
        """Read the value of a ``Ramen-Batch-Id`` header; None when it is void."""
        members = parse_dictionary(header)
        if members is None:
            return None
        lane, number, digest = members.get("lane"), members.get("number"), members.get("digest")
        if not isinstance(lane, str) or not isinstance(number, int) or not isinstance(digest, str):
            return None
        found = cls(lane, number, digest)
        return found if found._is_sound() else None

    def header(self) -> str:
        """Write the header's value. Raises ``ValueError`` for an id that ``parse`` would not read."""
        if not self._is_sound():
            raise ValueError(f"{self} is no batch's id")
        return dictionary_field({"lane": self.lane, "number": self.number, "digest": self.digest})

    def names(self, records: bytes) -> bool:
        """Whether the digest is that of these decoded records."""
        return sha256(records).hexdigest().startswith(self.digest)

    def _is_sound(self) -> bool:
        return (
            len(self.lane) <= MAX_LANE_CHARS
            and _LANE(self.lane) is not None
            and 1 <= self.number <= MAX_INTEGER
            and _DIGEST(self.digest) is not None
        )


@dataclass(frozen=True, slots=True)
class RecordResult:
    """The verdict on one record of a batch, as version 1 would have answered it."""

    status: int
    code: Code
    details: str | None = None
    rule: Rule | None = None
    retry_after_seconds: float | None = None


class BatchDigest:
    """The digest of a batch, whose decoded records come piece by piece."""

    def __init__(self) -> None:
        self._hash = sha256()

    def update(self, records: bytes) -> None:
        """Take the next piece."""
        self._hash.update(records)

    @property
    def text(self) -> str:
        """The digest of what came so far: the first ``DIGEST_CHARS`` hexadecimal digits of its SHA-256."""
        return self._hash.hexdigest()[:DIGEST_CHARS]


def batch_digest(records: bytes) -> str:
    """Give the digest of a batch by its decoded records."""
    digest = BatchDigest()
    digest.update(records)
    return digest.text
