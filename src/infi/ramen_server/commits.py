"""Group commit: one thread, one commit for all submissions that wait.

Invariants:

- A submission's outcome is handed out after the ``Store.commit`` that held it has returned, never before.
- The thread takes what is there, up to ``MAX_GROUP`` submissions and ``MAX_GROUP_BYTES``, and waits for no more; the next group
  gathers while this one is committed.
- Nothing ends the thread but ``close``, which lets it finish everything that was submitted. An unexpected error is logged with its
  traceback and is the outcome of its group alone.
- Outcomes reach the event loop in one call for each group.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from .stores import Committed, Store, StoreUnavailable, Submission

if TYPE_CHECKING:
    from collections.abc import Callable

    from .metrics import Metrics

MAX_GROUP = 1000
MAX_GROUP_BYTES = 16 * 1024 * 1024

_RETRY_SECONDS = 5

_logger = logging.getLogger("ramen_server")

_Waiting = tuple[Submission, "asyncio.Future[Committed]"]


class GroupCommit:
    """Commits to one store for the coroutines of one event loop (the running one)."""

    def __init__(self, store: Store, metrics: Metrics, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._metrics = metrics
        self._now_ms = now_ms
        self._loop = asyncio.get_running_loop()
        self._ready = threading.Condition()  # guards the two below
        self._waiting: deque[_Waiting] = deque()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="ramen-commit", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many submissions wait for the next commit."""
        return len(self._waiting)

    async def commit(self, submission: Submission) -> Committed:
        """Return the outcomes once they are durable. Raises ``StoreUnavailable``; nothing was stored then."""
        outcome: asyncio.Future[Committed] = self._loop.create_future()
        with self._ready:
            if self._closing:
                raise StoreUnavailable("the collector is stopping", _RETRY_SECONDS)
            self._waiting.append((submission, outcome))
            self._ready.notify()
        return await outcome

    async def close(self) -> None:
        """Commit what waits, and end the thread."""
        with self._ready:
            self._closing = True
            self._ready.notify()
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while group := self._take():
            result = self._commit([submission for submission, _ in group])
            self._loop.call_soon_threadsafe(_hand_out, [future for _, future in group], result)
            del group, result  # not to be held while there is nothing to do
            try:
                self._store.maintain(self._now_ms())
            except Exception:
                _logger.exception("The store's maintenance failed; it is tried again after the next commit.")

    def _take(self) -> list[_Waiting]:
        """Wait for a group; empty when there is none and none will come."""
        group: list[_Waiting] = []
        size = 0
        with self._ready:
            while not self._waiting and not self._closing:
                self._ready.wait()
            while self._waiting and len(group) < MAX_GROUP and size < MAX_GROUP_BYTES:
                waiting = self._waiting.popleft()
                size += sum(len(message.payload) for message in waiting[0].messages)
                group.append(waiting)
        return group

    def _commit(self, submissions: list[Submission]) -> list[Committed] | StoreUnavailable:
        begun = time.perf_counter()
        try:
            outcomes = self._store.commit(submissions, self._now_ms())
        except StoreUnavailable as unavailable:
            self._metrics.failed_commits += 1
            return unavailable
        except Exception:
            _logger.exception("A commit of %d submissions failed; nothing was stored.", len(submissions))
            self._metrics.failed_commits += 1
            return StoreUnavailable("the collector failed to store", _RETRY_SECONDS)
        self._metrics.commits.observe(time.perf_counter() - begun)
        self._metrics.committed_submissions += len(submissions)
        return outcomes


def _hand_out(futures: list[asyncio.Future[Committed]], result: list[Committed] | StoreUnavailable) -> None:
    """In the loop. A future that is done already is a request that was cancelled; its message is stored all the same."""
    for index, future in enumerate(futures):
        if future.done():
            continue
        if isinstance(result, StoreUnavailable):
            future.set_exception(StoreUnavailable(result.reason, result.retry_after_seconds))
        else:
            future.set_result(result[index])
