"""Pacing: whatever fails, succeeds and is named, nothing goes too early, too much at once, or never."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_client.delivery.pacing import Pacing

if TYPE_CHECKING:
    from collections.abc import Callable

HOUR = 3600.0
dice = st.floats(0, 1, exclude_max=True)
limits = st.floats(0.01, HOUR)
windows = st.integers(1, 64)
named_times = st.none() | st.floats(0, 1e9) | st.sampled_from([0.0, 1.0, HOUR, HOUR + 0.5, math.inf])


class Die:
    """Rolls what it is told to."""

    value = 0.999

    def __call__(self) -> float:
        return self.value


def pacing(
    chance: Callable[[], float] | None = None,
    *,
    max_in_flight: int = 8,
    retry_delay: float = 30.0,
    cap: float | None = None,
) -> Pacing:
    return Pacing(
        max_in_flight=max_in_flight,
        retry_delay_seconds=retry_delay,
        max_bytes_per_second=cap,
        chance=chance or Die(),
    )


def fail(paced: Pacing, now: float, times: int = 1) -> float:
    """Let rounds fail, each as soon as it may start; the time of the last failure."""
    for _ in range(times):
        now += paced.may_start(now, 0)
        paced.congested(now, paced.started(now, 1))
    return now


def succeed(paced: Pacing, now: float, *, until: float) -> list[float]:
    """Let one request at a time succeed after 10 ms; the times of the starts."""
    starts = []
    while now < until:
        now += paced.may_start(now, 0)
        starts.append(now)
        number = paced.started(now, 1)
        now += 0.01
        paced.succeeded(now, number)
    return starts


# Whatever happens


@given(
    st.data(),
    windows,
    limits,
    st.none() | st.floats(1, 1e9),
    st.lists(
        st.tuples(
            st.sampled_from(["start", "start", "succeed", "congest", "abandon", "wait"]),
            st.floats(0, 100),
            st.integers(0, 63),
            named_times,
        ),
        max_size=60,
    ),
)
def test_nothing_starts_before_a_named_time_the_window_keeps_its_bounds_and_there_is_no_deadlock(
    data: st.DataObject,
    max_in_flight: int,
    limit: float,
    cap: float | None,
    acts: list[tuple[str, float, int, float | None]],
) -> None:
    roll = random.Random(data.draw(st.integers(0, 1000))).random
    paced = pacing(roll, max_in_flight=max_in_flight, retry_delay=limit, cap=cap)
    now = named_until = 0.0
    in_flight: list[int] = []
    for act, seconds, which, named in acts:
        if act == "start" and paced.may_start(now, len(in_flight)) == 0:
            assert now >= named_until
            assert len(in_flight) < paced.window
            in_flight.append(paced.started(now, int(seconds * 100)))
        elif act == "wait":
            now += seconds
        elif in_flight:
            number = in_flight.pop(which % len(in_flight))
            if act == "succeed":
                paced.succeeded(now, number)
            elif act == "congest":
                paced.congested(now, number, named)
                named_until = max(named_until, now + min(named or 0.0, HOUR))
        assert 1 <= paced.window <= max_in_flight
        # However much was started: an hour, what is drawn on top, and the bytes that are to be paid for.
        assert paced.may_start(now, 0) <= HOUR + limit + (0 if cap is None else 60 * 10_000 / cap)
        assert paced.may_start(now, paced.window) == math.inf
    # After one success, and in the time that the ceiling takes to sink, nothing is in the way any more.
    paced.max_bytes_per_second = None
    now += paced.may_start(now, 0)
    paced.succeeded(now, paced.started(now, 1))
    now += 6 * HOUR
    assert paced.may_start(now, 0) == 0
    for _ in range(max_in_flight**2):
        paced.succeeded(now, paced.started(now, 1))
    assert paced.window == max_in_flight
    assert paced.may_start(now, max_in_flight - 1) == 0


# After failures


@given(st.lists(dice, min_size=1, max_size=40), limits)
def test_without_a_word_from_the_server_the_delay_is_drawn_below_a_ceiling_that_doubles_up_to_the_limit(
    rolls: list[float], limit: float
) -> None:
    die = Die()
    paced = pacing(die, retry_delay=limit)
    now = 0.0
    for count, die.value in enumerate(rolls):
        paced.congested(now, paced.started(now, 1))
        assert paced.failures == count + 1
        assert (
            paced.may_start(now, 0)
            == paced.pause_left(now)
            == pytest.approx(die.value * min(limit, 2.0**count))
        )
        now += paced.pause_left(now)


def test_a_pause_takes_the_place_of_a_gap_that_was_drawn_before() -> None:
    die = Die()
    paced = pacing(die)
    now = fail(paced, 0.0, times=5)
    now += paced.pause_left(now)
    number = paced.started(now, 1)
    die.value = 0.25
    paced.congested(now, number)
    assert paced.may_start(now, 0) == pytest.approx(0.25 * 30)


@given(st.lists(st.tuples(dice, named_times), min_size=1, max_size=30), limits)
def test_the_servers_time_is_the_least_and_what_is_added_spreads_those_it_named_to(
    steps: list[tuple[float, float | None]], limit: float
) -> None:
    die = Die()
    paced = pacing(die, retry_delay=limit)
    now = ladder = 0.0
    for die.value, named in steps:
        paced.congested(now, paced.started(now, 1), named)
        least = min(named or 0.0, HOUR)
        ladder = min(limit, max(1.0, 2 * ladder, least))
        if least:
            assert paced.may_start(math.nextafter(now + least, -math.inf), 0) > 0
        assert paced.pause_left(now) == pytest.approx(least + die.value * ladder, abs=1e-6)
        now += paced.pause_left(now)


def test_a_server_that_says_at_once_does_not_make_a_tight_loop() -> None:
    paced = pacing(random.Random(7).random)
    now = 0.0
    for _ in range(100):
        paced.congested(now, paced.started(now, 1), 0.0)
        now += paced.may_start(now, 0)
    assert now > 1000


def test_full_jitter_spreads_many_clients_evenly() -> None:
    roll = random.Random(7).random
    delays = []
    for _ in range(10_000):
        paced = pacing(roll)
        delays.append(paced.pause_left(fail(paced, 0.0, times=5)))
    in_each_second = [sum(second <= delay < second + 1 for delay in delays) for second in range(16)]
    assert min(in_each_second) > 500
    assert max(in_each_second) < 750


def test_a_date_that_all_were_told_does_not_bring_them_all_at_once() -> None:
    roll = random.Random(7).random
    comes_at = []
    for told_at in range(1000):
        paced = pacing(roll)
        paced.congested(told_at, paced.started(told_at, 1), 2000.0 - told_at)
        comes_at.append(told_at + paced.may_start(told_at, 0))
    assert min(comes_at) >= 2000
    in_each_second = [sum(second <= at - 2000 < second + 1 for at in comes_at) for second in range(30)]
    assert max(in_each_second) < 70


def test_limits_that_change_take_effect() -> None:
    paced = pacing(retry_delay=HOUR, max_in_flight=2)
    now = fail(paced, 0.0, times=20)
    now += paced.pause_left(now)
    paced.retry_delay_seconds = 0.01
    now = fail(paced, now)
    assert paced.pause_left(now) < 0.01
    paced.max_in_flight = 20
    for _ in range(400):
        paced.succeeded(now, paced.started(now, 1))
    assert paced.window == 20
    paced.max_in_flight = 3
    assert paced.window == 3


# Rounds


def test_what_was_in_flight_together_fails_only_once() -> None:
    paced = pacing()
    numbers = [paced.started(0.0, 1) for _ in range(8)]
    for number in numbers:
        paced.congested(5.0, number)
    assert paced.failures == 1
    assert paced.window == 4
    assert paced.pause_left(5.0) <= 1


def test_a_straggler_of_an_earlier_round_neither_slows_nor_speeds_what_came_after() -> None:
    paced = pacing()
    straggler, lucky, failed = (paced.started(0.0, 1) for _ in range(3))
    paced.congested(0.0, failed)
    pause = paced.pause_left(0.0)
    assert not paced.succeeded(0.1, lucky)
    assert paced.failures == 1
    assert paced.pause_left(0.0) == pause
    succeed(paced, 1.0, until=60.0)
    assert paced.window == 8
    paced.congested(60.0, straggler)
    assert paced.window == 8
    assert paced.may_start(60.0, 7) == 0


def test_of_what_a_round_names_the_latest_time_is_obeyed() -> None:
    die = Die()
    paced = pacing(die)
    first, second, third, fourth = (paced.started(0.0, 1) for _ in range(4))
    die.value = 0.1
    paced.congested(0.0, first)
    die.value = 0.999
    paced.congested(0.0, second)
    assert paced.may_start(0.0, 0) == 0.1
    paced.congested(0.1, third, 100.0)
    assert 100.1 <= paced.may_start(0.0, 0) <= 130.1
    pause = paced.may_start(0.2, 0)
    paced.congested(0.2, fourth, 5.0)
    assert paced.may_start(0.2, 0) == pause
    assert paced.failures == 1


def test_a_success_does_not_lift_a_named_time() -> None:
    paced = pacing()
    paced.congested(0.0, paced.started(0.0, 1), 50.0)
    forced = paced.started(1.0, 1)
    assert paced.succeeded(2.0, forced)
    assert paced.may_start(2.0, 0) >= 48


# Coming back


def test_after_a_lone_failure_it_is_at_full_speed_again_within_seconds() -> None:
    paced = pacing(random.Random(1).random)
    starts = succeed(paced, fail(paced, 0.0), until=6.0)
    assert max(starts[1:]) > 5.9
    late = [at for at in starts if at > 5.1]
    assert len(late) >= 80  # every 10 ms, as fast as answers come
    assert paced.window == 8


def test_after_an_outage_it_begins_alone_and_speeds_up_in_the_course_of_two_minutes() -> None:
    paced = pacing(random.Random(1).random)
    now = fail(paced, 0.0, times=12)
    assert paced.window == 1
    begin = now + paced.pause_left(now)
    starts = [at - begin for at in succeed(paced, now, until=begin + 130)]
    per_half_minute = [sum(since <= at < since + 30 for at in starts) for since in range(0, 120, 30)]
    assert max(per_half_minute[:2]) <= 8
    assert per_half_minute[3] >= 3 * per_half_minute[0]
    assert sum(120 <= at < 129 for at in starts) >= 850
    assert paced.window == 8


def test_a_refusal_on_the_way_back_doubles_the_gaps_that_were_reached_not_the_first_ones() -> None:
    paced = pacing()
    now = fail(paced, 0.0, times=12)
    now += paced.pause_left(now)
    paced.succeeded(now, paced.started(now, 1))
    for since, ceiling in ((100, 10), (16, 12), (28, 10), (100, 1)):
        now = fail(paced, now + since)
        assert paced.pause_left(now) == pytest.approx(0.999 * ceiling)
        now += paced.pause_left(now)
        paced.succeeded(now, paced.started(now, 1))


def test_the_window_halves_grows_by_one_a_round_trip_and_starts_at_one_after_the_second_failure() -> None:
    paced = pacing(max_in_flight=16)
    assert paced.window == 16
    now = fail(paced, 0.0)
    assert paced.window == 8
    for window in range(8, 16):
        assert paced.window == window
        for number in [paced.started(now, 1) for _ in range(window + 1)]:
            paced.succeeded(now, number)
    assert paced.window == 16
    fail(paced, now, times=2)
    assert paced.window == 1


def test_one_in_flight_stays_one_in_flight() -> None:
    paced = pacing(max_in_flight=1)
    for now in range(0, 1000, 100):
        assert paced.window == 1
        assert paced.may_start(now, 1) == math.inf
        fail(paced, now, times=now // 300)
        paced.succeeded(now + 99, paced.started(now + 99, 1))


# Over restarts


def test_a_loop_of_restarts_sends_no_more_than_one_process() -> None:
    roll = random.Random(5).random
    now, kept, attempts = 0.0, (0, 0.0), 0
    while now < 3600:
        paced = pacing(roll)
        paced.restore(now, failures=kept[0], not_before=kept[1])
        if paced.may_start(now, 0) == 0:
            attempts += 1
            paced.congested(now, paced.started(now, 1))
            kept = (paced.failures, now + paced.pause_left(now))
        now += 0.1  # it is killed, and starts anew
    assert attempts < 3600 / 15 * 1.2 + 6


@given(st.integers(0, 10**6), st.floats(-1e12, 1e12), limits)
def test_whatever_was_kept_an_attempt_comes_within_the_hour_and_carefully(
    failures: int, not_before: float, limit: float
) -> None:
    paced = pacing(retry_delay=limit)
    paced.restore(1000.0, failures=failures, not_before=not_before)
    wait = paced.may_start(1000.0, 0)
    assert wait == min(max(0.0, not_before - 1000.0), HOUR)
    assert paced.window == (1 if failures else 8)
    now = fail(paced, 1000.0 + wait)
    assert paced.failures == failures + 1
    assert paced.pause_left(now) == pytest.approx(0.999 * min(limit, 2.0 ** min(failures, 12)))


# The cap


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=50), st.floats(1, 1e9))
def test_the_bytes_of_any_stretch_keep_to_the_cap_but_for_one_request(sizes: list[int], cap: float) -> None:
    paced = pacing(cap=cap)
    now = 0.0
    starts = []
    for size in sizes:
        now += paced.may_start(now, 0)
        paced.succeeded(now, paced.started(now, size))
        starts.append(now)
    for first in range(len(sizes)):
        seconds = starts[-1] - starts[first]
        assert sum(sizes[first:-1]) <= cap * seconds * (1 + 1e-6) + 1
    assert starts[-1] <= sum(sizes[:-1]) / cap * (1 + 1e-6)


def test_an_idle_time_saves_up_nothing() -> None:
    paced = pacing(cap=1000)
    paced.started(0.0, 1000)
    assert paced.may_start(500.0, 0) == 0
    paced.started(500.0, 3000)
    assert paced.may_start(500.0, 0) == 3
    paced.max_bytes_per_second = None
    paced.started(503.0, 10**9)
    assert paced.may_start(503.0, 0) == 0
