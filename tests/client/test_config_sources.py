"""load(): file, environment, keywords; and the file that holds the token."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infi.ramen_client._config_sources import MAX_FILE_BYTES, MAX_TOKEN_FILE_BYTES
from infi.ramen_client.config import QueueReaderConfig, QueueWriterConfig, ValidationError

if TYPE_CHECKING:
    from collections.abc import Iterator

WRITER = {"sender": "imx", "system_serial": 1099, "system_version": "3.0.0.1"}
READER = {**WRITER, "hostname": "127.0.0.1:5000", "auth_token": "good-token"}
TOML = """
sender = "from-file"
system_serial = 1
system_version = "3.0"
max_queue_size = 20_480
hostname = "file.example.com"
auth_token = "file-t0ken"
ssl = false
retry_delay = 0.5
"""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: of a long path an error shows the beginning."""
    with TemporaryDirectory() as directory:
        yield Path(directory)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ramen.toml"
    path.write_text(TOML)
    return path


def load_error(*args: Any, cls: type[QueueWriterConfig] = QueueReaderConfig, **fields: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        cls.load(*args, **{"environ": {}} | fields)
    assert "t0ken" not in str(caught.value)
    return str(caught.value)


def allowed(name: str) -> str:
    return QueueReaderConfig.FIELDS[name].allowed


class TestPrecedence:
    def test_a_file_alone_is_enough(self, file: Path) -> None:
        config = QueueReaderConfig.load(file, environ={})
        assert type(config) is QueueReaderConfig
        assert (config.sender, config.system_serial, config.max_queue_size) == ("from-file", 1, 20480)
        assert (config.ssl, config.retry_delay, config.polling_delay) == (False, 0.5, 5)

    def test_the_environment_alone_is_enough_and_its_text_is_converted(self) -> None:
        environ = {f"RAMEN_{name.upper()}": str(value) for name, value in READER.items()}
        config = QueueReaderConfig.load(environ=environ | {"RAMEN_SSL": "false", "RAMEN_RETRY_DELAY": "2.5"})
        assert config == QueueReaderConfig(READER, ssl=False, retry_delay=2.5)

    def test_keywords_alone_are_enough(self) -> None:
        assert QueueReaderConfig.load(environ={}, **READER) == QueueReaderConfig(READER)

    def test_the_process_environment_is_read_where_none_is_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAMEN_SENDER", "from-environ")
        assert QueueWriterConfig.load(system_serial=1, system_version="1").sender == "from-environ"

    def test_environment_over_file_and_keywords_over_both(self, file: Path) -> None:
        environ = {"RAMEN_SENDER": "from-environ", "RAMEN_SYSTEM_SERIAL": "2"}
        config = QueueReaderConfig.load(str(file), environ=environ, sender="from-keyword")
        assert (config.sender, config.system_serial, config.system_version) == ("from-keyword", 2, "3.0")

    def test_a_wrong_value_that_a_later_source_replaces_does_no_harm(self, file: Path) -> None:
        file.write_text(TOML.replace("= 1\n", "= -1\n"))
        assert QueueReaderConfig.load(file, environ={"RAMEN_SYSTEM_SERIAL": "7"}).system_serial == 7

    def test_a_keyword_none_is_a_value(self, file: Path) -> None:
        config = QueueReaderConfig.load(file, environ={"RAMEN_PROXY": "http://p:1"}, proxy=None)
        assert config.proxy is None

    @pytest.mark.parametrize("later", ["environ", "keyword"])
    def test_a_token_file_of_a_later_source_takes_the_place_of_a_token(self, file: Path, later: str) -> None:
        if later == "environ":
            config = QueueReaderConfig.load(file, environ={"RAMEN_AUTH_TOKEN_FILE": "/t"})
        else:
            config = QueueReaderConfig.load(file, environ={}, auth_token_file="/t")
        assert (config.auth_token, config.auth_token_file) == (None, "/t")
        environ = {"RAMEN_AUTH_TOKEN_FILE": "/t"}
        assert QueueReaderConfig.load(file, environ=environ, auth_token="x").auth_token_file is None

    def test_both_from_one_source_are_refused(self, file: Path) -> None:
        file.write_text(TOML + 'auth_token_file = "/t"\n')
        assert "exactly one of them is needed, both are given" in load_error(file)

    def test_a_writer_passes_over_what_only_a_reader_needs(
        self, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        config = QueueWriterConfig.load(file, environ={"RAMEN_HOSTNAME": " not valid ", "RAMEN_SSL": "x"})
        assert type(config) is QueueWriterConfig
        assert config.sender == "from-file"
        assert not hasattr(config, "hostname")
        assert caplog.messages == []
        assert "no field 'hostname'" in load_error(file, cls=QueueWriterConfig, hostname="h")


class TestFile:
    def test_a_ramen_table_is_all_that_counts_in_its_file(self, file: Path) -> None:
        file.write_text(f'title = "ours"\nsender = "not this"\n[other]\nx = 1\n[ramen]\n{TOML}')
        assert QueueReaderConfig.load(file, environ={}).sender == "from-file"

    def test_an_unknown_name_is_refused_with_file_and_suggestion(self, file: Path) -> None:
        file.write_text(TOML + 'polling_dely = 1\ncolour = "t0ken"\n')
        assert load_error(file) == (
            f"the configuration file '{file}' has an unknown field: "
            "'polling_dely' (did you mean polling_delay?), 'colour'"
        )
        file.write_text(f"[ramen]\n{TOML}\n[ramen.sub]\n")
        assert "unknown field: 'sub'" in load_error(file)

    def test_a_wrong_value_is_named_with_its_file(self, file: Path) -> None:
        file.write_text(TOML + "blacklist_ttl = nan\nserver_timeout = 1979-05-27\nca_file = [1]\n")
        lines = load_error(file).splitlines()
        assert lines[1] == (
            f"  ca_file (from '{file}'): a value of type list is not allowed; "
            "it must be a path: UTF-8 text without control characters; or none"
        )
        assert lines[2].startswith(f"  server_timeout (from '{file}'): a value of type date is not allowed; ")
        assert lines[3].startswith(
            f"  blacklist_ttl (from '{file}'): nan is not allowed; it must be a number from 1"
        )
        assert len(lines) == 4

    @pytest.mark.parametrize(
        "content",
        [
            b"sender = ",
            b"auth_token = 't0ken",
            b"a = 1\na = 2\n",
            b"\xff\xfe",
            b"a = " + b"[" * 100_000,
            b"system_serial = " + b"9" * 5000,
            b"auth_token = t0ken",
        ],
    )
    def test_what_is_not_toml_is_refused_in_words(self, file: Path, content: bytes) -> None:
        file.write_bytes(content)
        with pytest.raises(
            ValidationError, match=f"^the configuration file '{file}' is not valid TOML: .+"
        ) as caught:
            QueueReaderConfig.load(file, environ={})
        assert "t0ken" not in str(caught.value)
        # Newer Pythons keep the document on the parser's error.
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None

    def test_ramen_must_be_a_table(self, file: Path) -> None:
        file.write_text("ramen = 5\n")
        assert load_error(file) == f"the configuration file '{file}': [ramen] must be a table"

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        assert load_error(tmp_path / "none.toml").endswith(
            "none.toml' cannot be read: No such file or directory"
        )
        assert load_error(tmp_path).endswith("cannot be read: Is a directory")
        assert "is not a path" in load_error("a\0b")

    def test_a_file_that_is_far_too_large_is_not_read(self, file: Path) -> None:
        text = TOML + "#"
        file.write_text(text + "x" * (MAX_FILE_BYTES - len(text)))
        QueueReaderConfig.load(file, environ={})
        file.write_text(text + "x" * (MAX_FILE_BYTES - len(text) + 1))
        assert "is larger than 1048576 bytes" in load_error(file)

    @given(st.binary() | st.text().map(str.encode))
    def test_any_content_is_a_configuration_or_a_validation_error(
        self, tmp_path_factory: pytest.TempPathFactory, content: bytes
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "any.toml"
        path.write_bytes(content)
        with pytest.raises(ValidationError):
            QueueReaderConfig.load(path, environ={})


class TestEnvironment:
    def test_a_wrong_value_is_named_with_its_variable(self) -> None:
        text = load_error(
            environ={"RAMEN_MAX_QUEUE_SIZE": "5x", "RAMEN_AUTH_TOKEN": "t0ken\n"}, **WRITER, hostname="h"
        )
        assert text.splitlines()[1:] == [
            f"  max_queue_size (from RAMEN_MAX_QUEUE_SIZE): '5x' is not allowed; it must be {allowed('max_queue_size')}",
            f"  auth_token (from RAMEN_AUTH_TOKEN): '***' is not allowed; it must be {allowed('auth_token')}",
        ]

    def test_a_wrong_keyword_over_a_variable_does_not_blame_the_variable(self) -> None:
        text = load_error(
            environ={"RAMEN_SENDER": "imx"}, **WRITER | {"sender": "a b"}, hostname="h", auth_token="t"
        )
        assert "  sender: 'a b' is not allowed" in text

    def test_the_source_is_not_blamed_for_later_assignments(self) -> None:
        config = QueueWriterConfig.load(environ={"RAMEN_SENDER": "imx"}, system_serial=1, system_version="1")
        config.sender = "a b"
        with pytest.raises(ValidationError, match="\n  sender: 'a b'"):
            config.validate()

    def test_an_empty_variable_is_none_where_there_may_be_none(self, file: Path) -> None:
        file.write_text(TOML + 'proxy = "http://p:1"\n')
        config = QueueReaderConfig.load(file, environ={"RAMEN_PROXY": "", "RAMEN_AUTH_TOKEN_FILE": ""})
        assert config.proxy is None
        assert config.auth_token == "file-t0ken"
        assert "sender (from RAMEN_SENDER): '' is not allowed" in load_error(
            file, environ={"RAMEN_SENDER": ""}
        )

    def test_an_unknown_variable_is_warned_of_without_its_value(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        environ = {
            "RAMEN_AUTH_TOKN": "t0ken",
            "RAMEN_SHOP": "x",
            "ramen_sender": "x",
            "RAMEN_Sender": "x",
            "X": "y",
        }
        assert QueueReaderConfig.load(environ=environ, **READER).sender == "imx"
        assert caplog.messages == [
            "environment variable 'RAMEN_AUTH_TOKN' is not a setting of this client (did you mean RAMEN_AUTH_TOKEN?)",
            "environment variable 'RAMEN_SHOP' is not a setting of this client",
            "environment variable 'RAMEN_Sender' is not a setting of this client (did you mean RAMEN_SENDER?)",
        ]
        assert {record.name for record in caplog.records} == {"ramen_client"}

    def test_bytes_that_are_no_utf8_are_refused(self) -> None:
        environ = {
            "RAMEN_QUEUE_DIR": os.fsdecode(b"/\xff"),
            **{f"RAMEN_{k.upper()}": str(v) for k, v in WRITER.items()},
        }
        text = load_error(cls=QueueWriterConfig, environ=environ)
        assert r"queue_dir (from RAMEN_QUEUE_DIR): '/\udcff' is not allowed" in text


class TestTokenFile:
    @pytest.fixture
    def token_file(self, tmp_path: Path) -> Path:
        path = tmp_path / "token"
        path.touch(mode=0o600)
        return path

    def read(self, path: Path | str) -> str:
        return QueueReaderConfig(READER, auth_token=None, auth_token_file=path).read_auth_token()

    def error(self, path: Path | str) -> str:
        with pytest.raises(ValidationError) as caught:
            self.read(path)
        assert "t0ken" not in str(caught.value)
        assert "t0ken" not in repr(caught.value.__context__)
        return str(caught.value)

    @pytest.mark.parametrize("end", ["", "\n", "\r\n", " \n", "\n\n", "\t"])
    def test_the_token_is_the_file_without_blank_space_at_its_end(self, token_file: Path, end: str) -> None:
        token_file.write_bytes(f"a t0ken é{end}".encode())
        assert self.read(token_file) == "a t0ken é"
        assert self.read(str(token_file)) == "a t0ken é"

    def test_it_is_read_at_each_call_so_that_it_can_be_replaced(self, token_file: Path) -> None:
        config = QueueReaderConfig(READER, auth_token=None, auth_token_file=str(token_file))
        for token in ("one", "two"):
            token_file.write_text(token)
            assert config.read_auth_token() == token

    def test_validate_and_load_do_not_touch_it(self) -> None:
        fields = {**WRITER, "hostname": "h", "auth_token_file": "/nonexistent/token"}
        QueueReaderConfig.load(environ={}, **fields).validate()

    @pytest.mark.parametrize("content", ["", "\n", " \r\n"])
    def test_an_empty_file_is_refused(self, token_file: Path, content: str) -> None:
        token_file.write_text(content)
        assert self.error(token_file) == f"auth_token_file '{token_file}' is empty; it must hold the token"

    @pytest.mark.parametrize("content", [" t0ken", "t0ken\nt0ken", "t0ken\x00", "t0ken€", "t0ken" * 1601])
    def test_what_no_header_can_carry_is_refused(self, token_file: Path, content: str) -> None:
        token_file.write_text(content)
        assert self.error(token_file) == (
            f"auth_token_file '{token_file}' does not hold a token; "
            "it must be 1 to 8000 printable Latin-1 characters without blank space around them"
        )

    def test_a_file_that_is_not_text_or_too_large_is_refused(self, token_file: Path) -> None:
        token_file.write_bytes(b"t0ken\xff")
        assert "is not UTF-8 text" in self.error(token_file)
        token_file.write_text("é" * 8000 + " " * 1024)
        assert self.read(token_file) == "é" * 8000
        token_file.write_text("é" * 8000 + " " * 1025)
        assert f"is larger than {MAX_TOKEN_FILE_BYTES} bytes" in self.error(token_file)

    def test_a_missing_file_a_directory_and_a_pipe_are_refused_at_once(self, tmp_path: Path) -> None:
        assert self.error(tmp_path / "x").endswith("/x' cannot be read: No such file or directory")
        assert self.error(tmp_path).endswith("cannot be read: Is a directory")
        os.mkfifo(tmp_path / "pipe")
        assert self.error(tmp_path / "pipe").endswith("/pipe' is not a regular file")
        # Also one that is held open for writing, and so has nothing to read yet.
        writer = os.open(tmp_path / "pipe", os.O_RDWR)
        assert self.error(tmp_path / "pipe").endswith("/pipe' is not a regular file")
        os.close(writer)
        assert self.error("/dev/zero").endswith("is not a regular file")

    def test_an_unreadable_file_is_refused(self, token_file: Path) -> None:
        token_file.chmod(0)
        if os.access(token_file, os.R_OK):
            pytest.skip("this user (root, most likely) reads every file")
        assert self.error(token_file).endswith("cannot be read: Permission denied")

    def test_no_descriptor_is_left_open(self, tmp_path: Path, token_file: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        before = len(list(Path("/proc/self/fd").iterdir()))
        for path in (tmp_path, tmp_path / "pipe", token_file):
            self.error(path)
        assert len(list(Path("/proc/self/fd").iterdir())) == before

    @pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o666])
    def test_a_file_open_to_every_user_is_warned_of_once_and_used(
        self, token_file: Path, mode: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        token_file.write_text("t0ken")
        token_file.chmod(mode)
        for _ in range(3):
            assert self.read(token_file) == "t0ken"
        (message,) = caplog.messages
        assert message == (
            f"auth_token_file '{token_file}' can be read or written by every user (mode {mode:04o}); "
            "chmod 600 it, so that only its owner can"
        )
        assert caplog.records[0].levelno == logging.WARNING

    @pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o660])
    def test_a_file_of_its_owner_and_group_is_used_without_a_word(
        self, token_file: Path, mode: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        token_file.write_text("t0ken")
        token_file.chmod(mode)
        assert stat.S_IMODE(token_file.stat().st_mode) == mode
        assert self.read(token_file) == "t0ken"
        assert caplog.messages == []

    def test_a_wrong_path_is_refused_before_it_is_opened(self) -> None:
        assert self.error("").startswith("auth_token_file: '' is not allowed; it must be a path")
        assert self.error("a\0b").startswith("auth_token_file: 'a\\x00b' is not allowed")
