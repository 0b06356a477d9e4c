"""The settings file: tokens and rules, shared by the collector and whoever administers it.

Any number of processes may use the file at once. What one of them has changed, ``current()`` of every other shows from
then on: it asks SQLite whether another connection has committed (microseconds), and reads everything again if so.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Self

import apsw

from infi.ramen_protocol import Rule

from . import _files
from .auth import (
    TOKEN_RANDOM_BYTES,
    Purpose,
    Scope,
    Token,
    TokenTable,
    check_name,
    check_text,
    token_hash,
    token_text,
)
from .rules import RuleBook, StoredRule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from types import TracebackType

FILE_NAME = "settings.db"
MAX_RULES = 10_000
MAX_TOKENS = 10_000
FIRST_TOKEN_NAME = "first"  # noqa: S105 - a name

_APPLICATION_ID = 0x524D4354
_FORMAT = 1
_KEY_BYTES = 32


class NameTaken(ValueError):
    """There is a token of this name, or this token has another name; it may be a revoked one."""


@dataclass(frozen=True, slots=True)
class Current:
    """What holds now."""

    tokens: TokenTable
    rules: RuleBook


class Settings:
    """The settings of one data directory; makes directory and file when they are missing. Any thread may use it.

    ``must_exist``: make nothing; ``UnusableFile`` when no collector has ever run there. Raises ``UnusableFile``, ``OSError`` or ``apsw.Error``; ``now_ms`` and ``random_bytes`` are for tests.
    """

    def __init__(
        self,
        directory: Path,
        *,
        must_exist: bool = False,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self._now_ms = now_ms
        self._random_bytes = random_bytes
        if must_exist:
            _files.open_for_reading(
                directory / FILE_NAME, _files.Kind(_APPLICATION_ID, _FORMAT, "", self._seed)
            ).close()
        _files.make_directory(directory)
        schema = resources.files(__package__).joinpath("settings.sql").read_text()
        kind = _files.Kind(_APPLICATION_ID, _FORMAT, schema, self._seed)
        # Two locks: who watches (the event loop, at each request) never waits for a change that is being synced.
        self._write_lock = threading.Lock()  # guards _writing
        self._watch_lock = threading.Lock()  # guards _watching and the snapshot
        self._writing = _files.open_file(directory / FILE_NAME, kind)
        # A connection does not see its own commits as changes, so what is asked about changes never writes.
        self._watching = _files.open_for_reading(directory / FILE_NAME, kind)
        self._key: bytes = self._watching.execute("SELECT token_key FROM meta").get
        self._version: int | None = None
        self._current = Current(TokenTable((), self._key), RuleBook(()))

    def close(self) -> None:
        """Close the file."""
        with self._watch_lock:
            self._watching.close()
        with self._write_lock:
            self._writing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def current(self) -> Current:
        """Everything that holds now, as objects that do not change."""
        with self._watch_lock:
            version = self._watching.execute("PRAGMA data_version").get
            if version != self._version:
                self._current = Current(
                    TokenTable(_read_tokens(self._watching), self._key), RuleBook(_read_rules(self._watching))
                )
                self._version = version
            return self._current

    # Tokens

    def add_token(
        self,
        name: str,
        *,
        purpose: Purpose = Purpose.SEND,
        scope: Scope | None = None,
        text: str | None = None,
    ) -> str:
        """Add a token and return its text: the only time that it can be had.

        ``text`` brings a token along, for clients that have one already. Raises ``ValueError`` for a bad name or text,
        ``NameTaken`` for one that was given before.
        """
        check_name(name)
        if text is None:
            text = token_text(self._random_bytes(TOKEN_RANDOM_BYTES))
        else:
            check_text(text)
        with self._write_lock, _files.transaction(self._writing):
            self._insert_token(name, purpose, scope or Scope(), text)
        return text

    def add_first_token(self, keep: Callable[[str], None] = lambda _text: None) -> str | None:
        """Add a token that may send everything, when there never was one, and return its text; else None.

        ``keep`` is called with the text before it counts; when it raises, there is no token.
        """
        text = token_text(self._random_bytes(TOKEN_RANDOM_BYTES))
        with self._write_lock, _files.transaction(self._writing):
            if self._writing.execute("SELECT count(*) FROM token").get:
                return None
            self._insert_token(FIRST_TOKEN_NAME, Purpose.SEND, Scope(), text)
            keep(text)
        return text

    def revoke_token(self, name: str) -> bool:
        """Refuse the token from now on; returns False when there is no living one of this name."""
        with self._write_lock, _files.transaction(self._writing):
            self._writing.execute(
                "UPDATE token SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL",
                (self._now_ms(), name),
            )
            return self._writing.changes() == 1

    def list_tokens(self) -> list[Token]:
        """All tokens, revoked ones too, in the order in which they were added."""
        with self._watch_lock:
            return _read_tokens(self._watching)

    def _insert_token(self, name: str, purpose: Purpose, scope: Scope, text: str) -> None:
        if self._writing.execute("SELECT count(*) FROM token").get >= MAX_TOKENS:
            raise ValueError(f"there are {MAX_TOKENS} tokens already")
        try:
            self._writing.execute(
                "INSERT INTO token (name, purpose, senders, serials, hash, added_at) VALUES (?, ?, ?, ?, ?, ?)",
                (
                    name,
                    purpose.value,
                    json.dumps(scope.senders),
                    json.dumps(scope.serials),
                    token_hash(text.encode(), self._key),
                    self._now_ms(),
                ),
            )
        except apsw.ConstraintError:
            raise NameTaken(
                f"{name}: there is a token of this name, or with this text, maybe a revoked one. Choose another."
            ) from None

    # Rules

    def add_rule(self, rule: Rule) -> StoredRule:
        """Add a rule; one that is there already is returned as it is.

        Raises ``UnusableRule`` for values that no message can have, ``ValueError`` when there are too many rules.
        """
        rule = Rule.parse(rule.as_json())  # as it will be read: a rule that cannot be would stop everything
        text = json.dumps(rule.as_json())
        with self._write_lock:
            with _files.transaction(self._writing):
                self._writing.execute(
                    "INSERT INTO rule (rule, added_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
                    (text, self._now_ms()),
                )
                if self._writing.execute("SELECT count(*) FROM rule").get > MAX_RULES:
                    raise ValueError(f"there are {MAX_RULES} rules already")
            return next(stored for stored in _read_rules(self._writing) if stored.rule == rule)

    def remove_rule(self, rule_id: int) -> bool:
        """Remove a rule; returns False when there is none of this number."""
        with self._write_lock, _files.transaction(self._writing):
            self._writing.execute("DELETE FROM rule WHERE rule_id = ?", (rule_id,))
            return self._writing.changes() == 1

    def list_rules(self) -> list[StoredRule]:
        """All rules, in the order in which they were added."""
        with self._watch_lock:
            return _read_rules(self._watching)

    def add_hits(self, hits: Mapping[int, int]) -> None:
        """Count how many messages fell under each rule (by number); rules that are gone count no more."""
        with self._write_lock, _files.transaction(self._writing):
            self._writing.executemany(
                "UPDATE rule SET hits = hits + ? WHERE rule_id = ?",
                [(count, rule_id) for rule_id, count in hits.items()],
            )

    def _seed(self, connection: apsw.Connection) -> None:
        connection.execute(
            "INSERT INTO meta (id, created_at, token_key) VALUES (1, ?, ?)",
            (self._now_ms(), self._random_bytes(_KEY_BYTES)),
        )


def _read_tokens(connection: apsw.Connection) -> list[Token]:
    rows = connection.execute(
        "SELECT name, purpose, senders, serials, added_at, revoked_at, hash FROM token ORDER BY added_at, rowid"
    )
    return [
        Token(
            name,
            Purpose(purpose),
            Scope(tuple(json.loads(senders)), tuple(json.loads(serials))),
            added_at,
            revoked_at,
            digest,
        )
        for name, purpose, senders, serials, added_at, revoked_at, digest in rows
    ]


def _read_rules(connection: apsw.Connection) -> list[StoredRule]:
    rows = connection.execute("SELECT rule_id, rule, added_at, hits FROM rule ORDER BY rule_id")
    return [
        StoredRule(rule_id, Rule.parse(json.loads(rule)), added_at, hits)
        for rule_id, rule, added_at, hits in rows
    ]
