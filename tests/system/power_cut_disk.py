"""A small real file system whose power can be cut.

It lies in an image file that is mounted by a loop device. The cut is the file system's own shutdown (``XFS_IOC_GOINGDOWN``, which
ext4 knows as well) without flushing its log: from that instant on nothing that was not written out reaches the image, and every
write and sync fails. What the device had is kept, so this shows what was *not synced*, or synced too late; sectors that tear and
caches of the device are what ``test_power_cut_simulated`` is for.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SHUTDOWN = 0x8004587D
"""``XFS_IOC_GOINGDOWN`` and ``EXT4_IOC_SHUTDOWN``."""
NO_LOG_FLUSH = 2
"""``XFS_FSOP_GOING_FLAGS_NOLOGFLUSH`` and ``EXT4_GOING_FLAGS_NOLOGFLUSH``."""

IMAGE_BYTES = 320 * 1024 * 1024
"""Sparse; mkfs.xfs makes nothing below 300 MiB."""

_UNMOUNT_SECONDS = 20


class Disk:
    """One file system, mounted at ``root`` while it has power."""

    def __init__(self, kind: str, directory: Path) -> None:
        self.kind = kind
        self.root = directory / f"{kind}-disk"
        self._image = directory / f"{kind}.image"
        self.root.mkdir()
        with self._image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run([f"mkfs.{kind}", "-q", self._image], check=True)

    def mount(self) -> None:
        subprocess.run(["mount", "-t", self.kind, "-o", "loop", self._image, self.root], check=True)

    def unmount(self) -> None:
        """Whoever used it has ended; the kernel may need a moment to see that."""
        deadline = time.monotonic() + _UNMOUNT_SECONDS
        while (done := subprocess.run(["umount", self.root], capture_output=True, check=False)).returncode:
            assert time.monotonic() < deadline, done.stderr
            time.sleep(0.02)

    @contextmanager
    def switch(self) -> Iterator[Switch]:
        descriptor = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield Switch(descriptor)
        finally:
            os.close(descriptor)


class Switch:
    """Held ready, so that the cut is one system call."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def cut(self) -> None:
        fcntl.ioctl(self._descriptor, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
