"""The queue on disk. Nothing else in the product opens its files."""

from ._create import Place
from ._rows import DeadLetter, Death, Fate, NewMessage, ReqidOrigin, Settlement, StoredMessage
from .active_reader import SUSPECT_AFTER, ActiveReader, FailureNote, ServerFacts
from .books import Books
from .queue import PushPoint, Queue, now_ms
from .rules import StoredRule, add_rule, load_rules, refresh_rule, remove_rule

__all__ = [
    "SUSPECT_AFTER",
    "ActiveReader",
    "Books",
    "DeadLetter",
    "Death",
    "FailureNote",
    "Fate",
    "NewMessage",
    "Place",
    "PushPoint",
    "Queue",
    "ReqidOrigin",
    "ServerFacts",
    "Settlement",
    "StoredMessage",
    "StoredRule",
    "add_rule",
    "load_rules",
    "now_ms",
    "refresh_rule",
    "remove_rule",
]
