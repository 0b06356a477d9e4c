"""Store-and-forward delivery of JSON messages to a Ramen server.

The public names, each also where 1.x has it (``infi.ramen_client.queue_writer.QueueWriter`` …). They are imported when first
used: a program that only pushes never loads the network code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .__version__ import __version__

if TYPE_CHECKING:
    from .admin import QueueAdmin
    from .async_writer import AsyncQueueWriter
    from .config import QueueReaderConfig, QueueWriterConfig
    from .errors import (
        AuthenticationError,
        DiskFull,
        DurabilityError,
        InvalidMessage,
        MessageTooLarge,
        QueueError,
        QueueFull,
        QueueGone,
        RamenError,
        ValidationError,
    )
    from .health import Health
    from .logging_handler import RamenHandler
    from .queue_reader import QueueReader
    from .queue_writer import QueueWriter
    from .utils import create_queue_reader_and_writer

_HOME = {
    "AsyncQueueWriter": "async_writer",
    "AuthenticationError": "errors",
    "DiskFull": "errors",
    "DurabilityError": "errors",
    "Health": "health",
    "InvalidMessage": "errors",
    "MessageTooLarge": "errors",
    "QueueAdmin": "admin",
    "QueueError": "errors",
    "QueueFull": "errors",
    "QueueGone": "errors",
    "QueueReader": "queue_reader",
    "QueueReaderConfig": "config",
    "QueueWriter": "queue_writer",
    "QueueWriterConfig": "config",
    "RamenError": "errors",
    "RamenHandler": "logging_handler",
    "ValidationError": "errors",
    "create_queue_reader_and_writer": "utils",
}

__all__ = [
    "AsyncQueueWriter",
    "AuthenticationError",
    "DiskFull",
    "DurabilityError",
    "Health",
    "InvalidMessage",
    "MessageTooLarge",
    "QueueAdmin",
    "QueueError",
    "QueueFull",
    "QueueGone",
    "QueueReader",
    "QueueReaderConfig",
    "QueueWriter",
    "QueueWriterConfig",
    "RamenError",
    "RamenHandler",
    "ValidationError",
    "__version__",
    "create_queue_reader_and_writer",
]


if not TYPE_CHECKING:  # to a type checker a module with __getattr__ has every name

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_HOME[name]}", __name__), name)

    def __dir__() -> list[str]:
        return list(__all__)
