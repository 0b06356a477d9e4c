"""`ramen forward`: real processes that deliver, are told to stop, to read their configuration again, and are killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_cli.main import run
from infi.ramen_client.config import QueueWriterConfig
from infi.ramen_client.forwarder import Forwarder
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import Accept, Hang, RamenServer, Received, Refuse, Reply, Status
from infi.ramen_protocol import compress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SOON = 30
"""Seconds: the machine may be busy."""


def wait_until(condition: Callable[[], object], what: str = "it") -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {SOON} s"
        time.sleep(0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RamenServer]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("RAMEN_"):
            monkeypatch.delenv(name)
    with RamenServer() as running:
        yield running


class Host:
    """A directory of queues, a configuration file and a token file."""

    def __init__(self, directory: Path, server: RamenServer) -> None:
        self.queues = directory / "queues"
        self.queues.mkdir()
        self.file = directory / "ramen.toml"
        self.token = directory / "token"
        self.set_token(server.token)
        self.fields: dict[str, Any] = {
            "queue_dir": str(self.queues),
            "sender": "imx",
            "system_serial": 1,
            "system_version": "1",
            "hostname": server.hostname,
            "auth_token_file": str(self.token),
            "ssl": False,
            "retry_delay": 0.05,
        }
        self.configure()

    def configure(self, **changes: Any) -> None:
        self.fields |= changes
        lines = (f"{name} = {json.dumps(value)}" for name, value in self.fields.items())
        self.file.write_text("\n".join(["[ramen]", *lines]))

    def set_token(self, token: str) -> None:
        self.token.write_text(token)
        self.token.chmod(0o600)

    def writer(self, serial: int = 1, **fields: Any) -> QueueWriter:
        given = {"sender": "imx", "system_serial": serial, "system_version": f"{serial}.0", **fields}
        return QueueWriter(QueueWriterConfig(given, queue_dir=str(self.queues), durability="normal"))

    def push(self, *values: int, serial: int = 1) -> list[str]:
        with self.writer(serial) as writer:
            return [writer.push("metrics", "x", "v1", value) for value in values]

    def waiting(self, serial: int = 1) -> int:
        with self.writer(serial) as writer:
            return writer.queue_size()


@pytest.fixture
def host(tmp_path: Path, server: RamenServer) -> Host:
    return Host(tmp_path, server)


class Service:
    """A forwarder in a process of its own, with a service manager and a log."""

    def __init__(self, options: list[str], directory: Path) -> None:
        directory.mkdir()
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(str(directory / "notify"))
        self._manager.settimeout(SOON)
        self.told: list[str] = []
        self._log: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infi.ramen_cli", "forward", *options],
            env={**os.environ, "NOTIFY_SOCKET": str(directory / "notify")},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._log.append(line)

    @property
    def log(self) -> str:
        return "".join(self._log)

    def wait_for_told(self, text: str) -> None:
        while not self.told or text not in self.told[-1]:
            self.told.append(self._manager.recv(1000).decode())

    def wait_for_log(self, text: str, count: int = 1) -> None:
        wait_until(lambda: self.log.count(text) >= count, f"{text!r} in the log")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        code = self.process.wait(SOON)
        self._reader.join(SOON)
        return code

    def end(self) -> None:
        self.process.kill()
        self.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()
        self._manager.close()


@pytest.fixture
def start(host: Host, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def begin(*options: str, ready: bool = True) -> Service:
        started.append(Service(["--config", str(host.file), *options], tmp_path / f"service-{len(started)}"))
        if ready:
            started[-1].wait_for_told("READY=1")
        return started[-1]

    yield begin
    for service in started:
        service.end()


def numbers(server: RamenServer) -> list[int]:
    return [message.json() for message in server.accepted]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_delivers_until_it_is_told_to_stop_and_ends_with_0(
    server: RamenServer, host: Host, start: Any, number: int
) -> None:
    service = start()
    host.push(1, 2)
    server.wait_for(2, SOON)
    service.wait_for_told("STATUS=imx_1: 0 waiting")
    assert service.stop(number) == 0
    service.wait_for_told("STOPPING=1")
    assert numbers(server) == [1, 2]
    assert f"ramen_client: imx_1: delivery to http://{server.hostname} begins" in service.log
    assert "imx_1: delivery to" in service.log
    assert "ends; accepted or dropped: 2" in service.log
    assert server.token not in service.log
    assert "Traceback" not in service.log


def test_it_stops_at_once_out_of_an_answer_that_hangs(server: RamenServer, host: Host, start: Any) -> None:
    server.default = Hang()
    service = start()
    host.push(1)
    server.wait_for_received(1, SOON)
    assert service.stop() == 0
    assert host.waiting() == 1


def test_it_makes_its_queue_and_waits_for_one_that_was_taken_away(
    server: RamenServer, host: Host, start: Any
) -> None:
    service = start()
    assert (host.queues / "imx_1.db").exists()
    for file in host.queues.iterdir():
        file.unlink()
    service.wait_for_log("the reader ends")
    assert not (host.queues / "imx_1.db").exists(), "it is not made anew"
    host.push(7)
    server.wait_for(1, SOON)
    assert service.stop() == 0


def test_a_refused_token_ends_nothing_and_heals_by_sighup(
    server: RamenServer, host: Host, start: Any
) -> None:
    good, server.token = server.token, "the-new-one"
    host.configure(retry_delay=3600)
    host.push(1, 2)
    service = start()
    service.wait_for_log("the token is refused")
    assert service.process.poll() is None
    assert host.waiting() == 2
    host.set_token("the-new-one")
    service.process.send_signal(signal.SIGHUP)
    server.wait_for(2, SOON)
    assert service.stop() == 0
    assert "SIGHUP: the configuration was read again" in service.log
    assert good not in service.log
    assert "the-new-one" not in service.log


def test_sighup_takes_another_server_and_what_was_in_flight_is_sent_there(
    server: RamenServer, host: Host, start: Any
) -> None:
    server.default = Hang()
    reqids = host.push(1, 2, 3)
    service = start()
    server.wait_for_received(1, SOON)
    with RamenServer(token=server.token) as other:
        host.configure(hostname=other.hostname)
        service.process.send_signal(signal.SIGHUP)
        other.wait_for(3, SOON)
        assert [message.reqid for message in other.accepted] == reqids
        assert service.stop() == 0


def test_sighup_under_load_loses_and_doubles_nothing(server: RamenServer, host: Host, start: Any) -> None:
    service = start()
    with host.writer() as writer:
        for n in range(600):
            writer.push("metrics", "x", "v1", n)
            if n % 100 == 50:
                service.process.send_signal(signal.SIGHUP)
    server.wait_for(600, SOON)
    assert service.stop() == 0
    assert sorted(numbers(server)) == list(range(600))


def test_a_wrong_configuration_at_sighup_changes_nothing(server: RamenServer, host: Host, start: Any) -> None:
    service = start()
    host.file.write_text("[ramen]\nhostname = 5\nretry_dely = 1\n")
    service.process.send_signal(signal.SIGHUP)
    service.wait_for_log("all goes on as before")
    assert "retry_dely" in service.log
    assert "ends" not in service.log
    host.push(1)
    server.wait_for(1, SOON)
    assert service.stop() == 0


def test_after_kill_9_a_new_process_goes_on_and_nothing_is_lost_or_twice(
    server: RamenServer, host: Host, start: Any
) -> None:
    host.push(*range(300))
    service = start()
    server.wait_for(20, SOON)
    service.process.kill()
    assert service.wait() == -signal.SIGKILL
    service = start()
    server.wait_for(300, SOON)
    assert service.stop() == 0
    assert numbers(server) == list(range(300))


def test_of_two_forwarders_one_is_active_and_the_other_takes_over_after_kill_9(
    server: RamenServer, host: Host, start: Any
) -> None:
    first = start()
    first.wait_for_log("begins")
    second = start()
    second.wait_for_log("another reader is active")
    host.push(1)
    server.wait_for(1, SOON)
    first.process.kill()
    first.wait()
    host.push(2)
    server.wait_for(2, SOON)
    second.wait_for_log("begins")
    assert second.stop() == 0
    assert numbers(server) == [1, 2]


# --all


def push_as_1x(path: Path, value: int) -> None:
    """As a 1.x program that still runs beside: its rows have no version. In a process of its own."""
    program = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
row = ("metrics", "x", "v1", bytes.fromhex(sys.argv[2]))
connection.execute("INSERT INTO queue (category, data_type, data_version, data) VALUES (?, ?, ?, ?)", row)
connection.commit()
connection.close()
"""
    arguments = [str(path), compress(str(value).encode()).hex()]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=SOON)


