"""One look at the directory in place of one at each of its files: when it is believed, and that nothing is missed by it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from queues import assert_sound, drain, make_queue, push, wait_until

from infi.ramen_client.errors import QueueGone
from infi.ramen_client.storage._files import DirectoryWatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from infi.ramen_client.storage import Queue

NAME = "imx_1099.db"
SECOND_NS = 1_000_000_000


class Clock:
    """So long after the directory was changed."""

    def __init__(self, directory: Path, seconds: float) -> None:
        self.directory = directory
        self.seconds = seconds

    def __call__(self) -> int:
        found = self.directory.stat()
        return max(found.st_mtime_ns, found.st_ctime_ns) + int(self.seconds * SECOND_NS)


def looked_at(watch: DirectoryWatch) -> bool:
    """Whether a look at the files can be saved after one was taken."""
    stamp = watch.stamp()
    watch.settle(stamp)
    return watch.is_settled(watch.stamp())


@pytest.mark.parametrize(
    ("seconds", "believed"), [(-3600.0, False), (0.0, False), (0.05, False), (0.2, True)]
)
def test_a_change_is_believed_to_be_the_last_one_when_the_clock_has_ticked_since(
    tmp_path: Path, seconds: float, believed: bool
) -> None:
    """Before that, another change could leave the same times; and a clock that was set back says nothing."""
    os.utime(tmp_path, ns=(SECOND_NS + 1, SECOND_NS + 1))  # parts of a second
    assert looked_at(DirectoryWatch(tmp_path, Clock(tmp_path, seconds))) is believed


@pytest.mark.parametrize(("seconds", "believed"), [(0.2, False), (2.5, False), (3.5, True)])
def test_a_clock_that_shows_whole_seconds_is_given_some(
    tmp_path: Path, seconds: float, believed: bool
) -> None:
    later = (tmp_path.stat().st_ctime_ns // SECOND_NS + 100) * SECOND_NS
    os.utime(tmp_path, ns=(later, later))
    assert looked_at(DirectoryWatch(tmp_path, Clock(tmp_path, seconds))) is believed


@pytest.mark.parametrize(
    "change",
    [
        lambda directory: (directory / "file").unlink(),
        lambda directory: (directory / "file").rename(directory / "other"),
        lambda directory: (directory / "new").rename(directory / "file"),
        lambda directory: (directory / "another").touch(),
        lambda directory: directory.rename(directory.with_name("moved")),
        shutil.rmtree,
    ],
    ids=["deleted", "renamed", "replaced", "made", "moved with its directory", "deleted with its directory"],
)
def test_each_change_of_a_name_is_seen(tmp_path: Path, change: Callable[[Path], object]) -> None:
    directory = tmp_path / "watched"
    directory.mkdir()
    (directory / "file").touch()
    (directory / "new").touch()
    os.utime(directory, ns=(SECOND_NS, SECOND_NS))
    watch = DirectoryWatch(directory, Clock(directory, 10))
    assert looked_at(watch)
    change(directory)
    assert not watch.is_settled(watch.stamp())


def test_a_directory_in_the_place_of_another_is_seen(tmp_path: Path) -> None:
    directory = tmp_path / "watched"
    directory.mkdir()
    watch = DirectoryWatch(directory, Clock(directory, 10))
    assert looked_at(watch)
    shutil.copytree(directory, tmp_path / "copy")
    directory.rename(tmp_path / "moved")
    (tmp_path / "copy").rename(directory)
    assert not watch.is_settled(watch.stamp())


def settled_queue(directory: Path) -> tuple[Queue, list[str]]:
    """A queue whose pushes take one look at the directory, and what is in it."""
    queue = make_queue(directory, durable=True)
    reqids: list[str] = []
    watch = queue.database._directory

    def is_settled() -> bool:
        reqids.extend(push(queue))
        return watch.is_settled(watch.stamp())

    wait_until(is_settled)
    return queue, reqids


def test_a_push_into_a_quiet_directory_notices_that_the_file_is_gone(tmp_path: Path) -> None:
    queue, _ = settled_queue(tmp_path)
    (tmp_path / NAME).unlink()
    with pytest.raises(QueueGone):
        push(queue)


def test_a_push_into_a_quiet_directory_notices_that_another_file_took_the_place(tmp_path: Path) -> None:
    queue, _ = settled_queue(tmp_path)
    shutil.copy(tmp_path / NAME, tmp_path / "copy")
    (tmp_path / "copy").rename(tmp_path / NAME)
    with pytest.raises(QueueGone):
        push(queue)


def test_a_push_into_a_quiet_directory_notices_that_the_directory_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    queue, _ = settled_queue(directory)
    directory.rename(tmp_path / "moved")
    with pytest.raises(QueueGone):
        push(queue)


def test_a_log_that_is_deleted_in_a_quiet_directory_costs_nothing(tmp_path: Path) -> None:
    queue, reqids = settled_queue(tmp_path)
    (tmp_path / f"{NAME}-wal").unlink()
    reqids += push(queue, 3)
    queue.close()
    del queue
    found = make_queue(tmp_path)
    assert_sound(found)
    assert drain(found) == reqids
