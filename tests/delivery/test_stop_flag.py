"""The flag that ends a run also shows whether the run still turns."""

from __future__ import annotations

import threading

from infi.ramen_client.delivery.stop import Stop


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_run_that_looks_is_not_silent_and_one_that_does_not_is() -> None:
    clock = Clock()
    stop = Stop(clock)
    assert stop.silent_seconds() == 0
    clock.now += 7
    assert stop.silent_seconds() == 7
    assert not stop.is_set()
    assert stop.silent_seconds() == 0


def test_a_run_that_said_it_would_wait_is_silent_only_after_that() -> None:
    clock = Clock()
    stop = Stop(clock)
    waiting = threading.Thread(target=stop.wait, args=(30,))
    waiting.start()
    while stop._due == 100.0:
        pass
    clock.now += 29
    assert stop.silent_seconds() == 0
    clock.now += 3
    assert stop.silent_seconds() == 2
    stop.set()
    waiting.join(20)
    assert stop.silent_seconds() == 0


def test_setting_it_is_not_the_run_looking() -> None:
    clock = Clock()
    stop = Stop(clock)
    clock.now += 5
    stop.set()
    assert stop.silent_seconds() == 5
