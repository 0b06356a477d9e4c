"""The fields: defaults, bounds, conversion, error texts, and that no secret is ever shown."""

from __future__ import annotations

import copy
import enum
import logging
import math
import pickle
import traceback
from collections import UserDict
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infi.ramen_client import errors
from infi.ramen_client.config import QueueReaderConfig, QueueWriterConfig, ValidationError

WRITER = {"sender": "imx", "system_serial": 1099, "system_version": "3.0.0.1"}
READER = {**WRITER, "hostname": "127.0.0.1:5000", "auth_token": "good-token"}
LARGEST = 2**63 - 1

DEFAULTS = {
    "queue_dir": "/var/ramen_client/",
    "max_queue_size": 5 * 1024**3,
    "overflow": "drop_oldest",
    "min_free_disk": 0,
    "max_message_bytes": 64 * 1024**2,
    "durability": "full",
    "unserialisable": "null",
    "queue_group": None,
}
READER_DEFAULTS = {
    **DEFAULTS,
    "auth_token_file": None,
    "ssl": True,
    "ca_file": None,
    "client_certificate": None,
    "client_key": None,
    "min_tls_version": "1.2",
    "proxy": None,
    "server_timeout": 20,
    "polling_delay": 5,
    "retry_delay": 30,
    "max_in_flight": 8,
    "ordering": "stream",
    "protocol": "auto",
    "content_coding": "auto",
    "max_attempts": None,
    "max_bytes_per_second": None,
    "blacklist_ttl": 3600,
    "max_message_age_seconds": None,
}
# What each field must be, as 1.x's documentation and this version's reference give it: the least, the most.
BOUNDS = {
    "system_serial": (0, LARGEST),
    "max_queue_size": (10 * 1024, LARGEST),
    "min_free_disk": (0, LARGEST),
    "max_message_bytes": (1, LARGEST),
    "server_timeout": (1, 3600),
    "polling_delay": (0.01, 3600),
    "retry_delay": (0.01, 3600),
    "max_in_flight": (1, 256),
    "max_attempts": (1, 1_000_000),
    "max_bytes_per_second": (1, LARGEST),
    "blacklist_ttl": (1, 86400),
    "max_message_age_seconds": (1, 10 * 365 * 86400),
}
SECONDS = ("server_timeout", "polling_delay", "retry_delay", "blacklist_ttl", "max_message_age_seconds")
INTEGERS = (
    "system_serial",
    "max_queue_size",
    "min_free_disk",
    "max_message_bytes",
    "max_in_flight",
    "max_attempts",
    "max_bytes_per_second",
)
BYTES = ("max_queue_size", "min_free_disk", "max_message_bytes", "max_bytes_per_second")
PATHS = ("queue_dir", "auth_token_file", "ca_file", "client_certificate")
OPTIONAL = {
    "auth_token",
    "auth_token_file",
    "ca_file",
    "client_certificate",
    "client_key",
    "max_attempts",
    "max_bytes_per_second",
    "max_message_age_seconds",
    "proxy",
    "queue_group",
}


def reader(**fields: Any) -> QueueReaderConfig:
    return QueueReaderConfig(READER, **fields)


def checked(name: str, value: object) -> object:
    """What validate() makes of a value that is assigned to a field of a good configuration."""
    config = reader(auth_token=None, auth_token_file="token") if name == "auth_token_file" else reader()
    setattr(config, name, value)
    config.validate()
    return getattr(config, name)


def refused(name: str, value: object) -> str:
    """The error's text for such a value; also, that nothing else is wrong and nothing was changed."""
    config = reader(system_serial="1099")
    if name == "auth_token_file":
        config.auth_token = None
    setattr(config, name, value)
    before = dict(vars(config))
    with pytest.raises(ValidationError) as caught:
        config.validate()
    assert all(getattr(config, field) is before[field] for field in before)
    first, line, *more = str(caught.value).splitlines()
    assert first == "QueueReaderConfig is not valid:"
    assert line.startswith(f"  {name}: ")
    assert more in ([], ["  auth_token, auth_token_file: exactly one of them is needed, none is given"])
    return line.strip()


