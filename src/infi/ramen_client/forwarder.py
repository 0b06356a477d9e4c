"""The reader as a service: a queue, or every queue of a directory, delivered until told to stop.

    with Forwarder(partial(QueueReaderConfig.load, "/etc/ramen/forward.toml"), "/var/lib/ramen") as forwarder:
        while not ended:
            forwarder.look()      # every second or so: picks up new queues, drops those that are gone

Each queue has a ``QueueReader`` in a thread of its own; one queue's trouble is no other's. A ``Forwarder`` is used by one thread.

- Whose a queue is (sender, serial, version) its file says, not its name: a file that was renamed is left alone, with an error in
  the log. A file of 1.x is left alone until a program of 2.0 has taken it over, since only that program knows its system version.
- A queue that cannot be opened is an error in the log, once, and is tried again at each look.
- ``reload`` reads the configuration again and begins with it anew. What was in flight then is sent again under its reqid, which the
  server knows; nothing is lost, nothing stored twice. A configuration that is wrong changes nothing.
- A refused token ends nothing: the readers keep their messages, back off and say so (``QueueReader.start_thread``).
- Each queue costs a thread, a connection to the server and some fifteen descriptors.
"""

from __future__ import annotations

import logging
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from .errors import AuthenticationError, QueueError, QueueUnusable
from .health import Observation, unreadable
from .queue_reader import QueueReader
from .storage import open_existing, queue_files

if TYPE_CHECKING:
    import os
    import threading
    from collections.abc import Iterator
    from types import TracebackType

    from .config import QueueReaderConfig
    from .storage import Books

logger = logging.getLogger("ramen_client")


class LoadConfig(Protocol):
    """``QueueReaderConfig.load`` with its file already given, say: called again to read the configuration again."""

    def __call__(self, **fields: str | int) -> QueueReaderConfig:
        """The configuration with these fields over it. Raises ``ValidationError``."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What ``deliver_once`` did with one queue; numbers of messages."""

    queue: str
    handled: int
    """Those that were accepted or dropped, or refused for good."""
    refused: int
    """Those of them that became dead letters."""
    waiting: int
    problem: str = ""
    """Why nothing more was tried, where it is not in the log."""

    @property
    def complete(self) -> bool:
        """Whether nothing is left, nothing was refused, and nothing was in the way."""
        return not (self.waiting or self.refused or self.problem)


@dataclass(frozen=True, slots=True)
class _Running:
    reader: QueueReader
    thread: threading.Thread


