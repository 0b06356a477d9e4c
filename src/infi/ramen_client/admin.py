"""A queue as its operator sees it: what waits, what is in the way, what to do about it.

``QueueAdmin`` opens a queue that exists, in any process, beside living writers and a living reader, and disturbs neither:

- Nothing is created, healed or taken over. A 1.x file that 2.0 has not taken over is refused, with what is known of it.
- Looking takes no write lock, and no read transaction lasts longer than a page of rows, so the write-ahead log can always be copied;
  ``check`` and ``export_to_1x`` alone read the whole file at one instant.
- Changes are made in steps of bounded transactions, in which the writers' turns come in between, each durable when it returns and
  each counted in the books. A call that is interrupted has done a part.
- What is in flight is the reader's: nothing here touches it.

Everything that the commands ``status``, ``check``, ``dead``, ``blacklist``, ``purge`` and ``export --to-1x`` do is a call of this module.
"""

from __future__ import annotations

import base64
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from infi.ramen_protocol import decompress_zlib

from ._status import (
    Condition,
    Delivery,
    QueueStatus,
    Rates,
    ReaderProcess,
    ReaderState,
    rates_of,
    status_of,
)
from .errors import QueueClosed, QueueUnusable, ValidationError
from .storage import (
    Books,
    Changed,
    ChangedVersion,
    DeadHead,
    Death,
    ExportedTo1x,
    Matching,
    Payload,
    Purged,
    Repaired,
    StoredRule,
    WaitingStream,
    bury_head,
    check,
    dead_head,
    dead_heads,
    discard_dead,
    export_to_1x,
    lift_rules,
    list_rules,
    now_ms,
    open_existing,
    purge,
    queue_files,
    read_dead,
    read_payload,
    repair,
    retry_dead,
    take_entries,
    take_snapshot,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from .storage import ExistingQueue, StoredMessage

__all__ = [
    "Books",
    "Changed",
    "ChangedVersion",
    "Condition",
    "DeadHead",
    "Delivery",
    "ExportedTo1x",
    "Payload",
    "Purged",
    "QueueAdmin",
    "QueueStatus",
    "Rates",
    "ReaderProcess",
    "ReaderState",
    "Repaired",
    "Selection",
    "StoredRule",
    "WaitingStream",
    "find_queue",
    "now_ms",
]

SAMPLE_SECONDS = 0.1
"""Over how long ``status`` measures rates, if not told otherwise."""

SHOWN_PAYLOAD_BYTES = 64 * 1024
"""How much of a dead letter's payload is shown, if not told otherwise."""

_MAX_NAMED = 20
_MAX_REASON_CHARS = 500
_PAGE_LETTERS = 100


@dataclass(frozen=True, slots=True)
class Selection:
    """Which messages or dead letters are meant: those to which all that is given applies.

    ``older_than_seconds`` counts from a message's push (or its return from the dead letters), from a dead letter's death.
    ``everything`` stands alone; a selection of nothing at all raises ``ValidationError``, lest a forgotten argument empty a queue.
    """

    category: str | None = None
    data_type: str | None = None
    older_than_seconds: float | None = None
    everything: bool = False

    def __post_init__(self) -> None:
        given = [self.category, self.data_type, self.older_than_seconds]
        if self.everything == any(part is not None for part in given):
            raise ValidationError(
                "a selection is a category, a data type, an age, or several of them; or it is everything"
            )

    def _matching(self) -> Matching:
        seconds = self.older_than_seconds
        return Matching(
            self.category, self.data_type, None if seconds is None else now_ms() - int(seconds * 1000)
        )


class QueueAdmin:
    """An operator's hand on the queue whose file is at ``path``.

    ``max_queue_size`` is what the queue's programs are configured with, where it is known. Raises ``QueueUnusable`` where there is no
    queue, or one that this process may not use. Threads may share an object.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_queue_size: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._opened: ExistingQueue | None = open_existing(Path(path))
        self._path = self._opened.database.path
        self._max_queue_size = max_queue_size
        self._sleep = sleep

    def __repr__(self) -> str:
        return f"<QueueAdmin {self._path}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Using this object afterwards raises ``QueueClosed``."""
        self._opened = None

    @property
    def path(self) -> Path:
        """The queue's file."""
        return self._path

    @property
    def _queue(self) -> ExistingQueue:
        """The open queue, if its file is still there."""
        if self._opened is None:
            raise QueueClosed("this QueueAdmin was closed; build a new one")
        self._opened.database.check_in_place()
        return self._opened

    def status(self, *, sample_seconds: float = SAMPLE_SECONDS) -> QueueStatus:
        """What the queue is like now; takes a few milliseconds and ``sample_seconds``, whatever waits.

        Rates are the difference between two readings of the books that far apart; 0: no rates.
        """
        queue = self._queue
        before = take_entries(queue.database).books
        began = time.monotonic()
        if sample_seconds > 0:
            self._sleep(sample_seconds)
        snapshot = take_snapshot(queue.database, queue.meta)
        seconds = time.monotonic() - began
        rates = rates_of(before, snapshot.entries.books, seconds) if sample_seconds > 0 else None
        return status_of(queue, snapshot, rates, max_queue_size=self._max_queue_size)

    def books(self) -> Books:
        """Where every message that was ever pushed into this queue is now."""
        return take_entries(self._queue.database).books

    def check(self) -> list[str]:
        """Whether the books balance and are right, every row is sound, and the file is whole; what is not, in words.

        Reads everything, so it takes its time (a second or two for a million small messages); meanwhile nobody is kept from writing,
        but the write-ahead log grows.
        """
        return check(self._queue.database)

    def repair(self) -> Repaired:
        """Set the books right where they are wrong: count what is there, and enter as found or damaged what nobody can account for.

        Forgets damaged blacklist rules as well. Raises ``QueueBusy`` while a reader lives; it does all this itself when it begins.
        """
        return repair(self._queue.database)

    def purge(self, selection: Selection, *, dry_run: bool = False) -> Purged:
        """Remove waiting messages, counted as purged, but for what is in flight; ``dry_run``: only say how many.

        What is pushed after the call began stays.
        """
        return purge(self._queue.database, selection._matching(), dry_run=dry_run, sleep=self._sleep)  # noqa: SLF001

    def export_to_1x(self, directory: str | os.PathLike[str]) -> ExportedTo1x:
        """Copy the waiting messages into a file that a program of 1.x delivers, in a directory of its own; this queue stays as it is.

        For the way back: stop what pushes and delivers, export, start 1.x with ``directory`` as its ``queue_dir``, and purge this
        queue when 1.x has begun to deliver. Who lets both go on sends each message twice, under the same reqid. Raises ``QueueBusy``
        while a reader lives, ``QueueUnusable`` where the directory has such a file already, ``DiskFull``; nothing was made then.
        """
        return export_to_1x(self._queue.database, directory)

    # Dead letters

    def dead_letters(
        self, selection: Selection | None = None, *, after: int | None = None, limit: int = 100
    ) -> list[DeadHead]:
        """A page of dead letters without their payloads, by position; ``after``: the last position of the page before."""
        matching = Matching() if selection is None else selection._matching()  # noqa: SLF001
        return dead_heads(self._queue.database, matching, after=after, limit=limit)

    def dead_letter(
        self, position: int, *, max_payload_bytes: int = SHOWN_PAYLOAD_BYTES
    ) -> tuple[DeadHead, Payload] | None:
        """One dead letter and its payload as pushed, as far as ``max_payload_bytes``; None: there is none at this position."""
        database = self._queue.database
        head = dead_head(database, position)
        payload = read_payload(database, position, max_bytes=max_payload_bytes)
        return None if head is None or payload is None else (head, payload)

    def retry_dead_letters(self, which: Selection | Iterable[int]) -> Changed:
        """Put dead letters back into the queue, in their old places; by a selection or by their positions."""
        return retry_dead(self._queue.database, _meant(which))

    def discard_dead_letters(self, which: Selection | Iterable[int]) -> Changed:
        """Throw dead letters away, counted as discarded; by a selection or by their positions."""
        return discard_dead(self._queue.database, _meant(which))

    def add_dead_letter(self, category: str, data_type: str, *, reason: str = "") -> int | None:
        """Make the oldest message of a stream that is not under way a dead letter, because it never gets through.

        Its position, for ``retry_dead_letters``; None when there is none.
        """
        death = Death("an operator took it out of the way", reason[:_MAX_REASON_CHARS])
        message = bury_head(self._queue.database, category, data_type, death)
        return None if message is None else message.position

    def export_dead_letters(self, selection: Selection | None = None) -> Iterator[bytes]:
        """Dead letters as lines of JSON (NDJSON), one at a time in memory; docs/commands.md has the format.

        What dies meanwhile may or may not be among them.
        """
        after: int | None = None
        while page := self.dead_letters(selection, after=after, limit=_PAGE_LETTERS):
            after = page[-1].position
            for head in page:
                found = read_dead(self._queue.database, head.position)
                if found is not None:
                    yield _export_line(head, *found)

    # Blacklist rules

    def rules(self, fields: Mapping[str, str] | None = None) -> list[StoredRule]:
        """The rules in the file; with ``fields``, those that have these very values in them."""
        wanted = dict(fields or {})
        return [
            stored
            for stored in list_rules(self._queue.database)
            if all(getattr(stored.rule, name) == value for name, value in wanted.items())
        ]

    def lift_rules(self, rule_ids: Iterable[int]) -> int:
        """Forget rules, by their numbers; return how many of them there were. A living reader takes notice at once.

        The server may send them again.
        """
        return lift_rules(self._queue.database, rule_ids)


def find_queue(
    queue_dir: str | os.PathLike[str], sender: str | None = None, system_serial: int | None = None
) -> Path:
    """The file of the one queue in a directory that is meant; both names may be missing where that is clear.

    Raises ``QueueUnusable`` where no queue fits, ``ValidationError`` where several do.
    """
    fitting = [
        file
        for file in queue_files(queue_dir)
        if (sender is None or file.sender == sender)
        and (system_serial is None or file.system_serial == system_serial)
    ]
    if len(fitting) == 1:
        return fitting[0].path
    asked = {"sender": sender, "system_serial": system_serial}
    said = " and ".join(f"{name} {value}" for name, value in asked.items() if value is not None)
    which = f" with {said}" if said else ""
    if not fitting:
        raise QueueUnusable(
            f"{queue_dir}: there is no queue{which} (a file SENDER_SERIAL.db). Check queue_dir, sender and system_serial; a queue "
            "comes into being when a program opens it."
        )
    names = ", ".join(file.path.name for file in fitting[:_MAX_NAMED])
    more = f" and {len(fitting) - _MAX_NAMED} more" if len(fitting) > _MAX_NAMED else ""
    raise ValidationError(
        f"{queue_dir}: there are {len(fitting)} queues{which}; say which one by sender and system_serial: {names}{more}"
    )


def _meant(which: Selection | Iterable[int]) -> Matching | Iterable[int]:
    return which._matching() if isinstance(which, Selection) else which  # noqa: SLF001


def _export_line(head: DeadHead, message: StoredMessage, is_sound: bool) -> bytes:
    """One dead letter as a line of JSON.

    The payload stands in it as it is where it is JSON (line ends in it can only be blank space), else as base64.
    """
    death = head.death
    fields: dict[str, Any] = {
        "position": head.position,
        "category": head.category,
        "data_type": head.data_type,
        "data_version": head.data_version,
        "system_version": head.system_version,
        "reqid": head.reqid,
        "pushed_at": head.pushed_at_ms,
        "died_at": head.died_at_ms,
        "reason": death.reason,
        "status": death.status,
        "code": death.code,
        "details": death.details,
    }
    if is_sound:
        with suppress(ValueError):
            plain = decompress_zlib(message.data, max_bytes=message.plain_length)
            if not _is_json(plain):
                fields["payload_base64"] = base64.b64encode(plain).decode()
                return json.dumps(fields).encode() + b"\n"
            payload = plain.replace(b"\n", b" ").replace(b"\r", b" ")
            return json.dumps(fields).encode()[:-1] + b', "payload": ' + payload + b"}\n"
    fields["damaged_base64"] = base64.b64encode(message.data).decode()
    return json.dumps(fields).encode() + b"\n"


def _is_json(plain: bytes) -> bool:
    try:
        json.loads(plain.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
