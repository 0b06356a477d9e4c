"""Write again what a sync that failed has given up, so that a power cut can take nothing, not even one in the middle of it.

After a failed sync the kernel takes the pages for written, and no later sync writes them; only a new write of the same bytes does. What
SQLite has for it, a checkpoint that copies the log into the database, is not enough in two ways:

- **It trusts the log.** While the database's pages are being written over, the log must be able to repair them, but its own frames may
  be what was given up. So they are written again first, byte by byte where they are, while nobody can append to them
  (``rewrite_log``); the checkpoint then syncs them before it touches the database.
- **It trusts the database.** It counts the frames that lie in the database and begins behind them; and one that could not copy all of
  the log, since somebody was reading, counts its frames although nothing has synced the database yet. If that sync fails later,
  SQLite does not copy them again. They are still in the log, which begins anew only after a sync of the database that succeeded. So the
  count is set to 0 (``copy_all_again``), as when SQLite recovers a log. A checkpoint copies the newest frame of a page or none,
  so no page goes back to an older state; readers look into the log from the frame behind the count on, and who saw the higher one
  finds the same pages in the database.

Count and length of the log lie in the ``-shm``, at places that its format fixes (sqlite.org/walformat.html, "WAL-index header"). They are
reached by way of SQLite's own file object (``sqlite3_io_methods``, a public structure of fixed layout), the count under the lock of
checkpoints: a descriptor of our own would drop SQLite's locks on the ``-shm`` when it is closed.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import apsw

from . import _statements as sql
from ._reserve import PAGE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SHM_BYTES_AT_ONCE = 32 * 1024
_FRAMES_AT = 16
"""Where the number of the last committed frame lies."""
_COPIED_AT = 96
"""Where the count of those in the database lies: behind the two copies of the header."""
_CHECKPOINT_LOCK = 1

_LOG_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_BYTES_AT_ONCE = 1024 * 1024


class _Methods(ctypes.Structure):
    """``sqlite3_io_methods``, as far as it is needed."""

    _fields_ = (
        ("version", ctypes.c_int),
        ("of_files", ctypes.c_void_p * 12),
        (
            "map_shm",
            ctypes.CFUNCTYPE(
                ctypes.c_int,
                ctypes.c_void_p,
                ctypes.c_int,
                ctypes.c_int,
                ctypes.c_int,
                ctypes.POINTER(ctypes.c_void_p),
            ),
        ),
        (
            "lock_shm",
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int),
        ),
    )


class _File(ctypes.Structure):
    """``sqlite3_file``."""

    _fields_ = (("methods", ctypes.POINTER(_Methods)),)


class _SharedMemory:
    """The ``-shm`` as a connection that has read from the file holds it."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._file = ctypes.c_void_p()
        connection.file_control("main", apsw.SQLITE_FCNTL_FILE_POINTER, ctypes.addressof(self._file))
        self._methods = ctypes.cast(self._file, ctypes.POINTER(_File)).contents.methods.contents

    def number(self, place: int) -> ctypes.c_uint32:
        """What lies there; whoever sets its value changes it for everybody."""
        start = ctypes.c_void_p()
        _check(self._methods.map_shm(self._file, 0, _SHM_BYTES_AT_ONCE, 0, ctypes.byref(start)))
        if start.value is None:
            raise apsw.IOError("the shared memory of the log is not there")
        return ctypes.c_uint32.from_address(start.value + place)

    @contextmanager
    def no_checkpoint_meanwhile(self) -> Iterator[None]:
        lock = self._methods.lock_shm
        _check(lock(self._file, _CHECKPOINT_LOCK, 1, apsw.SQLITE_SHM_LOCK | apsw.SQLITE_SHM_EXCLUSIVE))
        try:
            yield
        finally:
            lock(self._file, _CHECKPOINT_LOCK, 1, apsw.SQLITE_SHM_UNLOCK | apsw.SQLITE_SHM_EXCLUSIVE)


def _check(result: int) -> None:
    if result != apsw.SQLITE_OK:
        raise apsw.exception_for(result)


def rewrite_log(connection: apsw.Connection, database: Path) -> None:
    """Write every frame of the log once more where it is. Raises ``apsw.Error`` and ``OSError``.

    The connection is in no transaction.
    """
    connection.execute(sql.BEGIN)  # now nobody appends a frame, not even a 1.x program
    try:
        frames = _SharedMemory(connection).number(_FRAMES_AT).value
        descriptor = os.open(f"{database}-wal", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            end = _LOG_HEADER_BYTES + frames * (_FRAME_HEADER_BYTES + PAGE_BYTES)
            for place in range(0, end, _BYTES_AT_ONCE):
                _rewrite(descriptor, place, min(_BYTES_AT_ONCE, end - place))
        finally:
            os.close(descriptor)
    finally:
        connection.execute(sql.ROLLBACK)


def _rewrite(descriptor: int, place: int, size: int) -> None:
    content = os.pread(descriptor, size, place)
    while content:
        written = os.pwrite(descriptor, content, place)
        content, place = content[written:], place + written


def copy_all_again(connection: apsw.Connection) -> None:
    """Have the next checkpoint, whoever does it, copy the whole log. Raises ``apsw.Error``; ``BusyError`` while one is under way.

    The connection has read from the file before.
    """
    shared = _SharedMemory(connection)
    with shared.no_checkpoint_meanwhile():
        shared.number(_COPIED_AT).value = 0
