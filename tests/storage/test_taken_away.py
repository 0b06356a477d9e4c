"""Files of a living queue that are put back to an older state in their place, or taken away, also under other processes."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING

import pytest
from queues import (
    GIB,
    activate,
    assert_sound,
    drain,
    empty_wal,
    finish,
    make_queue,
    push,
    run,
    settle_all,
    settlement,
    start,
    tell,
    wait_until,
)

from infi.ramen_client.storage import Fate
from infi.ramen_client.storage._database import Kind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOTICED = "was put back to an older state"


def image_of(directory: Path, place: Path) -> Path:
    """A copy of the files, as a backup holds them."""
    shutil.copytree(directory, place)
    return place


def put_back(image: Path, directory: Path, *, names: str = "*.db*") -> None:
    """Copy an image over the files, which keep their inodes."""
    for file in image.glob(names):
        with (directory / file.name).open("r+b") as target:
            target.truncate()
            target.write(file.read_bytes())


@pytest.mark.parametrize("later", [1, 30])
def test_an_older_file_under_a_living_writer_is_noticed_by_its_next_push_which_is_not_lost(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, later: int
) -> None:
    directory = tmp_path / "queue"
    queue = make_queue(directory)
    kept = push(queue, 20, size=500)
    empty_wal(queue)
    image = image_of(directory, tmp_path / "image")
    push(queue, later, size=500)
    put_back(image, directory)
    with caplog.at_level(logging.ERROR, "ramen_client"):
        pushed = push(queue, 3)
    assert NOTICED in caplog.text
    assert drain(queue) == kept + pushed
    assert_sound(queue)


def test_an_older_file_under_a_living_reader_is_noticed_and_what_was_delivered_since_comes_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Under the same reqids, by which the server knows it."""
    directory = tmp_path / "queue"
    queue = make_queue(directory)
    kept = push(queue, 20, size=500)
    empty_wal(queue)
    image = image_of(directory, tmp_path / "image")
    push(queue)
    reader = activate(queue)
    reader.settle([settlement(message, Fate.ACCEPTED) for message in reader.claim(5, GIB)])
    claimed = reader.claim(5, GIB)
    put_back(image, directory)
    with caplog.at_level(logging.ERROR, "ramen_client"):
        reader.settle([settlement(message, Fate.ACCEPTED) for message in claimed])
        reader.give_back()
        assert settle_all(reader) == kept[:5] + kept[10:]
    assert NOTICED in caplog.text
    reader.close()
    assert_sound(queue)