def test_every_queue_is_delivered_each_with_its_own_identity_new_ones_too(
    server: RamenServer, host: Host, start: Any
) -> None:
    for name in ("sender", "system_serial", "system_version", "queue_dir"):
        del host.fields[name]
    host.configure()
    host.push(1, serial=1)
    host.push(2, serial=22)
    service = start("--all", str(host.queues))
    server.wait_for(2, SOON)
    host.push(3, serial=333)
    server.wait_for(3, SOON)
    service.wait_for_told("STATUS=3 queues: 0 waiting")
    push_as_1x(host.queues / "imx_22.db", 4)
    server.wait_for(4, SOON)
    assert service.stop() == 0
    found = {message.json(): message.envelope for message in server.accepted}
    assert [(found[n].system_serial, found[n].system_version) for n in (1, 2, 3, 4)] == [
        (1, "1.0"),
        (22, "22.0"),
        (333, "333.0"),
        (22, "22.0"),
    ]


def test_a_queue_that_is_gone_is_dropped_and_one_that_hangs_holds_up_no_other(
    server: RamenServer, host: Host, start: Any
) -> None:
    def hang_for_one(message: Received) -> Reply:
        return Hang() if message.envelope.system_serial == 1 else Accept()

    server.default = hang_for_one
    host.push(1, serial=1)
    service = start("--all", str(host.queues))
    server.wait_for_received(1, SOON)
    host.push(2, serial=2)
    server.wait_for(1, SOON)
    for file in host.queues.glob("imx_2.db*"):
        file.unlink()
    service.wait_for_told("STATUS=imx_1: 1 waiting")
    assert service.stop() == 0


