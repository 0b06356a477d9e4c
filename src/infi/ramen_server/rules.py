"""The operator's blacklist rules: which of them, if any, a message falls under. Pure: they lie in ``settings``.

Rules are found by what they name, not one after the other: the rules that name the same fields share one table by their
values. So a message costs at most one look-up for each set of fields that is in use, however many rules there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infi.ramen_protocol import Envelope, Rule


@dataclass(frozen=True, slots=True)
class StoredRule:
    """A rule as it is kept. ``hits`` are those written so far; ``added_at_ms`` is ms since the epoch."""

    rule_id: int
    rule: Rule
    added_at_ms: int
    hits: int


class RuleBook:
    """All rules at one time; immutable."""

    def __init__(self, rules: Iterable[StoredRule]) -> None:
        self._tables: dict[tuple[str, ...], dict[tuple[str, ...], StoredRule]] = {}
        for stored in rules:
            named = stored.rule.as_json()
            self._tables.setdefault(tuple(named), {})[tuple(named.values())] = stored

    def match(self, envelope: Envelope) -> StoredRule | None:
        """Find the rule that the message falls under; of several, the one added first."""
        found: StoredRule | None = None
        for names, by_values in self._tables.items():
            stored = by_values.get(tuple(str(getattr(envelope, name)) for name in names))
            if stored is not None and (found is None or stored.rule_id < found.rule_id):
                found = stored
        return found
