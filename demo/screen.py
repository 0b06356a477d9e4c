"""What is seen of the demo: a live display on a terminal, one plain line a second elsewhere, tables at the end."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .plan import QUEUES

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .books import Count
    from .ledger import Figures

_DRAW_EVERY_SECONDS = 0.1
_SMALLEST_BAR = 100

_RECORDS = "the writers' records"
_ARCHIVE = "the collector's archive"
_BOOKS = "the queue's books"
_ROWS = "the queue's rows"
_COMPARED = "compared by reqid"
_SECTIONS: tuple[tuple[tuple[str, str, Callable[[Count], int]], ...], ...] = (
    (("pushed", _RECORDS, lambda count: count.pushed),),
    (
        ("stored, each counted once", _ARCHIVE, lambda count: count.stored),
        ("dropped by the collector's rule", _BOOKS, lambda count: count.books.dropped),
        ("dropped under it by the reader", _BOOKS, lambda count: count.books.blacklisted),
        ("trimmed, over the limit", _BOOKS, lambda count: count.books.trimmed),
        ("waiting", _ROWS, lambda count: count.waiting),
        ("dead letters", _ROWS, lambda count: count.dead),
    ),
    (("unaccounted for", "the difference", lambda count: count.unaccounted),),
    (
        ("gone, of the unwanted kind", _COMPARED, lambda count: count.missing_unwanted),
        ("gone, of another kind", _COMPARED, lambda count: count.missing),
        ("pushed", _BOOKS, lambda count: count.books.pushed),
        ("accepted", _BOOKS, lambda count: count.books.accepted),
    ),
)
"""The table of the books: what is counted, and who says it."""
_PLAIN_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Moment:
    """What there is to show now; the rates are of the last second."""

    seconds: float
    figures: Figures
    pushed_a_second: float
    arrived_a_second: float
    doing: str


class Screen(Protocol):
    """Shows the course of a demo within a ``with`` block."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def say(self, seconds: float, text: str) -> None:
        """Say for good what happens."""

    def show(self, moment: Moment) -> None:
        """Show how things stand; called far more often than there is something to see."""


class PlainScreen:
    """Lines, for pipes, files and CI."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._due = 1.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, seconds: float, text: str) -> None:
        """Print a line."""
        write(self._console, f"{seconds:4.0f} s  == {text}")

    def show(self, moment: Moment) -> None:
        """Print a line every second."""
        if moment.seconds < self._due:
            return
        self._due += 1.0
        figures = moment.figures
        waiting = "  ".join(
            f"{queue.name} {number:5,}" for queue, number in zip(QUEUES, figures.waiting, strict=True)
        )
        write(
            self._console,
            f"{moment.seconds:4.0f} s  pushed {figures.pushed:6,} ({moment.pushed_a_second:+4,.0f}/s)  "
            f"waiting: {waiting}  in flight {figures.in_flight:3}  "
            f"arrived {figures.arrived:6,} ({moment.arrived_a_second:+4,.0f}/s)  again {figures.arrived_again:,}  "
            f"by rule {figures.by_rule:,}  trimmed {figures.trimmed:,}",
        )


class LiveScreen:
    """A display that renews itself at the bottom of the terminal; what was said stays above it."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self._due = 0.0
        self._most_waiting = _SMALLEST_BAR

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, seconds: float, text: str) -> None:
        """Print a line above the display."""
        self._live.console.print(Text(f"{seconds:4.0f} s  {text}"))

    def show(self, moment: Moment) -> None:
        """Draw ten times a second."""
        if moment.seconds < self._due:
            return
        self._due = moment.seconds + _DRAW_EVERY_SECONDS
        self._live.update(self._drawn(moment), refresh=True)

    def _drawn(self, moment: Moment) -> Group:
        figures = moment.figures
        self._most_waiting = max(self._most_waiting, *figures.waiting)
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="left", min_width=13)
        table.add_column(justify="right", min_width=8)
        table.add_column(justify="right", min_width=8)
        table.add_column()
        table.add_row("pushed", f"{figures.pushed:,}", f"{moment.pushed_a_second:,.0f}/s", "")
        for queue, number in zip(QUEUES, figures.waiting, strict=True):
            table.add_row(
                Text(f"waiting {queue.name}", "yellow"),
                Text(f"{number:,}", "yellow"),
                "",
                ProgressBar(total=self._most_waiting, completed=number, width=30),
            )
        table.add_row("  in flight", f"{figures.in_flight:,}", "", "")
        table.add_row(
            Text("arrived", "green"),
            Text(f"{figures.arrived:,}", "green"),
            f"{moment.arrived_a_second:,.0f}/s",
            ProgressBar(total=max(figures.pushed, 1), completed=figures.arrived, width=30),
        )
        table.add_row("  again", f"{figures.arrived_again:,}", "", "")
        table.add_row("by rule", f"{figures.by_rule:,}", "", "")
        table.add_row("trimmed", f"{figures.trimmed:,}", "", "")
        return Group(Text(), table, Text(f"{moment.seconds:4.0f} s  {moment.doing}", "bold"))


def make_console() -> Console:
    """The demo's standard output; colours and boxes only where it can show them."""
    terminal = sys.stdout.isatty()
    return Console(highlight=False, force_terminal=terminal, width=None if terminal else _PLAIN_WIDTH)


def make_screen(console: Console) -> Screen:
    """A live display where there is a terminal that can do it."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveScreen(console)
    return PlainScreen(console)


def write(console: Console, text: str) -> None:
    """Print a text as it is: no markup, and outside of terminals no line breaks."""
    console.print(Text(text), soft_wrap=not console.is_terminal)


def show_counts(console: Console, counts: list[Count]) -> None:
    """Print where every message is, and who says so."""
    names = [count.name for count in counts]
    table = Table("The books", "says who", *names, "together", box=SIMPLE_HEAD)
    for column in table.columns[2:]:
        column.justify = "right"
    for section in _SECTIONS:
        for what, who, number in section:
            numbers = [number(count) for count in counts]
            table.add_row(what, who, *(f"{each:,}" for each in (*numbers, sum(numbers))))
        table.add_section()
    console.print(table)