class TestConstruction:
    def test_a_mapping_keywords_or_both_make_a_configuration_and_keywords_win(self) -> None:
        assert QueueWriterConfig(WRITER) == QueueWriterConfig(**WRITER)
        assert QueueWriterConfig(raw_data=UserDict(WRITER), sender="sa").sender == "sa"

    def test_the_mapping_that_is_given_is_not_kept(self) -> None:
        raw = dict(WRITER)
        config = QueueWriterConfig(raw)
        config.sender = "sa"
        assert raw == WRITER

    @pytest.mark.parametrize(
        ("cls", "given_fields", "defaults"),
        [(QueueWriterConfig, WRITER, DEFAULTS), (QueueReaderConfig, READER, READER_DEFAULTS)],
    )
    def test_what_is_not_given_has_its_default_and_every_default_is_valid(
        self, cls: type[QueueWriterConfig], given_fields: dict[str, Any], defaults: dict[str, Any]
    ) -> None:
        config = cls(given_fields)
        assert vars(config) == given_fields | defaults
        config.validate()
        assert vars(config) == given_fields | defaults
        assert list(vars(config)) == list(cls.FIELDS)

    def test_an_empty_configuration_can_be_made_and_is_not_valid(self) -> None:
        config = QueueReaderConfig()
        assert config.sender is None
        with pytest.raises(ValidationError) as caught:
            config.validate()
        missing = [name for name, field in config.FIELDS.items() if field.required]
        assert missing == ["sender", "system_serial", "system_version", "hostname"]
        for name in missing:
            assert f"\n  {name}: missing; it must be " in str(caught.value)
        assert str(caught.value).endswith("exactly one of them is needed, none is given")

    def test_an_unknown_field_is_refused_with_its_name_and_the_nearest_one(self) -> None:
        with pytest.raises(
            ValidationError, match=r"'sendr' \(did you mean sender\?\), 'colour', 7$"
        ) as caught:
            QueueWriterConfig({"sendr": "s3cret", "colour": "s3cret", 7: 8})
        assert "s3cret" not in str(caught.value)
        with pytest.raises(ValidationError, match=r"'max-queue-size' \(did you mean max_queue_size\?\)"):
            QueueWriterConfig({"max-queue-size": 1})
        with pytest.raises(ValidationError, match="QueueWriterConfig has no field 'hostname'"):
            QueueWriterConfig(READER)

    @pytest.mark.parametrize("raw", ["sender=imx", [("sender", "imx")], 5, b"x"])
    def test_what_is_no_mapping_is_refused(self, raw: Any) -> None:
        with pytest.raises(ValidationError, match="is made from a mapping of fields, not from "):
            QueueWriterConfig(raw)

    def test_a_reader_configuration_is_a_writer_configuration(self) -> None:
        assert issubclass(QueueReaderConfig, QueueWriterConfig)

    def test_a_subclass_may_set_a_default_and_have_attributes_of_its_own(self) -> None:
        class Mine(QueueReaderConfig):
            sender = "mine"
            polling_delay = 1
            colour: str = "red"

        config = Mine(READER | {"sender": "imx"})
        assert (config.sender, config.polling_delay, config.colour) == ("imx", 1, "red")
        assert Mine().sender == "mine"
        config.validate()

    def test_the_error_is_the_one_of_the_errors_module_and_a_value_error(self) -> None:
        assert ValidationError is errors.ValidationError
        assert issubclass(ValidationError, ValueError)


