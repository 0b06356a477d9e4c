"""``ramen status``: a queue on one page.

The exit code is a check for monitoring: 1 when something is the matter with the queue. Above all: messages have waited for two minutes,
and for as long nothing was delivered, whatever the cause; a short outage is no illness. Also: the token is refused, the server is
suspect, the queue is at its limit, its disk is full, a damaged file has still to be carried over, messages are being lost while this
command looks. ``--fail-if-older`` adds a limit of your own on the age of the oldest waiting message.

``--json``: times are milliseconds since the epoch; null is "never", "not so" or "not known".

    queue                   text      the file
    sender                  text
    system_serial           integer
    taken_at                integer   when this was so
    condition               text      "empty", "delivering", "failing" or "no reader"
    waiting                 integer   messages, those in flight included
    in_flight               integer   taken up by the reader, not yet acknowledged
    bytes_used              integer   as max_queue_size counts them
    max_queue_size          integer or null (no configuration was given)
    oldest_waiting_seconds  number or null (nothing waits)
    health                  object:
        healthy             true or false
        since               integer or null   since when something is the matter, as far as it is known
        waiting, oldest_waiting_seconds, last_success_at   as elsewhere in the document
        problems            list of objects: trouble (a label out of those of ramen_queue_problem in docs/metrics.md), text, since
                            (integer or null)
    rates                   object: in_per_second, out_per_second, lost_per_second, seconds (over which they were counted); numbers
    empty_in_seconds        number or null (not known, or never)
    delivery                object:
        last_success_at     integer or null
        failing_since       integer or null (the last attempt was a success)
        failures            integer   in a row
        last_error          text or null; also when it was overcome
        last_error_at       integer or null
        last_status         integer or null   the HTTP status of the last error
        remedy              text or null      what to do, where last_error does not say it
        next_retry_at       integer or null
        server              text or null      https://host:port
        suspect_since       integer or null   since when the server refuses everything without speaking the protocol
    reader                  object:
        state               text      "running", "stopped", "died" or "never ran"
        pid                 integer or null
        since               integer or null   when it first had something to do
        stopped_at          integer or null
    rules                   list of objects, as ``ramen blacklist list --json`` has them
    waiting_streams         list of objects, at most 100: streams that the server puts off while it takes others: category, data_type,
                            waiting_since, retry_at (times), attempts (of the head, in vain), last_error
    dead_letters            object: count, bytes (of their payloads, as stored); integers
    last_1x_push_at         integer or null   when a program that still runs 1.x was last seen pushing
    damaged_files           integer   put aside, and still to be carried over by the reader
    disk_free_bytes         integer or null   on the queue's file system
    books                   object of integers: pushed, found, waiting, accepted, dropped, blacklisted, dead, dead_discarded,
                            trimmed, expired, purged, damaged, removed_by_1x, maybe_twice; pushed + found is the sum of those
                            from waiting to removed_by_1x
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._options import Duration, config_options
from infi.ramen_cli._output import health_as_json, human_age, human_bytes, human_time, one_line, write_json

from .blacklist import rule_as_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infi.ramen_cli._options import Where
    from infi.ramen_client.admin import Books, QueueStatus
    from infi.ramen_client.health import Health

_LOSSES = {
    "trimmed": "trimmed for want of room",
    "expired": "expired",
    "purged": "purged",
    "damaged": "damaged",
    "dead_discarded": "dead letters discarded",
    "removed_by_1x": "removed by a 1.x program",
}
_TERMS = ("dropped", "blacklisted", "dead")
_LABEL_WIDTH = 10
_ERROR_CHARS = 600
_STREAMS_SHOWN = 5


@click.command()
@config_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document for machines.")
@click.option(
    "--fail-if-older",
    type=Duration(),
    metavar="DURATION",
    help="Exit with 1 when the oldest waiting message is older: 90s, 30m, 1h, 2d.",
)
@click.option(
    "--over",
    type=Duration(),
    metavar="DURATION",
    help="Count the rates over this long instead of 0.1 s; slow ones need it.",
)
def status(where: Where, *, as_json: bool, fail_if_older: float | None, over: float | None) -> ExitCode:
    """Say what waits, what was delivered, and what is in the way; 1 when something is the matter.

    Disturbs neither writers nor the reader. Rates are counted while it runs.
    """
    from infi.ramen_client.health import judge  # noqa: PLC0415 - not needed for --help

    with where.open_queue() as queue:
        found = queue.status() if over is None else queue.status(sample_seconds=over)
    health = judge(found)
    if as_json:
        write_json(status_as_json(found, health))
    else:
        for line in _page(found, health):
            click.echo(line)
    age = found.oldest_waiting_seconds
    too_old = fail_if_older is not None and age is not None and age > fail_if_older
    if too_old and not as_json:
        click.echo(f"The oldest message waits for longer than {human_age(fail_if_older or 0)}.", err=True)
    return ExitCode.OK if health.healthy and not too_old else ExitCode.NOT_WELL


def status_as_json(found: QueueStatus, health: Health) -> dict[str, Any]:
    """The document that the module's docstring describes."""
    delivery, reader = found.delivery, found.reader
    rates = found.rates and {
        "in_per_second": found.rates.incoming,
        "out_per_second": found.rates.outgoing,
        "lost_per_second": found.rates.lost,
        "seconds": found.rates.seconds,
    }
    return {
        "queue": str(found.path),
        "sender": found.sender,
        "system_serial": found.system_serial,
        "taken_at": found.taken_at_ms,
        "condition": found.condition.value,
        "waiting": found.waiting,
        "in_flight": found.in_flight,
        "bytes_used": found.bytes_used,
        "max_queue_size": found.max_queue_size,
        "oldest_waiting_seconds": found.oldest_waiting_seconds,
        "health": health_as_json(health),
        "rates": rates,
        "empty_in_seconds": found.empty_in_seconds,
        "delivery": {
            "last_success_at": delivery.last_success_at_ms,
            "failing_since": delivery.failing_since_ms,
            "failures": delivery.failures,
            "last_error": delivery.last_error,
            "last_error_at": delivery.last_error_at_ms,
            "last_status": delivery.last_status,
            "remedy": delivery.remedy,
            "next_retry_at": delivery.next_retry_at_ms,
            "server": delivery.server,
            "suspect_since": delivery.suspect_since_ms,
        },
        "reader": {
            "state": reader.state.value,
            "pid": reader.pid,
            "since": reader.since_ms,
            "stopped_at": reader.stopped_at_ms,
        },
        "rules": [rule_as_json(rule) for rule in found.rules],
        "waiting_streams": [
            {
                "category": stream.category,
                "data_type": stream.data_type,
                "waiting_since": stream.waiting_since_ms,
                "retry_at": stream.retry_at_ms,
                "attempts": stream.attempts,
                "last_error": stream.last_error,
            }
            for stream in found.waiting_streams
        ],
        "dead_letters": {"count": found.dead_letters, "bytes": found.dead_letter_bytes},
        "last_1x_push_at": found.last_1x_push_at_ms,
        "damaged_files": found.damaged_files,
        "disk_free_bytes": found.disk_free_bytes,
        "books": asdict(found.books),
    }


