"""The system suite: root, and programs that ``tests/system/install`` brings. Marked ``system``; left out by default."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# What the tests of the storage share is theirs.
sys.path.append(str(Path(__file__).parent.parent / "storage"))


def _need(condition: object, what: str) -> None:
    """A check on a clean machine must not pass because something is missing there."""
    if not condition:
        if os.environ.get("CI"):
            pytest.fail(f"{what} is missing; run tests/system/install")
        pytest.skip(f"{what} is missing")


@pytest.fixture(scope="session")
def need_program() -> Callable[[str], None]:
    """Skip (in CI: fail) where a program is not installed."""
    return lambda name: _need(shutil.which(name), name)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; ``mount -o remount,size=…`` makes it larger."""
    _need(os.geteuid() == 0, "root")
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", "--lazy", directory], check=True)
