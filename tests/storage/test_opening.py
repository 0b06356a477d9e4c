"""Opening a queue: what is made and with which modes, what is refused, and files that go away."""

from __future__ import annotations

import errno
import grp
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest
from queues import (
    activate,
    assert_sound,
    drain,
    make_1x_file,
    make_message,
    make_queue,
    push,
    query,
    run,
)

from infi.ramen_client.errors import DiskFull, QueueError, QueueGone, QueueUnusable
from infi.ramen_client.storage import ActiveReader
from infi.ramen_client.storage._connection import refuse_unsafe_sqlite
from infi.ramen_client.storage._database import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infi.ramen_client.storage import Queue

NAME = "imx_1099.db"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat(follow_symlinks=False).st_mode)


def test_directory_and_file_exist_once_the_queue_is_built_and_are_for_their_user_alone(
    tmp_path: Path,
) -> None:
    os.umask(os.umask(0o022))
    queue = make_queue(tmp_path / "a" / "b")
    push(queue)
    activate(queue).close()
    assert [mode(tmp_path / "a"), mode(tmp_path / "a" / "b")] == [0o700, 0o700]
    names = {path.name: mode(path) for path in queue.path.parent.iterdir()}
    assert names == dict.fromkeys(
        [NAME, f"{NAME}-wal", f"{NAME}-shm", f"{NAME}.writers", f"{NAME}.reader", f"{NAME}.sync"], 0o600
    )


def test_a_directory_that_exists_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    make_queue(tmp_path)
    assert mode(tmp_path) == 0o755


@AS_ROOT
def test_queue_group_opens_everything_to_the_group_whatever_the_umask(tmp_path: Path) -> None:
    group = grp.getgrgid(1)
    before = os.umask(0o077)
    try:
        queue = make_queue(tmp_path / "a" / "b", group=group.gr_name)
        push(queue)
        activate(queue).close()
    finally:
        os.umask(before)
    for directory in (tmp_path / "a", tmp_path / "a" / "b"):
        assert (mode(directory), directory.stat().st_gid) == (0o2770, group.gr_gid)
    for path in queue.path.parent.iterdir():
        assert (path.name, mode(path), path.stat().st_gid) == (path.name, 0o660, group.gr_gid)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can reach."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


AS_OTHER = """
import grp
os.setgroups([int(sys.argv[2])] if len(sys.argv) > 2 else [])
os.setgid(65534)
os.setuid(65534)
"""
USE = "queue = make_queue(sys.argv[1], group=grp.getgrgid(int(sys.argv[2])).gr_name)\npush(queue, 3)\nprint(len(drain(queue)))"
REFUSED = """
from infi.ramen_client.errors import QueueUnusable
try:
    make_queue(sys.argv[1])
except QueueUnusable as error:
    print(error)
"""


@AS_ROOT
@pytest.mark.parametrize("made_by_us", [True, False])
def test_a_member_of_the_group_uses_a_queue_that_another_user_made(
    open_directory: Path, made_by_us: bool
) -> None:
    group = grp.getgrgid(1)
    directory = open_directory / "queue"
    if not made_by_us:
        directory.mkdir()
        os.chown(directory, -1, group.gr_gid)
        directory.chmod(0o770)  # without the set-group-id bit
    queue = make_queue(directory, group=group.gr_name)
    push(queue)
    assert run(AS_OTHER + USE, directory, group.gr_gid).strip() == "4"
    push(queue)
    assert_sound(queue)


def test_a_group_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(QueueUnusable, match="no group 'nobody-has-this'"):
        make_queue(tmp_path / "new", group="nobody-has-this")
    assert not (tmp_path / "new").exists()


# Refusals: one clear error, and the file as it was


def assert_refused(directory: Path, words: str) -> None:
    path = directory / NAME
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(QueueUnusable, match=words) as refused:
        make_queue(directory)
    assert str(directory) in str(refused.value)
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize("target", ["nowhere", "file"])
def test_a_symbolic_link_in_the_files_place_is_refused_and_not_followed(tmp_path: Path, target: str) -> None:
    victim = tmp_path / target
    if target == "file":
        victim.write_bytes(b"")
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / NAME).symlink_to(victim)
    assert_refused(tmp_path / "queue", "not a regular file")
    assert not victim.exists() or victim.read_bytes() == b""


