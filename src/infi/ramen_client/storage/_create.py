"""Making a queue's file, and taking over one of 1.x.

Both happen under the writers' lock and in one transaction, so that of many processes that start at once one does it and the
others find it done, and that a process killed at any point leaves either the former file or the whole schema
(docs/design/queue-file.md, "What each crash leaves").
"""

from __future__ import annotations

import grp
import logging
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import apsw

from infi.ramen_client.__version__ import __version__
from infi.ramen_client.errors import QueueUnusable

from . import _statements as sql
from ._aside import put_aside, undo_half
from ._connection import Meta, open_connection, read_meta, refuse_unsafe_sqlite
from ._database import Kind
from ._errors import BUSY_TIMEOUT_SECONDS, Damaged, plain_errors
from ._files import (
    Access,
    access_beside,
    hand_to_group,
    is_regular_file,
    make_directories,
    make_empty_file,
    sync_way_to,
)
from ._filesystem import warn_of_unfit
from ._locks import WritersLock
from ._registry import no_fork_meanwhile, shared_database
from ._reserve import hold_log, hold_spare, refuse_deadly_disk
from ._salvage import FoundMessage, FoundRow, Salvage
from ._trim import live_pages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._database import Database

logger = logging.getLogger("ramen_client")

_EMPTY_1X_PAGES = 4
"""A 1.x file without messages: the schema, the pointer map, ``queue``, ``sqlite_sequence``."""

_INCREMENTAL = 2
"""``PRAGMA auto_vacuum``: free pages can be given back in steps."""

_WAL_SWITCH_RETRY_SECONDS = 0.01

_HOLD_OFF_SECONDS = 2


@dataclass(frozen=True, slots=True)
class Place:
    """Whose queue a file is, and where it lies."""

    directory: str
    sender: str
    system_serial: int
    system_version: str
    group: str | None = None

    def access(self) -> Access:
        """The mode and group of the files that are made here; ``QueueUnusable`` when there is no such group."""
        if self.group is None:
            return Access(0o600, None)
        try:
            return Access(0o660, grp.getgrnam(self.group).gr_gid)
        except KeyError:
            raise QueueUnusable(
                f"queue_group: there is no group {self.group!r} on this host. Make it or name another."
            ) from None


def open_database(place: Place) -> Database:
    """Open the queue's file, making it or taking it over where needed; a damaged one is put aside for a new one.

    Raises ``QueueUnusable`` where mending is not ours to do; the file is untouched then.
    """
    refuse_unsafe_sqlite()
    access = place.access()
    directory = _directory(place, access)
    warn_of_unfit(directory)
    path = directory / f"{place.sender}_{place.system_serial}.db"
    with no_fork_meanwhile(path), plain_errors(path):
        access = access_beside(path, access)
        meta, taken_over = _make_or_check(path, place, access)
        database = shared_database(path, meta, access)
    if taken_over is not None:
        logger.info("took over %d messages of 1.x in %s", taken_over, path)
    # So that a 1.x program that closes the file is not the last one, which would remove the log.
    with database.connection(Kind.NORMAL):
        return database


def _directory(place: Place, access: Access) -> Path:
    try:
        wanted = Path(place.directory).expanduser().absolute()
        make_directories(wanted, access)
        # Symbolic links on the way to the directory are the operator's; one in place of the file is refused (NOFOLLOW).
        return wanted.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: the ~ of a user who has no home
        raise QueueUnusable(
            f"{place.directory}: the queue's directory cannot be made or used: "
            f"{getattr(error, 'strerror', None) or error}. Give queue_dir a directory that this program may write to."
        ) from error


def _make_or_check(path: Path, place: Place, access: Access) -> tuple[Meta, int | None]:
    """Return what the file says of itself, and how many messages of 1.x were taken over now, None if none was to be."""
    lock = WritersLock(path.with_name(path.name + ".writers"), access)
    try:
        with lock.turn():
            undo_half(path)
            was_ours = path.with_name(path.name + ".sync").exists()
            try:
                return _make_or_check_in_turn(path, place, access)
            except (Damaged, apsw.CorruptError, apsw.NotADBError) as error:
                if not (was_ours or _holds_messages(path)):
                    raise
                return replace_damaged(path, place, access, error), None
    finally:
        lock.close()


