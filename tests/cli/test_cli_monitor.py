"""What `ramen forward` tells monitoring: /healthz, /metrics, the node exporter's file, and the service manager's watchdog."""

from __future__ import annotations

import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_cli import _monitor
from infi.ramen_cli._monitor import Reporter
from infi.ramen_cli._service import watchdog_seconds
from infi.ramen_cli.commands.forward import _Watchdog
from infi.ramen_cli.main import run
from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.health import Health, Observation, Problem, Trouble
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import Accept, RamenServer, Refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SOON = 30


@pytest.fixture(autouse=True)
def _root_logger_as_before() -> Iterator[None]:
    """A command that runs in this process sets up a log for its own."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


WELL = Observation("imx_1", None, Health((), 3, 1.5, 7), 0)
ILL = Observation("imx_2", None, Health((Problem(Trouble.STUCK, "no way", 5),), 9, 200.0, None), 1)


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeForwarder:
    def __init__(self, *seen: Observation) -> None:
        self.seen = seen
        self.asked = 0
        self.hangs: dict[str, float] = {}

    def observe(self) -> Any:
        self.asked += 1
        return self.seen

    def hanging(self) -> dict[str, float]:
        return self.hangs


def ask(port: int | None, path: str, method: str = "GET") -> tuple[int, Any, str]:
    """Status, headers and body."""
    assert port is not None
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SOON)) as connection:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


@contextmanager
def reporting(*seen: Observation, textfile: Path | None = None) -> Iterator[tuple[Reporter, Any, Clock]]:
    clock, forwarder = Clock(), FakeForwarder(*seen)
    with closing(Reporter(("127.0.0.1", 0), textfile, monotonic=clock)) as reporter:
        reporter.report(forwarder)  # type: ignore[arg-type]
        yield reporter, forwarder, clock


def test_healthz_is_200_while_all_queues_are_well_and_503_while_one_is_not() -> None:
    with reporting(WELL) as (reporter, forwarder, clock):
        status, headers, body = ask(reporter.port, "/healthz?x=1")
        assert (status, headers["Content-Type"]) == (200, "application/json")
        assert headers["Server"] == "ramen", "which Python this is, is nobody's business"
        assert json.loads(body) == {
            "healthy": True,
            "problem": None,
            "queues": {
                "imx_1": {
                    "healthy": True,
                    "since": None,
                    "waiting": 3,
                    "oldest_waiting_seconds": 1.5,
                    "last_success_at": 7,
                    "problems": [],
                }
            },
        }
        forwarder.seen = (WELL, ILL)
        clock.now += 1
        reporter.report(forwarder)
        status, _, body = ask(reporter.port, "/healthz")
        assert status == 503
        found = json.loads(body)
        assert found["healthy"] is False
        assert found["queues"]["imx_2"]["problems"] == [{"trouble": "stuck", "text": "no way", "since": 5}]
    with reporting() as (reporter, _, _):
        assert ask(reporter.port, "/healthz")[0] == 200, "a directory without queues is no illness"


def test_a_main_thread_that_does_not_look_any_more_is_ill() -> None:
    with reporting(WELL) as (reporter, _, clock):
        clock.now += 60
        assert ask(reporter.port, "/healthz")[0] == 200
        clock.now += 1
        status, _, body = ask(reporter.port, "/healthz")
        assert (status, json.loads(body)["problem"][:40]) == (503, "The forwarder has not looked at its queu")
        assert ask(reporter.port, "/metrics")[0] == 503, "old values must not pass for new ones"


def test_requests_however_many_cost_no_look_at_a_queue_and_slow_looks_come_seldom() -> None:
    with reporting(WELL) as (reporter, forwarder, clock):
        for _ in range(20):
            assert ask(reporter.port, "/metrics")[0] == 200
        assert forwarder.asked == 1

        def slow() -> Any:
            forwarder.asked += 1
            clock.now += 2
            return ()

        forwarder.observe = slow
        for _ in range(100):
            reporter.report(forwarder)
            clock.now += 1
        assert forwarder.asked <= 6, "a tenth of the time at most"


def test_there_is_nothing_else_and_only_questions_are_answered() -> None:
    with reporting(WELL) as (reporter, _, _):
        assert ask(reporter.port, "/")[0] == 404
        assert ask(reporter.port, "/healthz/../../etc/passwd")[0] == 404
        assert ask(reporter.port, "/metrics", "POST")[0] == 501
        status, headers, body = ask(reporter.port, "/metrics", "HEAD")
        assert (status, body) == (200, "")
        assert int(headers["Content-Length"]) > 100


def monitor_threads() -> int:
    return sum(thread.name == "ramen-monitor" for thread in threading.enumerate())


def test_slow_clients_are_cut_and_more_than_a_few_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_monitor, "_CONNECTION_SECONDS", 1.0)
    with reporting(WELL) as (reporter, _, _):
        with ExitStack() as held:
            idle = [
                held.enter_context(socket.create_connection(("127.0.0.1", reporter.port), SOON))
                for _ in range(12)
            ]
            for one in idle[::2]:
                with suppress(OSError):  # turned away already
                    one.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
            wait_until(lambda: monitor_threads() == 1 + _monitor._CONNECTIONS)
            for _ in range(20):  # the others are in nobody's memory
                assert monitor_threads() <= 1 + _monitor._CONNECTIONS
                time.sleep(0.005)
            for one in idle:
                with suppress(ConnectionError):
                    assert one.recv(1000) == b""
        wait_until(lambda: monitor_threads() == 1)
        assert ask(reporter.port, "/healthz")[0] == 200


def test_the_file_is_written_now_and_then_and_gone_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "ramen.prom"
    with reporting(WELL, textfile=file) as (reporter, forwarder, clock):
        assert 'ramen_queue_healthy{queue="imx_1"} 1' in file.read_text()
        forwarder.seen = (ILL,)
        for _ in range(14):
            clock.now += 1
            reporter.report(forwarder)
        assert "imx_2" not in file.read_text()
        clock.now += 1
        reporter.report(forwarder)
        assert 'ramen_queue_healthy{queue="imx_2"} 0' in file.read_text()
    assert not file.exists()


def test_a_file_that_cannot_be_written_is_said_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with reporting(WELL, textfile=tmp_path / "nowhere" / "x.prom") as (reporter, forwarder, clock):
        for _ in range(3):
            clock.now += 20
            reporter.report(forwarder)
        assert ask(reporter.port, "/healthz")[0] == 200
    assert sum("cannot be written" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(
    "wrong",
    ["", ":", "x", "host:", "host:x", "::1:80", "1.2.3.4:65536", "host:-1", ":80", "[::1]80", "host:٣"],
)
def test_an_address_that_is_none_is_refused(wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["forward", "--listen", wrong]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ("9464", ("127.0.0.1", 9464)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:9464", ("::1", 9464)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_an_address_is_this_machines_unless_a_host_is_given(given: str, place: tuple[str, int]) -> None:
    assert _monitor.Address().convert(given, None, None) == place


# The service


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RamenServer]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("RAMEN_"):
            monkeypatch.delenv(name)
    with RamenServer() as running:
        yield running


HANGING = """
import sys, time
from infi.ramen_cli.main import run
from infi.ramen_client import queue_reader
from infi.ramen_client.delivery.outage import OutageLog
queue_reader._SLOW_DISK_SECONDS = 0.2
OutageLog.failed = lambda *_, **__: time.sleep(1000)
sys.exit(run(sys.argv[1:]))
"""


class Service:
    """`ramen forward` in a process of its own, or a ``program`` that ends up there."""

    def __init__(
        self, server: RamenServer, directory: Path, *options: str, program: str | None = None
    ) -> None:
        self.config = QueueReaderConfig(
            sender="imx",
            system_serial=1,
            system_version="1",
            queue_dir=str(directory / "queue"),
            hostname=server.hostname,
            auth_token=server.token,
            ssl=False,
            server_timeout=1,
            retry_delay=0.05,
        )
        file = directory / "ramen.toml"
        names = ("sender", "system_serial", "system_version", "queue_dir", "hostname", "auth_token", "ssl")
        names += ("server_timeout", "retry_delay")
        file.write_text("\n".join(f"{name} = {json.dumps(getattr(self.config, name))}" for name in names))
        file.chmod(0o600)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(directory / "notify"))
        self.manager.settimeout(SOON)
        command = ["-c", program] if program else ["-m", "infi.ramen_cli"]
        self.process = subprocess.Popen(
            [sys.executable, *command, "forward", "-c", str(file), *options],
            env={**os.environ, "NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": "300000"},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    @property
    def port(self) -> int:
        pattern = re.compile(r"serving /healthz and /metrics on port (\d+)")
        wait_until(lambda: pattern.search("".join(self.log)))
        return int(pattern.search("".join(self.log))[1])  # type: ignore[index]

    def wait_for_told(self, text: str) -> None:
        while text not in self.manager.recv(1000).decode():
            pass

    def end(self) -> None:
        self.process.kill()
        self.process.wait(SOON)
        self._reader.join(SOON)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self.manager.close()


@pytest.fixture
def start(server: RamenServer, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def begin(*options: str, program: str | None = None) -> Service:
        started.append(Service(server, tmp_path, *options, program=program))
        return started[-1]

    yield begin
    for service in started:
        service.end()


def test_the_service_answers_writes_its_file_and_turns_ill_and_well_with_its_queue(
    server: RamenServer, start: Callable[..., Service], tmp_path: Path
) -> None:
    service = start("--listen", "0", "--textfile", str(tmp_path))
    port = service.port
    assert ask(port, "/healthz")[0] == 200
    file = tmp_path / "ramen_imx_1.prom"
    wait_until(file.exists)
    server.default = Refuse("UNAUTHORIZED")
    with QueueWriter(service.config) as writer:
        writer.push("a", "b", 1, 1)
    wait_until(lambda: ask(port, "/healthz")[0] == 503)
    said = ask(port, "/healthz")[2] + ask(port, "/metrics")[2]
    assert "token_refused" in said
    assert 'ramen_queue_problem{queue="imx_1",trouble="token_refused"} 1\n' in said
    assert server.token not in said
    server.default = Accept()
    wait_until(lambda: ask(port, "/healthz")[0] == 200)
    assert (
        'ramen_queue_messages_settled_total{queue="imx_1",outcome="accepted"} 1\n' in ask(port, "/metrics")[2]
    )
    service.wait_for_told("WATCHDOG=1")
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(SOON) == 0
    assert not file.exists()


def test_a_port_that_is_taken_is_said_and_is_3(
    server: RamenServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "SENDER": "imx", "SYSTEM_SERIAL": "1", "SYSTEM_VERSION": "1", "QUEUE_DIR": str(tmp_path), "HOSTNAME": server.hostname,
        "AUTH_TOKEN": server.token, "SSL": "false",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"RAMEN_{name}", value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert run(["forward", "--listen", str(taken.getsockname()[1])]) == 3
    assert "cannot be listened on: " in capsys.readouterr().err
    assert run(["forward", "--once", "--listen", "0"]) == 2


def test_a_reader_that_hangs_misses_the_watchdog_although_the_main_thread_turns(
    server: RamenServer, start: Callable[..., Service]
) -> None:
    server.default = Refuse("UNAUTHORIZED")
    service = start("--listen", "0", program=HANGING)
    service.wait_for_told("WATCHDOG=1")
    with QueueWriter(service.config) as writer:
        writer.push("a", "b", 1, 1)
    wait_until(lambda: any("it hangs" in line for line in service.log))
    service.manager.setblocking(False)
    while True:
        try:
            service.manager.recv(1000)
        except BlockingIOError:
            break
    wait_until(lambda: "reader_hangs" in ask(service.port, "/healthz")[2])
    service.manager.settimeout(1.0)  # three of the watchdog's periods
    with pytest.raises(TimeoutError):
        service.wait_for_told("WATCHDOG=1")
    assert sum("it hangs" in line for line in service.log) == 1


# Its parts


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
    ],
)
def test_the_watchdog_of_the_service_manager_is_read_from_the_environment(
    environment: dict[str, str], seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert watchdog_seconds() == seconds


def test_a_hanging_reader_is_said_once_and_the_beat_comes_back_with_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    monkeypatch.setattr("infi.ramen_cli.commands.forward.notify", told.append)
    forwarder: Any = FakeForwarder()
    watchdog = _Watchdog(1.0)
    watchdog.beat(forwarder)
    assert told == ["WATCHDOG=1"]
    forwarder.hangs = {"imx_1": 200.0}
    for _ in range(3):
        watchdog.beat(forwarder)
    assert told == ["WATCHDOG=1"]
    assert caplog.messages == ["imx_1: its reader has not turned for 200 s: it hangs"]
    forwarder.hangs = {}
    watchdog.beat(forwarder)
    assert told == ["WATCHDOG=1"] * 2
    _Watchdog(None).beat(forwarder)
    assert told == ["WATCHDOG=1"] * 2
