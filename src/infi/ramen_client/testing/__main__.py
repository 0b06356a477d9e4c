"""The test server as a process of its own: ``python -m infi.ramen_client.testing --record FILE`` and more options.

``--port N`` and ``--token T`` are what they are called; ``--batches message`` or ``--batches batch`` offers batches (version 2)
with that dedupe. Lanes are not in the record file: after a restart each is in conflict.

When it listens, it says so in one line of JSON on stdout: ``{"hostname": "127.0.0.1:40123", "port": 40123}``.

Each acceptance appends one line of JSON to the record file, before the answer is sent:

    {"reqid": "…", "path": "/ramen/v1/…/", "duplicate": false}

The file outlives the process: the next run on it reads it first, so that a message that was accepted before a restart
is a duplicate after it. It is flushed, not synced: what was answered survives any death of the process (SIGKILL too),
not a power cut. The beginning of a line that a killed process left at the end was never answered, and is cut off; any
other line that cannot be read ends the program (exit 1). One process at a time may use a file.

SIGTERM and SIGINT end it (exit 0). SIGUSR1 begins an outage in which every request is answered with 503, or ends it.
When a line cannot be written (a full disk), nothing of it stays in the file, the reason goes to stderr and the message
is answered with 500, so that the client sends it again.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from infi.ramen_client.testing._received import Received, key_of
from infi.ramen_client.testing.replies import Accept, Refuse, Reply
from infi.ramen_client.testing.server import DEFAULT_TOKEN, RamenServer
from infi.ramen_protocol import BatchOffer, Dedupe

if TYPE_CHECKING:
    from types import TracebackType

_UNAVAILABLE = Refuse("UNAVAILABLE", "an outage, begun by SIGUSR1")
_ENDING = frozenset({signal.SIGTERM, signal.SIGINT})
_TOGGLE = signal.SIGUSR1


class Record:
    """The record file, and what it remembers. ``_lock`` guards the file, its length and the keys.

    Raises ``OSError`` when the file cannot be opened, ``ValueError`` when a line of it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._keys: set[bytes] = set()
        self._length = 0
        self._file = path.open("ab+", buffering=0)
        try:
            self._load(path)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def note(self, message: Received) -> bool:
        """Append one acceptance; returns whether it is a duplicate. Raises ``OSError``, then nothing was noted."""
        key = key_of(message.path, message.reqid)
        with self._lock:
            duplicate = key in self._keys
            fields = {"reqid": message.reqid, "path": message.path, "duplicate": duplicate}
            line = json.dumps(fields).encode() + b"\n"
            rest = memoryview(line)
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._file.truncate(self._length)
                raise
            self._length += len(line)
            self._keys.add(key)
        return duplicate

    def _load(self, path: Path) -> None:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    self._file.truncate(self._length)
                    return
                try:
                    fields = json.loads(line)
                    self._keys.add(key_of(fields["path"], fields["reqid"]))
                except (ValueError, TypeError, KeyError) as error:
                    raise ValueError(f"line {number} of {path} is no line of a record: {error}") from error
                self._length += len(line)


def main(arguments: list[str] | None = None) -> int:
    """Run until a signal ends it; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m infi.ramen_client.testing", description="A Ramen server for tests."
    )
    parser.add_argument(
        "--record", type=Path, required=True, metavar="FILE", help="one line of JSON per acceptance"
    )
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="port on 127.0.0.1; 0 (default): a free one"
    )
    parser.add_argument("--token", default=DEFAULT_TOKEN, metavar="T", help="what X-API-Token must hold")
    parser.add_argument(
        "--batches", type=Dedupe, metavar="message|batch", help="offer batches (version 2) with this dedupe"
    )
    options = parser.parse_args(arguments)
    offer = None if options.batches is None else BatchOffer("/ramen/v2/batch", 1000, 8 << 20, options.batches)
    # Blocked before the first thread is made, which inherits it: signals then wait for sigwait, in this thread.
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_ENDING, _TOGGLE})
    try:
        with Record(options.record) as record:
            _run(record, options.port, options.token, offer)
    except (OSError, OverflowError, ValueError) as error:
        print(f"ramen test server: {error}", file=sys.stderr)  # noqa: T201 - a program's way to speak
        return 1
    return 0


def _run(record: Record, port: int, token: str, offer: BatchOffer | None) -> None:
    def reply(message: Received) -> Reply:
        return Accept("a duplicate" if record.note(message) else None)

    server = RamenServer(token=token, port=port, keep=0, offer=offer)
    server.default = reply
    outage = False
    server.start()
    try:
        print(json.dumps({"hostname": server.hostname, "port": server.port}), flush=True)  # noqa: T201
        while signal.sigwait({*_ENDING, _TOGGLE}) == _TOGGLE:
            outage = not outage
            server.default = _UNAVAILABLE if outage else reply
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main())
