"""Drafts: messages made ready for a batch, before it is frozen (``batching``).

To unpack, frame, digest and compress a full batch takes the reader's processor as long as the server's takes to store one. So while
a batch is under way, the next one is made ready piece by piece, and the answer never waits for more than a piece. A draft is worth
nothing by itself: where the messages to be frozen turn out to be others, it is thrown away.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infi.ramen_protocol import Coding, batch_digest, compress_batch, encode_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client.storage import StoredMessage
    from infi.ramen_protocol import Envelope

_PIECE_BYTES = 64 * 1024
"""Of plain payload: less than a millisecond."""


@dataclass(slots=True, eq=False)
class Draft:
    """Messages on their way to becoming a batch under a content coding."""

    messages: list[StoredMessage]
    coding: Coding
    envelope: Callable[[StoredMessage], Envelope]
    faulty: list[StoredMessage] = field(default_factory=list)
    """Those that no record can be made of: with any of them, there is no batch."""
    digest: str = ""
    plain_bytes: int = 0
    body: bytes | None = field(default=None, repr=False)
    """The records under the content coding, when the draft is complete."""
    _records: list[bytes] = field(default_factory=list, repr=False)
    _looked_at: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing more to do."""
        return self.body is not None

    def go_on(self) -> None:
        """Do one more piece of the work."""
        piece = 0
        while piece < _PIECE_BYTES and self._looked_at < len(self.messages):
            message = self.messages[self._looked_at]
            self._looked_at += 1
            piece += message.plain_length
            try:
                self._records.append(record_of(message, self.envelope))
            except (ValueError, zlib.error):
                self.faulty.append(message)
        if self._looked_at == len(self.messages):
            self._complete()

    def _complete(self) -> None:
        plain = b"".join(self._records)
        self._records.clear()
        self.plain_bytes = len(plain)
        self.digest = batch_digest(plain)
        self.body = compress_batch(plain, self.coding)


def record_of(message: StoredMessage, envelope: Callable[[StoredMessage], Envelope]) -> bytes:
    """The record of one message. Raises ``ValueError`` or ``zlib.error`` when none can be made."""
    return encode_record(envelope(message), plain_of(message))


def plain_of(message: StoredMessage) -> bytes:
    """The payload. Raises ``ValueError`` or ``zlib.error`` when it is not the stream that it should be."""
    # Its length is known and covered by the row's checksum, so nothing beyond it is ever made.
    decompressor = zlib.decompressobj()
    plain = decompressor.decompress(message.data, message.plain_length + 1)
    if len(plain) != message.plain_length or not decompressor.eof or decompressor.unused_data:
        raise ValueError("the payload is not what was pushed")
    return plain
