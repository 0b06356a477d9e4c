"""Waiting after failures, for whatever failures, limits, servers and dice."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_client.delivery.backoff import Backoff
from infi.ramen_protocol import MAX_RETRY_AFTER_SECONDS

dice = st.floats(0, 1, exclude_max=True)
limits = st.floats(0.01, 3600)
server_times = st.none() | st.floats(0, 1e9) | st.sampled_from([0.0, 1.0, 3600.0, 3600.5, math.inf])


@given(st.lists(dice, min_size=1, max_size=40), limits)
def test_without_a_word_from_the_server_the_delay_is_drawn_below_a_ceiling_that_doubles_up_to_the_limit(
    rolls: list[float], limit: float
) -> None:
    backoff = Backoff(iter(rolls).__next__)
    for count, roll in enumerate(rolls):
        assert backoff.failed(limit) == roll * min(limit, 2.0**count)


@given(dice, limits)
def test_the_first_delay_is_at_most_a_second_and_so_it_is_after_each_success(
    roll: float, limit: float
) -> None:
    backoff = Backoff(lambda: roll)
    for _ in range(3):
        assert backoff.failed(limit) <= 1
        backoff.failed(limit)
        backoff.succeeded()


@given(st.lists(st.tuples(dice, limits, server_times), min_size=1, max_size=30))
def test_the_servers_time_is_the_least_and_twice_it_the_most(
    steps: list[tuple[float, float, float | None]],
) -> None:
    backoff = Backoff(iter([roll for roll, _, _ in steps]).__next__)
    for _, limit, said in steps:
        delay = backoff.failed(limit, said)
        least = min(said or 0.0, MAX_RETRY_AFTER_SECONDS)
        assert least <= delay
        assert delay <= (2 * least if least >= 1 else least + limit)
        assert math.isfinite(delay)


def test_a_server_that_says_at_once_does_not_make_a_tight_loop() -> None:
    dice = random.Random(7)
    backoff = Backoff(dice.random)
    waited = [backoff.failed(30, 0.0) for _ in range(100)]
    assert sum(waited) > 1000


def test_full_jitter_spreads_many_clients_evenly() -> None:
    dice = random.Random(7)
    delays = []
    for _ in range(10_000):
        backoff = Backoff(dice.random)
        for _ in range(5):
            delay = backoff.failed(30)
        delays.append(delay)
    in_each_second = [sum(second <= delay < second + 1 for delay in delays) for second in range(16)]
    assert min(in_each_second) > 500
    assert max(in_each_second) < 750


def test_a_limit_that_changes_takes_effect_at_the_next_failure() -> None:
    backoff = Backoff(lambda: 0.999)
    for _ in range(20):
        backoff.failed(3600)
    assert backoff.failed(0.01) <= 0.01
    assert backoff.failed(3600) > 3000
