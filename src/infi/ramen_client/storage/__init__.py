"""The queue on disk. Nothing else in the product opens its files."""

from ._create import Place
from ._rows import DeadLetter, Death, Fate, NewMessage, ReqidOrigin, Settlement, StoredMessage
from ._trim import Overflow
from .active_reader import SUSPECT_AFTER, ActiveReader, FailureNote, ServerFacts
from .books import Books
from .checking import check
from .dead_letters import (
    Changed,
    DeadHead,
    Payload,
    dead_head,
    dead_heads,
    discard_dead,
    read_dead,
    read_payload,
    retry_dead,
)
from .existing import ExistingQueue, QueueFile, open_existing, queue_files
from .inspection import Snapshot, take_entries, take_snapshot
from .purging import Matching, Purged, purge
from .queue import PushPoint, Queue, now_ms
from .reader_process import reader_holder
from .rules import StoredRule, add_rule, lift_rules, load_rules, refresh_rule, remove_rule

__all__ = [
    "SUSPECT_AFTER",
    "ActiveReader",
    "Books",
    "Changed",
    "DeadHead",
    "DeadLetter",
    "Death",
    "ExistingQueue",
    "FailureNote",
    "Fate",
    "Matching",
    "NewMessage",
    "Overflow",
    "Payload",
    "Place",
    "Purged",
    "PushPoint",
    "Queue",
    "QueueFile",
    "ReqidOrigin",
    "ServerFacts",
    "Settlement",
    "Snapshot",
    "StoredMessage",
    "StoredRule",
    "add_rule",
    "check",
    "dead_head",
    "dead_heads",
    "discard_dead",
    "lift_rules",
    "load_rules",
    "now_ms",
    "open_existing",
    "purge",
    "queue_files",
    "read_dead",
    "read_payload",
    "reader_holder",
    "refresh_rule",
    "remove_rule",
    "retry_dead",
    "take_entries",
    "take_snapshot",
]
