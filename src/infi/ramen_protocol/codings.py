"""Content codings (protocol section 1, "Content codings"; RFC 9110 section 8.4, RFC 7694).

Payloads lie in the queue as zlib streams (RFC 1950). The 1.x coding puts these bytes on the wire as they are, under
the label ``gzip``, which is wrong but is what every deployed server reads; real gzip (RFC 1952) is a re-framing of the
same deflate data. A server therefore tells gzip, zlib and plain JSON apart by their first bytes. That is never
ambiguous: no JSON text begins with gzip's magic number or with a zlib header that names no preset dictionary.

Every decoder takes the most bytes that may come out, and stops there (``BodyTooLarge``): it never holds more than
that and one chunk; zstd's holds its window beside, which is bounded too. Whatever follows the end of a stream
is an error, not something to ignore.

zstd is read and written where this Python has it (``readable_codings`` says so).
"""

from __future__ import annotations

import re
import sys
import zlib
from enum import Enum
from io import BytesIO
from typing import Any, Protocol

from infi.ramen_protocol._zstd import zstd

MAX_GZIP_MEMBERS = 1024
"""How many members a gzip body may have. Each costs work but maybe no output, so they are bounded by number."""

MAX_ZSTD_FRAMES = 1024
"""How many frames a zstd body may have, skippable ones too; for the same reason."""

MAX_ZSTD_WINDOW_LOG = 23
"""A zstd window of 8 MiB, as RFC 9659 has it for HTTP: a frame of a few bytes can ask its reader for 2 GiB."""

_CHUNK_BYTES = 64 * 1024
# How much may come out of one call: zlib gathers it in pieces and then joins them, so for a moment it is there twice.
_STEP_BYTES = 1024 * 1024
_ZLIB_WINDOW = 15
_GZIP_WINDOW = 31
_MASK = 0xFFFFFFFF
_LEVEL = 6
# How much memory zlib is given for inputs of up to so many bytes: (bytes, window bits, memory level). See compress().
# A window of so many KiB less zlib's look-ahead: no match is out of its reach.
_MEMORY = ((1_780, 11, 5), (3_820, 12, 6), (7_900, 13, 6), (64 * 1024, 15, 6), (sys.maxsize, 15, 8))

_GZIP_MAGIC = b"\x1f\x8b"
# No flags, no time, no name, an unknown operating system (RFC 1952 section 2.3).
_GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
_ZLIB_HEADER_BYTES = 2
_ZLIB_TRAILER_BYTES = 4
# Records of a batch are alike: level 1 finds as much in them as 3, the default (telemetry: 38 instead of 45 bytes of 1,214), in two thirds
# of the time.
_ZSTD_LEVEL = 1

# Deflate, a window of 32 KiB, the default level: the two bytes that 1.x's streams begin with.
_ZLIB_HEADER = b"\x78\x9c"
_PRESET_DICTIONARY = 0x20
_JSON_STARTS = frozenset(b' \t\r\n{["-0123456789tfn')

_MAX_ACCEPT_ENCODING_CHARS = 1024
_ACCEPT_ELEMENT = re.compile(
    r"[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*(?:;[ \t]*[qQ]=([01](?:\.[0-9]{0,3})?)[ \t]*)?", re.ASCII
).fullmatch
_KNOWN_LABELS = frozenset(("gzip", "deflate", "zstd", "identity"))


class CodingError(ValueError):
    """The body is not what its coding says: damaged, cut short, or followed by something else (a 400)."""


class BodyTooLarge(CodingError):
    """Decoded, the body is larger than the limit (a 413)."""


class UnsupportedCoding(CodingError):
    """The body's coding is not one that is read here (a 415)."""


class Coding(Enum):
    """How a client puts a payload, or a batch, on the wire."""

    LEGACY = "legacy"
    """The zlib stream under the label ``gzip``: 1.x's bytes, which every deployed server reads."""

    GZIP = "gzip"
    ZSTD = "zstd"
    IDENTITY = "identity"

    @property
    def label(self) -> str:
        """The value of the ``Content-Encoding`` header."""
        return "gzip" if self is Coding.LEGACY else self.value


def compress(plain: bytes) -> bytes:
    """Compress ``plain`` into a zlib stream."""
    # zlib.compress() takes and gives back 256 KiB for every call, which can cost more than the work itself: 1 KB in
    # 72 microseconds, against 15 with the memory that 1 KB needs; and a push finds little of it in the processor's
    # caches. The stream is as small, and any reader of zlib streams takes it.
    size = len(plain)
    for most_bytes, window, memory in _MEMORY:
        if size <= most_bytes:
            compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, window, memory)
            break
    stream = compressor.compress(plain) + compressor.flush()
    # A small window is named in the header. Naming a larger one is as right (RFC 1950 section 2.2), and so a server
    # that tells 1.x's streams by their first byte knows ours.
    return stream if stream.startswith(_ZLIB_HEADER) else _ZLIB_HEADER + stream[_ZLIB_HEADER_BYTES:]


