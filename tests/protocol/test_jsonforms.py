"""A program's data as JSON: both encoders, every form, every limit."""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import enum
import json
import math
import pathlib
import sys
import threading
import time
import types
import uuid
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infi.ramen_protocol import dump
from infi.ramen_protocol.jsonforms import MAX_DEPTH, _ExactEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator

UTC = dt.UTC
TEXT = st.text(alphabet=st.characters(codec="utf-8"), max_size=20)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
KEYS = TEXT | st.integers() | st.booleans() | st.none() | st.floats()
LOOSE = st.recursive(
    SCALARS | st.integers() | st.floats() | st.text(alphabet=st.characters(codec=None), max_size=5) | st.decimals() | st.datetimes()
    | st.datetimes(timezones=st.timezones()) | st.dates() | st.uuids() | st.binary(max_size=3) | st.timedeltas() | st.complex_numbers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4) | st.tuples(inner, inner)
    | st.lists(inner, max_size=3).map(collections.deque) | st.sets(TEXT | st.integers(), max_size=4),
    max_leaves=20,
)  # fmt: skip


class Colour(enum.Enum):
    RED = "red"
    ONE = 1
    LIST = [1, {2}]  # noqa: RUF012
    NAN = math.nan


class Level(enum.IntEnum):
    HIGH = 3


class Word(enum.StrEnum):
    UP = "up"


class Bit(enum.Flag):
    A = 1
    B = 2


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Disk:
    name: str
    size: int
    _private: object = None
    KIND: Any = dataclasses.field(default="disk", repr=False)


@dataclasses.dataclass(slots=True, frozen=True)
class Slotted:
    at: dt.datetime


class Opaque:
    pass


