"""The pages of a damaged queue file: plain file reads, with the intact part of the write-ahead log laid over the database.

The formats are SQLite's (its "Database File Format" document). Page size is 4096 whatever the header says: 1.x and we make no other.

- A frame of the log is checked by itself: its checksum goes on from the one that the frame before it *stores*, so one damaged frame does
  not make those behind it unreadable. What SQLite would lay over the database is the run of intact frames of the present generation
  (their salts) from the first on, up to its last commit: ``Log.overlay``.
- Frames behind a damaged one, as far as a commit mark stands behind them, are ``Log.beyond``: they are newer than what SQLite sees, but
  they may also be what a transaction that was rolled back has left, so they are never laid over anything.
- A log whose header is damaged has its first frame's salts. All of it is laid over, if that frame proves itself by what the header has
  left; else all of it is ``beyond``.

Nothing here raises on any content. A page that is missing, or that the disk cannot read, is empty (``b""``). Every walk is bounded: pages
are visited a fixed number of times in all.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

PAGE_BYTES: Final = 4096
SCHEMA_PAGE: Final = 1

_LOG_HEADER_BYTES: Final = 32
_FRAME_HEADER_BYTES: Final = 24
_FRAME_BYTES: Final = _FRAME_HEADER_BYTES + PAGE_BYTES
_LOG_MAGIC: Final = 0x377F0682
"""The lowest bit says in which byte order the checksums read their words: 0 little, 1 big."""

_ENTRY_BYTES: Final = 5
_ENTRIES_PER_PAGE: Final = PAGE_BYTES // _ENTRY_BYTES
_PENDING_BYTE_PAGE: Final = 0x40000000 // PAGE_BYTES + 1
"""SQLite never uses it: the bytes at 1 GiB are its locks."""

_CHAIN_BYTES: Final = PAGE_BYTES - 4
_CHAIN_VISITS: Final = 8
"""So many rows, copies and broken ones included, may claim an overflow page; it bounds the work that crossed chains make."""

_EMPTY_PAGE: Final = bytes(PAGE_BYTES)
_LARGEST_OVERLAID: Final = 2**24
"""A page number of the log is not believed beyond 64 GiB, where the database has no such page itself: memory goes by the last page."""

_AUTO_VACUUM_OFFSET: Final = 52
_PAGE_COUNT_OFFSET: Final = 28


class Use(IntEnum):
    """What the pointer map says that a page is."""

    ROOT = 1
    FREE = 2
    OVERFLOW_FIRST = 3
    OVERFLOW = 4
    TREE = 5


class Entry(NamedTuple):
    """The pointer map's word on a page; ``parent`` is 0 for a root and for a free page."""

    use: Use
    parent: int


class RawFile:
    """A file that is read at offsets; what cannot be read is empty."""

    def __init__(self, path: Path) -> None:
        self._descriptor: int | None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            self._descriptor = None
            self.size = 0
        else:
            self.size = os.fstat(self._descriptor).st_size

    def read(self, offset: int, length: int) -> bytes:
        """As many bytes as there are; none where the disk fails."""
        if self._descriptor is None:
            return b""
        try:
            return os.pread(self._descriptor, length, offset)
        except OSError:
            return b""

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@dataclass(slots=True)
class Log:
    """A write-ahead log; frames are named by the offset of their page in the file."""

    overlay: dict[int, int] = field(default_factory=dict)
    """By page number: the frame that SQLite would read in its place."""
    page_count: int | None = None
    """The database's size after the last commit that is laid over."""
    beyond: list[tuple[int, int]] = field(default_factory=list)
    """Frames of this generation that SQLite would not read, oldest first: the page that each says it is of, and its offset."""
    frames_damaged: int = 0
    is_damaged: bool = False
    is_other_page_size: bool = False
    """Made for a database of another page size."""


