"""What there is: two queues, who pushes what into which, the rule that the operator will add, and where files lie.

A queue's name is also its sender's. Everything lies in one directory, the demo's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from infi.ramen_protocol import Rule

if TYPE_CHECKING:
    from pathlib import Path

SYSTEM_SERIAL = 1

UNWANTED = Rule(category="processes")
"""What the operator will not want for a while; all that one of the writers measures."""

BLACKLIST_TTL_SECONDS = 3
"""How long a reader keeps a rule without hearing of it again; an hour in the field."""

RETRY_DELAY_SECONDS = 1


@dataclass(frozen=True, slots=True)
class PlannedQueue:
    """One queue of the demo; ``telemetry`` names the sets that are pushed into it, by a writer each."""

    name: str
    max_bytes: int
    telemetry: tuple[str, ...]


QUEUES = (
    PlannedQueue("main", 5 * 1024**3, ("host", "devices", "processes")),
    # Some 80 messages: a few seconds without a collector are more than it can hold.
    PlannedQueue("small", 24 * 1024, ("network",)),
)
MAIN, SMALL = QUEUES


def writer_record(directory: Path, telemetry: str) -> Path:
    """The file in which a writer writes down what it pushed: ``PATH REQID`` a line."""
    return directory / f"pushed-{telemetry}.txt"


def collector_data(directory: Path) -> Path:
    """The collector's data directory."""
    return directory / "collector"


def token_file(directory: Path) -> Path:
    """The file in which the collector's first token is kept for the readers."""
    return directory / "token"


def config_file(directory: Path, queue: str) -> Path:
    """The configuration file of a queue's writers and reader."""
    return directory / f"{queue}.toml"


def path_of(queue: str, category: str, data_type: str, data_version: str | int) -> str:
    """The path of a message's URL (protocol section 1), put together here once more, so that it is checked, too."""
    return f"/ramen/v1/{category}/{SYSTEM_SERIAL}/{queue}.{data_type}.{data_version}/"
