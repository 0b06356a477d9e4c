"""Queues that exist already, for operators: found in a directory, opened, and never made, healed or taken over.

Whoever only looks must leave everything as it is: no schema, no lock file, no take-over. A file of 1.x that 2.0 has not taken over is
refused with what can be said of it at no cost. From then on the file is this process's shared ``Database``, as for writers and
readers, so that looking at a queue that the same program uses, and forking meanwhile, is safe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infi.ramen_client.errors import QueueUnusable

from . import _statements as sql
from ._connection import open_connection, read_meta, refuse_unsafe_sqlite
from ._errors import plain_errors
from ._files import Access, access_beside, is_regular_file
from ._registry import no_fork_meanwhile, shared_database

if TYPE_CHECKING:
    import os

    import apsw

    from ._connection import Meta
    from ._database import Database

_FILE_NAME = re.compile(r"([A-Za-z0-9_-]+)_([0-9]+)\.db", re.ASCII).fullmatch


@dataclass(frozen=True, slots=True)
class QueueFile:
    """A file in a queue directory that is named as a queue is."""

    path: Path
    sender: str
    system_serial: int


def queue_files(directory: str | os.PathLike[str]) -> list[QueueFile]:
    """The queues in a directory by their names, which are not opened; sorted. Raises ``QueueUnusable`` for what cannot be listed."""
    try:
        wanted = Path(directory).expanduser()
        names = sorted(path.name for path in wanted.iterdir())
    except (OSError, RuntimeError) as error:  # RuntimeError: the ~ of a user who has no home
        reason = getattr(error, "strerror", None) or error
        raise QueueUnusable(f"{directory}: the queue directory cannot be listed: {reason}.") from error
    found = ((name, _FILE_NAME(name)) for name in names)
    return [QueueFile(wanted / name, match[1], int(match[2])) for name, match in found if match]


@dataclass(frozen=True, slots=True)
class ExistingQueue:
    """An open queue, and whose it is, as its file says."""

    database: Database
    meta: Meta
    sender: str
    system_serial: int


def open_existing(path: Path) -> ExistingQueue:
    """Open a queue's file that is there.

    Raises ``QueueUnusable`` where there is none, where it may not be used, and where it is none of ours; the file is untouched.
    """
    refuse_unsafe_sqlite()
    path = path.expanduser().absolute()
    path = path.parent.resolve() / path.name  # as writers and readers do: the file itself may be no link
    with no_fork_meanwhile(path), plain_errors(path):
        try:
            regular = is_regular_file(path)
        except (FileNotFoundError, NotADirectoryError):
            raise QueueUnusable(
                f"{path}: there is no queue. Check queue_dir, sender and system_serial; a queue comes into being when a program "
                "opens it."
            ) from None
        if not regular:
            raise QueueUnusable(f"{path}: is not a regular file, so it is no queue.")
        connection = open_connection(path)
        try:
            _refuse_others(connection, path)
            meta = read_meta(connection, path)
            sender, serial = next(connection.execute(sql.READ_OWNER))
        finally:
            connection.close()
        database = shared_database(path, meta, access_beside(path, Access(0o600, None)))
    return ExistingQueue(database, meta, sender.decode(errors="replace"), serial)


def _refuse_others(connection: apsw.Connection, path: Path) -> None:
    """Raise ``QueueUnusable`` for a file that has not our schema."""
    if connection.pragma("application_id") == sql.APPLICATION_ID:
        return
    if connection.execute(sql.INLET_COLUMNS).get == sql.COLUMNS_OF_1X:
        rows, oldest = next(connection.execute(sql.FACTS_OF_1X))
        waiting = (
            f"at most {rows} messages wait in it, the oldest since {oldest} UTC"
            if rows
            else "nothing waits in it"
        )
        raise QueueUnusable(
            f"{path}: is a queue of 1.x that 2.0 has not taken over yet; {waiting}. Start the program that writes or reads it under "
            "2.0: that takes it over, with all its messages."
        )
    raise QueueUnusable(f"{path}: is no queue (or a program is just about to make it).")
