"""From a configuration to an open queue: what writer and reader share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .config import QueueReaderConfig
from .storage import Overflow, Place, Queue

if TYPE_CHECKING:
    from .config import QueueWriterConfig


def open_queue(config: QueueWriterConfig) -> Queue:
    """Open the queue that a validated configuration names, creating it if needed."""
    place = Place(
        directory=config.queue_dir,
        sender=config.sender,
        system_serial=config.system_serial,
        system_version=config.system_version,
        group=config.queue_group,
    )
    return Queue(
        place,
        max_bytes=config.max_queue_size,
        durable=config.durability == "full",
        overflow=Overflow(config.overflow),
        min_free_disk=config.min_free_disk,
        max_age_seconds=config.max_message_age_seconds if isinstance(config, QueueReaderConfig) else None,
    )
