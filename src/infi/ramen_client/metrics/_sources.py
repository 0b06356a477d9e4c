"""Where the values come from."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from infi.ramen_client._status import look_at
from infi.ramen_client.errors import QueueError
from infi.ramen_client.health import HealthWatch, Observation, unreadable
from infi.ramen_client.storage import open_existing, queue_files

from ._table import METRICS

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from infi.ramen_client.storage import ExistingQueue

    from ._table import Metric

_REUSED_FOR_SECONDS = 1.0


class Source(Protocol):
    """Whoever can say what queues are like: the hook of this package."""

    def observe(self) -> Sequence[Observation]:
        """What each queue is like now. May be called from any thread; may raise ``QueueError`` when there is nothing to see."""


class QueueFiles:
    """A source for the queues whose files lie in a directory, or for one of them (``path`` is its file), beside the programs that use them.

    Disturbs neither writers nor readers, and creates nothing. Queues that come are seen, those that go are forgotten; one that cannot
    be read is observed as unreadable. ``max_queue_size`` is what the queues' programs are configured with, where that is known.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_queue_size: int | None = None) -> None:
        self._path = Path(path).expanduser()
        self._max_queue_size = max_queue_size
        self._open: dict[Path, ExistingQueue] = {}
        self._watches: dict[Path, HealthWatch] = {}
        self._guard = threading.Lock()

    def __repr__(self) -> str:
        return f"<QueueFiles {self._path}>"

    def observe(self) -> list[Observation]:
        """What each queue is like now. Raises ``QueueUnusable`` when the directory cannot be listed."""
        with self._guard:
            paths = [self._path]
            if self._path.is_dir():
                paths = [file.path for file in queue_files(self._path)]
            for gone in self._watches.keys() - set(paths):
                del self._watches[gone]
                self._open.pop(gone, None)
            return [self._look(path) for path in paths]

    def _look(self, path: Path) -> Observation:
        watch = self._watches.setdefault(path, HealthWatch())
        try:
            if path not in self._open:
                self._open[path] = open_existing(path)
            queue = self._open[path]
            queue.database.check_in_place()
            status = look_at(queue, max_queue_size=self._max_queue_size)
        except QueueError as error:
            self._open.pop(path, None)  # its file may have been replaced
            return Observation(path.stem, None, unreadable(str(error)), None)
        return Observation(path.stem, status, watch.look(status), None)


class Recent:
    """A source that asks another one at most once a second, however often it is asked itself. Threads may share it.

    So that whoever scrapes too often, or asks for many instruments one by one, costs no more than he who asks once.
    """

    def __init__(self, source: Source, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._monotonic = monotonic
        self._guard = threading.Lock()
        self._last: tuple[float, Sequence[Observation]] | None = None

    def observe(self) -> Sequence[Observation]:
        """As the source's; nothing when it fails with a ``QueueError``, since no monitoring must break a program."""
        with self._guard:
            now = self._monotonic()
            if self._last is None or now - self._last[0] >= _REUSED_FOR_SECONDS:
                try:
                    seen: Sequence[Observation] = self._source.observe()
                except QueueError:
                    seen = ()
                self._last = (now, seen)
            return self._last[1]


def collect(source: Source) -> list[tuple[Metric, list[tuple[dict[str, str], float]]]]:
    """Every metric that has a value now, with its samples: labels and value. Raises as ``source.observe`` does."""
    return tabulate(source.observe())


def tabulate(observations: Sequence[Observation]) -> list[tuple[Metric, list[tuple[dict[str, str], float]]]]:
    """``collect`` of what was observed."""
    found = [
        (metric, [sample for seen in observations for sample in samples_of(metric, seen)])
        for metric in METRICS
    ]
    return [(metric, samples) for metric, samples in found if samples]


def samples_of(metric: Metric, seen: Observation) -> list[tuple[dict[str, str], float]]:
    """One queue's samples of one metric."""
    queue = {"queue": seen.queue}
    return [
        ({**queue, metric.label: label} if metric.label else queue, float(value))
        for label, value in metric.samples(seen)
    ]
