"""What happens when: the demo's acts, and the waiting between them.

Signals that end the demo are only noted when they come and obeyed at the next look (every 20 ms), never in the middle of
starting a process. Each act lasts a share of the time that the writers push for.
"""

from __future__ import annotations

import json
import signal
import time
from typing import TYPE_CHECKING

from .ledger import Figures
from .processes import Fault
from .screen import Moment
from .telemetry import TELEMETRY
from .worker import CONFIG

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .ledger import Ledger
    from .processes import Child, Children
    from .screen import Screen

_LOOK_EVERY_SECONDS = 0.02
_START_WITHIN_SECONDS = 30.0
_KILL_AFTER_SHARE = 0.4
"""The second kill comes when so much of the backlog has been delivered."""
_KILL_WITHIN_SECONDS = 15.0
_PATIENCE_SECONDS = 10.0
"""A queue that gets no shorter for so long is not draining."""


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
    """Waits, with one eye on the signals and the processes and one on the screen."""

    def __init__(
        self, children: Children, ledger: Ledger, screen: Screen, interruption: Interruption
    ) -> None:
        self.children = children
        self.screen = screen
        self.figures = Figures()
        self._ledger = ledger
        self._interruption = interruption
        self._began = self._second_began = time.monotonic()
        self._second = Figures()
        self._rates = (0.0, 0.0)
        self._doing = ""

    def now(self, doing: str) -> None:
        """Say what happens from now on."""
        self._doing = doing
        self.screen.say(self._elapsed(), doing)

    def wait(self, seconds: float, over: Callable[[], bool] = lambda: False) -> bool:
        """Wait until ``over`` holds, at most ``seconds``; returns whether it does."""
        deadline = time.monotonic() + seconds
        while True:
            self._interruption.check()
            self.children.check()
            self.figures = self._ledger.look()
            self._show()
            if over():
                return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(left, _LOOK_EVERY_SECONDS))

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
        self.screen.show(Moment(self._elapsed(), self.figures, *self._rates, self._doing))


def play(stage: Stage, directory: Path, seconds: float) -> int:
    """Play the demo; returns how often the reader was killed. Every process has ended then.

    ``seconds``: how long the writers push. Raises ``Fault`` and ``Interrupted``.
    """
    stage.now("The test server starts.")
    server = stage.children.start("server", "server")
    _write_config(directory, stage, server)
    stage.now("Two writers push, the reader delivers.")
    writers = [stage.children.start(f"writer-{name}", "writer", "--telemetry", name) for name in TELEMETRY]
    reader = _start_reader(stage)
    stage.wait(0.2 * seconds)

    reader.kill()
    stage.now("SIGKILL to the reader. The writers notice nothing; messages wait in the queue.")
    stage.wait(0.2 * seconds)

    backlog = stage.figures.waiting
    enough = stage.figures.arrivals + _KILL_AFTER_SHARE * backlog
    stage.now(f"A new reader starts and finds {backlog:,} waiting.")
    reader = _start_reader(stage)
    stage.wait(_KILL_WITHIN_SECONDS, lambda: stage.figures.arrivals >= enough)

    reader.kill()
    stage.now(f"SIGKILL to the reader while it drains: {stage.figures.waiting:,} still wait.")
    stage.wait(0.05 * seconds)

    stage.now("The next reader goes on where that one was killed.")
    reader = _start_reader(stage)
    stage.wait(0.2 * seconds)

    server.signal(signal.SIGUSR1)
    stage.now("The server fails: every request is answered with 503. The reader keeps trying.")
    stage.wait(0.15 * seconds)

    server.signal(signal.SIGUSR1)
    stage.now("The server is well again.")
    stage.wait(0.2 * seconds)

    stage.now("The writers stop; the reader delivers the rest.")
    for writer in writers:
        writer.stop()
    _drain(stage)
    reader.stop()
    server.stop()
    return 2


def _start_reader(stage: Stage) -> Child:
    """Start a reader and wait until it delivers, so that the acts last as long on a slow machine."""
    before = stage.figures.arrivals
    reader = stage.children.start("reader", "reader")
    if not stage.wait(_START_WITHIN_SECONDS, lambda: stage.figures.arrivals > before):
        raise Fault(f"the reader delivered nothing within {_START_WITHIN_SECONDS:.0f} s of its start.")
    return reader


def _write_config(directory: Path, stage: Stage, server: Child) -> None:
    """Complete the configuration file with the server's address, as soon as it listens."""
    if not stage.wait(_START_WITHIN_SECONDS, lambda: server.out.read_bytes().endswith(b"\n")):
        raise Fault(f"the server did not start within {_START_WITHIN_SECONDS:.0f} s.")
    hostname = json.loads(server.out.read_text())["hostname"]
    with (directory / CONFIG).open("a", encoding="utf-8") as config:
        config.write(f'hostname = "{hostname}"\n')


def _drain(stage: Stage) -> None:
    """Wait until nothing waits any more, or the queue gets no shorter (the account will say so)."""
    stage.wait(0)
    while stage.figures.waiting and _gets_shorter(stage):
        pass


def _gets_shorter(stage: Stage) -> bool:
    before = stage.figures.waiting
    return stage.wait(_PATIENCE_SECONDS, lambda: stage.figures.waiting < before)