@pytest.mark.parametrize("name", [f"{NAME}.writers", f"{NAME}.reader"])
def test_a_symbolic_link_in_a_lock_files_place_is_not_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue" / name).symlink_to(tmp_path / "victim")
    with pytest.raises(QueueUnusable):
        activate(make_queue(tmp_path / "queue"))
    assert not (tmp_path / "victim").exists()


def test_a_directory_or_a_pipe_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "1" / NAME).mkdir(parents=True)
    assert_refused(tmp_path / "1", "not a regular file")
    (tmp_path / "2").mkdir()
    os.mkfifo(tmp_path / "2" / NAME)
    assert_refused(tmp_path / "2", "not a regular file")


def test_a_file_in_the_directorys_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "queue").write_text("hello")
    with pytest.raises(QueueUnusable, match="queue_dir"):
        make_queue(tmp_path / "queue")
    with pytest.raises(QueueUnusable, match="queue_dir"):
        make_queue(tmp_path / "queue" / "below")
    assert (tmp_path / "queue").read_text() == "hello"


def test_the_home_of_a_user_who_does_not_exist_is_refused() -> None:
    with pytest.raises(QueueUnusable, match="queue_dir"):
        make_queue("~nobody-has-this-name/queue")


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"this is not a database " * 500)
    assert_refused(tmp_path, "damaged or not a queue")


@pytest.mark.parametrize(
    "made",
    [
        "CREATE TABLE users (name TEXT)",
        "CREATE TABLE meta (key TEXT, value TEXT)",
        "CREATE TABLE queue (id INTEGER PRIMARY KEY, job TEXT)",
        "CREATE VIEW message AS SELECT 1",
        "PRAGMA user_version = 1",
        "PRAGMA application_id = 7",
    ],
)
def test_a_database_of_another_program_is_refused(tmp_path: Path, made: str) -> None:
    connection = apsw.Connection(str(tmp_path / NAME))
    connection.execute(made)
    connection.close()
    assert_refused(tmp_path, "another program")


@pytest.mark.parametrize("column", ["min_reader", "min_writer"])
def test_a_file_that_a_newer_version_keeps_to_itself_is_refused(tmp_path: Path, column: str) -> None:
    queue = make_queue(tmp_path)
    push(queue)
    queue.database.checkpoint(Kind.NORMAL)
    query(queue.path, f"UPDATE meta SET {column} = 3")
    queue.close()
    assert_refused(tmp_path, "newer version .format 3")


