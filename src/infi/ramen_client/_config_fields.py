"""What a configuration field is: its text for people, its check, and how its value may be shown.

A field is declared once, as an annotation of its class in ``config``: the type is one of the types below, its
``About`` holds meaning, unit and bounds, the class attribute its default. ``fields_of`` turns these annotations into
``ConfigField`` values; checks, error texts, ``repr``, the names of environment variables and the reference document
all come from them.

Invariants:

- ``ConfigField.check`` returns a value of a plain type (``str``, ``int``, ``float``, ``bool``, None) or a ``Wrong``,
  and raises nothing, whatever object it is given (one whose own methods raise is simply a wrong value).
- What ``ConfigField.show`` returns is short, printable, and holds neither a token nor a URL's user name or
  password. A URL is shown in full only where it is plainly free of them; pydantic's own texts, which hold
  the value, are never passed on.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from inspect import get_annotations
from numbers import Number
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from infi.ramen_protocol.names import is_name, is_version
from infi.ramen_protocol.url import origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

MAX_SENDER_CHARS = 200
"""The queue's file is named ``{sender}_{system_serial}.db``, and file systems end a name at 255 bytes."""

MAX_VERSION_CHARS = 256
"""No longer than what a blacklist rule can name."""

MAX_TOKEN_CHARS = 8000
"""Common servers end a header line at 8 KiB, its name included."""

MAX_PATH_BYTES = 4095
"""Linux's PATH_MAX without the closing zero byte."""

MAX_PROXY_CHARS = 2048
MAX_GROUP_CHARS = 255

_SHOWN_CHARS = 80
_SHOWN_BITS = 256
_LONGEST_NAME_COMPARED = 64
_CONTROL = re.compile(r"[\x00-\x1f\x7f]").search
_HEADER_TEXT = re.compile(r"[\x21-\x7e\xa1-\xff](?:[\x20-\x7e\xa0-\xff]*[\x21-\x7e\xa1-\xff])?").fullmatch
_PROXY_SCHEMES = ("http", "https", "socks4", "socks4a", "socks5", "socks5h")
_SCHEME = re.compile(rf"(?:{'|'.join(_PROXY_SCHEMES)})://", re.IGNORECASE).match
_SHOWABLE_REST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?(?:/[^:@?#]*)?").fullmatch


@dataclass(frozen=True, slots=True)
class Wrong:
    """The outcome of a check: the value is not allowed. It holds nothing, least of all the value."""


def shown(value: object) -> str:
    """A value as an error may show it: printable, in quotes where it is text, at most about 80 characters."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return str(int(value)) if value.bit_length() <= _SHOWN_BITS else "an integer of hundreds of digits"
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        text = str.__str__(value)
        return (
            repr(text)
            if len(text) <= _SHOWN_CHARS
            else f"{text[:_SHOWN_CHARS]!r}... ({len(text)} characters)"
        )
    # Anything else may hold a secret somewhere inside.
    return f"a value of type {type(value).__name__[:_SHOWN_CHARS]}"


def hidden(value: object) -> str:
    """What stands for a secret: only whether there is one."""
    return "None" if value is None else "'***'"


def shown_url(value: object) -> str:
    """As ``shown``, with ``***`` in place of whatever could be a user name or a password.

    A password may hold any character where its writer forgot to percent-encode it, so this shows only a known
    scheme and a host and port (and path) of the plainest form, and what stands before the last ``@`` never.
    """
    if not isinstance(value, str):
        return shown(value)
    text = str.__str__(value)
    scheme = found.group() if (found := _SCHEME(text)) else ""
    rest = text[len(scheme) :]
    if not text or _SHOWABLE_REST(rest):
        return shown(text)
    _, at, host = rest.rpartition("@")
    return shown(f"{scheme}***{at}{host}" if at and _SHOWABLE_REST(host) else f"{scheme}***")


@dataclass(frozen=True, slots=True)
class About:
    """What a field's annotation says beside its type.

    ``meaning`` is one sentence or more; ``allowed`` completes "it must be …" and may be left out for numbers, where
    it follows from ``low`` and ``high`` (both inclusive) and ``unit``.
    """

    meaning: str
    allowed: str = ""
    unit: str = ""
    low: float | None = None
    high: float | None = None
    show: Callable[[object], str] = shown


@dataclass(frozen=True, slots=True)
class ConfigField:
    """One row of the table of fields.

    ``type`` is the plain type after ``validate()`` (such as ``int`` or ``str | None``); ``default`` is None where the
    field is required; ``optional`` says that None is a value of its own.
    """

    name: str
    type: Any
    default: object
    required: bool
    optional: bool
    meaning: str
    allowed: str
    unit: str
    low: float | None
    high: float | None
    _show: Callable[[object], str]
    _adapter: TypeAdapter[Any]

    def check(self, value: object) -> object | Wrong:
        """The value, converted to the field's type; or ``Wrong``."""
        try:
            # pydantic would decode bytes.
            return Wrong() if isinstance(value, bytes | bytearray) else self._adapter.validate_python(value)
        except ValidationError:
            return Wrong()
        except Exception:  # noqa: BLE001  the value's own methods raised: then it is none of ours
            return Wrong()

    def show(self, value: object) -> str:
        """The value, as far as it may be shown."""
        try:
            return self._show(value)
        except Exception:  # noqa: BLE001  as in check()
            return "a value that cannot be shown"

    def problem(self, value: object, source: str) -> str:
        """The text for a value that is ``Wrong``; ``source`` says where it came from, or is empty."""
        where = f"{self.name} ({source})" if source else self.name
        what = "missing" if value is None else f"{self.show(value)} is not allowed"
        return f"{where}: {what}; it must be {self.allowed}"


def fields_of(cls: type) -> Mapping[str, ConfigField]:
    """The fields that a class itself declares, in their order: its annotations that hold an ``About``."""
    own = get_annotations(cls)
    plain_types = get_type_hints(cls)
    found = {}
    for name, hint in get_type_hints(cls, include_extras=True).items():
        about = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, About)), None)
        if about is None or name not in own:
            continue
        plain = plain_types[name]
        bounded: Any = Annotated[hint, Field(ge=about.low, le=about.high)]
        found[name] = ConfigField(
            name=name,
            type=plain,
            default=getattr(cls, name, None),
            required=not hasattr(cls, name),
            optional=NoneType in get_args(plain),
            meaning=about.meaning,
            allowed=about.allowed or _numbers_allowed(plain, about),
            unit=about.unit,
            low=about.low,
            high=about.high,
            _show=about.show,
            _adapter=TypeAdapter(bounded),
        )
    return found


