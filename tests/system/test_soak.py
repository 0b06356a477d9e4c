"""Everything at once, at random, for long: whatever happens, each acknowledged push is stored once or is accounted for.

Writers (processes of two threads each) push through a queue on a small disk, a reader delivers to a real collector, in either version
of the protocol. Two thirds of the time are a *storm*, in rounds of a few seconds. Meanwhile, at random:

    a writer, the reader or the collector is killed and started again
    the collector is frozen, so that messages pile up and answers do not come
    the disk has no byte left, then has again
    the clock of all processes is set, by up to twelve days, forwards or back

At the end of a round all of the queue's processes are killed at one moment, and mostly the files are damaged as they lie there. So
the next round heals them, perhaps on a full disk, perhaps without its server.

The last third is the same without damage, and one writer, the reader and the collector are left alive: their memory and descriptors
stay flat. Then the queue is drained and the books are held against what the writers wrote down.

What may be missing: as many as lay on the pages that were damaged; where the log was, as many as were waiting. Nobody may be missing
that was pushed after the last damage, nobody may be stored twice or in part, nothing that was never pushed, or whose push had raised.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from clock_shim import ShimClock
from queue_ledger import Records
from queue_load import READER, Load, at_work, is_whole
from queues import make_queue
from torture_processes import Collector, Company
from torture_seed import seeded

from infi.ramen_client import QueueReader, QueueReaderConfig

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

MIB = 1024 * 1024
PAGE = 4096
DISK_BYTES = 24 * MIB
WRITERS = ("writer0", "writer1", "writer2")
SURVIVOR = "writer0"
COLLECTOR = "collector"
PER_PAGE = 40
"""More messages than a page holds: a row takes more than 100 bytes."""
ROUND_SECONDS = (3.0, 8.0)
PAUSE_SECONDS = 0.03
MOST_CLOCK_STEP_SECONDS = 12 * 86400
"""Two of them are less than the thirty days for which the collector knows what it has stored."""
GROWTH_BYTES = 32 * MIB
"""Much in flight after an outage takes some; a leak of some hundred bytes a message takes more within minutes."""
GROWTH_DESCRIPTORS = 8


@dataclass(frozen=True, slots=True)
class Damage:
    """What was done to the files at one moment, when nobody had them open."""

    kind: str
    at_ns: int
    """By the system's monotonic clock, as the records are."""
    cost: int
    """How many messages it may have destroyed."""


