"""What the test server makes of a request's body, in both versions. No sockets, no lists, no locks.

What cannot be read is a ``RefusedRequest``.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infi.ramen_client.testing._received import Received
from infi.ramen_protocol import (
    BATCH_CONTENT_TYPE,
    BatchId,
    BodyTooLarge,
    Code,
    CodingError,
    FramingError,
    RefusedRequest,
    TooManyRecords,
    UnsupportedCoding,
    check_envelope,
    decode_body,
    decode_records,
    message_target,
)

if TYPE_CHECKING:
    from infi.ramen_client.testing._connection import Head

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest payload after decoding; a larger one is answered with 413. It is the client's default bound."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that could be read; ``plain`` are its decoded records."""

    batch: BatchId
    plain: bytes
    messages: tuple[Received, ...]


def read_payload(head: Head, body: bytes, codings: frozenset[str] | None) -> bytes:
    """Take the content coding off a message of version 1, and make sure that one JSON text is below."""
    payload = _decode(head, body, MAX_MESSAGE_BYTES, codings)
    _check_json(payload)
    return payload


def read_batch(
    head: Head,
    body: bytes,
    connection: int,
    *,
    max_messages: int,
    max_bytes: int,
    codings: frozenset[str] | None,
) -> Batch:
    """Read a batch. Its records may still be refused, each for itself: see ``check_record``."""
    batch = BatchId.parse(head.headers.get("ramen-batch-id", ""))
    if head.headers.get("content-type") != BATCH_CONTENT_TYPE:
        raise RefusedRequest(Code.BAD_REQUEST, f"a batch is {BATCH_CONTENT_TYPE}")
    if batch is None:
        raise RefusedRequest(Code.BAD_REQUEST, "a batch needs a Ramen-Batch-Id with lane, number and digest")
    plain = _decode(head, body, max_bytes, codings)
    try:
        records = decode_records(plain, max_records=max_messages)
    except TooManyRecords as error:
        raise RefusedRequest(Code.PAYLOAD_TOO_LARGE, str(error)) from None
    except FramingError as error:
        raise RefusedRequest(Code.BAD_REQUEST, str(error)) from None
    if not batch.names(plain):
        raise RefusedRequest(Code.BAD_REQUEST, "the digest is not that of the records")
    messages = (
        Received(
            envelope=record.envelope,
            target=message_target(record.envelope),
            headers=head.headers,
            body=record.payload,
            payload=record.payload,
            connection=connection,
            reply=None,
            batch=batch,
        )
        for record in records
    )
    return Batch(batch, plain, tuple(messages))


def check_record(record: Received) -> None:
    """Hold a record against what version 1 takes."""
    check_envelope(record.envelope)
    _check_json(record.payload)


def _decode(head: Head, body: bytes, max_bytes: int, codings: frozenset[str] | None) -> bytes:
    coding = head.headers.get("content-encoding")
    if codings is not None and coding is not None and coding not in codings:
        raise RefusedRequest(Code.UNSUPPORTED_MEDIA_TYPE, f"{coding} is not read here")
    try:
        return decode_body(body, coding, max_bytes=max_bytes)
    except UnsupportedCoding as error:
        raise RefusedRequest(Code.UNSUPPORTED_MEDIA_TYPE, str(error)) from None
    except BodyTooLarge as error:
        raise RefusedRequest(Code.PAYLOAD_TOO_LARGE, str(error)) from None
    except CodingError as error:
        raise RefusedRequest(Code.BAD_REQUEST, f"the body cannot be read: {error}") from None


def _check_json(payload: bytes) -> None:
    """See that the payload is one JSON text in UTF-8 (RFC 8259; no NaN, no infinities)."""
    # Numbers are left as text: only their form counts here, and Python refuses to convert very long ones.
    try:
        with suppress(
            RecursionError
        ):  # deeper than Python's parser goes, which is nothing against the message
            json.loads(payload.decode(), parse_int=str, parse_float=str, parse_constant=_no_constant)
    except ValueError as error:
        raise RefusedRequest(Code.BAD_REQUEST, f"the body cannot be read: {error}") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
