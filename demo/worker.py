"""What the demo's child processes do: ``python -m demo.worker {server,writer,reader} DIRECTORY``.

Each lives as long as its standard input is open. The demo holds the other end: closing it asks the process to end, and
when the demo itself dies, of whatever cause, the operating system closes it, so that no process is left behind.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from infi.ramen_client import QueueReader, QueueReaderConfig, QueueWriter, QueueWriterConfig

# The server is what `python -m infi.ramen_client.testing` runs; here it ends with the demo, too.
from infi.ramen_client.testing.__main__ import main as serve_until_signalled

from .ledger import SERVER_RECORD, path_of, writer_record
from .telemetry import TELEMETRY, samples

if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG = "ramen.toml"
_MESSAGES_A_SECOND = 150
_MOST_BEHIND_SECONDS = 1.0
"""A writer that a slow disk holds up catches up with this much and forgets the rest."""


def main() -> int:
    """Run one role; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo.worker", description=__doc__)
    parser.add_argument("role", choices=("server", "writer", "reader"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--telemetry", choices=TELEMETRY, help="what a writer measures")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    match options.role:
        case "server":
            return _serve(options.directory)
        case "writer":
            return _write(options.directory, options.telemetry)
        case _:
            return _read(options.directory)


def _serve(directory: Path) -> int:
    # Before the first thread, which would otherwise take the signals away from the server.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    _at_end_of_input(lambda: os.kill(os.getpid(), signal.SIGTERM))
    return serve_until_signalled(["--record", str(directory / SERVER_RECORD)])


def _write(directory: Path, telemetry: str) -> int:
    """Push samples at a steady pace, and write down each one that ``push`` has acknowledged."""
    asked_to_end = threading.Event()
    _at_end_of_input(asked_to_end.set)
    config = QueueWriterConfig.load(directory / CONFIG, environ={})
    record = writer_record(directory, telemetry)
    due = time.monotonic()
    with QueueWriter(config) as writer, record.open("w", buffering=1, encoding="utf-8") as acknowledged:
        for source, data in samples(TELEMETRY[telemetry]):
            if asked_to_end.wait(max(0.0, due - time.monotonic())):
                break
            due = max(due + 1 / _MESSAGES_A_SECOND, time.monotonic() - _MOST_BEHIND_SECONDS)
            reqid = writer.push(source.category, source.data_type, source.data_version, data)
            path = path_of(config, source.category, source.data_type, source.data_version)
            acknowledged.write(f"{path} {reqid}\n")
    return 0


def _read(directory: Path) -> int:
    with QueueReader(QueueReaderConfig.load(directory / CONFIG, environ={})) as reader:

        def stop() -> None:
            while True:  # one that comes before run() has begun is lost
                reader.stop()
                time.sleep(0.1)

        _at_end_of_input(stop)
        reader.run()
    return 0


def _at_end_of_input(act: Callable[[], object]) -> None:
    def wait() -> None:
        # Not through sys.stdin: a thread that sits in there disturbs the interpreter's end.
        while os.read(0, 1024):
            pass
        act()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
