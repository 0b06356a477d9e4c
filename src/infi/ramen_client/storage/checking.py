"""Comparing a queue's books with its rows, and its rows with their checksums.

Counting and SQLite's own integrity check see one instant each, so each is one read transaction, and what writers push meanwhile
stays in the WAL until it ends (seconds for a million messages). Checksums are read page by page, holding nothing in between.
Nobody is kept from writing at any time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw

from infi.ramen_client.errors import QueueUnusable

from . import _statements as sql
from ._database import Kind
from ._rows import message_of
from .books import Entries, read_books

if TYPE_CHECKING:
    from ._database import Database

_BEFORE_ALL = -(2**63)

_PAGE_ROWS = 500


def check(database: Database) -> list[str]:
    """What is wrong with a queue, in words; empty: all is well."""
    problems = []
    for part in (_books, _integrity, _checksums):
        try:
            problems += part(database)
        except QueueUnusable as error:
            if not isinstance(error.__cause__, apsw.CorruptError):
                raise
            problems.append(f"integrity: {error.__cause__}")
    return list(dict.fromkeys(problems))


def _books(database: Database) -> list[str]:
    with database.connection(Kind.NORMAL) as connection:
        connection.execute(sql.BEGIN_READING)
        try:
            counted = next(connection.execute(sql.COUNT_ROWS))
            entries = read_books(connection)
        finally:
            connection.execute(sql.ROLLBACK)
    return _differences(entries, counted)


def _differences(entries: Entries, counted: tuple[int, int, int, int]) -> list[str]:
    books = entries.books
    names = ("waiting messages", "messages in the 1.x table", "dead letters", "bytes of dead letters")
    said = (entries.messages, entries.inlet, books.dead, entries.dead_bytes)
    problems = [
        f"the books say {entry} {name}, the file holds {rows}"
        for name, entry, rows in zip(names, said, counted, strict=True)
        if entry != rows
    ]
    if books.difference():
        problems.append(f"the books do not balance: {books.difference():+d} of {books.pushed} pushed")
    return problems


def _integrity(database: Database) -> list[str]:
    with database.connection(Kind.NORMAL) as connection:
        return [f"integrity: {text}" for (text,) in connection.execute(sql.INTEGRITY) if text != "ok"]


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
