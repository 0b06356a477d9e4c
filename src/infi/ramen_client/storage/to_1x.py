"""The way back: the waiting messages of a queue as a file that a program of 1.x opens and delivers.

It is a copy, and the queue stays as it is: no message can get lost between two files, whoever is killed when. So whoever goes on with
both sends each message twice, under the same reqid; who goes back for good purges the queue when 1.x has what it needs.

- All that waits at one instant, in its order: one read transaction, as for ``check``. What is pushed later is not in it, and is counted.
- No reader may live meanwhile, so nothing is in flight but what a killed one left; that is copied as well, since nobody knows whether
  it arrived. What can be read of a damaged file that was put aside is carried over first.
- The file appears under its name when it is whole and synced, never over another. Who is killed leaves ``X.db.unfinished``, which the
  next one removes.
- Ids go over as they are sent: 1.x puts them into its URL as they stand, so what no URL can hold is percent-encoded here.
- The file's row numbers begin at the present time in microseconds: they are the ids of what 1.x will push, and must be new.
- 1.x's table turns versions that look like numbers into numbers (``"01"`` into 1). Such messages are copied, and named.
- Damaged messages, dead letters and rules stay: 1.x has no place for them.

Memory: a row, and SQLite's page caches.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import apsw

from infi.ramen_client.errors import QueueUnusable

from . import _statements as sql
from ._carry import Carrier
from ._database import Kind
from ._errors import plain_errors
from ._files import Access, access_beside, make_directories, make_empty_file, sync_directory
from ._inlet import message_of_1x
from ._rows import ReqidOrigin, message_of
from .books import read_books
from .reader_process import in_readers_place

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._database import Database
    from ._rows import NewMessage

_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_INCREMENTAL = 2
_MAX_NAMED_VERSIONS = 100


@dataclass(frozen=True, slots=True)
class ChangedVersion:
    """A ``data_version`` that 1.x sends as another one."""

    category: str
    data_type: str
    data_version: str
    becomes: str
    messages: int


@dataclass(frozen=True, slots=True)
class ExportedTo1x:
    """What was copied for 1.x, and what was not."""

    path: Path
    file_bytes: int
    """1.x begins to throw away when its file is larger than ``max_queue_size``."""
    messages: int
    perhaps_sent: int
    """Of these: a reader that was killed had them in flight."""
    changed_versions: tuple[ChangedVersion, ...]
    """At most 100."""
    damaged: int
    """Waiting messages that are not whole. They stay, as the next two do."""
    dead_letters: int
    pushed_meanwhile: int


def export_to_1x(database: Database, directory: str | os.PathLike[str]) -> ExportedTo1x:
    """Copy the waiting messages into a file of 1.x in ``directory``, which is made if it is missing.

    Raises ``QueueBusy`` where a reader lives, ``QueueUnusable`` where the directory has such a file already or cannot be used, and
    ``DiskFull``; then the queue is as it was, and there is no new file.
    """
    target = _target(database, directory)
    with in_readers_place(database):
        _carry_all(database)
        with _unfinished(target, access_beside(database.path, Access(0o600, None))) as unfinished:
            exported = _copy(database, unfinished, target)
            with plain_errors(target):
                _put_in_place(unfinished, target)
    return exported


def _target(database: Database, directory: str | os.PathLike[str]) -> Path:
    try:
        wanted = Path(directory).expanduser().absolute()
        make_directories(wanted, Access(0o700, None))
    except (OSError, RuntimeError) as error:  # RuntimeError: the ~ of a user who has no home
        reason = getattr(error, "strerror", None) or error
        raise QueueUnusable(
            f"{directory}: the directory for 1.x cannot be made or used: {reason}."
        ) from error
    target = wanted / database.path.name
    for suffix in ("", "-wal", "-shm", "-journal"):
        found = target.with_name(target.name + suffix)
        if os.path.lexists(found):
            raise QueueUnusable(
                f"{found}: is there already, and nothing is written over. Name an empty directory."
            )
    return target


def _carry_all(database: Database) -> None:
    carrier = Carrier(database)
    try:
        while carrier.step():
            pass
    finally:
        carrier.close()


@contextmanager
def _unfinished(target: Path, access: Access) -> Iterator[Path]:
    """An empty file beside the target, which goes at the end, with what SQLite laid beside it."""
    path = target.with_name(target.name + ".unfinished")

    def remove() -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    with plain_errors(path):
        remove()  # what one who was killed has left
        make_empty_file(path, access)
    try:
        yield path
    finally:
        with suppress(OSError):
            remove()


def _put_in_place(unfinished: Path, target: Path) -> None:
    descriptor = os.open(unfinished, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    # Not a rename, which would take the place of a file that 1.x made there a moment ago.
    target.hardlink_to(unfinished)
    sync_directory(target.parent)


def _copy(database: Database, unfinished: Path, target: Path) -> ExportedTo1x:
    versions: Counter[tuple[str, str, str, str]] = Counter()
    messages = damaged = 0
    with database.connection(Kind.NORMAL) as connection:
        connection.execute(sql.BEGIN_READING)
        try:
            entries = read_books(connection)
            perhaps_sent = connection.execute(sql.COUNT_FLIGHT).get
            sequence = max(connection.execute(sql.INLET_SEQUENCE).get, time.time_ns() // 1000)
            with _file_of_1x(unfinished, sequence) as target_file:
                for message in _waiting(connection, database):
                    if message is None:
                        damaged += 1
                        continue
                    becomes = target_file.push(message)
                    messages += 1
                    if becomes != str(message.data_version):
                        names = message.category, message.data_type, str(message.data_version), becomes
                        if names in versions or len(versions) < _MAX_NAMED_VERSIONS:
                            versions[names] += 1
        finally:
            connection.execute(sql.ROLLBACK)
        later = read_books(connection).books.pushed - entries.books.pushed
    return ExportedTo1x(
        path=target,
        file_bytes=unfinished.stat().st_size,
        messages=messages,
        perhaps_sent=perhaps_sent,
        changed_versions=tuple(ChangedVersion(*names, count) for names, count in versions.items()),
        damaged=damaged,
        dead_letters=entries.books.dead,
        pushed_meanwhile=later,
    )


def _waiting(connection: apsw.Connection, database: Database) -> Iterator[NewMessage | None]:
    """What waits, in the order in which a reader would take it; None for what is damaged.

    The backlog of 1.x comes first, what was moved of it (positions below 0) and what was not yet; then what 2.0 pushed; then
    what a 1.x writer pushes that still runs.
    """
    boundary = database.meta.inlet_boundary
    for positions, ids in (((_LOWEST, -1), (_LOWEST, boundary)), ((0, _HIGHEST), (boundary + 1, _HIGHEST))):
        for row in connection.execute(sql.EVERY_MESSAGE, positions):
            yield message_of(row)
        for row_id, pushed_at, *names, reqid, data in connection.execute(sql.EVERY_INLET_ROW, ids):
            sent_as = reqid or str(row_id).encode()
            row = (row_id, *names, b"", sent_as, ReqidOrigin.ROW_NUMBER, pushed_at or 0)
            found = message_of_1x(row, data)
            yield None if isinstance(found, str) else found


@contextmanager
def _file_of_1x(path: Path, sequence: int) -> Iterator[Pushing]:
    """A file as 1.x makes it; whole once the ``with`` has ended without an error."""
    with plain_errors(path):
        connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        with plain_errors(path):
            connection.pragma("page_size", 4096)
            connection.pragma("auto_vacuum", _INCREMENTAL)
            # The file is thrown away when anything goes wrong, and synced as a whole.
            connection.pragma("journal_mode", "off")
            connection.pragma("synchronous", "off")
            connection.execute(sql.BEGIN)
            connection.execute(sql.SCHEMA_OF_1X)
            connection.execute(sql.SEED_INLET_SEQUENCE, (sequence,))
        yield Pushing(connection, path)
        with plain_errors(path):
            connection.execute(sql.COMMIT)
            connection.pragma("journal_mode", "wal")
    finally:
        connection.close()


class Pushing:
    """Puts messages into a file of 1.x."""

    def __init__(self, connection: apsw.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def push(self, message: NewMessage) -> str:
        """Store a message; return the version that 1.x will send."""
        row = (
            message.pushed_at_ms,
            message.category,
            message.data_type,
            message.data_version,
            quote(message.reqid, safe=""),
            message.data,
        )
        with plain_errors(self._path):
            version: str = self._connection.execute(sql.PUSH_INTO_1X, row).get
            return version
