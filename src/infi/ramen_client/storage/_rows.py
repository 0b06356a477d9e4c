"""What a row of the queue is in memory, and the checksum that covers it on disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any
from zlib import crc32


class ReqidOrigin(IntEnum):
    """Who made a message's reqid; only those made at push are unique for ever."""

    PUSH = 0
    CALLER = 1
    ROW_NUMBER = 2


class Fate(Enum):
    """Under which reason a message leaves the waiting ones; each is a column of the books."""

    ACCEPTED = "accepted"
    DROPPED = "dropped"
    BLACKLISTED = "blacklisted"
    DEAD = "dead"
    PURGED = "purged"


@dataclass(slots=True)
class NewMessage:
    """A message on its way into the queue; ``data`` is the payload as a zlib stream.

    Never changed, but not frozen, which would make it take seven times as long, in every push.
    """

    category: str
    data_type: str
    data_version: str | int
    system_version: str
    reqid: str
    reqid_origin: int
    pushed_at_ms: int
    plain_length: int
    plain_crc32: int
    data: bytes = field(repr=False)

    def columns(self, row_crc32: int | None = None) -> tuple[str | int | bytes, ...]:
        """Every column of a message row but its position, in the order of the statements; ``row_crc32``: where it is known already."""
        return (
            self.category,
            self.data_type,
            self.data_version,
            self.system_version,
            self.reqid,
            self.reqid_origin,
            self.pushed_at_ms,
            self.plain_length,
            self.plain_crc32,
            self.row_crc32() if row_crc32 is None else row_crc32,
            self.data,
        )

    def row_crc32(self) -> int:
        """The checksum over the whole row as it is stored. Its encoding is part of the file format: never change it."""
        version_kind = "i" if isinstance(self.data_version, int) else "t"
        head = (
            f"{self.category}\x1f{self.data_type}\x1f{version_kind}{self.data_version}\x1f{self.system_version}\x1f"
            f"{self.reqid_origin:d}\x1f{self.pushed_at_ms}\x1f{self.plain_length}\x1f{self.plain_crc32}\x1f{self.reqid}"
        )
        return crc32(self.data, crc32(head.encode()))


@dataclass(slots=True)
class StoredMessage(NewMessage):
    """A message in the queue."""

    position: int


@dataclass(frozen=True, slots=True)
class Death:
    """Why a message became a dead letter.

    ``status`` and ``code`` are those of the server's answer, None where there was none (a damaged row).
    """

    reason: str
    details: str = ""
    status: int | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that was refused for good, with the reason."""

    message: StoredMessage
    died_at_ms: int
    death: Death


@dataclass(slots=True)
class Settlement:
    """What became of one message; ``death`` is given with ``Fate.DEAD`` alone. Never changed, as ``NewMessage``."""

    message: StoredMessage
    fate: Fate
    death: Death | None = None


def message_of(row: tuple[Any, ...]) -> StoredMessage | None:
    """Build a message from a row as the statements read it (position, columns with text as bytes, payload).

    None when the row is not, bit for bit, what was pushed.
    """
    (
        position,
        category,
        data_type,
        data_version,
        system_version,
        reqid,
        origin,
        pushed_at,
        length,
        crc,
        row_crc,
        data,
    ) = row
    try:
        message = StoredMessage(
            category.decode(),
            data_type.decode(),
            data_version if isinstance(data_version, int) else data_version.decode(),
            system_version.decode(),
            reqid.decode(),
            origin,
            pushed_at,
            length,
            crc,
            data,
            position,
        )
        return message if message.row_crc32() == row_crc else None
    except (AttributeError, TypeError, ValueError):
        return None


UNSENDABLE = -1
"""``plain_length`` of a dead letter whose payload is damaged: it can be looked at, not sent again."""


def remains_of(row: tuple[Any, ...]) -> StoredMessage:
    """Make what can be made of a damaged row, for the dead letters; every column has its type again."""
    position, category, data_type, data_version, system_version, reqid, _origin, pushed_at, *_, data = row
    return StoredMessage(
        text_of(category),
        text_of(data_type),
        data_version if isinstance(data_version, int) else text_of(data_version),
        text_of(system_version),
        text_of(reqid),
        ReqidOrigin.CALLER,
        pushed_at if isinstance(pushed_at, int) else 0,
        UNSENDABLE,
        0,
        data if isinstance(data, bytes) else b"",
        position,
    )


def dead_letter_of(row: tuple[Any, ...]) -> DeadLetter:
    """Build a dead letter from a row as the statements read it: that of its message, when it died, and its death."""
    *columns, died_at, reason, status, code, details = row
    message = message_of(tuple(columns)) or remains_of(tuple(columns))
    death = Death(text_of(reason), text_of(details), status, None if code is None else text_of(code))
    return DeadLetter(message, died_at, death)


def text_of(value: object) -> str:
    """The text that a statement read as bytes; what is no UTF-8 in it, or no text at all, is replaced."""
    return value.decode(errors="replace") if isinstance(value, bytes) else ""