class Hostile:
    """Fails wherever it is touched."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        raise RuntimeError("no class")

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("no iteration")

    def __len__(self) -> int:
        raise RuntimeError("no length")


class FailingMapping(collections.UserDict[str, int]):
    def items(self) -> Any:
        raise RuntimeError("no items")


def dumped(data: object) -> tuple[str, list[str]]:
    """The text and the paths that were reported."""
    paths: list[str] = []
    return dump(data, on_unserialisable=lambda path, _: paths.append(path)).decode(), paths


@pytest.fixture(params=["UTC", "America/New_York", "Asia/Kolkata"])
def timezone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@given(PLAIN)
def test_plain_data_comes_back_as_it_was(data: object) -> None:
    text, paths = dumped(data)
    assert json.loads(text) == data
    assert paths == []


@given(PLAIN)
def test_both_encoders_make_the_same_text(data: object) -> None:
    assert _ExactEncoder(None).encode(data) == dump(data) == orjson.dumps(data)


@given(LOOSE)
@example({1: [Decimal("1.10"), {math.nan}]})
def test_any_mixture_becomes_valid_json_by_either_encoder(data: object) -> None:
    exact_paths: list[str] = []
    exact = _ExactEncoder(lambda path, _: exact_paths.append(path)).encode(data)
    text, paths = dumped(data)
    assert text.encode() == exact
    assert paths == exact_paths
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@given(
    PLAIN.filter(lambda data: isinstance(data, dict | list)),
    st.sampled_from([math.nan, math.inf, -math.inf, b"x", Opaque()]),
)
def test_one_bad_value_is_found_wherever_it_is_and_nothing_else_changes(data: Any, bad: object) -> None:
    nested = {"a": [None, data, {"b c": (bad, "null")}]}
    text, paths = dumped(nested)
    assert paths == ['$.a[2]["b c"][0]']
    assert json.loads(text) == {"a": [None, data, {"b c": [None, "null"]}]}


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (Decimal("1.10"), "1.10"),
        (Decimal("0.1234567890123456789012345678901234567890"), "0.1234567890123456789012345678901234567890"),
        (Decimal(123456789012345678901234567890), "123456789012345678901234567890"),
        (Decimal("1E+3"), "1E+3"),
        (Decimal("-0"), "-0"),
        (Decimal("1E-400"), "1E-400"),
        (dt.datetime(1970, 1, 1, tzinfo=UTC), "0"),
        (dt.datetime(2020, 1, 2, 3, 4, 5, 678999, tzinfo=UTC), "1577934245678"),
        (dt.datetime(2020, 1, 2, 5, 4, 5, 678999, tzinfo=dt.timezone(dt.timedelta(hours=2))), "1577934245678"),
        (dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), "-1"),
        (dt.datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), "253402300799999"),
        (uuid.UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (Colour.RED, '"red"'),
        (Colour.ONE, "1"),
        (Colour.LIST, "[1,[2]]"),
        (Level.HIGH, "3"),
        (Word.UP, '"up"'),
        (Bit.A | Bit.B, "3"),
        (Point(1, 2), "[1,2]"),
        ((1, (2,), []), "[1,[2],[]]"),
        ({3, 1, 2}, "[1,2,3]"),
        (frozenset("ba"), '["a","b"]'),
        (Disk("sda", 1), '{"name":"sda","size":1,"_private":null,"KIND":"disk"}'),
        (Slotted(dt.datetime(1970, 1, 1, tzinfo=UTC)), '{"at":0}'),
        (pathlib.PurePosixPath("/var/x"), '"/var/x"'),
        (collections.deque([1, 2]), "[1,2]"),
        (collections.OrderedDict(b=1, a=2), '{"b":1,"a":2}'),
        (collections.defaultdict(list, a=[]), '{"a":[]}'),
        (collections.Counter("aab"), '{"a":2,"b":1}'),
        (collections.ChainMap({"a": 1}, {"a": 2}), '{"a":1}'),
        (collections.UserDict(a=1), '{"a":1}'),
        (collections.UserList([1]), "[1]"),
        (collections.UserString("x"), '"x"'),
        (types.MappingProxyType({"a": {1}}), '{"a":[1]}'),
        (range(3), "[0,1,2]"),
        ({"a": 1}.keys(), '["a"]'),
        ({"a": 1}.values(), "[1]"),
        ({"a": 1}.items(), '[["a",1]]'),
        (2**64, "18446744073709551616"),
        ([-(2**63) - 1, 10**40], "[-9223372036854775809,10000000000000000000000000000000000000000]"),
        ("\ud800", '"\\ud800"'),
        ({"\udfff": ["é\udc80"]}, '{"\\udfff":["\\u00e9\\udc80"]}'),
        ("é\u2028\x00\"\\/", '"é\u2028\\u0000\\"\\\\/"'),
        ({1: 1, 1.5: 2, None: 3}, '{"1":1,"1.5":2,"null":3}'),
        ({False: 0, 10**30: 1, math.nan: 2, math.inf: 3}, '{"false":0,"1000000000000000000000000000000":1,"NaN":2,"Infinity":3}'),
        ({Level.HIGH: 1, Word.UP: 2, Colour.RED: 3, Colour.ONE: 4}, '{"3":1,"up":2,"red":3,"1":4}'),
        ({uuid.UUID(int=2): 1, Decimal("1.10"): 2, dt.datetime(1970, 1, 1, tzinfo=UTC): 3, pathlib.PurePosixPath("p"): 4, np.int64(5): 6},
         '{"00000000-0000-0000-0000-000000000002":1,"1.10":2,"0":3,"p":4,"5":6}'),
        ([None, "null", {"null": None}], '[null,"null",{"null":null}]'),
        ([True, False, 0, -0.0, 1e300, 0.1], "[true,false,0,-0.0,1e+300,0.1]"),
    ],
    ids=lambda value: repr(sorted(value) if isinstance(value, frozenset) else value)[:40],
)  # fmt: skip
def test_each_type_has_its_form_and_nothing_is_reported(data: object, text: str) -> None:
    assert dumped(data) == (text, [])
    assert _ExactEncoder(None).encode([data]).decode() == f"[{text}]"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (np.float64(1.5), "1.5"),
        (np.float32(0.5), "0.5"),
        (np.longdouble(1.5), "1.5"),
        (np.int8(-3), "-3"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
        (np.bool_(True), "true"),
        (np.str_("x"), '"x"'),
        (np.array([[1, 2], [3, 4]]), "[[1,2],[3,4]]"),
        (np.array(5), "5"),
        (np.array([]), "[]"),
        (np.array([1.5], dtype=np.longdouble), "[1.5]"),
        (np.array(["a"], dtype=object), '["a"]'),
        (np.datetime64("1970-01-02"), "86400000"),
        (np.datetime64("2020-01-01T00:00:00.123456789"), "1577836800123"),
        (np.array(["1970-01-01T00:00:01"], dtype="M8[ns]"), "[1000]"),
        (np.array([[0, 1]], dtype="M8[s]"), "[[0,1000]]"),
        (np.array([(1, 2)], dtype=[("a", "i4"), ("t", "M8[s]")]), "[[1,2000]]"),
        ({np.str_("k"): np.arange(2)}, '{"k":[0,1]}'),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_numpy_scalars_and_arrays_are_numbers_and_lists(data: object, text: str) -> None:
    assert dumped(data) == (text, [])
    assert _ExactEncoder(None).encode([data]).decode() == f"[{text}]"


@pytest.mark.parametrize(
    ("data", "text", "paths"),
    [
        (math.nan, "null", ["$"]),
        ([1.0, math.inf], "[1.0,null]", ["$[1]"]),
        ({"a": {"b": [-math.inf]}}, '{"a":{"b":[null]}}', ["$.a.b[0]"]),
        ((math.nan,), "[null]", ["$[0]"]),
        ({math.nan}, "[null]", ["$[0]"]),
        (Colour.NAN, "null", ["$"]),
        (Disk("x", math.nan), None, ["$.size"]),
        (collections.OrderedDict(a=math.nan), '{"a":null}', ["$.a"]),
        (np.array([1.0, np.nan]), "[1.0,null]", ["$[1]"]),
        (np.float64("nan"), "null", ["$"]),
        (np.float32("inf"), "null", ["$"]),
        ([Decimal("NaN"), Decimal("sNaN"), Decimal("-Infinity")], "[null,null,null]", ["$[0]", "$[1]", "$[2]"]),
        ({Decimal("sNaN").copy_abs: 1}, "{}", None),
        (b"x", "null", ["$"]),
        ([bytearray(b"x"), memoryview(b"x")], "[null,null]", ["$[0]", "$[1]"]),
        ([dt.timedelta(1), dt.time(1)], "[null,null]", ["$[0]", "$[1]"]),
        ([(x for x in "a"), iter([]), map(str, []), object(), object, Disk, Colour, len, types], None, [f"$[{n}]" for n in range(9)]),
        ([1j, np.complex128(1), np.timedelta64(1, "s"), np.bytes_(b"x"), np.void(b"x")], None, [f"$[{n}]" for n in range(5)]),
        (np.array(["1970-01-01", "NaT"], dtype="M8[ns]"), "[0,null]", ["$[1]"]),
        (np.array([1], dtype="m8[s]"), "[null]", ["$[0]"]),
        ([Hostile(), FailingMapping()], "[null,null]", ["$[0]", "$[1]"]),
        (pathlib.PurePosixPath, "null", ["$"]),
        ([10**5000], "[null]", ["$[0]"]),
        ({(1, 2): 1, b"k": 2, "ok": 3, frozenset(): 4}, '{"ok":3}', ["$[<tuple key>]", "$[<bytes key>]", "$[<frozenset key>]"]),
        ({"a": [{"x": 1, Opaque: 2}]}, '{"a":[{"x":1}]}', ["$.a[0][<type key>]"]),
        ({"odd key": b"", "\x1b[1m": b"", "": b"", "0": b""}, None, ['$["odd key"]', '$["\\u001b[1m"]', '$[""]', '$["0"]']),
        ({1: b""}, '{"1":null}', ['$["1"]']),
        ([None, math.nan, None], "[null,null,null]", ["$[1]"]),
    ],
    ids=lambda value: None if isinstance(value, list) else str(type(value).__name__),
)  # fmt: skip
def test_what_has_no_form_is_null_and_reported_by_path(
    data: object, text: str | None, paths: list[str] | None
) -> None:
    got, reported = dumped(data)
    json.loads(got)
    assert text is None or got == text
    assert paths is None or reported == paths
    assert dump(data).decode() == got, "the report changes nothing"


def test_the_report_brings_the_value_itself() -> None:
    value = Opaque()
    seen: list[tuple[str, object]] = []
    dump({"a": value}, on_unserialisable=lambda path, bad: seen.append((path, bad)))
    assert seen == [("$.a", value)]


def test_an_error_that_the_report_raises_comes_out_of_dump() -> None:
    def refuse(path: str, value: object) -> None:
        raise TypeError(f"{type(value).__name__} at {path}")

    with pytest.raises(TypeError, match=r"^bytes at \$\.a$") as caught:
        dump({"a": b""}, on_unserialisable=refuse)
    assert caught.value.__context__ is None
    with pytest.raises(TypeError, match=r"^tuple at "):
        dump({(): 1}, on_unserialisable=refuse)


def test_a_long_path_is_cut() -> None:
    deep: object = b""
    for _ in range(50):
        deep = {"k" * 1000: deep}
    _, (path,) = dumped(deep)
    assert len(path) <= 300
    assert path.endswith("…")


def naive_milliseconds(value: dt.datetime | dt.date) -> int:
    """What 1.x wrote, by its own formula."""
    microsecond = getattr(value, "microsecond", 0)
    return int(time.mktime(value.timetuple()) * 1000 + microsecond / 1000)


def test_naive_times_are_local_and_dates_are_their_local_midnight(timezone: str) -> None:
    for value in (
        dt.datetime(2024, 7, 1, 12, 30, 15, 250_000),
        dt.datetime(2024, 1, 1),
        dt.date(2024, 7, 1),
        dt.date(1970, 1, 1),
    ):
        assert dumped(value) == (str(naive_milliseconds(value)), [])


def test_aware_times_are_the_instant_that_they_name(timezone: str) -> None:
    instant = dt.datetime(2024, 7, 1, 12, tzinfo=dt.timezone(dt.timedelta(hours=-5)))
    assert dump(instant) == b"1719853200000"


def test_a_time_that_cannot_be_placed_is_reported(timezone: str) -> None:
    class NoOffset(dt.tzinfo):
        def utcoffset(self, _: dt.datetime | None) -> None:
            return None

    odd = dt.datetime(2024, 7, 1, 12, tzinfo=NoOffset())
    assert dump(odd) == str(naive_milliseconds(odd.replace(tzinfo=None))).encode(), "no offset means naive"
    text, paths = dumped([dt.datetime.min, dt.datetime.max])  # some zones can place them, none may fail
    assert len(json.loads(text)) == 2
    assert len(paths) <= 2


def nested(levels: int, wrap: Any = lambda inner: [inner]) -> Any:
    data: Any = wrap(0)
    for _ in range(levels - 1):
        data = wrap(data)
    return data


WRAPS = {
    "list": lambda inner: [inner],
    "dict": lambda inner: {"k": inner},
    "tuple": lambda inner: (inner,),
    "deque": lambda inner: collections.deque([inner]),
    "dataclass": lambda inner: Disk("d", inner),
    "int keys": lambda inner: {1: inner},
    "proxy": lambda inner: types.MappingProxyType({"k": inner}),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("levels", [100, 253, 254, 255, 256, 500, MAX_DEPTH - 1])
def test_data_may_nest_as_deep_as_json_readers_go(levels: int, wrap: Any) -> None:
    text = dump(nested(levels, wrap))
    assert text.count(b"[") + text.count(b"{") == levels
    orjson.loads(text)


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("levels", [MAX_DEPTH, 5000])
def test_deeper_data_is_a_value_error(levels: int, wrap: Any) -> None:
    with pytest.raises(ValueError, match="nests 1000 levels or more, at"):
        dump(nested(levels, wrap))


def test_a_hundred_thousand_levels_do_not_overflow_the_stack() -> None:
    with pytest.raises(ValueError, match="nests"):
        dump(nested(100_000))


def test_tuples_never_nest_deep_inside_orjson() -> None:
    """It does not count their levels: this test ends the process when they do."""

    class Deep(enum.Enum):
        ONE = nested(5000, WRAPS["tuple"])

    circle: list[Any] = []
    circle.append(((circle,),))
    turns = [nested(998, WRAPS["tuple"]), {"k": nested(200, lambda inner: ((inner,),))}]
    turns += [collections.deque([turn]) for turn in turns]
    boxed = np.empty((), dtype=object)
    boxed[()] = nested(5000, WRAPS["tuple"])
    for data in (
        boxed,
        circle,
        Deep.ONE,
        [Deep.ONE],
        {"a": [Deep.ONE]},
        collections.deque([circle]),
        {1: circle},
    ):
        with pytest.raises(ValueError, match=r"nests 1000 levels or more|contains itself"):
            dump(data)
    for data in turns:
        orjson.loads(dump(data))
    with pytest.raises(ValueError, match="nests 1000 levels"):
        dump(nested(400, lambda inner: collections.deque([((inner,), 1)])))


def test_data_that_another_thread_changes_is_written_as_it_was_at_some_moment() -> None:
    data: dict[str, Any] = {str(n): [n] for n in range(3000)} | {"none": None}
    stopped = threading.Event()

    def change() -> None:
        while not stopped.is_set():
            for n in range(3000, 3100):
                data[str(n)] = [n]
            for n in range(3000, 3100):
                del data[str(n)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(50):
            assert orjson.loads(dump(data))["2999"] == [2999]
    finally:
        stopped.set()
        thread.join()
        sys.setswitchinterval(interval)


def test_data_that_contains_itself_is_a_value_error() -> None:
    circle: list[Any] = [1]
    circle.append({"x": circle})
    mapping: collections.UserDict[str, Any] = collections.UserDict()
    mapping["m"] = [mapping]
    record = Disk("d", 0)
    record._private = {1: record}
    array = np.empty(1, dtype=object)
    array[0] = array
    for data in (circle, mapping, record, array):
        with pytest.raises(ValueError, match=r"contains itself at \$"):
            dump(data)


def test_data_that_grows_while_it_is_walked_is_a_value_error() -> None:
    class Endless(collections.UserDict[str, Any]):
        def items(self) -> Any:
            return [("k", Endless())]

    class Nut:
        """An enum's value that is again such a thing, for ever."""

    class Shell(enum.Enum):
        ONE = Nut()

    Shell.ONE._value_ = Shell.ONE
    with pytest.raises(ValueError, match="nests"):
        dump(Endless())
    with pytest.raises(ValueError, match=r"never comes to an end at \$\[0\]"):
        dump([Shell.ONE])


