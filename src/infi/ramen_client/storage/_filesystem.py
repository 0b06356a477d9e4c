"""The file system that a queue lies on: of what kind it is, and how much of it is free.

The queue needs locks that every process obeys, shared memory of a file, and syncs that reach the platter. Network file systems and
FUSE promise none of these for sure; an overlay has them all, and goes when its container goes. They are used all the same (it may
be what there is), with one warning for each path in a process.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("ramen_client")

_MOUNTS = Path("/proc/self/mountinfo")

_NETWORK = {
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "gfs2", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "pvfs2", "smb3",
    "smbfs", "virtiofs", "vboxsf",
}  # fmt: skip
"""As the kernel names them: what other machines have a hand in."""

_OVERLAY = {"overlay", "aufs"}

_ESCAPE = re.compile(r"\\([0-7]{3})")

_LOOK_EVERY_SECONDS = 1.0
_LOOK_EVERY_BYTES = 1024 * 1024

_warned_of: set[Path] = set()
_guard = threading.Lock()


def _renew_guard() -> None:
    global _guard  # noqa: PLW0603
    _guard = threading.Lock()


os.register_at_fork(after_in_child=_renew_guard)


def warn_of_unfit(directory: Path, mounts: Path = _MOUNTS) -> None:
    """Say it in the log, once for each directory in a process, when a queue does not lie well there. Never raises."""
    with _guard:
        if directory in _warned_of:
            return
        _warned_of.add(directory)
    kind = kind_of(directory, mounts)
    danger = _danger(kind)
    if danger:
        logger.warning("%s: lies on a file system of the kind %s: %s", directory, kind, danger)


def _danger(kind: str) -> str:
    if kind in _NETWORK:
        return (
            "locks and syncs of network file systems cannot be trusted, so messages may be lost or sent twice, and two hosts "
            "that use the queue at once will destroy it. Give queue_dir a directory on a local disk."
        )
    if kind == "fuse" or kind.startswith("fuse."):
        return (
            "whether its locks and syncs can be trusted is up to the program behind it; if not, messages may be lost. Give "
            "queue_dir a directory on a local disk."
        )
    if kind in _OVERLAY:
        return (
            "it belongs to a container, and what waits in the queue is lost when the container is removed. Give queue_dir a "
            "directory on a volume."
        )
    return ""


def kind_of(directory: Path, mounts: Path = _MOUNTS) -> str:
    """The kernel's name for the kind of file system that an absolute, resolved path lies on; empty when it is not known."""
    found, longest = "", -1
    try:
        text = mounts.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
    for line in text.splitlines():
        # id parent major:minor root mount-point options optional-fields … - kind source super-options
        mount, _, rest = line.partition(" - ")
        fields = mount.split(" ")
        if len(fields) < 6 or not rest:  # noqa: PLR2004 - see above
            continue
        point = _ESCAPE.sub(lambda escape: chr(int(escape[1], 8)), fields[4])
        # Of two that are mounted over one another the later one is seen.
        if len(point) >= longest and directory.is_relative_to(point):
            found, longest = rest.split(" ")[0], len(point)
    return found


def free_bytes(directory: Path) -> int | None:
    """What this process's user may still use of a directory's file system; None: it cannot be seen."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


class FreeSpace:
    """Whether a file system has less free than is to be left; looked at once a second and once for each MiB pushed."""

    def __init__(
        self, directory: Path, min_free_bytes: int, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._directory = directory
        self._min_free_bytes = min_free_bytes
        self._monotonic = monotonic
        self._looked_at = float("-inf")
        self._pushed_bytes = 0  # since then
        self._free_bytes = 0

    def is_low(self, pushed_bytes: int) -> bool:
        """Whether a push of so many bytes would leave less than that."""
        if not self._min_free_bytes:
            return False
        now = self._monotonic()
        self._pushed_bytes += pushed_bytes
        if self._pushed_bytes >= _LOOK_EVERY_BYTES or now - self._looked_at >= _LOOK_EVERY_SECONDS:
            found = free_bytes(self._directory)
            if found is None:
                return False  # the push itself will say what is wrong
            self._free_bytes = found
            self._looked_at, self._pushed_bytes = now, pushed_bytes
        return self._free_bytes - self._pushed_bytes < self._min_free_bytes