@dataclass(slots=True)
class Samples:
    """Of one process that lives on."""

    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def take(self, pid: int) -> None:
        status = Path(f"/proc/{pid}/statm").read_text()
        self.memory.append(int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE"))
        self.descriptors.append(len(list(Path(f"/proc/{pid}/fd").iterdir())))

    def growth(self) -> tuple[float, float]:
        """From the second quarter to the last one, of memory (bytes) and descriptors."""
        quarter = len(self.memory) // 4
        memory, descriptors = (
            median(values[-quarter:]) - median(values[quarter : 2 * quarter])
            for values in (self.memory, self.descriptors)
        )
        return memory, descriptors


class Disk:
    """A file system of some MiB, on which there may be no byte left."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._resize(DISK_BYTES)

    def _resize(self, size: int) -> bool:
        return not subprocess.run(
            ["mount", "-o", f"remount,size={size}", self.directory], check=False, capture_output=True
        ).returncode

    def fill(self) -> None:
        for slack in (0, 0, 0, 16 * PAGE, MIB):  # others write meanwhile
            found = os.statvfs(self.directory)
            if self._resize((found.f_blocks - found.f_bfree) * found.f_frsize + slack):
                return

    def free(self) -> None:
        assert self._resize(DISK_BYTES)


class Soak:
    """The queue, its processes, what is done to them and what came of it."""

    def __init__(
        self, directory: Path, disk: Disk, clock: ShimClock, collector: Collector, chance: random.Random
    ) -> None:
        self._chance = chance
        self._disk = disk
        self._clock = clock
        self._collector = collector
        self._log = directory / "log"
        self._log.touch()
        self._errors = directory / "errors"
        self._records = directory / "records"
        self._records.mkdir()
        self._queue = disk.directory / "queue"
        self._config: dict[str, Any] = {
            "sender": "imx",
            "system_serial": 1099,
            "system_version": "3.0.0.1",
            "queue_dir": str(self._queue),
            "hostname": f"127.0.0.1:{collector.port}",
            "auth_token": collector.token(),
            "ssl": False,
            "retry_delay": 0.2,
            "server_timeout": 2,
        }
        self._to_undo: dict[str, tuple[float, Callable[[], None]]] = {}
        self.events: Counter[str] = Counter()
        self.damages: list[Damage] = []
        self.samples = {SURVIVOR: Samples(), READER: Samples(), COLLECTOR: Samples()}

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end - seconds / 3:
            self._round(end - seconds / 3)
            if self._chance.random() < 0.7:
                self._damage()
        self._steady(end)
        print(dict(self.events), Counter(damage.kind for damage in self.damages))

    @contextmanager
    def _company(self, protocol: str) -> Iterator[Company]:
        load = Load(
            {**self._config, "protocol": protocol},
            str(self._records),
            str(self._log),
            self._chance.getrandbits(32),
            writers=len(WRITERS),
            threads=2,
            large_bytes=20_000,
            pause_seconds=PAUSE_SECONDS,
            restart=True,
        )
        with (
            self._errors.open("ab") as errors,
            at_work(load, self._clock.environment, errors=errors) as process,
        ):
            yield Company(process)

    def _round(self, end: float) -> None:
        end = min(end, time.monotonic() + self._chance.uniform(*ROUND_SECONDS))
        with self._company(self._chance.choice(("auto", "1"))) as company:
            try:
                while time.monotonic() < end:
                    time.sleep(self._chance.uniform(0, 0.3))
                    self._undo(time.monotonic())
                    self._trouble(company, (*WRITERS, READER, READER, COLLECTOR))
            finally:
                company.kill_all()

    def _steady(self, end: float) -> None:
        """Without damage; some are never killed."""
        with self._company("auto") as company:
            while time.monotonic() < end:
                time.sleep(self._chance.uniform(0, 0.3))
                self._undo(time.monotonic())
                self._trouble(company, [role for role in WRITERS if role != SURVIVOR])
                pids = {role: company.pid(role) for role in (SURVIVOR, READER)}
                for role, pid in {**pids, COLLECTOR: self._collector.process.pid}.items():
                    if pid is not None:
                        self.samples[role].take(pid)
            self._undo(float("inf"))
            company.stop()

    def _trouble(self, company: Company, victims: tuple[str, ...] | list[str]) -> None:
        """Do one thing, or nothing."""
        what = self._chance.choices(
            ("nothing", "kill", "freeze", "full disk", "clock step"), weights=(4, 4, 1, 1, 1)
        )[0]
        if what == "kill":
            what = self._chance.choice(victims)
            if what == COLLECTOR:
                self._collector.kill()
                self._to_undo.pop("freeze", None)
            elif company.pid(what) is not None:
                company.kill(what)
        elif what in self._to_undo:
            return
        elif what == "freeze":
            self._collector.freeze()
            self._later(what, self._collector.thaw, 4)
        elif what == "full disk":
            self._disk.fill()
            self._later(what, self._disk.free, 2)
        elif what == "clock step":
            self._clock.set(self._chance.uniform(-1, 1) * MOST_CLOCK_STEP_SECONDS ** self._chance.random())
        self.events[what] += 1

    def _later(self, what: str, undo: Callable[[], None], most_seconds: float) -> None:
        self._to_undo[what] = (time.monotonic() + self._chance.uniform(0, most_seconds), undo)

    def _undo(self, now: float) -> None:
        for what, (when, undo) in list(self._to_undo.items()):
            if when <= now:
                undo()
                del self._to_undo[what]

    def _damage(self) -> None:
        """Nobody has the files open."""
        database = self._queue / "imx_1099.db"
        log, index = (database.with_name(database.name + end) for end in ("-wal", "-shm"))
        records = b"".join(file.read_bytes() for file in self._records.iterdir())
        # Or killed before it was stored: no fewer than can be lost.
        waiting = records.count(b"+") - records.count(b"!") - self._collector.count()
        kind = self._chance.choice(("bytes", "bytes", "page", "log", "cut log", "index"))
        cost = 0
        if kind == "bytes" and database.exists():
            hits = self._chance.randrange(1, 4)
            cost = hits * PER_PAGE
            for _ in range(hits):
                self._flip(database)
        elif kind == "page" and database.exists():
            cost = PER_PAGE
            page = self._chance.randrange(pages_of(database))
            overwrite(database, page * PAGE, bytes(PAGE))
        elif kind == "log" and log.exists():
            cost = waiting
            self._flip(log)
        elif kind == "cut log" and log.exists():
            cost = waiting
            os.truncate(log, self._chance.randrange(log.stat().st_size + 1))
        elif kind == "index" and index.exists():
            overwrite(index, 0, self._chance.randbytes(index.stat().st_size))
        self.damages.append(Damage(kind, time.monotonic_ns(), min(cost, waiting)))

    def _flip(self, file: Path) -> None:
        """One byte of what is in use."""
        size = pages_of(file) * PAGE if file.suffix == ".db" else file.stat().st_size
        if size:
            overwrite(file, self._chance.randrange(size), self._chance.randbytes(1))

    def check(self) -> None:
        """Drain, and hold the archive and the dead letters against the records."""
        with QueueReader(QueueReaderConfig(self._config)) as reader:
            assert reader.drain(100)
            books = reader.books()
            dead = {letter.message.reqid for letter in reader.dead_letters(100_000)}
        print(books)
        assert (books.waiting, books.difference(), books.trimmed, books.expired) == (0, 0, 0, 0)
        queue = make_queue(self._queue)
        problems = queue.check()
        queue.close()
        # A damaged page that nobody has needed since is said, and no more.
        assert [problem for problem in problems if not problem.startswith("integrity")] == []

        records = Records.read(self._records)
        stored = Counter(reqid for reqid, _ in self._collector.stored())
        print(
            len(records.acknowledged),
            "acknowledged,",
            len(records.refused),
            "refused,",
            len(stored),
            "stored",
        )
        assert [reqid for reqid, times in stored.items() if times > 1] == []
        assert stored.keys() <= records.begun.keys()
        assert not stored.keys() & records.refused.keys()
        assert all(is_whole(orjson.loads(payload), reqid) for reqid, payload in self._collector.stored())
        self._check_missing(records, records.acknowledged.keys() - stored.keys() - dead)
        self._check_growth()
        self._check_logs()

    def _check_missing(self, records: Records, missing: set[str]) -> None:
        print(len(missing), "missing, at most", [(damage.kind, damage.cost) for damage in self.damages])
        for start in [0, *(damage.at_ns for damage in self.damages)]:
            younger = [reqid for reqid in missing if records.begun[reqid] >= start]
            assert len(younger) <= sum(damage.cost for damage in self.damages if damage.at_ns > start)

    def _check_growth(self) -> None:
        for role, samples in self.samples.items():
            memory, descriptors = samples.growth()
            print(
                f"{role}: {memory / MIB:+.1f} MiB, {descriptors:+.0f} descriptors, {len(samples.memory)} samples"
            )
            assert memory < GROWTH_BYTES
            assert descriptors < GROWTH_DESCRIPTORS

    def _check_logs(self) -> None:
        """No error that is not documented left the client or the collector, and nobody said one thing again and again."""
        assert self._errors.read_text() == ""
        assert "Traceback" not in self._collector.log.read_text()
        said: Counter[str] = Counter()
        for line in self._log.read_text().splitlines():
            _, level, pid, text = line.split(" ", 3)
            assert "unexpected" not in text
            if level != "INFO" and not re.match("'(push|opening|reader) failed'", text):
                said[f"{pid} {re.sub('[0-9]+', 'N', text)}"] += 1
        for text, times in said.most_common(8):
            print(times, text)
        assert max(said.values(), default=0) < 100


def pages_of(database: Path) -> int:
    """By its header; the file is longer (the reserve). A header that says nonsense: by the file's length."""
    with database.open("rb") as file:
        said = int.from_bytes(file.read(100)[28:32], "big")
    return said if 0 < said * PAGE <= database.stat().st_size else database.stat().st_size // PAGE


def overwrite(file: Path, offset: int, content: bytes) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        opened.write(content)


@pytest.fixture
def soak(tmp_path: Path, small_disk: Path, need_program: Callable[[str], None]) -> Iterator[Soak]:
    need_program("gcc")
    clock = ShimClock(tmp_path)
    collector = Collector(tmp_path, clock.environment)
    try:
        yield Soak(tmp_path, Disk(small_disk), clock, collector, seeded())
        collector.stop()
    finally:
        collector.process.kill()
        collector.process.wait()


@pytest.mark.system
@pytest.mark.timeout(400)
def test_after_two_minutes_of_everything_each_acknowledged_push_is_stored_once_or_accounted_for(
    soak: Soak,
) -> None:
    soak.run(120)
    soak.check()


@pytest.mark.soak
@pytest.mark.timeout(2700)
def test_after_half_an_hour_of_everything_each_acknowledged_push_is_stored_once_or_accounted_for(
    soak: Soak,
) -> None:
    soak.run(1800)
    soak.check()