def test_the_same_object_may_stand_in_several_places() -> None:
    shared = [b"", ()]
    text, paths = dumped([shared, shared, {"a": shared}, (), ()])
    assert text == '[[null,[]],[null,[]],{"a":[null,[]]},[],[]]'
    assert paths == ["$[0][0]", "$[1][0]", "$[2].a[0]"]


def test_subclasses_count_by_what_they_are_not_by_how_they_show_themselves() -> None:
    class Loud(str):
        __slots__ = ()

        def __str__(self) -> str:
            return "LOUD"

    class Odd(int):
        def __repr__(self) -> str:
            return "odd"

    class Ratio(float):
        def __repr__(self) -> str:
            return "ratio"

    class Lazy(dict[str, int]):
        def items(self) -> Any:
            return [("lazy", 1)]

    for data in ([Loud("x"), Odd(3), Ratio(0.5), Lazy()], [Loud("x"), Odd(3), Ratio(0.5), Lazy(), {1: 1}]):
        assert dump(data).startswith(b'["x",3,0.5,{"lazy":1}')
    assert dump({Loud("k"): 1, Odd(2): 2}) == b'{"k":1,"2":2}'


def test_an_interrupt_while_data_is_read_is_not_swallowed() -> None:
    class Interrupting(collections.UserDict[str, int]):
        def items(self) -> Any:
            if not interrupts:
                return []
            raise interrupts.pop()

    interrupts = [KeyboardInterrupt(), KeyboardInterrupt()]
    with pytest.raises(KeyboardInterrupt):
        dump([Interrupting()])
    with pytest.raises(KeyboardInterrupt):
        dump({1: Interrupting()})