class Forwarder:
    """Readers in threads, for the queue that the configuration names or for every queue of ``directory``.

    With a ``directory``, what the configuration says of the queue (sender, serial, version, directory) does not count and may be
    missing. ``load`` is called once here, so that a wrong configuration (``ValidationError``) is known before anything begins.
    """

    def __init__(self, load: LoadConfig, directory: str | os.PathLike[str] | None = None) -> None:
        self._load = load
        self._directory = None if directory is None else Path(directory).expanduser().absolute()
        self._config = self._load_config()
        self._running: dict[Path, _Running] = {}
        self._said: dict[Path, str] = {}
        self._begun: Path | None = None

    def __repr__(self) -> str:
        return f"<Forwarder of {len(self._running)} queues to {self._config.hostname}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def queues(self) -> list[str]:
        """The names of the queues (``{sender}_{system_serial}``) that are delivered now."""
        return [path.stem for path in self._running]

    def look(self) -> None:
        """Begin with queues that are new, let go of those that are gone.

        Raises ``QueueUnusable`` when the directory cannot be listed, and without a directory ``QueueError`` when the queue cannot be
        opened. That one is created if needed, but not made anew when it was taken away: it is waited for.
        """
        for path, running in list(self._running.items()):
            if not running.thread.is_alive():
                running.reader.close()
                del self._running[path]
        if self._directory is None:
            self._look_for_one()
            return
        files = queue_files(self._directory)
        self._said = {file.path: self._said[file.path] for file in files if file.path in self._said}
        for file in files:
            if file.path not in self._running:
                try:
                    self._begin(file.path, self._config_of(file.path))
                except QueueError as error:
                    self._complain(file.path, str(error))

    def _look_for_one(self) -> None:
        config = self._config
        path = Path(config.queue_dir).expanduser() / f"{config.sender}_{config.system_serial}.db"
        if path not in self._running and (path != self._begun or path.exists()):
            self._begin(path, config)
            self._begun = path

    def waiting(self) -> int:
        """How many messages wait in all queues that are delivered now."""
        total = 0
        for running in self._running.values():
            try:
                total += running.reader.books().waiting
            except QueueError:
                continue  # it was taken away, as its reader finds, too
        return total

    def observe(self) -> list[Observation]:
        """What each queue is like now, those that cannot be opened too; a source for ``infi.ramen_client.metrics``."""
        seen: list[Observation] = []
        for path, running in self._running.items():
            try:
                seen += running.reader.observe()
            except QueueError as error:
                seen.append(Observation(path.stem, None, unreadable(str(error)), None))
        seen += [Observation(path.stem, None, unreadable(text), None) for path, text in self._said.items()]
        if self._begun is not None and not self._running:
            text = f"{self._begun}: was taken away; it is waited for"
            seen.append(Observation(self._begun.stem, None, unreadable(text), None))
        return seen

    def hanging(self) -> dict[str, float]:
        """The queues whose reader's thread hangs, and for how many seconds (``QueueReader.hangs_for``). Never waits."""
        found = {running.reader.name: running.reader.hangs_for() for running in self._running.values()}
        return {name: seconds for name, seconds in found.items() if seconds}

    def reload(self) -> None:
        """Read the configuration and the token's file again and begin anew with them; what was delivered until now stops meanwhile.

        Raises ``ValidationError`` for a configuration that is wrong: then all goes on as before. Else as ``look``, which it ends with.
        """
        self._config = self._load_config()
        self.close()
        self._said.clear()
        self.look()

    def deliver_once(self) -> Iterator[Delivered]:
        """Deliver what waits, queue by queue, each until it is empty or something is in the way: nothing is waited for.

        Not beside ``look``. Raises as that does.
        """
        if self._directory is None:
            yield _deliver(QueueReader(self._config))
            return
        for file in queue_files(self._directory):
            try:
                reader = QueueReader(self._config_of(file.path))
            except QueueError as error:
                yield Delivered(file.path.stem, 0, 0, 0, str(error))
            else:
                yield _deliver(reader)

    def close(self) -> None:
        """Stop all readers, within 0.1 s, and let go of the queues; messages stay in them."""
        for running in self._running.values():
            running.reader.stop()
        for running in self._running.values():
            running.thread.join()
            running.reader.close()
        self._running.clear()

    def _load_config(self) -> QueueReaderConfig:
        if self._directory is None:
            return self._load()
        # Each queue's own come in their place; until then the fields must hold something that is valid.
        return self._load(sender="any", system_serial=0, system_version="0", queue_dir=str(self._directory))

    def _config_of(self, path: Path) -> QueueReaderConfig:
        """The configuration for a queue that exists. Raises ``QueueUnusable`` when it is none, or not the one that it is called."""
        queue = open_existing(path)
        if path.name != f"{queue.sender}_{queue.system_serial}.db":
            raise QueueUnusable(
                f"{path}: is the queue of {queue.sender}, serial {queue.system_serial}, under another name. Give it its own name, "
                f"{queue.sender}_{queue.system_serial}.db, or move it away."
            )
        config = copy(self._config)
        config.sender = queue.sender
        config.system_serial = queue.system_serial
        config.system_version = queue.meta.inlet_system_version
        return config

    def _begin(self, path: Path, config: QueueReaderConfig) -> None:
        reader = QueueReader(config)
        self._running[path] = _Running(reader, reader.start_thread())
        self._said.pop(path, None)

    def _complain(self, path: Path, text: str) -> None:
        if self._said.get(path) != text:
            self._said[path] = text
            logger.error("%s This queue is not delivered; trying again.", text)


def _deliver(reader: QueueReader) -> Delivered:
    """Deliver one queue's messages, once, and let go of it."""
    with reader:
        before = reader.books()
        problem = ""
        try:
            reader.run(blocking=False)
        except (AuthenticationError, QueueError) as error:
            problem = str(error)
        after = reader.books()
    return Delivered(
        reader.name,
        _handled(after) - _handled(before),
        _refused(after) - _refused(before),
        after.waiting,
        problem,
    )


def _handled(books: Books) -> int:
    return books.accepted + books.dropped + books.blacklisted + _refused(books)


def _refused(books: Books) -> int:
    return books.dead + books.dead_discarded
