"""The blacklist on disk: rules outlive the reader that received them.

No checksum covers a rule. One that a flipped bit made into no rule (a text that is none, no field, an impossible time) is not applied,
and is forgotten when a reader starts; the server sends it again. A flipped bit in a name makes a rule that matches nothing that is sent.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from infi.ramen_protocol import RULE_FIELDS, Rule, UnusableRule

from . import _statements as sql
from ._database import Kind
from ._heal import healing

if TYPE_CHECKING:
    from collections.abc import Iterable

    import apsw

    from ._create import Place
    from ._database import Database


_LAST_MS = 253_402_214_400_000
"""The end of the year 9999."""


class _Opened(Protocol):
    """A queue, as the programs have it that use it."""

    @property
    def database(self) -> Database: ...

    @property
    def place(self) -> Place: ...


@dataclass(frozen=True, slots=True)
class StoredRule:
    """A rule as it lies in the queue's file; times are milliseconds since the epoch."""

    rule_id: int
    rule: Rule
    added_at_ms: int
    last_seen_at_ms: int
    hits: int


@healing
def load_rules(queue: _Opened) -> list[StoredRule]:
    """Every rule in the file, in the order they came; also those whose time is over."""
    return list_rules(queue.database)


def list_rules(database: Database) -> list[StoredRule]:
    """As ``load_rules``, for who only looks: what is damaged stays so."""
    with database.connection(Kind.NORMAL) as connection:
        return read_rules(connection)


def read_rules(connection: apsw.Connection) -> list[StoredRule]:
    """As ``load_rules``, by a connection that is open."""
    return [stored for stored in map(_stored_rule, connection.execute(sql.READ_RULES)) if stored is not None]


def damaged_rules(connection: apsw.Connection) -> list[int]:
    """The numbers of the rows that are no rule."""
    return [row[0] for row in connection.execute(sql.READ_RULES) if _stored_rule(row) is None]


def _stored_rule(row: tuple[Any, ...]) -> StoredRule | None:
    rule_id, *fields, added_at, last_seen_at, hits = row
    try:
        texts = [None if field is None else field.decode() for field in fields]
        rule = Rule.parse(dict(zip(RULE_FIELDS, texts, strict=True)))
    except (UnicodeDecodeError, UnusableRule):
        return None
    if not all(isinstance(at, int) and 0 <= at < _LAST_MS for at in (added_at, last_seen_at)):
        return None
    return StoredRule(rule_id, rule, added_at, last_seen_at, hits or 0)


@healing
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


@healing
def refresh_rule(queue: _Opened, rule_id: int) -> None:
    """Note that a rule was received again."""
    with queue.database.transaction(Kind.NORMAL) as connection:
        connection.execute(sql.REFRESH_RULE, (now_ms(), rule_id))


@healing
def remove_rule(queue: _Opened, rule_id: int) -> None:
    """Forget a rule whose time is over."""
    with queue.database.transaction(Kind.NORMAL) as connection:
        connection.execute(sql.DELETE_RULE, (rule_id,))


def lift_rules(database: Database, rule_ids: Iterable[int]) -> int:
    """Forget rules for an operator; return how many of them there were. The active reader takes notice at its next message."""
    lifted = 0
    with database.transaction(Kind.FULL) as connection:
        for rule_id in rule_ids:
            connection.execute(sql.DELETE_RULE, (rule_id,))
            lifted += connection.changes()
    return lifted


def now_ms() -> int:
    """The wall clock as the file keeps it."""
    return time.time_ns() // 1_000_000