def test_memory_that_runs_out_is_not_a_value_without_a_form() -> None:
    class Huge(collections.UserDict[str, int]):
        def items(self) -> Any:
            raise MemoryError

    with pytest.raises(MemoryError):
        dump([Huge()])


def test_a_fragment_of_json_is_taken_as_it_is_by_both_encoders() -> None:
    assert dump([orjson.Fragment(b"1.0"), 1]) == b"[1.0,1]"
    assert dump({1: orjson.Fragment("[ ]")}) == b'{"1":[ ]}'


def test_plain_data_takes_the_fast_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with None, Decimal, datetime and UUID in it; only what must be reported or rewritten goes the other."""
    monkeypatch.setattr(_ExactEncoder, "encode", lambda *_: pytest.fail("the exact encoder was used"))
    now = dt.datetime.now(UTC)
    dump(
        {
            "a": [None, 1, 0.5, "x"],
            "b": {"c": None},
            "d": Decimal("1.1"),
            "e": now,
            "f": uuid.uuid4(),
            "g": now.date(),
            "h": (None,),
        }
    )
    dump(
        {
            "a": {1, 2},
            "b": Colour.RED,
            "c": np.arange(3),
            "d": Disk("x", 1, 2),
            "e": collections.OrderedDict(a=1),
        }
    )
