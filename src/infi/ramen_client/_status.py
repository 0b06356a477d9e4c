"""``QueueStatus``: what an operator wants to know of a queue, made of what its file says at one instant."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from .errors import QueueUnusable
from .storage import now_ms, reader_holder, take_snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from .storage import Books, ExistingQueue, Snapshot, StoredRule, WaitingStream

_TOO_MANY_REQUESTS = 429
_SERVER_ERRORS = range(500, 600)


class Condition(Enum):
    """A queue in one word."""

    EMPTY = "empty"
    """Nothing waits."""
    DELIVERING = "delivering"
    """Messages wait, a reader runs, and its last attempt succeeded or none was made yet."""
    FAILING = "failing"
    """Messages wait, a reader runs, and nothing gets through."""
    NO_READER = "no reader"
    """Messages wait, and no reader runs."""


class ReaderState(Enum):
    """What became of the active reader."""

    RUNNING = "running"
    """A process holds the reader's lock now."""
    STOPPED = "stopped"
    """None does; the last one said good-bye."""
    DIED = "died"
    """None does; the last one did not end as it should have."""
    NEVER = "never ran"
    """No reader has ever had anything to do here."""


@dataclass(frozen=True, slots=True)
class ReaderProcess:
    """The active reader, or the last one that had something to do."""

    state: ReaderState
    pid: int | None
    since_ms: int | None
    """When it first had something to do; None: not yet."""
    stopped_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """How delivery goes. Times are milliseconds since the epoch; None: never, or not so."""

    last_success_at_ms: int | None
    """To about a second."""
    failing_since_ms: int | None
    """None while the last attempt was a success."""
    failures: int
    """Failed attempts since the last success."""
    last_error: str | None
    """The last failure in words, also when it was overcome."""
    last_error_at_ms: int | None
    last_status: int | None
    """The HTTP status of the last failure, where there was an answer."""
    remedy: str | None
    """What to do about the last failure, where its words do not say it."""
    next_retry_at_ms: int | None
    server: str | None
    """The origin of the server that last failed or recovered, as ``https://host:port``."""
    suspect_since_ms: int | None
    """Since when that server is suspect: it refuses everything, without speaking the protocol. Nothing is given up then."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Messages a second, counted over ``seconds`` while ``status`` ran: below one in that time, they say little."""

    incoming: float
    outgoing: float
    """Delivered, dropped, or made dead letters; losses are none."""
    lost: float
    """Trimmed, expired, or lost with a damaged part of the file."""
    seconds: float


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """A queue at one instant (``taken_at_ms``). Times are milliseconds since the epoch."""

    path: Path
    sender: str
    system_serial: int
    taken_at_ms: int
    condition: Condition
    waiting: int
    """Those in flight included."""
    in_flight: int
    """Taken up by the reader, and not yet acknowledged."""
    bytes_used: int
    """As ``max_queue_size`` counts it."""
    max_queue_size: int | None
    """None: not known here, since it is configuration and stands in no file of the queue."""
    oldest_waiting_seconds: float | None
    """The age of the oldest waiting message; None: nothing waits."""
    rates: Rates | None
    """None: was not asked for."""
    empty_in_seconds: float | None
    """When nothing will wait any more if the rates stay; None: not known, or never."""
    delivery: Delivery
    reader: ReaderProcess
    rules: tuple[StoredRule, ...]
    waiting_streams: tuple[WaitingStream, ...]
    """Those that the server puts off while it takes others; at most a hundred, those that wait longest."""
    dead_letters: int
    dead_letter_bytes: int
    """Of their payloads, as stored."""
    last_1x_push_at_ms: int | None
    """When a program that still runs 1.x was last seen pushing."""
    damaged_files: int
    """Damaged files that were put aside, and that the reader has still to carry over."""
    disk_free_bytes: int | None
    """On the queue's file system, as this process's user may use them; None: not known."""
    books: Books


def look_at(queue: ExistingQueue, *, max_queue_size: int | None) -> QueueStatus:
    """What a queue is like now, without rates; about a millisecond, whatever waits. ``QueueUnusable`` when it cannot be seen."""
    return status_of(queue, take_snapshot(queue.database, queue.meta), None, max_queue_size=max_queue_size)


