"""The judgement on a queue: bad when nothing gets through, whatever the cause, and when something is lost; else good."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client._status import (
    Condition,
    Delivery,
    QueueStatus,
    Rates,
    ReaderProcess,
    ReaderState,
)
from infi.ramen_client.errors import QueueClosed, QueueGone
from infi.ramen_client.health import HealthWatch, Trouble, judge
from infi.ramen_client.storage import Books
from infi.ramen_client.testing import Accept, Hang, RamenServer, Refuse, Status

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client import health as judgement
    from infi.ramen_client.queue_reader import QueueReader
    from infi.ramen_client.queue_writer import QueueWriter

NOW = 1_800_000_000_000
RUNNING = ReaderProcess(ReaderState.RUNNING, 7, NOW - 10_000_000, None)
NO_BOOKS = Books(*[0] * 14)
GOOD = Delivery(NOW - 500, None, 0, None, None, None, None, None, None, None)


def ago(seconds: float) -> int:
    return NOW - int(seconds * 1000)


def status(
    delivery: Delivery = GOOD,
    *,
    oldest: float | None = None,
    state: ReaderState = ReaderState.RUNNING,
    **more: Any,
) -> QueueStatus:
    """A queue in which all is well; ``oldest`` in seconds: then five messages wait."""
    return QueueStatus(
        **{
            "path": Path("/queue/imx_1.db"),
            "sender": "imx",
            "system_serial": 1,
            "taken_at_ms": NOW,
            "condition": Condition.EMPTY,
            "waiting": 0 if oldest is None else 5,
            "in_flight": 0,
            "bytes_used": 1000,
            "max_queue_size": 1_000_000,
            "oldest_waiting_seconds": oldest,
            "rates": None,
            "empty_in_seconds": None,
            "delivery": delivery,
            "reader": replace(RUNNING, state=state),
            "rules": (),
            "waiting_streams": (),
            "dead_letters": 0,
            "dead_letter_bytes": 0,
            "last_1x_push_at_ms": None,
            "damaged_files": 0,
            "disk_free_bytes": 10**10,
            "books": NO_BOOKS,
            **more,
        }
    )


def troubles(found: judgement.Health) -> list[Trouble]:
    return [problem.trouble for problem in found.problems]


def failing(seconds: float, error: str = "the server is away", code: int | None = None) -> Delivery:
    return replace(
        GOOD,
        last_success_at_ms=ago(seconds),
        failing_since_ms=ago(seconds),
        last_error=error,
        last_status=code,
    )


@pytest.mark.parametrize(
    "well",
    [
        status(),
        status(replace(GOOD, last_success_at_ms=None)),
        status(oldest=1e6),  # a backlog that drains
        status(failing(119), oldest=119),
        status(failing(1e6), oldest=10),  # nothing waited until ten seconds ago
        status(state=ReaderState.NEVER),
        status(oldest=119, state=ReaderState.DIED),
        status(replace(GOOD, last_success_at_ms=NOW + 5_000_000), oldest=1e6),  # the clock was set back
        status(failing(1e6, code=401)),  # long ago, and nothing waits
        status(oldest=1, max_queue_size=None, bytes_used=10**12, disk_free_bytes=None),
        status(rates=Rates(5.0, 5.0, 0.0, 0.1)),
    ],
)
def test_a_queue_that_is_delivered_or_in_a_short_outage_is_well(well: QueueStatus) -> None:
    found = judge(well)
    assert found.problems == ()
    assert found.healthy
    assert found.reasons == ()
    assert found.since_ms is None


def test_nothing_delivered_for_two_minutes_while_messages_wait_is_bad_and_says_why_and_since_when() -> None:
    found = judge(status(failing(300, "10.0.0.1 refused the connection"), oldest=200))
    assert troubles(found) == [Trouble.STUCK]
    assert found.reasons == (
        "5 messages wait, and nothing was delivered for 3 min: 10.0.0.1 refused the connection",
    )
    assert (found.since_ms, found.last_success_at_ms, found.waiting) == (ago(200), ago(300), 5)


def test_a_reader_that_says_nothing_at_all_is_bad_too() -> None:
    """It hangs, or was never answered: no failure is on record."""
    assert troubles(judge(status(replace(GOOD, last_success_at_ms=ago(121)), oldest=1e5))) == [Trouble.STUCK]
    assert troubles(judge(status(replace(GOOD, last_success_at_ms=None), oldest=121))) == [Trouble.STUCK]


@pytest.mark.parametrize("state", [ReaderState.STOPPED, ReaderState.DIED, ReaderState.NEVER])
def test_without_a_reader_it_is_bad_once_messages_have_waited_in_vain(state: ReaderState) -> None:
    (problem,) = judge(status(replace(GOOD, last_success_at_ms=None), oldest=130, state=state)).problems
    assert problem.trouble is Trouble.NO_READER
    assert f"no reader runs ({state.value}); start one" in problem.text


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_token_is_bad_at_once(code: int) -> None:
    (problem,) = judge(status(failing(1, "the token is refused: check it", code), oldest=1)).problems
    assert (problem.trouble, problem.text) == (Trouble.TOKEN_REFUSED, "the token is refused: check it")


def test_a_suspect_server_is_bad_at_once() -> None:
    delivery = replace(GOOD, suspect_since_ms=ago(3), server="https://portal:443")
    (problem,) = judge(status(delivery, oldest=1)).problems
    assert (problem.trouble, problem.since_ms) == (Trouble.SUSPECT_SERVER, ago(3))
    assert problem.text.startswith("https://portal:443 refuses everything")


@pytest.mark.parametrize(
    ("bad", "trouble"),
    [
        ({"bytes_used": 950_000, "oldest": 1}, Trouble.AT_LIMIT),
        ({"disk_free_bytes": 1024 * 1024 - 1}, Trouble.DISK_FULL),
        ({"damaged_files": 1}, Trouble.DAMAGED_FILE),
        ({"rates": Rates(5.0, 0.0, 2.5, 0.1)}, Trouble.LOSSES),
    ],
)
def test_a_full_queue_or_disk_a_damaged_file_and_losses_while_one_looks_are_bad(
    bad: dict[str, Any], trouble: Trouble
) -> None:
    assert troubles(judge(status(**bad))) == [trouble]


def test_a_hung_thread_is_bad() -> None:
    (problem,) = judge(status(), hangs_for_seconds=500).problems
    assert (problem.trouble, problem.since_ms) == (Trouble.READER_HANGS, ago(500))
    assert "has not turned for 8 min" in problem.text


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_losses_and_refusals_count_for_a_quarter_of_an_hour_and_what_was_before_the_watch_does_not() -> None:
    clock = Clock()
    watch = HealthWatch(clock)
    books = replace(NO_BOOKS, trimmed=100, dead=3)
    assert watch.look(status(books=books)).healthy
    clock.now += 5
    books = replace(books, trimmed=107, dead=4, purged=50, dead_discarded=9)
    found = watch.look(status(books=books))
    assert found.reasons == (
        "7 messages were thrown away for want of room within the last 15 min",
        "1 messages were refused, or damaged, and are dead letters within the last 15 min",
    )
    for _ in range(89):
        clock.now += 10
        assert len(watch.look(status(books=books)).problems) == 2
    clock.now += 20
    assert watch.look(status(books=books)).healthy
    for _ in range(10_000):
        clock.now += 1
        watch.look(status(books=books))
    assert len(watch._seen) < 100


def test_who_looks_once_an_hour_hears_what_was_lost_in_that_hour() -> None:
    clock = Clock()
    watch = HealthWatch(clock)
    watch.look(status())
    clock.now += 3600
    lost = status(books=replace(NO_BOOKS, expired=1))
    assert troubles(watch.look(lost)) == [Trouble.LOSSES]
    clock.now += 3600
    assert watch.look(lost).healthy


# A real reader


def test_a_reader_is_well_while_it_delivers_and_says_when_it_last_did(
    server: RamenServer, writer: QueueWriter, reader: QueueReader
) -> None:
    assert reader.health().healthy
    writer.push("a", "b", 1, {})
    assert reader.health().waiting == 1
    reader.drain(10)
    found = reader.health()
    assert found.healthy
    assert found.last_success_at_ms is not None
    (seen,) = reader.observe()
    assert (seen.queue, seen.outages) == ("imx_1099", 0)


def test_a_refused_token_makes_the_reader_ill_at_once_and_the_right_one_well_again(
    server: RamenServer,
    writer: QueueWriter,
    reader: QueueReader,
    wait_until: Callable[..., None],
) -> None:
    server.default = Refuse("UNAUTHORIZED")
    writer.push("a", "b", 1, {})
    reader.start_thread()
    wait_until(lambda: troubles(reader.health()) == [Trouble.TOKEN_REFUSED])
    assert server.token not in str(reader.health())
    server.default = Accept()
    wait_until(lambda: reader.health().healthy)
    assert reader.observe()[0].outages == 1


def test_a_server_that_refuses_everything_without_the_protocol_makes_it_ill(
    server: RamenServer, writer: QueueWriter, reader: QueueReader, wait_until: Callable[..., None]
) -> None:
    server.default = Status(400)
    writer.push_many([("a", "b", 1, n) for n in range(6)])
    reader.start_thread()
    wait_until(lambda: Trouble.SUSPECT_SERVER in troubles(reader.health()))


def test_refused_messages_are_seen_although_nothing_waits_any_more(
    server: RamenServer, writer: QueueWriter, reader: QueueReader
) -> None:
    assert reader.health().healthy
    server.default = Refuse("BAD_REQUEST")
    writer.push("a", "b", 1, {})
    reader.drain(10)
    assert troubles(reader.health()) == [Trouble.REFUSALS]


def test_a_thread_that_waits_for_an_answer_does_not_hang_and_one_that_does_not_turn_does(
    server: RamenServer,
    writer: QueueWriter,
    reader: QueueReader,
    make_config: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("infi.ramen_client.delivery.stop.time.monotonic", clock)
    stop = reader._begin()
    assert reader.hangs_for() == 0
    stop._monotonic = clock
    stop.is_set()
    clock.now += 20 + 90
    assert reader.hangs_for() == 0
    clock.now += 1
    assert reader.hangs_for() == 111
    assert troubles(reader.health()) == [Trouble.READER_HANGS]
    stop.is_set()
    assert reader.health().healthy
    reader._end(stop)
    clock.now += 1000
    assert reader.hangs_for() == 0


def test_a_running_reader_turns_whatever_it_waits_for(
    server: RamenServer, writer: QueueWriter, open_reader: Any, make_config: Any, wait_until: Any
) -> None:
    """Idle; in an outage; and with a server that hangs, once the time-out is over."""
    reader = open_reader(make_config(server_timeout=1, retry_delay=60, polling_delay=3600))
    reader.start_thread()
    (stop,) = reader._stops

    def turns(within: float) -> bool:
        before = stop._due
        seen = threading.Event()
        return any(stop._due != before or seen.wait(0.01) for _ in range(int(within * 100)))

    assert turns(5), "idle"
    server.default = Hang()
    writer.push("a", "b", 1, {})
    server.wait_for_received(1, 10)
    assert turns(10), "while the server hangs"
    wait_until(lambda: reader.observe()[0].outages == 1)
    assert turns(10), "between two attempts"


def test_a_damaged_file_that_was_put_aside_is_seen_until_it_is_carried_over(
    writer: QueueWriter, reader: QueueReader, queue_dir: Path, wait_until: Callable[..., None]
) -> None:
    (queue_dir / "imx_1099.db.damaged-20260101T000000").write_bytes(b"no database" * 1000)
    assert troubles(reader.health()) == [Trouble.DAMAGED_FILE]
    reader.start_thread()
    wait_until(lambda: Trouble.DAMAGED_FILE not in troubles(reader.health()))


def test_a_queue_that_is_gone_or_closed_has_no_health(
    writer: QueueWriter, reader: QueueReader, queue_dir: Path
) -> None:
    (queue_dir / "imx_1099.db").unlink()
    with pytest.raises(QueueGone):
        reader.health()
    reader.close()
    with pytest.raises(QueueClosed):
        reader.health()
