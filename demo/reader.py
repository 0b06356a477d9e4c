"""A queue's reader as a child process: ``python -m demo.reader DIRECTORY QUEUE``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from infi.ramen_client import QueueReader, QueueReaderConfig

from .lifeline import at_end_of_input, log_to_stderr
from .plan import config_file


def main(directory: Path, queue: str) -> None:
    """Deliver until standard input ends."""
    log_to_stderr()
    with QueueReader(QueueReaderConfig.load(config_file(directory, queue), environ={})) as reader:

        def stop() -> None:
            while True:  # one that comes before run() has begun is lost
                reader.stop()
                time.sleep(0.1)

        at_end_of_input(stop)
        reader.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