def _page(found: QueueStatus, health: Health) -> Iterator[str]:
    yield f"{found.sender}_{found.system_serial}: {_headline(found)}"
    yield f"({found.path})"
    yield ""
    for label, lines in (
        ("NOT WELL", [one_line(reason, _ERROR_CHARS) for reason in health.reasons]),
        ("waiting", _waiting(found)),
        ("rates", _rates(found)),
        ("delivery", _delivery(found)),
        ("put off", _put_off(found)),
        ("reader", [_reader(found)]),
        ("rules", _rules(found)),
        ("dead", _dead(found)),
        ("losses", [_losses(found.books)]),
        ("1.x", _one_x(found)),
        ("books", [_books(found.books)]),
    ):
        for number, line in enumerate(lines):
            yield f"{'' if number else label:<{_LABEL_WIDTH}}{line}"


def _headline(found: QueueStatus) -> str:
    from infi.ramen_client.admin import Condition  # noqa: PLC0415 - loaded by the time there is a status

    match found.condition:
        case Condition.EMPTY:
            return "nothing waits"
        case Condition.DELIVERING:
            return "delivering"
        case Condition.FAILING:
            since = found.delivery.failing_since_ms or found.taken_at_ms
            return f"NOT DELIVERING for {_age(found, since)}; nothing is lost by it"
        case Condition.NO_READER:
            return "NOT DELIVERING: no reader runs"


def _age(found: QueueStatus, milliseconds: int) -> str:
    return human_age(max(0, found.taken_at_ms - milliseconds) / 1000)


def _ago(found: QueueStatus, milliseconds: int) -> str:
    return f"{human_time(milliseconds)} ({_age(found, milliseconds)} ago)"


def _waiting(found: QueueStatus) -> Iterator[str]:
    yield f"{found.waiting:,} messages" + (
        f", {found.in_flight} of them in flight" if found.in_flight else ""
    )
    size = human_bytes(found.bytes_used)
    if found.max_queue_size is None:
        yield f"{size} on disk (the limit, max_queue_size, is known with --config)"
    else:
        share = found.bytes_used / found.max_queue_size
        yield f"{size} on disk, {share:.1%} of the limit of {human_bytes(found.max_queue_size)}"
    if found.oldest_waiting_seconds is not None:
        yield f"the oldest for {human_age(found.oldest_waiting_seconds)}"


