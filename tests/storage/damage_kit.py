"""What the tests of damaged files share: a queue to copy and hurt, and what must hold whatever was done to it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

from queues import activate, make_queue, push, settle_all

from infi.ramen_client.storage import Fate

if TYPE_CHECKING:
    from pathlib import Path

    from infi.ramen_client.storage import Queue

PAGE = 4096
MESSAGES = 200
PER_LEAF = 15
"""More messages of 300 bytes than a leaf holds."""

MAKE_MODEL = """
queue = make_queue(sys.argv[1])
print(*push(queue, 200, size=300))
empty_wal(queue)
"""

MAKE_MODEL_WITH_LOG = """
queue = make_queue(sys.argv[1])
print(*push(queue, 100, size=300))
empty_wal(queue)
print(*push(queue, 100, size=300))
"""


def overwrite(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def read(path: Path, offset: int, length: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(length)


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def deliver(queue: Queue) -> list[str]:
    """Take everything out as a reader does that runs on when all is delivered; return the reqids."""
    reader = activate(queue)
    delivered = []
    goes_on = True
    while goes_on:
        got = settle_all(reader, Fate.ACCEPTED)
        goes_on = bool(got) or reader.tidy()
        if not got:
            reader.give_back()  # so that it looks from the beginning again
            got = settle_all(reader, Fate.ACCEPTED)  # tidying may have met a damage
            goes_on = goes_on or bool(got)
        delivered += got
    reader.close()
    return delivered


def change(path: Path, *statements: str) -> None:
    """Change a file as no part of us does."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA writable_schema=ON")
        for statement in statements:
            connection.execute(statement)


def root_of(path: Path, table: str) -> int:
    """The number of a table's root page."""
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
    return int(page)


def leaves_of(path: Path, table: str = "message") -> list[int]:
    """The children of a table's root, in their order, where the tree has two floors."""
    page = read(path, (root_of(path, table) - 1) * PAGE, PAGE)
    assert page[0] == 0x05
    cells = int.from_bytes(page[3:5], "big")
    starts = [int.from_bytes(page[12 + 2 * index : 14 + 2 * index], "big") for index in range(cells)]
    children = [int.from_bytes(page[start : start + 4], "big") for start in starts]
    return [*children, int.from_bytes(page[8:12], "big")]


def put_aside(path: Path) -> list[str]:
    return sorted(
        found.name
        for found in path.parent.iterdir()
        if ".damaged-" in found.name or ".salvaged-" in found.name
    )


def pages_of(path: Path) -> int:
    """How many the database has, by its header: its file is longer (the reserve)."""
    return int.from_bytes(read(path, 28, 4), "big")


def assert_fit(queue: Queue) -> None:
    """The books are right; damage in a page that nobody needs may still be there, and is said by a check."""
    problems = queue.check()
    assert problems == [] or (
        not put_aside(queue.path) and all(problem.startswith("integrity") for problem in problems)
    )


def goes_on(path: Path, before: list[str]) -> tuple[list[str], Queue]:
    """Open the queue, push one more, deliver everything; the books balance and nothing arrives that was never pushed."""
    queue = make_queue(path.parent)
    (new,) = push(queue, 1, size=300)
    delivered = deliver(queue)
    assert new in delivered
    assert set(delivered) <= {*before, new}
    assert queue.size() == 0
    assert_fit(queue)
    again = push(queue, 3, size=300)
    assert deliver(queue) == again
    assert_fit(queue)
    return [reqid for reqid in delivered if reqid != new], queue
