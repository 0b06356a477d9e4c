"""How a program's data becomes one JSON text (protocol section 1, "Request"; the forms are those of 1.x and more).

    Decimal                          number with its exact digits (1.x went through float)
    datetime, date                   integer milliseconds since the epoch, rounded down; naive means local
                                     time, a date its local midnight
    UUID, Path (os.PathLike)         text
    Enum                             its value
    dataclass                        object of its fields
    tuple, namedtuple, set, Sequence
                                     array; a set sorted where its members can be compared
    Mapping                          object
    numpy scalar or array            number, or nested arrays of numbers; datetime64 as datetime
    NaN, infinity, anything else     null, and reported

Two encoders make the same text. The fast one is a single call of orjson with a hook for the types above. What it
cannot do falls to the exact one below, which walks the data itself: integers beyond 64 bits, lone surrogates
(escaped, as ``json`` does), keys that are no strings, more than 254 levels, and everything that must be reported
with its path. Two things about orjson make a look at the data necessary. It writes NaN as ``null`` without a word,
so an output with a ``null`` in it is checked. And it does not count the levels of tuples: 3,000 of them corrupt the
heap, and a circle through two of them overflows the stack (3.13.0), so deep data never gets there.

Keys that are no strings become text as in ``json`` (numbers, true, false, null), or by the forms above. An entry
whose key has no form (a tuple, bytes) is left out and reported: there is no null for keys.

Limits: data that nests ``MAX_DEPTH`` levels, or contains itself, is a ``ValueError``; the exact encoder keeps a
stack of its own and cannot overflow Python's. Integers of more digits than Python prints (4,300) have no form.
"""

from __future__ import annotations

import json
import re
import sys
from collections import UserString
from collections.abc import Callable, Iterator, Mapping, Sequence, Set, ValuesView
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite
from typing import Any, NoReturn
from uuid import UUID

import orjson

MAX_DEPTH = 1000
"""Data that nests so many levels, or more, is refused: JSON readers stop at about this depth (orjson at 1,024)."""

OnUnserialisable = Callable[[str, object], None]
"""Told the path of a value that has no JSON form (as in ``$.a[3].b``), and the value."""

_OPTIONS = (
    orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_MAX_PATH_CHARS = 300
_MAX_KEY_CHARS = 64
_MAX_KEY_STEPS = 8
_SIMPLE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}", re.ASCII).fullmatch
_MAX_FAST_DEPTH = 250  # orjson's own limit, which it applies to lists and dicts, is 254
# What the fast encoder never writes as null, unless it is None.
_HARMLESS = frozenset((str, int, bool, type(None), datetime, date, UUID, Decimal))
_LEAVES = _HARMLESS | {float}
_NESTING = frozenset((dict, list, tuple))


class _NoForm(TypeError):
    """The value has no JSON form."""


def dump(data: object, *, on_unserialisable: OnUnserialisable | None = None) -> bytes:
    """Write ``data`` as JSON in UTF-8, without spaces.

    What has no JSON form becomes null, and ``on_unserialisable`` is called with its path and value; an exception
    that it raises passes through. Raises ``ValueError`` for data that nests ``MAX_DEPTH`` levels or more, or
    contains itself.
    """
    if not _is_shallow(data):
        return _ExactEncoder(on_unserialisable).encode(data)
    try:
        text = orjson.dumps(data, _hook, _OPTIONS)
    except orjson.JSONEncodeError as error:
        cause = error.__cause__  # what the hook raised
        if cause is not None and not isinstance(cause, Exception):
            raise cause from None  # KeyboardInterrupt and its like are not about the data
    else:
        if b"null" not in text or not _may_hide_nulls(data):
            return text
    return _ExactEncoder(on_unserialisable).encode(data)


def _is_shallow(data: object, *, nested_tuples: bool = True) -> bool:
    """Tell whether orjson can take the data's dicts, lists and tuples: none too deep, no tuples where forbidden."""
    level: list[Any] = [data]
    try:
        for _ in range(_MAX_FAST_DEPTH):
            nests = [value for value in level if type(value) in _NESTING]
            if len(nests) < len(level) and any(map(_is_deep_enum, level)):
                return False
            level = [
                member
                for value in nests
                for member in (value.values() if type(value) is dict else value)
                if type(member) not in _LEAVES
            ]
            if not level:
                return True
            if not nested_tuples and tuple in map(type, nests):
                return False
    except RuntimeError:
        pass  # another thread changed a dict just now; the exact encoder works on copies
    return False


