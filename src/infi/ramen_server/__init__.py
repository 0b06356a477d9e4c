"""The reference collector: takes Ramen messages over HTTP, keeps each of them once, and answers when they are durable.

docs/design/collector.md says how. A program starts it by ``CollectorServer``, administers it by ``Settings`` (tokens, rules;
also while it runs, also from another process), and reads what it holds by ``SqliteArchive``.
"""

from infi.ramen_server._files import UnusableFile
from infi.ramen_server.app import Collector
from infi.ramen_server.auth import Purpose, Scope, Token
from infi.ramen_server.limits import Limits
from infi.ramen_server.rules import StoredRule
from infi.ramen_server.server import CollectorServer, InsecureListen, ServerConfig
from infi.ramen_server.settings import NameTaken, Settings
from infi.ramen_server.stores import (
    Committed,
    LaneConflict,
    NewMessage,
    Outcome,
    Repeated,
    Selection,
    Store,
    StoredMessage,
    StoreUnavailable,
    Submission,
    Totals,
)
from infi.ramen_server.stores._archive import SqliteArchive
from infi.ramen_server.stores.memory import MemoryStore
from infi.ramen_server.stores.sqlite import SqliteStore, StoreInUse

__all__ = [
    "Collector",
    "CollectorServer",
    "Committed",
    "InsecureListen",
    "LaneConflict",
    "Limits",
    "MemoryStore",
    "NameTaken",
    "NewMessage",
    "Outcome",
    "Purpose",
    "Repeated",
    "Scope",
    "Selection",
    "ServerConfig",
    "Settings",
    "SqliteArchive",
    "SqliteStore",
    "Store",
    "StoreInUse",
    "StoreUnavailable",
    "StoredMessage",
    "StoredRule",
    "Submission",
    "Token",
    "Totals",
    "UnusableFile",
]
