"""Reading of the embedded store: what any process may do while a collector writes."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from infi.ramen_protocol import Envelope
from infi.ramen_server import _files

from . import EXPORT_PAGE_BYTES, EXPORT_PAGE_MESSAGES, Selection, StoredMessage, Totals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

APPLICATION_ID = 0x524D4353
FORMAT = 1
FILE_NAME = "messages.db"

_COLUMNS = "received_at, position, token, category, system_serial, sender, data_type, data_version, system_version, reqid"


class SqliteArchive:
    """The messages in a data directory, for reading. Raises ``UnusableFile`` when no collector ever ran there."""

    def __init__(self, directory: Path) -> None:
        kind = _files.Kind(APPLICATION_ID, FORMAT, "", lambda _connection: None)
        self._lock = threading.Lock()  # guards the connection; held for one page at most
        self._connection = _files.open_for_reading(directory / FILE_NAME, kind)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def totals(self) -> Totals:
        """Tell the books: one row is read, whatever the store holds."""
        with self._lock:
            row = self._connection.execute("SELECT messages, payload_bytes, duplicates FROM book").get
        return Totals(*row)

    def export(self, selection: Selection) -> Iterator[StoredMessage]:
        """Give the selected messages by (time received, position); as ``Store.export``."""
        after: tuple[int, int] | None = None
        while True:
            page, after = self._page(selection, after)
            yield from page
            if after is None:
                return

    def _page(
        self, selection: Selection, after: tuple[int, int] | None
    ) -> tuple[list[StoredMessage], tuple[int, int] | None]:
        """Read one page; the second value is where the next one begins, None at the end."""
        conditions, values = _conditions(selection)
        if after is not None:
            conditions.append("(received_at, position) > (?, ?)")
            values += after
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        query = (
            f"SELECT {_COLUMNS}, CAST(payload AS BLOB) FROM message {where} "  # noqa: S608 - our own text
            f"ORDER BY received_at, position LIMIT {EXPORT_PAGE_MESSAGES}"
        )
        page: list[StoredMessage] = []
        size = 0
        with self._lock:
            cursor = self._connection.execute(query, values)
            for received_at, position, token, *parts, payload in cursor:
                category, serial, sender, data_type, data_version, system_version, reqid = parts
                envelope = Envelope(category, serial, sender, data_type, data_version, system_version, reqid)
                page.append(StoredMessage(position, received_at, token, envelope, payload))
                size += len(payload)
                if size >= EXPORT_PAGE_BYTES:
                    break
            else:
                if len(page) < EXPORT_PAGE_MESSAGES:
                    return page, None
            cursor.close()
        return page, (page[-1].received_at_ms, page[-1].position)


def _conditions(selection: Selection) -> tuple[list[str], list[int | str]]:
    wanted: tuple[tuple[str, int | str | None], ...] = (
        ("received_at >= ?", selection.received_from_ms),
        ("received_at < ?", selection.received_before_ms),
        ("category = ?", selection.category),
        ("data_type = ?", selection.data_type),
        ("sender = ?", selection.sender),
        ("system_serial = ?", selection.system_serial),
    )
    given = [(condition, value) for condition, value in wanted if value is not None]
    return [condition for condition, _ in given], [value for _, value in given]
