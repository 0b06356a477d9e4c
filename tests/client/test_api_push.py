"""api-1x.md, `infi.ramen_client.queue_writer`: what push takes, refuses and keeps, up to what the server receives."""

from __future__ import annotations

import enum
import json
import logging
import os
import sqlite3
import threading
import uuid
import zlib
from collections import deque, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client.errors import (
    InvalidMessage,
    MessageTooLarge,
    QueueClosed,
    QueueError,
    ValidationError,
)
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import DEFAULT_TOKEN

if TYPE_CHECKING:
    from collections.abc import Callable

    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_reader import QueueReader
    from infi.ramen_client.testing import RamenServer, Received

    MakeConfig = Callable[..., QueueReaderConfig]
    OpenWriter = Callable[..., QueueWriter]


@pytest.fixture
def delivered(server: RamenServer, writer: QueueWriter, reader: QueueReader) -> Callable[[], list[Received]]:
    """Deliver what waits; everything that the server accepted so far."""

    def deliver() -> list[Received]:
        reader.run(blocking=False)
        assert writer.queue_size() == 0
        return server.accepted

    return deliver


# The queue


def test_the_queues_directory_and_file_exist_once_a_writer_is_built(
    config: QueueReaderConfig, queue_dir: Path
):
    config.queue_dir = str(queue_dir / "deeper" / "still")

    with QueueWriter(config):
        assert (queue_dir / "deeper" / "still" / "imx_1099.db").is_file()


def test_a_writer_takes_a_config_alone(fields: dict[str, Any]):
    for wrong in (None, fields, "imx"):
        with pytest.raises(AssertionError):
            QueueWriter(wrong)  # type: ignore[arg-type]


def test_a_writer_validates_its_config_when_it_is_built(config: QueueReaderConfig, queue_dir: Path):
    config.sender = "a b"

    with pytest.raises(ValidationError, match="sender"):
        QueueWriter(config)
    assert not queue_dir.exists()


def test_queue_size_is_a_count_not_bytes_whoever_pushed(open_writer: OpenWriter):
    first, second = open_writer(), open_writer()
    assert first.queue_size() == 0

    first.push("metrics", "x", "v1", "x" * 10_000)
    second.push("metrics", "x", "v1", {})

    assert first.queue_size() == second.queue_size() == 2


def test_senders_and_serials_have_queues_of_their_own_in_one_directory(
    make_config: MakeConfig, open_writer: OpenWriter, queue_dir: Path
):
    a = open_writer(make_config(sender="a"))
    b = open_writer(make_config(sender="a", system_serial=0))
    a.push("metrics", "x", "v1", {})

    assert (a.queue_size(), b.queue_size()) == (1, 0)
    assert {path.name for path in queue_dir.glob("*.db")} == {"a_1099.db", "a_0.db"}