class Pages:
    """A database's pages; ``overlay`` (page number -> offset in the log) hides those of the file."""

    def __init__(
        self, database: RawFile, log_file: RawFile, overlay: dict[int, int], page_count: int | None
    ) -> None:
        self._database = database
        self._log_file = log_file
        self.overlay = overlay
        in_file = database.size // PAGE_BYTES
        self.last = max(in_file, min(max(overlay, default=0), _LARGEST_OVERLAID))
        """The last page of which there is anything."""
        first = self.read(SCHEMA_PAGE)
        said = int.from_bytes(first[_PAGE_COUNT_OFFSET : _PAGE_COUNT_OFFSET + 4], "big")
        if page_count is None:
            page_count = said if 0 < said <= self.last else self.last
        # SQLite takes a file that was lengthened ahead for the database's size when it begins a log.
        while 0 < said < page_count and self.read(page_count) == _EMPTY_PAGE:
            page_count -= 1
        self.page_count = page_count
        """The database's size; pages behind it are left-overs."""
        self._largest_parent = max(page_count, said, self.last)  # a parent may be cut off
        self._has_pointer_map = not first.startswith(b"SQLite format 3\0") or any(
            first[_AUTO_VACUUM_OFFSET : _AUTO_VACUUM_OFFSET + 4]
        )
        self._map_number = 0
        self._map = b""
        self._visits = bytearray(self.last + 1)

    def read(self, number: int) -> bytes:
        """A page; ``b""`` when there is no whole one."""
        offset = self.overlay.get(number)
        if offset is None:
            page = self._database.read((number - 1) * PAGE_BYTES, PAGE_BYTES)
        else:
            page = self._log_file.read(offset, PAGE_BYTES)
        return page if len(page) == PAGE_BYTES else b""

    def entry(self, number: int) -> Entry | None:
        """What the pointer map says of a page; None: nothing that can be believed."""
        if not self._has_pointer_map or not SCHEMA_PAGE < number <= self.page_count:
            return None
        map_number = _map_page_of(number)
        if map_number != self._map_number:
            self._map_number, self._map = map_number, self.read(map_number)
        offset = (number - map_number - 1) * _ENTRY_BYTES
        entry = self._map[offset : offset + _ENTRY_BYTES]
        if offset < 0 or len(entry) < _ENTRY_BYTES or not Use.ROOT <= entry[0] <= Use.TREE:
            return None
        use, parent = Use(entry[0]), int.from_bytes(entry[1:], "big")
        if use in (Use.ROOT, Use.FREE):
            return Entry(use, 0) if parent == 0 else None
        return Entry(use, parent) if 0 < parent <= self._largest_parent and parent != number else None

    def damaged_map_pages(self) -> Iterator[int]:
        """Pages of the pointer map that say something impossible."""
        if not self._has_pointer_map:
            return
        for map_number in range(2, self.page_count + 1, _ENTRIES_PER_PAGE + 1):
            last = min(map_number + _ENTRIES_PER_PAGE, self.page_count)
            numbers = range(map_number + 1, last + 1)
            if any(self.entry(number) is None for number in numbers if number != _PENDING_BYTE_PAGE):
                yield map_number

    def free_pages(self) -> bytearray:
        """1 for each page that the free list names, as far as it can be followed."""
        free = bytearray(self.last + 1)
        trunk = int.from_bytes(self.read(SCHEMA_PAGE)[32:36], "big")
        while SCHEMA_PAGE < trunk <= self.last and not free[trunk]:
            free[trunk] = 1
            page = self.read(trunk)
            if not page:
                break
            trunk, leaves = struct.unpack_from(">II", page)
            if leaves > PAGE_BYTES // 4 - 2:
                break
            for number in struct.unpack_from(f">{leaves}I", page, 8):
                if SCHEMA_PAGE < number <= self.last:
                    free[number] = 1
        return free

    def chain(self, first: int, length: int) -> bytes:
        """The overflow pages of a row that has ``length`` bytes in them; shorter where the chain is broken."""
        parts = []
        number = first
        while length > 0 and 0 < number <= self.last and self._visits[number] < _CHAIN_VISITS:
            self._visits[number] += 1
            page = self.read(number)
            if not page:
                break
            number = int.from_bytes(page[:4], "big")
            parts.append(page[4 : 4 + min(length, _CHAIN_BYTES)])
            length -= _CHAIN_BYTES
        return b"".join(parts)


