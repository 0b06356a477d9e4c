"""What the tests of delivery share: a queue with its writer and readers, and the books at the end."""

from __future__ import annotations

import logging
import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from infi.ramen_client._opening import open_queue
from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.queue_reader import QueueReader
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.storage import DeadLetter, StoredRule, load_rules
from infi.ramen_client.utils import create_queue_reader_and_writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pytest

    from infi.ramen_client.testing import RamenServer

CANARY = "canary-4e0c5d1f-tell-nobody"
"""The token of most tests, which must be nowhere afterwards but on the wire."""


class Client:
    """A queue in ``directory`` and everything that uses it."""

    def __init__(self, directory: Path, hostname: str, token: str = CANARY, **fields: Any) -> None:
        self.config = QueueReaderConfig(
            {
                "sender": "imx",
                "system_serial": 1099,
                "system_version": "3.0.0.1",
                "queue_dir": str(directory),
                "hostname": hostname,
                "auth_token": token,
                "ssl": False,
                "durability": "normal",
                "retry_delay": 0.01,
                "server_timeout": 10,
                **fields,
            }
        )
        self.writer = QueueWriter(self.config)
        self.reader = QueueReader(self.config)
        self.queue = open_queue(self.config)
        self.pushed: list[str] = []

    def config_values(self) -> dict[str, Any]:
        """The configuration as a child process may be given it."""
        return {name: getattr(self.config, name) for name in self.config.FIELDS}

    def push(self, count: int = 1, *, data_type: str = "san_totals", version: str | int = "v1") -> list[str]:
        """Push messages; their reqids."""
        pushed = self.writer.push_many(
            ("metrics", data_type, version, {"n": len(self.pushed) + n}) for n in range(count)
        )
        self.pushed += pushed
        return pushed

    def new_reader(self) -> QueueReader:
        """As after a restart, but for the process."""
        self.reader.close()
        self.reader = QueueReader(self.config)
        return self.reader

    @contextmanager
    def running(self) -> Iterator[threading.Thread]:
        """A reader in a thread of its own, as programs have it; it must be alive at the end, and stop."""
        before = set(threading.enumerate())
        reader, writer = create_queue_reader_and_writer(self.config)
        (thread,) = (one for one in threading.enumerate() if one not in before and one.name == "ramen-reader")
        try:
            yield thread
            assert thread.is_alive(), "the reader's thread has ended"
        finally:
            reader.stop()
            thread.join(10)
            writer.close()
            reader.close()
        assert not thread.is_alive()

    def wait_until(self, condition: Callable[[], bool], seconds: float = 10) -> None:
        """Wait for something to become so."""
        latest = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < latest, f"not within {seconds} s; {self.queue.books()}, {self.state()}"
            time.sleep(0.005)

    def wait_empty(self, seconds: float = 10) -> None:
        self.wait_until(lambda: self.queue.size() == 0, seconds)

    def counts(self) -> dict[str, int]:
        """The books without what is zero."""
        books = self.queue.books()
        return {name: value for name in books.__slots__ if (value := getattr(books, name))}

    def dead(self) -> list[DeadLetter]:
        return self.queue.dead_letters()

    def rules(self) -> list[StoredRule]:
        return load_rules(self.queue)

    def state(self) -> dict[str, Any]:
        """What the file says of the reader: what ``status`` will show."""
        return self._row("SELECT * FROM reader")

    def server_row(self) -> dict[str, Any]:
        """What the file says of the server."""
        return self._row("SELECT failures, suspect_since, retry_at FROM server")

    def _row(self, statement: str) -> dict[str, Any]:
        from infi.ramen_client.storage._database import Kind

        with self.queue.database.connection(Kind.NORMAL) as connection:
            cursor = connection.execute(statement)
            for row in cursor:
                return dict(zip((name for name, *_ in cursor.description), row, strict=True))
        return {}

    def files(self) -> bytes:
        """Every byte of the queue's directory."""
        from pathlib import Path

        return b"".join(path.read_bytes() for path in sorted(Path(self.config.queue_dir).iterdir()))

    def verify(self) -> None:
        """The books balance and tell what the rows tell; the token is in no file."""
        assert self.queue.check() == []
        assert CANARY.encode() not in self.files()

    def close(self) -> None:
        self.reader.close()
        self.writer.close()
        self.queue.close()


def arrived(server: RamenServer) -> list[str]:
    """The reqids that were accepted, each at its first time, in order."""
    return [message.reqid for message in server.accepted]


def lines(caplog: pytest.LogCaptureFixture, least: int = logging.WARNING) -> list[str]:
    """The log of the client, from this level on. Each line must be fit for an operator."""
    said = []
    for record in caplog.records:
        if record.name != "ramen_client":
            continue
        text = record.getMessage()
        assert CANARY not in text
        assert CANARY not in repr(record.__dict__)
        if record.levelno >= least:
            assert "\n" not in text
            assert text.isprintable()
            assert ".;" not in text
            assert ".:" not in text
            assert ".." not in text.replace("127.0.0.1", "")
            said.append(text)
    return said


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.exc_info or record.stack_info]


@contextmanager
def raw_server(script: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that plays ``script`` on each connection and closes it then; its ``hostname``."""
    streams: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def play(stream: socket.socket) -> None:
        with stream, suppress(OSError):
            script(stream)

    def accept() -> None:
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            streams.append(stream)
            threads.append(threading.Thread(target=play, args=(stream,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for stream in streams:
                with suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def read_request(stream: socket.socket) -> bytes:
    """One whole request; an OSError when the client leaves."""
    data = b""
    while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < _length(data):
        piece = stream.recv(65536)
        if not piece:
            raise ConnectionError("the client has left")
        data += piece
    return data


def _length(data: bytes) -> int:
    return int(data.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
