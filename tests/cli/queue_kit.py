"""What the tests of the commands that look at queues share: queues in every state, and the shape of a JSON document."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from itertools import count
from typing import TYPE_CHECKING, Any
from zlib import compress, crc32

from infi.ramen_cli.main import run
from infi.ramen_client.storage import (
    ActiveReader,
    Death,
    Fate,
    NewMessage,
    Place,
    Queue,
    ReqidOrigin,
    Settlement,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

GIB = 1024**3
DEATH = Death("the server refused it (400)", "no such \x1b[31mthing", 400, "BAD_REQUEST")
_numbers = count()


class Shape(tuple):
    """What a value may be: types, and None."""

    __slots__ = ()


INTEGER, TEXT, NUMBER, TRUTH = Shape([int]), Shape([str]), Shape([int, float]), Shape([bool])
MAYBE_INTEGER, MAYBE_TEXT, MAYBE_NUMBER = Shape([int, None]), Shape([str, None]), Shape([int, float, None])


def has_shape(value: Any, shape: Any) -> bool:
    """Whether a decoded JSON value has just the keys and types of ``shape`` (a dict, a list of one, or a ``Shape``)."""
    if isinstance(shape, dict):
        return (
            isinstance(value, dict)
            and list(value) == list(shape)
            and all(has_shape(value[name], inner) for name, inner in shape.items())
        )
    if isinstance(shape, list):
        return isinstance(value, list) and all(has_shape(one, shape[0]) for one in value)
    return any(value is None if kind is None else type(value) is kind for kind in shape)


@contextmanager
def open_queue(directory: Path | str, sender: str = "imx", serial: int = 1099) -> Iterator[Queue]:
    queue = Queue(Place(str(directory), sender, serial, "3.0"), max_bytes=GIB, durable=False)
    try:
        yield queue
    finally:
        queue.close()


def push(queue: Queue, number: int = 1, payload: bytes = b"{}", *, age: float = 0.0, **fields: Any) -> None:
    for _ in range(number):
        given: dict[str, Any] = {
            "category": "metrics",
            "data_type": "san",
            "data_version": "v1",
            "system_version": "3.0",
            "reqid": f"reqid-{next(_numbers)}",
            "reqid_origin": ReqidOrigin.PUSH,
            "pushed_at_ms": time.time_ns() // 1_000_000 - int(age * 1000),
            "plain_length": len(payload),
            "plain_crc32": crc32(payload),
            "data": compress(payload),
        }
        queue.push((NewMessage(**{**given, **fields}),))


def bury(queue: Queue, number: int = 1, payload: bytes = b"{}", **fields: Any) -> None:
    push(queue, number, payload, **fields)
    with active_reader(queue) as reader:
        reader.settle([Settlement(one, Fate.DEAD, DEATH) for one in reader.claim(number, GIB)])


@contextmanager
def active_reader(queue: Queue) -> Iterator[ActiveReader]:
    reader = ActiveReader.activate(queue)
    assert reader is not None
    try:
        yield reader
    finally:
        reader.close()


def ramen(*arguments: object) -> int:
    return run([str(argument) for argument in arguments])


def answer(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    """What a command writes with ``--json``."""
    capsys.readouterr()
    assert ramen(*arguments, "--json") == code
    said = capsys.readouterr()
    assert said.err == ""
    return json.loads(said.out)
