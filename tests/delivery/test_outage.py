"""The lines of an outage: one when it begins, one an hour while it lasts, one when it ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from infi.ramen_client.delivery.outage import LogEvent, OutageLog
from infi.ramen_client.storage import ReqidOrigin, StoredMessage

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


FIELDS = (
    "event",
    "queue",
    "server",
    "reason",
    "reason_kind",
    "waiting",
    "attempts",
    "lasted_seconds",
    "messages",
)


def fields(record: logging.LogRecord) -> dict[str, object]:
    """What a line says for programs."""
    return {name: getattr(record, f"ramen_{name}") for name in FIELDS if hasattr(record, f"ramen_{name}")}


def test_an_outage_of_30_seconds_is_two_lines_that_say_how_long_it_was_and_how_many_waited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    log = OutageLog("imx_1", monotonic=clock)
    log.succeeded(SERVER, lambda: 0)
    for second in range(30):
        log.failed("10.0.0.1 refused the connection", SERVER, 2 + second, kind="connect")
        clock.now += 1
    log.succeeded(SERVER, lambda: 31)
    log.succeeded(SERVER, lambda: 0)
    assert [(record.levelname, record.name, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "ramen_client",
            f"imx_1: delivery to {SERVER} does not work: 10.0.0.1 refused the connection; retrying, 2 waiting",
        ),
        (
            "WARNING",
            "ramen_client",
            f"imx_1: delivery to {SERVER} works again after 30 s (failed attempts: 30); 31 waiting",
        ),
    ]
    assert [fields(record) for record in caplog.records] == [
        {
            "event": "outage_began",
            "queue": "imx_1",
            "server": SERVER,
            "reason": "10.0.0.1 refused the connection",
            "reason_kind": "connect",
            "waiting": 2,
            "attempts": 1,
        },
        {
            "event": "outage_ended",
            "queue": "imx_1",
            "server": SERVER,
            "waiting": 31,
            "attempts": 30,
            "lasted_seconds": 30.0,
        },
    ]
    assert all(record.exc_info is None for record in caplog.records)
    assert log.outages == 1


def test_a_program_whose_own_records_have_such_names_is_not_disturbed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """``logging`` raises ``KeyError`` for an attribute that the record has already."""
    factory = logging.getLogRecordFactory()

    def their_own(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = factory(*arguments, **named)
        for name in FIELDS:
            setattr(record, name, "theirs")
        return record

    logging.setLogRecordFactory(their_own)
    try:
        OutageLog("imx_1").failed("away", SERVER, 1)
    finally:
        logging.setLogRecordFactory(factory)
    assert fields(caplog.records[0])["queue"] == "imx_1"


def test_every_line_names_its_event_its_queue_and_its_server_for_programs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock()
    log = OutageLog("imx_1", monotonic=clock)
    message = StoredMessage(1, "a", "b", 1, "1", "id", ReqidOrigin.PUSH, 0, 2, 0, b"")
    log.failed("away", SERVER, 1)
    clock.now += 3600
    log.failed("away", SERVER, 1)
    log.succeeded(SERVER, lambda: 0)
    for _ in range(3):
        log.refused("no", SERVER, message, explained=True)
    log.say_rest()
    log.put_back(SERVER, 5)
    found = [fields(record) for record in caplog.records]
    assert [one["event"] for one in found] == [event.value for event in LogEvent]
    assert all((one["queue"], one["server"]) == ("imx_1", SERVER) for one in found)
    assert [one.get("messages") for one in found] == [None, None, None, 1, 2, 5]
    assert found[1]["lasted_seconds"] == 3600
