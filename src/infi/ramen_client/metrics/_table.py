"""The metrics: names by Prometheus' conventions, from which the names for OpenTelemetry follow.

Base units (seconds, bytes), the unit in the name, ``_total`` for counters. A value that is not known has no sample: "never" is no
number. Each sample has the label ``queue``; those of a few metrics have one more, with values out of a fixed set, so the number of
series is bounded by the number of queues.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from infi.ramen_client._status import ReaderState
from infi.ramen_client.health import Trouble

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infi.ramen_client._status import QueueStatus
    from infi.ramen_client.health import Observation

_OUTCOMES = ("accepted", "dropped", "blacklisted")
_LOSSES = ("trimmed", "expired", "purged", "damaged", "dead_discarded", "removed_by_1x")
_UNIT_SUFFIXES = ("_total", "_seconds", "_bytes", "_ratio")


class Kind(Enum):
    """What may be done with a value."""

    COUNTER = "counter"
    """Only grows; its rate is what matters."""
    GAUGE = "gauge"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric of a queue."""

    name: str
    """For Prometheus."""
    kind: Kind
    unit: str
    """As OpenTelemetry writes it (UCUM): ``s``, ``By``, ``{message}``, ``1``."""
    meaning: str
    label: str
    """The label that its samples have beside ``queue``; empty: none."""
    samples: Callable[[Observation], Iterator[tuple[str, float]]]
    """The value for each value of ``label`` (an empty one where there is none)."""

    @property
    def opentelemetry_name(self) -> str:
        """Without unit and ``_total``, which are not part of a name there."""
        name = self.name
        for suffix in _UNIT_SUFFIXES:
            name = name.removesuffix(suffix)
        return name.replace("ramen_queue_", "ramen.queue.", 1)


def _of_status(
    name: str,
    kind: Kind,
    unit: str,
    meaning: str,
    value: Callable[[QueueStatus], float | None],
) -> Metric:
    """A metric with one value, which may be unknown."""

    def samples(seen: Observation) -> Iterator[tuple[str, float]]:
        if seen.status is not None and (found := value(seen.status)) is not None:
            yield "", found

    return Metric(name, kind, unit, meaning, "", samples)


def _of_books(name: str, meaning: str, label: str, terms: tuple[str, ...]) -> Metric:
    """A counter with a value for each of some terms of the books."""

    def samples(seen: Observation) -> Iterator[tuple[str, float]]:
        if seen.status is not None:
            for term in terms:
                yield term, getattr(seen.status.books, term)

    return Metric(name, Kind.COUNTER, "{message}", meaning, label, samples)


def _healthy(seen: Observation) -> Iterator[tuple[str, float]]:
    yield "", seen.health.healthy


def _problems(seen: Observation) -> Iterator[tuple[str, float]]:
    found = {problem.trouble for problem in seen.health.problems}
    for trouble in Trouble:
        yield trouble.value, trouble in found


def _readable(seen: Observation) -> Iterator[tuple[str, float]]:
    yield "", seen.status is not None


def _outages(seen: Observation) -> Iterator[tuple[str, float]]:
    if seen.outages is not None:
        yield "", seen.outages


def _seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _outage_seconds(status: QueueStatus) -> float:
    since = status.delivery.failing_since_ms
    return 0.0 if since is None else max(0.0, (status.taken_at_ms - since) / 1000)


