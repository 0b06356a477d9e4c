"""Reading what is left of a damaged queue file, without SQLite, whatever the bytes are.

A row is *live* when two things that SQLite keeps apart do not contradict each other: the tree that leads from its table's root to its leaf,
and the pointer map, in which each page has its use and its parent. So one damaged page costs what lies on it, and nothing else:

1. The trees are walked from their roots. A child is believed unless the pointer map says that it is something else (where that is
   damaged, or there is none: unless the free list does).
2. Leaves that no tree leads to, but that the pointer map says belong to one, are live too: their parent is damaged.
3. Where the log is damaged, or the whole does not fit together, the database without its log is walked as well: it may be older than
   the log, but also newer than the intact part of it.
4. Leaves in the log behind a damaged frame.
5. Leaves about which tree and pointer map do not agree or say nothing, and older images of damaged pages in the log.

Rows of the last three are *doubtful*: they must prove themselves (``_found``), and those of an old copy may have left the queue. So they
count only where no sound live leaf says what there is: each of these covers a range of its table's keys, and in a whole file all is
covered, so that nothing comes back. (Where the log is damaged, what it hid counts in any case.)

A log that belongs to another file is recognised by what it says of the same rows, and is left alone (``WalState.FOREIGN``); nothing in
the formats ties the two together. Each of these tells it: the same positions hold other messages; the file calls itself otherwise; the
book went backwards; tables are gone; or, where nothing of this can be seen, the database is consistent without the log (trees, pointer
map, as many messages as the book says) and not with it.

Memory: a byte for each page, the numbers of damaged pages, the log's table of frames, one row. Time: each page is read a few times at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING

from ._cells import AFTER_ALL, BEFORE_ALL, LEAF_MARK, is_ascending, mend_keys, read_leaf, read_row
from ._found import (
    COLUMNS,
    INLET,
    Found,
    FoundDeadLetter,
    FoundMessage,
    FoundRow,
    Value,
    found_of,
    table_of,
)
from ._pages import PAGE_BYTES, Pages, RawFile, frames_of_page, read_log
from ._trees import Trees, is_other_files_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from ._pages import Log

__all__ = [
    "COLUMNS",
    "Found",
    "FoundDeadLetter",
    "FoundMessage",
    "FoundRow",
    "Salvage",
    "Summary",
    "Value",
    "WalState",
]


class WalState(Enum):
    """What became of the write-ahead log."""

    ABSENT = "absent"
    """There is none, or it holds nothing that is committed."""
    WHOLE = "whole"
    """Laid over the database as SQLite would."""
    DAMAGED = "damaged"
    """Some of it could not be read. What SQLite would read was laid over the database, the rest was read apart."""
    FOREIGN = "foreign"
    """It is another file's (or another time's), and was left alone."""


@dataclass(slots=True)
class Summary:
    """What was found; complete once the iterator is exhausted. Rows are those that were yielded, unless said otherwise."""

    wal: WalState = WalState.ABSENT
    pages: int = 0
    """As many as the database has."""
    pages_read: int = 0
    pages_damaged: int = 0
    """Missing, unparsable, or not what the pages that point to them say; each once."""
    frames_damaged: int = 0
    """Of the log; those between intact ones, or with a commit mark behind them."""
    messages: int = 0
    """Live and sound, as in the next two."""
    dead_letters: int = 0
    inlet_rows: int = 0
    rows_damaged: int = 0
    rows_unreadable: int = 0
    """Rows on live pages of which not even remains could be made: not yielded."""
    rows_doubtful: int = 0


class Salvage:
    """Everything that can still be read of a queue; iterate once, then look at ``summary``. Close it, or use it in a ``with``.

    **The first wins**: rows come in the order of trust, live ones first, doubtful ones last. So at a position that is taken, in
    ``message`` or ``dead_letter``, a doubtful row is to be ignored. A live row whose position is taken by another reqid has a damaged
    position: store it at a new one. So has one whose position is far above all others. For the single rows (``meta``, ``book``,
    ``reader``) the first is the one; so it is for other rows by their key. Small tables come first where the file's structure is whole,
    but may come anywhere. The same files give the same rows in the same order every time.

    Raises ``OSError`` at construction when a file is there and cannot be opened; missing files count as empty. Afterwards nothing raises,
    whatever the files hold: what the disk cannot read (``EIO``) is damage.
    """

    summary: Summary

    def __init__(self, database: Path, wal: Path) -> None:
        self.summary = Summary()
        self._database = RawFile(database)
        try:
            self._log_file = RawFile(wal)
        except OSError:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._database.close()
        self._log_file.close()

    def __iter__(self) -> Iterator[Found]:
        for found in self._all():
            self._count(found)
            yield found

    def _count(self, found: Found) -> None:
        summary = self.summary
        if found.is_damaged:
            summary.rows_damaged += 1
        elif found.is_doubtful:
            summary.rows_doubtful += 1
        elif isinstance(found, FoundMessage):
            summary.messages += 1
        elif isinstance(found, FoundDeadLetter):
            summary.dead_letters += 1
        elif found.table == INLET:
            summary.inlet_rows += 1

    def _all(self) -> Iterator[Found]:
        log = read_log(self._log_file)
        below = Pages(self._database, self._log_file, {}, None)
        pages = Pages(self._database, self._log_file, log.overlay, log.page_count)
        is_foreign = log.is_other_page_size or is_other_files_log(below, pages, log)
        if is_foreign:
            pages = below
        summary = self.summary
        if is_foreign:
            summary.wal = WalState.FOREIGN
        elif log.is_damaged:
            summary.wal, summary.frames_damaged = WalState.DAMAGED, log.frames_damaged
        elif log.overlay:
            summary.wal = WalState.WHOLE
        summary.pages = pages.page_count

        trees = Trees(pages)
        yield from self._live(trees)
        summary.pages_read, summary.pages_damaged = trees.pages_seen(), len(trees.damaged)
        if not is_foreign:
            if log.overlay and (log.is_damaged or trees.damaged):
                yield from self._below(trees, below, log)
            yield from self._beyond(log)
        yield from self._undecided(trees)
        if not is_foreign:
            yield from self._older_images(trees)

    def _live(self, trees: Trees) -> Iterator[Found]:
        for _, page, leaf, place, is_sound in trees.leaves():
            keys = [cell.key for cell in leaf.cells]
            if not is_ascending(keys, BEFORE_ALL, AFTER_ALL):
                keys = mend_keys(keys)
            table = place.table
            unreadable = leaf.unreadable
            for key, cell in zip(keys, leaf.cells, strict=True):
                row = read_row(trees.pages, page, cell)
                if row is not None:
                    table = table or table_of(row)
                    found = found_of(table, key, row, is_doubtful=False) if table else None
                    if found is not None:
                        yield found
                        continue
                unreadable += 1
            if table is None:
                continue  # none of ours
            self.summary.rows_unreadable += unreadable
            if is_sound and place.is_reached:
                trees.cover(table, place.low + 1, place.high)
            elif is_sound and keys:
                trees.cover(table, keys[0], keys[-1])

    def _below(self, trees: Trees, below: Pages, log: Log) -> Iterator[Found]:
        """What the database holds by itself and the log hides, or leads away from."""
        for found in Trees(below).leaves():
            if found.number in log.overlay or not trees.is_seen(found.number):
                yield from self._proven(
                    below, found.page, lambda table, key: log.is_damaged or not trees.is_covered(table, key)
                )

    def _beyond(self, log: Log) -> Iterator[Found]:
        """What stands in the log behind a damaged frame."""
        if log.beyond:
            overlay = {**log.overlay, **dict(log.beyond)}
            newer = Pages(self._database, self._log_file, overlay, log.page_count)
            for _, offset in log.beyond:
                yield from self._proven(newer, self._log_file.read(offset, PAGE_BYTES), lambda *_: True)

    def _undecided(self, trees: Trees) -> Iterator[Found]:
        """Pages that may be live, and damaged ones in which single rows may be sound."""
        pages = trees.pages
        for number in trees.undecided():
            page = pages.read(number)
            yield from self._proven(pages, page, lambda table, key: not trees.is_covered(table, key))
        for number in trees.lost:
            page = pages.read(number)
            if page and page[:1] != LEAF_MARK:  # else its rows were read above
                is_missing = partial(trees.is_missing, number)
                yield from self._proven(pages, LEAF_MARK + page[1:], is_missing)

    def _older_images(self, trees: Trees) -> Iterator[Found]:
        """What damaged pages were once, as far as the log still holds it."""
        for number, page in frames_of_page(self._log_file, trees.lost):
            yield from self._proven(trees.pages, page, partial(trees.is_missing, number))

    def _proven(self, pages: Pages, page: bytes, is_wanted: Callable[[str, int], bool]) -> Iterator[Found]:
        """The rows of a leaf that prove themselves."""
        leaf = read_leaf(page)
        for cell in leaf.cells if leaf else ():
            row = read_row(pages, page, cell)
            table = table_of(row) if row else None
            if row and table and is_wanted(table, cell.key):
                found = found_of(table, cell.key, row, is_doubtful=True)
                if found is not None:
                    yield found
