"""The forwarder's systemd unit and its example configuration: read strictly, and run for real."""

from __future__ import annotations

import grp
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infi.ramen_cli.commands.forward import forward
from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import RamenServer

if TYPE_CHECKING:
    import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "ramen-forward.service"
EXAMPLE = DEPLOY / "forward.toml"

KNOWN = {
    "Unit": {"Description", "Wants", "After"},
    "Service": {
        "Type", "ExecStart", "ExecReload", "LoadCredential", "Environment", "User", "Group", "StateDirectory", "StateDirectoryMode",
        "Restart", "RestartSec", "RestartPreventExitStatus", "TimeoutStopSec", "LimitNOFILE", "UMask", "CapabilityBoundingSet",
        "LockPersonality", "MemoryDenyWriteExecute", "NoNewPrivileges", "PrivateDevices", "PrivateTmp", "ProtectClock",
        "ProtectControlGroups", "ProtectHome", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules",
        "ProtectKernelTunables", "ProtectSystem", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime",
        "RestrictSUIDSGID", "SystemCallArchitectures", "SystemCallErrorNumber", "SystemCallFilter",
        "WatchdogSec",
    },
    "Install": {"WantedBy"},
}  # fmt: skip
"""The sections and settings of systemd that the unit may use; one that is misspelt would be ignored with a warning."""


def settings() -> dict[str, list[str]]:
    """The unit's settings, each with all its values; a setting outside of its section or unknown fails."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in UNIT.read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
            continue
        name, equals, value = line.partition("=")
        assert equals, line
        assert name in KNOWN[section], f"{name} in [{section}]"
        found.setdefault(name, []).append(value)
    return found


def test_the_unit_has_only_settings_that_exist_and_says_what_the_command_does() -> None:
    unit = settings()
    assert unit["Type"] == ["notify"]
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert unit["RestartPreventExitStatus"] == ["2"]
    (loaded,) = (value.partition(":")[0] for value in unit["LoadCredential"])
    assert unit["Environment"] == [f"RAMEN_AUTH_TOKEN_FILE=%d/{loaded}"]


def test_queues_are_shared_with_writers_of_other_users_by_one_group() -> None:
    unit = settings()
    assert "DynamicUser" not in unit
    config = tomllib.loads(EXAMPLE.read_text())["ramen"]
    assert [config["queue_group"]] == unit["Group"]
    assert int(unit["StateDirectoryMode"][0], 8) & 0o7777 == 0o2770
    assert int(unit["UMask"][0], 8) == 0o007


def test_every_option_that_the_unit_gives_exists() -> None:
    (line,) = settings()["ExecStart"]
    _, name, *arguments = shlex.split(line)
    assert name == "forward"
    known = {option for param in forward.params if isinstance(param, click.Option) for option in param.opts}
    assert {argument for argument in arguments if argument.startswith("-")} <= known


def test_the_example_as_it_stands_and_with_every_line_is_a_configuration(tmp_path: Path) -> None:
    of_the_queue = {"sender": "imx", "system_serial": 1, "system_version": "1", "queue_dir": "q"}
    config = QueueReaderConfig.load(EXAMPLE, environ={"RAMEN_AUTH_TOKEN_FILE": "t"}, **of_the_queue)
    assert config.ssl
    everything = tmp_path / "all.toml"
    everything.write_text(re.sub(r"^#(\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE))
    full = QueueReaderConfig.load(everything, environ={}, **of_the_queue)
    for name in ("ssl", "server_timeout", "retry_delay", "blacklist_ttl", "max_queue_size"):
        assert getattr(full, name) == getattr(config, name) == QueueReaderConfig.FIELDS[name].default


def test_the_unit_s_command_runs_delivers_and_tells_the_service_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd runs it, with the example's host and group replaced by the test's."""
    credentials, state = tmp_path / "credentials", tmp_path / "state"
    credentials.mkdir()
    state.mkdir(mode=0o2770)
    group = grp.getgrgid(os.getegid()).gr_name
    with RamenServer() as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        (credentials / "token").write_text(server.token + "\n")
        (credentials / "token").chmod(0o400)
        config_file = tmp_path / "forward.toml"
        text = (
            EXAMPLE.read_text()
            .replace("ramen.example.com", server.hostname)
            .replace("#ssl = true", "ssl = false")
        )
        config_file.write_text(text.replace('queue_group = "ramen"', f'queue_group = "{group}"'))
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        unit = settings()
        variable, _, file = unit["Environment"][0].partition("=")
        environ = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "NOTIFY_SOCKET": str(tmp_path / "notify"),
            variable: file.replace("%d", str(credentials)),
        }
        arguments = [
            word.replace("${STATE_DIRECTORY}", str(state)).replace(
                "/etc/ramen/forward.toml", str(config_file)
            )
            for word in shlex.split(unit["ExecStart"][0])[1:]
        ]
        with (
            QueueWriter(_writer_config(state, group)) as writer,
            subprocess.Popen([sys.executable, "-m", "infi.ramen_cli", *arguments], env=environ) as process,
        ):
            try:
                assert manager.recv(200) == b"READY=1"
                reqid = writer.push("metrics", "a", "v1", {"a": 1})
                server.wait_for(1, 30)
                assert server.accepted[0].reqid == reqid
                process.send_signal(signal.SIGTERM)
                while (told := manager.recv(200)) != b"STOPPING=1":
                    assert told.startswith(b"STATUS=imx_1: ")
                assert process.wait(30) == 0
            finally:
                process.kill()
        assert {path.stat().st_mode & 0o777 for path in state.iterdir()} == {0o660}


def _writer_config(state: Path, group: str) -> QueueReaderConfig:
    return QueueReaderConfig(
        sender="imx",
        system_serial=1,
        system_version="1",
        queue_dir=str(state),
        queue_group=group,
        hostname="unused.example",
        auth_token="unused",
    )
