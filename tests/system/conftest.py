"""The system suite: root, and programs that ``tests/system/install`` brings. Marked ``system``; left out by default."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

# What the tests of the storage and of the client share is theirs.
sys.path += [str(Path(__file__).parent.parent / name) for name in ("storage", "client")]


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


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine goes through, the test does not."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Whom the client trusts."""
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    """The authority's certificate."""
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def issue(authority: trustme.CA, tmp_path: Path) -> Callable[..., Path]:
    """A certificate and its key in one new file, from the authority or from another one."""

    def issue(*names: str, by: trustme.CA = authority, **fields: datetime) -> Path:
        file = tmp_path / f"{len(list(tmp_path.iterdir()))}.pem"
        file.touch(mode=0o600)
        file.write_bytes(by.issue_cert(*names, **fields).private_key_and_cert_chain_pem.bytes())
        return file

    return issue