def _rates(found: QueueStatus) -> Iterator[str]:
    if found.rates is None:
        return
    yield (
        f"in {found.rates.incoming:,.1f}/s, out {found.rates.outgoing:,.1f}/s "
        f"(counted over {human_age(found.rates.seconds)})"
    )
    if not found.waiting:
        return
    if found.empty_in_seconds is None:
        yield "not getting empty at these rates"
    else:
        yield f"empty in {human_age(found.empty_in_seconds)} at these rates"


def _delivery(found: QueueStatus) -> Iterator[str]:
    delivery = found.delivery
    success = delivery.last_success_at_ms
    yield "last success: " + ("never" if success is None else _ago(found, success))
    if delivery.suspect_since_ms is not None:
        yield (
            f"{one_line(delivery.server or '')} is SUSPECT since {_ago(found, delivery.suspect_since_ms)}: it refuses everything "
            "without speaking the protocol"
        )
    if delivery.failing_since_ms is not None:
        yield f"failing since {_ago(found, delivery.failing_since_ms)}, {delivery.failures} attempts"
    if delivery.last_error is not None:
        when = "" if delivery.last_error_at_ms is None else f" ({_ago(found, delivery.last_error_at_ms)})"
        overcome = "" if delivery.failing_since_ms is not None else ", overcome"
        yield f"last error{overcome}: {one_line(delivery.last_error, _ERROR_CHARS)}{when}"
        if delivery.remedy is not None and not overcome:
            yield delivery.remedy
    if delivery.next_retry_at_ms is not None:
        left = (delivery.next_retry_at_ms - found.taken_at_ms) / 1000
        yield "next attempt: " + (f"in {human_age(left)}" if left > 0 else "now")


def _put_off(found: QueueStatus) -> Iterator[str]:
    for stream in found.waiting_streams[:_STREAMS_SHOWN]:
        left = (stream.retry_at_ms - found.taken_at_ms) / 1000
        yield (
            f"{one_line(stream.category)}/{one_line(stream.data_type)} since {_ago(found, stream.waiting_since_ms)}, "
            f"{stream.attempts} attempts, next {f'in {human_age(left)}' if left > 0 else 'now'}: "
            f"{one_line(stream.last_error, _ERROR_CHARS)}"
        )
    if found.waiting_streams:
        more = len(found.waiting_streams) - _STREAMS_SHOWN
        yield (
            f"and {more} more streams; " if more > 0 else ""
        ) + "a head that never gets through: ramen dead add"


def _reader(found: QueueStatus) -> str:
    from infi.ramen_client.admin import ReaderState  # noqa: PLC0415

    reader = found.reader
    match reader.state:
        case ReaderState.RUNNING:
            since = "" if reader.since_ms is None else f", at work since {_ago(found, reader.since_ms)}"
            return f"running, process {reader.pid or 'of another container'}{since}"
        case ReaderState.STOPPED:
            return f"none runs; process {reader.pid} stopped {_ago(found, reader.stopped_at_ms or 0)}"
        case ReaderState.DIED:
            return f"none runs; process {reader.pid}, at work since {human_time(reader.since_ms or 0)}, DIED without stopping"
        case ReaderState.NEVER:
            return "none runs, and none ever did: start one (ramen forward)"


def _rules(found: QueueStatus) -> Iterator[str]:
    if found.rules:
        hits = sum(rule.hits for rule in found.rules)
        yield f"{len(found.rules)} held, {hits:,} messages dropped under them (ramen blacklist list)"


def _dead(found: QueueStatus) -> Iterator[str]:
    if found.dead_letters:
        yield f"{found.dead_letters:,} dead letters, {human_bytes(found.dead_letter_bytes)} (ramen dead list)"


def _losses(books: Books) -> str:
    lost = [f"{getattr(books, name):,} {words}" for name, words in _LOSSES.items() if getattr(books, name)]
    return ", ".join(lost) or "none"


def _one_x(found: QueueStatus) -> Iterator[str]:
    if found.last_1x_push_at_ms is not None:
        yield f"a program that still runs 1.x pushed {_ago(found, found.last_1x_push_at_ms)}: upgrade it"


def _books(books: Books) -> str:
    found = f" + {books.found:,} found" if books.found else ""
    terms = [f"{books.waiting:,} waiting", f"{books.accepted:,} accepted"]
    terms += [f"{getattr(books, name):,} {name}" for name in _TERMS if getattr(books, name)]
    if lost := sum(getattr(books, name) for name in _LOSSES):
        terms.append(f"{lost:,} lost")
    missing = books.difference()
    balance = f"; THEY DO NOT BALANCE: {missing:+,} (ramen check)" if missing else ""
    return f"{books.pushed:,} pushed{found} = {' + '.join(terms)}{balance}"
