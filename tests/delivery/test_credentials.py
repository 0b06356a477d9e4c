"""The token follows its file, and the program's own assignments, without a restart."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.delivery.credentials import Credentials
from infi.ramen_client.errors import ValidationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text("first\n")
    return path


@pytest.fixture
def make_config(token_file: Path) -> Callable[..., QueueReaderConfig]:
    def make(**fields: object) -> QueueReaderConfig:
        given = {
            "sender": "imx",
            "system_serial": 1099,
            "system_version": "3.0.0.1",
            "hostname": "ramen.example",
            **(fields or {"auth_token_file": str(token_file)}),
        }
        return QueueReaderConfig(given)

    return make


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def token(credentials: Credentials, clock: Clock, after: float = 0.0) -> str:
    clock.now += after
    return dict(credentials.current())["X-API-Token"]


def test_a_changed_file_counts_once_it_has_kept_still(
    make_config: Callable[..., QueueReaderConfig], token_file: Path
) -> None:
    clock = Clock()
    credentials = Credentials(make_config(), monotonic=clock)
    assert token(credentials, clock) == "first"
    token_file.write_text("seco")
    assert token(credentials, clock, 1.1) == "first"
    token_file.write_text("second")
    assert [token(credentials, clock, 1.1) for _ in range(3)] == ["first", "second", "second"]


def test_unchanged_headers_are_the_same_object(make_config: Callable[..., QueueReaderConfig]) -> None:
    """The transport sees by this that it need not build its header lines again."""
    clock = Clock()
    credentials = Credentials(make_config(), monotonic=clock)
    before = credentials.current()
    clock.now += 5
    assert credentials.current() is before


def test_a_file_that_cannot_be_used_leaves_the_old_token_in_use_and_is_told_once(
    make_config: Callable[..., QueueReaderConfig], token_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    credentials = Credentials(make_config(), monotonic=clock)
    token_file.unlink()
    with caplog.at_level(logging.WARNING):
        assert [token(credentials, clock, 1.1) for _ in range(5)] == ["first"] * 5
    (line,) = caplog.messages
    assert "the token that was read before stays in use" in line
    assert str(token_file) in line
    assert "first" not in line
    token_file.touch(mode=0o600)
    token_file.write_text("second")
    assert [token(credentials, clock, 1.1) for _ in range(2)] == ["first", "second"]


def test_an_assigned_token_counts_at_once(
    make_config: Callable[..., QueueReaderConfig], token_file: Path
) -> None:
    clock = Clock()
    config = make_config(auth_token="first")
    credentials = Credentials(config, monotonic=clock)
    config.auth_token = "second"
    assert token(credentials, clock) == "second"
    config.auth_token = None
    assert token(credentials, clock) == "second"
    config.auth_token_file = str(token_file)
    assert token(credentials, clock) == "first"


def test_a_refused_token_is_read_again_at_once(
    make_config: Callable[..., QueueReaderConfig], token_file: Path
) -> None:
    clock = Clock()
    credentials = Credentials(make_config(), monotonic=clock)
    token_file.write_text("second")
    assert dict(credentials.reread())["X-API-Token"] == "second"
    assert token(credentials, clock) == "second"
    token_file.unlink()
    with pytest.raises(ValidationError, match="cannot be read"):
        credentials.reread()


def test_without_a_token_there_are_no_headers(
    make_config: Callable[..., QueueReaderConfig], token_file: Path
) -> None:
    token_file.write_text("")
    with pytest.raises(ValidationError, match="is empty"):
        Credentials(make_config())
