"""Making a queue's file, and taking over one of 1.x.

Both happen under the writers' lock and in one transaction, so that of many processes that start at once one does it and the
others find it done, and that a process killed at any point leaves either the former file or the whole schema
(docs/design/queue-file.md, "What each crash leaves").
"""

from __future__ import annotations

import grp
import os
import stat
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from infi.ramen_client.__version__ import __version__
from infi.ramen_client.errors import QueueUnusable

from . import _statements as sql
from ._database import (
    Kind,
    no_fork_meanwhile,
    open_connection,
    plain_errors,
    refuse_unsafe_sqlite,
    shared_database,
)
from ._locks import WritersLock
from ._trim import live_pages

if TYPE_CHECKING:
    from ._database import Database


@dataclass(frozen=True, slots=True)
class Place:
    """Whose queue a file is, and where it lies."""

    directory: str
    sender: str
    system_serial: int
    system_version: str
    group: str | None = None

    @property
    def file_mode(self) -> int:
        """The mode of the files that are made here."""
        return 0o660 if self.group else 0o600


@dataclass(frozen=True, slots=True)
class Meta:
    """What a file says of itself."""

    queue_id: str
    inlet_boundary: int
    inlet_system_version: str
    empty_pages: int


def open_database(place: Place) -> tuple[Database, Meta]:
    """Open the queue's file, making it or taking it over where needed.

    Raises ``QueueUnusable`` where mending is not ours to do; the file is untouched then.
    """
    refuse_unsafe_sqlite()
    directory = _make_directory(place)
    path = directory / f"{place.sender}_{place.system_serial}.db"
    try:
        with no_fork_meanwhile():
            return _open(path, place)
    except OSError as error:
        raise QueueUnusable(
            f"{path}: cannot be opened: {error.strerror}. Check the owner and mode of the file and its directory."
        ) from error


def _make_directory(place: Place) -> Path:
    wanted = Path(place.directory).expanduser().absolute()
    made: list[Path] = []
    try:
        parent = wanted
        while not parent.exists():
            made.append(parent)
            parent = parent.parent
        for directory in reversed(made):
            with suppress(FileExistsError):
                directory.mkdir(mode=0o700)
                _share_with_group(directory, place, 0o2770)
        if not wanted.is_dir():
            raise NotADirectoryError(0, "is not a directory")
        for directory in made:
            _sync_directory(directory.parent)
    except OSError as error:
        raise QueueUnusable(
            f"{wanted}: the queue's directory cannot be made or used: {error.strerror}. "
            "Give queue_dir a directory that this program may write to."
        ) from error
    # Symbolic links on the way to the directory are the operator's; one in place of the file is refused (NOFOLLOW).
    return wanted.resolve()


def _share_with_group(path: Path, place: Place, mode: int) -> None:
    if place.group is None:
        return
    try:
        group = grp.getgrnam(place.group).gr_gid
    except KeyError:
        raise QueueUnusable(
            f"queue_group: there is no group {place.group!r} on this host. Make it or name another."
        ) from None
    os.chown(path, -1, group)
    path.chmod(mode)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_empty_file(path: Path, place: Place) -> None:
    """Give the file its mode before SQLite writes to it: it would make it readable by everybody."""
    # A descriptor of a file that did not exist cannot drop a lock that this process has in it.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    with suppress(FileExistsError):
        os.close(os.open(path, flags, place.file_mode))
        _share_with_group(path, place, place.file_mode)


def _open(path: Path, place: Place) -> tuple[Database, Meta]:
    lock = WritersLock(path.with_name(path.name + ".writers"), place.file_mode)
    try:
        with lock.turn():
            _share_with_group(path.with_name(path.name + ".writers"), place, place.file_mode)
            _make_empty_file(path, place)
            if not stat.S_ISREG(path.stat(follow_symlinks=False).st_mode):
                raise QueueUnusable(
                    f"{path}: is not a regular file (a link or a directory is in its place). Remove it."
                )
            with plain_errors(path):
                _prepare(path, place)
    finally:
        lock.close()
    database = shared_database(path, place.file_mode)
    with database.connection(Kind.NORMAL) as connection:
        return database, _read_meta(connection, path)


