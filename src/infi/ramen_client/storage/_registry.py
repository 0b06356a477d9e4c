"""This process's open databases: one for each file, all of them made ready before a fork.

Before every fork that Python sees, each database lets running transactions end and closes its connections: SQLite's table of POSIX
locks is inherited by the child, where nothing holds them, and both sides would destroy the file. A database that could not be
made ready goes on in the parent and raises ``QueueForked`` in the child.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from infi.ramen_client.errors import QueueError

from ._database import Database

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ._connection import Meta
    from ._files import Access

_guard = threading.RLock()  # guards everything below; held while a file is opened, and over a fork

_by_path: weakref.WeakValueDictionary[Path, Database] = weakref.WeakValueDictionary()

_all: weakref.WeakSet[Database] = weakref.WeakSet()
"""All living databases, also those whose path leads to another file by now."""

_ready: list[Database] = []
"""Those that were made ready for the fork that is under way."""


@contextmanager
def no_fork_meanwhile(path: Path) -> Iterator[None]:
    """For connections outside the pool, while a file is made: a fork waits for the end of it.

    Raises ``QueueForked`` in a process whose parent had this very file open when it forked and no hook closed it.
    """
    for database in list(_all):
        if database.path == path:
            database.check_process()
    with _guard:
        yield


def shared_database(path: Path, meta: Meta, access: Access) -> Database:
    """This process's ``Database`` for the queue that is at ``path`` now; the file must exist."""
    found = path.stat(follow_symlinks=False)
    identity = (found.st_dev, found.st_ino)
    with _guard:
        database = _by_path.get(path)
        if database is None or (database.identity, database.meta.queue_id) != (identity, meta.queue_id):
            database = _by_path[path] = Database(path, identity, meta, access)
            _all.add(database)
        return database


def _before_fork() -> None:
    _guard.acquire()
    for database in list(_all):
        if not database.is_of_this_process:
            continue
        with suppress(QueueError):  # it waited too long for a transaction
            database.prepare_fork()
            _ready.append(database)


def _after_fork_in_parent() -> None:
    for database in _ready:
        database.resume_in_parent()
    _ready.clear()
    _guard.release()


def _after_fork_in_child() -> None:
    global _guard  # noqa: PLW0603
    _guard = threading.RLock()
    for database in _ready:
        database.resume_in_child()
    _ready.clear()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
