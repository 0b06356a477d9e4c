"""What every part of the active reader needs: the queue's file, begun, with what was carried over from damaged ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import orjson

from infi.ramen_client.errors import QueueBusy

from . import _statements as sql
from ._carry import Carrier
from ._database import Kind
from ._heal import Replaced
from ._looking import Frontier
from .repairing import mend

if TYPE_CHECKING:
    import apsw

    from ._create import Place
    from ._database import Database
    from .queue import Queue

CHECKPOINT_FRAMES = 300
"""Before a writer would: it has the time."""


class ReaderWork:
    """Shared by the parts of one ``ActiveReader``."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue
        self.has_begun = False
        self.frontier = Frontier()
        """How far has been looked for messages: what was carried over lies behind it."""
        self.unsettled: set[int] = set()
        """Positions of messages that were sent by themselves and whose outcome is not known: their leases outlive the reader. Those
        that an earlier reader left are among them as soon as this one has begun."""
        self._carrier = Carrier(queue.database)
        self._carried_into = (
            0  # of how many files of this queue it is known that nothing is to be carried into them
        )

    @property
    def database(self) -> Database:
        """The queue's file."""
        return self.queue.database

    @property
    def place(self) -> Place:
        """Whose queue it is."""
        return self.queue.place

    def carry(self) -> None:
        """Bring over what can be read of damaged files that were put aside; ``QueueBusy`` when told to stop meanwhile."""
        database = self.database
        if self._carried_into != database.files:
            self.frontier.start_over()
        while self._carried_into != database.files:
            files = database.files
            if not self._carrier.step():
                mend(database)
                self._carried_into = files
            elif database.reader_patience.is_told_to_stop():
                raise QueueBusy(f"{database.path}: messages of a damaged file are being carried over")
            self.checkpoint_if_due()

    def begin(self, connection: apsw.Connection, *, now_ms: int) -> None:
        """At the start of each of the reader's write transactions."""
        if self._carried_into != self.database.files:
            raise Replaced
        self.database.check_head(connection.execute(sql.HEAD).get)
        if not self.has_begun:
            connection.execute(sql.READER_STARTED, (os.getpid(), now_ms))
            # Held on, so that none is trimmed although the server may have it.
            self.unsettled.update(position for (position,) in connection.execute(sql.LEASES))
            self.void_leases(connection)
            connection.execute(sql.FORGET_ATTEMPTS)
            self.has_begun = True

    def void_leases(self, connection: apsw.Connection) -> None:
        """End the leases, in a running transaction."""
        connection.execute(sql.VOID_LEASES, (orjson.dumps(sorted(self.unsettled)).decode(),))

    def checkpoint_if_due(self) -> None:
        """After a commit: keep the WAL short."""
        self.database.checkpoint_above(CHECKPOINT_FRAMES, Kind.READER)

    def close(self) -> None:
        """Let go of the file that is being read."""
        self._carrier.close()