def decompress_zlib(stream: bytes, *, max_bytes: int) -> bytes:
    """Give the plain bytes of one zlib stream, at most ``max_bytes``.

    Raises ``BodyTooLarge`` when there are more, ``CodingError`` when the stream is damaged (its checksum counts),
    cut short, or followed by anything.
    """
    return _inflate(stream, _ZLIB_WINDOW, max_bytes, max_members=1)


def gzip_from_zlib(stream: bytes, *, plain_crc32: int, plain_length: int) -> bytes:
    """Frame a zlib stream, whose plain text has this CRC-32 and length, as gzip: the same data, framed anew.

    Raises ``CodingError`` when ``stream`` does not begin as a zlib stream, or is too short to be one. The data is not
    looked at: a wrong CRC or length makes a gzip body that its reader refuses.
    """
    if len(stream) < _ZLIB_HEADER_BYTES + _ZLIB_TRAILER_BYTES or not _begins_as_zlib(stream):
        raise CodingError("not a zlib stream")
    crc, length = plain_crc32 & _MASK, plain_length & _MASK
    return b"".join(
        (
            _GZIP_HEADER,
            memoryview(stream)[_ZLIB_HEADER_BYTES:-_ZLIB_TRAILER_BYTES],
            crc.to_bytes(4, "little"),
            length.to_bytes(4, "little"),
        )
    )


class Compressor(Protocol):
    """Puts what comes piece by piece under a content coding; the body is all that it gave, in order."""

    def compress(self, plain: bytes, /) -> bytes:
        """Take a piece."""

    def flush(self) -> bytes:
        """End; nothing may come after it."""


class _Identity:
    def compress(self, plain: bytes, /) -> bytes:
        return plain

    def flush(self) -> bytes:
        return b""


def batch_compressor(coding: Coding) -> Compressor:
    """Give a compressor for a batch that does not come at once. Raises as ``compress_batch``."""
    match coding:
        case Coding.IDENTITY:
            return _Identity()
        case Coding.ZSTD:
            compressor: Compressor = _zstd().ZstdCompressor(level=_ZSTD_LEVEL)
            return compressor
        case Coding.GZIP:
            return zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
        case Coding.LEGACY:
            return zlib.compressobj(_LEVEL, zlib.DEFLATED, _ZLIB_WINDOW)


def _zstd() -> Any:
    if zstd is None:
        raise UnsupportedCoding(
            "zstd needs Python 3.14, or the package backports.zstd (infi.ramen_client[zstd])"
        )
    return zstd


def compress_batch(plain: bytes, coding: Coding) -> bytes:
    """Put ``plain`` under ``coding``.

    Raises ``UnsupportedCoding`` for zstd where this Python does not have it.
    """
    if coding is Coding.IDENTITY:
        return plain
    if coding is Coding.ZSTD:
        compressed: bytes = _zstd().compress(plain, level=_ZSTD_LEVEL)  # with a window of at most 512 KiB
        return compressed
    stream = compress(plain)
    if coding is Coding.LEGACY:
        return stream
    return gzip_from_zlib(stream, plain_crc32=zlib.crc32(plain), plain_length=len(plain))


def readable_codings() -> tuple[str, ...]:
    """List the labels that ``decode_body`` reads, best first; joined by commas they make an ``Accept-Encoding`` header.

    ``identity`` is read too, and goes without saying.
    """
    return ("zstd", "gzip", "deflate") if zstd is not None else ("gzip", "deflate")


def decode_body(body: bytes, label: str | None, *, max_bytes: int) -> bytes:
    """Take the content coding (the ``Content-Encoding`` in ``label``) off a request's body, up to ``max_bytes``.

    Reads ``gzip`` (also ``x-gzip``; gzip of one or more members, or 1.x's zlib, or 1.x's plain JSON), ``deflate``
    (zlib, as RFC 9110 section 8.4.1.2 defines it), ``zstd`` where there is a reader (one frame or more, windows up to
    8 MiB), and ``identity`` or none. Raises ``UnsupportedCoding`` for any other label, ``BodyTooLarge`` and ``CodingError`` as ``decompress_zlib``.
    """
    coding = "identity" if label is None else label.strip(" \t").lower()
    if coding in ("gzip", "x-gzip"):
        if body.startswith(_GZIP_MAGIC):
            return _inflate(body, _GZIP_WINDOW, max_bytes, max_members=MAX_GZIP_MEMBERS)
        if _begins_as_zlib(body):
            return decompress_zlib(body, max_bytes=max_bytes)
        if body and body[0] not in _JSON_STARTS:
            raise CodingError("the body is neither gzip nor zlib nor JSON")
    elif coding == "deflate":
        return decompress_zlib(body, max_bytes=max_bytes)
    elif coding == "zstd" and zstd is not None:
        return _unzstd(body, max_bytes)
    elif coding not in ("identity", ""):
        raise UnsupportedCoding("the body's Content-Encoding is not one that is read here")
    if len(body) > max_bytes:
        raise BodyTooLarge(f"the body is larger than {max_bytes} bytes")
    return body


