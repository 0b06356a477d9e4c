"""The lookout fills the lines from the queue, and sorts out what a blacklist rule drops."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from infi.ramen_client.storage import Fate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from infi.ramen_client.blacklist import StoredBlacklist
    from infi.ramen_client.storage import ActiveReader, StoredMessage
    from infi.ramen_protocol import Envelope

    from .leases import Leases
    from .ledger import Ledger
    from .lines import Lines
    from .stop import Stop

_NEXT_LOOK_SECONDS = 0.001
"""When it is looked again where that can wait: to ask whether anybody has committed is a tenth of the work on a message."""


class Lookout:
    """For one courier; used by its thread."""

    def __init__(
        self,
        reader: ActiveReader,
        blacklist: StoredBlacklist,
        envelope: Callable[[StoredMessage], Envelope],
        *,
        lines: Lines,
        leases: Leases,
        ledger: Ledger,
        stop: Stop,
        monotonic: Callable[[], float],
    ) -> None:
        self._reader = reader
        self._blacklist = blacklist
        self._envelope = envelope
        self._lines = lines
        self._leases = leases
        self._ledger = ledger
        self._stop = stop
        self._monotonic = monotonic
        self._starts = reader.starts
        self._seen_at = -math.inf  # when everything had been seen, and nothing was changed
        self.seen: tuple[int, int] | None = None
        """What ``ActiveReader.change_mark`` was when everything in the queue had been seen; None: not everything was."""

    @property
    def may_find(self) -> bool:
        """Whether looking now may find something."""
        if next(self._lines.wants(self._monotonic()), None) is not None:
            return True
        return not self._lines.are_full and (self.seen is None or self.seen != self._reader.change_mark())

    def look_for(
        self, wanted: int, most_messages: int, most_bytes: int, *, is_meanwhile: bool = False
    ) -> None:
        """Look for messages until so many are ready to be taken, or there are no more.

        ``is_meanwhile``: something is under way, so a look that is made a moment later is as good.
        """
        self._look_behind(most_messages, most_bytes)
        looks = 0
        while True:
            is_needed = self._lines.ready < wanted
            # A look more than is needed while one stream alone is known: if it is refused, another one shall have its turn.
            is_of_use = not looks and self._lines.turns == 1 and not self._lines.are_one
            if not (is_needed or is_of_use):
                break
            now = self._monotonic()
            can_wait = is_meanwhile or not is_needed
            if can_wait and self._seen_at <= now < self._seen_at + _NEXT_LOOK_SECONDS:
                break
            mark = self._reader.change_mark()
            if mark == self.seen:
                self._seen_at = now
                break
            self._seen_at = -math.inf
            if self._lines.are_full or self._stop.is_set():
                break
            looks += 1
            self._ledger.flush()
            self._blacklist.reload()
            found = self._reader.look_ahead(most_messages, most_bytes, self._lines.passed_over())
            if self._reader.starts != self._starts:
                self._starts = self._reader.starts
                self._lines.look_again()
                self._look_behind(most_messages, most_bytes)
            self._lines.add(found.messages)
            if found.is_all:
                self.seen = mark
                break

    def _look_behind(self, most_messages: int, most_bytes: int) -> None:
        for want in list(self._lines.wants(self._monotonic())):
            found, reached = self._reader.look_at_stream(
                want.stream, after=want.after, max_messages=most_messages, max_bytes=most_bytes
            )
            self._lines.found(want, found.messages, reached, is_all=found.is_all)

    def without_blacklisted(self, messages: Sequence[StoredMessage]) -> list[StoredMessage]:
        """Those of what was taken from the lines that no rule drops; the others leave the queue."""
        if not self._blacklist.has_rules:
            return list(messages)
        wanted = []
        for message in messages:
            rule = self._blacklist.match(self._envelope(message))
            if rule is not None:
                self._blacklist.reload()  # an operator may have lifted it since
                rule = self._blacklist.match(self._envelope(message))
            if rule is None:
                wanted.append(message)
                continue
            self._ledger.hit(rule.rule_id)
            self._ledger.hold(message, Fate.BLACKLISTED)
            self._leases.end([message])
            self._lines.done([message])
        return wanted

    def probably_wanted(self, messages: list[StoredMessage]) -> list[StoredMessage]:
        """Those that no rule drops as things are; nothing is done about the others."""
        if not self._blacklist.has_rules:
            return messages
        return [message for message in messages if self._blacklist.match(self._envelope(message)) is None]
