"""What version 2 of the protocol speaks about: batches, lanes and their results (protocol section 2)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infi.ramen_protocol.answers import Code
    from infi.ramen_protocol.rules import Rule


class Dedupe(Enum):
    """How far a server looks for duplicates; ``value`` is the text in its ``Ramen-Batch`` header."""

    MESSAGE = "message"
    """By (version 1 path, reqid), whatever version the message came by."""

    BATCH = "batch"
    """Version 2 by lane and number; version 1 by key, within a window."""


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
    """With ``Dedupe.BATCH``: how long version 1 messages are remembered; None where nothing was announced."""


@dataclass(frozen=True, slots=True)
class BatchId:
    """Which batch this is; with it a server recognises one that is sent again."""

    lane: str
    """The unbroken line of batches that it belongs to, an id that the client made at random."""

    number: int
    """Its place in the lane, counting up by one."""

    digest: str
    """A prefix of the SHA-256 of the decoded records."""


@dataclass(frozen=True, slots=True)
class RecordResult:
    """The verdict on one record of a batch, as version 1 would have answered it."""

    status: int
    code: Code
    details: str
    rule: Rule | None = None
    retry_after_seconds: float | None = None
