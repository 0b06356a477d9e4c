"""The demo's own count of messages.

It is made from three sources that do not know each other: what the writers wrote down after ``push`` had returned, what the
collector's archive holds, and the queues' files, with the books that they keep of themselves. A message is known by its path and
reqid, as the collector knows it. ``books`` compares them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import apsw

from infi.ramen_client.storage import Place, Queue
from infi.ramen_protocol import message_path
from infi.ramen_server import Selection, SqliteArchive, Totals

from .books import Count, count
from .plan import QUEUES, UNWANTED, collector_data, path_of, writer_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infi.ramen_client import QueueWriterConfig

    from .plan import PlannedQueue

_ALL = 2**31


@dataclass(frozen=True, slots=True)
class Figures:
    """The count while the demo runs; its sources are not read in the same instant. Tuples have a number for each queue."""

    pushed: int = 0
    waiting: tuple[int, ...] = (0,) * len(QUEUES)
    in_flight: int = 0
    """Of the waiting ones: those that a reader has in its hands."""
    arrived: int = 0
    """Different messages that the collector has."""
    arrived_again: int = 0
    by_rule: int = 0
    """Dropped under the rule, wherever."""
    trimmed: int = 0

    @property
    def arrivals(self) -> int:
        """How often any message arrived."""
        return self.arrived + self.arrived_again


class Ledger:
    """Counts the messages of one demo. ``configs``: those of the planned queues, in their order."""

    def __init__(self, directory: Path, configs: list[QueueWriterConfig]) -> None:
        self._collector_data = collector_data(directory)
        self._archive: SqliteArchive | None = None
        self._accounts = [_QueueAccount(directory, *pair) for pair in zip(QUEUES, configs, strict=True)]

    def close(self) -> None:
        """Let go of all files."""
        for account in self._accounts:
            account.close()
        if self._archive is not None:
            self._archive.close()

    def find_collector(self) -> None:
        """Look at the collector's archive from now on; to be called when it has been made."""
        self._archive = SqliteArchive(self._collector_data)

    def look(self) -> Figures:
        """Count what can be counted at a glance."""
        books = [account.queue.books() for account in self._accounts]
        totals = self.totals()
        return Figures(
            pushed=sum(account.read_record().total() for account in self._accounts),
            waiting=tuple(book.waiting for book in books),
            in_flight=sum(account.in_flight() for account in self._accounts),
            arrived=totals.messages,
            arrived_again=totals.duplicates,
            by_rule=sum(book.dropped + book.blacklisted for book in books),
            trimmed=sum(book.trimmed for book in books),
        )

    def totals(self) -> Totals:
        """What the collector says that it holds."""
        return Totals(0, 0, 0) if self._archive is None else self._archive.totals()

    def unwanted_since(self, time_ms: int) -> bool:
        """Whether the collector has stored a message since then that falls under the rule; milliseconds since the epoch."""
        wanted = Selection(received_from_ms=time_ms, category=UNWANTED.category)
        return self._archive is not None and any(True for _ in self._archive.export(wanted))

    def active_reader(self, queue: PlannedQueue) -> int | None:
        """The process that took messages out of a queue last."""
        return self._accounts[QUEUES.index(queue)].active_reader()

    def counts(self) -> list[Count]:
        """Count each queue's messages one by one; writers, readers and collector must have ended."""
        return [
            count(
                account.planned.name,
                pushed=account.read_record(),
                stored=self._stored(account.planned),
                waiting=account.waiting(),
                dead=account.dead(),
                books=account.queue.books(),
                unwanted=lambda message: message.startswith(f"/ramen/v1/{UNWANTED.category}/"),
            )
            for account in self._accounts
        ]

    def check_queues(self) -> list[str]:
        """What the queues find wrong with their books, their rows and their files."""
        return [
            f"{account.planned.name}: {said}" for account in self._accounts for said in account.queue.check()
        ]

    def _stored(self, queue: PlannedQueue) -> Counter[str]:
        if self._archive is None:
            return Counter()
        messages = self._archive.export(Selection(sender=queue.name))
        return Counter(f"{message_path(message.envelope)} {message.envelope.reqid}" for message in messages)


class _QueueAccount:
    """What one queue's file and its writers' records say."""

    def __init__(self, directory: Path, planned: PlannedQueue, config: QueueWriterConfig) -> None:
        self.planned = planned
        self.queue = Queue(
            Place(config.queue_dir, config.sender, config.system_serial, config.system_version),
            max_bytes=config.max_queue_size,
        )
        self._rows = apsw.Connection(str(self.queue.path), flags=apsw.SQLITE_OPEN_READONLY)
        self._records = [_Tail(writer_record(directory, name)) for name in planned.telemetry]
        self._pushed: Counter[str] = Counter()

    def close(self) -> None:
        self._rows.close()
        self.queue.close()

    def read_record(self) -> Counter[str]:
        """What was pushed, how often, with what was written down since the last call."""
        for record in self._records:
            self._pushed.update(record.lines())
        return self._pushed

    def in_flight(self) -> int:
        number: int = self._rows.execute("SELECT count(*) FROM flight").get
        return number

    def active_reader(self) -> int | None:
        process: int | None = self._rows.execute("SELECT pid FROM reader").get
        return process

    def waiting(self) -> set[str]:
        rows = self._rows.execute("SELECT category, data_type, data_version, reqid FROM message")
        return {f"{path_of(self.planned.name, *names)} {reqid}" for *names, reqid in rows}

    def dead(self) -> set[str]:
        return {
            f"{path_of(self.planned.name, message.category, message.data_type, message.data_version)} {message.reqid}"
            for message in (letter.message for letter in self.queue.dead_letters(_ALL))
        }


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