def _map_page_of(number: int) -> int:
    return (number - 2) // (_ENTRIES_PER_PAGE + 1) * (_ENTRIES_PER_PAGE + 1) + 2


class _FrameHeader(NamedTuple):
    page: int
    commit_size: int
    salts: int
    checksum: tuple[int, int]


def read_log(file: RawFile) -> Log:
    """Find the frames of a write-ahead log that are intact."""
    header = file.read(0, _LOG_HEADER_BYTES)
    frames = max(0, file.size - _LOG_HEADER_BYTES) // _FRAME_BYTES
    first = _frame_header(file, 0)
    if first is None:
        return Log()
    magic, _, page_size = struct.unpack_from(">III", header)
    big = magic == _LOG_MAGIC | 1
    stored = struct.unpack_from(">II", header, 24)
    is_whole = magic & ~1 == _LOG_MAGIC and checksum(header[:24], (0, 0), big=big) == stored
    if is_whole and page_size != PAGE_BYTES:
        return Log(is_other_page_size=True)
    salts = int.from_bytes(header[16:24], "big") if is_whole else first.salts
    log = Log(is_damaged=not is_whole)
    _read_frames(file, log, frames, salts, stored, big=big)
    if not log.overlay and not log.beyond:
        log.is_damaged = False  # nothing of this generation, so nothing lost
    return log


def _read_frames(
    file: RawFile, log: Log, frames: int, salts: int, seed: tuple[int, int], *, big: bool
) -> None:
    in_run = True
    pending: list[tuple[int, int]] = []  # of the run, behind its last commit
    behind: list[tuple[int, int]] = []
    damaged = behind_committed = damaged_committed = 0
    for number in range(frames):
        frame = _frame_header(file, number)
        if frame is None:
            break
        offset = _LOG_HEADER_BYTES + number * _FRAME_BYTES
        is_intact = frame.salts == salts and (
            checksum(_checked_bytes(file, offset), seed, big=big) == frame.checksum
        )
        seed = frame.checksum
        in_run = in_run and is_intact
        image = (frame.page, offset + _FRAME_HEADER_BYTES)
        if in_run:
            pending.append(image)
            if frame.commit_size:
                log.overlay.update(pending)
                log.page_count = frame.commit_size
                pending = []
            continue
        behind.append(image)
        damaged += not is_intact
        if frame.salts == salts and frame.commit_size:
            behind_committed, damaged_committed = len(behind), damaged
    if behind_committed:
        log.is_damaged = True
        log.frames_damaged = damaged_committed
        log.beyond = pending + behind[:behind_committed]


def frames_of_page(file: RawFile, wanted: Collection[int]) -> Iterator[tuple[int, bytes]]:
    """Every image of these pages that lies anywhere in the log, of whatever generation, the last first."""
    for number in reversed(range(max(0, file.size - _LOG_HEADER_BYTES) // _FRAME_BYTES)):
        frame = _frame_header(file, number)
        if frame is not None and frame.page in wanted:
            offset = _LOG_HEADER_BYTES + number * _FRAME_BYTES + _FRAME_HEADER_BYTES
            yield frame.page, file.read(offset, PAGE_BYTES)


def checksum(data: bytes, seed: tuple[int, int], *, big: bool) -> tuple[int, int]:
    """SQLite's running checksum of the log, over words of 32 bits."""
    first, second = seed
    words = struct.unpack(f"{'>' if big else '<'}{len(data) // 4}I", data[: len(data) // 4 * 4])
    for even, odd in zip(words[::2], words[1::2], strict=False):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second


def _checked_bytes(file: RawFile, offset: int) -> bytes:
    frame = file.read(offset, _FRAME_BYTES)
    return frame[:8] + frame[_FRAME_HEADER_BYTES:]


def _frame_header(file: RawFile, number: int) -> _FrameHeader | None:
    header = file.read(_LOG_HEADER_BYTES + number * _FRAME_BYTES, _FRAME_HEADER_BYTES)
    if len(header) < _FRAME_HEADER_BYTES:
        return None
    page, commit_size, salts, first, second = struct.unpack(">IIQII", header)
    return _FrameHeader(page, commit_size, salts, (first, second))
