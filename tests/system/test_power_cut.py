"""The power goes off under four writers and a reader, and comes back: nothing that was acknowledged is missing.

On real file systems (``power_cut_disk``). In each round four writers' processes of three threads, one of which forks, push into a
queue while a reader delivers from it, until the cut at a random instant. Every second round begins with a new queue in new
directories, so that some cuts come while these are made; the others go on with the queue that was there before. Half of the queues
are small and get large messages, so that checkpoints and trims come all the time.

The red controls show that the test can see what it is for: with the syncs made no-ops, and with durability="normal", acknowledged
messages are missing. A checkpoint syncs as well, so the second one stops before the first checkpoint.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from disk_shim import build_shim, shim_environment
from power_cut_disk import Disk
from queue_ledger import Records, count_acknowledged, look_into, lost
from queue_load import Load, at_work, is_whole
from torture_seed import seeded

from infi.ramen_client import QueueReader, QueueReaderConfig
from infi.ramen_client.testing import Accept, RamenServer

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

FILE_SYSTEMS = ("ext4", "xfs")
LONGEST_ROUND_SECONDS = 1.5
MAKING_SECONDS = 0.1
"""Within it, a new queue is being made."""
SMALL_QUEUE_BYTES = 2 * 1024 * 1024


@dataclass
class QueueUnderTest:
    """One queue over all its cuts."""

    directory: Path
    records: Path
    log: Path
    server: RamenServer
    is_small: bool
    durability: str = "full"
    cuts: list[tuple[int, int]] = field(default_factory=list)
    """When each began and ended, by the clock of the records."""
    lost: list[str] = field(default_factory=list)

    def config(self) -> dict[str, Any]:
        return {
            "sender": "imx",
            "system_serial": 1099,
            "system_version": "3.0.0.1",
            "queue_dir": str(self.directory),
            "hostname": self.server.hostname,
            "auth_token": self.server.token,
            "ssl": False,
            "retry_delay": 0.05,
            "durability": self.durability,
            "max_queue_size": SMALL_QUEUE_BYTES if self.is_small else 1024**3,
        }

    def load(self, seed: int, **fields: Any) -> Load:
        large = 200_000 if self.is_small else 20_000
        return Load(self.config(), str(self.records), str(self.log), seed, **{"large_bytes": large, **fields})

    def complaints_between(self, began: int, ended: int) -> list[str]:
        """What went wrong while there was power."""
        records = Records.read(self.records)
        failed = {**records.refused, **records.unknown}
        errors = [line for line in self.log.read_text().splitlines() if " ERROR " in line]
        return [line for line in errors if int(line.split()[0]) < ended] + [
            reqid for reqid, instant in failed.items() if began < instant < ended
        ]

    def check(self) -> None:
        """After a cut."""
        records = Records.read(self.records)
        # While ext4 goes down, which takes milliseconds, an fdatasync may end well although it came too late.
        for reqid, returned in list(records.acknowledged.items()):
            if any(began <= returned and records.begun[reqid] < ended for began, ended in self.cuts):
                del records.acknowledged[reqid]
        if not self.directory.is_dir():
            self.lost = list(records.acknowledged)
            return
        contents = look_into(self.directory)
        assert len(contents.waiting) == len(set(contents.waiting))
        assert records.begun.keys() >= set(contents.waiting)
        assert contents.books.dead == contents.books.expired == contents.books.purged == 0
        self.lost = lost(records, contents, self.delivered())

    def delivered(self) -> set[str]:
        return {message.reqid for message in self.server.accepted}

    def drain(self) -> None:
        """At the end: all that waits is delivered, and everything that was delivered is whole."""
        self.server.default = Accept()
        with QueueReader(QueueReaderConfig(self.config())) as reader:
            assert reader.drain(60)
            books = reader.books()
        assert (books.waiting, books.difference()) == (0, 0)
        assert all(is_whole(message.json(), message.reqid) for message in self.server.accepted)


class Rounds:
    """Cuts on one disk."""

    def __init__(self, kind: str, directory: Path, chance: random.Random) -> None:
        self._disk = Disk(kind, directory)
        self._directory = directory
        self._chance = chance
        self.queues: list[QueueUnderTest] = []

    def new_queue(self, *, is_small: bool, durability: str = "full") -> QueueUnderTest:
        number = len(self.queues)
        records = self._directory / f"records-{number}"
        records.mkdir()
        server = RamenServer()
        # Slower than the writers, so that most of what was acknowledged is in the queue when the power goes.
        server.default = _accept_slowly
        server.start()
        directory = self._disk.root / f"made-{number}" / "in" / "queue"
        log = self._directory / f"log-{number}"
        queue = QueueUnderTest(directory, records, log, server, is_small, durability)
        self.queues.append(queue)
        return queue

    def run(
        self,
        queue: QueueUnderTest,
        load: Load,
        *,
        until: Callable[[], object],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """One round: work, cut, mount again, look into every queue."""
        queue.log.write_bytes(b"")
        began = time.monotonic_ns()
        self._disk.mount()
        try:
            with self._disk.switch() as switch, at_work(load, environment):
                until()
                cut_at = time.monotonic_ns()
                switch.cut()
                queue.cuts.append((cut_at, time.monotonic_ns()))
                # What they are told now is not true any more.
                time.sleep(self._chance.choice((0, 0, 0.01, 0.1)))
        finally:
            self._disk.unmount()
        assert queue.complaints_between(began, cut_at) == []
        self._disk.mount()
        try:
            for each in self.queues:
                each.check()
        finally:
            self._disk.unmount()

    def wait_at_most(self, seconds: float) -> None:
        time.sleep(self._chance.uniform(0, seconds))

    def end(self) -> None:
        self._disk.mount()
        try:
            for queue in self.queues:
                if queue.directory.is_dir():
                    queue.drain()
        finally:
            self._disk.unmount()

    def close(self) -> None:
        for queue in self.queues:
            queue.server.close()


def _accept_slowly(_: object) -> Accept:
    time.sleep(0.004)
    return Accept()


@pytest.fixture
def rounds(
    request: pytest.FixtureRequest, tmp_path: Path, need_program: Callable[[str], None]
) -> Iterator[Rounds]:
    kind = request.param
    for program in ("mount", "umount", f"mkfs.{kind}"):
        need_program(program)
    made = Rounds(kind, tmp_path, seeded())
    yield made
    made.close()


on_each_file_system = pytest.mark.parametrize("rounds", FILE_SYSTEMS, indirect=True)


def cut_often(rounds: Rounds, number: int) -> None:
    chance = rounds._chance
    for index in range(number):
        if index % 2 == 0:
            queue = rounds.new_queue(is_small=index % 4 == 2)
        longest = MAKING_SECONDS if index % 4 == 0 else LONGEST_ROUND_SECONDS
        rounds.run(queue, queue.load(chance.getrandbits(32)), until=partial(rounds.wait_at_most, longest))
        pushed = count_acknowledged(queue.records)
        print(f"round {index}: {pushed} acknowledged so far, {len(queue.delivered())} delivered")
        assert [queue.lost for queue in rounds.queues] == [[]] * len(rounds.queues)
    rounds.end()
    assert sum(count_acknowledged(queue.records) for queue in rounds.queues) > 10 * number


@pytest.mark.system
@on_each_file_system
def test_no_acknowledged_push_is_missing_after_power_cuts(rounds: Rounds) -> None:
    cut_often(rounds, 4)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@on_each_file_system
def test_no_acknowledged_push_is_missing_after_many_power_cuts(rounds: Rounds) -> None:
    cut_often(rounds, 40)


def until_acknowledged(queue: QueueUnderTest, number: int) -> None:
    deadline = time.monotonic() + 30
    while count_acknowledged(queue.records) < number:
        assert time.monotonic() < deadline, "too few pushes"
        time.sleep(0.005)


@pytest.mark.system
@on_each_file_system
def test_with_the_syncs_made_no_ops_acknowledged_pushes_are_missing(
    rounds: Rounds, tmp_path: Path, need_program: Callable[[str], None]
) -> None:
    """The red control."""
    need_program("gcc")
    queue = rounds.new_queue(is_small=False)
    environment = shim_environment(build_shim(tmp_path), rounds._disk.root, "nosync")
    rounds.run(queue, queue.load(1), until=lambda: until_acknowledged(queue, 100), environment=environment)
    assert queue.lost


@pytest.mark.system
@on_each_file_system
def test_under_normal_acknowledged_pushes_are_missing_after_a_power_cut(rounds: Rounds) -> None:
    """The red control for the sync of a push alone: everything else syncs as always. No checkpoint comes."""
    queue = rounds.new_queue(is_small=False, durability="normal")
    load = queue.load(1, reader=False, large_bytes=0, writers=1, threads=1, forks=False)
    rounds.run(queue, load, until=lambda: until_acknowledged(queue, 50))
    assert queue.lost


@pytest.mark.system
@pytest.mark.parametrize("durability", ["full", "normal"])
def test_killed_processes_lose_nothing_whatever_the_durability(tmp_path: Path, durability: str) -> None:
    chance = seeded()
    (tmp_path / "records").mkdir()
    with RamenServer() as server:
        server.default = _accept_slowly
        queue = QueueUnderTest(
            tmp_path / "queue", tmp_path / "records", tmp_path / "log", server, False, durability
        )
        for _ in range(3):
            with at_work(queue.load(chance.getrandbits(32))):
                until_acknowledged(queue, count_acknowledged(queue.records) + chance.randrange(100, 500))
            queue.check()
            assert queue.lost == []
        queue.drain()