class TestAssignment:
    @pytest.mark.parametrize("name", list(QueueReaderConfig.FIELDS))
    def test_it_never_raises_and_validate_finds_it(self, name: str) -> None:
        config = reader()
        for value in (object(), [], "\n", -1, math.nan):
            setattr(config, name, value)
            assert getattr(config, name) is value
        with pytest.raises(ValidationError, match=f"\n  {name}: "):
            config.validate()

    def test_a_valid_assignment_after_a_wrong_one_is_valid_again(self) -> None:
        config = reader(blacklist_ttl=0)
        with pytest.raises(ValidationError, match="blacklist_ttl"):
            config.validate()
        config.blacklist_ttl = 2
        config.validate()
        assert config.blacklist_ttl == 2

    def test_a_deleted_field_has_its_default_again_or_is_missing(self) -> None:
        config = reader(polling_delay=7)
        del config.polling_delay
        config.validate()
        assert config.polling_delay == 5
        del config.sender
        with pytest.raises(ValidationError, match="sender: missing"):
            config.validate()
        assert "sender=None" in repr(config)
        assert config != reader()

    def test_a_misspelt_attribute_is_warned_of_and_other_attributes_are_not(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        config: Any = reader()
        config.retry_dealy = 1
        config.my_own_thing = 2
        config.validate()
        assert caplog.messages == ["QueueReaderConfig has no field 'retry_dealy' (did you mean retry_delay?)"]


class TestNumbers:
    @pytest.mark.parametrize(("name", "low", "high"), [(name, *bounds) for name, bounds in BOUNDS.items()])
    def test_both_bounds_are_allowed_and_nothing_beyond_them(
        self, name: str, low: float, high: float
    ) -> None:
        assert checked(name, low) == low
        assert checked(name, high) == high
        below = [low - 1, -low - 1]
        above = [high + 1, 10**400]
        if name in SECONDS:
            below += [math.nextafter(low, -1), 0, -0.0]
            above += [math.nextafter(high, math.inf), math.inf, 1e308]
        for value in below + above:
            assert refused(name, value).endswith(QueueReaderConfig.FIELDS[name].allowed)

    @pytest.mark.parametrize("name", list(BOUNDS))
    def test_what_is_no_number_is_refused(self, name: str) -> None:
        texts = ["", " ", "x", "nan", "inf", "-inf", "0x10", "٣٠", "30 s", "9" * 5000]
        others = [
            None,
            True,
            False,
            np.bool_(True),
            math.nan,
            math.inf,
            -math.inf,
            1j,
            [30],
            {},
            b"30",
            object,
        ]
        for value in texts + others:
            if value is not None or name not in OPTIONAL:
                refused(name, value)

    @pytest.mark.parametrize("name", list(BOUNDS))
    def test_a_number_as_text_or_of_another_type_becomes_a_plain_one(self, name: str) -> None:
        plain = float if name in SECONDS else int
        texts = {"max_queue_size": ["36000"], "max_in_flight": ["36"]}
        for value in texts.get(name, ["3600", " 3600\n", "+3600"]):
            assert type(checked(name, value)) is plain
            assert checked(name, value) == int(value)
        whole = 36000 if name == "max_queue_size" else 36

        class Whole(enum.IntEnum):
            ONE = whole

        for value in (Whole.ONE, np.int64(whole), np.float64(whole), Decimal(whole), float(whole)):
            assert type(checked(name, value)) is plain
            assert checked(name, value) == whole

    def test_a_fraction_is_allowed_for_seconds_only(self) -> None:
        for name in SECONDS:
            assert checked(name, 2.5) == checked(name, "2.5") == checked(name, Decimal("2.5")) == 2.5
        for name in INTEGERS:
            for value in (20480.5, "20480.5", Decimal("20480.5")):
                refused(name, value)

    def test_the_serial_of_a_1x_program_may_be_text(self) -> None:
        config = QueueWriterConfig(WRITER, system_serial="1099")
        config.validate()
        assert config.system_serial == 1099

    def test_the_error_says_field_value_bounds_and_unit(self) -> None:
        assert refused("retry_delay", "5 s") == (
            "retry_delay: '5 s' is not allowed; it must be a number from 0.01 to 3600 (seconds)"
        )
        assert refused("max_queue_size", 2) == (
            f"max_queue_size: 2 is not allowed; it must be an integer from 10240 to {LARGEST} (bytes)"
        )
        assert "an integer of hundreds of digits" in refused("system_serial", 10**5000)
        assert refused("polling_delay", None).startswith("polling_delay: missing; it must be a number")


class TestTexts:
    @pytest.mark.parametrize("value", ["a", "imx", "A-Z_09", "-", "0" * 200])
    def test_senders_that_are_allowed(self, value: str) -> None:
        assert checked("sender", value) == value

    @pytest.mark.parametrize("value", ["a", "3.0.0.1", "..", "v1_2-rc", "0" * 256])
    def test_versions_that_are_allowed(self, value: str) -> None:
        assert checked("system_version", value) == value

    @pytest.mark.parametrize("name", ["sender", "system_version"])
    @pytest.mark.parametrize(
        "value",
        [
            None,
            "",
            " ",
            "with blanks",
            "imx\n",
            "\nimx",
            "imx ",
            "פאלי",
            "ímx",
            "a/b",
            "a%20",
            "a\0",
            "\udc80",
            "\uff11\uff12",
            3,
            3.0,
            True,
            b"imx",
            ["imx"],
            Path("imx"),
            "a" * 257,
        ],
    )
    def test_names_are_ascii_text_of_the_allowed_characters_as_a_whole(
        self, name: str, value: object
    ) -> None:
        refused(name, value)

    def test_a_sender_has_no_dots_and_fits_into_a_file_name(self) -> None:
        assert refused("sender", "d.o.t.s.") == (
            "sender: 'd.o.t.s.' is not allowed; it must be one or more of A-Z a-z 0-9 _ - (at most 200 characters)"
        )
        assert f"'{'a' * 80}'... (201 characters) is not allowed" in refused("sender", "a" * 201)

    def test_text_of_a_subclass_becomes_plain(self) -> None:
        class Name(enum.StrEnum):
            IMX = "imx"

        assert type(checked("sender", Name.IMX)) is str
        assert type(checked("sender", np.str_("imx"))) is str

    @pytest.mark.parametrize(
        ("name", "allowed"),
        [
            ("durability", "full normal"),
            ("overflow", "drop_oldest reject"),
            ("unserialisable", "null raise"),
        ],
    )
    def test_a_choice_is_one_of_its_words_exactly(self, name: str, allowed: str) -> None:
        for word in allowed.split():
            assert checked(name, word) == word
        for value in (None, "", "FULL", " full", "null\n", "off", True, 1, ["full"], object()):
            assert refused(name, value).endswith(allowed.replace(" ", " or "))

    def test_a_group_is_a_name_or_none(self) -> None:
        for value in (None, "telemetry", r"DOMAIN\domain users", "g" * 255):
            assert checked("queue_group", value) == value
        for wrong in ("", " ", "a\n", " a", "a:b", "a\0b", "\udc80", "g" * 256, 100, True, b"telemetry"):
            refused("queue_group", wrong)

    def test_https_is_a_boolean_or_what_schematics_took_for_one(self) -> None:
        for value in (True, "True", "true", "1", 1, "on"):
            assert checked("ssl", value) is True
        for value in (False, "False", "false", "0", 0, "off"):
            assert checked("ssl", value) is False
        for wrong in (None, "", " true", "2", 2, "maybe", [], b"true"):
            assert refused("ssl", wrong).endswith("it must be true or false")


class TestPaths:
    @pytest.mark.parametrize("name", PATHS)
    def test_a_path_stays_as_it_was_given_and_becomes_text(self, name: str, tmp_path: Path) -> None:
        for value in ("/var/ramen_client/", "relative/../x", "/with blank/ü", "."):
            assert checked(name, value) == value
        assert checked(name, tmp_path) == str(tmp_path)
        assert checked(name, "/" + "a" * 4094) == "/" + "a" * 4094

    @pytest.mark.parametrize("name", PATHS)
    def test_what_is_no_path_is_refused(self, name: str) -> None:
        for value in (
            "",
            " ",
            "\t",
            "/var/x\n",
            "/a\0b",
            "/\udc80",
            "/" + "ü" * 2048,
            5,
            True,
            b"/x",
            ["/x"],
        ):
            refused(name, value)
        if name not in OPTIONAL:
            refused(name, None)


class TestServer:
    @pytest.mark.parametrize(
        "value", ["ramen.example.com", "localhost:8080", "127.0.0.1:5000", "[::1]", "[::1]:65535", "a_b"]
    )
    def test_hosts_that_are_allowed(self, value: str) -> None:
        assert checked("hostname", value) == value

    @pytest.mark.parametrize(
        "value",
        [
            None,
            "",
            " ",
            "host\n",
            "ho st",
            "https://host",
            "host/path",
            "host:",
            "host:0",
            "host:65536",
            "host:x",
            "::1",
            "[::1",
            "[x]",
            "hôte",
            "user@host",
            "h" * 300,
            5,
            True,
            b"host",
            ["host"],
        ],
    )
    def test_hosts_that_are_refused(self, value: object) -> None:
        assert refused("hostname", value).endswith("without scheme, path and user name")

    @pytest.mark.parametrize(
        "value",
        [
            "http://localhost:8888/",
            "http://proxy",
            "https://proxy:443",
            "HTTP://proxy:1",
            "proxy:3128",
            "socks4://p:1",
            "socks4a://p:1",
            "socks5://[::1]:1080",
            "socks5h://u:p@p:1",
            "http://user:p%40ss%2F@10.0.0.1:3128",
            None,
        ],
    )
    def test_proxies_that_are_allowed(self, value: str | None) -> None:
        assert checked("proxy", value) == value

    def test_an_empty_proxy_is_none_as_in_1x(self) -> None:
        assert checked("proxy", "") is None

    @pytest.mark.parametrize(
        "value",
        [
            " ",
            "http://",
            "http:///",
            "ftp://proxy",
            "file:///etc/passwd",
            "http://proxy:0",
            "http://proxy:99999",
            "http://proxy:1/path",
            "http://proxy?x",
            "http://proxy#x",
            "http://pro xy:1",
            "http://proxy:1\n",
            "http://pröxy:1",
            "http://u:a@b@proxy:1",
            "http://u:a/b@proxy:1",
            "http://[::1",
            "http://\\\\proxy",
            "//proxy",
            "\udc80",
            "http://" + "u" * 3000 + "@proxy:1",
            3128,
            True,
            b"http://proxy",
            ["http://proxy"],
        ],
    )
    def test_proxies_that_are_refused(self, value: object) -> None:
        refused("proxy", value)


class TestToken:
    @pytest.mark.parametrize("value", ["t", "good-token", "two words", "é÷ÿ", "~!\"#$%&'()", "t" * 8000])
    def test_tokens_that_a_header_can_carry(self, value: str) -> None:
        assert checked("auth_token", value) == value
        assert reader(auth_token=value).read_auth_token() == value

    @pytest.mark.parametrize(
        "value",
        [
            "",
            " ",
            " t",
            "t ",
            "t\n",
            "\tt",
            "a\tb",
            "a\r\nX-Evil: 1",
            "a\0",
            "\x7f",
            "a\x85b",
            "\xa0t",
            "t\u20ac",
            "\udc80",
            "t" * 8001,
            5,
            True,
            b"t",
            ["t"],
        ],
    )
    def test_tokens_that_no_header_can_carry(self, value: object) -> None:
        line = refused("auth_token", value)
        assert line.startswith("auth_token: '***' is not allowed; it must be 1 to 8000 printable")
        with pytest.raises(ValidationError, match=r"^auth_token: '\*\*\*' is not allowed"):
            reader(auth_token=value).read_auth_token()

    def test_exactly_one_of_token_and_file_is_needed(self) -> None:
        for token, file, word in [("t", "f", "both are"), (None, None, "none is")]:
            config = reader(auth_token=token, auth_token_file=file)
            with pytest.raises(ValidationError, match=f"exactly one of them is needed, {word} given$"):
                config.validate()
            with pytest.raises(ValidationError, match=f"exactly one of them is needed, {word} given$"):
                config.read_auth_token()

    def test_a_writer_needs_none(self) -> None:
        QueueWriterConfig(WRITER).validate()


class TestAllFields:
    def test_every_wrong_field_is_listed_and_no_other(self) -> None:
        config = QueueReaderConfig(dict.fromkeys(QueueReaderConfig.FIELDS, -5))
        with pytest.raises(ValidationError) as caught:
            config.validate()
        lines = str(caught.value).splitlines()[1:]
        assert [line.strip().partition(":")[0] for line in lines[:-1]] == list(QueueReaderConfig.FIELDS)
        assert lines[-1] == "  auth_token, auth_token_file: exactly one of them is needed, both are given"

    def test_none_is_allowed_where_the_table_says_so_and_nowhere_else(self) -> None:
        assert {name for name, field in QueueReaderConfig.FIELDS.items() if field.optional} == OPTIONAL

    def test_the_table_says_what_each_field_means_and_all_bounds(self) -> None:
        for name, field in QueueReaderConfig.FIELDS.items():
            assert field.name == name
            assert field.meaning.endswith(".")
            assert field.allowed
            assert (field.low, field.high) == BOUNDS.get(name, (None, None))
            assert field.unit == ("seconds" if name in SECONDS else "bytes" if name in BYTES else "")
            assert field.default == READER_DEFAULTS.get(name)
        assert QueueReaderConfig.FIELDS["ca_file"].type == str | None
        assert QueueReaderConfig.FIELDS["system_serial"].type is int


class TestPlainObject:
    def test_equal_fields_make_equal_configurations_of_one_class(self) -> None:
        assert reader() == reader()
        assert reader() != reader(sender="sa")
        assert QueueWriterConfig(WRITER) != QueueReaderConfig(WRITER)
        assert QueueWriterConfig(WRITER) != WRITER
        assert type("Mine", (QueueWriterConfig,), {})(WRITER) != QueueWriterConfig(WRITER)
        with pytest.raises(TypeError, match="unhashable"):
            hash(reader())

    @pytest.mark.parametrize(
        "clone", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))]
    )
    def test_copies_are_equal_and_apart(self, clone: Any) -> None:
        config = reader(proxy="http://u:p@h:1")
        twin = clone(config)
        assert type(twin) is QueueReaderConfig
        assert twin == config
        assert vars(twin) == vars(config)
        twin.sender = "sa"
        assert config.sender == "imx"
        twin.validate()

    def test_repr_shows_every_field_but_no_secret(self) -> None:
        text = repr(reader(proxy="http://us3r:s3cret@proxy:3128", auth_token="t0ken"))
        assert text.startswith("QueueReaderConfig(sender='imx', system_serial=1099, ")
        assert "auth_token='***', auth_token_file=None, ssl=True" in text
        assert "proxy='http://***@proxy:3128'" in text
        assert all(f"{name}=" in text for name in QueueReaderConfig.FIELDS)
        assert not any(secret in text for secret in ("us3r", "s3cret", "t0ken"))
        assert "auth_token=None" in repr(QueueReaderConfig())


