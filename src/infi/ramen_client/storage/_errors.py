"""What SQLite and the operating system report, in the words of ``errors``.

Which of SQLite's errors leaves what behind, in WAL mode:

- Before ``COMMIT``, whatever the error is: nothing. Frames that were spilled to the WAL have no commit mark and are overwritten.
- ``COMMIT`` with "full" (``ENOSPC``): nothing. The frame with the commit mark was not written whole, so its checksum is wrong.
- ``COMMIT`` with an I/O error: unknown. SQLite writes the frames, syncs the WAL, and only then makes them visible in the
  ``-shm``. When the sync fails (or the ``-shm`` cannot grow), the transaction is rolled back for everybody alive, but its frames
  lie whole in the WAL until the next commit overwrites them. If all processes end before that, the next one to open the file
  finds and takes them. This is ``UncertainCommit``, which ``push`` raises as ``DurabilityError``.

For SQLite, "full" is ``ENOSPC`` alone; a quota that is used up and a limit on the size of a file are I/O errors. As the write that failed
is then one of the frames, they leave what "full" leaves, and are taken for it (by the system's error number, which SQLite keeps).
"""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import apsw

from infi.ramen_client.errors import DiskFull, QueueBusy, QueueError, QueueUnusable

from ._reserve import NO_SPACE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUSY_TIMEOUT_SECONDS = 60
"""As 1.x: a 1.x writer at its limit can hold the file for long."""


_REMEDIES = {errno.EROFS: "Mount its file system for writing, or use another queue_dir."}
"""By the system's error number."""


class Damaged(QueueUnusable):
    """The file is damaged: it is to be put aside (``_heal``)."""


class LogFull(DiskFull):
    """The log found no room for a transaction: once it is copied into the database it begins anew (``_heal``)."""


class UncertainCommit(QueueError):
    """A commit failed in a way that leaves open whether its changes will be seen."""


def plain_error(path: Path, error: apsw.Error | OSError, system_errno: int = 0) -> QueueError:
    """The error to raise for one of SQLite's or the system's; it names the file that the system named, else ``path``.

    ``system_errno``: what SQLite met, where it is one of its errors.
    """
    where = _file_named(error) or path
    if _is_about_space(error, system_errno):
        kind = DiskFull if isinstance(error, OSError) else LogFull
        return kind(no_space(where))
    match error:
        case apsw.BusyError():
            return QueueBusy(
                f"{path}: another process held the queue for more than {BUSY_TIMEOUT_SECONDS} s; nothing was stored. Try again."
            )
        case apsw.ReadOnlyError() | apsw.PermissionsError() | apsw.CantOpenError():
            return QueueUnusable(
                f"{path}: cannot be opened for writing ({error}). Check the owner and mode of the file and its directory, and "
                "that this process has not run out of file descriptors."
            )
        # Our statements are right, so it is the schema that is not (an SQLError), or a table's order (a constraint).
        case apsw.CorruptError() | apsw.NotADBError() | apsw.SQLError() | apsw.ConstraintError():
            return Damaged(f"{path}: is damaged or not a queue ({error}). Move it away to start afresh.")
        case OSError():
            remedy = _REMEDIES.get(
                error.errno or 0, "Check the owner and mode of the file and its directory."
            )
            return QueueUnusable(f"{where}: cannot be used: {error.strerror}. {remedy}")
        case _:
            return QueueError(f"{path}: SQLite reports {type(error).__name__}: {error}. Check the disk.")


def no_space(where: Path | str) -> str:
    """What a ``DiskFull`` says."""
    return f"{where}: the disk (or a quota, or a limit on the size of files) is full; nothing was stored. Free some space."


def _file_named(error: apsw.Error | OSError) -> str | None:
    name = error.filename if isinstance(error, OSError) else None
    return os.fspath(name) if isinstance(name, (str, os.PathLike)) else None


def _is_about_space(error: apsw.Error | OSError, system_errno: int) -> bool:
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    code = _extended_code(error)
    return (
        isinstance(error, apsw.FullError)
        or code == apsw.SQLITE_IOERR_SHMSIZE  # the -shm could not be made longer
        or (code == apsw.SQLITE_IOERR_WRITE and system_errno in NO_SPACE)
    )


def _extended_code(error: apsw.Error) -> int:
    code: int = getattr(error, "extendedresult", 0)
    return code


def is_failed_sync(error: apsw.Error) -> bool:
    """Whether SQLite could not sync a file; which one, it does not say."""
    return _extended_code(error) == apsw.SQLITE_IOERR_FSYNC


def commit_error(path: Path, error: apsw.Error, system_errno: int) -> QueueError:
    """The error to raise when it was COMMIT that failed; ``system_errno`` as for ``plain_error``."""
    is_quota = _extended_code(error) == apsw.SQLITE_IOERR_WRITE and system_errno in NO_SPACE
    if isinstance(error, apsw.IOError) and not is_quota:
        return UncertainCommit(
            f"{path}: the disk did not confirm a write ({error}); whether it was stored is not known. Check the disk."
        )
    return plain_error(path, error, system_errno)


@contextmanager
def plain_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's and the system's errors into ours, which say what to do."""
    try:
        yield
    except (apsw.Error, OSError) as error:
        raise plain_error(path, error) from error
