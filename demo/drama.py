"""What happens when: the demo's acts.

Each lasts a share of ``seconds``, and some go on until what they are to show has happened, but never much longer: what
did not happen by then is said at the end, and the demo has failed.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infi.ramen_server import Settings

from .books import Toll
from .plan import BLACKLIST_TTL_SECONDS, MAIN, QUEUES, SMALL, UNWANTED, collector_data
from .settings import complete_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .plan import PlannedQueue
    from .processes import Child
    from .stage import Stage

_KILL_AFTER_SHARE = 0.4
"""Who is killed while the backlog drains is killed when so much of it has been delivered."""
_SLACK_SECONDS = 6.0
"""How much longer an act may go on until what it is to show has happened."""
_RECOVERY_SHARE = 0.2
"""How long, at most, an act may go on until the backlog has drained; what is left then drains in the next one."""
_PATIENCE_SECONDS = 5.0
"""A queue that gets no shorter for so long is not draining."""
_NEARLY_NOTHING = 20
"""So few messages wait while all goes well, or a few more."""


@dataclass(frozen=True, slots=True)
class Played:
    """How a play went: what it did to the line, and what it was to show and did not."""

    toll: Toll
    missed: list[str]


class Drama:
    """One play. ``seconds``: how long its acts take in all, starts and recoveries apart."""

    def __init__(self, stage: Stage, directory: Path, seconds: float) -> None:
        self._stage = stage
        self._directory = directory
        self._seconds = seconds
        self._readers_killed = 0
        self._cuts = 0
        self._missed: list[str] = []

    def play(self) -> Played:
        """Play it; every process has ended then. Raises ``Fault`` and ``Interrupted``."""
        self.begin()
        self.kill_readers()
        self.kill_collector()
        self.fail()
        self.go_astray()
        self.refuse_some()
        self.end()
        return self.played()

    def played(self) -> Played:
        """How it went so far."""
        return Played(Toll(self._readers_killed, self._cuts), self._missed)

    # The acts

    def begin(self) -> None:
        """Start everything, and let it work for a while."""
        self._stage.now(
            "The collector starts, and makes its first token. The readers reach it through a gate, which can be the fault."
        )
        self._gate = self._stage.children.start("gate", "gate")
        self._start_collector()
        self._stage.ledger.find_collector()
        self._stage.wait_for_start("gate", lambda: bool(self._gate.said()))
        self._open_gate()
        for queue in QUEUES:
            complete_config(self._directory, queue, self._gate.said()[0])
        names = [name for queue in QUEUES for name in queue.telemetry]
        self._stage.now(f"{len(names)} writers push into two queues, a reader of each queue delivers.")
        self._writers = [self._stage.children.start(f"writer-{name}", "writer", name) for name in names]
        self._small_reader = self._start_reader(SMALL)
        self._main_reader = self._start_reader(MAIN)
        self._act(0.11)

    def kill_readers(self) -> None:
        """Kill the main queue's reader twice: in the flow, and while its successor drains the backlog."""
        self._kill_main_reader()
        self._stage.now(
            "SIGKILL to the main queue's reader. The writers notice nothing; messages wait on disk."
        )
        self._act(0.1)
        self._stage.now(f"A new reader starts and finds {self._waiting(MAIN):,} waiting.")
        self._main_reader = self._start_reader(MAIN)
        self._drain_some()
        self._kill_main_reader()
        self._stage.now(f"SIGKILL to it while it drains: {self._waiting(MAIN):,} still wait.")
        self._act(0.04)
        self._stage.now("The next reader goes on where that one was killed.")
        self._main_reader = self._start_reader(MAIN)
        self._drain_some()

    def kill_collector(self) -> None:
        """Kill the collector in the middle of its work; meanwhile the small queue overflows."""
        self._collector.kill()
        self._cuts += 1
        self._stage.now(
            f"SIGKILL to the collector, too, in the middle of its work: {self._waiting(MAIN):,} wait. "
            f"The small queue may have no more than {SMALL.max_bytes // 1024} KiB."
        )
        self._act(0.11)
        if self._happens(lambda: self._stage.figures.trimmed > 0, "The small queue was not trimmed."):
            self._stage.now(
                f"The small queue is full: {self._stage.figures.trimmed:,} of its oldest messages had to go so far, counted "
                "and logged."
            )
        self._stage.now("The collector starts again, on the files that it left.")
        self._start_collector()
        self._open_gate()
        self._recover()

    def fail(self) -> None:
        """Be a collector that wants nothing now, and one that is not well."""
        seconds = max(1, round(0.05 * self._seconds))
        self._shut_gate(
            f"busy {seconds}",
            f"The gate answers everything with 429 and Retry-After: {seconds}, by itself; the collector hears nothing of it.",
            0.11,
        )
        self._shut_gate("failing", "Now the gate answers everything with 503.", 0.09)
        self._open_gate("The gate lets everything through to the collector again.")

    def go_astray(self) -> None:
        """Be somebody else in the collector's place."""
        self._shut_gate(
            "portal",
            "A captive portal is in the collector's place; the gate plays it: a page under 200, a redirection, in turns.",
            0.11,
        )
        self._shut_gate(
            "wrong-site", "Now it is some other web site, which answers with a page under 404.", 0.09
        )
        self._open_gate("The collector is back in its place.")

    def refuse_some(self) -> None:
        """Want some messages no more for a while; by the operator's own means, beside the running collector."""
        with Settings(collector_data(self._directory)) as settings:
            rule = settings.add_rule(UNWANTED)
            self._stage.now(
                f"The operator adds a blacklist rule, {rule.rule}. The collector drops the next such message, and the reader "
                "those after it; their writer goes on pushing."
            )
            self._act(0.14)
            self._happens(lambda: self._stage.figures.by_rule > 0, "No message fell under the rule.")
            settings.remove_rule(rule.rule_id)
        removed_ms = time.time_ns() // 1_000_000
        self._stage.now(
            f"{self._stage.figures.by_rule:,} were dropped so far. The rule is removed; the reader forgets it "
            f"{BLACKLIST_TTL_SECONDS} s after it last heard of it."
        )
        if self._happens(
            lambda: self._stage.ledger.unwanted_since(removed_ms),
            "What the rule was about did not arrive again after its end.",
            due_within=BLACKLIST_TTL_SECONDS,
        ):
            self._stage.now(
                "What that writer pushes arrives again. What was dropped stays dropped: nobody wanted it."
            )
        self._act(0.1)

    def end(self) -> None:
        """Deliver everything, and end every process."""
        self._stage.now("The writers stop; the readers deliver the rest.")
        for writer in self._writers:
            writer.stop()
        self._stage.wait(0)
        while sum(self._stage.figures.waiting) and self._gets_shorter():
            pass
        for child in (self._main_reader, self._small_reader, self._collector, self._gate):
            child.stop()

    # What they are made of

    def _act(self, share: float) -> None:
        self._stage.wait(share * self._seconds)

    def _happens(self, happened: Callable[[], bool], missed: str, due_within: float = 0.0) -> bool:
        """Go on with an act until it has shown what it is about; False, and ``missed`` is said, when it has not."""
        if self._stage.wait(due_within + _SLACK_SECONDS, happened):
            return True
        self._missed.append(missed)
        self._stage.now(missed)
        return False

    def _drain_some(self) -> None:
        """Wait until a share of the main queue's backlog has been delivered."""
        left = (1 - _KILL_AFTER_SHARE) * self._waiting(MAIN)
        self._stage.wait(_SLACK_SECONDS, lambda: self._waiting(MAIN) <= left)

    def _waiting(self, queue: PlannedQueue) -> int:
        return self._stage.figures.waiting[QUEUES.index(queue)]

    def _start_collector(self) -> None:
        self._collector = collector = self._stage.children.start("collector", "collector")
        self._stage.wait_for_start("collector", lambda: bool(collector.said()))

    def _start_reader(self, queue: PlannedQueue) -> Child:
        name = f"reader-{queue.name}"
        reader = self._stage.children.start(name, "reader", queue.name)
        self._stage.wait_for_start(name, lambda: self._stage.ledger.active_reader(queue) == reader.pid)
        return reader

    def _kill_main_reader(self) -> None:
        self._main_reader.kill()
        self._readers_killed += 1

    def _shut_gate(self, order: str, text: str, share: float) -> None:
        """Have the gate answer by itself."""
        before = len(self._gate.said())
        self._gate.tell(order)
        self._cuts += 1
        self._stage.now(text)
        self._act(share)
        self._happens(lambda: len(self._gate.said()) > before, f"The gate had nothing to answer ({order}).")
        answered = len(self._gate.said()) - before
        self._stage.now(
            f"Requests answered so: {answered}. Messages that wait: {sum(self._stage.figures.waiting):,}."
        )

    def _open_gate(self, text: str | None = None) -> None:
        """Have the gate pass bytes on; with a text, after an outage: say so and let the backlog drain."""
        self._gate.tell(f"pass {self._collector.said()[0]}")
        self._cuts += 1
        if text is not None:
            self._stage.now(text)
            self._recover()

    def _recover(self) -> None:
        self._stage.wait(
            _RECOVERY_SHARE * self._seconds + 1,
            lambda: sum(self._stage.figures.waiting) <= _NEARLY_NOTHING,
        )

    def _gets_shorter(self) -> bool:
        before = sum(self._stage.figures.waiting)
        return self._stage.wait(_PATIENCE_SECONDS, lambda: sum(self._stage.figures.waiting) < before)
