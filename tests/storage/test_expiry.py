"""Messages that are too old are removed unsent, and no clock that jumps makes a young one old."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from queues import (
    GIB,
    activate,
    assert_sound,
    make_1x_file,
    make_message,
    make_queue,
    push,
    query,
    settle_all,
    settlement,
)

from infi.ramen_client.storage import ActiveReader, Fate
from infi.ramen_client.storage._expiry import Clocks, Expiry, read_clocks

if TYPE_CHECKING:
    from pathlib import Path

    import apsw

    from infi.ramen_client.storage import Queue

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
YEAR = 365 * DAY
MAX_AGE = 7 * DAY
TODAY = 1_790_000_000_000


@dataclass
class Machine:
    """A machine's clocks, and how much time has truly gone by."""

    now: Clocks = field(default_factory=lambda: Clocks(TODAY, 50 * DAY, "first start"))
    truly: int = 0

    def pass_time(self, milliseconds: int) -> None:
        self.truly += milliseconds
        self.now = replace(
            self.now, wall_ms=self.now.wall_ms + milliseconds, steady_ms=self.now.steady_ms + milliseconds
        )

    def set_wall(self, difference: int) -> None:
        self.now = replace(self.now, wall_ms=self.now.wall_ms + difference)

    def restart(self, off: int, wall_difference: int = 0) -> None:
        self.truly += off
        self.now = Clocks(self.now.wall_ms + off + wall_difference, 20 * SECOND, f"start {self.truly}")

    def read(self) -> Clocks:
        return self.now


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def old(tmp_path: Path, machine: Machine) -> Queue:
    """A queue in which messages may become seven days old."""
    return aging(tmp_path / "queue", machine)


def aging(directory: Path, machine: Machine) -> Queue:
    queue = make_queue(directory, max_age_seconds=MAX_AGE / 1000)
    queue.expiry = Expiry(MAX_AGE / 1000, machine.read)
    return queue


def push_now(queue: Queue, machine: Machine, number: int = 1, size: int = 100) -> list[str]:
    return push(queue, number, size=size, pushed_at_ms=machine.now.wall_ms)


def look(queue: Queue) -> list[str]:
    """What a reader would send now; it gives all of it back."""
    reader = activate(queue)
    try:
        return [message.reqid for message in reader.claim(1000, GIB)]
    finally:
        reader.close()


