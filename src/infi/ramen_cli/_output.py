"""What commands print: tables and numbers for people, JSON for machines.

Text that came from outside (a server's words, names in a damaged row) goes to a terminal only through ``one_line``,
``printable_lines`` or ``table``, so no control character but line ends and tabs reaches it.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING

import click

from infi.ramen_protocol._text import clean_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from infi.ramen_client.health import Health

_CELL_CHARS = 200
_BYTE_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_AGE_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def table(rows: Iterable[Sequence[object]], headers: Sequence[str]) -> str:
    """Columns under their headers, as text without a final line end; numbers stand right, the rest left.

    A cell is its ``str``, on one line; None is empty.
    """
    given = [list(row) for row in rows]
    right = [
        bool(given) and all(isinstance(row[column], int | float | None) for row in given)
        for column in range(len(headers))
    ]
    cells = [list(headers)]
    cells += [["" if cell is None else one_line(str(cell)) for cell in row] for row in given]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headers))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in cells
    )


def write_json(value: object) -> None:
    """Write one JSON document to stdout, indented. Numbers must be finite."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def health_as_json(health: Health) -> dict[str, Any]:
    """A judgement as ``/healthz`` and ``ramen status --json`` have it."""
    return {
        "healthy": health.healthy,
        "since": health.since_ms,
        "waiting": health.waiting,
        "oldest_waiting_seconds": health.oldest_waiting_seconds,
        "last_success_at": health.last_success_at_ms,
        "problems": [
            {"trouble": problem.trouble.value, "text": problem.text, "since": problem.since_ms}
            for problem in health.problems
        ],
    }


def one_line(text: str, max_chars: int = _CELL_CHARS) -> str:
    """``text`` fit for a terminal: one line of printable characters, at most ``max_chars``."""
    return clean_text(text, max_chars)


def printable_lines(text: str) -> str:
    """``text`` fit for a terminal, with its lines and blank space; what else is not printable becomes a space."""
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def human_bytes(count: int) -> str:
    """As ``640 B``, ``1.5 KiB``, ``5.0 GiB``."""
    if abs(count) < 1024:  # noqa: PLR2004
        return f"{count} B"
    size = float(count)
    unit = ""
    for unit in _BYTE_UNITS:  # noqa: B007 - the last one seen is the size's
        size /= 1024
        if abs(size) < 1023.95:  # noqa: PLR2004 - what would be rounded to 1024.0 is one of the next unit
            break
    return f"{size:.1f} {unit}"


def human_age(seconds: float) -> str:
    """A length of time by its two largest units, as ``0.3 s``, ``45 s``, ``3 min 20 s``, ``2 d 4 h``."""
    if abs(seconds) < 1:
        return f"{seconds:.1f} s"
    left = int(abs(seconds))
    said: list[str] = []
    for unit, length in _AGE_UNITS:
        count, left = divmod(left, length)
        if count:
            said.append(f"{count} {unit}")
        elif said:
            break
    return ("-" if seconds < 0 else "") + " ".join(said[:2])


def human_time(milliseconds: int) -> str:
    """A time of the queue's file as local time, ``2026-11-23 23:50:12``; what is no such time (a damaged row) as the number."""
    try:
        return f"{datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, OSError, ValueError):
        return f"{milliseconds} ms"
