"""A program of one queue on a disk that fails now and then: pushes from threads and processes, delivery, trims, checkpoints.

Run as ``python disk_error_run.py JSON`` with the fields of a ``QueueReaderConfig``. Whatever raises a ``QueueError`` is tried again, a
push under its reqid, at most ``MOST_ATTEMPTS`` times in all: then the disk works again, and so must the queue, in the same process.
Says a line for each outcome of a push, as ``queue_load`` does (``=``, ``?``, ``!``, then the reqid), at the end ``check`` and what was wrong.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from infi.ramen_client import QueueReader, QueueReaderConfig, QueueWriter
from infi.ramen_client.errors import DurabilityError, QueueError

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_ATTEMPTS = 8
LARGE_BYTES = 60_000


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


def try_again(do: Callable[[], Any]) -> Any:
    for _ in range(MOST_ATTEMPTS - 1):
        try:
            return do()
        except QueueError:
            continue
    return do()


def push(writer: QueueWriter, reqids: list[str], size: int = 10) -> None:
    """Until it is acknowledged."""
    messages = [
        ("metrics", "san", "v1", {"reqid": reqid, "fill": os.urandom(size).hex()}, reqid) for reqid in reqids
    ]
    for _ in range(MOST_ATTEMPTS):
        try:
            writer.push_many(messages)
        except DurabilityError as error:
            sign = "?" if error.reqid == reqids[0] else "its reqid is wrong: "
        except QueueError:
            sign = "!"
        else:
            sign = "="
        for reqid in reqids:
            say(sign + reqid)
        if sign == "=":
            return
    raise AssertionError(f"{reqids} was never stored")


def push_from_threads(config: QueueReaderConfig, who: str) -> None:
    writer = try_again(lambda: QueueWriter(config))

    def several(thread: int) -> None:
        for number in range(6):
            push(writer, [f"{who}-{thread}-{number}"])

    threads = [threading.Thread(target=several, args=(thread,)) for thread in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def run(fields: dict[str, Any]) -> None:
    config = QueueReaderConfig(fields)
    child = os.fork()
    push_from_threads(config, "parent" if child else "child")
    if not child:
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0
    writer, reader = try_again(lambda: QueueWriter(config)), try_again(lambda: QueueReader(config))
    for number in range(20):
        push(writer, [f"large-{number}"], LARGE_BYTES)
        if number % 2:
            try_again(reader.consume_one)
    push(writer, [f"many-{number}" for number in range(20)])
    try_again(lambda: reader.run(blocking=False))
    push(writer, ["last"])
    assert try_again(lambda: reader.drain(30))
    say("check " + json.dumps(writer._store.check()))


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