def replace_damaged(path: Path, place: Place, access: Access, reason: Exception) -> Meta:
    """Put a damaged file aside and make a new one. The writers' turn is held, and this process has the file not open."""
    with _writers_held_off(path):
        aside = put_aside(path)
    logger.error(
        "%s: is damaged (%s); it was put aside as %s, and the queue goes on in a new file. What can be read of it is carried over by "
        "the reader. Check the disk.",
        path,
        reason,
        aside.name,
    )
    # Above every position of the old file, which are numbers of messages, or were made in this way too.
    meta, _ = _make_or_check_in_turn(path, place, access, first_position=time.time_ns() // 1000)
    return meta


def _holds_messages(path: Path) -> bool:
    """Whether anything of a queue can be read in a file that SQLite cannot open; else it is somebody else's."""
    with Salvage(path, path.with_name(path.name + "-wal")) as reading:
        return any(
            isinstance(found, FoundMessage) or (isinstance(found, FoundRow) and found.table == "queue")
            for found in reading
        )


@contextmanager
def _writers_held_off(path: Path) -> Iterator[None]:
    """Hold SQLite's own lock on a damaged file, as far as it can still be had, so that nobody commits to it any more."""
    with suppress(apsw.Error):
        connection = open_connection(path)
    try:
        with suppress(apsw.Error, UnboundLocalError):
            connection.set_busy_timeout(_HOLD_OFF_SECONDS * 1000)
            connection.execute(sql.BEGIN)
        yield
    finally:
        with suppress(apsw.Error, UnboundLocalError):
            connection.close()


def _make_or_check_in_turn(
    path: Path, place: Place, access: Access, *, first_position: int = 0
) -> tuple[Meta, int | None]:
    # SQLite would make the file readable by everybody.
    make_empty_file(path, access)
    if not is_regular_file(path):
        raise QueueUnusable(
            f"{path}: is not a regular file (a link or a directory is in its place). Remove it."
        )
    wal = path.with_name(path.name + "-wal")
    had_wal = wal.exists()
    refuse_deadly_disk(path)
    prepared = _prepare(path, place, first_position)
    lock_files = [path.with_name(path.name + suffix) for suffix in (".reader", ".sync")]
    if not (had_wal and lock_files[-1].exists()):
        # SQLite syncs the directory after making the WAL only if the same connection syncs it first, and tells nobody when that fails.
        # Before the lock files, so that whoever comes after one that failed here does it again.
        sync_way_to(path.parent)
    # On a full disk there would be no room for them when somebody wants them. Not before: they say that the file is a queue.
    for lock_file in lock_files:
        make_empty_file(lock_file, access)
    hold_log(path)
    for companion in (wal, path.with_name(path.name + "-shm")):
        hand_to_group(companion, access)
    return prepared


def _prepare(path: Path, place: Place, first_position: int) -> tuple[Meta, int | None]:
    """Bring the file into our format, whatever it is now; return as ``_make_or_check``."""
    connection = open_connection(path)
    try:
        if not _is_ours(connection, path):
            _set_up(connection, path)
            _make_schema(connection, path, place, first_position)
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        taken_over = _count_inlet(connection)
        hold_spare(connection)
        return read_meta(connection, path), taken_over
    except apsw.SQLError as error:
        # A statement of ours that does not fit a file that says it is ours.
        if connection.pragma("application_id") == sql.APPLICATION_ID:
            raise Damaged(f"{path}: its schema is damaged ({error})") from error
        raise
    finally:
        connection.close()


def _is_ours(connection: apsw.Connection, path: Path) -> bool:
    """Whether the file has our schema; False: it is 1.x's or holds nothing yet. ``QueueUnusable`` for anything else."""
    application = connection.pragma("application_id")
    if application == sql.APPLICATION_ID:
        read_meta(connection, path)
        return True
    empty = not connection.execute(sql.SCHEMA_SIZE).get
    of_1x = connection.execute(sql.INLET_COLUMNS).get == sql.COLUMNS_OF_1X
    if application and connection.execute(sql.META_COLUMNS).get.startswith(sql.COLUMNS_OF_META):
        raise Damaged(f"{path}: its header is damaged (its tables are a queue's)")
    if application or connection.pragma("user_version") or not (empty or of_1x):
        raise QueueUnusable(
            f"{path}: is a database of another program. Move it away, or use another queue_dir."
        )
    return False


def _set_up(connection: apsw.Connection, path: Path) -> None:
    """Give a file its settings that last: page size, auto-vacuum, WAL."""
    if connection.execute(sql.PAGE_COUNT).get == 0:
        connection.pragma("page_size", 4096)
        connection.pragma("auto_vacuum", _INCREMENTAL)
    elif connection.pragma("auto_vacuum") != _INCREMENTAL and not connection.execute(sql.SCHEMA_SIZE).get:
        # 1.x was killed while it made the file. Nothing is in it, so this costs nothing.
        connection.pragma("auto_vacuum", _INCREMENTAL)
        connection.execute(sql.VACUUM)
    if _switch_to_wal(connection) != "wal":
        raise QueueUnusable(f"{path}: SQLite cannot use a write-ahead log here. Use a local file system.")


def _switch_to_wal(connection: apsw.Connection) -> object:
    """Return the journal mode that is now; SQLite does not wait for others by itself here."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            return connection.pragma("journal_mode", "wal")
        except apsw.BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_WAL_SWITCH_RETRY_SECONDS)


def _make_schema(connection: apsw.Connection, path: Path, place: Place, first_position: int) -> None:
    connection.execute(sql.BEGIN)
    try:
        if _is_ours(connection, path):  # somebody made it who could not wait for the lock
            connection.execute(sql.ROLLBACK)
            return
        pages_before = live_pages(connection)
        taken_over = bool(connection.execute(sql.SCHEMA_SIZE).get)
        boundary = connection.execute(sql.INLET_LAST_ID).get if taken_over else 0
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
        connection.execute(sql.INSERT_BOOK, (None if taken_over else 0, first_position))
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


def _count_inlet(connection: apsw.Connection) -> int | None:
    """Enter the backlog of a 1.x file into the books; return how many messages it has, None when that was done before.

    Outside the take-over's transaction, since counting millions of rows takes its time and 1.x writers must not wait for it. The
    triggers count what comes and goes meanwhile; one read snapshot sees their counts and the rows at the same instant. Whoever
    is killed here leaves it to the next opener.
    """
    if not connection.execute(sql.INLET_UNCOUNTED).get:
        return None
    base: int = connection.execute(sql.COUNT_INLET).get
    connection.execute(sql.SET_INLET_BASE, (base,))
    return base if connection.changes() else None