def status_of(
    queue: ExistingQueue, snapshot: Snapshot, rates: Rates | None, *, max_queue_size: int | None
) -> QueueStatus:
    """Say what a snapshot means, and whether a reader lives now. ``QueueUnusable`` when that cannot be seen."""
    now = now_ms()
    books = snapshot.entries.books
    reader = _reader(snapshot, _holder(queue.database.path))
    oldest = snapshot.oldest_waiting_since_ms
    return QueueStatus(
        path=queue.database.path,
        sender=queue.sender,
        system_serial=queue.system_serial,
        taken_at_ms=now,
        condition=_condition(snapshot, reader),
        waiting=books.waiting,
        in_flight=snapshot.in_flight,
        bytes_used=snapshot.bytes_used,
        max_queue_size=max_queue_size,
        oldest_waiting_seconds=None if oldest is None else max(0.0, (now - oldest) / 1000),
        rates=rates,
        empty_in_seconds=_empty_in(books.waiting, rates),
        delivery=_delivery(snapshot),
        reader=reader,
        rules=snapshot.rules,
        # Without a head, and when its time has come, nothing waits for anything any more.
        waiting_streams=tuple(
            stream for stream in snapshot.streams if stream.attempts or stream.retry_at_ms > now
        ),
        dead_letters=books.dead,
        dead_letter_bytes=snapshot.entries.dead_bytes,
        last_1x_push_at_ms=snapshot.last_1x_push_at_ms,
        damaged_files=snapshot.damaged_files,
        disk_free_bytes=snapshot.disk_free_bytes,
        books=books,
    )


def _holder(path: Path) -> int | None:
    """The process that holds the reader's lock now; 0: one that is not seen."""
    try:
        return reader_holder(path)
    except OSError as error:
        raise QueueUnusable(
            f"{path}.reader: whether a reader runs cannot be seen: {error.strerror}. Check the file's owner and mode."
        ) from error


def _reader(snapshot: Snapshot, holder: int | None) -> ReaderProcess:
    record = snapshot.reader
    if holder is not None:
        pid = holder or record.pid
        is_on_record = record.pid == pid and record.stopped_at_ms is None
        return ReaderProcess(ReaderState.RUNNING, pid, record.started_at_ms if is_on_record else None, None)
    if record.pid is None:
        state = ReaderState.NEVER
    else:
        state = ReaderState.DIED if record.stopped_at_ms is None else ReaderState.STOPPED
    return ReaderProcess(state, record.pid, record.started_at_ms, record.stopped_at_ms)


def rates_of(before: Books, after: Books, seconds: float) -> Rates:
    """The rates between two readings of the books."""
    incoming = after.pushed - before.pushed
    outgoing = _left_for_good(after) - _left_for_good(before)
    lost = _lost(after) - _lost(before)
    # Dead letters that an operator brings back count against those that left.
    return Rates(max(0, incoming) / seconds, max(0, outgoing) / seconds, max(0, lost) / seconds, seconds)


def _lost(books: Books) -> int:
    return books.trimmed + books.expired + books.damaged


def _left_for_good(books: Books) -> int:
    return books.accepted + books.dropped + books.blacklisted + books.dead + books.dead_discarded


def _empty_in(waiting: int, rates: Rates | None) -> float | None:
    if not waiting:
        return 0.0
    if rates is None or rates.outgoing <= rates.incoming:
        return None
    return waiting / (rates.outgoing - rates.incoming)


def _condition(snapshot: Snapshot, reader: ReaderProcess) -> Condition:
    if not snapshot.entries.books.waiting:
        return Condition.EMPTY
    if reader.state is not ReaderState.RUNNING:
        return Condition.NO_READER
    return Condition.DELIVERING if snapshot.reader.failing_since_ms is None else Condition.FAILING


def _delivery(snapshot: Snapshot) -> Delivery:
    record, server = snapshot.reader, snapshot.server
    return Delivery(
        last_success_at_ms=record.last_success_at_ms,
        failing_since_ms=record.failing_since_ms,
        failures=record.failures,
        last_error=record.last_error,
        last_error_at_ms=record.last_error_at_ms,
        last_status=record.last_status,
        remedy=_remedy(record.last_status),
        next_retry_at_ms=None if record.failing_since_ms is None else record.retry_at_ms,
        server=None if server is None else server.origin,
        suspect_since_ms=None if server is None else server.suspect_since_ms,
    )


def _remedy(status: int | None) -> str | None:
    """For the statuses whose cause is not on this host; the words of other failures say what to do here."""
    if status == _TOO_MANY_REQUESTS:
        return "The server asked for a pause; the reader keeps to it by itself."
    if status in _SERVER_ERRORS:
        return (
            "The trouble is the server's, or that of a proxy before it; the reader goes on trying by itself."
        )
    return None
