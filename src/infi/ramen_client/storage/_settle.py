"""Taking messages out of the queue, each under a reason, inside a running transaction."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from . import _statements as sql
from ._rows import Fate

if TYPE_CHECKING:
    from collections.abc import Iterable

    import apsw

    from ._rows import Settlement, StoredMessage

_DISCARD_STEP_ROWS = 20


def settle(connection: apsw.Connection, settlements: Iterable[Settlement], *, now_ms: int) -> None:
    """Remove messages from the waiting ones and count each under its fate.

    By position and reqid: a message that an operator took away meanwhile was counted then and is passed over.
    """
    connection.execute(sql.ENTER_PUSHES)
    counts: Counter[Fate] = Counter()
    dead_bytes = 0
    for settlement in settlements:
        message = settlement.message
        if settlement.death is not None:
            death = settlement.death
            connection.execute(
                sql.BURY,
                (
                    now_ms,
                    death.reason,
                    death.status,
                    death.code,
                    death.details,
                    message.position,
                    message.reqid,
                ),
            )
        connection.execute(sql.END_FLIGHT, (message.position,))
        connection.execute(sql.DELETE_MESSAGE, (message.position, message.reqid))
        if connection.changes():
            counts[settlement.fate] += 1
            if settlement.fate is Fate.DEAD:
                dead_bytes += len(message.data)
    connection.execute(
        sql.COUNT_SETTLED,
        (
            counts.total(),
            counts[Fate.ACCEPTED],
            counts[Fate.DROPPED],
            counts[Fate.BLACKLISTED],
            counts[Fate.PURGED],
            counts[Fate.DEAD],
            dead_bytes,
        ),
    )


def bury_damaged(connection: apsw.Connection, remains: Iterable[StoredMessage], *, now_ms: int) -> None:
    """Make dead letters of rows that failed their checksum, by their position alone: nothing else in them can be trusted."""
    connection.execute(sql.ENTER_PUSHES)
    for message in remains:
        connection.execute(sql.DELETE_DAMAGED, (message.position,))
        connection.execute(
            sql.INSERT_DEAD,
            (
                message.position,
                *message.columns(),
                now_ms,
                "damaged on disk: its checksum is wrong",
                None,
                None,
                "",
            ),
        )
        connection.execute(sql.COUNT_SETTLED, (1, 0, 0, 0, 0, 1, len(message.data)))


def discard_surplus_dead(connection: apsw.Connection, *, share_bytes: int) -> int:
    """Throw the oldest dead letters away while all of them take more than their share.

    The newest stays, and those stay that may yet go back (``unexplained``).
    """
    discarded = 0
    dead, dead_bytes = next(connection.execute(sql.DEAD_BYTES))
    while dead_bytes > share_bytes and dead > 1:
        oldest = list(connection.execute(sql.OLDEST_DEAD, (min(_DISCARD_STEP_ROWS, dead - 1),)))
        if not oldest:
            break
        for position, size in oldest:
            if dead_bytes <= share_bytes:
                break
            connection.execute(sql.DELETE_DEAD, (position,))
            connection.execute(sql.COUNT_DEAD_DISCARDED, (1, size))
            dead -= 1
            dead_bytes -= size
            discarded += 1
    return discarded


def discard_all_dead(connection: apsw.Connection) -> int:
    """Throw every dead letter away."""
    connection.execute(sql.DELETE_ALL_DEAD)
    discarded: int = connection.changes()
    connection.execute(sql.CLEAR_UNEXPLAINED)
    connection.execute(sql.COUNT_ALL_DEAD_DISCARDED, (discarded,))
    return discarded


def raise_dead(connection: apsw.Connection, position: int, *, now_ms: int) -> int:
    """Bring one dead letter back to its place in the queue; return 1, or 0 when there is none that could be sent."""
    connection.execute(sql.ENTER_PUSHES)
    size = connection.execute(sql.DEAD_LENGTH, (position,)).get
    connection.execute(sql.RAISE_DEAD, (now_ms, position))
    if not connection.changes():
        return 0
    connection.execute(sql.DELETE_DEAD, (position,))
    connection.execute(sql.FORGET_UNEXPLAINED, (position,))
    connection.execute(sql.COUNT_DEAD_RAISED, (size,))
    return 1
