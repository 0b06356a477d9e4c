"""A server, configurations, writers and readers for the tests of the client; everything is closed at the end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.queue_reader import QueueReader
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import RamenServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    MakeConfig = Callable[..., QueueReaderConfig]


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server(no_proxies: None) -> Iterator[RamenServer]:
    with RamenServer() as running:
        yield running


@pytest.fixture
def queue_dir(tmp_path: Path) -> Path:
    return tmp_path / "queue"


@pytest.fixture
def fields(queue_dir: Path) -> dict[str, Any]:
    """What every configuration here has, for a server that nobody runs. Tests are in a hurry: short delays.

    One request at a time, so that a script of answers means something; streams side by side have tests of their own.
    """
    return {
        "sender": "imx",
        "system_serial": 1099,
        "system_version": "3.0.0.1",
        "queue_dir": str(queue_dir),
        "hostname": "127.0.0.1:9",
        "auth_token": "0123456789abcdef",
        "ssl": False,
        "retry_delay": 0.01,
        "max_in_flight": 1,
    }


@pytest.fixture
def make_config(request: pytest.FixtureRequest, fields: dict[str, Any]) -> MakeConfig:
    """Configurations for the ``server`` of the test, if it has one."""
    if "server" in request.fixturenames:
        running = request.getfixturevalue("server")
        fields |= {"hostname": running.hostname, "auth_token": running.token}

    def make(**changes: Any) -> QueueReaderConfig:
        return QueueReaderConfig(fields | changes)

    return make


@pytest.fixture
def config(make_config: MakeConfig) -> QueueReaderConfig:
    return make_config()


@pytest.fixture
def open_writer(config: QueueReaderConfig) -> Iterator[Callable[..., QueueWriter]]:
    opened: list[QueueWriter] = []

    def build(own_config: QueueReaderConfig = config) -> QueueWriter:
        opened.append(QueueWriter(own_config))
        return opened[-1]

    yield build
    for writer in opened:
        writer.close()


@pytest.fixture
def open_reader(config: QueueReaderConfig) -> Iterator[Callable[..., QueueReader]]:
    opened: list[QueueReader] = []

    def build(own_config: QueueReaderConfig = config) -> QueueReader:
        opened.append(QueueReader(own_config))
        return opened[-1]

    yield build
    for reader in opened:
        reader.close()


@pytest.fixture
def writer(open_writer: Callable[..., QueueWriter]) -> QueueWriter:
    return open_writer()


@pytest.fixture
def reader(open_reader: Callable[..., QueueReader]) -> QueueReader:
    return open_reader()


class Background:
    """A call in a thread of its own, and what became of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self.result = self._call()
        except BaseException as error:
            self.error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_seconds: float = 10.0) -> Any:
        """Its result; raises what it raised, ``AssertionError`` when it does not end."""
        self._thread.join(timeout_seconds)
        assert not self._thread.is_alive(), f"still running after {timeout_seconds} s"
        if self.error is not None:
            raise self.error
        return self.result


@pytest.fixture
def in_background() -> type[Background]:
    return Background


@pytest.fixture
def wait_until() -> Callable[..., None]:
    def wait(condition: Callable[[], object], timeout_seconds: float = 10.0) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            assert time.monotonic() < deadline, f"not so after {timeout_seconds} s"
            time.sleep(0.002)

    return wait


@pytest.fixture
def run_python(tmp_path: Path) -> Callable[..., str]:
    """Run a program in a process of its own; its output. Fails when the program does."""

    def run(program: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        done = subprocess.run(
            [sys.executable, *options, "-c", textwrap.dedent(program), *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture
def start_python(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a program in a process of its own; it is killed at the end of the test."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(program), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        with process:  # it closes the pipes, and waits
            pass