class Hostile:
    """An object whose every method raises what its maker likes."""

    def __init__(self, error: type[Exception]) -> None:
        object.__setattr__(self, "_error", error)

    def _raise(self, *_: object) -> NoReturn:
        raise object.__getattribute__(self, "_error")("s3cret")

    __str__ = __repr__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __getitem__ = _raise  # type: ignore[assignment]
    __int__ = __index__ = __float__ = __fspath__ = __contains__ = __lt__ = __gt__ = __le__ = __ge__ = _raise
    __class__ = property(_raise)  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> object:
        object.__getattribute__(self, "_raise")()


class HostileText(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __len__ = __eq__ = __hash__ = strip = isascii = encode = __format__ = __str__  # type: ignore[assignment]


def deep_list() -> list[Any]:
    nest: list[Any] = []
    for _ in range(10_000):
        nest = [nest]
    return nest


def cycle() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


# A partial stands for what it makes: hypothesis itself cannot handle such values.
ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-1, 5).map(lambda exponent: 10 ** (10**exponent) if exponent > 0 else exponent),
    st.floats(),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.text(st.characters()),
    st.text(st.characters(categories=["Cs", "Cc", "L"])),
    st.text("htps:/@[]#?.0123456789ab%\\ \n"),
    st.binary(),
    st.datetimes(),
    st.timedeltas(),
    st.uuids(),
    st.lists(st.integers()),
    st.dictionaries(st.text(), st.integers()),
    st.text().map(Path),
    st.text().map(lambda text: partial(HostileText, text)),
    st.sampled_from([RuntimeError, RecursionError, MemoryError, KeyError, ValueError, StopIteration]).map(
        lambda error: partial(Hostile, error)
    ),
    st.sampled_from([partial(deep_list), partial(cycle)]),
    st.sampled_from([object(), int, np.array([1, 2]), np.float32(2), np.datetime64("NaT")]),
)


