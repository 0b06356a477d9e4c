"""What is not ours to mend: one error when the queue is opened, which says what to do, and the files as they were, however often it is tried."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import pytest
from queues import assert_sound, drain, empty_wal, make_1x_file, make_queue, push, query, run

from infi.ramen_client.errors import QueueUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "imx_1099.db"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")


def contents(directory: Path) -> dict[str, bytes]:
    """Every file but the locks, which hold nothing, and the ``-shm``, which any program makes anew."""
    return {
        str(path): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.suffix not in (".db-shm", ".writers")
    }


def no_database(path: Path) -> str:
    path.write_bytes(b"this is not a database " * 500)
    return "Move it away"


def another_programs(path: Path) -> str:
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE users (name TEXT); INSERT INTO users VALUES ('somebody')")
    connection.close()
    return "Move it away, or use another queue_dir"


def newer(path: Path) -> str:
    queue = make_queue(path.parent)
    push(queue, 3)
    empty_wal(queue)
    query(queue.path, "UPDATE meta SET min_reader = 3, min_writer = 3")
    queue.close()
    return "Upgrade infi.ramen_client"


def directory_in_its_place(path: Path) -> str:
    (path / "below").mkdir(parents=True)
    return "Remove it"


@pytest.mark.parametrize(
    "make", [no_database, another_programs, newer, directory_in_its_place], ids=lambda make: make.__name__
)
def test_what_is_not_a_queue_of_ours_is_refused_and_stays_as_it_is_however_often_it_is_tried(
    tmp_path: Path, make: Callable[[Path], str]
) -> None:
    remedy = make(tmp_path / NAME)
    before = contents(tmp_path)
    for _ in range(3):
        with pytest.raises(QueueUnusable) as refused:
            make_queue(tmp_path)
        assert remedy in str(refused.value)
        assert str(tmp_path / NAME) in str(refused.value)
        assert contents(tmp_path) == before


# Another user's


OTHER = 65534

TRY = f"""
from infi.ramen_client.errors import QueueUnusable
os.setgroups([])
os.setgid({OTHER})
os.setuid({OTHER})
for _ in range(2):
    try:
        make_queue(sys.argv[1])
    except QueueUnusable as error:
        print(error)
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user can reach."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def nothing_there(_: Path) -> None:
    """The queue's directory is to be made in one of root's."""


def directory_of_root(directory: Path) -> None:
    push(make_queue(directory), 3)
    directory.chmod(0o755)


def directory_that_is_read_only(directory: Path) -> None:
    push(make_queue(directory), 3)
    for path in (directory, *directory.iterdir()):
        os.chown(path, OTHER, OTHER)
        path.chmod(0o444)
    directory.chmod(0o555)


def file_of_root(directory: Path) -> None:
    push(make_queue(directory), 3)
    os.chown(directory, OTHER, OTHER)


def log_of_root(directory: Path) -> None:
    directory_of_other(directory)
    os.chown(directory / f"{NAME}-wal", 0, 0)


def lock_of_root(directory: Path) -> None:
    directory_of_other(directory)
    os.chown(directory / f"{NAME}.writers", 0, 0)


def file_of_1x_and_root(directory: Path) -> None:
    make_1x_file(directory / NAME, 3)
    (directory / NAME).chmod(0o600)
    os.chown(directory, OTHER, OTHER)


def directory_of_other(directory: Path) -> None:
    push(make_queue(directory), 3)
    for path in (directory, *directory.iterdir()):
        os.chown(path, OTHER, OTHER)


@AS_ROOT
@pytest.mark.parametrize(
    "make",
    [
        nothing_there,
        directory_of_root,
        directory_that_is_read_only,
        file_of_root,
        log_of_root,
        lock_of_root,
        file_of_1x_and_root,
    ],
    ids=lambda make: make.__name__,
)
def test_a_user_who_may_not_is_told_which_file_and_what_to_do(
    open_directory: Path, make: Callable[[Path], None]
) -> None:
    directory = open_directory / "queue"
    make(directory)
    before = contents(open_directory)
    said = run(TRY, directory).splitlines()
    assert len(said) == 2
    for line in said:
        assert line.startswith(str(directory))
        assert "owner and mode" in line or "that this program may write to" in line
    assert contents(open_directory) == before


@pytest.mark.system  # only root can mount
@pytest.mark.parametrize("there", [True, False])
def test_a_read_only_file_system_is_refused_until_it_is_mounted_for_writing(
    tmp_path: Path, there: bool
) -> None:
    mount = tmp_path / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", mount], check=True)
    try:
        reqids = run("print(*push(make_queue(sys.argv[1]), 3))", mount / "queue").split() if there else []
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        before = contents(mount)
        for _ in range(2):
            with pytest.raises(QueueUnusable, match="queue_dir") as refused:
                make_queue(mount / "queue")
            assert "read-only" in str(refused.value).lower()
        assert contents(mount) == before
        subprocess.run(["mount", "-o", "remount,rw", mount], check=True)
        queue = make_queue(mount / "queue")
        reqids += push(queue, 2)
        assert drain(queue) == reqids
        assert_sound(queue)
        queue.close()
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)
