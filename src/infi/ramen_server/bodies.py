"""Reading of requests' bodies, in bounded memory.

- Bodies and payloads in memory are reserved from ``max_memory_bytes`` before they are there, and given back with the decision.
- What is compressed is decoded with a bound that most bodies keep, and only then with the whole one.
- Small bodies are read in the loop, large ones on a worker thread.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from . import admission
from .admission import Decision, LargerThanTried

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive

    from .limits import Limits

DECODERS = 2
"""How many large bodies are decoded at a time."""

_INLINE_BODY_BYTES = 32 * 1024  # what is decoded in the loop: at most a few milliseconds
_TRY_RATIO = 16  # telemetry compresses to a third or a tenth
_TRY_BYTES = 64 * 1024

_Read = TypeVar("_Read")


class ClientLeft(Exception):
    """The connection ended before the body did."""


class Memory:
    """What is left of ``max_memory_bytes``."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.used = 0

    def reserve(self, count: int) -> bool:
        """Take ``count`` bytes; False when they are not there."""
        if self.used + count > self._max_bytes:
            return False
        self.used += count
        return True


class Reservation:
    """One request's share of the memory."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._held = 0

    def hold(self, count: int) -> bool:
        """Hold ``count`` bytes from now on, more or less than before; False when they are not there."""
        if not self._memory.reserve(count - self._held):
            return False
        self._held = count
        return True

    def release(self) -> None:
        """Give everything back."""
        self.hold(0)


class Bodies:
    """The memory and the threads that bodies are read with. ``close`` ends the threads."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.memory = Memory(limits.max_memory_bytes)
        self._decoders = ThreadPoolExecutor(DECODERS, "ramen-decode")

    def close(self) -> None:
        """Wait for what is being decoded, and end the threads."""
        self._decoders.shutdown()

    async def receive(
        self, receive: Receive, reservation: Reservation, *, declared_bytes: int | None, max_bytes: int
    ) -> bytes | Decision:
        """Take a body off the wire. Raises ``ClientLeft``."""
        if not reservation.hold(declared_bytes or 0):
            return admission.BUSY
        limits = self._limits
        clock = asyncio.get_running_loop().time
        deadline = clock() + limits.body_seconds
        chunks: list[bytes] = []
        size = 0
        more = True
        while more:
            try:
                async with asyncio.timeout_at(min(deadline, clock() + limits.body_idle_seconds)):
                    event = await receive()
            except TimeoutError:
                return admission.SLOW
            if event["type"] != "http.request":
                raise ClientLeft
            chunk = event.get("body", b"")
            more = event.get("more_body", False)
            size += len(chunk)
            if size > max_bytes:
                return admission.too_large(max_bytes)
            if declared_bytes is None and not reservation.hold(size):
                return admission.BUSY
            chunks.append(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def read(
        self,
        read: Callable[[int], _Read | Decision | LargerThanTried],
        body_bytes: int,
        reservation: Reservation,
        *,
        max_bytes: int,
        copies: int = 1,
    ) -> _Read | Decision:
        """Call ``read`` with how many bytes may come out, first few and then ``max_bytes``; it holds ``copies`` of them."""
        try_bytes = min(max_bytes, _TRY_RATIO * body_bytes + _TRY_BYTES)
        while True:
            if not reservation.hold(body_bytes + copies * try_bytes):
                return admission.BUSY
            if try_bytes <= _TRY_RATIO * _INLINE_BODY_BYTES + _TRY_BYTES:
                found = read(try_bytes)
            else:
                found = await asyncio.get_running_loop().run_in_executor(self._decoders, read, try_bytes)
            if not isinstance(found, LargerThanTried):
                return found
            try_bytes = max_bytes
