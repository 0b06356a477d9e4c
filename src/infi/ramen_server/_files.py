"""Opening of the collector's SQLite files: safe modes, the whole schema or nothing, newer formats refused.

A file is made under a lock on its directory, so that a collector and a command that start together do not both make it. The
lock is on the directory's own descriptor: closing a descriptor of the database would drop SQLite's locks on it.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import apsw

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OLDEST_SAFE_SQLITE = (3, 51, 3)
"""Before it, a checkpoint by one connection while another writes can lose committed data (the WAL-reset race)."""

BUSY_SECONDS = 10
"""How long a transaction waits for another process; theirs are short."""

_JOURNAL_SIZE_LIMIT_BYTES = 16 * 1024 * 1024


class UnusableFile(Exception):
    """The file is not one that this version can use; the text names it and says what to do. It is untouched."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is."""

    application_id: int
    format: int
    schema: str
    seed: Callable[[apsw.Connection], None]
    """Called in the transaction that makes the schema, for the first rows."""


def make_directory(directory: Path) -> None:
    """Make a data directory that only its owner can enter, and the parents that are missing; one that exists is left alone."""
    made: list[Path] = []
    missing = directory
    while not missing.exists():
        made.append(missing)
        missing = missing.parent
    for path in reversed(made):
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
        _sync_directory(path.parent)


def open_file(path: Path, kind: Kind) -> apsw.Connection:
    """Open the file for reading and writing, making it when it is not there; every commit is synced.

    Raises ``UnusableFile``, ``OSError`` or ``apsw.Error``.
    """
    _refuse_unsafe_sqlite()
    with _directory_locked(path.parent):
        with suppress(FileExistsError):
            # A descriptor of a file that did not exist cannot drop a lock that this process has in it.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        connection = _connect(path)
        try:
            if _format_of(connection, path, kind) is None:
                _make(connection, path, kind)
        except BaseException:
            connection.close()
            raise
    return connection


def open_for_reading(path: Path, kind: Kind) -> apsw.Connection:
    """Open an existing file for reading. Raises ``UnusableFile`` when there is none, or one of another kind."""
    _refuse_unsafe_sqlite()
    if not path.is_file():
        raise UnusableFile(f"{path}: there is no such file. Has a collector run in this directory?")
    connection = _connect(path)
    try:
        version = _format_of(connection, path, kind)
        connection.pragma("query_only", True)
    except BaseException:
        connection.close()
        raise
    if version is None:
        connection.close()
        raise UnusableFile(f"{path}: is empty. Has a collector run in this directory?")
    return connection


def write_secret(path: Path, text: str) -> None:
    """Write a line that only its owner can read, in place of what is there; synced. Raises ``OSError``."""
    unfinished = path.with_name(path.name + ".unfinished")
    with suppress(FileNotFoundError):
        unfinished.unlink()
    descriptor = os.open(
        unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    try:
        os.write(descriptor, text.encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    unfinished.replace(path)
    _sync_directory(path.parent)


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """Run a write transaction: all of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # SQLite may have rolled back by itself (disk full); then there is nothing left to undo.
        with suppress(apsw.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise


def _refuse_unsafe_sqlite(version: str | None = None) -> None:
    version = version or apsw.sqlite_lib_version()
    if tuple(int(part) for part in version.split(".")) < OLDEST_SAFE_SQLITE:
        raise UnusableFile(
            f"apsw brings SQLite {version}, which can lose data when two processes use a file. "
            f"Install a newer apsw (SQLite {'.'.join(map(str, OLDEST_SAFE_SQLITE))} or later)."
        )


def _connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_NOFOLLOW)
    try:
        connection.set_busy_timeout(BUSY_SECONDS * 1000)
        connection.pragma("synchronous", "FULL")
        connection.pragma("journal_size_limit", _JOURNAL_SIZE_LIMIT_BYTES)
    except BaseException:
        connection.close()
        raise
    return connection


def _format_of(connection: apsw.Connection, path: Path, kind: Kind) -> int | None:
    """Tell the file's format; None when it is empty."""
    if (
        connection.pragma("page_count") == 0
        or not connection.execute("SELECT count(*) FROM sqlite_schema").get
    ):
        return None
    if connection.pragma("application_id") != kind.application_id:
        raise UnusableFile(
            f"{path}: is a file of another program, or of another kind. Use another directory."
        )
    version = connection.pragma("user_version")
    if version > kind.format:
        raise UnusableFile(
            f"{path}: was written by a newer version (format {version}, this one knows {kind.format}). Upgrade."
        )
    return int(version)


def _make(connection: apsw.Connection, path: Path, kind: Kind) -> None:
    connection.pragma("page_size", 4096)
    if connection.pragma("journal_mode", "wal") != "wal":
        raise UnusableFile(f"{path}: SQLite cannot use a write-ahead log here. Use a local file system.")
    with transaction(connection):
        connection.execute(kind.schema)
        kind.seed(connection)
        connection.pragma("application_id", kind.application_id)
        connection.pragma("user_version", kind.format)
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    _sync_directory(path.parent)


@contextmanager
def _directory_locked(directory: Path) -> Iterator[None]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
