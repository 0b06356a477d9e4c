from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from damage_kit import MAKE_MODEL, MAKE_MODEL_WITH_LOG, MESSAGES
from queues import finish, make_queue, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from infi.ramen_client.storage import Queue


@pytest.fixture
def queue(tmp_path: Path) -> Iterator[Queue]:
    made = make_queue(tmp_path / "queue")
    yield made
    made.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A queue's directory with 200 messages, all of them checkpointed into the database; and their reqids."""
    return _make(tmp_path_factory.mktemp("model"), MAKE_MODEL)


@pytest.fixture(scope="session")
def model_with_log(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """As ``model``; the second half of the messages is in the log alone."""
    return _make(tmp_path_factory.mktemp("model"), MAKE_MODEL_WITH_LOG)


def _make(directory: Path, script: str) -> tuple[Path, list[str]]:
    reqids = finish(start(script, directory)).split()
    assert len(reqids) == MESSAGES
    return directory, reqids


@pytest.fixture
def hurt(model: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """A copy of the model; the path of its database, which nobody in this process has open."""
    return _copy(model[0], tmp_path)


@pytest.fixture
def hurt_with_log(model_with_log: tuple[Path, list[str]], tmp_path: Path) -> Path:
    """As ``hurt``, of ``model_with_log``."""
    return _copy(model_with_log[0], tmp_path)


def _copy(directory: Path, target: Path) -> Path:
    for file in directory.iterdir():
        shutil.copy(file, target)
    return target / "imx_1099.db"
