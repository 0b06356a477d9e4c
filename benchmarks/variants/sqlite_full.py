"""What one would write first with the same SQLite: one table, ``synchronous=FULL``, a transaction for each message.

It has none of the queue's promises but durability: no ids, no checksums, no limit, no books, nothing that outlives a damaged file.
"""

from __future__ import annotations

import json
import zlib

import apsw

TYPE_CHECKING = False  # `typing` is not to be counted as an import of the measured
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


def open_writer(directory: str) -> Callable[[dict[str, Any]], object]:
    """Return a push."""
    connection = apsw.Connection(f"{directory}/messages.db")
    connection.set_busy_timeout(60_000)
    for setting in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {setting}")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS message (position INTEGER PRIMARY KEY, category TEXT, data_type TEXT, data BLOB)"
    )

    def push(sample: dict[str, Any]) -> None:
        data = zlib.compress(json.dumps(sample).encode())
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "INSERT INTO message (category, data_type, data) VALUES ('metrics', 'san_totals', ?)", (data,)
        )
        connection.execute("COMMIT")

    return push


def versions() -> dict[str, str]:
    return {"apsw": apsw.apsw_version(), "SQLite": apsw.sqlite_lib_version()}
