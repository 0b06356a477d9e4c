"""What is seen of the demo: a live display on a terminal, one plain line a second elsewhere, tables at the end."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol, Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from types import TracebackType

    from infi.ramen_client.storage import Books

    from .ledger import Account, Figures

_DRAW_EVERY_SECONDS = 0.1
_SMALLEST_BAR = 100


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
        write(
            self._console,
            f"{moment.seconds:4.0f} s  waiting {figures.waiting:6,}   "
            f"pushed {figures.pushed:7,} ({moment.pushed_a_second:+6,.0f}/s)   "
            f"arrived {figures.arrived:7,} ({moment.arrived_a_second:+6,.0f}/s)   "
            f"again {figures.arrived_again:,}",
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
        self._most_waiting = max(self._most_waiting, figures.waiting)
        table = Table.grid(padding=(0, 2))
        table.add_column(justify="left", min_width=8)
        table.add_column(justify="right", min_width=8)
        table.add_column(justify="right", min_width=10)
        table.add_column()
        table.add_row("pushed", f"{figures.pushed:,}", f"{moment.pushed_a_second:,.0f}/s", "")
        table.add_row(
            Text("waiting", "yellow"),
            Text(f"{figures.waiting:,}", "yellow"),
            "",
            ProgressBar(total=self._most_waiting, completed=figures.waiting, width=30),
        )
        table.add_row(
            Text("arrived", "green"),
            Text(f"{figures.arrived:,}", "green"),
            f"{moment.arrived_a_second:,.0f}/s",
            ProgressBar(total=max(figures.pushed, 1), completed=figures.arrived, width=30),
        )
        table.add_row("again", f"{figures.arrived_again:,}", "", "")
        return Group(Text(), table, Text(f"{moment.seconds:4.0f} s  {moment.doing}", "bold"))


def make_console() -> Console:
    """The demo's standard output; colours and boxes only where it can show them."""
    return Console(highlight=False, force_terminal=sys.stdout.isatty())


def make_screen(console: Console) -> Screen:
    """A live display where there is a terminal that can do it."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveScreen(console)
    return PlainScreen(console)


def write(console: Console, text: str) -> None:
    """Print a text as it is: no markup, and outside of terminals no line breaks."""
    console.print(Text(text), soft_wrap=not console.is_terminal)


def show_account(console: Console, account: Account, books: Books) -> None:
    """Print the demo's own count, and beside it the queue's books."""
    table = Table("The books", "messages", box=SIMPLE_HEAD)
    table.columns[1].justify = "right"
    for name, count in (
        ("pushed (each written down by its writer)", account.pushed),
        ("waiting in the queue", account.waiting),
        ("arrived, each counted once", account.arrived_once),
        ("arrived again under the same id", account.arrived_again),
        ("lost (pushed, neither waiting nor arrived)", account.lost),
    ):
        table.add_row(name, f"{count:,}")
    console.print(table)
    kept = Table("The queue's own books", "messages", box=SIMPLE_HEAD)
    kept.columns[1].justify = "right"
    for name, count in asdict(books).items():
        if count or name in {"pushed", "waiting", "accepted"}:
            kept.add_row(name.replace("_", " "), f"{count:,}")
    kept.add_row("unaccounted for", f"{books.difference():,}")
    console.print(kept)
