"""A writer as a child process: ``python -m demo.writer DIRECTORY TELEMETRY``.

It pushes samples at a steady pace, and writes down each one after ``push`` has returned.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

from infi.ramen_client import QueueWriter, QueueWriterConfig

from .lifeline import at_end_of_input, log_to_stderr
from .plan import QUEUES, config_file, path_of, writer_record
from .telemetry import TELEMETRY, samples

_MESSAGES_A_SECOND = 40
_MOST_BEHIND_SECONDS = 1.0
"""A writer that a slow disk holds up catches up with this much and forgets the rest."""


def main(directory: Path, telemetry: str) -> None:
    """Push until standard input ends."""
    log_to_stderr()
    asked_to_end = threading.Event()
    at_end_of_input(asked_to_end.set)
    [queue] = (queue for queue in QUEUES if telemetry in queue.telemetry)
    config = QueueWriterConfig.load(config_file(directory, queue.name), environ={})
    record = writer_record(directory, telemetry)
    due = time.monotonic()
    with QueueWriter(config) as writer, record.open("w", buffering=1, encoding="utf-8") as acknowledged:
        for source, data in samples(TELEMETRY[telemetry]):
            if asked_to_end.wait(max(0.0, due - time.monotonic())):
                break
            due = max(due + 1 / _MESSAGES_A_SECOND, time.monotonic() - _MOST_BEHIND_SECONDS)
            reqid = writer.push(source.category, source.data_type, source.data_version, data)
            path = path_of(queue.name, source.category, source.data_type, source.data_version)
            acknowledged.write(f"{path} {reqid}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
