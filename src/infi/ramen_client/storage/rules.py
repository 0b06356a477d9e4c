"""The blacklist on disk: rules outlive the reader that received them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from infi.ramen_protocol import Rule

from . import _statements as sql
from ._database import Kind
from .queue import now_ms

if TYPE_CHECKING:
    from collections.abc import Iterable

    import apsw

    from ._database import Database


class _Opened(Protocol):
    """A queue, however it was opened."""

    @property
    def database(self) -> Database: ...


@dataclass(frozen=True, slots=True)
class StoredRule:
    """A rule as it lies in the queue's file; times are milliseconds since the epoch."""

    rule_id: int
    rule: Rule
    added_at_ms: int
    last_seen_at_ms: int
    hits: int


def load_rules(queue: _Opened) -> list[StoredRule]:
    """Every rule in the file, in the order they came; also those whose time is over."""
    with queue.database.connection(Kind.NORMAL) as connection:
        return read_rules(connection)


def read_rules(connection: apsw.Connection) -> list[StoredRule]:
    """As ``load_rules``, by a connection that is open."""
    return [
        StoredRule(rule_id, Rule(*fields), added_at, last_seen_at, hits)
        for rule_id, *fields, added_at, last_seen_at, hits in connection.execute(sql.READ_RULES)
    ]


def add_rule(queue: _Opened, rule: Rule) -> int:
    """Keep a new rule; return its id."""
    now = now_ms()
    fields = (
        rule.category,
        rule.system_serial,
        rule.sender,
        rule.data_type,
        rule.data_version,
        rule.system_version,
    )
    with queue.database.transaction(Kind.NORMAL) as connection:
        rule_id: int = connection.execute(sql.ADD_RULE, (*fields, now, now)).get
        return rule_id


def refresh_rule(queue: _Opened, rule_id: int) -> None:
    """Note that a rule was received again."""
    with queue.database.transaction(Kind.NORMAL) as connection:
        connection.execute(sql.REFRESH_RULE, (now_ms(), rule_id))


def remove_rule(queue: _Opened, rule_id: int) -> None:
    """Forget a rule whose time is over."""
    with queue.database.transaction(Kind.NORMAL) as connection:
        connection.execute(sql.DELETE_RULE, (rule_id,))


def lift_rules(queue: _Opened, rule_ids: Iterable[int]) -> int:
    """Forget rules for an operator; return how many of them there were. The active reader takes notice at its next message."""
    lifted = 0
    with queue.database.transaction(Kind.FULL) as connection:
        for rule_id in rule_ids:
            connection.execute(sql.DELETE_RULE, (rule_id,))
            lifted += connection.changes()
    return lifted