def _is_deep_enum(value: object) -> bool:
    """Tell whether orjson would write more than a scalar for an Enum, without asking the hook."""
    return issubclass(type(value), Enum) and type(_attempt(_enum_value, value)) not in _LEAVES


def _hook(value: Any) -> Any:
    """Give orjson a plainer form of what it does not know."""
    plainer = _plainer(value)
    # Each form may hold others, and so on: only where none of them adds levels of tuples can orjson count them.
    if type(plainer) not in _LEAVES and not _is_shallow(plainer, nested_tuples=False):
        _no_form(value)
    return plainer


def _may_hide_nulls(data: object) -> bool:
    """Tell whether a null in orjson's output may stand for something else than None, as far as a look shows."""
    level: list[Any] = [data]
    try:
        while level:
            if not _NESTING.issuperset(map(type, level)):
                return True
            members = [
                member
                for value in level
                for member in (value.values() if type(value) is dict else value)
                if type(member) not in _HARMLESS
            ]
            numbers = [member for member in members if type(member) is float]
            if not all(map(isfinite, numbers)):
                return True
            level = [member for member in members if type(member) is not float]
    except RuntimeError:
        return True  # as in _is_shallow
    return False


def _plainer(value: Any) -> Any:
    """Take one step towards plain JSON data: the result may hold, or be, something that needs another step.

    The result is new or immutable. Raises ``_NoForm``, or whatever the value's own methods raise.
    """
    form = _FORMS.get(type(value)) or _form_of(value)
    return form(value)


def _form_of(value: Any) -> Callable[[Any], Any]:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
        return _from_numpy
    if is_dataclass(value) and not isinstance(value, type | Enum):
        return _fields
    for kind, form in _FORMS_BY_BASE:
        if isinstance(value, kind):
            return form
    return _path if hasattr(type(value), "__fspath__") else _no_form


def _no_form(value: object) -> NoReturn:
    raise _NoForm(f"{type(value).__name__} has no JSON form")


def _milliseconds(value: datetime) -> int:
    if value.utcoffset() is None:
        value = value.replace(tzinfo=None).astimezone(UTC)
    return (value - _EPOCH) // _MILLISECOND


def _date(value: date) -> int:
    return _milliseconds(datetime(value.year, value.month, value.day))


def _decimal(value: Decimal) -> orjson.Fragment:
    if not value.is_finite():
        _no_form(value)
    return orjson.Fragment(Decimal.__str__(value))


def _set(value: Set[Any]) -> list[Any]:
    try:
        return sorted(value)
    except TypeError:
        return list(value)


def _path(value: Any) -> str:
    text = type(value).__fspath__(value)
    if not isinstance(text, str):
        _no_form(value)
    return text


def _enum_value(value: Enum) -> Any:
    return value.value


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}


def _from_numpy(value: Any) -> Any:
    numpy = sys.modules["numpy"]
    kind = value.dtype.kind
    if kind == "M":
        # Their own tolist() gives dates, datetimes or plain nanoseconds, whatever the unit is.
        if not numpy.isnat(value).any():
            return value.astype("datetime64[ms]").astype("int64").tolist()
    elif kind not in "mcV":
        plain = value.tolist()
        # A longdouble stays itself in tolist(); in an array it comes here again.
        return float(plain) if isinstance(plain, numpy.floating) else plain
    if value.ndim:
        return list(value)  # each member gets its own form, or none
    if kind == "V" and value.dtype.names:
        return [value[name] for name in value.dtype.names]
    _no_form(value)


_FORMS: dict[type, Callable[[Any], Any]] = {
    datetime: _milliseconds,
    date: _date,
    Decimal: _decimal,
    set: _set,
    frozenset: _set,
}

# The first that fits counts.
_FORMS_BY_BASE: tuple[tuple[type | tuple[type, ...], Callable[[Any], Any]], ...] = (
    (str, str.__str__),
    (Enum, _enum_value),
    (int, int.__int__),
    (float, float.__float__),
    ((bytes, bytearray, memoryview), _no_form),
    (Decimal, _decimal),
    (datetime, _milliseconds),
    (date, _date),
    (UUID, UUID.__str__),
    (UserString, str),
    (Mapping, lambda value: dict(value.items())),
    (Set, _set),
    ((Sequence, ValuesView), list),
)


@dataclass(slots=True)
class _Level:
    """An array or object that is being written."""

    source: object  # kept, so that no other object gets its id while the level is open
    members: Iterator[Any]
    is_object: bool
    at: str | int = -1  # the key or index of the member that is being written
    empty: bool = True


