"""The exit codes of ``ramen``, the same for all commands."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a script can tell from ``$?``. After Ctrl-C it is 130."""

    OK = 0
    """Done; for a question: yes, all is well."""
    NOT_WELL = 1
    """Asked and answered: something is not well, was refused, or was not found. What it is stands on the output."""
    USAGE = 2
    """The command line or the configuration is wrong; nothing was done."""
    UNUSABLE = 3
    """The queue, the collector's files or a needed package are not there or cannot be used; nothing was done."""
