"""The reserve: disk space that is taken ahead, so that a disk that is full can still be drained.

A database in WAL mode needs space to get smaller: a DELETE for its frames in the log, a checkpoint for the pages that the file does not have
yet; and without a checkpoint the log only grows. So this space is taken beforehand, inside the very files where it will be needed, where
nobody else can take it:

- **The log** is at least ``LOG_BYTES`` long from the beginning (``hold_log``), and starts from its beginning after each checkpoint.
- **The database's file** is as long as the database, and ``SPARE_BYTES`` longer, before a commit makes the database longer
  (``lengthen``). So a checkpoint overwrites what is there and never needs space. A push that finds no room for that stores nothing
  (``DiskFull``); a transaction of the reader may use up the spare.

When the log finds no room for a commit (``LogFull``), it is copied into the database, and the work is done again once, from the log's
beginning (``_heal``). So pushes go on, too, as long as the database has free pages, and all is as before when there is space again.

Limits: quotas and limits on the size of a file count as a full disk. A file system that writes every page to a new place (btrfs, ZFS)
needs space for an overwrite as well, and the reserve promises nothing there. The file is lengthened by chunks of ``CHUNK_BYTES``, and a
checkpoint cuts it to a whole number of them. It does so without the writers' turn, perhaps just before somebody else's commit: who has
lengthened the file looks again after the commit.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import apsw

from . import _statements as sql

if TYPE_CHECKING:
    from pathlib import Path

LOG_BYTES = 1024 * 1024
"""Some 250 frames. Acknowledging 1,000 messages of 1 KB at once takes 180 (measured); a log that is used grows beyond it."""

SPARE_BYTES = 16 * 4096
"""For the rows that a claim writes before anything was freed."""

CHUNK_BYTES = 128 * 1024
"""The file grows by so much at once, one system call for each page of it; an empty queue takes so much, too."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a quota that is used up, a limit on the size of a file (RLIMIT_FSIZE)."""

PAGE_BYTES = 4096
_SHM_BYTES = 32 * 1024


def set_chunk(connection: apsw.Connection) -> None:
    """Have this connection lengthen and cut the database's file in chunks."""
    chunk = ctypes.c_int(CHUNK_BYTES)
    connection.file_control("main", apsw.SQLITE_FCNTL_CHUNK_SIZE, ctypes.addressof(chunk))


def whole_chunks(size: int) -> int:
    """How much of a file a checkpoint leaves: where it was lengthened until the disk was full, the end is no whole chunk."""
    return size - size % CHUNK_BYTES


def database_bytes(connection: apsw.Connection) -> int:
    """How long the file must be for a checkpoint of what this connection sees."""
    pages: int = connection.execute(sql.PAGE_COUNT).get
    return pages * PAGE_BYTES


def lengthen(connection: apsw.Connection, size: int) -> bool:
    """Make the database's file at least so long, its space allocated; False: there is no room. Raises ``apsw.IOError``."""
    # By way of SQLite: a descriptor of our own would drop its locks when it is closed.
    hint = ctypes.c_int64(size)
    try:
        connection.file_control("main", apsw.SQLITE_FCNTL_SIZE_HINT, ctypes.addressof(hint))
    except apsw.IOError:
        met = ctypes.c_int()
        connection.file_control("main", apsw.SQLITE_FCNTL_LAST_ERRNO, ctypes.addressof(met))
        if met.value not in NO_SPACE:
            raise
        return False
    return True


def hold_spare(connection: apsw.Connection) -> None:
    """Have the spare again, if there is room for it; to be called after a checkpoint, which cuts it off."""
    with suppress(apsw.IOError):
        lengthen(connection, database_bytes(connection) + SPARE_BYTES)


def refuse_deadly_disk(database: Path) -> None:
    """Raise ``OSError`` (of ``NO_SPACE``) where opening the queue could kill the process (SIGBUS).

    SQLite makes the ``-shm`` anew for whoever opens it first, and has the system reserve the last byte of each page alone. Where blocks are
    smaller than pages, the others are to be had when they are written to, or not.
    """
    try:
        if os.statvfs(database.parent).f_frsize >= PAGE_BYTES:
            return
        # Tried, and not read off: what is free counts blocks that not even root gets, or lacks those that root does.
        descriptor = os.open(database.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, 2 * _SHM_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise OSError(error.errno, error.strerror, f"{database}-shm") from error


def hold_log(database: Path) -> None:
    """Make the log as long as the reserve, if there is room for it. The writers' turn is held."""
    with suppress(OSError):
        descriptor = os.open(f"{database}-wal", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size = os.fstat(descriptor).st_size
            if size < LOG_BYTES:
                os.posix_fallocate(descriptor, size, LOG_BYTES - size)
        finally:
            os.close(descriptor)
