"""1.x's helpers, and the quick way to a reader and a writer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from infi.ramen_protocol import compress, dump, is_name, is_version

from ._config_fields import shown
from .errors import ValidationError
from .queue_reader import QueueReader
from .queue_writer import QueueWriter

if TYPE_CHECKING:
    from .config import QueueReaderConfig

__all__ = [
    "compress",
    "create_queue_reader_and_writer",
    "dump_json",
    "logger",
    "validate_name",
    "validate_version",
]

logger = logging.getLogger("ramen_client")
"""The logger of everything in this package."""


def create_queue_reader_and_writer(config: QueueReaderConfig) -> tuple[QueueReader, QueueWriter]:
    """Build a reader that runs in a daemon thread, and a writer to the same queue.

    The thread lives until ``reader.stop()``: whatever goes wrong, a refused token included, it keeps the messages, backs off and
    tries again, and says so in the log.
    """
    reader = QueueReader(config)
    writer = QueueWriter(config)
    reader.start_thread()
    return reader, writer


def dump_json(data: Any) -> str:
    """Serialise data as ``push`` does; what JSON cannot express becomes ``null``."""
    return dump(data).decode()


def validate_name(s: str) -> None:
    """Raise ``ValidationError`` unless the whole text is letters, digits, ``-`` and ``_``."""
    if not (isinstance(s, str) and is_name(s)):
        raise ValidationError(f"{shown(s)} is not a name: only letters, digits, '-' and '_' are allowed")


def validate_version(s: str) -> None:
    """Raise ``ValidationError`` unless the whole text is letters, digits, ``.``, ``-`` and ``_``."""
    if not (isinstance(s, str) and is_version(s)):
        raise ValidationError(
            f"{shown(s)} is not a version: only letters, digits, '.', '-' and '_' are allowed"
        )
