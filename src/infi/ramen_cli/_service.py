"""What commands that run as a service share: telling the service manager, and a log that it and people can read.

``notify`` speaks the sd_notify protocol: one datagram to the socket that ``$NOTIFY_SOCKET`` names. Nobody waits for an answer,
and a service never fails because its manager cannot be told.

``watchdog_seconds`` is how often at least it wants to hear ``WATCHDOG=1`` (``WatchdogSec=`` of the unit): a service that has nothing good to
say stays silent, and is killed and started again.

``configure_logging`` writes one line a record to stderr: time, level, logger, message. Where stderr is a stream to the journal
(which has its own times) a line is ``<priority>logger: message`` instead. Each line of a record with several, a traceback's too,
carries the priority, so that nothing inside a message can pass for a record of another priority.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

_logger = logging.getLogger("ramen")

_SYSLOG_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}
_DEBUG_PRIORITY = 7


def notify(state: str) -> None:
    """Tell the service manager, ``"READY=1"`` or ``"STOPPING=1"`` say; does nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # a name in Linux's abstract space
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # A manager that does not read its socket must not hold the service up.
        sender.setblocking(False)
        try:
            sender.sendto(state.encode(), address)
        except OSError as error:
            _logger.warning("The service manager could not be told %s: %s", state.partition("\n")[0], error)


def watchdog_seconds() -> float | None:
    """Within how many seconds the service manager must hear ``WATCHDOG=1`` from this process; None: it does not wait for that."""
    meant_for = os.environ.get("WATCHDOG_PID")
    if meant_for and meant_for != str(os.getpid()):
        return None
    given = os.environ.get("WATCHDOG_USEC", "")
    return int(given) / 1e6 if given.isascii() and given.isdigit() and int(given) else None


def configure_logging(level: int = logging.INFO) -> None:
    """Write records of ``level`` and above to stderr. May be called again; the last call counts."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _ToStderr)]:
        root.removeHandler(handler)
    handler = _ToStderr()
    if is_the_journal(sys.stderr):
        handler.setFormatter(_ForTheJournal("%(name)s: %(message)s"))
    else:
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S%z")
        )
    root.addHandler(handler)
    root.setLevel(level)


def is_the_journal(stream: TextIO) -> bool:
    """Whether the stream leads to the journal.

    ``$JOURNAL_STREAM`` names a device and an inode; it is inherited, so it counts only for a stream that is still that one.
    """
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):  # closed, or an object without a descriptor
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class _ToStderr(logging.Handler):
    """Writes to what ``sys.stderr`` is at the moment."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:  # noqa: BLE001 - as every handler of logging: the log never stops the program
            self.handleError(record)


class _ForTheJournal(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        priority = next(
            (number for level, number in _SYSLOG_PRIORITIES.items() if record.levelno >= level),
            _DEBUG_PRIORITY,
        )
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).splitlines())
