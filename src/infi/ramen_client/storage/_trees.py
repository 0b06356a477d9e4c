"""Finding the live leaves of a damaged file's tables: by the trees, by the pointer map, and where the two contradict each other.

How ``_salvage`` says: a child that the pointer map does not contradict is live; so is a leaf that the pointer map gives to a tree although
no tree leads to it. What is neither clearly live nor clearly free is left for last (``undecided``).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from ._cells import (
    AFTER_ALL,
    BEFORE_ALL,
    Leaf,
    is_ascending,
    is_index_page,
    read_head,
    read_interior,
    read_leaf,
    read_row,
)
from ._found import BOOK, COLUMNS, DEAD_LETTER, INLET, MESSAGE, growing_counts, identity, waiting_and_last
from ._pages import SCHEMA_PAGE, Entry, Use

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._pages import Log, Pages

_SCHEMA: Final = "sqlite_schema"
_SCHEMA_KINDS: Final = ("t", "t", "t", "i")
_LARGE_TABLES: Final = (DEAD_LETTER, INLET, MESSAGE)
_MOST_ROOTS: Final = 200
_DEEPEST: Final = 20

_UNSEEN, _SEEN, _UNDECIDED = 0, 1, 2

_VOTERS: Final = 4096
"""So many pages of the log are compared with the database's."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a leaf stands: keys above ``low``, up to ``high``. ``is_reached``: a tree leads to it, so that these are known."""

    table: str | None
    low: int = BEFORE_ALL
    high: int = AFTER_ALL
    is_reached: bool = False


class FoundLeaf(NamedTuple):
    """A live leaf. ``is_sound``: every row of it can be found, in order, where its parent says."""

    number: int
    page: bytes
    leaf: Leaf
    place: Place
    is_sound: bool


class Ranges:
    """Ranges of keys, 16 bytes each; added first, asked afterwards."""

    def __init__(self) -> None:
        self._firsts = array("q")
        self._lasts = array("q")
        self._is_sorted = True

    def add(self, first: int, last: int) -> None:
        """Add what lies from ``first`` to ``last``, both included."""
        if self._lasts and first == self._lasts[-1] + 1:
            self._lasts[-1] = last
        else:
            self._firsts.append(first)
            self._lasts.append(last)
            self._is_sorted = False

    def __contains__(self, key: int) -> bool:
        if not self._is_sorted:
            self._sort()
        index = bisect_right(self._firsts, key) - 1
        return index >= 0 and key <= self._lasts[index]

    def _sort(self) -> None:
        # Each reaches as far as any before it, so that the last one that begins below a key tells.
        firsts, lasts = array("q"), array("q")
        for first, last in sorted(zip(self._firsts, self._lasts, strict=True)):
            if lasts and first <= lasts[-1] + 1:
                lasts[-1] = max(lasts[-1], last)
            else:
                firsts.append(first)
                lasts.append(last)
        self._firsts, self._lasts, self._is_sorted = firsts, lasts, True


