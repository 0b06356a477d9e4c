"""A message's identity: what it is about, and the reqid that makes it one of a kind.

An ``Envelope`` is a message without its payload. It checks nothing: names are checked where they enter (at
``push`` and by ``url.parse_target``), and messages of an old queue must come out again whatever they hold.

A server recognises a message by (its version 1 path, reqid), so ids made here are unique for ever. They are
UUIDs of version 7 (RFC 9562 section 5.7): random enough that two machines never meet, and ordered in time, which
keeps the server's index of seen ids four times cheaper to write than random ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

MAX_REQID_BYTES = 2048
"""The longest reqid, in bytes of UTF-8. Percent-encoded it still fits the 8 KiB that servers take as a line."""

_MAX_UNIX_MILLISECONDS = 2**48 - 1
_RANDOM_BYTES = 10


@dataclass(slots=True, unsafe_hash=True)
class Envelope:
    """A message without its payload. All parts as text, but for the serial.

    Never changed, but not frozen, which would make it take five times as long, for every message on both sides.
    """

    category: str
    system_serial: int
    sender: str
    data_type: str
    data_version: str
    system_version: str
    reqid: str


def normalise_reqid(reqid: str | int | UUID) -> str:
    """Give the text of a reqid that a caller chose.

    Any text of 1 to ``MAX_REQID_BYTES`` bytes of UTF-8 is taken as it is; an int becomes its decimal digits, a
    UUID its canonical text. Raises ``TypeError`` for any other type (a bool too), ``ValueError`` for text that
    is empty, too long or not expressible in UTF-8 (lone surrogates).
    """
    if isinstance(reqid, str):
        # A subclass (an Enum member, say) may dress itself up in __str__; its characters are what counts.
        text = reqid if type(reqid) is str else str.__str__(reqid)
    elif isinstance(reqid, UUID):
        text = str(UUID(int=reqid.int))
    elif isinstance(reqid, int) and not isinstance(reqid, bool):
        if reqid.bit_length() > 4 * MAX_REQID_BYTES:  # a digit is 3.3 bits; Python prints 4,300
            raise ValueError(f"reqid must be at most {MAX_REQID_BYTES} bytes long")
        text = int.__repr__(reqid)
    else:
        raise TypeError(f"reqid must be a str, an int or a UUID, not {type(reqid).__name__}")
    if not text:
        raise ValueError("reqid must not be empty (leave it out to have one made)")
    if len(text) > MAX_REQID_BYTES:
        raise ValueError(f"reqid must be at most {MAX_REQID_BYTES} bytes long")
    if not text.isascii():
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise ValueError("reqid must be text that UTF-8 can express (it has lone surrogates)") from None
        if size > MAX_REQID_BYTES:
            raise ValueError(f"reqid must be at most {MAX_REQID_BYTES} bytes long")
    return text


def message_id(unix_milliseconds: int, random_bytes: bytes) -> str:
    """Make a UUID of version 7, as canonical text, from the time and 10 bytes of randomness.

    Raises ``ValueError`` when the time does not fit 48 bits (before 1970, or after the year 10889), or when there
    are not exactly 10 random bytes.
    """
    if len(random_bytes) != _RANDOM_BYTES:
        raise ValueError(f"a message id needs exactly {_RANDOM_BYTES} random bytes, got {len(random_bytes)}")
    if not 0 <= unix_milliseconds <= _MAX_UNIX_MILLISECONDS:
        raise ValueError(f"{unix_milliseconds} is no time in milliseconds that 48 bits can hold")
    number = unix_milliseconds << 80 | int.from_bytes(random_bytes, "big")
    # Version 7 in bits 79..76, variant 0b10 in bits 63 and 62; both replace random bits.
    number = number & ~(0xF << 76 | 0x3 << 62) | 0x7 << 76 | 0x2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