def test_the_database_alone_put_back_leaves_what_is_in_the_log(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    queue = make_queue(directory)
    reqids = push(queue, 20, size=500)
    empty_wal(queue)
    image = image_of(directory, tmp_path / "image")
    reqids += push(queue, 5, size=500)
    put_back(image, directory, names="*.db")
    reqids += push(queue, 5)
    assert drain(queue) == reqids
    assert_sound(queue)


def test_another_living_process_goes_on_with_the_new_file_too(tmp_path: Path) -> None:
    directory = tmp_path / "queue"
    queue = make_queue(directory)
    kept = push(queue, 20, size=500)
    empty_wal(queue)
    image = image_of(directory, tmp_path / "image")
    other = start(
        """
queue = make_queue(sys.argv[1])
print(*push(queue, 5), flush=True)
input()
print(*push(queue, 5), flush=True)
assert queue.check() == []
""",
        directory,
    )
    wait_until(lambda: queue.size() == 25)
    put_back(image, directory)
    tell(other)
    said = finish(other).splitlines()
    pushed = push(queue, 2)
    assert drain(queue) == kept + said[1].split() + pushed
    assert_sound(queue)


def test_a_new_object_takes_an_older_file_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever stops the programs, puts an image back and starts them again is not told of damage; new ids are new all the same."""
    directory = tmp_path / "queue"
    queue = make_queue(directory)
    kept = push(queue, 3)
    queue.close()
    del queue
    image = image_of(directory, tmp_path / "image")
    run_once = "print(*push(make_queue(sys.argv[1]), 2))"
    lost = finish(start(run_once, directory)).split()
    shutil.rmtree(directory)
    shutil.copytree(image, directory)
    with caplog.at_level(logging.WARNING, "ramen_client"):
        queue = make_queue(directory)
        pushed = push(queue, 2)
        assert drain(queue) == kept + pushed
    assert not set(lost) & set(pushed)
    assert not caplog.records


PUSH_UNTIL_GONE = """
from infi.ramen_client.errors import QueueGone
queue = make_queue(sys.argv[1], durable=True)
try:
    while True:
        print(*push(queue), flush=True)
except QueueGone as error:
    assert "Build a new writer" in str(error)
    print("gone")
queue = make_queue(sys.argv[2])
print("new", *push(queue), flush=True)
"""


def renamed(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))


def replaced(directory: Path) -> None:
    """By an image of its own."""
    image = image_of(directory, directory.with_name("image"))
    directory.rename(directory.with_name("moved"))
    image.rename(directory)


def file_renamed(directory: Path) -> None:
    moved = directory.with_name("moved")
    moved.mkdir()
    # The log first: a log without a database is put to no use, the other way round would be damage.
    for name in ("imx_1099.db-wal", "imx_1099.db"):
        (directory / name).rename(moved / name)


@pytest.mark.parametrize("take", [renamed, replaced, file_renamed], ids=lambda take: take.__name__)
def test_whatever_a_push_of_another_process_has_acknowledged_lies_in_the_files_that_were_taken_away(
    tmp_path: Path, take: Callable[[Path], None]
) -> None:
    directory = tmp_path / "queue"
    make_queue(directory)
    other = start(PUSH_UNTIL_GONE, directory, tmp_path / "next")
    assert other.stdout is not None
    acknowledged = [other.stdout.readline().strip() for _ in range(20)]
    take(directory)
    *more, gone, new = finish(other).split("\n")[:-1]
    acknowledged += more
    assert gone == "gone"
    found = drain(make_queue(tmp_path / "moved"))
    # The one that was under way when it happened may be there as well.
    assert found[: len(acknowledged)] == acknowledged
    assert len(found) <= len(acknowledged) + 1
    assert drain(make_queue(tmp_path / "next")) == [new.removeprefix("new ")]


# The log alone


def delete_log(directory: Path) -> None:
    (directory / "imx_1099.db-wal").unlink()


def test_a_log_that_is_deleted_under_a_living_program_costs_nothing_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue(tmp_path, durable=True)
    reqids = push(queue, 20, size=500)
    delete_log(tmp_path)
    with caplog.at_level(logging.ERROR, "ramen_client"):
        reqids += push(queue, 20, size=500)
    assert "what was in it is saved" in caplog.text
    assert len(caplog.records) == 1
    queue.close()
    del queue
    said = run("queue = make_queue(sys.argv[1]); print(*drain(queue)); print(queue.check())", tmp_path)
    assert said.splitlines() == [" ".join(reqids), "[]"]


@pytest.mark.parametrize("kind", list(Kind))
def test_it_costs_nothing_when_a_transaction_is_the_first_to_notice(tmp_path: Path, kind: Kind) -> None:
    """Where it has to open a connection, that must not begin a new log before the old one is saved."""
    queue = make_queue(tmp_path, durable=True)
    reqids = push(queue, 20)
    delete_log(tmp_path)
    with queue.database.transaction(kind):
        pass
    reqids += push(queue)
    assert drain(queue) == reqids
    assert_sound(queue)


def test_it_costs_nothing_where_several_processes_write_and_read(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, durable=True)
    other = start(
        """
queue = make_queue(sys.argv[1])
for _ in range(4):
    print(*push(queue, 30, size=300), flush=True)
    input()
""",
        tmp_path,
    )
    assert other.stdout is not None
    reader = activate(queue)
    pushed: list[str] = []
    delivered: list[str] = []
    for _ in range(4):
        pushed += other.stdout.readline().split()
        claimed = reader.claim(10, GIB)
        delete_log(tmp_path)
        reader.settle([settlement(message, Fate.ACCEPTED) for message in claimed])
        delivered += [message.reqid for message in claimed]
        pushed += push(queue, 5, size=300)
        tell(other)
    finish(other)
    delivered += settle_all(reader)
    reader.close()
    assert delivered == pushed
    assert_sound(queue)


def test_when_a_program_began_a_new_log_in_the_place_of_a_deleted_one_the_loss_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = make_queue(tmp_path)
    empty_wal(queue)
    push(queue, 20, size=500)
    for name in ("imx_1099.db-wal", "imx_1099.db-shm"):
        (tmp_path / name).unlink()
    others = run("print(*push(make_queue(sys.argv[1]), 2))", tmp_path).split()
    with caplog.at_level(logging.ERROR, "ramen_client"):
        pushed = push(queue, 3)
    assert "may be lost" in caplog.text
    assert NOTICED in caplog.text
    assert drain(queue) == others + pushed
    assert_sound(queue)
