"""What a configuration is read from: a TOML file, environment variables, files with secrets.

Nothing here knows what a value means; ``config`` checks them. Files must be regular ones (a pipe would hang or
come out empty) and are read up to a bound. Errors name the file, never what is in it.
"""

from __future__ import annotations

import logging
import os
import stat
import tomllib
from typing import TYPE_CHECKING, Any

from infi.ramen_client._config_fields import MAX_TOKEN_CHARS, ConfigField, did_you_mean, shown, suggestion
from infi.ramen_client.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger("ramen_client")

PREFIX = "RAMEN_"
TABLE = "ramen"

MAX_FILE_BYTES = 1024 * 1024
"""A configuration is a page of text; far more than that is a wrong file."""

MAX_TOKEN_FILE_BYTES = 2 * MAX_TOKEN_CHARS + 1024
"""The longest token as UTF-8, and the blank space after it that is taken off."""

_ANYBODY = stat.S_IROTH | stat.S_IWOTH

_warned_of: set[str] = set()
"""Files that were warned of: they are read again and again, one warning for each is enough."""


def read_toml(path: str, known: Mapping[str, ConfigField]) -> dict[str, Any]:
    """The fields in a TOML file: those of its ``[ramen]`` table if it has one, else its top-level keys.

    Raises ``ValidationError`` for a file that is missing, unreadable, larger than ``MAX_FILE_BYTES`` or not TOML,
    and for names that are not ``known``.
    """
    what = f"the configuration file {shown(path)}"
    content, _ = read_regular_file(what, path, MAX_FILE_BYTES)
    try:
        document = tomllib.loads(content.decode())
        reason = ""
    except UnicodeDecodeError:
        reason = "it is not UTF-8 text"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        reason = str(error)
    # Raised out here because newer Pythons keep the whole document, so the token, on the error that was caught.
    if reason:
        raise ValidationError(f"{what} is not valid TOML: {reason}")
    values = document.get(TABLE, document)
    if not isinstance(values, dict):
        raise ValidationError(f"{what}: [{TABLE}] must be a table")
    unknown = [
        f"{shown(name)}{did_you_mean(suggestion(name, known))}" for name in values if name not in known
    ]
    if unknown:
        raise ValidationError(f"{what} has an unknown field: " + ", ".join(unknown))
    return values


def read_environ(environ: Mapping[str, str], known: Mapping[str, ConfigField]) -> dict[str, str | None]:
    """The fields in the environment: ``RAMEN_SENDER`` is ``sender``, and so on.

    An empty variable is None for a field that may be None (so ``RAMEN_PROXY=`` undoes the file's proxy).
    Other ``RAMEN_`` variables may belong to other programs, or be typing errors: they are named in a warning,
    without their values.
    """
    values: dict[str, str | None] = {}
    for variable, value in environ.items():
        if not variable.startswith(PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if variable == variable_of(name) and name in known:
            values[name] = None if value == "" and known[name].optional else value
            continue
        near = suggestion(name, known)
        logger.warning(
            "environment variable %s is not a setting of this client%s",
            shown(variable),
            did_you_mean(near and variable_of(near)),
        )
    return values


def variable_of(name: str) -> str:
    """The environment variable of a field."""
    return PREFIX + name.upper()


def read_token_file(path: str) -> str:
    """The text of a token file, without the blank space at its end; not yet checked further.

    A file that every user may read or write is warned of, once for each path, and used: secrets that
    a container platform mounts are often like that. Raises ``ValidationError`` for a file that is missing,
    unreadable, empty, larger than ``MAX_TOKEN_FILE_BYTES`` or not UTF-8.
    """
    what = f"auth_token_file {shown(path)}"
    content, mode = read_regular_file(what, path, MAX_TOKEN_FILE_BYTES)
    try:
        token = content.decode().rstrip()
    except UnicodeDecodeError:
        token = None
    # Raised out here so that the error caught, which holds the file's bytes, does not hang on ours.
    if token is None:
        raise ValidationError(f"{what} is not UTF-8 text; it must hold the token and nothing else")
    if not token:
        raise ValidationError(f"{what} is empty; it must hold the token")
    warn_if_open_to_anybody(what, mode)
    return token


def warn_if_open_to_anybody(what: str, mode: int) -> None:
    """Warn, once in a process, of a file with a secret that every user may read or write: ``what`` it is, and its mode."""
    if mode & _ANYBODY and what not in _warned_of:
        _warned_of.add(what)
        logger.warning(
            "%s can be read or written by every user (mode %04o); chmod 600 it, so that only its owner can",
            what,
            stat.S_IMODE(mode),
        )


def read_regular_file(what: str, path: str, max_bytes: int) -> tuple[bytes, int]:
    """The content and the mode of a regular file of at most ``max_bytes``. Raises ``ValidationError``, which begins with ``what``."""
    try:
        with open(path, "rb", opener=_open_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(max_bytes + 1) if stat.S_ISREG(mode) else b""
    except OSError as error:
        raise ValidationError(f"{what} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValidationError(f"{what} is not a path: {error}") from error
    if not stat.S_ISREG(mode):
        raise ValidationError(f"{what} is not a regular file")
    if len(content) > max_bytes:
        raise ValidationError(f"{what} is larger than {max_bytes} bytes; is it the right file?")
    return content, mode


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe without a writer, too, at once."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
