"""Power cuts that are harder than a real file system's: of all that was not synced anything may be there, or torn, or not.

A load (``queue_load``) runs with every write, sync and name below its directory recorded in one log (``disk_shim``); its syncs do
nothing but take their time. What a cut at some point of the log could leave is then made of the log (``power_cut_model``), and the queue
in it is opened and counted. The threads' records lie in the log as well, so what had been acknowledged at that point is known
exactly; most cuts come just after an acknowledgement. The next load goes on with what one of the cuts has left.

Where syncs fail, what they should have made certain never is. Three of a hundred do here.
"""

from __future__ import annotations

import os
import shutil
import time
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from disk_shim import build_shim, shim_environment
from power_cut_model import Disk, Event, read_log, write_state
from queue_ledger import Records, count_acknowledged, look_into, lost
from queue_load import Load, at_work
from torture_seed import seeded

from infi.ramen_client.testing import Accept, RamenServer, Received

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

LONGEST_SYNC_US = 3000
SMALL_QUEUE_BYTES = 1024 * 1024


@dataclass
class Accounts:
    """What is known at one point of the log."""

    records: Records = field(default_factory=Records)
    delivered: set[str] = field(default_factory=set)


class Simulation:
    """Loads, each going on with what a cut in the former one has left, and the cuts."""

    def __init__(self, directory: Path, chance: random.Random, **load: Any) -> None:
        self._directory = directory
        self._chance = chance
        self._load = load
        self._shim = build_shim(directory)
        self._generation = 0
        self._left: dict[Path, bytes | None] = {}
        self._accounts = Accounts()
        self.lost_in: list[list[str]] = []
        """Of each cut that lost something: what."""
        self.of_unknown_outcome: set[str] = set()
        """Pushes that raised ``DurabilityError``."""

    def run(self, generations: int, *, cuts: int, pushes: int, failing: int = 0, **config: Any) -> None:
        for _ in range(generations):
            self._generation += 1
            root = self._directory / f"root-{self._generation}"
            log = self._directory / f"log-{self._generation}"
            for directory in (root, root / "disk", root / "records"):
                directory.mkdir()
            write_state(self._left, root / "disk")
            disk = Disk(root / "disk")
            self._record(root, log, pushes, failing, config)
            self._cut(disk, root, list(read_log(log)), cuts)
            shutil.rmtree(root)
            log.unlink()
            log.with_name(log.name + ".failures").unlink()

    def _record(self, root: Path, log: Path, pushes: int, failing: int, config: dict[str, Any]) -> None:
        environment = shim_environment(
            self._shim, root, "record", log=log, delay_us=LONGEST_SYNC_US, fail_per_10000=failing
        )
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def accept(message: Received) -> Accept:
            time.sleep(0.004)
            os.write(descriptor, Event("N", False, message.reqid, 0, 0, b"").packed())
            return Accept()

        with RamenServer() as server:
            server.default = accept
            fields = {
                "sender": "imx",
                "system_serial": 1099,
                "system_version": "3.0.0.1",
                "queue_dir": str(root / "disk" / "made" / "queue"),
                "hostname": server.hostname,
                "auth_token": server.token,
                "ssl": False,
                "retry_delay": 0.05,
                **config,
            }
            load = Load(
                fields,
                str(root / "records"),
                str(self._directory / "log"),
                self._chance.getrandbits(32),
                **self._load,
            )
            with at_work(load, environment):
                deadline = time.monotonic() + 60
                while count_acknowledged(root / "records") < pushes:
                    assert time.monotonic() < deadline, "too few pushes"
                    time.sleep(0.02)
        os.close(descriptor)

    def _cut(self, disk: Disk, root: Path, events: list[Event], cuts: int) -> None:
        instants = self._instants(events)
        points = sorted(self._chance.choice(self._chance.choice(instants)) for _ in range(cuts))
        going_on_at = self._chance.randrange(cuts)
        accounts = self._accounts
        done = 0
        for number, point in enumerate(points):
            for event in events[done : point + 1]:
                if event.path.startswith(f"{root}/disk"):
                    disk.apply(event)
                elif event.kind == "N":
                    accounts.delivered.add(event.path)
                elif event.kind == "W":
                    accounts.records.add(event.data.decode())
            done = point + 1
            state = disk.after_cut(self._chance)
            self._look(state, accounts)
            if number == going_on_at:
                self._left, self._accounts = state, deepcopy(accounts)
        self.of_unknown_outcome |= accounts.records.unknown.keys()

    def _instants(self, events: list[Event]) -> list[list[int]]:
        """Points of the log, by kinds that are to be chosen alike: any, after an acknowledgement, after a sync that failed."""
        acknowledging = [index for index, event in enumerate(events) if _is_acknowledgement(event)]
        failed = [index for index, event in enumerate(events) if event.kind == "E" and event.failed]
        soon_after = [later for index in failed for later in range(index, min(index + 60, len(events)))]
        return [kind for kind in (list(range(len(events))), acknowledging, acknowledging, soon_after) if kind]

    def _look(self, state: dict[Path, bytes | None], accounts: Accounts) -> None:
        directory = self._directory / "cut"
        directory.mkdir()
        write_state(state, directory)
        contents = look_into(directory / "made" / "queue")
        assert len(contents.waiting) == len(set(contents.waiting))
        assert accounts.records.begun.keys() >= set(contents.waiting)
        assert contents.books.dead == 0
        if missing := lost(accounts.records, contents, accounts.delivered):
            self.lost_in.append(missing)
        shutil.rmtree(directory)


def _is_acknowledgement(event: Event) -> bool:
    return event.kind == "W" and event.data.startswith(b"=")


@pytest.fixture
def chance(need_program: Callable[[str], None]) -> random.Random:
    need_program("gcc")
    return seeded()


SAMPLE = {"generations": 3, "cuts": 60, "pushes": 200}
LONG = {"generations": 25, "cuts": 150, "pushes": 400}
each_form = pytest.mark.parametrize(
    "form",
    [
        pytest.param(SAMPLE, marks=pytest.mark.system, id="sample"),
        pytest.param(LONG, marks=[pytest.mark.soak, pytest.mark.timeout(1800)], id="long"),
    ],
)


@each_form
def test_no_cut_takes_an_acknowledged_push_away(
    tmp_path: Path, chance: random.Random, form: dict[str, int]
) -> None:
    simulation = Simulation(tmp_path, chance)
    simulation.run(**form)
    assert simulation.lost_in == []


@each_form
def test_no_cut_takes_an_acknowledged_push_away_while_the_queue_is_trimmed(
    tmp_path: Path, chance: random.Random, form: dict[str, int]
) -> None:
    simulation = Simulation(tmp_path, chance, large_bytes=100_000)
    simulation.run(**form, max_queue_size=SMALL_QUEUE_BYTES)
    assert simulation.lost_in == []


@each_form
def test_no_cut_takes_an_acknowledged_push_away_after_syncs_that_failed(
    tmp_path: Path, chance: random.Random, form: dict[str, int]
) -> None:
    simulation = Simulation(tmp_path, chance)
    simulation.run(**form, failing=300)
    assert simulation.lost_in == []
    assert simulation.of_unknown_outcome


@pytest.mark.system
def test_under_normal_cuts_take_acknowledged_pushes_away(tmp_path: Path, chance: random.Random) -> None:
    """The red control; whatever is lost, the queue is sound."""
    simulation = Simulation(tmp_path, chance)
    simulation.run(2, cuts=60, pushes=200, durability="normal")
    assert simulation.lost_in
