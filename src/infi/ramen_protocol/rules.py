"""Blacklist rules (protocol section 1, "Blacklist rules").

A rule names some of six fields; a message matches when every named field equals the message's, compared as text
(so the number 1 and the text "1" are the same). A rule may be narrower than the server meant, never wider:
one wrong answer must not empty a queue. So no ``Rule`` can exist that names no field, and a rule that is not
understood in full is refused as a whole (``UnusableRule``), never applied in part.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infi.ramen_protocol._text import clean_text

if TYPE_CHECKING:
    from infi.ramen_protocol.message import Envelope

RULE_FIELDS = ("category", "system_serial", "sender", "data_type", "data_version", "system_version")
"""The fields that a rule may name, in the order of the protocol."""

MAX_RULE_VALUE_CHARS = 256
"""The longest value of a field. No real name comes near it; a rule lives on disk and in the log."""

_VALUE = re.compile(r"[A-Za-z0-9._-]+", re.ASCII).fullmatch


class UnusableRule(ValueError):
    """What came is no rule that can be applied; the text says why, in one bounded line."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What the server does not want: a field that is None matches everything, at least one is not None."""

    category: str | None = None
    system_serial: str | None = None
    sender: str | None = None
    data_type: str | None = None
    data_version: str | None = None
    system_version: str | None = None

    def __post_init__(self) -> None:
        for name in RULE_FIELDS:
            if getattr(self, name) is not None:
                return
        raise UnusableRule("the rule names no field, so it would match every message")

    @classmethod
    def parse(cls, value: object) -> Rule:
        """Read the rule that a decoded JSON value stands for.

        Null fields count as absent, unknown ones too. Raises ``UnusableRule`` when ``value`` is not an object,
        holds an unknown field that is not null, names no field, or when a value is neither text nor a number,
        is longer than ``MAX_RULE_VALUE_CHARS``, or holds characters that no name has (it could match nothing).
        """
        if not isinstance(value, dict):
            raise UnusableRule("the rule is not a JSON object")
        present = {name: field for name, field in value.items() if field is not None}
        unknown = [name for name in present if name not in RULE_FIELDS]
        if unknown:
            raise UnusableRule(
                f"the rule has a field that is not known here: {clean_text(str(unknown[0]), 64)}"
            )
        return cls(**{name: _value_text(name, field) for name, field in present.items()})

    def matches(self, envelope: Envelope) -> bool:
        """Whether every field that the rule names equals the message's."""
        return (
            (self.data_type is None or self.data_type == envelope.data_type)
            and (self.category is None or self.category == envelope.category)
            and (self.data_version is None or self.data_version == envelope.data_version)
            and (self.sender is None or self.sender == envelope.sender)
            and (self.system_version is None or self.system_version == envelope.system_version)
            and (self.system_serial is None or self.system_serial == str(envelope.system_serial))
        )

    def as_json(self) -> dict[str, str]:
        """List the fields that the rule names, as text: what ``parse`` takes, and what goes on the wire."""
        fields = ((name, getattr(self, name)) for name in RULE_FIELDS)
        return {name: value for name, value in fields if value is not None}

    def __str__(self) -> str:
        return f"Rule({', '.join(f'{name}={value}' for name, value in self.as_json().items())})"


def _value_text(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UnusableRule(f"the rule's {name} is neither text nor a number")
    if isinstance(value, int) and value.bit_length() > 4 * MAX_RULE_VALUE_CHARS:  # str() of it may be refused
        raise UnusableRule(f"the rule's {name} is longer than {MAX_RULE_VALUE_CHARS} characters")
    text = str(value)
    if len(text) > MAX_RULE_VALUE_CHARS:
        raise UnusableRule(f"the rule's {name} is longer than {MAX_RULE_VALUE_CHARS} characters")
    if not _VALUE(text):
        raise UnusableRule(f"the rule's {name} is empty or holds characters that no name has")
    return text
