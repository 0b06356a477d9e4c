"""Which messages are leased in the queue by this courier (``ActiveReader.lease``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from infi.ramen_client.storage import ActiveReader, StoredMessage


class Leases:
    """The positions that are held, so that none is leased twice or for longer than needed."""

    def __init__(self, reader: ActiveReader) -> None:
        self._reader = reader
        self._held: set[int] = set()

    def __contains__(self, message: StoredMessage) -> bool:
        return message.position in self._held

    def take(self, messages: Sequence[StoredMessage]) -> list[StoredMessage]:
        """Lease what is not leased yet, in one write; return those of ``messages`` that are in the queue."""
        wanted = [message for message in messages if message.position not in self._held]
        self._held.update(message.position for message in self._reader.lease(wanted))
        return [message for message in messages if message.position in self._held]

    def end(self, messages: Iterable[StoredMessage]) -> None:
        """Leases that ended with their messages' settling, or their batch's freezing."""
        self._held.difference_update(message.position for message in messages)

    def give_back(self, messages: Iterable[StoredMessage]) -> None:
        """End leases of messages that stay in the queue and will not be sent soon."""
        mine = [message for message in messages if message.position in self._held]
        if mine:
            self._reader.release(mine)
            self.end(mine)
