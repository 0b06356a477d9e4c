"""Writers and a reader that work until they are killed: what the tests of power cuts and kills put a queue under.

Run as a program, ``python queue_load.py JSON``, with a ``Load`` as JSON. It forks one process for each writer and one for the
reader, says ``ready`` when all of them are about to open the queue, and lets them go when a line comes in; then it says ``started``,
role and process id of each. A line with a role kills that process. With ``restart`` it puts a new process, which it names as well, in the
place of each that dies. At the end of its standard input it asks the writers to stop, ends the reader, and ends when all of them have
ended. It must lead a session of its own, which is also the way to kill all at once.

Each thread of a writer keeps a record, a file of its own in ``records``, one line for each event and always in this order:

    +reqid time  it is about to be pushed
    =reqid time  ``push`` has returned: acknowledged
    ?reqid time  ``DurabilityError``: unknown
    !reqid time  another error: not stored

so what lies between the lines is known after any kill: a message with a ``+`` alone may be stored or not. Times are nanoseconds of
the system's monotonic clock, so they can be compared among processes.

What the processes log goes to ``log``, a line of time, level and text each.

The payload says what it is, so that what arrives can be checked: ``{"reqid": …, "fill": …, "crc": crc32(fill)}``.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from zlib import crc32

from infi.ramen_client import QueueReader, QueueReaderConfig, QueueWriter
from infi.ramen_client.errors import DurabilityError, QueueError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

logger = logging.getLogger("queue_load")

READER = "reader"
_LOOK_FOR_DEAD_SECONDS = 0.005
_FORK_AFTER_PUSHES = 20
_BATCHES = (1, 1, 1, 1, 1, 1, 2, 7)
"""One message by ``push``, more by ``push_many``."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the processes do. ``config`` are the fields of a ``QueueReaderConfig``."""

    config: dict[str, Any]
    records: str
    log: str
    seed: int
    writers: int = 4
    threads: int = 3
    reader: bool = True
    small_bytes: int = 400
    large_bytes: int = 0
    """Every twentieth message is up to so large; 0: none is."""
    forks: bool = True
    """The first writer forks once, with its threads at work; both sides go on."""
    pause_seconds: float = 0
    """Each thread's after a push, on average."""
    restart: bool = False

    @property
    def roles(self) -> list[str]:
        return [f"writer{number}" for number in range(self.writers)] + [READER] * self.reader

    def command(self) -> list[str]:
        return [sys.executable, __file__, json.dumps(asdict(self))]


