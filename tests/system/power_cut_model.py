"""The states in which a power cut can leave files, from a log of all that was done to them (``disk_shim.c``, mode ``record``).

What is certain after a cut:

- what a sync that has ended in success found written when it began, and nothing else. Of everything that is not certain, any part
  may be there and any other not: whole writes, or single sectors of a write that tore; a change of the size; a file before its
  name, a name before its file. Cuts of any order of a disk's own are among these.
- A name (made or removed) when its directory was synced; syncing the file does not do it, as strict as POSIX.
- **A sync of a file that fails** has given its writes up: no later sync makes them certain, though it succeeds and the writing program reads
  them back. Only new writes at the same place do. Of syncs that overlap with it, those that succeed say the truth. (Linux tells
  every open descriptor of the file once, by its next sync; one that was opened later, or was told, syncs with success.) Of a directory, a later sync makes up for it: nobody could
  write its names again.

Left out, since SQLite builds it anew: the ``-shm`` (it is absent, or of any content). Never torn: a sector of 512 bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

SECTOR_BYTES = 512

FAILED = 1
TOLD_OF_EARLIER_FAILURE = 2

_HEAD = struct.Struct("<BBHIQQ")


@dataclass(frozen=True, slots=True)
class Event:
    """A record of the log; see ``disk_shim.c``."""

    kind: str
    failed: int
    path: str
    inode: int
    value: int
    data: bytes

    def packed(self) -> bytes:
        path = self.path.encode()
        head = _HEAD.pack(ord(self.kind), self.failed, len(path), len(self.data), self.inode, self.value)
        return head + path + self.data


def read_log(log: Path) -> Iterator[Event]:
    with log.open("rb") as file:
        while head := file.read(_HEAD.size):
            kind, failed, path_bytes, data_bytes, inode, value = _HEAD.unpack(head)
            path = file.read(path_bytes).decode()
            yield Event(chr(kind), failed, path, inode, value, file.read(data_bytes))


@dataclass(slots=True)
class _Change:
    """Of a file: a write (``data``), or a new size (``place``, no data)."""

    number: int
    place: int
    data: bytes | None
    certain: bool = False
    given_up: int | None = None
    """When a sync failed on it: a number of the same sequence."""

    def apply(self, content: bytearray) -> None:
        if self.data is None:
            del content[self.place :]
            content.extend(bytes(self.place - len(content)))
            return
        content.extend(bytes(max(0, self.place - len(content))))
        content[self.place : self.place + len(self.data)] = self.data

    def apply_torn(self, content: bytearray, chance: random.Random) -> None:
        assert self.data is not None
        start, end = self.place, self.place + len(self.data)
        while start < end:
            border = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
            if chance.random() < 0.5:
                _Change(0, start, self.data[start - self.place : border - self.place]).apply(content)
            start = border


@dataclass(slots=True)
class _NameChange:
    """Of a directory: what ``path`` leads to from now on, a file's number, ``_A_DIRECTORY``, or None: nothing."""

    number: int
    path: str
    target: int | None
    certain: bool = False


_A_DIRECTORY = -1


@dataclass(slots=True)
class _File:
    base: bytearray = field(default_factory=bytearray)
    changes: list[_Change] = field(default_factory=list)

    def end_sync(self, *, began: int, ended: int, failed: bool) -> None:
        for change in self.changes:
            if failed:
                if not change.certain and change.given_up is None:
                    change.given_up = ended
            elif change.number < began and (change.given_up is None or change.given_up > began):
                change.certain = True
        self._fold()

    def _fold(self) -> None:
        """Put what is certain for ever into the base, up to the first change that is not."""
        for index, change in enumerate(self.changes):
            if change.certain and change.data is None and change.place == 0:
                del self.changes[:index]  # cut to nothing: whatever was before is of no consequence
                break
        done = 0
        for change in self.changes:
            if not change.certain:
                break
            change.apply(self.base)
            done += 1
        del self.changes[:done]

    def after_cut(self, chance: random.Random, keep: float) -> bytes:
        content = bytearray(self.base)
        tear = chance.choice((0, 0.2))
        for change in self.changes:
            if change.certain or chance.random() < keep:
                change.apply(content)
            elif change.data is not None and chance.random() < tear:
                change.apply_torn(content, chance)
        return bytes(content)