def test_a_message_expires_when_it_is_too_old_and_is_counted_and_said(
    old: Queue, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    gone = push_now(old, machine, 3)
    assert look(old) == gone
    machine.pass_time(DAY)
    kept = push_now(old, machine, 2)
    machine.pass_time(MAX_AGE - DAY)
    assert look(old) == gone + kept
    machine.pass_time(1)
    with caplog.at_level(logging.WARNING, "ramen_client"):
        assert look(old) == kept
    books = old.books()
    assert (books.expired, books.waiting) == (3, 2)
    assert "3 messages were older than 604800.0 s (max_message_age_seconds)" in caplog.text
    assert_sound(old)


def test_without_a_greatest_age_nothing_expires_and_nothing_is_written_about_clocks(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    reqids = push(queue, 3, pushed_at_ms=0)
    assert look(queue) == reqids
    assert query(queue.path, "SELECT clock_boot FROM reader") is None


@pytest.mark.parametrize("jump", [YEAR, 56 * YEAR, 2 * MAX_AGE])
def test_a_clock_that_jumps_forward_makes_nothing_expire(old: Queue, machine: Machine, jump: int) -> None:
    reqids = push_now(old, machine, 3)
    look(old)
    machine.pass_time(HOUR)
    reqids += push_now(old, machine, 3)
    machine.set_wall(jump)
    reqids += push_now(old, machine, 3)
    for _ in range(13):
        assert look(old) == reqids
        machine.pass_time(12 * HOUR)
    machine.pass_time(2 * DAY)  # by now all are too old in truth
    assert look(old) == []
    assert old.books().expired == 9


def test_nor_when_the_reader_was_not_running_while_it_jumped(tmp_path: Path, machine: Machine) -> None:
    queue = aging(tmp_path, machine)
    reqids = push_now(queue, machine)
    look(queue)
    queue.close()
    machine.pass_time(DAY)
    machine.set_wall(10 * YEAR)
    machine.pass_time(DAY)
    queue = aging(tmp_path, machine)
    for _ in range(5):
        assert look(queue) == reqids
        machine.pass_time(DAY)


def test_a_clock_that_jumps_back_keeps_no_message_for_longer_than_the_allowed_age(
    old: Queue, machine: Machine
) -> None:
    push_now(old, machine, 3)
    look(old)
    machine.set_wall(-10 * YEAR)
    look(old)
    machine.pass_time(MAX_AGE)
    assert len(look(old)) == 3
    machine.pass_time(1)
    assert look(old) == []


def test_an_appliance_that_starts_in_the_year_2000_loses_nothing_when_its_time_server_answers(
    old: Queue, machine: Machine
) -> None:
    reqids = push_now(old, machine, 3)
    look(old)
    machine.restart(MINUTE, wall_difference=-26 * YEAR)
    reqids += push_now(old, machine, 3)
    assert look(old) == reqids
    machine.pass_time(2 * MINUTE)
    reqids += push_now(old, machine, 3)
    machine.set_wall(26 * YEAR)
    for _ in range(6):
        assert look(old) == reqids
        machine.pass_time(DAY)


def test_a_clock_that_starts_in_the_future_and_is_corrected_in_the_first_minutes_does_no_harm(
    old: Queue, machine: Machine
) -> None:
    reqids = push_now(old, machine, 3)
    look(old)
    machine.restart(MINUTE, wall_difference=YEAR)
    assert look(old) == reqids
    machine.pass_time(4 * MINUTE)
    assert look(old) == reqids
    machine.set_wall(-YEAR)
    machine.pass_time(10 * MINUTE)
    assert look(old) == reqids


def test_after_a_month_in_the_cupboard_old_messages_expire_once_the_clock_is_confirmed(
    old: Queue, machine: Machine
) -> None:
    reqids = push_now(old, machine, 3)
    look(old)
    machine.restart(30 * DAY)
    assert look(old) == reqids
    machine.pass_time(5 * MINUTE)
    assert look(old) == []


def test_small_corrections_of_the_clock_are_no_jumps_and_many_of_them_are(
    old: Queue, machine: Machine
) -> None:
    reqids = push_now(old, machine)
    look(old)
    machine.pass_time(MAX_AGE - 10 * MINUTE)
    for _ in range(59):
        machine.set_wall(SECOND)
        assert look(old) == reqids
    assert query(old.path, "SELECT counted_from FROM reader") == 0
    machine.set_wall(2 * SECOND)
    look(old)
    assert query(old.path, "SELECT counted_from FROM reader") == machine.now.wall_ms


def test_what_is_in_flight_does_not_expire(old: Queue, machine: Machine) -> None:
    reqids = push_now(old, machine, 5)
    look(old)
    query(
        old.path, "INSERT INTO flight (position, batch_id, place, sent_v1) VALUES (2, 7, 0, 0)"
    )  # a frozen batch
    machine.pass_time(2 * MAX_AGE)
    assert look(old) == []
    assert old.books().expired == 4
    assert query(old.path, "SELECT reqid FROM message") == reqids[1]
    assert_sound(old)


def test_what_was_claimed_may_be_settled_however_long_it_took(old: Queue, machine: Machine) -> None:
    push_now(old, machine, 5)
    reader = activate(old)
    claimed = reader.claim(2, GIB)
    machine.pass_time(2 * MAX_AGE)
    reader.settle([settlement(message, Fate.ACCEPTED) for message in claimed])
    assert reader.claim(64, GIB) == []
    reader.close()
    assert (old.books().accepted, old.books().expired) == (2, 3)
    assert_sound(old)


def test_a_dead_letter_that_was_brought_back_counts_from_its_retry(old: Queue, machine: Machine) -> None:
    push_now(old, machine, 2)
    reader = activate(old)
    settle_all(reader, Fate.DEAD)
    reader.close()
    machine.pass_time(3 * MAX_AGE)
    young = push_now(old, machine)
    old.retry_dead_letters([1, 2])
    query(old.path, f"UPDATE message SET retried_at = {machine.now.wall_ms} WHERE position = 1")
    query(old.path, f"UPDATE message SET retried_at = {machine.now.wall_ms - 2 * MAX_AGE} WHERE position = 2")
    assert len(look(old)) == 2
    assert old.books().expired == 1
    machine.pass_time(MAX_AGE + 1)
    young = push_now(old, machine)
    assert look(old) == young


@pytest.mark.parametrize("jump", [-10 * YEAR, 10 * YEAR])
def test_a_retry_counts_whether_it_came_before_or_after_a_jump_of_the_clock(
    old: Queue, machine: Machine, jump: int
) -> None:
    reqids = push_now(old, machine, 2)
    reader = activate(old)
    settle_all(reader, Fate.DEAD)
    reader.close()
    old.retry_dead_letters([1, 2])
    query(old.path, f"UPDATE message SET retried_at = {machine.now.wall_ms} WHERE position = 1")
    machine.set_wall(jump)
    look(old)
    machine.pass_time(5 * DAY)
    query(old.path, f"UPDATE message SET retried_at = {machine.now.wall_ms} WHERE position = 2")
    assert look(old) == reqids
    machine.pass_time(2 * DAY + 1)
    assert look(old) == reqids[1:]
    machine.pass_time(5 * DAY)
    assert look(old) == []


def test_many_go_in_small_steps_and_then_the_young_ones_are_sent(old: Queue, machine: Machine) -> None:
    old.push([make_message(size=50, pushed_at_ms=machine.now.wall_ms) for _ in range(1000)])
    push_now(old, machine, 4, size=700_000)
    look(old)
    machine.pass_time(MAX_AGE + 1)
    young = push_now(old, machine, 2)
    steps: list[int] = []
    expiry = old.expiry
    assert expiry is not None

    def counted(connection: apsw.Connection) -> int:
        steps.append(Expiry.expire(expiry, connection))
        return steps[-1]

    expiry.expire = counted  # type: ignore[method-assign]
    assert look(old) == young
    assert steps == [200, 200, 200, 200, 200, 2, 2, 0]
    assert old.books().expired == 1004
    assert_sound(old)


def test_a_stop_does_not_wait_until_all_are_gone(old: Queue, machine: Machine) -> None:
    old.push([make_message(size=50, pushed_at_ms=machine.now.wall_ms) for _ in range(1000)])
    look(old)
    machine.pass_time(MAX_AGE + 1)
    reader = ActiveReader.activate(old, lambda: True)
    assert reader is not None
    assert reader.claim(64, GIB) == []
    reader.close()
    assert old.books().expired == 200


def test_a_row_whose_time_is_damaged_becomes_a_dead_letter_and_does_not_expire(
    old: Queue, machine: Machine
) -> None:
    reqids = push_now(old, machine, 3)
    look(old)
    query(old.path, "UPDATE message SET pushed_at = 12 WHERE position = 2")
    machine.pass_time(DAY)
    assert look(old) == [reqids[0], reqids[2]]
    assert (old.books().expired, old.books().dead) == (0, 1)


def test_the_backlog_of_1x_expires_by_its_own_time(tmp_path: Path, machine: Machine) -> None:
    path = tmp_path / "imx_1099.db"
    make_1x_file(path, 300)
    query(
        path,
        f"UPDATE queue SET ts = datetime({(machine.now.wall_ms - 2 * MAX_AGE) // 1000}, 'unixepoch') WHERE id <= 250",
    )
    query(path, f"UPDATE queue SET ts = datetime({machine.now.wall_ms // 1000}, 'unixepoch') WHERE id > 250")
    queue = aging(tmp_path, machine)
    look(queue)
    machine.pass_time(HOUR)
    assert len(look(queue)) == 50
    assert queue.books().expired == 250
    assert_sound(queue)


def test_an_idle_queue_is_not_written_to_for_the_clocks_sake(old: Queue, machine: Machine) -> None:
    push_now(old, machine)
    reader = activate(old)
    reader.claim(64, GIB)
    changes = query(old.path, "PRAGMA data_version"), query(old.path, "SELECT clock_steady FROM reader")
    machine.pass_time(HOUR)
    reader.claim(64, GIB)
    assert query(old.path, "SELECT clock_steady FROM reader") == changes[1] == 50 * DAY
    reader.close()


def test_the_clocks_of_this_machine_go_on_and_agree() -> None:
    first, second = read_clocks(), read_clocks()
    assert first.boot == second.boot != ""
    assert 0 <= second.steady_ms - first.steady_ms < 10_000
    assert abs((second.wall_ms - first.wall_ms) - (second.steady_ms - first.steady_ms)) < 1000


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.just(0)),
        st.tuples(st.just("pass"), st.sampled_from([MINUTE, HOUR, DAY, 3 * DAY, MAX_AGE + 1])),
        st.tuples(st.just("set"), st.sampled_from([-30 * YEAR, -DAY, -HOUR, HOUR, DAY, YEAR, 30 * YEAR])),
    ),
    max_size=25,
)


