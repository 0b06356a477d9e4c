"""What the test server remembers of requests: frozen values."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from infi.ramen_client.testing.replies import BatchReply, Refuse, Reply, Status
    from infi.ramen_protocol import BatchId, Envelope


@dataclass(frozen=True, slots=True)
class Received:
    """One message as it arrived.

    ``path`` and ``target`` (with the query) are as sent; ``headers`` have lower-case names; ``body`` is what was on the
    wire, ``payload`` the same after its content coding was taken off (both empty when the reply was a reset before the
    body). ``connection`` counts the server's connections from 1. ``reply`` is None only while a reply function looks.
    ``batch`` is the one that it came in; then ``headers`` are the batch's, ``target`` is what version 1 would have sent, and
    ``body`` is the payload.
    """

    envelope: Envelope
    target: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    payload: bytes = field(repr=False)
    connection: int
    reply: Reply | None
    batch: BatchId | None = None

    @property
    def path(self) -> str:
        """The target without its query: with the reqid, what the server knows the message by."""
        return self.target.partition("?")[0]

    @property
    def reqid(self) -> str:
        """The envelope's reqid."""
        return self.envelope.reqid

    def json(self) -> Any:
        """Decode the payload. Raises ``ValueError`` when there is none (a reset before the body)."""
        return json.loads(self.payload)


@dataclass(frozen=True, slots=True)
class ReceivedBatch:
    """One batch as it arrived.

    ``headers`` have lower-case names; ``body`` is what was on the wire under ``coding`` (the ``Content-Encoding``; None where
    there was none), ``records`` the same after the coding was taken off. ``messages`` are its records, in order, each with
    the ``reply`` that it got; the batch as a whole got ``reply``. ``repeated``: it was the last one of its lane again, and was
    answered as before. ``connection`` counts the server's connections from 1.
    """

    batch: BatchId
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    records: bytes = field(repr=False)
    messages: tuple[Received, ...]
    connection: int
    reply: BatchReply
    repeated: bool = False

    @property
    def coding(self) -> str | None:
        """The label of its content coding."""
        return self.headers.get("content-encoding")


@dataclass(frozen=True, slots=True)
class Refused:
    """One request that was no message: what could be read of it (maybe nothing), and what it was answered."""

    method: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    connection: int
    reply: Refuse | Status


def key_of(path: str, reqid: str) -> bytes:
    """Give 16 bytes that stand for a message: what the recognition of duplicates remembers."""
    return blake2b(f"{path}\0{reqid}".encode(), digest_size=16).digest()
