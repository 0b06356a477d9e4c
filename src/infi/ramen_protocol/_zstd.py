"""Zstandard (RFC 8878), where this Python has it: the standard library's from 3.14 on, else the ``backports.zstd`` package.

The two are one code under two names; without either, ``zstd`` is None.
"""

from __future__ import annotations

import sys
from typing import Any

zstd: Any
"""The module, or None. ``Any``: no Python has both names, so no type checker can see both."""

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    try:
        from backports import zstd
    except ImportError:
        zstd = None
