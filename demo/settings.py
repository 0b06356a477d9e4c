"""The configuration of the two queues: one file for each, which its writers and its reader share."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from infi.ramen_client import QueueWriterConfig

from .plan import BLACKLIST_TTL_SECONDS, RETRY_DELAY_SECONDS, SYSTEM_SERIAL, config_file, token_file

if TYPE_CHECKING:
    from pathlib import Path

    from .plan import PlannedQueue


def begin_config(directory: Path, queue: PlannedQueue) -> QueueWriterConfig:
    """Write the configuration file; it will do for writers."""
    fields: dict[str, str | int | bool] = {
        "sender": queue.name,
        "system_serial": SYSTEM_SERIAL,
        "system_version": "1.0",
        "queue_dir": str(directory / "queues"),
        "max_queue_size": queue.max_bytes,
        "ssl": False,
        "auth_token_file": str(token_file(directory)),
        "retry_delay": RETRY_DELAY_SECONDS,
        "blacklist_ttl": BLACKLIST_TTL_SECONDS,
    }
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in fields.items()]
    file = config_file(directory, queue.name)
    file.write_text("".join(lines), encoding="utf-8")
    return QueueWriterConfig.load(file, environ={})


def complete_config(directory: Path, queue: PlannedQueue, port: int) -> None:
    """Add where the collector is reached; now it will do for readers, too."""
    with config_file(directory, queue.name).open("a", encoding="utf-8") as config:
        config.write(f'hostname = "127.0.0.1:{port}"\n')
