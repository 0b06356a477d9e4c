"""Taking messages out of the queue, each under a reason, inside a running transaction."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from . import _statements as sql
from ._rows import Fate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import apsw

    from ._rows import Death, Settlement, StoredMessage

_DISCARD_MOST_BYTES = 64 * 1024 * 1024
"""As large as the largest message by default, so that dead letters cannot come faster than they go."""


def settle(
    connection: apsw.Connection, settlements: Sequence[Settlement], *, now_ms: int, are_leased: bool = True
) -> None:
    """Remove messages from the waiting ones and count each under its fate.

    By position and reqid: a message that an operator took away meanwhile was counted then and is passed over. ``are_leased``: end
    their leases, too; what is frozen ends with its batch.
    """
    connection.execute(sql.ENTER_PUSHES)
    counts: Counter[Fate] = Counter()
    dead_bytes = 0
    leaving: dict[Fate, list[StoredMessage]] = {}
    for settlement in settlements:
        if settlement.death is None:
            leaving.setdefault(settlement.fate, []).append(settlement.message)
        elif _bury(connection, settlement.message, settlement.death, now_ms):
            counts[Fate.DEAD] += 1
            dead_bytes += len(settlement.message.data)
    for fate, messages in leaving.items():
        before = connection.total_changes()
        connection.executemany(
            sql.DELETE_MESSAGE, [(message.position, message.reqid) for message in messages]
        )
        counts[fate] = connection.total_changes() - before
    if are_leased:
        connection.executemany(sql.END_FLIGHT, [(settlement.message.position,) for settlement in settlements])
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


def _bury(connection: apsw.Connection, message: StoredMessage, death: Death, now_ms: int) -> bool:
    # Removed first, so that its pages are free for the letter: a full disk has no others.
    connection.execute(sql.DELETE_MESSAGE, (message.position, message.reqid))
    if not connection.changes():
        return False
    fate = (now_ms, death.reason, death.status, death.code, death.details)
    connection.execute(sql.INSERT_DEAD, (message.position, *message.columns(), *fate))
    return True


def bury_damaged(connection: apsw.Connection, remains: Iterable[StoredMessage], *, now_ms: int) -> None:
    """Make dead letters of rows that failed their checksum, by their position alone: nothing else in them can be trusted."""
    for message in remains:
        connection.execute(sql.ENTER_PUSHES)
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


def dead_letters_share(limit_bytes: int) -> int:
    """How much of a queue's size limit dead letters may take."""
    return limit_bytes // 10


def discard_surplus_dead(connection: apsw.Connection, *, share_bytes: int) -> int:
    """Throw the oldest dead letters away while all take more than their share; return how many.

    The newest stays, and those that may yet go back (``unexplained``). After ``_DISCARD_MOST_BYTES`` the rest is left for the
    next time.
    """
    letters = discarded = 0
    while discarded < _DISCARD_MOST_BYTES:
        size = discard_oldest_dead(connection, share_bytes=share_bytes, but_the_newest=True)
        if not size:
            break
        letters += 1
        discarded += size
    return letters


def discard_oldest_dead(connection: apsw.Connection, *, share_bytes: int, but_the_newest: bool) -> int:
    """Throw one dead letter away if all take more than their share; return its bytes (an empty one's as 1), 0: none went."""
    if connection.execute(sql.DEAD_BYTES).get <= share_bytes:
        return 0
    oldest = sql.OLDEST_DEAD_BUT_ONE if but_the_newest else sql.OLDEST_DEAD
    for position, size in connection.execute(oldest):
        connection.execute(sql.DELETE_DEAD, (position,))
        connection.execute(sql.COUNT_DEAD_DISCARDED, (1, size))
        return max(1, int(size))
    return 0


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
