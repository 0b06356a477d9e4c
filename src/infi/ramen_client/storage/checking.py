"""Comparing a queue's books with its rows, and its rows with their checksums; what to do about it is in ``repairing``.

Counting and SQLite's own integrity check see one instant each, so each is one read transaction, and what writers push meanwhile
stays in the WAL until it ends (seconds for a million messages). Checksums are read page by page, holding nothing in between.
Nobody is kept from writing at any time.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from . import _statements as sql
from ._database import Kind
from ._errors import Damaged
from ._rows import message_of
from .books import Entries, read_books
from .rules import damaged_rules

if TYPE_CHECKING:
    from ._database import Database

_BEFORE_ALL = -(2**63)

_PAGE_ROWS = 500

_ABOUT_PAGES = "*** in database main ***"
"""What SQLite's check says of pages begins so; what it says of values in rows does not."""


def check(database: Database) -> list[str]:
    """What is wrong with a queue, in words; empty: all is well."""
    problems = []
    for part in (_books, _integrity, _checksums, _rules):
        try:
            problems += part(database)
        except Damaged as error:
            problems.append(f"integrity: {error.__cause__ or error}")
    return list(dict.fromkeys(problems))


def _books(database: Database) -> list[str]:
    counted = count(database)
    books, names = (
        counted.entries.books,
        ("waiting messages", "messages in the 1.x table", "dead letters", "bytes of dead letters"),
    )
    problems = [
        f"the books say {entry} {name}, the file holds {rows}"
        for name, entry, rows in zip(names, counted.said, counted.rows, strict=True)
        if entry != rows
    ]
    if books.difference():
        problems.append(f"the books do not balance: {books.difference():+d} of {books.pushed} pushed")
    problems += [f"the books say {value} {name}" for name, value in asdict(books).items() if value < 0]
    return problems


@dataclass(frozen=True, slots=True)
class Counted:
    """The books, and what was counted at the same instant."""

    entries: Entries
    rows: tuple[int, int, int, int]
    """Waiting messages, rows of the 1.x table, dead letters, bytes of dead letters."""

    @property
    def said(self) -> tuple[int, int, int, int]:
        """What the books say of ``rows``."""
        return self.entries.messages, self.entries.inlet, self.entries.books.dead, self.entries.dead_bytes


def count(database: Database) -> Counted:
    """Count what is there; reads every page of the queue."""
    with database.connection(Kind.NORMAL) as connection:
        connection.execute(sql.BEGIN_READING)
        try:
            rows = next(connection.execute(sql.COUNT_ROWS))
            return Counted(read_books(connection), rows)
        finally:
            connection.execute(sql.ROLLBACK)


def _rules(database: Database) -> list[str]:
    with database.connection(Kind.NORMAL) as connection:
        damaged = len(damaged_rules(connection))
    return [f"{damaged} blacklist rules are damaged; they are not applied"] if damaged else []


def _integrity(database: Database) -> list[str]:
    with database.connection(Kind.NORMAL) as connection:
        return [f"integrity: {text}" for (text,) in connection.execute(sql.INTEGRITY) if text != "ok"]


def broken_structure(database: Database) -> str | None:
    """What is wrong with the file's pages, a value in a row apart; reads every page. None: nothing."""
    with database.connection(Kind.NORMAL) as connection:
        for (text,) in connection.execute(sql.INTEGRITY):
            if text.startswith(_ABOUT_PAGES):
                return " ".join(text.removeprefix(_ABOUT_PAGES).split())
    return None


def _checksums(database: Database) -> list[str]:
    damaged = 0
    first: int | None = None
    after = _BEFORE_ALL
    more = True
    while more:
        more = False
        with database.connection(Kind.NORMAL) as connection:
            for row in connection.execute(sql.CHECK_PAGE, (after, _PAGE_ROWS)):
                after = row[0]
                more = True
                if message_of(row) is None:
                    damaged += 1
                    first = after if first is None else first
    if not damaged:
        return []
    number = f"{damaged} waiting messages are damaged (wrong checksums)"
    return [f"{number}, the first at position {first}; the reader will make dead letters of them"]