def suggestion(name: str, names: Iterable[str], *, likeness: float = 0.6) -> str:
    """The one of ``names`` that a misspelt ``name`` may stand for; empty when none is near.

    ``likeness`` is difflib's ratio, 0 to 1.
    """
    text = name[:_LONGEST_NAME_COMPARED].lower().replace("-", "_")
    return next(iter(get_close_matches(text, names, 1, likeness)), "")


def did_you_mean(near: str) -> str:
    """What follows an unknown name."""
    return f" (did you mean {near}?)" if near else ""


def _numbers_allowed(plain: type, about: About) -> str:
    kind = "a number" if plain is float else "an integer"
    unit = f" ({about.unit})" if about.unit else ""
    return f"{kind} from {about.low} to {about.high}{unit}"


def _require(allowed: bool) -> None:
    if not allowed:
        # The text is never seen: ConfigField.problem() writes its own.
        raise ValueError


def _number(value: object) -> object:
    # A bool is an int to Python, and numpy's own bool to pydantic; it is no Number.
    _require(isinstance(value, str | Number) and not isinstance(value, bool))
    return value


def _sender(text: str) -> str:
    _require(len(text) <= MAX_SENDER_CHARS and is_name(text))
    return text


def _version(text: str) -> str:
    _require(len(text) <= MAX_VERSION_CHARS and is_version(text))
    return text


def _from_path(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _path(text: str) -> str:
    # Encoding raises for lone surrogates: SQLite and libcurl take file names as UTF-8.
    _require(len(text.encode()) <= MAX_PATH_BYTES and bool(text.strip()) and not _CONTROL(text))
    return text


def _group(text: str) -> str:
    _require(
        0 < len(text) <= MAX_GROUP_CHARS and text.isprintable() and text == text.strip() and ":" not in text
    )
    return text


def _header_text(text: str) -> str:
    _require(len(text) <= MAX_TOKEN_CHARS and _HEADER_TEXT(text) is not None)
    return text


def _hostname(text: str) -> str:
    origin(text, ssl=True)
    return text


def _empty_is_none(value: object) -> object:
    return None if value == "" else value


def _proxy(text: str) -> str:
    # urlsplit() silently drops tabs and newlines, so they are refused before.
    _require(len(text) <= MAX_PROXY_CHARS and text.isascii() and text.isprintable() and " " not in text)
    url = urlsplit(text if "://" in text else f"http://{text}")
    _require(url.scheme in _PROXY_SCHEMES and url.path in ("", "/") and not {"?", "#", "\\"} & set(text))
    # Which of two "@" ends the password is read in different ways by different programs.
    _require(text.count("@") <= 1)
    # The host and port are checked as those of the server are.
    origin(url.netloc.rpartition("@")[2], ssl=True)
    return text


Sender = Annotated[str, AfterValidator(_sender)]
Version = Annotated[str, AfterValidator(_version)]
Integer = Annotated[int, BeforeValidator(_number)]
Seconds = Annotated[float, BeforeValidator(_number)]
FilePath = Annotated[str, AfterValidator(_path), BeforeValidator(_from_path)]
Group = Annotated[str, AfterValidator(_group)]
HeaderText = Annotated[str, AfterValidator(_header_text)]
Hostname = Annotated[str, AfterValidator(_hostname)]
ProxyUrl = Annotated[Annotated[str, AfterValidator(_proxy)] | None, BeforeValidator(_empty_is_none)]
