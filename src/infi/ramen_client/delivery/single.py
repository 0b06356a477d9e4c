"""The POST of one message (protocol section 1)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from infi.ramen_protocol import Coding, compress_batch, gzip_from_zlib, message_target

from .drafts import plain_of
from .exchange import Request

if TYPE_CHECKING:
    from infi.ramen_client.storage import StoredMessage
    from infi.ramen_protocol import Envelope

    from .judging import Headers


def single_request(
    message: StoredMessage,
    envelope: Envelope,
    *,
    origin: str,
    headers: Headers,
    coding: Coding,
    timeout_seconds: float,
) -> Request:
    """A message as a request. One whose payload is not what it should be goes as it is, for the server to judge."""
    body, coding = _body(message, coding)
    if coding is not Coding.LEGACY:  # as which they come
        headers = tuple((name, value) for name, value in headers if name != "Content-Encoding")
        if coding is not Coding.IDENTITY:
            headers = (*headers, ("Content-Encoding", coding.label))
    return Request(origin + message_target(envelope), headers, body, timeout_seconds)


def _body(message: StoredMessage, coding: Coding) -> tuple[bytes, Coding]:
    try:
        match coding:
            case Coding.LEGACY:
                return message.data, coding
            case Coding.GZIP:
                framed = gzip_from_zlib(
                    message.data, plain_crc32=message.plain_crc32, plain_length=message.plain_length
                )
                return framed, coding
            case _:
                return compress_batch(plain_of(message), coding), coding
    except (ValueError, zlib.error):
        return message.data, Coding.LEGACY