def accepted_codings(accept_encoding: str) -> frozenset[str]:
    """List the codings that an ``Accept-Encoding`` header accepts (RFC 9110 section 12.5.3), in lower case.

    What has ``q=0`` is left out; ``*`` stands for those of gzip, deflate, zstd and identity that are not named;
    ``identity`` is acceptable unless it is refused; ``x-gzip`` counts as gzip. Elements that break the grammar are
    ignored; of a header longer than 1,024 characters nothing is believed but ``identity``.
    """
    weights: dict[str, bool] = {}
    if len(accept_encoding) <= _MAX_ACCEPT_ENCODING_CHARS:
        for element in accept_encoding.split(","):
            match = _ACCEPT_ELEMENT(element)
            if match is not None:
                name, weight = match[1].lower(), match[2]
                weights["gzip" if name == "x-gzip" else name] = weight is None or float(weight) > 0
    others = weights.pop("*", None)
    accepted = {name for name, wanted in weights.items() if wanted}
    if others:
        accepted |= _KNOWN_LABELS - weights.keys()
    elif others is None and "identity" not in weights:
        accepted.add("identity")
    return frozenset(accepted)


def _begins_as_zlib(body: bytes) -> bool:
    """Whether the first two bytes are a zlib header without a preset dictionary (RFC 1950 section 2.2)."""
    if len(body) < _ZLIB_HEADER_BYTES:
        return False
    method, flags = body[0], body[1]
    return (
        method & 0x0F == zlib.DEFLATED
        and method >> 4 <= _ZLIB_WINDOW - 8
        and (method << 8 | flags) % 31 == 0
        and not flags & _PRESET_DICTIONARY
    )


def _inflate(body: bytes, window: int, max_bytes: int, *, max_members: int) -> bytes:
    view = memoryview(body)
    gathered = (
        BytesIO()
    )  # grows in place; of a list of parts, everything would be there twice when they are joined
    total = position = members = 0
    while position < len(body) or not members:
        if members == max_members:
            raise CodingError(f"more than {max_members} compressed streams in a row, or bytes after the end")
        inflater = zlib.decompressobj(window)
        while not inflater.eof:
            # In chunks: what follows the end of a stream is copied by zlib, and is then at most one chunk.
            chunk = view[position : position + _CHUNK_BYTES]
            try:
                # One byte beyond the limit, to tell "just so many" from "more"; never 0, which means no limit.
                part = inflater.decompress(chunk, min(max_bytes - total + 1, _STEP_BYTES))
            except zlib.error:
                raise CodingError("the compressed data is damaged") from None
            if not chunk and not part and not inflater.eof:
                # Without input there may still come something that a full step has held back.
                raise CodingError("the compressed data is cut short")
            # At the end of a stream what is left is in both, sometimes.
            left = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
            position += len(chunk) - len(left)
            total += len(part)
            if total > max_bytes:
                raise BodyTooLarge(f"the body is larger than {max_bytes} bytes when decoded")
            gathered.write(part)
        members += 1
    return gathered.getvalue()


def _unzstd(body: bytes, max_bytes: int) -> bytes:
    view = memoryview(body)
    gathered = BytesIO()
    options = {zstd.DecompressionParameter.window_log_max: MAX_ZSTD_WINDOW_LOG}
    total = position = frames = 0
    while position < len(body) or not frames:
        if frames == MAX_ZSTD_FRAMES:
            raise CodingError(f"more than {MAX_ZSTD_FRAMES} compressed frames in a row")
        frame = zstd.ZstdDecompressor(options=options)
        while not frame.eof:
            chunk = view[position : position + _CHUNK_BYTES] if frame.needs_input else b""
            if frame.needs_input and not chunk:
                raise CodingError("the compressed data is cut short")
            try:
                # One byte beyond the limit, to tell "just so many" from "more".
                part = frame.decompress(chunk, min(max_bytes - total + 1, _STEP_BYTES))
            except zstd.ZstdError:
                raise CodingError(
                    "the compressed data is damaged, or wants a window of more than 8 MiB"
                ) from None
            position += len(chunk)
            total += len(part)
            if total > max_bytes:
                raise BodyTooLarge(f"the body is larger than {max_bytes} bytes when decoded")
            gathered.write(part)
        position -= len(frame.unused_data)
        frames += 1
    return gathered.getvalue()
