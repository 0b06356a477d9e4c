"""A collector's configuration from a TOML file, with what a command line says over it.

The file has the fields of ``ServerConfig`` as its keys, and those of ``Limits`` in its table ``[limits]``. What is missing has its
default, ``data_dir`` too. Errors name the field; values are repeated, since none of them is a secret.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .limits import Limits
from .server import ServerConfig

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

DEFAULT_DATA_DIR = Path("/var/lib/ramen")
MAX_FILE_BYTES = 1024 * 1024

_SHOWN_CHARS = 60


class ConfigError(ValueError):
    """The file is not one that a collector can be configured from; the text says what is wrong where."""


def load_config(
    path: Path | None = None, *, limits: Mapping[str, Any] | None = None, **over: Any
) -> ServerConfig:
    """Read the file; ``over`` are fields, and ``limits`` limits, that go over it.

    Raises ``ConfigError``, ``InsecureListen`` or ``ValueError`` for what does not fit together, ``OSError`` for a file that cannot
    be read.
    """
    values: dict[str, Any] = {"data_dir": DEFAULT_DATA_DIR}
    bounds: dict[str, Any] = {}
    if path is not None:
        document = _read(path)
        table = document.pop("limits", {})
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: limits must be a table, [limits]")
        _refuse_unknown(path, document, _KINDS)
        _refuse_unknown(path, table, [field.name for field in fields(Limits)], "limits.")
        values |= {name: _converted(path, name, value) for name, value in document.items()}
        bounds = table
    return ServerConfig(**{**values, **over}, limits=Limits(**{**bounds, **(limits or {})}))


def _read(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"{path}: is larger than {MAX_FILE_BYTES} bytes; is it the right file?")
    try:
        return tomllib.loads(content.decode())
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError and TOMLDecodeError
        raise ConfigError(f"{path}: is not valid TOML: {error}") from None


def _refuse_unknown(path: Path, table: Mapping[str, Any], known: Collection[str], prefix: str = "") -> None:
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            meant = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ConfigError(f"{path}: {prefix}{name[:_SHOWN_CHARS]!r} is no field{meant}")


def _converted(path: Path, name: str, value: object) -> object:
    kind, words = _KINDS[name]
    # bool is an int to Python, but not to people.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{path}: {name} must be {words}, not {str(value)[:_SHOWN_CHARS]!r}")
    return Path(value) if name in _PATHS and isinstance(value, str) else value


_KINDS: dict[str, tuple[type, str]] = {
    "data_dir": (str, "a path"),
    "host": (str, "an address or localhost, as text"),
    "port": (int, "a whole number"),
    "tls_certificate": (str, "a path"),
    "tls_key": (str, "a path"),
    "insecure": (bool, "true or false"),
    "remember_days": (int, "a whole number"),
    "remember_messages": (int, "a whole number"),
    "first_token_file": (str, "a path"),
}
_PATHS = {name for name, (_, words) in _KINDS.items() if words == "a path"}