def _prepare(path: Path, place: Place) -> None:
    """Bring the file into our format, whatever it is now."""
    connection = open_connection(path)
    try:
        if _is_ours(connection, path):
            _count_inlet(connection)
            return
        fresh = connection.execute(sql.PAGE_COUNT).get == 0
        if fresh:
            connection.pragma("page_size", 4096)
            connection.pragma("auto_vacuum", 2)
        if connection.pragma("journal_mode", "wal") != "wal":
            raise QueueUnusable(f"{path}: SQLite cannot use a write-ahead log here. Use a local file system.")
        _make_schema(connection, place)
        _count_inlet(connection)
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        _sync_directory(path.parent)
    finally:
        connection.close()


def _is_ours(connection: apsw.Connection, path: Path) -> bool:
    newest = connection.pragma("user_version")
    tables = {name for (name,) in connection.execute(sql.OUR_TABLES)}
    if "meta" in tables:
        _read_meta(connection, path)
        return True
    if newest not in (0, None) or connection.pragma("application_id") not in (0, None):
        raise QueueUnusable(
            f"{path}: is a database of another program. Move it away, or use another queue_dir."
        )
    return False


def _read_meta(connection: apsw.Connection, path: Path) -> Meta:
    row = connection.execute(sql.READ_META).get
    if row is None:
        raise QueueUnusable(f"{path}: is damaged (it does not say what it is). Move it away to start afresh.")
    min_reader, min_writer, queue_id, inlet_boundary, inlet_system_version, empty_pages = row
    if max(min_reader, min_writer) > sql.FORMAT:
        raise QueueUnusable(
            f"{path}: was written by a newer version (format {max(min_reader, min_writer)}, this one knows {sql.FORMAT}). "
            "Upgrade infi.ramen_client."
        )
    return Meta(queue_id, inlet_boundary, inlet_system_version, empty_pages)


def _make_schema(connection: apsw.Connection, place: Place) -> None:
    connection.execute(sql.BEGIN)
    try:
        pages_before = live_pages(connection)
        taken_over = bool(connection.execute(sql.OUR_TABLES).get)
        boundary = connection.execute(sql.INLET_LAST_ROW).get if taken_over else 0
        connection.execute(sql.SCHEMA)
        now = time.time_ns()
        if not taken_over:
            connection.execute(sql.SEED_INLET_SEQUENCE, (now // 1000,))
        connection.execute(
            sql.INSERT_META,
            (
                sql.FORMAT,
                sql.FORMAT,
                str(uuid.uuid4()),
                place.sender,
                place.system_serial,
                now // 1_000_000,
                __version__,
                boundary,
                place.system_version,
                0,
            ),
        )
        connection.execute(sql.INSERT_BOOK, (None if taken_over else 0,))
        connection.execute(sql.INSERT_READER)
        pages = live_pages(connection)
        empty_pages = pages - pages_before + _EMPTY_1X_PAGES if taken_over else pages
        connection.execute(sql.SET_EMPTY_PAGES, (empty_pages,))
        connection.pragma("application_id", sql.APPLICATION_ID)
        connection.pragma("user_version", sql.FORMAT)
        connection.execute(sql.COMMIT)
    except BaseException:
        if connection.in_transaction:
            connection.execute(sql.ROLLBACK)
        raise


def _count_inlet(connection: apsw.Connection) -> None:
    """Enter the backlog of a 1.x file into the books.

    Outside the take-over's transaction, since counting millions of rows takes its time and 1.x writers must not wait for it. The
    triggers count what comes and goes meanwhile; one read snapshot sees their counts and the rows at the same instant. Whoever
    is killed here leaves it to the next opener.
    """
    if connection.execute(sql.INLET_UNCOUNTED).get:
        base = connection.execute(sql.COUNT_INLET).get
        connection.execute(sql.SET_INLET_BASE, (base,))


_EMPTY_1X_PAGES = 4
"""A 1.x file without messages: the schema, the pointer map, ``queue``, ``sqlite_sequence``."""
