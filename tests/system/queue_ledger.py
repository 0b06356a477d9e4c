"""What was acknowledged, held against what is there afterwards: in the queue, or at the server.

A message may be missing from both only when it was trimmed. The books say how many were; and since trimming takes the oldest that
are not in flight, a message that was trimmed is older than all that wait, whereas what a power cut takes away are the newest.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from queues import make_queue, query

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from infi.ramen_client.storage import Books


@dataclass
class Records:
    """What the threads of ``queue_load`` wrote down: at which time, by reqid."""

    begun: dict[str, int] = field(default_factory=dict)
    """The push began."""
    acknowledged: dict[str, int] = field(default_factory=dict)
    """It returned."""
    unknown: dict[str, int] = field(default_factory=dict)
    """It raised ``DurabilityError``."""
    refused: dict[str, int] = field(default_factory=dict)
    """It raised another error."""

    @classmethod
    def read(cls, directory: Path) -> Records:
        found = cls()
        for file in directory.iterdir():
            found.add(file.read_text())
        return found

    def add(self, text: str) -> None:
        by_sign = {"+": self.begun, "=": self.acknowledged, "?": self.unknown, "!": self.refused}
        for line in text.split("\n")[:-1]:  # the last one may be in the middle of being written
            reqid, time = line[1:].split()
            by_sign[line[0]][reqid] = int(time)


def count_acknowledged(directory: Path) -> int:
    """The same number as ``Records.read`` would find, at less cost."""
    return sum(file.read_bytes().count(b"\n=") for file in directory.iterdir())


@dataclass(frozen=True, slots=True)
class Contents:
    """What a queue's file holds."""

    waiting: list[str]
    in_flight: set[str]
    books: Books


def look_into(directory: Path) -> Contents:
    """Open a queue that nobody else has open, check it, and return what is in it."""
    queue = make_queue(directory)
    try:
        problems = queue.check()
        assert problems == []
        in_flight = _reqids(
            queue.path, "SELECT group_concat(reqid, ' ') FROM message JOIN flight USING (position)"
        )
        waiting = _reqids(
            queue.path, "SELECT group_concat(reqid, ' ') FROM (SELECT reqid FROM message ORDER BY position)"
        )
        return Contents(waiting, set(in_flight), queue.books())
    finally:
        queue.close()


def _reqids(path: Path, statement: str) -> list[str]:
    return (query(path, statement) or "").split()


def lost(records: Records, contents: Contents, delivered: AbstractSet[str]) -> list[str]:
    """The acknowledged messages that are nowhere and were not trimmed."""
    there = {*contents.waiting, *delivered}
    missing = sorted(
        (reqid for reqid in records.acknowledged if reqid not in there), key=records.begun.__getitem__
    )
    oldest_waiting = min(
        (
            records.acknowledged[reqid]
            for reqid in contents.waiting
            if reqid in records.acknowledged and reqid not in contents.in_flight
        ),
        default=0,
    )
    may_be_trimmed = [reqid for reqid in missing if records.begun[reqid] < oldest_waiting]
    return missing[min(len(may_be_trimmed), contents.books.trimmed) :]