class Disk:
    """What lies below ``root``, which is there from the beginning with all that is in it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._number = 0
        self._files: list[_File] = []
        self._file_of_inode: dict[int, int] = {}  # the present one: inodes are used again
        self._now: dict[str, int] = {}  # the inode of each file, as the program sees it
        self._names: dict[str, int] = {}
        self._name_changes: dict[str, list[_NameChange]] = {}  # by directory
        self._syncs: dict[int, int] = {}
        for path in root.rglob("*"):
            if path.is_file():
                self._now[str(path)] = path.stat().st_ino
                self._names[str(path)] = self._add_file(path.stat().st_ino, path.read_bytes())
            else:
                self._names[str(path)] = _A_DIRECTORY

    def _add_file(self, inode: int, content: bytes = b"") -> int:
        self._files.append(_File(bytearray(content)))
        self._file_of_inode[inode] = len(self._files) - 1
        return len(self._files) - 1

    def _file(self, event: Event) -> _File:
        return self._files[self._file_of_inode[event.inode]]

    def apply(self, event: Event) -> None:
        self._number += 1
        match event.kind:
            case "C":
                if self._now.get(event.path) != event.inode:  # two that make it at once both say so
                    self._now[event.path] = event.inode
                    self._change_name(event.path, self._add_file(event.inode))
            case "M":
                self._change_name(event.path, _A_DIRECTORY)
            case "U":
                del self._now[event.path]
                self._change_name(event.path, None)
            case "W":
                self._file(event).changes.append(_Change(self._number, event.value, event.data))
            case "T":
                self._file(event).changes.append(_Change(self._number, event.value, None))
            case "S":
                self._syncs[event.value] = self._number
            case "E":
                self._end_sync(event)
            case other:
                raise NotImplementedError(other)

    def _change_name(self, path: str, target: int | None) -> None:
        changes = self._name_changes.setdefault(str(Path(path).parent), [])
        changes.append(_NameChange(self._number, path, target))

    def _end_sync(self, event: Event) -> None:
        began = self._syncs.pop(event.value)
        if event.failed == TOLD_OF_EARLIER_FAILURE:
            return
        failed = event.failed == FAILED
        if self._now.get(event.path) == event.inode:
            self._file(event).end_sync(began=began, ended=self._number, failed=failed)
        elif not failed:
            for change in self._name_changes.get(event.path, ()):
                change.certain |= change.number < began

    def after_cut(self, chance: random.Random) -> dict[Path, bytes | None]:
        """One of the states that a cut could leave now: the files by path relative to ``root``; None: a directory."""
        keep = chance.choice((0, 0, 1, chance.random()))
        names = dict(self._names)
        for changes in self._name_changes.values():
            for change in changes:
                if change.certain or chance.random() < keep:
                    names.pop(change.path, None)
                    if change.target is not None:
                        names[change.path] = change.target
        state: dict[Path, bytes | None] = {}
        for name, inode in sorted(names.items()):  # a directory comes before what is in it
            path = Path(name).relative_to(self._root)
            if path.parent != Path() and path.parent not in state:
                continue
            keep_here = keep if chance.random() < 0.6 else chance.choice((0, 1, chance.random()))
            if inode == _A_DIRECTORY:
                state[path] = None
            elif not name.endswith("-shm"):
                state[path] = self._files[inode].after_cut(chance, keep_here)
            elif chance.random() < 0.5:
                state[path] = chance.randbytes(32768)
        return state


def write_state(state: dict[Path, bytes | None], directory: Path) -> None:
    for path, content in state.items():
        if content is None:
            (directory / path).mkdir()
        else:
            (directory / path).write_bytes(content)
