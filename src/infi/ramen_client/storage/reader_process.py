"""Whether a queue's active reader lives: asked of the lock that dies with it, without taking the lock; and taking its place.

Closing any descriptor of a file drops this process's own record locks on it, so a process whose reader is active must not open the
file at all: it is answered from the table in ``_locks``, whose guard keeps a reader of this process from beginning meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from infi.ramen_client.errors import QueueBusy

from . import _locks
from ._errors import plain_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ._database import Database

_FLOCK = "hhqqi0q"
"""Linux's ``struct flock``: type, whence, start, length, pid; of the machine's alignment."""


def reader_holder(database: Path) -> int | None:
    """The process that holds the lock of the active reader; None: nobody.

    0: one that this process cannot see (of another container). May raise ``OSError``, for want of permission.
    """
    path = database.with_name(database.name + ".reader")
    with _locks._held_guard:  # noqa: SLF001
        try:
            found = path.stat(follow_symlinks=False)
            if (found.st_dev, found.st_ino) in _locks._held:  # noqa: SLF001
                return os.getpid()
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, asked)
        finally:
            os.close(descriptor)
    kind, _whence, _start, _length, pid = struct.unpack(_FLOCK, answer)
    return None if kind == fcntl.F_UNLCK else int(pid)


@contextmanager
def in_readers_place(database: Database) -> Iterator[None]:
    """Keep readers away, for what an operator does that none may do at the same time; ``QueueBusy`` where one lives."""
    path = database.path
    lock = _locks.ReaderLock(path.with_name(path.name + ".reader"), database.access)
    with plain_errors(path):
        if not lock.acquire():
            raise QueueBusy(
                f"{path}: a reader is at work on it (process {reader_holder(path) or 'of another container'}). Stop it first."
            )
    try:
        yield
    finally:
        lock.release()
