"""The demo's own count of messages, and whether it balances.

It is made from three sources that do not know each other: what the writers wrote down after ``push`` had returned, what the
server wrote down before it answered, and the rows in the queue's file. A message is known by its path and reqid, as the server
knows it. Only then the count is compared with the books that the queue keeps of itself.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import apsw

from infi.ramen_client.storage import Place, Queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infi.ramen_client import QueueWriterConfig
    from infi.ramen_client.storage import Books

SERVER_RECORD = "arrived.jsonl"
_AGAIN_A_KILL = 64
"""A reader takes so many messages at a time, at most, and acknowledges them together; one that is killed in between sends them
again."""


def writer_record(directory: Path, telemetry: str) -> Path:
    """The file in which a writer writes down what it pushed: ``PATH REQID`` a line."""
    return directory / f"pushed-{telemetry}.txt"


def path_of(config: QueueWriterConfig, category: str, data_type: str, data_version: str | int) -> str:
    """The path of a message's URL (protocol section 1), put together here once more, so that it is checked, too."""
    return f"/ramen/v1/{category}/{config.system_serial}/{config.sender}.{data_type}.{data_version}/"


@dataclass(frozen=True, slots=True)
class Figures:
    """The count while the demo runs; its sources are not read in the same instant."""

    pushed: int = 0
    waiting: int = 0
    arrived: int = 0
    """Different messages."""
    arrived_again: int = 0

    @property
    def arrivals(self) -> int:
        """How often any message arrived."""
        return self.arrived + self.arrived_again


@dataclass(frozen=True, slots=True)
class Account:
    """The count at the end, when nothing moves any more: ``pushed = arrived_once + waiting - waiting_twice + lost``."""

    pushed: int
    """Acknowledged to the writers."""
    waiting: int
    """In the queue's file."""
    waiting_twice: int
    """Of the waiting ones: those that have arrived, too."""
    arrived_once: int
    """Different messages that the server has."""
    arrived_again: int
    """Arrivals of a message that the server had already."""
    lost: int
    """Pushed, and neither waiting nor arrived."""
    unknown: int
    """Waiting or arrived, and no writer has written it down."""
    pushed_twice: int
    """Messages that were given the identity of another one."""


class Ledger:
    """Counts the messages of one demo."""

    def __init__(self, directory: Path, config: QueueWriterConfig, telemetry: tuple[str, ...]) -> None:
        self._config = config
        self._queue = Queue(
            Place(config.queue_dir, config.sender, config.system_serial, config.system_version),
            max_bytes=config.max_queue_size,
        )
        self._writers = [_Tail(writer_record(directory, name)) for name in telemetry]
        self._server = _Tail(directory / SERVER_RECORD)
        self._pushed: Counter[str] = Counter()
        self._arrived: Counter[str] = Counter()

    def close(self) -> None:
        """Let go of the queue."""
        self._queue.close()

    def look(self) -> Figures:
        """Read what was written down since the last look."""
        for writer in self._writers:
            self._pushed.update(writer.lines())
        for line in self._server.lines():
            arrival = json.loads(line)
            self._arrived[f"{arrival['path']} {arrival['reqid']}"] += 1
        arrived = len(self._arrived)
        return Figures(self._pushed.total(), self._queue.size(), arrived, self._arrived.total() - arrived)

    def account(self) -> Account:
        """Count to the end; writers, reader and server must have ended."""
        self.look()
        return reckon(self._pushed, self._arrived, self._waiting())

    def books(self) -> Books:
        """The queue's own books."""
        return self._queue.books()

    def check_queue(self) -> list[str]:
        """What the queue finds wrong with its books, its rows and its file."""
        return self._queue.check()

    def _waiting(self) -> set[str]:
        connection = apsw.Connection(str(self._queue.path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            rows = connection.execute("SELECT category, data_type, data_version, reqid FROM message")
            return {f"{path_of(self._config, *names)} {reqid}" for *names, reqid in rows}
        finally:
            connection.close()


def reckon(pushed: Counter[str], arrived: Counter[str], waiting: set[str]) -> Account:
    """Compare the identities of what was pushed (how often), arrived (how often) and waits."""
    found = arrived.keys() | waiting
    return Account(
        pushed=pushed.total(),
        waiting=len(waiting),
        waiting_twice=len(arrived.keys() & waiting),
        arrived_once=len(arrived),
        arrived_again=arrived.total() - len(arrived),
        lost=len(pushed.keys() - found),
        unknown=len(found - pushed.keys()),
        pushed_twice=pushed.total() - len(pushed),
    )


def problems(account: Account, books: Books, *, kills: int) -> list[str]:
    """Say in words what does not balance; nothing when all is well. ``kills``: how often the reader was killed."""
    said = []
    if account.lost:
        said.append(f"{account.lost:,} messages are lost: pushed, and neither waiting nor arrived.")
    if account.waiting:
        said.append(
            f"{account.waiting:,} messages still wait; {account.waiting_twice:,} of them have arrived already."
        )
    if account.arrived_again > kills * _AGAIN_A_KILL:
        said.append(
            f"{account.arrived_again:,} messages arrived again; the reader was killed {kills} times, "
            f"which explains {kills * _AGAIN_A_KILL} at most."
        )
    if account.unknown:
        said.append(f"{account.unknown:,} messages arrived or wait that no writer has pushed.")
    if account.pushed_twice:
        said.append(f"{account.pushed_twice:,} messages were given the identity of another one.")
    if books.pushed != account.pushed:
        said.append(f"The queue's books say {books.pushed:,} pushed; the writers say {account.pushed:,}.")
    if books.accepted != account.arrived_once:
        said.append(
            f"The queue's books say {books.accepted:,} accepted; the server has {account.arrived_once:,}."
        )
    return said


class _Tail:
    """Reads a file that another process appends to, whole lines only; it need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def lines(self) -> Iterator[str]:
        """The lines since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        yield from whole.decode().splitlines()
