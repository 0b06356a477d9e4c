"""``AsyncQueueWriter``: pushing from ``asyncio`` without ever holding the event loop up.

    async with AsyncQueueWriter(config) as writer:
        reqid = await writer.push("metrics", "cpu", 1, {"percent": 12.5})

Everything that touches the disk is done by one thread of its own, one call after the other, so the order of the pushes is that of the
calls. When an awaited push returns, its message is as durable as with ``QueueWriter``.

- **Backpressure**: at most ``max_pending`` calls are under way; further ones wait for their turn, in order, before anything of them is
  kept. So a disk that is slow slows the tasks that push, and never fills the memory.
- **Cancellation** (also by ``asyncio.timeout``): a push that is cancelled before the thread took it up is not stored; one that the
  thread is at work on may be stored all the same. Who must know gives a ``reqid`` of his own and pushes again under it: the
  server recognises the repetition.
- An object belongs to one event loop and to its process: build another one for another loop, and in a forked child.
- The payload is serialised in the thread: leave it as it is until the push has returned.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from .errors import QueueClosed
from .queue_writer import QueueWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from uuid import UUID

    from .config import QueueWriterConfig
    from .storage import Books

__all__ = ["MAX_PENDING", "AsyncQueueWriter"]

MAX_PENDING = 1000
"""If not told otherwise."""

_LOOK_AGAIN_SECONDS = 0.02

_T = TypeVar("_T")


class AsyncQueueWriter:
    """A ``QueueWriter`` whose calls are awaited.

    The queue is opened by the first call, or by ``async with``, in the thread: that raises what building a ``QueueWriter`` does.
    ``max_pending``: how many calls may be under way, 1 or more.
    """

    def __init__(self, config: QueueWriterConfig, *, max_pending: int = MAX_PENDING) -> None:
        if max_pending < 1:
            raise ValueError(f"max_pending must be 1 or more, not {max_pending}")
        self._config = config
        self._slots = asyncio.Semaphore(max_pending)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ramen-writer")
        self._writer: QueueWriter | None = None  # the thread's
        self._closing: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<AsyncQueueWriter {self._writer!r}>"

    async def __aenter__(self) -> Self:
        try:
            await self._do(lambda _writer: None)
        except BaseException:  # there is no __aexit__ then
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def push(
        self,
        category: str,
        data_type: str,
        data_version: str | int,
        data: Any,
        reqid: str | int | UUID | None = None,
    ) -> str:
        """Store one message durably and return its reqid; as ``QueueWriter.push``, which it raises as."""
        return await self._do(lambda writer: writer.push(category, data_type, data_version, data, reqid))

    async def push_many(self, messages: Iterable[tuple[Any, ...]]) -> list[str]:
        """Store messages in one transaction, all or none; as ``QueueWriter.push_many``. The thread goes through ``messages``."""
        return await self._do(lambda writer: writer.push_many(messages))

    async def queue_size(self) -> int:
        """How many messages wait in the queue, whoever pushed them."""
        return await self._do(lambda writer: writer.queue_size())

    async def books(self) -> Books:
        """Where every message that was ever pushed into this queue is now."""
        return await self._do(lambda writer: writer.books())

    async def wait_sent(self, timeout: float | None = None) -> bool:
        """Wait until nothing that was pushed before this call waits any more; False when ``timeout`` seconds passed first.

        Others may push meanwhile. As ``QueueWriter.wait_sent``.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        is_sent = await self._do(lambda writer: writer.sent_check())
        while not await self._do(lambda _writer: is_sent()):
            left = _LOOK_AGAIN_SECONDS
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
                if left <= 0:
                    return False
            await asyncio.sleep(left)
        return True

    async def close(self) -> None:
        """Let what was called before end, and let go of the queue; what was pushed stays in it. Calls afterwards raise ``QueueClosed``.

        May be called again. Cancelled, it goes on in the thread.
        """
        if self._closing is None:
            self._closing = asyncio.get_running_loop().run_in_executor(self._thread, self._close)
            self._thread.shutdown(wait=False)
        await asyncio.shield(self._closing)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    async def _do(self, call: Callable[[QueueWriter], _T]) -> _T:
        """The result of a call that the thread makes when it is its turn."""
        loop = asyncio.get_running_loop()
        await self._slots.acquire()
        if self._closing is not None:
            self._slots.release()
            raise QueueClosed("this writer was closed; build a new one")
        done: asyncio.Future[_T] = loop.create_future()
        try:
            self._thread.submit(self._work, loop, done, call)
        except BaseException:
            self._slots.release()
            raise
        return await done

    # In the thread

    def _work(
        self, loop: asyncio.AbstractEventLoop, done: asyncio.Future[_T], call: Callable[[QueueWriter], _T]
    ) -> None:
        """Make a call. Its place is given up here and not where it is awaited: a cancelled call keeps its place until it is passed."""
        settle: Callable[[], None] = self._slots.release
        if not done.cancelled():
            try:
                if self._writer is None:
                    self._writer = QueueWriter(self._config)
                settle = partial(self._settle, done, call(self._writer), None)
            except BaseException as error:  # noqa: BLE001 - it is raised where the call is awaited
                settle = partial(self._settle, done, None, error)
        with suppress(RuntimeError):  # the loop is closed; nobody awaits any more
            loop.call_soon_threadsafe(settle)

    # In the loop

    def _settle(self, done: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
        self._slots.release()
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)
        else:
            done.set_exception(error)