class Record:
    """A thread's record; each line is whole in the file before the next step is taken."""

    def __init__(self, directory: str, name: str) -> None:
        self._descriptor = os.open(
            Path(directory, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )

    def note(self, sign: str, reqids: list[str]) -> None:
        now = time.monotonic_ns()
        os.write(self._descriptor, "".join(f"{sign}{reqid} {now}\n" for reqid in reqids).encode())


def payload_of(reqid: str, size: int, chance: random.Random) -> dict[str, Any]:
    fill = chance.randbytes(size // 2).hex()  # does not compress below half, like any hex text
    return {"reqid": reqid, "fill": fill, "crc": crc32(fill.encode())}


def is_whole(payload: dict[str, Any], reqid: str) -> bool:
    """Whether what arrived is what was pushed under this reqid."""
    return payload["reqid"] == reqid and payload["crc"] == crc32(payload["fill"].encode())


class Pusher:
    """The threads of one writer's process."""

    def __init__(self, load: Load, chance: random.Random, *, forks: bool) -> None:
        self._load = load
        self._chance = chance
        self._forks = forks
        self._stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: self._stop.set())
        self._writer = self._open()

    def _open(self) -> QueueWriter:
        while True:
            try:
                return QueueWriter(QueueReaderConfig(self._load.config))
            except QueueError:
                logger.exception("opening failed")
                if self._stop.wait(0.001):
                    sys.exit()

    def run(self) -> None:
        self._run_threads(self._load.threads)

    def _run_threads(self, number: int) -> None:
        threads = [threading.Thread(target=self._push, args=(index,)) for index in range(number)]
        for thread in threads:
            thread.start()
        # Not for ever: a signal that the kernel gives to another thread does not wake this one, and its handler runs here.
        while any(thread.is_alive() for thread in threads):
            self._stop.wait(0.05)
            threads[0].join(0.05)

    def _push(self, thread: int) -> None:
        name = f"{secrets.token_hex(4)}-{thread}"
        record = Record(self._load.records, name)
        chance = random.Random(self._chance.random())
        numbers = itertools.count()
        pushed = 0
        while not self._stop.is_set():
            self._push_some(
                record, chance, [f"{name}-{next(numbers)}" for _ in range(chance.choice(_BATCHES))]
            )
            pushed += 1
            if pause := self._load.pause_seconds:
                self._stop.wait(chance.uniform(0, 2 * pause))
            if self._forks and thread == 0 and pushed == _FORK_AFTER_PUSHES and os.fork() == 0:
                self._forks = False
                self._run_threads(2)
                os._exit(0)

    def _push_some(self, record: Record, chance: random.Random, reqids: list[str]) -> None:
        messages = [
            (
                chance.choice(("metrics", "events")),
                f"stream{chance.randrange(3)}",
                "v1",
                self._payload(reqid, chance),
                reqid,
            )
            for reqid in reqids
        ]
        record.note("+", reqids)
        try:
            if len(messages) == 1:
                self._writer.push(*messages[0])
            else:
                self._writer.push_many(messages)
        except DurabilityError:
            record.note("?", reqids)
        except QueueError:
            logger.exception("push failed")
            record.note("!", reqids)
            time.sleep(0.001)
        else:
            record.note("=", reqids)

    def _payload(self, reqid: str, chance: random.Random) -> dict[str, Any]:
        large = self._load.large_bytes
        size = (
            chance.randrange(large)
            if large and chance.random() < 0.05
            else chance.randrange(self._load.small_bytes)
        )
        return payload_of(reqid, size, chance)


def read_for_ever(load: Load) -> None:
    while True:
        try:
            QueueReader(QueueReaderConfig(load.config)).run()
        except QueueError:
            logger.exception("reader failed")
            time.sleep(0.001)


class _Log(logging.Handler):
    """Unbuffered: a fork may come while another thread writes."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        line = f"{time.monotonic_ns()} {record.levelname} {os.getpid()} {record.getMessage()!r} {error!r}\n"
        os.write(self._descriptor, line.encode())


def _play(role: str, load: Load, seed: int, *, first: bool) -> None:
    if role == READER:
        read_for_ever(load)
    forks = load.forks and first and role == "writer0"
    Pusher(load, random.Random(seed), forks=forks).run()


class Stage:
    """The parent of the processes. It never opens the queue, so it can fork at any time."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._seeds = random.Random(load.seed)
        self._roles: dict[int, str] = {}

    def run(self) -> None:
        curtain, lift = os.pipe()
        for role in self._load.roles:
            self._start(role, curtain, lift)
        print("ready", flush=True)
        lines = _lines_or_pauses()
        next(line for line in lines if line is not None)
        os.close(lift)
        for pid, role in self._roles.items():
            _say_started(role, pid)
        for line in lines:
            if line is not None:
                self._kill(line)
            if self._load.restart:
                self._restart_dead()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        for pid in self._roles:
            os.waitpid(pid, 0)

    def _start(self, role: str, curtain: int | None = None, lift: int | None = None) -> None:
        seed = self._seeds.getrandbits(64)
        pid = os.fork()
        if pid == 0:
            if curtain is not None and lift is not None:
                os.close(lift)
                os.read(curtain, 1)  # ends when the parent closes the other side
            try:
                _play(role, self._load, seed, first=curtain is not None)
            except BaseException as error:
                print("failed", role, repr(error), file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        self._roles[pid] = role

    def _kill(self, role: str) -> None:
        """Nobody but a parent that has not yet waited for its child knows whose number it is."""
        for pid, its_role in self._roles.items():
            if its_role == role:
                os.kill(pid, signal.SIGKILL)

    def _restart_dead(self) -> None:
        for pid, role in list(self._roles.items()):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._roles[pid]
                self._start(role)
                _say_started(role, next(reversed(self._roles)))


def _lines_or_pauses() -> Iterator[str | None]:
    """The lines of the standard input to its end; None now and then, while none comes."""
    begun = b""
    while True:
        if not select.select([0], [], [], _LOOK_FOR_DEAD_SECONDS)[0]:
            yield None
            continue
        read = os.read(0, 1000)
        if not read:
            return
        *lines, begun = (begun + read).split(b"\n")
        yield from (line.decode() for line in lines)


def _say_started(role: str, pid: int) -> None:
    print("started", role, pid, flush=True)


@contextmanager
def at_work(
    load: Load,
    environment: Mapping[str, str] | None = None,
    before: Sequence[str] = (),
    errors: IO[bytes] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """The processes of a load at work; killed at the end.

    ``before``: what runs the program, ``strace``, say. ``errors``: takes their standard error, where nothing should come.
    """
    process = subprocess.Popen(
        [*before, *load.command()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        while (said := process.stdout.readline()) != "ready\n":
            assert said
        process.stdin.write("go\n")
        process.stdin.flush()
        yield process
    finally:
        # Else it has ended, with all its processes, and its number may be another's.
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.read()  # ends when the last of them has
        process.stdout.close()
        process.stdin.close()


if __name__ == "__main__":
    load = Load(**json.loads(sys.argv[1]))
    logging.basicConfig(handlers=[_Log(load.log)], level=logging.INFO)
    Stage(load).run()
