"""A request under way, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infi.ramen_client.storage import StoredMessage
    from infi.ramen_protocol import Coding

    from .batching import Sending
    from .judging import Headers


class Step(IntEnum):
    """The result of one step, as 1.x numbers them."""

    EMPTY = 0
    ACCEPTED = 1
    DROPPED = 2
    RETRY = 3


@dataclass(frozen=True, slots=True)
class Flight:
    """A request under way: one message, or a batch, and how it was sent."""

    cargo: StoredMessage | Sending
    coding: Coding
    headers: Headers
    round_number: int
