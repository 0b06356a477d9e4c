"""docs/metrics.md and docs/logging.md are what the code says."""

from __future__ import annotations

import logging
import re
import runpy
from pathlib import Path

import pytest

from infi.ramen_client import health
from infi.ramen_client.delivery.outage import LogEvent
from infi.ramen_client.logging_handler import MAX_RECORD_BYTES, MAX_TEXT_CHARS, RamenHandler

ROOT = Path(__file__).parents[2]


def test_the_page_of_metrics_is_what_the_table_says() -> None:
    """Red: run ``python docs/make_metrics.py``."""
    module = runpy.run_path(str(ROOT / "docs" / "make_metrics.py"))
    assert module["page"]() == (ROOT / "docs" / "metrics.md").read_text()


def test_the_page_of_metrics_names_the_thresholds() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert f"have waited for {health.STUCK_AFTER_SECONDS:.0f} s" in text
    assert f"{health.AT_LIMIT_SHARE:.0%}".replace("%", " %") in text
    assert f"{health.RECENT_SECONDS / 60:.0f} minutes" in text
    assert health.DISK_FULL_BYTES == 1024 * 1024
    assert "1 MiB is free" in text


def rows(title: str) -> list[str]:
    """The first cells of the table under a heading of docs/logging.md."""
    section = (ROOT / "docs" / "logging.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


def test_the_page_of_logging_names_every_event() -> None:
    assert rows("What the library says, for programs")[: len(LogEvent)] == [event.value for event in LogEvent]


def test_the_page_of_logging_names_every_field_and_the_bounds() -> None:
    class Writer:
        def push(self, *arguments: object) -> None: ...

    handler = RamenHandler(Writer())  # type: ignore[arg-type]
    try:
        raise ValueError
    except ValueError as error:
        record = logging.LogRecord("a", 30, "b.py", 1, "m", (), (ValueError, error, None), "f", "Stack")
    fields = handler._fields(record, 100)
    assert rows("Records as messages") == [*fields, "extra", "extra_left_out"]
    text = (ROOT / "docs" / "logging.md").read_text()
    assert f"{MAX_TEXT_CHARS // 1024} Ki characters" in text
    assert f"{MAX_RECORD_BYTES // 1024} KiB" in text


@pytest.mark.parametrize("name", ["logging.md", "metrics.md"])
def test_the_readme_leads_to_both(name: str) -> None:
    assert f"(docs/{name})" in (ROOT / "README.md").read_text()
