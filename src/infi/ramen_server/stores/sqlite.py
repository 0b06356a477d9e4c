"""The embedded store: one SQLite file, each commit one synced transaction (docs/design/collector.md, "messages.db").

Invariants:

- A message's row, its key and the books change in one transaction; so after any crash there are all of them or none.
- One process writes: it holds ``messages.db.lock``, which dies with it. One thread commits; readers have a connection of their own.
- After an I/O error the connection is opened anew before the next commit: what SQLite holds in memory of a file that failed
  is not built upon. A group whose sync failed may come to light then; its keys with it.
- What is known of the file in memory (tables of keys, last position) changes only after the commit that made it true.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from hashlib import blake2b
from importlib import resources
from typing import TYPE_CHECKING

import apsw

from infi.ramen_protocol import Dedupe
from infi.ramen_server import _files

from . import (
    Committed,
    NewMessage,
    Outcome,
    Selection,
    StoredMessage,
    StoreUnavailable,
    Submission,
    Totals,
)
from ._archive import APPLICATION_ID, FILE_NAME, FORMAT, SqliteArchive
from ._seen import SeenKeys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

CHECKPOINT_FRAMES = 2000
"""A checkpoint is tried when the WAL holds so many frames (8 MiB)."""

FAILURE_SHOWN_SECONDS = 10
"""How long after a failed commit the store says that it has a problem; after that, only a new try can tell."""

FAILURE_LOGGED_SECONDS = 60
"""How often the log says that commits go on failing."""

DEFAULT_REMEMBER_MESSAGES = 100_000_000
"""Their keys take about 3 GB of disk, as the messages themselves do when they are 30 bytes long."""

_KEY_BYTES = 16
_KEPT_PAYLOAD_BYTES = 1024 * 1024
_ROW_OVERHEAD_BYTES = 4096
_FULL_RETRY_SECONDS = 30
_FAILED_RETRY_SECONDS = 5

_INSERT = (
    "INSERT INTO message (position, received_at, category, system_serial, sender, data_type, data_version, "
    "system_version, reqid, token, payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, CAST(? AS TEXT))"
)
_ENTER = (
    "UPDATE book SET last_position = ?, messages = messages + ?, payload_bytes = payload_bytes + ?, "
    "duplicates = duplicates + ?"
)

_logger = logging.getLogger("ramen_server")


class StoreInUse(Exception):
    """Another collector writes to this directory."""


class SqliteStore:
    """The embedded store in ``directory``, made when missing.

    ``remember_days``: for how many days on which something was stored duplicates are recognised, at least, unless there are
    more than ``remember_messages`` (see ``_seen``); ``window_seconds`` is how long that is as things are.
    ``min_free_bytes``: below this much room on the disk, nothing is taken. ``free_bytes`` and ``monotonic`` are for tests.
    Raises ``StoreInUse``, ``UnusableFile``, ``OSError`` or ``apsw.Error``.
    """

    dedupe = Dedupe.MESSAGE

    def __init__(
        self,
        directory: Path,
        *,
        remember_days: int = 30,
        remember_messages: int = DEFAULT_REMEMBER_MESSAGES,
        min_free_bytes: int = 0,
        free_bytes: Callable[[Path], int] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if remember_days < 1:
            raise ValueError("remember_days must be 1 or more")
        if remember_messages < 1:
            raise ValueError("remember_messages must be 1 or more")
        self._directory = directory
        self._remember_days = remember_days
        self._remember_messages = remember_messages
        self.window_seconds: float | None = None
        self._min_free_bytes = min_free_bytes
        self._free_bytes = free_bytes or _free_bytes
        self._monotonic = monotonic
        self._failed_at: float | None = None
        self._failed_logged_at = 0.0
        self._frames = 0
        _files.make_directory(directory)
        self._lock_descriptor = _lock(directory / (FILE_NAME + ".lock"))
        self._connection: apsw.Connection | None = None
        try:
            self._open()
            self._know_window(time.time_ns() // 1_000_000)
            self._archive = SqliteArchive(directory)
        except BaseException:
            self._disconnect()
            os.close(self._lock_descriptor)
            raise

    def commit(self, submissions: Sequence[Submission], now_ms: int) -> list[Committed]:
        """Store them in one synced transaction."""
        messages = [message for submission in submissions for message in submission.messages]
        if not messages:  # of a batch, every record was refused
            return [()] * len(submissions)
        try:
            self._refuse_lost_file()
            self._refuse_full_disk(sum(len(message.payload) + _ROW_OVERHEAD_BYTES for message in messages))
            outcomes = iter(self._commit(messages, now_ms))
        except apsw.FullError as error:
            self._note_failure("the disk is full", error)
            raise StoreUnavailable("the collector's disk is full", _FULL_RETRY_SECONDS) from error
        except (apsw.Error, OSError, _files.UnusableFile) as error:
            self._note_failure("writing failed", error)
            self._disconnect()
            raise StoreUnavailable("the collector cannot write to its disk", _FAILED_RETRY_SECONDS) from error
        self._failed_at = None
        return [tuple(next(outcomes) for _ in submission.messages) for submission in submissions]

    def maintain(self, now_ms: int) -> None:
        """Drop the oldest tables of keys when there are too many; checkpoint when the WAL has grown."""
        if self._connection is None:
            return
        try:
            while (surplus := self._seen.surplus()) is not None:
                with _files.transaction(self._connection):
                    self._seen.drop(surplus)
                self._seen.dropped(surplus)
            self._know_window(now_ms)
            if self._frames >= CHECKPOINT_FRAMES:
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                self._frames = 0
        except apsw.Error as error:
            # Nothing is lost by waiting: the WAL holds everything. The next commit will meet what is wrong.
            _logger.warning("%s: maintenance failed: %s", self._directory / FILE_NAME, error)

    def problem(self) -> str | None:
        """Say what keeps messages out: no room on the disk, or a commit that has just failed."""
        if self.free_bytes() < self._min_free_bytes:
            return "the disk has less room than min_free_bytes"
        failed_at = self._failed_at
        if failed_at is not None and self._monotonic() - failed_at < FAILURE_SHOWN_SECONDS:
            return "the last commit failed"
        return None

    def free_bytes(self) -> int:
        """Tell how much this process may still write to the disk."""
        return self._free_bytes(self._directory)

    def totals(self) -> Totals:
        """Tell the books."""
        return self._archive.totals()

    def export(self, selection: Selection) -> Iterator[StoredMessage]:
        """Give what is stored; see ``SqliteArchive.export``."""
        return self._archive.export(selection)

    def close(self) -> None:
        """Checkpoint and close the file, and let go of the lock."""
        self._archive.close()
        self._disconnect()
        os.close(self._lock_descriptor)

    def _open(self) -> apsw.Connection:
        if self._connection is not None:
            return self._connection
        schema = resources.files(__package__).joinpath("schema.sql").read_text()
        connection = _files.open_file(
            self._directory / FILE_NAME, _files.Kind(APPLICATION_ID, FORMAT, schema, _seed)
        )
        try:
            self._identity = _identity(self._directory / FILE_NAME)
            connection.wal_autocheckpoint(0)
            connection.set_wal_hook(self._note_frames)
            self._key, self._last_position = connection.execute("SELECT key, last_position FROM book").get
            self._seen = SeenKeys(
                connection,
                remember_days=self._remember_days,
                remember_messages=self._remember_messages,
            )
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _commit(self, messages: list[NewMessage], now_ms: int) -> list[Outcome]:
        connection = self._open()
        outcomes: list[Outcome] = []
        rows: list[tuple[int | str | bytes, ...]] = []
        position, stored_bytes, largest = self._last_position, 0, 0
        with _files.transaction(connection):
            self._seen.begin(now_ms)
            for message in messages:
                key = blake2b(message.key_text(), digest_size=_KEY_BYTES, key=self._key).digest()
                if not self._seen.add(key):
                    outcomes.append(Outcome.DUPLICATE)
                    continue
                position += 1
                stored_bytes += len(message.payload)
                largest = max(largest, len(message.payload))
                rows.append(_row(position, now_ms, message))
                outcomes.append(Outcome.STORED)
            # A statement that is kept for the next time would keep its copy of the last payload until then.
            connection.executemany(_INSERT, rows, can_cache=largest <= _KEPT_PAYLOAD_BYTES)
            self._seen.finish()
            stored = position - self._last_position
            connection.execute(_ENTER, (position, stored, stored_bytes, len(messages) - stored))
        self._seen.committed()
        self._last_position = position
        return outcomes

    def _know_window(self, now_ms: int) -> None:
        self.window_seconds = self._seen.window_seconds(now_ms)

    def _refuse_lost_file(self) -> None:
        """Refuse to write into a file that nobody will find again: it was removed or replaced under us."""
        if self._connection is None:
            return
        try:
            found = _identity(self._directory / FILE_NAME)
        except FileNotFoundError:
            found = None
        if found != self._identity:
            self._note_failure("the file is no longer at its path; restart the collector", None)
            raise StoreUnavailable("the collector's store is gone", _FULL_RETRY_SECONDS)

    def _refuse_full_disk(self, wanted: int) -> None:
        # Twice: it goes into the WAL now, and into the database at a checkpoint.
        if self.free_bytes() - 2 * wanted < self._min_free_bytes:
            self._note_failure("the disk has less room than min_free_bytes", None)
            raise StoreUnavailable("the collector's disk has no room for more", _FULL_RETRY_SECONDS)

    def _note_failure(self, what: str, error: Exception | None) -> None:
        """Remember it, and log it unless that was done a moment ago: under load every commit fails."""
        now = self._monotonic()
        if self._failed_at is None or now - self._failed_logged_at >= FAILURE_LOGGED_SECONDS:
            self._failed_logged_at = now
            _logger.error(
                "%s: %s; messages are refused with 503, and nothing of them was stored. %s",
                self._directory / FILE_NAME,
                what,
                "" if error is None else error,
            )
        self._failed_at = now

    def _note_frames(self, _connection: apsw.Connection, _name: str, frames: int) -> int:
        self._frames = frames
        return apsw.SQLITE_OK


def _row(position: int, now_ms: int, message: NewMessage) -> tuple[int | str | bytes, ...]:
    envelope = message.envelope
    return (
        position,
        now_ms,
        envelope.category,
        envelope.system_serial,
        envelope.sender,
        envelope.data_type,
        envelope.data_version,
        envelope.system_version,
        envelope.reqid,
        message.token,
        message.payload,
    )


def _seed(connection: apsw.Connection) -> None:
    connection.execute(
        "INSERT INTO book (id, created_at, key) VALUES (1, ?, ?)",
        (time.time_ns() // 1_000_000, secrets.token_bytes(32)),
    )


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat(follow_symlinks=False)
    return found.st_dev, found.st_ino


def _free_bytes(directory: Path) -> int:
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _lock(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StoreInUse(
            f"{path.parent}: another collector writes here. Stop it, or use another directory."
        ) from None
    return descriptor
