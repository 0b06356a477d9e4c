"""Tokens: how they look, how they are kept, what each may do. Pure: the file they lie in is ``settings``.

Kept is a BLAKE2b hash under a key of the settings file, never the token. One hash finds the token, however many there are:
tokens are long and random, so a slow derivation for each would buy nothing and cost each request its time.
The index is by the hash's first bytes, which nobody can steer without the key; the rest is compared in constant time.

A pattern (of a scope) is text in which ``*`` stands for any characters; everything else stands for itself.
"""

from __future__ import annotations

import fnmatch
import hmac
import re
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from typing import TYPE_CHECKING

from infi.ramen_protocol import is_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infi.ramen_protocol import Envelope

TOKEN_RANDOM_BYTES = 32
MIN_TOKEN_CHARS = 20
"""The shortest token that an operator may bring along."""

MAX_TOKEN_CHARS = 512
"""The longest token that is looked at."""

MAX_NAME_CHARS = 64
MAX_PATTERN_CHARS = 256
MAX_PATTERNS = 100

_TOKEN = re.compile(r"[!-~]+", re.ASCII).fullmatch
_PATTERN = re.compile(r"[A-Za-z0-9_*-]+", re.ASCII).fullmatch
_INDEX_BYTES = 8
_HASH_BYTES = 32


class Purpose(Enum):
    """What a token is for."""

    SEND = "send"
    """To send messages."""

    READ = "read"
    """To read the metrics."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which messages a token may send: those whose sender and serial each match one of the patterns.

    Raises ``ValueError`` for no pattern, too many, or one with other characters than names have and ``*``.
    """

    senders: tuple[str, ...] = ("*",)
    serials: tuple[str, ...] = ("*",)
    _senders: re.Pattern[str] = field(init=False, repr=False, compare=False)
    _serials: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_senders", _compile("sender", self.senders))
        object.__setattr__(self, "_serials", _compile("serial", self.serials))

    def covers(self, envelope: Envelope) -> bool:
        """Whether a message of this sender and serial may be sent."""
        return bool(
            self._senders.fullmatch(envelope.sender) and self._serials.fullmatch(str(envelope.system_serial))
        )


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it is known afterwards: all but its text. Times are ms since the epoch."""

    name: str
    purpose: Purpose
    scope: Scope
    added_at_ms: int
    revoked_at_ms: int | None
    hash: bytes = field(repr=False)


def check_name(name: str) -> None:
    """Raise ``ValueError`` when ``name`` cannot name a token."""
    if not is_name(name) or len(name) > MAX_NAME_CHARS:
        raise ValueError(
            f"a token's name must be 1 to {MAX_NAME_CHARS} of A-Z a-z 0-9 _ -, so that it can stand anywhere"
        )


def check_text(text: str) -> None:
    """Raise ``ValueError`` when ``text`` is no token to bring along; the text is not repeated."""
    if not MIN_TOKEN_CHARS <= len(text) <= MAX_TOKEN_CHARS or not _TOKEN(text):
        raise ValueError(
            f"a token must be {MIN_TOKEN_CHARS} to {MAX_TOKEN_CHARS} visible ASCII characters without spaces; "
            "leave it out to have a random one made"
        )


def token_text(random_bytes: bytes) -> str:
    """Write a new token from ``TOKEN_RANDOM_BYTES`` random bytes."""
    return "ramen_" + urlsafe_b64encode(random_bytes).decode().rstrip("=")


def token_hash(text: bytes, key: bytes) -> bytes:
    """What is kept of a token."""
    return blake2b(text, digest_size=_HASH_BYTES, key=key).digest()


class TokenTable:
    """All tokens at one time; immutable."""

    def __init__(self, tokens: Iterable[Token], key: bytes) -> None:
        self._key = key
        self._by_index: dict[bytes, list[Token]] = {}
        for token in tokens:
            self._by_index.setdefault(token.hash[:_INDEX_BYTES], []).append(token)

    def find(self, presented: bytes) -> Token | None:
        """Find the living token that was presented (the header's bytes); None for unknown and revoked ones."""
        if not 0 < len(presented) <= MAX_TOKEN_CHARS:
            return None
        digest = token_hash(presented, self._key)
        for token in self._by_index.get(digest[:_INDEX_BYTES], ()):
            if hmac.compare_digest(token.hash, digest) and token.revoked_at_ms is None:
                return token
        return None


def _compile(what: str, patterns: tuple[str, ...]) -> re.Pattern[str]:
    if not 0 < len(patterns) <= MAX_PATTERNS:
        raise ValueError(f"a scope needs 1 to {MAX_PATTERNS} {what} patterns")
    for pattern in patterns:
        if len(pattern) > MAX_PATTERN_CHARS or not _PATTERN(pattern):
            raise ValueError(f"{what} pattern {pattern[:40]!r}: must be characters of names and *")
    # fnmatch writes its stars so that matching does not backtrack: no sender's name can make it slow.
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))