def test_what_is_no_queue_is_left_alone_and_said_once(server: RamenServer, host: Host, start: Any) -> None:
    host.push(1)
    (host.queues / "other_5.db").write_bytes(b"no database at all" * 100)
    (host.queues / "imx_9.db").write_bytes((host.queues / "imx_1.db").read_bytes())
    (host.queues / "notes.db").write_text("not named like a queue")
    before = {path: path.read_bytes() for path in host.queues.glob("[on]*.db")}
    service = start("--all", str(host.queues))
    server.wait_for(1, SOON)
    service.wait_for_log("other_5.db")
    service.wait_for_log("under another name")
    with host.writer(2) as writer:
        writer.push("metrics", "x", "v1", 2)
        server.wait_for(2, SOON)  # it looked again
    assert service.log.count("under another name") == 1
    assert service.stop() == 0
    assert {path: path.read_bytes() for path in host.queues.glob("[on]*.db")} == before
    assert "notes.db" not in service.log


# --once and exit codes


def test_once_delivers_and_ends_with_0(
    server: RamenServer, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    host.push(1, 2)
    assert run(["forward", "--once", "-c", str(host.file)]) == 0
    assert capsys.readouterr().out == "imx_1: 2 handled, 0 still waiting\n"
    host.push(3, serial=3)
    assert run(["forward", "--once", "-c", str(host.file), "--all", str(host.queues)]) == 0
    assert capsys.readouterr().out == "imx_1: 0 handled, 0 still waiting\nimx_3: 1 handled, 0 still waiting\n"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Status(503), "1 handled, 1 still waiting\n"),
        (Refuse("UNAUTHORIZED"), "1 handled, 1 still waiting: the token is refused"),
        (Refuse("BAD_REQUEST"), "2 handled, 1 of them refused (dead letters), 0 still waiting\n"),
    ],
    ids=["unavailable", "token", "refused"],
)
def test_once_is_1_when_not_everything_was_delivered(
    server: RamenServer, host: Host, capsys: pytest.CaptureFixture[str], reply: Reply, said: str
) -> None:
    host.push(1, 2)
    server.answer_with(Accept(), reply)
    assert run(["forward", "--once", "-c", str(host.file)]) == 1
    assert said in capsys.readouterr().out


def test_once_beside_an_active_forwarder_is_1_while_something_waits(
    server: RamenServer, host: Host, start: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.default = Hang()
    start()
    host.push(1)
    server.wait_for_received(1, SOON)
    assert run(["forward", "--once", "-c", str(host.file)]) == 1
    out, err = capsys.readouterr()
    assert out == "imx_1: 0 handled, 1 still waiting\n"
    assert "another reader is active" in err


def test_a_wrong_command_line_or_configuration_is_2(host: Host, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["forward", "-c", str(host.file), "--all", str(host.queues), "--sender", "imx"]) == 2
    host.configure(hostname="http://x/")
    for options in ([], ["--all", str(host.queues)], ["--once"]):
        assert run(["forward", "-c", str(host.file), *options]) == 2
        assert "hostname" in capsys.readouterr().err


def test_a_queue_or_directory_that_cannot_be_used_is_3(
    host: Host, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["forward", "-c", str(host.file), "--all", str(tmp_path / "none")]) == 3
    (host.queues / "imx_1.db").symlink_to(tmp_path / "elsewhere")
    for options in ([], ["--once"]):
        assert run(["forward", "-c", str(host.file), *options]) == 3
    assert "imx_1.db" in capsys.readouterr().err


# The API


def test_a_forwarder_is_an_api_too(server: RamenServer, host: Host) -> None:
    from functools import partial

    from infi.ramen_client.config import QueueReaderConfig

    host.push(1, serial=1)
    with Forwarder(partial(QueueReaderConfig.load, host.file, environ={}), host.queues) as forwarder:
        forwarder.look()
        host.push(2, serial=2)
        forwarder.look()
        server.wait_for(2, SOON)
        assert sorted(forwarder.queues) == ["imx_1", "imx_2"]
        wait_until(lambda: forwarder.waiting() == 0)
        forwarder.reload()
        host.push(3, serial=2)
        server.wait_for(3, SOON)
    assert forwarder.queues == []
    assert not [thread for thread in threading.enumerate() if thread.name == "ramen-reader"]
