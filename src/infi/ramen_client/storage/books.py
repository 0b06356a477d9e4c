"""The books: where every message that was ever pushed is now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import _statements as sql
from ._errors import Damaged

if TYPE_CHECKING:
    import apsw


LAST_POSITION = 2**63 - 2**32
"""Far above every position that is given out; what lies above is damage, and near the end of what SQLite can count."""


@dataclass(frozen=True, slots=True)
class Books:
    """A queue's counters, each a number of messages since the file was made.

    The conservation law: ``pushed + found`` is the sum of the others from ``waiting`` to ``removed_by_1x``. No message leaves the queue
    without being counted under a reason.
    """

    pushed: int
    """Stored by ``push``, this version's or 1.x's."""
    found: int
    """In a damaged file when it was healed, and in no book."""
    waiting: int
    """In the queue now."""
    accepted: int
    """The server has them."""
    dropped: int
    """The server asked not to have them, one by one."""
    blacklisted: int
    """Dropped here, under a rule that the server sent."""
    dead: int
    """Refused by the server, or damaged; kept as dead letters."""
    dead_discarded: int
    """Dead letters that were thrown away for want of room, or by an operator."""
    trimmed: int
    """Thrown away because the queue was over its size limit."""
    expired: int
    """Thrown away because they were too old."""
    purged: int
    """Removed by the program or by an operator."""
    damaged: int
    """Lost with a damaged part of the file."""
    removed_by_1x: int
    """Taken out of the 1.x table by a program that still runs 1.x."""
    maybe_twice: int
    """Of the accepted ones: those that may have been stored twice. No term of the law."""

    def difference(self) -> int:
        """What came less everything that is accounted for: 0 when the books balance, above 0 when messages are missing."""
        return (
            self.pushed
            + self.found
            - (
                self.waiting
                + self.accepted
                + self.dropped
                + self.blacklisted
                + self.dead
                + self.dead_discarded
                + self.trimmed
                + self.expired
                + self.purged
                + self.damaged
                + self.removed_by_1x
            )
        )


@dataclass(frozen=True, slots=True)
class Entries:
    """The books, and what they say of the things that can be counted apart."""

    books: Books
    messages: int
    """Waiting, in our own table."""
    inlet: int
    """Waiting, in the 1.x table."""
    dead_bytes: int
    """What the payloads of all dead letters take, as stored."""


def read_books(connection: apsw.Connection) -> Entries:
    """The books as of now; ``Damaged`` where there are none."""
    row = next(connection.execute(sql.READ_BOOK), None)
    if row is None:
        raise Damaged(f"{connection.filename}: its books are gone")
    (
        pushed,
        messages,
        inlet,
        accepted,
        dropped,
        blacklisted,
        dead,
        *reasons,
        found,
        maybe_twice,
        dead_bytes,
    ) = row
    discarded, trimmed, expired, purged, damaged, removed_by_1x = reasons
    books = Books(
        pushed=pushed,
        found=found,
        waiting=messages + inlet,
        accepted=accepted,
        dropped=dropped,
        blacklisted=blacklisted,
        dead=dead,
        dead_discarded=discarded,
        trimmed=trimmed,
        expired=expired,
        purged=purged,
        damaged=damaged,
        removed_by_1x=removed_by_1x,
        maybe_twice=maybe_twice,
    )
    return Entries(books, messages, inlet, dead_bytes)
