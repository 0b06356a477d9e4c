"""One connection to a queue's file: the SQLite that is fit for it, its settings, and what the file says of itself."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import apsw

from infi.ramen_client.errors import QueueUnusable

from . import _statements as sql
from ._errors import BUSY_TIMEOUT_SECONDS, Damaged
from ._reserve import set_chunk

if TYPE_CHECKING:
    from pathlib import Path

OLDEST_SAFE_SQLITE = (3, 51, 3)
"""Before it, a checkpoint by one connection while another writes can lose committed data (the WAL-reset race)."""

_JOURNAL_SIZE_LIMIT_BYTES = 4 * 1024 * 1024
"""Above what the WAL has between two checkpoints, so that it is written over and not cut and made to grow again."""


_MOST_EMPTY_PAGES = 10_000
"""A schema of 40 MB is none of ours; a negative or enormous one would make the size limit throw away everything, or nothing."""


class Kind(IntEnum):
    """What a connection is for."""

    FULL = 0
    """Commits are on the platter when they return."""
    NORMAL = 1
    """Commits survive a killed process, not a power cut."""
    READER = 2
    """As NORMAL, for the active reader, which gives up waiting when it is told to stop."""
    WATCH = 3
    """Looks for other connections' commits and writes nothing; its ``data_version`` compares with itself alone."""


def refuse_unsafe_sqlite(version: str = apsw.sqlite_lib_version()) -> None:
    """Raise ``QueueUnusable`` when the SQLite in use has the WAL-reset race."""
    if tuple(int(part) for part in version.split(".")) < OLDEST_SAFE_SQLITE:
        oldest = ".".join(map(str, OLDEST_SAFE_SQLITE))
        raise QueueUnusable(
            f"apsw brings SQLite {version}, which can lose data when two processes use a file. "
            f"Install a newer apsw (SQLite {oldest} or later)."
        )


def open_connection(path: Path) -> apsw.Connection:
    """Open an existing file with the settings that every connection has, but for ``synchronous``, which stays FULL."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW)
    try:
        connection.set_busy_timeout(BUSY_TIMEOUT_SECONDS * 1000)
        connection.wal_autocheckpoint(0)
        persistent = ctypes.c_int(1)
        connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(persistent))
        set_chunk(connection)
        # Closing is on the path of a fork; checkpoints have their owner.
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.pragma("journal_size_limit", _JOURNAL_SIZE_LIMIT_BYTES)
        connection.pragma("secure_delete", 0)
        connection.pragma("synchronous", "FULL")
    except BaseException:
        connection.close()
        raise
    return connection


@dataclass(frozen=True, slots=True)
class Meta:
    """What a file says of itself."""

    queue_id: str
    inlet_boundary: int
    inlet_system_version: str
    empty_pages: int


def read_meta(connection: apsw.Connection, path: Path) -> Meta:
    """Read it; ``QueueUnusable`` when it is missing, or says that this version must not use the file."""
    try:
        row = connection.execute(sql.READ_META).get
    except UnicodeDecodeError:
        raise Damaged(f"{path}: is damaged (what it says of itself is no text).") from None
    if row is None:
        raise Damaged(f"{path}: is damaged (it does not say what it is). Move it away to start afresh.")
    numbers = row[:2] + row[3:4] + row[5:]
    texts = row[2], row[4]
    are_sound = all(isinstance(number, int) for number in numbers) and all(
        isinstance(text, str) for text in texts
    )
    if not are_sound or not 0 < row[5] <= _MOST_EMPTY_PAGES:
        raise Damaged(f"{path}: is damaged (what it says of itself cannot be).")
    min_reader, min_writer, queue_id, inlet_boundary, inlet_system_version, empty_pages = row
    needed = max(min_reader, min_writer)
    if needed > sql.FORMAT:
        raise QueueUnusable(
            f"{path}: is used by a newer version (format {needed}, this one knows {sql.FORMAT}). Upgrade infi.ramen_client."
        )
    return Meta(queue_id, inlet_boundary, inlet_system_version, empty_pages)


class WalGauge:
    """How many frames the WAL held after the last commit of this process, and when that is too many.

    An object of its own, since SQLite's hook must not hold the ``Database`` alive.
    """

    def __init__(self) -> None:
        self._frames = 0
        self._left = 0  # what the last checkpoint could not copy: somebody was reading

    def note(self, _connection: apsw.Connection, _name: str, frames: int) -> int:
        """SQLite's hook, called after each commit."""
        self._frames = frames
        return apsw.SQLITE_OK

    def is_above(self, frames: int) -> bool:
        """Whether so many frames came since the last checkpoint, be it that it could copy nothing."""
        if self._frames < self._left:
            self._left = 0  # the WAL began anew
        return self._frames - self._left > frames

    def note_checkpoint(self, frames: int, copied: int) -> None:
        """What a checkpoint found in the WAL, and how much of it lies in the file now."""
        self._frames = 0 if copied == frames else frames
        self._left = self._frames
