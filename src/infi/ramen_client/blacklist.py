"""The blacklist: rules that the server sent, under which messages are dropped without being sent.

A rule lives ``blacklist_ttl`` seconds after it was last received, on the monotonic clock, so steps of the wall clock neither
prolong nor end it; over a restart, where only the wall clock is left, its age is clamped to between 0 and the ttl. A rule that
is received again is refreshed. One that cannot be applied as it was meant (an unknown field, no field at all) is not applied,
and logged: the message that it came with is dropped, no other.

``Blacklist`` is 1.x's class and holds its rules in memory. ``StoredBlacklist`` is the reader's: its rules are those in the
queue's file, so they survive a restart, and an operator's lifting one takes effect at once.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from infi.ramen_protocol import Envelope, Rule, UnusableRule

from .storage import add_rule, load_rules, now_ms, refresh_rule, remove_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .config import QueueReaderConfig
    from .storage import Queue, StoredRule

logger = logging.getLogger("ramen_client")

MAX_RULES = 1000
"""Each message is compared with every rule; a server that sends so many means something else."""


@dataclass(slots=True)
class HeldRule:
    """A rule on the blacklist, with the attributes that 1.x gives it. ``added`` and ``last_seen`` are local times."""

    rule: Rule
    added: datetime
    last_seen: datetime
    seen_monotonic: float = field(repr=False)
    rule_id: int = field(repr=False)

    @property
    def category(self) -> str | None:
        """The category that matches; None: any."""
        return self.rule.category

    @property
    def system_serial(self) -> int | str | None:
        """The system serial that matches (an int where it is one); None: any."""
        serial = self.rule.system_serial
        return int(serial) if serial is not None and serial.isascii() and serial.isdecimal() else serial

    @property
    def sender(self) -> str | None:
        """The sender that matches; None: any."""
        return self.rule.sender

    @property
    def data_type(self) -> str | None:
        """The data type that matches; None: any."""
        return self.rule.data_type

    @property
    def data_version(self) -> str | None:
        """The data version that matches, as text; None: any."""
        return self.rule.data_version

    @property
    def system_version(self) -> str | None:
        """The system version that matches; None: any."""
        return self.rule.system_version

    def __str__(self) -> str:
        return str(self.rule)


class Blacklist:
    """Rules in memory. ``blacklist_ttl`` is read from the configuration at each use."""

    def __init__(self, config: QueueReaderConfig, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._monotonic = monotonic
        self._held: list[HeldRule] = []

    def add(self, rule: Mapping[str, Any]) -> None:
        """Hold a rule as the server sends it; one that cannot be applied is logged and not held."""
        try:
            parsed = Rule.parse(dict(rule))
        except UnusableRule as error:
            logger.warning("a blacklist rule cannot be applied: %s", error)
            return
        self.receive(parsed)

    def receive(self, rule: Rule) -> None:
        """Hold a rule, or refresh it where it is held already."""
        self._expire()
        for held in self._held:
            if held.rule == rule:
                held.last_seen = datetime.now()
                held.seen_monotonic = self._monotonic()
                self._refreshed(held)
                return
        if len(self._held) >= MAX_RULES:
            logger.error(
                "the server has sent %d blacklist rules; one more is not applied: %s", MAX_RULES, rule
            )
            return
        now = datetime.now()
        held = HeldRule(rule, now, now, self._monotonic(), 0)
        self._added(held)
        self._held.append(held)
        logger.warning(
            "the server asks for no more messages that match %s; they are dropped for a while", rule
        )

    @property
    def has_rules(self) -> bool:
        """Whether any rule may be held: nothing needs to be compared with none."""
        return bool(self._held)

    def matches(self, item: Mapping[str, Any]) -> bool:
        """Whether a rule matches an item of ``category``, ``data_type``, ``data_version``; the rest is the configuration's."""
        envelope = Envelope(
            str(item["category"]),
            self._config.system_serial,
            self._config.sender,
            str(item["data_type"]),
            str(item["data_version"]),
            self._config.system_version,
            "",
        )
        return self.match(envelope) is not None

    def match(self, envelope: Envelope) -> HeldRule | None:
        """The first rule that matches a message."""
        if not self._held:
            return None
        self._expire()
        for held in self._held:
            if held.rule.matches(envelope):
                return held
        return None

    def get_list(self) -> list[HeldRule]:
        """The rules that are held now."""
        return _alive(self._held, self._oldest_alive())

    def _oldest_alive(self) -> float:
        return self._monotonic() - self._config.blacklist_ttl

    def _expire(self) -> None:
        oldest = self._oldest_alive()
        expired = [held for held in self._held if held.seen_monotonic < oldest]
        if expired:
            self._held = _alive(self._held, oldest)
            for held in expired:
                self._expired(held)

    def _added(self, held: HeldRule) -> None:
        """For those who keep the rules elsewhere too."""

    def _refreshed(self, held: HeldRule) -> None:
        """For those who keep the rules elsewhere too."""

    def _expired(self, held: HeldRule) -> None:
        """For those who keep the rules elsewhere too."""


class StoredBlacklist(Blacklist):
    """The reader's blacklist: the rules in the queue's file.

    The active reader's thread uses it; ``get_list`` changes nothing, here and in the file, so that any thread may call it.
    """

    def __init__(
        self, config: QueueReaderConfig, queue: Queue, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(config, monotonic=monotonic)
        self._queue = queue

    def reload(self) -> None:
        """Bring what is held in line with the file."""
        self._held = self._read()
        self._expire()

    def get_list(self) -> list[HeldRule]:
        """The rules that are in the file now."""
        return _alive(self._read(), self._oldest_alive())

    def _read(self) -> list[HeldRule]:
        known = {held.rule_id: held for held in self._held}
        return [self._take(stored, known.get(stored.rule_id)) for stored in load_rules(self._queue)]

    def _take(self, stored: StoredRule, held: HeldRule | None) -> HeldRule:
        """The rule as it was held already, or as the file alone knows it."""
        last_seen = _local_time(stored.last_seen_at_ms)
        if held is not None and held.last_seen == last_seen:
            return held
        age = (now_ms() - stored.last_seen_at_ms) / 1000
        age = min(max(age, 0.0), self._config.blacklist_ttl)
        added = _local_time(stored.added_at_ms)
        return HeldRule(stored.rule, added, last_seen, self._monotonic() - age, stored.rule_id)

    def _added(self, held: HeldRule) -> None:
        held.rule_id = add_rule(self._queue, held.rule)
        self._adopt_times(held)

    def _refreshed(self, held: HeldRule) -> None:
        refresh_rule(self._queue, held.rule_id)
        self._adopt_times(held)

    def _adopt_times(self, held: HeldRule) -> None:
        """Take over the times that the file has, to the millisecond: by them ``_take`` knows its own rules again."""
        for stored in load_rules(self._queue):
            if stored.rule_id == held.rule_id:
                held.added, held.last_seen = (
                    _local_time(stored.added_at_ms),
                    _local_time(stored.last_seen_at_ms),
                )

    def _expired(self, held: HeldRule) -> None:
        remove_rule(self._queue, held.rule_id)


def _alive(rules: list[HeldRule], oldest: float) -> list[HeldRule]:
    return [held for held in rules if held.seen_monotonic >= oldest]


def _local_time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000)
