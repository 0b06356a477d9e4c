"""Everybody is killed again and again, and started again at once: each acknowledged push is stored exactly once.

Four writers and a reader (``queue_load``) and a collector, each a process; SIGKILLs hit them at random moments, and, by ``strace``, one
writer when it enters its n-th write, sync or change of a size, n another one each time. At the end the queue is drained and the
collector's archive is held against what was acknowledged.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from queue_ledger import Records, look_into
from queue_load import READER, Load, at_work, is_whole
from torture_processes import Collector, Company
from torture_seed import seeded

from infi.ramen_client import QueueReader, QueueReaderConfig

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Sequence

COLLECTOR_PROCESS = "collector"
CALLS = ("pwrite64", "fdatasync", "ftruncate")
VICTIMS = ("writer0", "writer1", "writer2", READER, READER, READER, COLLECTOR_PROCESS)
KILLS_IN_A_PHASE = 8
PAUSE_SECONDS = 0.03
"""So that the reader, when it lives, can keep up."""


def injected(call: str, number: int) -> list[str]:
    """Run what follows so that each thread's ``number``-th call kills its process."""
    inject = f"inject={call}:signal=SIGKILL:when={number}"
    return ["strace", "-f", "-o", os.devnull, "-e", f"trace={call}", "-e", inject]


class Torture:
    """The queue, its collector and their killing."""

    def __init__(self, directory: Path, collector: Collector, chance: random.Random) -> None:
        self._chance = chance
        self._collector = collector
        self._log = directory / "log"
        self._log.touch()
        self.records = directory / "records"
        self.records.mkdir()
        self.config: dict[str, Any] = {
            "sender": "imx",
            "system_serial": 1099,
            "system_version": "3.0.0.1",
            "queue_dir": str(directory / "queue"),
            "hostname": f"127.0.0.1:{collector.port}",
            "auth_token": collector.token(),
            "ssl": False,
            "retry_delay": 0.05,
        }
        self.kills: Counter[str] = Counter()

    def _load(self, **fields: Any) -> Load:
        seed = self._chance.getrandbits(32)
        common = {"threads": 2, "large_bytes": 20_000, "pause_seconds": PAUSE_SECONDS, "restart": True}
        return Load(self.config, str(self.records), str(self._log), seed, **common, **fields)

    @contextmanager
    def _company(self, load: Load, before: Sequence[str] = ()) -> Iterator[Company]:
        with at_work(load, before=before) as process:
            company = Company(process)
            yield company
            company.stop()

    def run(self, kills: int) -> None:
        with self._company(self._load(writers=3)) as company:
            while self.kills.total() < kills:
                self._phase(company)
        print(dict(self.kills))
        assert " ERROR " not in self._log.read_text()

    def _phase(self, company: Company) -> None:
        """The fourth writer dies at its n-th call of a kind, again and again; meanwhile others die at random moments."""
        call, number = self._chance.choice(CALLS), self._chance.randrange(1, 25)
        load = self._load(writers=1, reader=False, forks=False)
        with self._company(load, injected(call, number)) as doomed:
            for victim in self._chance.choices(VICTIMS, k=KILLS_IN_A_PHASE):
                time.sleep(self._chance.uniform(0, 0.2))
                if victim == COLLECTOR_PROCESS:
                    self._collector.kill()
                else:
                    company.kill(victim)
                self.kills[victim] += 1
        self.kills[call] += doomed.starts - 1

    def check(self) -> None:
        """Drain, and hold the archive against the records."""
        with QueueReader(QueueReaderConfig(self.config)) as reader:
            assert reader.drain(100)
        records = Records.read(self.records)
        assert (records.refused, records.unknown) == ({}, {})
        contents = look_into(Path(self.config["queue_dir"]))
        stored = Counter(reqid for reqid, _ in self._collector.stored())
        assert contents.waiting == []
        assert contents.books.pushed == contents.books.accepted == len(stored)
        assert [reqid for reqid, times in stored.items() if times > 1] == []
        assert records.acknowledged.keys() <= stored.keys() <= records.begun.keys()
        assert all(is_whole(orjson.loads(payload), reqid) for reqid, payload in self._collector.stored())
        print(len(records.acknowledged), "acknowledged,", len(stored), "stored")


@pytest.fixture
def torture(tmp_path: Path, need_program: Callable[[str], None]) -> Iterator[Torture]:
    need_program("strace")
    collector = Collector(tmp_path)
    try:
        yield Torture(tmp_path, collector, seeded())
        collector.stop()
    finally:
        collector.process.kill()
        collector.process.wait()


@pytest.mark.system
def test_after_25_kills_every_acknowledged_push_is_stored_exactly_once(torture: Torture) -> None:
    torture.run(25)
    torture.check()


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_after_200_kills_every_acknowledged_push_is_stored_exactly_once(torture: Torture) -> None:
    torture.run(200)
    torture.check()