def test_several_writers_and_threads_may_use_one_queue(open_writer: OpenWriter, delivered: Any):
    writers = [open_writer() for _ in range(3)]
    reqids: list[str] = []

    def push(writer: QueueWriter, number: int) -> None:
        reqids.extend(writer.push("metrics", f"thread{number}", "v1", {"n": n}) for n in range(20))

    threads = [threading.Thread(target=push, args=(writers[n % 3], n)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    arrived = delivered()
    assert sorted(message.reqid for message in arrived) == sorted(reqids)
    for number in range(6):  # each thread's messages in their order
        mine = [m.json()["n"] for m in arrived if m.envelope.data_type == f"thread{number}"]
        assert mine == list(range(20))


def test_a_writer_closes_at_the_end_of_with_and_pushing_afterwards_raises(config: QueueReaderConfig):
    with QueueWriter(config) as writer:
        writer.push("metrics", "x", "v1", {})
    writer.close()  # again: harmless

    with pytest.raises(QueueClosed):
        writer.push("metrics", "x", "v1", {})
    with QueueWriter(config) as again:
        assert again.queue_size() == 1  # what was pushed stays


def test_closing_one_writer_leaves_the_others_of_its_queue_alone(open_writer: OpenWriter):
    first, second = open_writer(), open_writer()

    first.close()
    second.push("metrics", "x", "v1", {})

    assert second.queue_size() == 1


def test_a_file_of_another_program_is_left_alone(config: QueueReaderConfig, queue_dir: Path):
    queue_dir.mkdir()
    foreign = queue_dir / "imx_1099.db"
    foreign.write_bytes(b"my diary, not a database " * 100)

    with pytest.raises(QueueError, match="imx_1099"):
        QueueWriter(config)
    assert foreign.read_bytes() == b"my diary, not a database " * 100


# Names and versions


@pytest.mark.parametrize("name", ["a", "A-Z_a-z-0-9", "-", "_", "0", "n" * 255])
def test_names_of_letters_digits_dashes_and_underscores_arrive_as_they_are(
    writer: Any, delivered: Any, name: str
):
    writer.push(name, name, name, {})

    (message,) = delivered()
    envelope = message.envelope
    assert (envelope.category, envelope.data_type, envelope.data_version) == (name, name, name)
    assert (envelope.system_serial, envelope.sender) == (1099, "imx")


HOSTILE_NAMES = [
    None,
    "",
    " ",
    "a b",
    "a\n",
    "\na",
    "a\r\n",
    "a/b",
    "../a",
    "a.b",
    "a?b",
    "a&b",
    "a%41",
    "a\0b",
    "é",
    "٣",
    "\ud800",
    "a" * 100_000 + "!",
    b"a",
    ["a"],
    {"a": 1},
    1.5,
    True,
    False,
    object(),
]


@pytest.mark.parametrize("bad", HOSTILE_NAMES, ids=lambda bad: repr(bad)[:20])
@pytest.mark.parametrize("where", ["category", "data_type", "data_version"])
def test_any_other_name_is_an_assertion_error_at_push_and_nothing_is_stored(
    writer: Any, bad: object, where: str
):
    arguments = {"category": "metrics", "data_type": "x", "data_version": "v1", "data": {}} | {where: bad}

    with pytest.raises(AssertionError, match=where) as caught:
        writer.push(**arguments)

    assert isinstance(caught.value, InvalidMessage)
    assert isinstance(caught.value, ValueError)
    assert len(str(caught.value)) < 1000
    assert writer.queue_size() == 0


@pytest.mark.parametrize("where", ["category", "data_type"])
def test_a_number_is_no_category_and_no_data_type(writer: Any, where: str):
    arguments: dict[str, Any] = {"category": "metrics", "data_type": "x", "data_version": "v1", "data": {}}
    for bad in (1, 10**5000):
        with pytest.raises(AssertionError, match=where):
            writer.push(**arguments | {where: bad})


@pytest.mark.parametrize(
    "version", [0, 1, -1, 2**31, 2**63 - 1, "0", "1", "01", "1e3", "0x10", "v1", "-1", "1_000"]
)
def test_int_versions_stay_ints_and_text_versions_stay_text(writer: Any, delivered: Any, version: str | int):
    writer.push("metrics", "x", version, {})
    item = writer._queue.peek()

    assert item["data_version"] == version
    assert type(item["data_version"]) is type(version)
    (message,) = delivered()
    assert message.envelope.data_version == str(version)


@pytest.mark.parametrize(
    "version", [2**63, -(2**63), 10**30, 10**5000], ids=["2^63", "-2^63", "10^30", "10^5000"]
)
def test_an_int_version_beyond_64_bits_is_refused_with_a_way_out(writer: Any, delivered: Any, version: int):
    with pytest.raises(InvalidMessage, match="as text"):
        writer.push("metrics", "x", version, {})
    assert writer.queue_size() == 0

    writer.push("metrics", "x", "9" * 100, {})
    assert delivered()[0].envelope.data_version == "9" * 100


class Category(str, enum.Enum):  # noqa: UP042 - unlike a StrEnum it writes itself as "Category.EVENTS"
    EVENTS = "events"


class Version(int, enum.Enum):
    FIRST = 1


class Loud(str):  # noqa: SLOT000
    def __str__(self) -> str:
        return "LOUD"

    def __format__(self, spec: str) -> str:
        return "LOUD"


def test_a_name_that_was_pushed_before_opens_no_door_to_one_that_is_only_equal_to_it(writer: Any):
    class Chameleon(str):
        """Equal to what was pushed before, and none of it."""

        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return hash("cat")

    writer.push("cat", "type", 1, {})
    for names in (("cat", "type", True), ("cat", "type", 1.0), (Chameleon("a/b"), "type", 1)):
        with pytest.raises(InvalidMessage):
            writer.push(*names, {})
    assert writer.queue_size() == 1


def test_enum_members_and_subclasses_of_text_and_int_count_as_what_they_are(writer: Any, delivered: Any):
    writer.push(Category.EVENTS, Loud("quiet"), Version.FIRST, {}, reqid=Loud("id"))
    writer.push("metrics", "x", Loud("v2"), {})

    first, second = delivered()
    assert first.path == "/ramen/v1/events/1099/imx.quiet.1/"
    assert first.reqid == "id"
    assert second.envelope.data_version == "v2"


# system_version


def test_system_version_belongs_to_the_message_from_push_on(
    make_config: MakeConfig, open_writer: OpenWriter, open_reader: Any, server: RamenServer
):
    open_writer(make_config(system_version="3.0")).push("metrics", "x", "v1", {})
    upgraded = make_config(system_version="4.0")
    open_writer(upgraded).push("metrics", "x", "v1", {})

    open_reader(upgraded).run(blocking=False)

    assert [message.envelope.system_version for message in server.accepted] == ["3.0", "4.0"]


def test_an_assigned_system_version_counts_from_the_next_push_on(
    config: QueueReaderConfig, writer: Any, delivered: Any
):
    writer.push("metrics", "x", "v1", {})
    config.system_version = "4.0"
    writer.push("metrics", "x", "v1", {})
    config.system_version = "4.0 beta\n"
    with pytest.raises(ValidationError, match="system_version"):
        writer.push("metrics", "x", "v1", {})

    assert [message.envelope.system_version for message in delivered()] == ["3.0.0.1", "4.0"]


# reqid


@pytest.mark.parametrize(
    "reqid",
    ["a&b", "x&reqid=y", "a b+c%20d", "ünï-😀", "\n", "\0", "#?/", "None", "r" * 2048, "é" * 1024],
    ids=lambda reqid: ascii(reqid)[:20],
)
def test_any_text_is_a_reqid_and_arrives_as_it_is(writer: Any, delivered: Any, reqid: str):
    assert writer.push("metrics", "x", "v1", {}, reqid=reqid) == reqid
    assert writer._queue.peek()["reqid"] == reqid

    (message,) = delivered()
    assert message.reqid == reqid
    assert message.target.count("reqid=") == 1


@pytest.mark.parametrize(
    ("reqid", "text"),
    [
        (0, "0"),
        (-7, "-7"),
        (10**40, "1" + "0" * 40),
        (
            uuid.UUID("12345678-1234-5678-1234-567812345678"),
            "12345678-1234-5678-1234-567812345678",
        ),
    ],
)
def test_a_reqid_may_be_an_int_or_a_uuid(writer: Any, delivered: Any, reqid: Any, text: str):
    assert writer.push("metrics", "x", "v1", {}, reqid) == text
    assert delivered()[0].reqid == text


def test_an_empty_reqid_counts_as_none_given_as_in_1x(writer: Any, delivered: Any):
    made = writer.push("metrics", "x", "v1", {}, reqid="")
    assert len(made) == 36
    assert delivered()[0].reqid == made


@pytest.mark.parametrize(
    "reqid",
    ["r" * 2049, "é" * 1025, "\ud800", 10**5000, True, 1.5, b"a", ["a"], object()],
    ids=["long", "long-bytes", "surrogate", "huge", "bool", "float", "bytes", "list", "object"],
)
def test_a_reqid_that_is_too_long_or_no_text_is_a_clear_error_and_nothing_is_stored(writer: Any, reqid: Any):
    with pytest.raises(InvalidMessage, match="reqid"):
        writer.push("metrics", "x", "v1", {}, reqid=reqid)
    assert writer.queue_size() == 0


def test_a_message_without_a_reqid_gets_one_that_is_unique_for_ever(
    config: QueueReaderConfig, server: RamenServer, open_reader: Any, queue_dir: Path
):
    import shutil

    reqids = []
    for _ in range(3):  # a directory made anew starts its row numbers again, but not its reqids
        with QueueWriter(config) as writer:
            reqids += [writer.push("metrics", "x", "v1", {}) for _ in range(10)]
        with open_reader() as reader:
            reader.run(blocking=False)
        shutil.rmtree(queue_dir)

    assert len(set(reqids)) == 30
    assert all(uuid.UUID(reqid).version == 7 for reqid in reqids)
    assert len(server.accepted) == 30
    assert not server.duplicates


def test_two_messages_may_have_one_reqid_and_the_server_decides(
    writer: Any, reader: Any, server: RamenServer
):
    writer.push("metrics", "x", "v1", {"n": 1}, reqid="same")
    writer.push("metrics", "x", "v1", {"n": 2}, reqid="same")

    assert reader.run(blocking=False) == 2
    assert [message.json()["n"] for message in server.accepted] == [1]
    assert [message.json()["n"] for message in server.duplicates] == [2]


# Payloads

Point = namedtuple("Point", "x y")


@dataclass
class Disk:
    name: str
    size: int


class Color(enum.Enum):
    RED = "red"


BERLIN = timezone(timedelta(hours=1))
LOCAL = datetime(2024, 2, 3, 4, 5, 6, 789_000)

FORMS = [
    ({"a": [1, 2.5, "ü", None, True]}, {"a": [1, 2.5, "ü", None, True]}),
    ([], []),
    (0, 0),
    (None, None),
    (False, False),
    ({"n": 2**70, "m": -(2**64)}, {"n": 2**70, "m": -(2**64)}),
    (Decimal("1.5"), 1.5),
    (Decimal(10**30), 10**30),
    (datetime(2024, 1, 1, tzinfo=UTC), 1_704_067_200_000),
    (datetime(2024, 1, 1, 1, tzinfo=BERLIN), 1_704_067_200_000),
    (LOCAL, int(LOCAL.timestamp() * 1000)),
    (date(2024, 2, 3), int(datetime(2024, 2, 3).timestamp() * 1000)),
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (Color.RED, "red"),
    (Disk("sda", 5), {"name": "sda", "size": 5}),
    (Point(1, 2), [1, 2]),
    ((1, 2), [1, 2]),
    ({3, 1, 2}, [1, 2, 3]),
    (frozenset("a"), ["a"]),
    (deque([1, 2]), [1, 2]),
    (PurePosixPath("/var/x"), "/var/x"),
    ({1: "a", None: "b", False: "c"}, {"1": "a", "null": "b", "false": "c"}),
    ({"a": [{"b": (Decimal(1), {Color.RED})}]}, {"a": [{"b": [1, ["red"]]}]}),
]


@pytest.mark.parametrize(("data", "form"), FORMS, ids=lambda value: repr(value)[:30])
def test_the_usual_types_of_a_python_program_arrive_in_a_sensible_form(
    writer: Any, delivered: Any, data: object, form: object
):
    writer.push("metrics", "x", "v1", data)

    (message,) = delivered()
    assert message.json() == form
    assert writer.unserialisable_count == 0


def test_a_decimal_is_a_json_number_with_its_digits(writer: Any, delivered: Any):
    writer.push("metrics", "x", "v1", {"price": Decimal("0.1000000000000000000001")})

    assert b"0.1000000000000000000001" in delivered()[0].payload


def test_numpy_scalars_and_arrays_arrive_as_numbers(writer: Any, delivered: Any):
    numpy = pytest.importorskip("numpy")
    writer.push("metrics", "x", "v1", {"a": numpy.arange(3), "b": numpy.float32(0.5), "c": numpy.int64(7)})

    assert delivered()[0].json() == {"a": [0, 1, 2], "b": 0.5, "c": 7}


def test_text_and_bytes_are_taken_as_json_already(writer: Any, delivered: Any):
    writer.push("metrics", "x", "v1", '{"ü" : 1 }')
    writer.push("metrics", "x", "v1", b'{"ready":true}')

    assert [message.payload for message in delivered()] == ['{"ü" : 1 }'.encode(), b'{"ready":true}']


@pytest.mark.parametrize("text", ["", "{", "nonsense", "NaN", b"\xff\xfe", b"\0"])
def test_invalid_json_text_is_not_checked_and_kept_as_a_dead_letter_when_the_server_refuses_it(
    writer: Any, reader: Any, server: RamenServer, text: str | bytes
):
    writer.push("metrics", "x", "v1", text)
    writer.push("metrics", "x", "v1", {"after": "it"})

    assert reader.run(blocking=False) == 2
    assert [message.json() for message in server.accepted] == [{"after": "it"}]
    (dead,) = writer._store.dead_letters()
    assert zlib.decompress(dead.message.data) == (text if isinstance(text, bytes) else text.encode())
    assert dead.death.status == 400


def test_text_with_lone_surrogates_is_refused_since_utf_8_cannot_express_it(writer: Any):
    with pytest.raises(InvalidMessage, match="surrogates"):
        writer.push("metrics", "x", "v1", '"\ud800"')
    assert writer.queue_size() == 0


def test_lone_surrogates_inside_data_arrive_escaped_as_json_does(writer: Any, delivered: Any):
    writer.push("metrics", "x", "v1", {"a\udfff": "\ud800"})

    assert delivered()[0].json() == {"a\udfff": "\ud800"}


def test_two_megabytes_arrive_intact(writer: Any, delivered: Any):
    data = {"noise": [uuid.uuid4().hex for _ in range(60_000)]}
    assert len(json.dumps(data)) > 2_000_000
    writer.push("metrics", "x", "v1", data)

    assert delivered()[0].json() == data


def test_a_two_megabyte_text_of_one_letter_arrives_intact(writer: Any, delivered: Any):
    text = '"' + "a" * 2_000_000 + '"'
    writer.push("metrics", "x", "v1", text)

    assert delivered()[0].payload == text.encode()


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError("no repr either")


@pytest.mark.parametrize(
    ("odd", "path"),
    [
        ({"a": [0, {"b": Odd()}]}, "$.a[1].b"),
        ({"a": float("nan")}, "$.a"),
        ({"a": float("inf")}, "$.a"),
        ({"a": Decimal("NaN")}, "$.a"),
        ({"a": b"bytes"}, "$.a"),
        ({"a": timedelta(1)}, "$.a"),
        ([1, -float("inf")], "$[1]"),
        (Odd(), "$"),
    ],
    ids=["object", "nan", "inf", "decimal-nan", "bytes", "timedelta", "in-list", "top"],
)
def test_what_json_cannot_express_becomes_null_counted_and_logged_once_for_each_path(
    writer: Any, delivered: Any, caplog: pytest.LogCaptureFixture, odd: Any, path: str
):
    for _ in range(3):
        writer.push("metrics", "x", "v1", odd)

    assert writer.unserialisable_count == 3
    said = [record.getMessage() for record in caplog.records if "null" in record.getMessage()]
    assert len(said) == 1
    assert f" {path}," in said[0]
    assert "metrics/x" in said[0]
    payloads = {message.payload for message in delivered()}
    assert len(payloads) == 1
    assert b"null" in payloads.pop()


def test_another_path_or_stream_is_logged_by_itself(writer: Any, caplog: pytest.LogCaptureFixture):
    writer.push("metrics", "x", "v1", {"a": Odd(), "b": Odd()})
    writer.push("metrics", "y", "v1", {"a": Odd()})

    assert writer.unserialisable_count == 3
    assert len(caplog.records) == 3


def test_ten_levels_of_odd_types_arrive_with_the_odd_ones_null(writer: Any, delivered: Any):
    data: Any = Odd()
    form: Any = None
    for level in range(10):
        kind = level % 5
        data = [{"d": data}, [data], (data,), deque([data]), Disk("n", data)][kind]
        form = [{"d": form}, [form], [form], [form], {"name": "n", "size": form}][kind]
    writer.push("metrics", "x", "v1", data)

    assert delivered()[0].json() == form
    assert writer.unserialisable_count == 1


def test_unserialisable_raise_makes_it_a_type_error_that_names_the_path(
    make_config: MakeConfig, open_writer: OpenWriter
):
    writer = open_writer(make_config(unserialisable="raise"))

    for odd in (Odd(), float("nan"), b"x"):
        with pytest.raises(TypeError, match=r"\$\.a\[1\]"):
            writer.push("metrics", "x", "v1", {"a": [0, odd]})
    assert writer.queue_size() == 0
    writer.push("metrics", "x", "v1", {"a": [0, None]})


def test_data_that_contains_itself_or_nests_too_deep_is_refused(writer: Any):
    circle: list[Any] = []
    circle.append(circle)
    deep: Any = []
    for _ in range(5000):
        deep = [deep]

    for data in (circle, deep):
        with pytest.raises(InvalidMessage, match="serialised"):
            writer.push("metrics", "x", "v1", data)
    assert writer.queue_size() == 0


# Bounds


def test_a_message_larger_than_max_message_bytes_is_refused(make_config: MakeConfig, open_writer: OpenWriter):
    writer = open_writer(make_config(max_message_bytes=1000))
    writer.push("metrics", "x", "v1", "x" * 1000)

    with pytest.raises(MessageTooLarge, match="1001 bytes"):
        writer.push("metrics", "x", "v1", "x" * 1001)
    assert writer.queue_size() == 1


def test_a_message_larger_than_the_whole_queue_is_refused_and_throws_nothing_away(
    make_config: MakeConfig, open_writer: OpenWriter
):
    writer = open_writer(make_config(max_queue_size=10 * 1024))
    writer.push("metrics", "x", "v1", "{}")

    with pytest.raises(AssertionError):
        writer.push("metrics", "x", "v1", "x" * (10 * 1024 + 1))
    assert writer.queue_size() == 1
    assert writer._queue.peek()["data"] == zlib.compress(b"{}")


def test_a_queue_of_10_kib_keeps_the_newest_and_says_what_it_threw_away(
    make_config: MakeConfig, open_writer: OpenWriter, open_reader: Any, server: RamenServer, caplog: Any
):
    config = make_config(max_queue_size=10 * 1024)
    writer = open_writer(config)
    for number in range(100):
        writer.push("metrics", "x", "v1", {"n": number, "noise": [uuid.uuid4().hex for _ in range(20)]})

    waiting = writer.queue_size()
    assert 1 <= waiting < 100
    assert "thrown away" in caplog.text
    open_reader(config).run(blocking=False)
    assert [message.json()["n"] for message in server.accepted] == list(range(100 - waiting, 100))
    books = writer._store.books()
    assert (books.pushed, books.trimmed, books.accepted) == (100, 100 - waiting, waiting)
    assert books.difference() == 0


# push_many


def test_push_many_stores_messages_in_one_transaction_and_returns_their_reqids_in_order(
    writer: Any, delivered: Any
):
    reqids = writer.push_many(
        [
            ("metrics", "x", "v1", {"n": 0}),
            ("events", "y", 2, {"n": 1}, "mine"),
            ("metrics", "x", "v1", {"n": 2}, None),
        ]
    )

    assert reqids[1] == "mine"
    arrived = delivered()
    assert [message.json()["n"] for message in arrived] == [0, 1, 2]
    assert [message.reqid for message in arrived] == reqids


def test_push_many_takes_any_iterable_also_an_empty_one(writer: Any):
    assert len(writer.push_many(("metrics", "x", "v1", n) for n in range(5))) == 5
    assert writer.push_many([]) == []
    assert writer.queue_size() == 5


def test_push_many_stores_all_or_none(writer: Any):
    with pytest.raises(InvalidMessage):
        writer.push_many([("metrics", "x", "v1", {}), ("bad name", "x", "v1", {})])

    def ends_badly() -> Any:
        yield ("metrics", "x", "v1", {})
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source"):
        writer.push_many(ends_badly())
    assert writer.queue_size() == 0


# wait_sent


def test_wait_sent_is_true_once_everything_pushed_before_has_met_its_fate(
    writer: Any, reader: Any, server: RamenServer, in_background: Any
):
    for _ in range(5):
        writer.push("metrics", "x", "v1", {})
    assert writer.wait_sent(0) is False
    running = in_background(reader.run)

    assert writer.wait_sent(10) is True
    assert len(server.accepted) == 5
    reader.stop()
    running.join()


def test_wait_sent_is_false_when_the_time_passed_first(writer: Any):
    writer.push("metrics", "x", "v1", {})

    assert writer.wait_sent(0.05) is False


def test_wait_sent_does_not_wait_for_what_is_pushed_after_it_began(
    writer: Any, reader: Any, server: RamenServer, in_background: Any, wait_until: Any
):
    from infi.ramen_client.testing import Accept, Status

    writer.push("metrics", "x", "v1", {"n": 0})
    waiting = in_background(writer.wait_sent)
    server.default = lambda message: Accept() if message.json()["n"] == 0 else Status(503)
    wait_until(lambda: waiting.running)
    writer.push("metrics", "x", "v1", {"n": 1})
    running = in_background(reader.run)

    assert waiting.join() is True
    assert writer.queue_size() == 1
    reader.stop()
    running.join()


def test_wait_sent_of_an_empty_queue_is_true_at_once(writer: Any):
    assert writer.wait_sent() is True


# The `_queue` of 1.x programs' tests


def test_the_old_queue_pops_the_oldest_item_or_none(writer: Any):
    assert writer._queue.pop() is None
    assert writer._queue.peek() is None
    assert len(writer._queue) == 0
    writer.push("metrics", "x", 5, {"a": 1}, reqid="mine")
    writer.push("events", "y", "01", '{"b":2}')
    assert len(writer._queue) == 2

    assert writer._queue.peek()["category"] == "metrics"
    first, second = writer._queue.pop(), writer._queue.pop()

    assert (first["category"], first["data_type"], first["data_version"], first["reqid"]) == (
        "metrics",
        "x",
        5,
        "mine",
    )
    assert first["data_version"] != "5"
    assert second["data_version"] == "01"
    assert second["data_version"] != 1
    assert second["reqid"] is None
    assert zlib.decompress(first["data"]) == b'{"a":1}'
    assert zlib.decompress(second["data"]) == b'{"b":2}'
    assert len(writer._queue) == 0
    assert writer.queue_size() == 0


def test_what_the_old_queue_pushes_is_delivered(writer: Any, delivered: Any):
    writer._queue.push("metrics", "x", "v1", zlib.compress(b'{"a":1}'), "mine")
    writer._queue.push("metrics", "x", 3, zlib.compress(b"[]"))

    first, second = delivered()
    assert (first.json(), first.reqid) == ({"a": 1}, "mine")
    assert (second.json(), second.envelope.data_version) == ([], "3")


def test_the_old_queue_refuses_what_is_no_zlib_stream(writer: Any):
    for data in (b"", b"plain", zlib.compress(b"x")[:-1], zlib.compress(b"x") + b"y"):
        with pytest.raises(AssertionError):
            writer._queue.push("metrics", "x", "v1", data)
    assert len(writer._queue) == 0


def test_what_the_old_queue_pops_is_in_the_books(writer: Any):
    writer.push("metrics", "x", "v1", {})
    writer._queue.pop()

    books = writer._store.books()
    assert (books.pushed, books.purged, books.waiting) == (1, 1, 0)
    assert books.difference() == 0


# On the wire


def test_a_message_goes_out_with_the_headers_and_the_body_of_1x(writer: Any, delivered: Any):
    writer.push("metrics", "san_totals", "v1", {"a": 1}, reqid="r-1")

    (message,) = delivered()
    assert message.target == "/ramen/v1/metrics/1099/imx.san_totals.v1/?version=3.0.0.1&reqid=r-1"
    assert message.headers["x-api-token"] == DEFAULT_TOKEN
    assert message.headers["content-type"] == "application/json"
    assert message.headers["content-encoding"] == "gzip"
    assert zlib.decompress(message.body) == b'{"a":1}'


def test_the_file_is_one_sqlite_database_that_any_sqlite_can_read(
    config: QueueReaderConfig, queue_dir: Path, run_python: Any
):
    """In a process of its own: two SQLite libraries in one must not open the same file."""
    with QueueWriter(config) as writer:
        writer.push("metrics", "x", "v1", {})

    program = "import sqlite3, sys; print(sqlite3.connect(sys.argv[1]).execute('SELECT count(*) FROM message').fetchone()[0])"
    assert run_python(program, str(queue_dir / "imx_1099.db")).strip() == "1"
    assert sqlite3.sqlite_version  # the standard library's own


def test_the_example_of_the_documentation_works_with_a_naive_logger(writer: Any):
    logging.getLogger("ramen_client").info("nothing to configure")
    writer.push("metrics", "x", "v1", {"time": datetime.now(), "value": Decimal("0.5")})
    assert writer.queue_size() == 1


def test_push_many_says_which_message_is_at_fault_and_stores_none(writer: Any):
    good = ("metrics", "x", "v1", {})
    with pytest.raises(InvalidMessage, match="message 1 of push_many: category"):
        writer.push_many([good, ("a b", "x", "v1", {})])
    with pytest.raises(InvalidMessage, match=r"message 2 of push_many is not \(category, "):
        writer.push_many([good, good, ("metrics", "x", "v1")])
    assert writer.queue_size() == 0


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_writer_may_be_handed_to_a_process_of_multiprocessing(
    run_python: Any, fields: dict[str, Any], method: str
):
    run_python(
        """
        import json, multiprocessing, sys
        from infi.ramen_client import QueueWriter, QueueWriterConfig

        if __name__ == "__main__":
            names = ("sender", "system_serial", "system_version", "queue_dir")
            given = json.loads(sys.argv[1])
            writer = QueueWriter(QueueWriterConfig({name: given[name] for name in names}))
            writer.push("metrics", "x", "v1", {})
            child = multiprocessing.get_context(sys.argv[2]).Process(
                target=QueueWriter.push, args=(writer, "metrics", "x", "v1", {})
            )
            child.start()
            child.join()
            assert child.exitcode == 0
            assert writer.queue_size() == 2
            assert writer.books().pushed == 2
        """,
        json.dumps(fields),
        method,
    )


def test_push_many_refuses_what_is_larger_than_the_queue_instead_of_throwing_it_away_again(
    make_config: Any, open_writer: Any
):
    writer = open_writer(make_config(max_queue_size=10 * 1024))
    noise = [("metrics", "x", "v1", os.urandom(400).hex()) for _ in range(40)]
    with pytest.raises(MessageTooLarge, match="smaller parts"):
        writer.push_many(noise)
    assert writer.queue_size() == 0
    assert len(writer.push_many(noise[:5])) == 5
    assert writer.queue_size() == 5
