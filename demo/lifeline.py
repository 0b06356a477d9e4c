"""What the demo's child processes have in common: ``python -m demo.{collector,gate,writer,reader} DIRECTORY [WHICH]``.

Each lives as long as its standard input is open. The demo holds the other end: closing it asks the process to end, and
when the demo itself dies, of whatever cause, the operating system closes it, so that no process is left behind. Each imports
no more than it needs: there are many of them, and some are started several times.
"""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def log_to_stderr() -> None:
    """Have everything logged that is worth a closer look after a demo that failed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")


def at_end_of_input(act: Callable[[], object]) -> None:
    """Have ``act`` called in a thread of its own when standard input ends."""

    def wait() -> None:
        # Not through sys.stdin: a thread that sits in there disturbs the interpreter's end.
        while os.read(0, 1024):
            pass
        act()

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
