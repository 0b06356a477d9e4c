"""What may stand in a message's name (protocol section 1, the table of the request's parts).

A name goes into the URL's path and, on the server, into subjects and table columns, so both checks take the
WHOLE string and ASCII only: 1.x used ``re.match("…$")``, which lets a trailing newline through.
Length is not bounded here (the protocol sets no limit); whoever reads names from outside bounds the text they
come in, see ``url.MAX_TARGET_CHARS``.
"""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9_-]+", re.ASCII).fullmatch
_VERSION = re.compile(r"[A-Za-z0-9._-]+", re.ASCII).fullmatch


def is_name(text: str) -> bool:
    """Whether ``text`` can be a category, data type, data version or sender: ``[A-Za-z0-9_-]+``, all of it."""
    return _NAME(text) is not None


def is_version(text: str) -> bool:
    """Whether ``text`` can be a system version: ``[A-Za-z0-9._-]+``, all of it."""
    return _VERSION(text) is not None
