"""What happens when a file that is in use turns out to be damaged: it is put aside, and the work is done again on a new one.

The swap takes milliseconds, whatever the file's size: what can be read of the old one is carried over by the active reader
(``_carry``), while pushes go on. Other processes, and other threads of this one, notice at their next transaction that the file
was put aside, and go on with the new one as well (``Database``). So the program lives, and loses only what was damaged.

A log that found no room on a full disk is copied into the database, and the work is done again likewise (``_reserve``).
"""

from __future__ import annotations

from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

from infi.ramen_client.errors import QueueError

from ._create import replace_damaged
from ._database import Kind
from ._errors import Damaged, LogFull, plain_errors
from ._registry import no_fork_meanwhile

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._create import Place
    from ._database import Database


_MOST_ATTEMPTS = 3
"""A file may be replaced by another process, and the new one by us. A disk that damages one after the other is out of order."""


class _Holder(Protocol):
    """Whoever works on a queue's file."""

    @property
    def database(self) -> Database: ...

    @property
    def place(self) -> Place: ...


_H = TypeVar("_H", bound=_Holder)
_P = ParamSpec("_P")
_T = TypeVar("_T")


class Replaced(Exception):
    """Raised within a transaction whose file took the place of a damaged one a moment ago; ``healing`` does the work again."""


def heal(database: Database, place: Place, reason: Exception) -> None:
    """Put a damaged file aside and go on with a new one; if another process was faster, with that one's."""
    with (
        no_fork_meanwhile(database.path),
        plain_errors(database.path),
        database.nobody_at_work(),
        database.writers_lock.turn(),
    ):
        if database.is_in_place():
            replace_damaged(database.path, place, database.access, reason)
        database.rebind()


def healing(method: Callable[Concatenate[_H, _P], _T]) -> Callable[Concatenate[_H, _P], _T]:
    """A method that does its work again, once, when it found the file damaged or its log full. It must have done nothing then."""

    @wraps(method)
    def again(holder: _H, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return method(holder, *args, **kwargs)
        except Replaced:
            pass
        except Damaged as error:
            heal(holder.database, holder.place, error)
        except LogFull:
            with suppress(QueueError):  # then the second attempt says it again
                holder.database.checkpoint(Kind.NORMAL)
        return method(holder, *args, **kwargs)

    return again
