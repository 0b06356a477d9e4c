"""The sync after the commit: a durable push does not hold the writers' lock while the disk works.

Where others are at work, too, a durable transaction commits with ``synchronous=NORMAL``, gives the lock back, and then syncs the
``-wal`` itself (``confirm``). Syncs of several threads and processes run side by side; the kernel joins what they have to write,
and the flushes of the disk behind it, so that each of them serves everybody who committed before it began. (That was measured
against one process at a time syncing for all that wait: a quarter more pushes by 4 processes, since nobody has to be woken.)
A process that is alone lets SQLite sync inside ``COMMIT``, which costs fewer system calls (``Database`` decides).

**A sync that fails** has lost data that the kernel may take for written: a later sync of the same file succeeds and proves nothing
about the frames that came before it, and one frame that is missing hides all that follow. So the processes share a record in a
file of its own (``.sync``), written only when a sync fails: how many *failed*, and how many of those were *mended*.

- Whose commit came before a failed sync, and is not confirmed yet, fails with it (``Unconfirmed``): *failed* is not what it was
  before the commit. Its message may be delivered, or lost in a power cut.
- Nobody commits durably until the WAL is *mended*: written again, copied into the database as a whole, cut to zero length, and synced
  (``Database`` does that, holding the writers' lock, by means of ``_mending``), so that no frame of a doubtful WAL is needed any more.
- Each process keeps its descriptor of the ``-wal``, since the kernel tells every open descriptor of a failure once.
- The record need not be durable: after a power cut what is in the file is on the platter. One that cannot be read counts as
  "none has failed"; one that cannot be written (a full disk) leaves the others to what the kernel tells them.

Conditions, which ``Database`` keeps: the connection that committed stays open until ``confirm`` has returned, every connection
has a persistent WAL, and none uses ``synchronous=OFF``; so the ``-wal`` at its path is the one that was committed to, and SQLite
syncs it, its header too, before it is written over. A descriptor of ours that has become another file's is replaced before the
sync, and the directory is synced with the new one, since its name may be new as well.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import zlib
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ._files import Watched, open_lock_file, sync_directory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from ._files import Access

_RECORD = struct.Struct("<QQ")
_CHECKSUM = struct.Struct("<I")
_RECORD_BYTES = _RECORD.size + _CHECKSUM.size


class Unconfirmed(Exception):
    """A sync that a commit needed has failed; whether it is on the platter is not known."""


@dataclass(frozen=True, slots=True)
class SyncRecord:
    """What the processes share."""

    failed: int = 0
    mended: int = 0

    @property
    def is_doubtful(self) -> bool:
        """Whether a failed sync has not been mended."""
        return self.failed != self.mended


_NONE_FAILED = SyncRecord()


class SharedSync:
    """One process's part in the syncs of one queue. Any thread may use it."""

    def __init__(self, database: Path, access: Access) -> None:
        self._wal = os.fspath(database) + "-wal"
        self._path = database.with_name(database.name + ".sync")
        self._access = access
        # Guards the opening and replacing of descriptors, and this process's writing of the record.
        self._guard = threading.RLock()
        self._descriptor: int | None = None
        self._wal_open: _OpenWal | None = None

    def read(self) -> SyncRecord:
        """The record as it is now."""
        content = os.pread(self._record_file(), _RECORD_BYTES, 0)
        if len(content) != _RECORD_BYTES:
            return _NONE_FAILED
        values = content[: _RECORD.size]
        if _CHECKSUM.pack(zlib.crc32(values)) != content[_RECORD.size :]:
            return _NONE_FAILED
        return SyncRecord(*_RECORD.unpack(values))

    def confirm(self, failed_before: int, *, synced: bool) -> None:
        """Return when what was committed before this call is on the platter. Raises ``Unconfirmed``.

        ``failed_before``: the record's ``failed`` as it was before the commit. ``synced``: SQLite has synced the commit already.
        """
        try:
            if not synced:
                self._sync()
            if self.read().failed != failed_before:
                raise Unconfirmed("another sync of the same file has failed")
        except OSError as error:
            raise Unconfirmed(error.strerror) from error

    def _sync(self) -> None:
        wal = self._wal_open
        is_new = wal is None or not wal.watched.is_in_place()
        if wal is None or is_new:
            with self._guard:
                wal = self._wal_open = _OpenWal(self._wal)
        try:
            os.fdatasync(wal.descriptor)
            if is_new:
                sync_directory(self._path.parent)
        except OSError:
            with suppress(OSError):
                self.note_failure()
            raise

    def note_failure(self) -> None:
        """A sync of the WAL has failed, ours or SQLite's own."""
        self._change(lambda now: SyncRecord(now.failed + 1, now.mended))

    def note_mended(self, doubtful: SyncRecord) -> None:
        """The WAL was copied and cut: sync that, and let durable commits go on. Raises ``OSError``.

        ``doubtful``: the record as it was before that. The writers' lock is held, so no commit came meanwhile.
        """
        self._sync()
        self._change(lambda now: SyncRecord(now.failed, max(now.mended, doubtful.failed)))

    def _change(self, change: Callable[[SyncRecord], SyncRecord]) -> None:
        with self._guard:
            file = self._record_file()
            fcntl.lockf(file, fcntl.LOCK_EX)
            try:
                record = change(self.read())
                values = _RECORD.pack(record.failed, record.mended)
                os.pwrite(file, values + _CHECKSUM.pack(zlib.crc32(values)), 0)
            finally:
                fcntl.lockf(file, fcntl.LOCK_UN)

    def _record_file(self) -> int:
        if self._descriptor is None:
            with self._guard:
                if self._descriptor is None:
                    self._descriptor = open_lock_file(self._path, self._access)
        return self._descriptor

    def close(self) -> None:
        """Close the descriptors; nobody may be in here. They are opened again when they are needed."""
        self._wal_open = None
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def reset_in_child(self) -> None:
        """In a forked child: a thread that may have had the guard is not here."""
        self._guard = threading.RLock()


class _OpenWal:
    """A descriptor of a ``-wal``, closed when nobody uses it any more: another thread may still be syncing a replaced one."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self.watched = Watched(path)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)
