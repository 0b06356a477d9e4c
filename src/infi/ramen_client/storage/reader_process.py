"""Whether a queue's active reader lives: asked of the lock that dies with it, without taking the lock.

Closing any descriptor of a file drops this process's own record locks on it, so a process whose reader is active must not open the
file at all: it is answered from the table in ``_locks``, whose guard keeps a reader of this process from beginning meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import TYPE_CHECKING

from . import _locks

if TYPE_CHECKING:
    from pathlib import Path

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
