"""`infi.ramen_client`, whichever version the interpreter has: 1.x and 2.0 have one API."""

from __future__ import annotations

from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.queue_reader import QueueReader
from infi.ramen_client.queue_writer import QueueWriter

TYPE_CHECKING = False  # `typing` is not to be counted as an import of the measured library
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_SETTLE_SECONDS = 10
"""How long a message may still be in the queue when the server says that everything has come."""


def open_writer(directory: str, **options: object) -> Callable[[dict[str, Any]], object]:
    """Return a push; ``options`` are configuration fields."""
    writer = QueueWriter(configuration(directory, 1, options))

    def push(sample: dict[str, Any]) -> None:
        writer.push("metrics", "san_totals", "v1", sample)

    return push


def open_bulk_writer(
    directory: str, *, streams: int = 1, **options: object
) -> Callable[[list[dict[str, Any]]], object]:
    """Return a ``push_many``, to so many streams in turn; 1.x has none, and pushes one after the other."""
    writer = QueueWriter(configuration(directory, 1, options))
    kinds = ["san_totals", *(f"san_totals_{number}" for number in range(1, streams))]

    def push_all(samples: list[dict[str, Any]]) -> None:
        for number, sample in enumerate(samples):
            writer.push("metrics", kinds[number % streams], "v1", sample)

    def push_many(samples: list[dict[str, Any]]) -> None:
        writer.push_many(
            [("metrics", kinds[number % streams], "v1", sample) for number, sample in enumerate(samples)]
        )

    return push_many if hasattr(writer, "push_many") else push_all


def open_reader(directory: str, port: int, **options: object) -> Callable[[], int]:
    """Return the drain of the whole queue."""
    reader = QueueReader(configuration(directory, port, options))

    def drain() -> int:
        return reader.run(blocking=False)

    return drain


def open_forwarder(directory: str, port: int, **options: object) -> Callable[[Callable[[], object]], int]:
    """Return a delivery beside those who push: until the function that it is given returns, and the last answer is in the books."""
    import time

    reader = QueueReader(configuration(directory, port, options))

    def forward(wait: Callable[[], object]) -> int:
        thread = reader.start_thread()
        wait()
        give_up_at = time.monotonic() + _SETTLE_SECONDS
        while reader.books().waiting and time.monotonic() < give_up_at:
            time.sleep(0.01)
        reader.stop()
        thread.join()
        return reader.books().accepted

    return forward


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"infi.ramen_client": version("infi.ramen_client")}
    for library in ("requests", "pycurl", "orjson", "apsw"):
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue  # 1.x and 2.0 share none of them
    if "apsw" in found:
        import apsw

        found["SQLite"] = apsw.sqlite_lib_version()
    else:
        import sqlite3

        found["SQLite"] = sqlite3.sqlite_version
    return found


def configuration(directory: str, port: int, options: dict[str, object]) -> QueueReaderConfig:
    """Return a configuration for both sides; a writer does not look at the port."""
    return QueueReaderConfig(
        {
            "sender": "bench",
            "system_serial": 1099,
            "system_version": "3.0.0.1",
            "queue_dir": directory,
            "hostname": f"127.0.0.1:{port}",
            "auth_token": "0123456789abcdef0123456789abcdef",
            "ssl": False,
            **options,
        }
    )
