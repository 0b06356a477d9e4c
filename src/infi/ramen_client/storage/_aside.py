"""Putting a damaged file aside, so that a new one can take its place; and finding those that were.

    X.db.damaged-20261124T001833       put aside; what can be read of it is still to be carried into X.db (``_carry``)
    X.db.salvaged-20261124T001833      the same file when that is done: for whoever wants to look at it

each with its ``-wal``. The ``-wal`` goes first, so that a new database never meets an old log; whoever is killed in between leaves a
log without a database, which the next one puts back (``undo_half``) before it looks at the file again. Nothing is ever overwritten. Of
the salvaged ones, the latest ``_KEPT`` stay.

A process that has the damaged file open finds it by its identity among these names (``is_aside``), and goes on with the new one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ._files import sync_directory

if TYPE_CHECKING:
    from pathlib import Path

_DAMAGED = ".damaged-"
_SALVAGED = ".salvaged-"
_KEPT = 2


def put_aside(path: Path, now: datetime | None = None) -> Path:
    """Rename a queue's file and its log; return the new path. The writers' turn is held, and nobody here has it open."""
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%S")
    number = 1
    aside = path.with_name(f"{path.name}{_DAMAGED}{stamp}")
    while _taken(aside) or _taken(_salvaged(aside)):
        number += 1
        aside = path.with_name(f"{path.name}{_DAMAGED}{stamp}-{number}")
    with suppress(FileNotFoundError):
        os.rename(_wal(path), _wal(aside))  # noqa: PTH104 - beside the next line, whose order matters
    path.rename(aside)
    with suppress(FileNotFoundError):
        path.with_name(path.name + "-shm").unlink()
    sync_directory(path.parent)
    return aside


def undo_half(path: Path) -> None:
    """Give a file its log back that somebody was killed while putting aside. The writers' turn is held."""
    for log in sorted(path.parent.glob(f"{path.name}{_DAMAGED}*-wal")):
        if not _taken(log.with_name(log.name.removesuffix("-wal"))) and not _wal(path).exists():
            log.rename(_wal(path))
            sync_directory(path.parent)


def waiting_aside(path: Path) -> list[Path]:
    """The files that are still to be salvaged, the oldest first."""
    return _named(path, _DAMAGED)


def finish_aside(path: Path, aside: Path) -> Path:
    """Rename a file that was salvaged, remove the oldest of those; return its new path."""
    done = _salvaged(aside)
    with suppress(FileNotFoundError):
        _wal(aside).rename(_wal(done))
    aside.rename(done)
    for old in _named(path, _SALVAGED)[:-_KEPT]:
        _wal(old).unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return done


def is_aside(path: Path, identity: tuple[int, int]) -> bool:
    """Whether the file of this identity was put aside, so that the one at ``path`` is its successor."""
    for aside in (*_named(path, _DAMAGED), *_named(path, _SALVAGED)):
        with suppress(FileNotFoundError):
            found = aside.stat(follow_symlinks=False)
            if (found.st_dev, found.st_ino) == identity:
                return True
    return False


def _named(path: Path, kind: str) -> list[Path]:
    return sorted(
        found for found in path.parent.glob(f"{path.name}{kind}*") if not found.name.endswith("-wal")
    )


def _salvaged(aside: Path) -> Path:
    return aside.with_name(aside.name.replace(_DAMAGED, _SALVAGED))


def _wal(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _taken(path: Path) -> bool:
    return os.path.lexists(path)
