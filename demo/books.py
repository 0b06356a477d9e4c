"""Whether the count balances, in numbers and in words. Pure.

For each queue: pushed (the writers' records) = stored once (the collector's archive) + dropped under the rule, by the collector
or by the reader + trimmed (the queue's books) + waiting + dead (the rows of the queue's file). Sums could balance by chance, so
the messages are compared one by one first: what is in none of the three must be of the kind that falls under the rule, or of
a queue that was trimmed, and just as many as that queue's books say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from infi.ramen_client.storage import Books

_UNDER_WAY_A_READER = 1000
"""A reader may have so much under way whose outcome it does not know: a batch of all that waits, and of what comes meanwhile."""


@dataclass(frozen=True, slots=True)
class Count:
    """One queue's messages at the end, when nothing moves any more."""

    name: str
    pushed: int
    """Acknowledged to the writers."""
    stored: int
    """Different messages that the collector has."""
    stored_twice: int
    """Messages that it has once more."""
    waiting: int
    """In the queue's file."""
    waiting_stored: int
    """Of the waiting ones: those that the collector has, too."""
    dead: int
    """Dead letters in the queue's file."""
    missing_unwanted: int
    """Pushed, neither stored nor waiting nor dead, and of the kind that falls under the rule."""
    missing: int
    """The same of any other kind."""
    unknown: int
    """Stored, waiting or dead, and no writer has written it down."""
    pushed_twice: int
    """Messages that were given the identity of another one."""
    books: Books
    """What the queue says of itself."""

    @property
    def by_rule(self) -> int:
        """Dropped under the rule, by the collector or by the reader."""
        return self.books.dropped + self.books.blacklisted

    @property
    def unaccounted(self) -> int:
        """Pushed less everything that there is an account of."""
        return self.pushed - (self.stored + self.by_rule + self.books.trimmed + self.waiting + self.dead)


@dataclass(frozen=True, slots=True)
class Toll:
    """What was done to the line, and so may have made messages arrive again."""

    readers_killed: int = 0
    cuts: int = 0
    """How often every connection was cut, by the gate or by the death of the collector."""

    def most_again(self, readers: int) -> int:
        """How many arrivals again this explains, at most: a cut meets every reader, a kill one."""
        return (self.readers_killed + self.cuts * readers) * _UNDER_WAY_A_READER


def count(
    name: str,
    *,
    pushed: Counter[str],
    stored: Counter[str],
    waiting: set[str],
    dead: set[str],
    books: Books,
    unwanted: Callable[[str], bool],
) -> Count:
    """Compare the identities of what was pushed and stored (how often) with what waits and is dead."""
    found = stored.keys() | waiting | dead
    gone = pushed.keys() - found
    missing_unwanted = sum(map(unwanted, gone))
    return Count(
        name=name,
        pushed=pushed.total(),
        stored=len(stored),
        stored_twice=stored.total() - len(stored),
        waiting=len(waiting),
        waiting_stored=len(stored.keys() & waiting),
        dead=len(dead),
        missing_unwanted=missing_unwanted,
        missing=len(gone) - missing_unwanted,
        unknown=len(found - pushed.keys()),
        pushed_twice=pushed.total() - len(pushed),
        books=books,
    )


def problems(counts: list[Count], *, held: int, again: int, toll: Toll) -> list[str]:
    """Say in words what does not balance; nothing when all is well.

    ``held`` and ``again``: how many messages and how many arrivals again the collector itself has counted.
    """
    said = [f"{count.name}: {problem}" for count in counts for problem in _problems_of(count)]
    stored = sum(count.stored + count.stored_twice for count in counts)
    if held != stored:
        said.append(f"The collector has counted {held:,} messages, and holds {stored:,}.")
    if again > (explained := toll.most_again(len(counts))):
        said.append(
            f"{again:,} messages arrived again; {toll.readers_killed} kills of a reader and {toll.cuts} cuts of the "
            f"connections explain {explained} at most."
        )
    return said


def _problems_of(count: Count) -> list[str]:
    books = count.books
    differences = (count.missing - books.trimmed, count.missing_unwanted - count.by_rule)
    lost = sum(max(0, difference) for difference in differences)
    excess = sum(max(0, -difference) for difference in differences)
    found = (
        (
            lost,
            f"{lost:,} messages are lost: pushed, and neither stored, waiting nor gone for a reason that was counted.",
        ),
        (excess, f"{excess:,} messages more are counted as dropped or trimmed than have gone."),
        (
            count.waiting,
            f"{count.waiting:,} messages still wait; {count.waiting_stored:,} of them are stored already.",
        ),
        (count.dead, f"{count.dead:,} messages became dead letters, though nobody refused one."),
        (count.stored_twice, f"{count.stored_twice:,} messages are stored more than once."),
        (count.unknown, f"{count.unknown:,} messages are stored or wait that no writer has pushed."),
        (count.pushed_twice, f"{count.pushed_twice:,} messages were given the identity of another one."),
        (
            books.pushed != count.pushed,
            f"the queue's books say {books.pushed:,} pushed; the writers say {count.pushed:,}.",
        ),
        (
            books.accepted != count.stored,
            f"the queue's books say {books.accepted:,} accepted; the collector holds {count.stored:,}.",
        ),
    )
    return [problem for is_so, problem in found if is_so]


def say_balance(counts: list[Count], *, again: int) -> str:
    """Put books that balance into words."""

    def total(number: Callable[[Count], int]) -> str:
        return f"{sum(map(number, counts)):,}"

    return (
        f"The books balance: {total(lambda count: count.pushed)} pushed"
        f" = {total(lambda count: count.stored)} stored once by the collector"
        f" + {total(lambda count: count.books.dropped)} that it dropped under the rule"
        f" + {total(lambda count: count.books.blacklisted)} that a reader dropped under it"
        f" + {total(lambda count: count.books.trimmed)} trimmed"
        f" + {total(lambda count: count.waiting)} waiting"
        f" + {total(lambda count: count.dead)} dead letters. None is lost. "
        + (
            f"{again:,} arrived again under the same id: the collector knew them by that, and did not store them again."
            if again
            else "None arrived twice."
        )
    )
