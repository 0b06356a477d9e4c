"""Drafts: messages made ready for a batch, before it is frozen (``batching``).

To unpack, frame, digest and compress a full batch takes the reader's processor as long as the server's takes to store one. So while
a batch is under way, the next one is made ready piece by piece, and the answer never waits for more than a piece. A draft is worth
nothing by itself: where the messages to be frozen turn out to be others, it is thrown away.
"""

from __future__ import annotations

import zlib
from itertools import islice
from typing import TYPE_CHECKING

from infi.ramen_protocol import BatchDigest, batch_compressor, compress_batch, encode_record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from infi.ramen_client.storage import StoredMessage
    from infi.ramen_protocol import Coding, Compressor, Envelope

_PIECE_BYTES = 64 * 1024
"""Of plain records: a millisecond of work, four with gzip. One large message is a piece by itself."""


class Draft:
    """Messages on their way to becoming a batch under a content coding."""

    def __init__(
        self, messages: list[StoredMessage], coding: Coding, envelope: Callable[[StoredMessage], Envelope]
    ) -> None:
        self.messages = messages
        self.coding = coding
        self.faulty: list[StoredMessage] = []
        """Those that no record can be made of: with any of them, there is no batch."""
        self.plain_bytes = 0
        self.body: bytes | None = None
        """The records under the content coding, when the draft is complete."""
        self._envelope = envelope
        self._done = 0
        self._digest = BatchDigest()
        self._compressor: Compressor | None = None
        self._compressed: list[bytes] = []

    @property
    def digest(self) -> str:
        """That of the records."""
        return self._digest.text

    @property
    def is_complete(self) -> bool:
        """Whether there is nothing more to do."""
        return self.body is not None

    def shares(self, messages: Iterable[StoredMessage]) -> bool:
        """Whether some of these messages are in it."""
        mine = {message.position for message in self.messages}
        return any(message.position in mine for message in messages)

    def go_on(self) -> None:
        """Do one more piece of the work."""
        records: list[bytes] = []
        size, done = 0, self._done
        for message in islice(self.messages, self._done, None):
            if size >= _PIECE_BYTES:
                break
            try:
                record = record_of(message, self._envelope)
            except (ValueError, zlib.error):
                self.faulty.append(message)
            else:
                records.append(record)
                size += len(record)
            done += 1
        piece = b"".join(records)
        is_last = done == len(self.messages)
        self._done = done
        self.plain_bytes += len(piece)
        self._digest.update(piece)
        if is_last and self._compressor is None:
            # It knows at once how much there is, and takes less memory for little.
            self.body = compress_batch(piece, self.coding)
            return
        self._compressor = self._compressor or batch_compressor(self.coding)
        self._compressed.append(self._compressor.compress(piece))
        if is_last:
            self.body = b"".join((*self._compressed, self._compressor.flush()))


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