class _ExactEncoder:
    """Writes one JSON text, level by level, and knows the path of what it writes."""

    def __init__(self, report: OnUnserialisable | None) -> None:
        self._report = report
        self._out: list[bytes] = []
        self._levels: list[_Level] = []
        self._open_ids: set[int] = set()

    def encode(self, data: object) -> bytes:
        self._write(data)
        while self._levels:
            level = self._levels[-1]
            for member in level.members:
                if self._begin_member(level, member):
                    self._write(member[1] if level.is_object else member)
                    if self._levels[-1] is not level:
                        break  # it opened a level of its own
            else:
                self._out.append(b"}" if level.is_object else b"]")
                self._levels.pop()
                self._open_ids.remove(id(level.source))
        return b"".join(self._out)

    def _begin_member(self, level: _Level, member: Any) -> bool:
        """Write what stands before a member; False when it is to be left out."""
        key = b""
        if level.is_object:
            text = _attempt(_key_text, member[0])
            if text is _FAILED:
                self._tell(f"{self._path(self._levels[:-1])}[<{type(member[0]).__name__} key>]", member[0])
                return False
            level.at = text
            key = _text(text) + b":"
        else:
            level.at = int(level.at) + 1
        self._out.append(key if level.empty else b"," + key)
        level.empty = False
        return True

    def _write(self, source: object) -> None:
        value: Any = source
        for _ in range(MAX_DEPTH):
            kind = type(value)
            if kind is str:
                self._out.append(_text(value))
            elif value is None or kind is bool or kind is UUID or kind is orjson.Fragment:
                self._out.append(orjson.dumps(value))
            elif kind is dict or kind is list or kind is tuple:
                self._open(source, value)
            else:
                value = _attempt(_SCALARS.get(kind, _plainer), value)
                if value is _FAILED:
                    self._out.append(b"null")
                    self._tell(self._path(self._levels), source)
                elif kind in _SCALARS:
                    self._out.append(value)
                else:
                    continue
            return
        raise ValueError(f"the data never comes to an end at {self._path(self._levels)}")

    def _open(self, source: object, value: Any) -> None:
        if id(source) in self._open_ids:
            raise ValueError(f"the data contains itself at {self._path(self._levels)}")
        if len(self._levels) + 1 >= MAX_DEPTH:
            raise ValueError(f"the data nests {MAX_DEPTH} levels or more, at {self._path(self._levels)}")
        is_object = type(value) is dict
        # A copy, made in one step: the program's other threads may change the data while it is walked.
        members = iter(value.copy().items() if is_object else tuple(value))
        self._out.append(b"{" if is_object else b"[")
        self._open_ids.add(id(source))
        self._levels.append(_Level(source, members, is_object))

    def _tell(self, path: str, value: object) -> None:
        if self._report is not None:
            self._report(path, value)

    @staticmethod
    def _path(levels: list[_Level]) -> str:
        path = "$"
        for level in levels:
            if isinstance(level.at, int):
                path += f"[{level.at}]"
            elif _SIMPLE_KEY(level.at):
                path += f".{level.at}"
            else:
                path += f"[{json.dumps(level.at[:_MAX_KEY_CHARS])}]"
            if len(path) > _MAX_PATH_CHARS:
                return path[: _MAX_PATH_CHARS - 1] + "…"
        return path


def _attempt(form: Callable[[Any], Any], value: object) -> Any:
    """Give the form of a value, or ``_FAILED``: values are any objects, and so are the errors of their methods."""
    try:
        return form(value)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - see above
        return _FAILED


def _integer(value: int) -> bytes:
    return int.__repr__(value).encode()  # a ValueError where Python refuses to print so many digits


def _number(value: float) -> bytes:
    return orjson.dumps(value) if isfinite(value) else _no_form(value)


_SCALARS: dict[type, Callable[[Any], bytes]] = {int: _integer, float: _number}
_FAILED = object()


def _text(text: str) -> bytes:
    try:
        return orjson.dumps(text)
    except orjson.JSONEncodeError:  # lone surrogates
        return json.dumps(text).encode()


def _key_text(key: Any) -> str:
    """Write a key as ``json`` does; keys of the types above by their forms. Raises ``_NoForm`` for others."""
    for _ in range(_MAX_KEY_STEPS):
        kind = type(key)
        if kind is str:
            return str(key)
        if key is None or kind is bool:
            return {None: "null", True: "true", False: "false"}[key]
        if kind is int:
            return int.__repr__(key)
        if kind is float:
            return json.dumps(key)
        if isinstance(key, Decimal):
            return Decimal.__str__(key)
        if kind is dict or kind is list or kind is tuple:
            break
        key = str(key) if kind is UUID else _plainer(key)
    _no_form(key)
