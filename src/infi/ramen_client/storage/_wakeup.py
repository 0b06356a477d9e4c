"""Waking whoever waits for a lock file in another process, by Linux's futex(2).

``flock`` waits without bound or not at all. Asking again and again takes processor time that the holder needs, and the lock lies idle until
somebody asks: four processes that push get a quarter more messages to the disk when the holder wakes the next one (measured).

A futex waits with a time-out, at an address that processes share: here a mapping of the lock's own file. Nothing but the system call ever
looks there, so a file that somebody cuts short kills nobody; and nothing depends on it: who missed a wake-up goes on after the time-out,
and where there is no futex (another system, no room for the file, a filter of system calls) ``wait`` sleeps.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_TIMEOUT_SECONDS = 0.0005
"""The lock is held for some 0.1 ms. Who had not to wait for it itself wakes nobody, so the others look now and then."""

_LOOK_AGAIN_SECONDS = 0.0002
"""Where nobody can be woken. More often would cost the processor time that the holder needs; less often makes the worst push longer (of 4
processes on 2 cores: 15 ms, against 27 ms when looking every 0.4 ms)."""

_WORD_BYTES = 4
_VALUE = 0
"""What the word at the address always is; who waits says so, and does not wait when it is something else."""

_WAIT = 0
_WAKE = 1
_WAITED = frozenset((errno.ETIMEDOUT, errno.EINTR))

# The number of the system call, by kind of machine (the kernel's tables); on 32 bits its time has another shape.
_NUMBERS = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Wakeup:
    """Of one process and one lock file, whose open descriptor this is made with, and which it holds open. Any thread may use it."""

    def __init__(self, descriptor: int) -> None:
        self._timeout = _Timespec(0, int(_TIMEOUT_SECONDS * 1e9))
        self._call: Callable[..., Any] = ctypes.CDLL(None, use_errno=True).syscall
        self._call.argtypes = (
            ctypes.c_long,
            ctypes.c_void_p,
            ctypes.c_long,
            ctypes.c_long,
            ctypes.POINTER(_Timespec),
        )
        self._number = _NUMBERS.get(platform.machine()) if sys.platform == "linux" else None
        self._memory: mmap.mmap | None = None
        self._address: int | None = None
        if self._number is not None and sys.maxsize > 2**32:
            with suppress(OSError, ValueError):
                self._share(descriptor)

    def _share(self, descriptor: int) -> None:
        if os.fstat(descriptor).st_size < _WORD_BYTES:
            os.pwrite(descriptor, _VALUE.to_bytes(_WORD_BYTES), 0)
        self._memory = mmap.mmap(descriptor, _WORD_BYTES)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))

    def wait(self) -> bool:
        """Wait until somebody calls ``wake`` (True), or for a moment."""
        if self._address is not None:
            if self._call(self._number, self._address, _WAIT, _VALUE, self._timeout) == 0:
                return True
            if ctypes.get_errno() in _WAITED:
                return False
        time.sleep(_LOOK_AGAIN_SECONDS)
        return False

    def wake(self) -> None:
        """Wake one of those that wait, if any."""
        if self._address is not None:
            self._call(self._number, self._address, _WAKE, 1, None)
