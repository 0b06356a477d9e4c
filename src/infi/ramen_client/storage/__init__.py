"""The queue on disk. Nothing else in the product opens its files.

What holds after every step, whoever is killed, whatever the disk does (``tests/storage/test_model.py`` tries it):

1. A message is in exactly one of: ``message``, ``dead_letter``, the 1.x table, or counted under a reason in the books.
2. The books balance, and say how many rows there are. Where damage made them wrong, they are set right by counting, and what nobody
   can account for is entered as ``found`` or ``damaged`` (``repairing``).
3. Messages are taken in the order of their positions, and each is delivered, or known to be lost: no message leaves without a reason.
4. A position is never used for two messages of one file; a reqid that was made at push is never used twice at all.
5. A call that raised has stored nothing, but for ``DurabilityError``; what one that returned has stored survives a kill, and with
   ``durability="full"`` a power cut. After a power cut under ``"normal"`` the queue is as after one of the latest commits.
6. What is in flight is not trimmed, purged or expired; the newest message is not trimmed; size stays near its limit.
7. No content of the files raises anything but the documented errors, or keeps a reader busy without end. A damaged page costs at
   most what lay on it; a row that is not, bit for bit, what was pushed is never delivered.
8. A file that is not ours, or that a newer version keeps to itself, stays as it is, byte for byte.
"""

from ._create import Place
from ._looking import Found, Stream
from ._rows import DeadLetter, Death, Fate, NewMessage, ReqidOrigin, Settlement, StoredMessage
from ._trim import Overflow
from .active_reader import SUSPECT_AFTER, ActiveReader, FailureNote
from .batches import FrozenBatch
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
from .repairing import Repaired, repair
from .rules import StoredRule, add_rule, lift_rules, list_rules, load_rules, refresh_rule, remove_rule
from .server_facts import ServerFacts
from .streams import WaitingStream, bury_head
from .to_1x import ChangedVersion, ExportedTo1x, export_to_1x

__all__ = [
    "SUSPECT_AFTER",
    "ActiveReader",
    "Books",
    "Changed",
    "ChangedVersion",
    "DeadHead",
    "DeadLetter",
    "Death",
    "ExistingQueue",
    "ExportedTo1x",
    "FailureNote",
    "Fate",
    "Found",
    "FrozenBatch",
    "Matching",
    "NewMessage",
    "Overflow",
    "Payload",
    "Place",
    "Purged",
    "PushPoint",
    "Queue",
    "QueueFile",
    "Repaired",
    "ReqidOrigin",
    "ServerFacts",
    "Settlement",
    "Snapshot",
    "StoredMessage",
    "StoredRule",
    "Stream",
    "WaitingStream",
    "add_rule",
    "bury_head",
    "check",
    "dead_head",
    "dead_heads",
    "discard_dead",
    "export_to_1x",
    "lift_rules",
    "list_rules",
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
    "repair",
    "retry_dead",
    "take_entries",
    "take_snapshot",
]
