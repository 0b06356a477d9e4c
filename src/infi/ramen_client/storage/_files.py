"""Directories and files of a queue, apart from what is in them: making, modes, syncing.

Nothing here opens the database or its ``-shm``: closing any descriptor of theirs would drop SQLite's locks in this process.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW

_OWNER_ALONE = 0o600

_SECOND_NS = 1_000_000_000
_TICK_NS = _SECOND_NS // 10
"""Longer than the tick of a file system's clock that shows parts of a second (Linux: at most 10 ms)."""

_COARSE_TICK_NS = 3 * _SECOND_NS
"""Longer than that of any clock (FAT: 2 s)."""

Stamp = tuple[int, int, int, int]
"""A directory as it was at a moment: its inode and device, when its entries and itself changed."""


@dataclass(frozen=True, slots=True)
class Access:
    """Who may use a queue's files: their mode, and the group (its number) that they are opened to, if any."""

    mode: int
    group: int | None
    owner: int | None = None
    """Whom root makes them for, where a database is there already; else who makes them."""


def access_beside(path: Path, wanted: Access) -> Access:
    """What files beside a database need so that whoever may use it may use them too.

    A 1.x queue that several users share is such a case; SQLite does the same for the ``-wal``. Where there is no file yet,
    ``wanted``.
    """
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return wanted
    if not stat.S_ISREG(found.st_mode):
        return wanted  # it will be refused
    mode = wanted.mode | (stat.S_IMODE(found.st_mode) & 0o666)
    is_root = os.geteuid() == 0
    may_hand_over = is_root or found.st_gid in (os.getegid(), *os.getgroups())
    group = wanted.group
    if group is None and mode & 0o060 and may_hand_over:
        group = found.st_gid
    return Access(mode, group, found.st_uid if is_root else None)


def make_directories(wanted: Path, access: Access) -> None:
    """Make a directory and the parents that are missing, synced; those that exist keep their mode and owner."""
    made: list[Path] = []
    parent = wanted
    while not parent.exists():
        made.append(parent)
        parent = parent.parent
    for directory in reversed(made):
        with suppress(FileExistsError):
            directory.mkdir(mode=0o700)
            if access.group is not None:
                os.chown(directory, -1, access.group)
                directory.chmod(0o2770)
    if not wanted.is_dir():
        raise NotADirectoryError(0, "is not a directory")
    for directory in made:
        sync_directory(directory.parent)


def sync_directory(directory: Path) -> None:
    """Put a directory's entries on the platter."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_way_to(directory: Path) -> None:
    """Put a directory's entries on the platter, and its own name and those of the directories above it.

    Whoever made them may have been killed, or have failed, before syncing them. A directory above that this user may not read, or whose
    file system syncs none, was not made by one of ours.
    """
    sync_directory(directory)
    device = directory.stat().st_dev
    for parent in directory.parents:
        if parent.stat().st_dev != device:  # nobody made the root of a file system
            return
        try:
            sync_directory(parent)
        except OSError as error:
            if error.errno == errno.EIO:
                raise


def make_empty_file(path: Path, access: Access) -> None:
    """Make a file if there is nothing at its path; what is there, a symbolic link too, is left alone.

    A descriptor of a file that did not exist cannot drop a lock that this process has in it.
    """
    with suppress(FileExistsError):
        os.close(_make(path, access))


def open_lock_file(path: Path, access: Access) -> int:
    """Open (creating if needed) a lock file; never through a symbolic link."""
    while True:
        try:
            return _make(path, access)
        except FileExistsError:
            # Without O_CREAT: in a sticky directory Linux refuses that for another user's file (fs.protected_regular).
            with suppress(FileNotFoundError):  # it went meanwhile
                return os.open(path, _OPEN)


def _make(path: Path, access: Access) -> int:
    descriptor = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, access.mode)
    try:
        if access.owner is not None:
            with suppress(PermissionError):  # some network file systems refuse even root
                os.fchown(descriptor, access.owner, -1)
        if access.group is not None:
            os.fchown(descriptor, -1, access.group)
        if access.mode != _OWNER_ALONE:
            os.fchmod(descriptor, access.mode)  # the umask took the others' share away
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def hand_to_group(path: Path, access: Access) -> None:
    """Give a file that SQLite made to the group; in a directory that we did not make it has the maker's own."""
    if access.group is None:
        return
    with suppress(FileNotFoundError):
        found = path.stat(follow_symlinks=False)
        if found.st_gid != access.group and found.st_uid == os.geteuid():
            os.chown(path, -1, access.group, follow_symlinks=False)


def is_regular_file(path: Path) -> bool:
    """Whether a file of its own lies at the path, not a link, a directory or a pipe."""
    return stat.S_ISREG(path.stat(follow_symlinks=False).st_mode)


class Watched:
    """A file that lay at its path when this was made, and whether it lies there still.

    Asked by its name in ``/proc``, where the system has that, not by ``stat``: on Linux from 6.13 on, whoever reads a file's times makes
    the next sync of it a third slower (measured: 150 to 240 us; the times must be finer then, so the inode is written, too).
    ``os.O_PATH``: closing the descriptor drops no lock.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._link = f"/proc/self/fd/{self._descriptor}"
        self._name = _name_of(self._link)
        found = os.fstat(self._descriptor)
        self._identity = (found.st_dev, found.st_ino)

    def is_in_place(self) -> bool:
        """Whether the path leads to it."""
        if self._name is not None:
            return _name_of(self._link) == self._name
        try:
            found = os.lstat(self._path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (found.st_dev, found.st_ino) == self._identity

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def _name_of(link: str) -> str | None:
    try:
        return os.readlink(link)  # noqa: PTH115 - on the path of every push
    except OSError:
        return None


class DirectoryWatch:
    """Whether every name in a directory still leads to what it led to when all of them were looked at: one ``stat``.

    A directory's times change with every name in it, so as long as they stay, nothing in it was deleted, renamed or replaced. Two changes
    within a tick of the clock leave the same times: they are believed only when they are older than that.
    What is mounted over a name changes no directory, and is not seen.
    """

    def __init__(self, directory: Path, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = os.fspath(directory)
        self._now_ns = now_ns
        self._settled: Stamp | None = None

    def stamp(self) -> Stamp | None:
        """The directory as it is now; None: it cannot be seen. To be taken before its names are looked at."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - on the path of every push
        except OSError:
            return None
        return found.st_ino, found.st_dev, found.st_mtime_ns, found.st_ctime_ns

    def is_settled(self, stamp: Stamp | None) -> bool:
        """Whether the names were found as they should be when the directory was the same."""
        return stamp is not None and stamp == self._settled

    def settle(self, stamp: Stamp | None) -> None:
        """The names were looked at after ``stamp`` was taken, and found as they should be."""
        if stamp is None:
            return
        changed_ns = max(stamp[2:])
        if self._now_ns() - changed_ns > (_TICK_NS if changed_ns % _SECOND_NS else _COARSE_TICK_NS):
            self._settled = stamp