SCHEMES = ["http://", "SOCKS5H://", "http:/", "http:///", "http://proxy//", "bad://", "//", ""]


class TestArbitraryValues:
    @given(st.dictionaries(st.sampled_from(list(QueueReaderConfig.FIELDS)), ANYTHING))
    def test_validate_raises_nothing_but_the_validation_error(self, values: dict[str, object]) -> None:
        config = QueueReaderConfig(READER)
        for name, value in values.items():
            setattr(config, name, value() if isinstance(value, partial) else value)
        error = None
        try:
            config.validate()
        except ValidationError as raised:
            error = raised
        if error:
            assert error.__context__ is None
            text = str(error)
            text.encode()
            assert all(line.isprintable() for line in text.splitlines())
            assert len(text) < 10_000
        else:
            assert {type(value) for value in vars(config).values()} <= {str, int, float, bool, type(None)}
            again = copy.copy(config)
            again.validate()
            assert again == config
        repr(config).encode()

    @given(st.text(st.characters()), st.sampled_from(SCHEMES))
    @example("://", "")
    def test_no_user_name_or_password_of_a_proxy_is_ever_shown(self, more: str, scheme: str) -> None:
        for credentials in (f"us3r:s3cret{more}", f"s3cret{more}:us3r", f"us3r:s3cret{more}:us3r"):
            for value in (f"{scheme}{credentials}@host:3128", f"{scheme}{credentials}@host:bad/"):
                for name in ("proxy", "hostname"):
                    texts = self.all_that_is_said(**{name: value})
                    assert not any("us3r" in text or "s3cret" in text for text in texts)
        # A forgotten "@host": the password stands where the port should.
        for text in self.all_that_is_said(proxy=f"{scheme}us3r:s3cret{more}"):
            assert "s3cret" not in text

    @given(st.text(st.characters()))
    def test_no_token_is_ever_shown(self, more: str) -> None:
        for token in (
            f"t0ken{more}",
            f"t0ken{more}\n",
            f"t0ken{more}".encode(errors="replace"),
            [f"t0ken{more}"],
        ):
            for also_wrong in ({}, {"sender": None, "auth_token_file": "x"}):
                assert not any(
                    "t0ken" in text for text in self.all_that_is_said(auth_token=token, **also_wrong)
                )

    @staticmethod
    def all_that_is_said(**fields: object) -> list[str]:
        """repr, str, error and traceback with the frames' variables of a configuration with these fields."""
        config = reader(**fields)
        texts = [repr(config), str(config), f"{config}"]
        for method in (config.validate, config.read_auth_token):
            try:
                method()
            except ValidationError as error:
                texts += [str(error), repr(error)]
                # Below this test's own frame, whose variables hold what it made up.
                frames = error.__traceback__.tb_next if error.__traceback__ else None
                spoken = traceback.TracebackException(type(error), error, frames, capture_locals=True)
                texts.append("".join(spoken.format()))
        return texts


def test_validating_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    reader().validate()
    with pytest.raises(ValidationError):
        QueueReaderConfig().validate()
    assert caplog.messages == []


def test_a_client_key_is_of_no_use_without_a_certificate() -> None:
    with pytest.raises(ValidationError, match="client_key: it is of no use without client_certificate"):
        reader(client_key="/key.pem").validate()
    reader(client_certificate="/both.pem").validate()
    reader(client_certificate="/certificate.pem", client_key="/key.pem").validate()


@pytest.mark.parametrize("value", ["1.1", "1.0", "1.4", 1.2, "TLSv1.2", "", None])
def test_the_oldest_version_of_tls_is_one_of_two(value: object) -> None:
    for allowed in ("1.2", "1.3"):
        reader(min_tls_version=allowed).validate()
    with pytest.raises(ValidationError, match=r"min_tls_version.*1\.2 or 1\.3"):
        reader(min_tls_version=value).validate()
