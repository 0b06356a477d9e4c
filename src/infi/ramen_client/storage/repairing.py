"""Setting a queue's books right when they do not add up: by the active reader when it begins and has drained, or by an operator.

What lies in the file is the truth; the books are what a flipped bit, a bad restore or a foreign hand made wrong. What waits and is dead
is counted anew. What then comes out of the conservation law is entered: as ``found`` where the file holds more than the books know of, as
``damaged`` where it holds less. So the books balance again, and say how many messages nobody can account for.

- The look is a row: the law does not hold, a number is missing or below zero, nothing waits or is dead although the books say otherwise.
  Only then are rows counted, which reads the whole queue (a second or two for a million small messages).
- What is missing may lie in pages that no tree leads to any more. So SQLite's own check of the file comes first; where it finds the
  structure broken, nothing is entered: the file is ``Damaged``, to be put aside and read page by page.
- Counting holds up no writer: it is one read transaction, and what is entered is the difference between books and rows at that
  instant, which no push, delivery or removal changes. Nobody else repairs meanwhile, since whoever does is the reader or stands in its place.
- Damaged rules are forgotten on the way; the server sends them again.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from . import _statements as sql
from ._database import Kind
from ._errors import Damaged
from .books import LAST_POSITION, read_books
from .checking import broken_structure, count
from .reader_process import in_readers_place
from .rules import damaged_rules

if TYPE_CHECKING:
    import apsw

    from ._database import Database

logger = logging.getLogger("ramen_client")


@dataclass(frozen=True, slots=True)
class Repaired:
    """What had to be entered for the books to balance, and what was forgotten."""

    found: int = 0
    """Messages of which the books did not know."""
    damaged: int = 0
    """Messages that the books knew, and that are not there."""
    counts_changed: bool = False
    """Whether any count was wrong; they may have been so in ways that balance."""
    rules_forgotten: int = 0


def repair(database: Database) -> Repaired:
    """Set the books right for an operator.

    ``QueueBusy`` while a reader lives (it does so itself when it begins); ``QueueUnusable`` where the whole file is damaged: who uses it
    next, a writer or a reader, puts it aside and goes on in a new one.
    """
    with in_readers_place(database):
        return _repair(database, Kind.FULL)


def mend(database: Database) -> None:
    """Look at the books, and set them right where they are wrong. For the active reader alone."""
    with database.connection(Kind.READER) as connection:
        connection.execute(sql.BEGIN_READING)
        try:
            is_wrong = (
                _looks_wrong(connection)
                or connection.execute(sql.READER_IS_MISSING).get
                or damaged_rules(connection)
            )
        finally:
            connection.execute(sql.ROLLBACK)
    if is_wrong:
        _repair(database, Kind.READER)


def _looks_wrong(connection: apsw.Connection) -> bool:
    if connection.execute(sql.INLET_UNCOUNTED).get:
        return False  # the next opener counts it
    if connection.execute(sql.HEAD).get > LAST_POSITION:
        raise Damaged(f"{connection.filename}: its positions are damaged")
    entries = read_books(connection)
    books = entries.books
    counts = (entries.messages, entries.inlet, entries.dead_bytes, *asdict(books).values())
    return bool(
        connection.execute(sql.BOOK_HAS_NULL).get
        or min(counts) < 0
        or books.difference()
        or (entries.dead_bytes and not books.dead)
        or (books.waiting and not connection.execute(sql.ANY_WAITING).get)
    )


def _repair(database: Database, kind: Kind) -> Repaired:
    broken = broken_structure(database)
    if broken is not None:
        raise Damaged(f"{database.path}: is damaged ({broken})")
    with database.transaction(kind) as connection:
        before = read_books(connection)
        connection.execute(sql.NORMALISE_BOOK)
        connection.execute(sql.NORMALISE_INLET_MOVED)
        connection.execute(sql.ENTER_PUSHES)
        if connection.execute(sql.READER_IS_MISSING).get:
            connection.execute(sql.INSERT_READER)
        forgotten = damaged_rules(connection)
        for rule_id in forgotten:
            connection.execute(sql.DELETE_RULE, (rule_id,))
        is_normal = before == read_books(connection)
    counted = count(database)
    corrections = [rows - said for rows, said in zip(counted.rows, counted.said, strict=True)]
    with database.transaction(kind) as connection:
        connection.execute(sql.CORRECT_BOOK, corrections)
        difference = read_books(connection).books.difference()
        found, damaged = max(0, -difference), max(0, difference)
        connection.execute(sql.COUNT_UNEXPLAINED_DIFFERENCE, (found, damaged))
    repaired = Repaired(found, damaged, not is_normal or any((*corrections, difference)), len(forgotten))
    _say(database, repaired)
    return repaired


def _say(database: Database, repaired: Repaired) -> None:
    if repaired.counts_changed:
        logger.error(
            "%s: its books did not add up and were set right by counting: %d messages of which they did not know are entered as found, "
            "%d that nobody can account for as damaged. Check the disk.",
            database.path,
            repaired.found,
            repaired.damaged,
        )
    if repaired.rules_forgotten:
        logger.error(
            "%s: %d blacklist rules were damaged on disk and are forgotten; the server will send them again.",
            database.path,
            repaired.rules_forgotten,
        )
