"""Waiting, with one eye on signals and children and one on the screen.

Signals that end the demo are only noted when they come and obeyed at the next look (every 50 ms), never in the middle of
starting a process.
"""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from .ledger import Figures
from .processes import Fault
from .screen import Moment

if TYPE_CHECKING:
    from collections.abc import Callable

    from .ledger import Ledger
    from .processes import Children
    from .screen import Screen

_LOOK_EVERY_SECONDS = 0.05
_START_WITHIN_SECONDS = 30.0


class Interrupted(Exception):
    """A signal asks the demo to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interruption:
    """Notes the signals that end the demo, from ``watch`` on."""

    def __init__(self) -> None:
        self._number: int | None = None

    def watch(self) -> None:
        """Note signals instead of being ended by them; those that come twice change nothing."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self._number = number

    def check(self) -> None:
        """Raise ``Interrupted`` when a signal came."""
        if self._number is not None:
            raise Interrupted(self._number)


class Stage:
    """Where the demo is played: says what happens, and waits."""

    def __init__(
        self, children: Children, ledger: Ledger, screen: Screen, interruption: Interruption
    ) -> None:
        self.children = children
        self.ledger = ledger
        self.figures = Figures()
        self._screen = screen
        self._interruption = interruption
        self._began = self._second_began = time.monotonic()
        self._second = Figures()
        self._rates = (0.0, 0.0)
        self._doing = ""

    def now(self, doing: str) -> None:
        """Say what happens from now on."""
        self._doing = doing
        self._screen.say(self._elapsed(), doing)

    def wait(self, seconds: float, over: Callable[[], bool] = lambda: False) -> bool:
        """Wait until ``over`` holds, at most ``seconds``; returns whether it does."""
        deadline = time.monotonic() + seconds
        while True:
            self._interruption.check()
            self.children.check()
            self.figures = self.ledger.look()
            self._show()
            if over():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, _LOOK_EVERY_SECONDS))

    def wait_for_start(self, name: str, started: Callable[[], bool]) -> None:
        """Wait until a process does its work, so that the acts last as long on a slow machine; ``Fault`` when it never does."""
        if not self.wait(_START_WITHIN_SECONDS, started):
            raise Fault(f"the {name} did nothing within {_START_WITHIN_SECONDS:.0f} s of its start.")

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _show(self) -> None:
        now = time.monotonic()
        if (passed := now - self._second_began) >= 1:
            self._rates = (
                (self.figures.pushed - self._second.pushed) / passed,
                (self.figures.arrived - self._second.arrived) / passed,
            )
            self._second, self._second_began = self.figures, now
        self._screen.show(Moment(self._elapsed(), self.figures, *self._rates, self._doing))