def test_a_file_that_a_newer_version_only_added_to_is_used(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    reqids = push(queue)
    for statement in (
        "PRAGMA user_version = 3",
        "CREATE TABLE later (id INTEGER PRIMARY KEY)",
        "ALTER TABLE message ADD COLUMN priority INTEGER NOT NULL DEFAULT 5",
        "ALTER TABLE book ADD COLUMN later INTEGER NOT NULL DEFAULT 0",
    ):
        query(queue.path, statement)
    queue.close()
    queue = make_queue(tmp_path)
    reqids += push(queue)
    assert drain(queue) == reqids
    assert_sound(queue)


def test_an_open_writer_and_reader_stop_at_once_when_a_newer_version_shuts_them_out(queue: Queue) -> None:
    reader = activate(queue)
    push(queue)
    query(queue.path, "CREATE TABLE later (id INTEGER PRIMARY KEY)")
    push(queue)  # an addition alone does no harm
    query(queue.path, "CREATE TABLE later_still (id INTEGER PRIMARY KEY); UPDATE meta SET min_writer = 3")
    for use in (lambda: push(queue), lambda: reader.claim(1, 1), queue.take_oldest):
        with pytest.raises(QueueUnusable, match="newer version"):
            use()
    assert query(queue.path, "SELECT count(*) FROM message") == 2
    reader.close()


@AS_ROOT
def test_a_file_or_directory_without_permission_is_refused(open_directory: Path) -> None:
    directory = open_directory / "queue"
    push(make_queue(directory))
    for opened in (0o700, 0o755, 0o777):
        directory.chmod(opened)
        before = (directory / NAME).read_bytes()
        said = run(AS_OTHER + REFUSED, directory)
        assert "owner and mode" in said or "may write to" in said
        assert (directory / NAME).read_bytes() == before


def test_an_unsafe_sqlite_is_refused() -> None:
    refuse_unsafe_sqlite("3.51.3")
    for version in ("3.51.2", "3.40.1", "3.7.17"):
        with pytest.raises(QueueUnusable, match="Install a newer apsw"):
            refuse_unsafe_sqlite(version)


# Files that are not finished


def test_a_file_of_no_bytes_is_made_a_queue(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    push(make_queue(tmp_path))
    assert query(tmp_path / NAME, "PRAGMA auto_vacuum") == 2


def test_a_file_with_a_header_alone_becomes_a_queue_that_can_give_space_back(tmp_path: Path) -> None:
    connection = apsw.Connection(str(tmp_path / NAME))
    connection.pragma("journal_mode", "wal")
    connection.close()
    assert query(tmp_path / NAME, "PRAGMA auto_vacuum") == 0
    queue = make_queue(tmp_path)
    push(queue)
    assert query(tmp_path / NAME, "PRAGMA auto_vacuum") == 2
    assert_sound(queue)


def test_whoever_could_not_wait_for_the_lock_finds_the_file_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infi.ramen_client.storage import _create

    set_up = _create._set_up

    def somebody_else_is_faster(connection: apsw.Connection, path: Path) -> None:
        set_up(connection, path)
        monkeypatch.setattr(_create, "_set_up", set_up)
        run("push(make_queue(sys.argv[1]))", tmp_path)

    monkeypatch.setattr(_create, "_set_up", somebody_else_is_faster)
    queue = make_queue(tmp_path)
    push(queue)
    assert queue.size() == 2
    assert_sound(queue)


def test_when_making_the_schema_fails_the_file_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infi.ramen_client.storage import _statements

    with monkeypatch.context() as patched:
        patched.setattr(_statements, "INSERT_READER", "INSERT INTO no_such_table VALUES (1)")
        with pytest.raises(QueueError, match="no_such_table"):
            make_queue(tmp_path)
    assert query(tmp_path / NAME, "SELECT count(*) FROM sqlite_schema") == 0
    push(make_queue(tmp_path))


# Files that go away


def use_all(queue: Queue, reader: ActiveReader) -> None:
    with pytest.raises(QueueGone, match="Build a new writer"):
        push(queue)
    with pytest.raises(QueueGone):
        reader.check_in_place()
    with pytest.raises(QueueGone):
        ActiveReader.activate(queue)


def test_a_deleted_directory_ends_old_objects_and_a_new_one_works(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    queue = make_queue(directory)
    push(queue)
    reader = activate(queue)
    shutil.rmtree(directory)
    use_all(queue, reader)
    new = make_queue(directory)
    push(new, 2)
    use_all(queue, reader)
    assert new.size() == 2
    reader.close()
    assert len(drain(new)) == 2


def test_a_renamed_or_replaced_file_ends_old_objects(tmp_path: Path) -> None:
    queue = make_queue(tmp_path / "one")
    push(queue)
    reader = activate(queue)
    (tmp_path / "one").rename(tmp_path / "two")
    use_all(queue, reader)
    shutil.copytree(tmp_path / "two", tmp_path / "one")
    use_all(queue, reader)
    reader.close()


def test_an_old_object_without_a_connection_does_not_come_alive_in_a_new_file_with_its_inode_number(
    tmp_path: Path,
) -> None:
    """Inode numbers are used again; after a fork no connection holds the old file."""
    directory = tmp_path / "queue"
    queue = make_queue(directory)
    queue.database.prepare_fork()
    queue.database.resume_in_parent()
    shutil.rmtree(directory)
    new = make_queue(directory)
    found = new.path.stat()
    queue.database.identity = (found.st_dev, found.st_ino)
    with pytest.raises(QueueGone):
        push(queue)
    assert new.size() == 0
    assert new.database is not queue.database


# Errors of the system


def test_a_lock_file_that_finds_no_space_is_a_full_disk(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    queue.database.writers_lock.close()
    with monkeypatch.context() as patched:
        patched.setattr("infi.ramen_client.storage._locks.open_lock_file", fail)
        with pytest.raises(DiskFull, match="nothing was stored"):
            queue.push((make_message(),))
    push(queue)
    assert queue.size() == 1


def test_running_out_of_descriptors_stores_nothing_and_passes(tmp_path: Path) -> None:
    code = """
import resource
from infi.ramen_client.errors import QueueError
queue = make_queue(sys.argv[1])
queue.database.prepare_fork()
queue.database.resume_in_parent()
used = len(os.listdir("/proc/self/fd"))
refused = 0
for more in range(5):
    resource.setrlimit(resource.RLIMIT_NOFILE, (used - 1 + more, 4096))
    try:
        push(queue)
    except QueueError:
        refused += 1
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))
push(queue)
assert refused >= 2, refused
assert queue.size() == 6 - refused
assert queue.check() == []
"""
    run(code, tmp_path)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o666])
def test_whoever_may_use_a_file_that_was_there_may_use_the_locks_beside_it(tmp_path: Path, mode: int) -> None:
    """A 1.x queue that several users share goes on being shared."""
    path = tmp_path / "imx_1099.db"
    make_1x_file(path, 3)
    path.chmod(mode)
    before = os.umask(0o077)
    try:
        make_queue(tmp_path).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    for name in (".writers", ".reader"):
        assert stat.S_IMODE(path.with_name(path.name + name).stat().st_mode) == mode


@pytest.mark.system  # only root can become somebody else
def test_another_user_of_a_shared_1x_queue_can_push_after_root_took_it_over(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o777)
    path = tmp_path / "imx_1099.db"
    make_1x_file(path, 3)
    for file in (path, path.with_name("imx_1099.db-wal"), path.with_name("imx_1099.db-shm")):
        if file.exists():
            file.chmod(0o666)
    make_queue(tmp_path).close()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            push(make_queue(tmp_path))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert make_queue(tmp_path).size() == 4


@AS_ROOT
def test_the_owner_of_a_1x_queue_can_push_after_root_took_it_over(open_directory: Path) -> None:
    make_1x_file(open_directory / NAME, 3)
    os.chown(open_directory, 65534, 65534)
    (open_directory / NAME).chmod(0o600)
    for path in open_directory.iterdir():
        os.chown(path, 65534, 65534)
    make_queue(open_directory).close()
    run(AS_OTHER + "push(make_queue(sys.argv[1]))", open_directory)
    assert make_queue(open_directory).size() == 4
    assert {path.stat().st_uid for path in open_directory.iterdir()} == {65534}


def test_a_lock_that_is_there_is_not_opened_as_if_to_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a sticky directory Linux refuses that when it is another user's (fs.protected_regular)."""
    queue = make_queue(tmp_path)
    system_open = os.open

    def open_as_linux(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_CREAT and not flags & os.O_EXCL and Path(path).exists():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return system_open(path, flags, *mode)

    monkeypatch.setattr(os, "open", open_as_linux)
    queue.database.writers_lock.close()
    push(queue)
    activate(queue).close()


@AS_ROOT
def test_a_lock_that_cannot_be_opened_is_the_file_that_the_error_names(open_directory: Path) -> None:
    make_queue(open_directory).close()
    for path in open_directory.iterdir():
        path.chmod(0o600 if path.suffix == ".writers" else 0o666)
    said = run(AS_OTHER + REFUSED, open_directory)
    assert f"{NAME}.writers: cannot be used: Permission denied" in said


def test_a_full_disk_names_the_file_that_found_no_room(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    queue.database.writers_lock.close()
    with monkeypatch.context() as patched:
        patched.setattr("infi.ramen_client.storage._locks.open_lock_file", fail)
        with pytest.raises(DiskFull, match=r"\.writers: the disk"):
            queue.push((make_message(),))


@AS_ROOT
def test_a_directory_that_may_not_be_entered_any_more_is_no_queue_that_is_gone(open_directory: Path) -> None:
    code = """
from infi.ramen_client.errors import QueueUnusable
queue = make_queue(sys.argv[1])
reader = activate(queue)
os.setgroups([])
os.setuid(65534)
for use in (lambda: push(queue), reader.check_in_place, lambda: activate(queue)):
    try:
        use()
    except QueueUnusable as error:
        print(error)
"""
    said = run(code, open_directory / "queue").splitlines()
    assert len(said) == 3
    assert all("cannot be used: Permission denied" in line for line in said)


def test_a_queue_that_is_gone_is_said_without_claiming_that_something_was_to_be_stored(queue: Queue) -> None:
    queue.path.unlink()
    with pytest.raises(QueueGone) as gone:
        queue.database.check_in_place()
    assert "nothing was stored" not in str(gone.value)
    with pytest.raises(QueueGone, match="deleted or replaced under this program"):
        push(queue)