METRICS: tuple[Metric, ...] = (
    Metric(
        "ramen_queue_healthy",
        Kind.GAUGE,
        "1",
        "1 while all is well, 0 while something is the matter: the judgement of `QueueReader.health()`, `ramen status` and `/healthz`.",
        "",
        _healthy,
    ),
    Metric(
        "ramen_queue_problem",
        Kind.GAUGE,
        "1",
        "1 for each thing that is the matter, 0 for the others.",
        "trouble",
        _problems,
    ),
    Metric(
        "ramen_queue_up",
        Kind.GAUGE,
        "1",
        "1 if the queue's file could be read; else 0, and all but the health of it is missing.",
        "",
        _readable,
    ),
    _of_status(
        "ramen_queue_messages_waiting",
        Kind.GAUGE,
        "{message}",
        "Messages that wait to be delivered, those in flight included.",
        lambda status: status.waiting,
    ),
    _of_status(
        "ramen_queue_messages_in_flight",
        Kind.GAUGE,
        "{message}",
        "Messages that the reader has taken up and not yet acknowledged.",
        lambda status: status.in_flight,
    ),
    _of_status(
        "ramen_queue_oldest_waiting_age_seconds",
        Kind.GAUGE,
        "s",
        "The age of the oldest message that waits, since its push (or since it was brought back from the dead letters); 0 when "
        "nothing waits. The one figure that grows whatever keeps messages from being delivered.",
        lambda status: status.oldest_waiting_seconds or 0.0,
    ),
    _of_status(
        "ramen_queue_messages_pushed_total",
        Kind.COUNTER,
        "{message}",
        "Messages that were pushed into the queue.",
        lambda status: status.books.pushed,
    ),
    _of_status(
        "ramen_queue_messages_found_total",
        Kind.COUNTER,
        "{message}",
        "Messages that were in a damaged file when it was healed, and in no book.",
        lambda status: status.books.found,
    ),
    _of_books(
        "ramen_queue_messages_settled_total",
        "Messages that left the queue as they should: `accepted` by the server, `dropped` because it asked not to have them, "
        "`blacklisted`: dropped here under one of its rules.",
        "outcome",
        _OUTCOMES,
    ),
    _of_books(
        "ramen_queue_messages_lost_total",
        "Messages that left the queue undelivered: `trimmed` for want of room, `expired`, `purged` by the program or an operator, "
        "`damaged` on the disk, `dead_discarded`: dead letters that were thrown away, `removed_by_1x`: taken out by a program that "
        "still runs 1.x.",
        "reason",
        _LOSSES,
    ),
    _of_status(
        "ramen_queue_messages_maybe_twice_total",
        Kind.COUNTER,
        "{message}",
        "Of the accepted messages, those that the server may have stored twice.",
        lambda status: status.books.maybe_twice,
    ),
    _of_status(
        "ramen_queue_dead_letters",
        Kind.GAUGE,
        "{message}",
        "Messages that were refused for good, or damaged, and are kept.",
        lambda status: status.dead_letters,
    ),
    _of_status(
        "ramen_queue_dead_letter_bytes",
        Kind.GAUGE,
        "By",
        "What the payloads of the dead letters take, as stored.",
        lambda status: status.dead_letter_bytes,
    ),
    _of_status(
        "ramen_queue_books_difference",
        Kind.GAUGE,
        "{message}",
        "Messages that came less those that are accounted for. Anything but 0 is a bug or a damage: `ramen check`.",
        lambda status: status.books.difference(),
    ),
    _of_status(
        "ramen_queue_size_bytes",
        Kind.GAUGE,
        "By",
        "What messages and dead letters take on disk, as `max_queue_size` counts it.",
        lambda status: status.bytes_used,
    ),
    _of_status(
        "ramen_queue_limit_bytes",
        Kind.GAUGE,
        "By",
        "`max_queue_size`; missing where the configuration is not known.",
        lambda status: status.max_queue_size,
    ),
    _of_status(
        "ramen_queue_disk_free_bytes",
        Kind.GAUGE,
        "By",
        "What is free on the queue's file system, for the user of the process that was asked.",
        lambda status: status.disk_free_bytes,
    ),
    _of_status(
        "ramen_queue_last_success_timestamp_seconds",
        Kind.GAUGE,
        "s",
        "When the server last took a message, in seconds since the epoch, to about a second; missing: never.",
        lambda status: _seconds(status.delivery.last_success_at_ms),
    ),
    _of_status(
        "ramen_queue_outage_seconds",
        Kind.GAUGE,
        "s",
        "For how long delivery has not worked; 0 while it works. It counts attempts, so it says nothing where no reader runs.",
        _outage_seconds,
    ),
    _of_status(
        "ramen_queue_failed_attempts",
        Kind.GAUGE,
        "{attempt}",
        "Failed attempts since the last success.",
        lambda status: status.delivery.failures,
    ),
    _of_status(
        "ramen_queue_next_attempt_timestamp_seconds",
        Kind.GAUGE,
        "s",
        "When the next attempt is due in an outage, in seconds since the epoch; missing: there is none.",
        lambda status: _seconds(status.delivery.next_retry_at_ms),
    ),
    Metric(
        "ramen_queue_outages_total",
        Kind.COUNTER,
        "{outage}",
        "Outages that this process has seen begin; missing where it is not the one that delivers. Unlike the others it begins at 0 "
        "with the process.",
        "",
        _outages,
    ),
    _of_status(
        "ramen_queue_reader_running",
        Kind.GAUGE,
        "1",
        "1 while a reader is active, in whatever process; 0 while none is.",
        lambda status: status.reader.state is ReaderState.RUNNING,
    ),
    _of_status(
        "ramen_queue_rules",
        Kind.GAUGE,
        "{rule}",
        "Blacklist rules of the server that are held.",
        lambda status: len(status.rules),
    ),
)
"""Every metric, in the order in which they are shown."""