class Trees:
    """The trees of one view of the file; walk ``leaves`` to its end, then ask the rest."""

    def __init__(self, pages: Pages) -> None:
        self.pages = pages
        self.damaged: set[int] = set()
        """Pages that are not what they should be."""
        self.lost: dict[int, Place] = {}
        """Of these, those that should be part of a table, and where."""
        self._states = bytearray(pages.last + 1)
        self._free = pages.free_pages()
        self._covered: dict[str, Ranges] = {}

    def is_seen(self, number: int) -> bool:
        """Whether a live page has been read."""
        return self._states[number] == _SEEN

    def pages_seen(self) -> int:
        """How many live pages have been read."""
        return self._states.count(_SEEN)

    def cover(self, table: str, first: int, last: int) -> None:
        """Note that all rows of a table from key to key are known."""
        self._covered.setdefault(table, Ranges()).add(first, last)

    def is_covered(self, table: str, key: int) -> bool:
        """Whether live leaves say what there is at this key."""
        return table in self._covered and key in self._covered[table]

    def is_missing(self, number: int, table: str, key: int) -> bool:
        """Whether a row may have stood on this lost page, and on no other live one."""
        place = self.lost[number]
        is_there = place.table in (None, table) and place.low < key <= place.high
        return is_there and not self.is_covered(table, key)

    def undecided(self) -> Iterator[int]:
        """Pages that may be live."""
        return (number for number, state in enumerate(self._states) if state == _UNDECIDED)

    def leaves(self) -> Iterator[FoundLeaf]:
        """Every live leaf: small tables first, each in the order of its keys, then those that no tree leads to."""
        roots = self.roots()
        for root, table in sorted(roots.items(), key=lambda item: (item[1] in _LARGE_TABLES, item[0])):
            yield from self._walk(root, Place(table, is_reached=True))
        self.damaged.update(self.pages.damaged_map_pages())
        yield from self._orphans(roots)

    def roots(self) -> dict[int, str | None]:
        """The roots that the schema names; those that the pointer map alone knows are of no known table."""
        roots: dict[int, str | None] = {}
        for found in self._schema_leaves():
            for cell in found.leaf.cells:
                row = read_row(self.pages, found.page, cell)
                if row is None or tuple(row.kinds[:4]) != _SCHEMA_KINDS:
                    continue
                kind, name, _, root = row.values[:4]
                table = name.decode(errors="replace") if isinstance(name, bytes) else ""
                if kind == b"table" and table in COLUMNS and isinstance(root, int):
                    roots[root] = table
        # With auto-vacuum the roots come before all other pages.
        for number in range(SCHEMA_PAGE + 2, min(self.pages.last, _MOST_ROOTS) + 1):
            if self.pages.entry(number) == Entry(Use.ROOT, 0):
                roots.setdefault(number, None)
        return roots

    def _schema_leaves(self) -> Iterator[FoundLeaf]:
        yield from self._walk(SCHEMA_PAGE, Place(_SCHEMA, is_reached=True))
        if SCHEMA_PAGE not in self.damaged:
            return
        for number in range(SCHEMA_PAGE + 1, self.pages.last + 1):
            if self.pages.entry(number) == Entry(Use.TREE, SCHEMA_PAGE) and not self.is_seen(number):
                yield from self._walk(number, Place(_SCHEMA), SCHEMA_PAGE)

    def _walk(self, root: int, place: Place, parent: int = 0) -> Iterator[FoundLeaf]:
        stack = [(root, parent, place)]
        while stack:
            number, parent, place = stack.pop()
            if not 0 < number <= self.pages.last:
                self.damaged.add(number)
                continue
            if self._states[number] == _SEEN:
                self.damaged.add(parent)
                continue
            if number != SCHEMA_PAGE and self._is_contradicted(number, parent):
                self.damaged.add(number)
                self._states[number] = _UNDECIDED
                continue
            page = self.pages.read(number)
            self._states[number] = _SEEN
            interior = read_interior(page, number, place.low, place.high)
            if interior is not None:
                if not interior.is_sound:
                    self.damaged.add(number)
                low = place.low
                below = []
                for child, high in interior.children:
                    below.append((child, number, Place(place.table, low, high, is_reached=True)))
                    low = high
                stack += reversed(below)
            else:
                yield from self._leaf(page, number, place)

    def _is_contradicted(self, number: int, parent: int) -> bool:
        entry = self.pages.entry(number)
        if entry is None:
            return bool(self._free[number])
        return entry != (Entry(Use.TREE, parent) if parent else Entry(Use.ROOT, 0))

    def _leaf(self, page: bytes, number: int, place: Place) -> Iterator[FoundLeaf]:
        leaf = read_leaf(page, number)
        if leaf is not None:
            keys = [cell.key for cell in leaf.cells]
            is_sound = not leaf.unreadable and is_ascending(keys, place.low, place.high)
            if not is_sound:
                self.damaged.add(number)
                self.lost[number] = place
            yield FoundLeaf(number, page, leaf, place, is_sound)
        elif not is_index_page(page):
            self.damaged.add(number)
            self.lost[number] = place

    def _orphans(self, roots: dict[int, str | None]) -> Iterator[FoundLeaf]:
        for number in range(SCHEMA_PAGE + 1, self.pages.last + 1):
            if self._states[number] == _SEEN:
                continue
            entry = self.pages.entry(number)
            if entry is None:
                if not self._free[number]:
                    self._states[number] = _UNDECIDED
            elif entry.use in (Use.TREE, Use.ROOT):
                self._states[number] = _SEEN
                page = self.pages.read(number)
                table = self._table_of(number, roots)
                if table != _SCHEMA and read_interior(page, number, BEFORE_ALL, AFTER_ALL) is None:
                    yield from self._leaf(page, number, Place(table))

    def _table_of(self, number: int, roots: dict[int, str | None]) -> str | None:
        """Whose page it is, by the pointer map's parents."""
        for _ in range(_DEEPEST):
            entry = self.pages.entry(number)
            if number in roots or number == SCHEMA_PAGE:
                return roots.get(number, _SCHEMA)
            if entry is None or entry.use is not Use.TREE:
                break
            number = entry.parent
        return None


def is_other_files_log(below: Pages, pages: Pages, log: Log) -> bool:
    """Whether a log is not this database's: ``below`` is the database alone, ``pages`` that with the log over it."""
    akin = alien = 0
    for number in islice(log.overlay, _VOTERS):
        old, new = (_identities(view.read(number), number) for view in (below, pages))
        for key in old.rows.keys() & new.rows.keys():
            if old.rows[key] == new.rows[key]:
                akin += 1
            else:
                alien += 1
        if old.counts and new.counts and not log.is_damaged:
            alien += any(after < before for before, after in zip(old.counts, new.counts, strict=False))
    # Tables are only ever added.
    alien += bool(_tables(below) - _tables(pages)) and SCHEMA_PAGE in log.overlay
    if akin or alien or log.is_damaged or not log.overlay:
        return alien > akin
    return _is_consistent(below) and not _is_consistent(pages)


class _Identities(NamedTuple):
    rows: dict[int, tuple[object, ...]]
    counts: list[int]


def _identities(page: bytes, number: int) -> _Identities:
    """Which messages (or rows of the 1.x table, or which file) a page speaks of, and what its book says."""
    leaf = read_leaf(page, number)
    rows = {}
    counts: list[int] = []
    for cell in leaf.cells if leaf else ():
        row = read_head(page, cell)
        if row is not None:
            named = identity(row)
            if named is not None:
                rows[cell.key] = named
            counts = growing_counts(row) or counts
    return _Identities(rows, counts)


def _tables(pages: Pages) -> set[str]:
    return {table for table in Trees(pages).roots().values() if table}


def _is_consistent(pages: Pages) -> bool:
    """Whether all of it fits together, and there are as many messages as the book says."""
    trees = Trees(pages)
    said: tuple[int, int] | None = None
    messages = last = 0
    for found in trees.leaves():
        cells = found.leaf.cells
        if not found.is_sound:
            return False
        if found.place.table == MESSAGE and cells:
            messages += len(cells)
            last = cells[-1].key
        elif found.place.table == BOOK and cells:
            row = read_row(pages, found.page, cells[0])
            said = waiting_and_last(row) if row else None
    return not trees.damaged and said is not None and messages == said[0] + max(0, last - said[1])