@settings(max_examples=40)
@given(events=EVENTS)
def test_whatever_a_clock_does_under_a_readers_eyes_nothing_expires_before_its_time(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[str, int]]
) -> None:
    machine = Machine()
    queue = aging(tmp_path_factory.mktemp("queue"), machine)
    pushed_at: dict[str, int] = {}
    jumped_at = 0
    (reqid,) = push_now(queue, machine)
    pushed_at[reqid] = 0
    look(queue)
    for event, amount in events:
        if event == "push":
            (reqid,) = push_now(queue, machine)
            pushed_at[reqid] = machine.truly
        elif event == "pass":
            machine.pass_time(amount)
        else:
            machine.set_wall(amount)
            jumped_at = machine.truly
        if queue.size() == 0:
            (reqid,) = push_now(queue, machine)  # a reader looks at the clock when it has something to send
            pushed_at[reqid] = machine.truly
        there = set(look(queue))
        for reqid, at in pushed_at.items():
            age = machine.truly - at
            assert reqid in there or age >= MAX_AGE - MINUTE
            assert (
                reqid not in there or age <= MAX_AGE + MINUTE or machine.truly - jumped_at <= MAX_AGE + MINUTE
            )
        pushed_at = {reqid: at for reqid, at in pushed_at.items() if reqid in there}
    assert_sound(queue)
    queue.close()
