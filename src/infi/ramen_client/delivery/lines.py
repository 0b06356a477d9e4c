"""What was taken from the queue and is not under way yet: a line of messages for each stream, in order, in memory.

Pure: no clock, no queue; times are passed in. The courier fills the lines and takes from them what it sends.

- ``Ordering.STREAM``: messages of one stream are under way one after the other (or together in one batch), streams side by side.
  ``Ordering.NONE``: everything side by side. A width of one: everything one after the other, as in 1.x.
- A line holds at most ``most_in_line`` messages, and about ``_MOST_BYTES_IN_LINE`` of them; then its stream is *passed over* in the
  queue, and what was not seen of it is looked for when the line is half empty (``wants``). All lines together hold a bounded number,
  too: while they are full nothing is looked for, since nothing more could be sent at once.
- A stream that is told to wait (``hold``) is passed over as well, and gives up what it has: it stays in the queue, and holds up
  nobody's memory.
- A line is *free* when nothing of it is under way (with ``NONE``: always) and it does not wait. Free lines take turns.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain, islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from infi.ramen_client.storage import StoredMessage, Stream

_ONE_LINE: Stream = ("", "")

_MOST_BYTES_IN_LINE = 2 * 1024 * 1024
_MOST = 8192
_MOST_BYTES = 16 * 1024 * 1024

BEFORE_ALL = -(2**63)
"""A position before that of any message."""


class Ordering(Enum):
    """What is delivered in order, as the configuration names it."""

    STREAM = "stream"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Want:
    """Messages of a stream that may lie in the queue unseen, after this position."""

    stream: Stream
    after: int


@dataclass(slots=True)
class _Line:
    stream: Stream
    messages: deque[StoredMessage] = field(default_factory=deque)
    size: int = 0
    under_way: int = 0
    not_before: float = 0.0
    unseen_after: int | None = None


class Lines:
    """All lines of one queue."""

    def __init__(self, ordering: Ordering, width: int, *, most_in_line: int = 64) -> None:
        self.most_in_line = most_in_line
        self._is_one = width == 1 or ordering is Ordering.NONE
        self._side_by_side = ordering is Ordering.NONE
        self._lines: dict[Stream, _Line] = {}
        self._turns: dict[Stream, None] = {}  # the free lines that hold messages, in the order of their turns
        self._waiting: set[Stream] = set()
        self._known: set[int] = set()  # positions in a line or under way
        self.ready = 0
        """How many messages may be taken now."""
        self._held = 0
        self._held_bytes = 0

    def __contains__(self, message: StoredMessage) -> bool:
        """Whether a message is in a line or under way."""
        return message.position in self._known

    def stream_of(self, message: StoredMessage) -> Stream:
        """What a message is in order with."""
        return _ONE_LINE if self._is_one else (message.category, message.data_type)

    @property
    def are_one(self) -> bool:
        """Whether there is one line for everything, so that no stream can wait by itself."""
        return self._is_one

    @property
    def turns(self) -> int:
        """How many lines have messages that may be taken now."""
        return len(self._turns)

    @property
    def are_full(self) -> bool:
        """Whether no more should be looked for."""
        if self._held >= _MOST or self._held_bytes >= _MOST_BYTES:
            return True
        return self._is_one and any(self._has_enough(line) for line in self._lines.values())

    def _has_enough(self, line: _Line) -> bool:
        return len(line.messages) >= self.most_in_line or line.size >= _MOST_BYTES_IN_LINE

    # From the queue

    def add(self, messages: Iterable[StoredMessage]) -> None:
        """Put messages at the ends of their lines, or where they belong when they came into the queue late."""
        for message in messages:
            if message.position in self._known:
                continue
            stream = self.stream_of(message)
            line = self._lines.get(stream)
            if line is None:
                line = self._lines[stream] = _Line(stream)
            if line.unseen_after is not None and message.position > line.unseen_after:
                continue  # it would overtake what is unseen of its stream
            self._known.add(message.position)
            self._hold(line, message)
            if line.messages and message.position < line.messages[-1].position:
                line.messages = deque(sorted((*line.messages, message), key=_position))
            else:
                line.messages.append(message)
            if self._has_enough(line) and not self._is_one:
                line.unseen_after = message.position
            self._settle(line)
        self._count()

    def passed_over(self) -> list[Stream]:
        """The streams of which nothing more is to be looked for ahead."""
        return [stream for stream, line in self._lines.items() if line.unseen_after is not None]

    def wants(self, now: float) -> Iterator[Want]:
        """What is to be looked for behind."""
        for line in self._lines.values():
            if (
                line.unseen_after is not None
                and len(line.messages) <= self.most_in_line // 2
                and line.not_before <= now
            ):
                yield Want(line.stream, line.unseen_after)

    def found(self, want: Want, messages: list[StoredMessage], reached: int, *, is_all: bool) -> None:
        """What was found for a want: up to ``reached``; ``is_all``: nothing of the stream is unseen behind any more."""
        line = self._lines[want.stream]
        line.unseen_after = None
        self.add(messages)
        if line.unseen_after is None and not is_all:
            line.unseen_after = reached
        self._settle(line)

    def start_over(self) -> None:
        """Everything will be found anew: keep only what is under way."""
        for line in list(self._lines.values()):
            self._forget(line)
            line.unseen_after = None
            self._settle(line)
        self._count()

    def look_again(self) -> None:
        """Something came in behind what was seen: what is passed over is to be looked for from the beginning."""
        for line in list(self._lines.values()):
            if line.unseen_after is not None:
                self._forget(line)
                line.unseen_after = BEFORE_ALL
        self._count()

    # To the server

    def take(self, most_messages: int, most_bytes: int) -> list[StoredMessage]:
        """Take messages, line by line: at least one if one is ready. They are under way until ``done`` or ``put_back``.

        ``most_bytes`` counts plain bytes.
        """
        chosen = list(self._next(self._turns, most_messages, most_bytes))
        taken = [message for line, count in chosen for message in self._take(line, count)]
        self._count()
        return taken

    def take_one(self) -> StoredMessage | None:
        """Take the next message; None: none is ready. As ``take``."""
        if not self._turns:
            return None
        (message,) = self._take(self._lines[next(iter(self._turns))], 1)
        self._count()
        return message

    def _take(self, line: _Line, count: int) -> list[StoredMessage]:
        taken = [line.messages.popleft() for _ in range(count)]
        for message in taken:
            self._unhold(line, message)
        line.under_way += count
        del self._turns[line.stream]
        self._settle(line)
        return taken

    def ahead(
        self, landing: Iterable[StoredMessage], most_messages: int, most_bytes: int
    ) -> list[StoredMessage]:
        """What ``take`` will give once these have left the queue, if that is as much as it may be; else nothing: it may yet grow."""
        lands = Counter(map(self.stream_of, landing))
        turns = dict.fromkeys(self._turns)
        for stream in lands:  # in the order in which they were taken, line by line, they get their turns
            line = self._lines.get(stream)
            if line is not None and line.messages and line.under_way == lands[stream]:
                turns.setdefault(stream)
        chosen = list(self._next(turns, most_messages, most_bytes))
        messages = [message for line, count in chosen for message in islice(line.messages, count)]
        is_full = len(messages) == most_messages or any(count < len(line.messages) for line, count in chosen)
        return messages if is_full else []

    def _next(
        self, turns: Iterable[Stream], most_messages: int, most_bytes: int
    ) -> Iterator[tuple[_Line, int]]:
        """How many messages of which lines go together, with at least one message in all; the last may have more that do not fit."""
        room = most_messages
        size = 0
        for stream in turns:
            if not room:
                return
            line = self._lines[stream]
            count = 0
            for message in islice(line.messages, room):
                size += message.plain_length
                if size > most_bytes and (count or room < most_messages):
                    break
                count += 1
            yield line, count
            if count < len(line.messages):
                return
            room -= count

    def peek(self, most_messages: int) -> list[StoredMessage]:
        """Messages that may be taken next or soon; they stay."""
        ahead = chain.from_iterable(line.messages for line in self._lines.values())
        return list(islice(ahead, most_messages))

    def is_alone(self, stream: Stream) -> bool:
        """Whether no other stream has anything to send, as far as was looked."""
        return all(other == stream for other in self._lines)

    def done(self, messages: Iterable[StoredMessage]) -> None:
        """What was taken has left the queue."""
        left: dict[Stream, int] = {}
        for message in messages:
            self._known.discard(message.position)
            stream = self.stream_of(message)
            left[stream] = left.get(stream, 0) + 1
        for stream, count in left.items():
            self._landed(stream, count)
        self._count()

    def put_back(self, messages: Iterable[StoredMessage]) -> None:
        """What was taken stays in the queue: to the heads of their lines, which have their turns last."""
        for message in sorted(messages, key=_position, reverse=True):
            line = self._lines[self.stream_of(message)]
            line.messages.appendleft(message)
            self._hold(line, message)
            self._turns.pop(line.stream, None)
            self._landed(line.stream, 1)
        self._count()

    def claim_again(self, messages: Iterable[StoredMessage]) -> None:
        """Count messages as under way that were not taken from here: those of batches that an earlier reader left."""
        for message in messages:
            stream = self.stream_of(message)
            line = self._lines.setdefault(stream, _Line(stream))
            self._known.add(message.position)
            line.under_way += 1

    def take_back(self, message: StoredMessage) -> None:
        """Take a message that was just put back; it is under way again."""
        line = self._lines[self.stream_of(message)]
        line.messages.remove(message)
        line.under_way += 1
        self._unhold(line, message)
        self._settle(line)

    def hold(self, stream: Stream, until: float) -> list[StoredMessage]:
        """Let a stream wait; return what its line gave up."""
        line = self._lines.setdefault(stream, _Line(stream))
        line.not_before = until
        self._waiting.add(stream)
        given_up = self._forget(line)
        self._settle(line)
        self._count()
        return given_up

    def unseen(self, stream: Stream, after: int) -> None:
        """Messages of a stream may lie in the queue unseen after this position."""
        line = self._lines.setdefault(stream, _Line(stream))
        line.unseen_after = after if line.unseen_after is None else min(after, line.unseen_after)

    def let_go(self, now: float) -> None:
        """End the waits that are over."""
        for stream in [stream for stream in self._waiting if self._lines[stream].not_before <= now]:
            self._waiting.discard(stream)
            self._settle(self._lines[stream])
        self._count()

    def next_release(self) -> float | None:
        """When the first wait is over; None: none waits."""
        return min((self._lines[stream].not_before for stream in self._waiting), default=None)

    def _hold(self, line: _Line, message: StoredMessage) -> None:
        self._held += 1
        self._held_bytes += len(message.data)
        line.size += len(message.data)

    def _unhold(self, line: _Line, message: StoredMessage) -> None:
        self._held -= 1
        self._held_bytes -= len(message.data)
        line.size -= len(message.data)

    def _landed(self, stream: Stream, count: int) -> None:
        line = self._lines[stream]
        line.under_way -= count
        self._settle(line)

    def _forget(self, line: _Line) -> list[StoredMessage]:
        given_up = list(line.messages)
        if given_up:
            line.messages.clear()
            self._held -= len(given_up)
            self._held_bytes -= line.size
            line.size = 0
            self._known.difference_update(message.position for message in given_up)
            if not self._is_one:
                # A dead letter that was raised may stand behind what was put back before it.
                self.unseen(line.stream, min(message.position for message in given_up) - 1)
        self._settle(line)
        return given_up

    def _settle(self, line: _Line) -> None:
        """Give a line its turn, or take it away; forget one that is of no use."""
        stream = line.stream
        is_free = self._side_by_side or not line.under_way
        if line.messages and is_free and stream not in self._waiting:
            self._turns.setdefault(stream)
            return
        self._turns.pop(stream, None)
        if not (line.messages or line.under_way or stream in self._waiting or line.unseen_after is not None):
            self._lines.pop(stream, None)

    def _count(self) -> None:
        self.ready = sum(len(self._lines[stream].messages) for stream in self._turns)


def _position(message: StoredMessage) -> int:
    return message.position
