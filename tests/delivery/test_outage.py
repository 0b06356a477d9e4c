"""The lines of an outage: one when it begins, one an hour while it lasts, one when it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infi.ramen_client.delivery.outage import OutageLog

if TYPE_CHECKING:
    import pytest

SERVER = "https://ramen.example:443"


class Clock:
    now = 5000.0

    def __call__(self) -> float:
        return self.now


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return lines


def test_an_outage_that_lasts_is_said_again_each_hour_with_its_length(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    log = OutageLog("imx_1", monotonic=clock)
    log.failed("refused", SERVER, 3)
    assert said(caplog) == [f"imx_1: delivery to {SERVER} does not work: refused; retrying, 3 waiting"]
    for _ in range(3 * 120):  # three hours of an attempt every 30 s
        clock.now += 30
        log.failed("refused", SERVER, 5)
    assert said(caplog) == [
        f"imx_1: delivery to {SERVER} has not worked for {length} (failed attempts: {attempts}): refused; retrying, 5 waiting"
        for length, attempts in (("60 min", 121), ("2 h", 241), ("3 h", 361))
    ]
    log.succeeded(SERVER, lambda: 5)
    assert said(caplog) == [
        f"imx_1: delivery to {SERVER} works again after 10800 s (failed attempts: 361); 5 waiting"
    ]


def test_a_reason_that_changes_is_said_at_most_once_a_minute_and_puts_the_reminder_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    log = OutageLog("imx_1", monotonic=clock)
    log.failed("refused", SERVER, 1)
    clock.now += 59
    log.failed("reset", SERVER, 1)
    assert len(said(caplog)) == 1
    clock.now += 1
    log.failed("reset", SERVER, 1)
    assert said(caplog) == [
        f"imx_1: delivery to {SERVER} has not worked for 60 s (failed attempts: 3): reset; retrying, 1 waiting"
    ]
    clock.now += 3599
    log.failed("reset", SERVER, 1)
    assert said(caplog) == []
    clock.now += 1
    log.failed("reset", SERVER, 1)
    assert len(said(caplog)) == 1


def test_after_an_outage_the_next_one_begins_anew(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = OutageLog("imx_1", monotonic=clock)
    for _ in range(2):
        log.failed("refused", SERVER, 1)
        log.succeeded(SERVER, lambda: 0)
    log.succeeded(SERVER, lambda: 0)
    assert [line.rpartition(";")[0].split(": ")[1] for line in said(caplog)] == [
        f"delivery to {SERVER} does not work",
        f"delivery to {SERVER} works again after 0 s (failed attempts",
    ] * 2
