"""What the tests of the storage share: queues, messages, and processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Timer
from typing import IO, TYPE_CHECKING, Any
from zlib import compress, crc32

import apsw

from infi.ramen_client.storage import (
    ActiveReader,
    Death,
    Fate,
    NewMessage,
    Overflow,
    Place,
    Queue,
    ReqidOrigin,
    Settlement,
    StoredMessage,
)
from infi.ramen_client.storage._database import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

GIB = 1024**3
DEATH = Death("refused", "no such thing", 400, "BAD_REQUEST")
UNEXPLAINED = Death("refused", "", 400)
ORIGIN = "https://server:443"

_numbers = count()


def make_queue(
    directory: Path | str,
    *,
    max_bytes: int = GIB,
    durable: bool = False,
    overflow: Overflow = Overflow.DROP_OLDEST,
    min_free_disk: int = 0,
    max_age_seconds: float | None = None,
    **place: Any,
) -> Queue:
    where = {"sender": "imx", "system_serial": 1099, "system_version": "3.0.0.1", **place}
    return Queue(
        Place(directory=str(directory), **where),
        max_bytes=max_bytes,
        durable=durable,
        overflow=overflow,
        min_free_disk=min_free_disk,
        max_age_seconds=max_age_seconds,
    )


def make_message(payload: bytes = b"{}", *, size: int | None = None, **fields: Any) -> NewMessage:
    """A message whose payload takes ``size`` bytes on disk, if that is given."""
    data = compress(payload) if size is None else os.urandom(size)
    number = next(_numbers)
    given: dict[str, Any] = {
        "category": "metrics",
        "data_type": "san",
        "data_version": "v1",
        "system_version": "3.0.0.1",
        "reqid": f"{os.getpid()}-{number}",
        "reqid_origin": ReqidOrigin.PUSH,
        "pushed_at_ms": 1_700_000_000_000 + number,
        "plain_length": len(payload),
        "plain_crc32": crc32(payload),
        "data": data,
        **fields,
    }
    return NewMessage(**given)


def push(queue: Queue, number: int = 1, **fields: Any) -> list[str]:
    """Push messages one by one; return their reqids."""
    pushed = [make_message(**fields) for _ in range(number)]
    for message in pushed:
        queue.push((message,))
    return [message.reqid for message in pushed]


def activate(queue: Queue) -> ActiveReader:
    reader = ActiveReader.activate(queue)
    assert reader is not None
    return reader


def settle_all(reader: ActiveReader, fate: Fate = Fate.ACCEPTED) -> list[str]:
    """Deliver everything; return the reqids in their order."""
    seen: list[str] = []
    while claimed := reader.claim(64, GIB):
        seen += [message.reqid for message in claimed]
        reader.settle([settlement(message, fate) for message in claimed])
    return seen


def drain(queue: Queue) -> list[str]:
    reader = activate(queue)
    try:
        return settle_all(reader)
    finally:
        reader.close()


def settlement(message: StoredMessage, fate: Fate) -> Settlement:
    return Settlement(message, fate, DEATH if fate is Fate.DEAD else None)


def assert_sound(queue: Queue) -> None:
    """The books balance, the rows are as many as the books say, and the file is whole."""
    assert queue.check() == []


def empty_wal(queue: Queue) -> None:
    """Bring everything into the database, so that nothing of it lies in the log as well."""
    queue.database.checkpoint(Kind.NORMAL)
    with queue.database.connection(Kind.NORMAL) as connection:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)


def query(path: Path, statement: str, values: tuple[Any, ...] = ()) -> Any:
    """Run a statement on the file by a connection of its own, in this process."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        connection.set_busy_timeout(10_000)
        return connection.execute(statement, values).get
    finally:
        connection.close()


def start(
    code: str, *arguments: object, before: Iterable[str] = (), stdout: IO[str] | int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start a Python process that runs ``code``, which finds this module's names and its arguments in ``sys.argv[1:]``."""
    return subprocess.Popen(
        [
            *before,
            sys.executable,
            "-c",
            f"import os, sys, time\nfrom queues import *\n{code}",
            *map(str, arguments),
        ],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
        },
    )


def finish(process: subprocess.Popen[str], timeout: float = 60) -> str:
    """Wait for a process that is to succeed; return what it printed and was not read yet."""
    assert process.stdin is not None
    assert process.stderr is not None
    watchdog = Timer(timeout, process.kill)
    watchdog.start()
    try:
        with process:  # it closes the pipes, and waits
            with suppress(BrokenPipeError):
                process.stdin.close()
            # Not by communicate(), which loses what came along with a line that was read before.
            said = process.stdout.read() if process.stdout is not None else ""
            complaint = process.stderr.read()
    finally:
        watchdog.cancel()
    assert process.returncode == 0, complaint
    return said


def tell(process: subprocess.Popen[str]) -> None:
    """Send a line to a process that waits for one."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def wait_until(condition: Callable[[], object], timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def run(code: str, *arguments: object) -> str:
    return finish(start(code, *arguments))


def make_1x_file(path: Path, rows: int = 0, *, data: bytes | None = None) -> None:
    """A queue file as 1.x makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = apsw.Connection(str(path))
    connection.pragma("page_size", 4096)
    connection.pragma("auto_vacuum", 2)
    connection.pragma("journal_mode", "wal")
    connection.execute(
        "CREATE TABLE IF NOT EXISTS queue (id INTEGER PRIMARY KEY AUTOINCREMENT, ts TIMESTAMP DEFAULT CURRENT_TIMESTAMP, "
        "category TEXT NOT NULL, data_type TEXT NOT NULL, data_version INTEGER NOT NULL, reqid TEXT, data BLOB NOT NULL)"
    )
    with connection:
        for _ in range(rows):
            push_1x(connection, data=data)
    connection.close()


def push_1x(
    connection: apsw.Connection, reqid: str | None = None, data: bytes | None = None, **names: Any
) -> None:
    fields = {"category": "metrics", "data_type": "san", "data_version": "v1", **names}
    connection.execute(
        "INSERT INTO queue (category, data_type, data_version, reqid, data) VALUES (?, ?, ?, ?, ?)",
        (*fields.values(), reqid, compress(b"{}") if data is None else data),
    )


def open_1x(path: Path) -> apsw.Connection:
    """A 1.x program's hand on the file."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(10_000)
    return connection
