"""The collector's systemd unit and its example configuration say what is so: they are parsed, and run for real."""

import http.client
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import click
import pytest
import trustme

from infi.ramen_cli.commands.serve import serve
from infi.ramen_server import Limits, ServerConfig
from infi.ramen_server.config_file import load_config

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "ramen-collector.service"
EXAMPLE = DEPLOY / "collector.toml"


def unit():
    """The settings of the unit: name to the list of its values."""
    found = {}
    text = re.sub(r"\\\n\s*", " ", UNIT.read_text())
    for line in text.splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def command():
    (line,) = unit()["ExecStart"]
    return shlex.split(line)


def test_every_option_that_the_unit_gives_exists():
    _, name, *arguments = command()
    assert name == "serve"
    serve.make_context("ramen serve", arguments, resilient_parsing=True)
    known = {option for param in serve.params if isinstance(param, click.Option) for option in param.opts}
    assert {argument for argument in arguments if argument.startswith("-")} <= known


def test_the_unit_hands_over_what_its_command_uses():
    settings = unit()
    assert settings["Type"] == ["notify"]
    assert settings["DynamicUser"] == ["yes"]
    credentials = {value.partition(":")[0] for value in settings["LoadCredential"]}
    assert set(re.findall(r"\$\{CREDENTIALS_DIRECTORY\}/(\S+)", settings["ExecStart"][0])) == credentials
    assert settings["StateDirectory"] == [load_config().data_dir.name], "so that commands find it by default"
    assert settings["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert float(settings["TimeoutStopSec"][0]) > Limits().stop_seconds
    assert int(settings["LimitNOFILE"][0]) > Limits().max_connections + 100


def test_the_example_has_every_field_with_its_default(tmp_path):
    everything = tmp_path / "all.toml"
    everything.write_text(re.sub(r"^#(\w+ = )", r"\1", EXAMPLE.read_text(), flags=re.MULTILINE))
    document = tomllib.loads(everything.read_text())
    limits = document.pop("limits")
    assert set(document) == {field.name for field in fields(ServerConfig)} - {"limits"}
    assert limits.pop("messages_per_second") == 50, "an example: there is no default"
    assert limits == {
        field.name: field.default for field in fields(Limits) if field.name != "messages_per_second"
    }
    default = load_config()
    loaded = load_config(everything)
    for name in ("data_dir", "port", "insecure", "remember_days"):
        assert getattr(loaded, name) == getattr(default, name)


def test_the_example_as_it_stands_wants_a_certificate():
    with pytest.raises(ValueError, match="TLS"):
        load_config(EXAMPLE)
    assert load_config(EXAMPLE, tls_certificate=Path("c"), tls_key=Path("k")).limits == Limits()


def test_the_unit_s_command_runs_and_tells_the_service_manager(tmp_path):
    """As systemd runs it, but for the addresses: a free port, and the paths of this test."""
    state, credentials = tmp_path / "state", tmp_path / "credentials"
    credentials.mkdir()
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(credentials / "tls.key")
    (credentials / "tls.crt").write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    arguments = [
        word.replace("${STATE_DIRECTORY}", str(state))
        .replace("${CREDENTIALS_DIRECTORY}", str(credentials))
        .replace("/etc/ramen/collector.toml", str(EXAMPLE))
        for word in command()[1:]
    ]
    arguments += ["--host", "127.0.0.1", "--port", "0", "--min-free-bytes", "0"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        with subprocess.Popen(
            [sys.executable, "-m", "infi.ramen_cli", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        ) as process:
            try:
                assert manager.recv(100) == b"READY=1"
                url = process.stdout.readline().split()[-1]
                token = (state / "first-token").read_text().strip()
                trust = ssl.create_default_context()
                authority.configure_trust(trust)
                connection = http.client.HTTPSConnection(
                    "127.0.0.1", int(url.rpartition(":")[2]), timeout=60, context=trust
                )
                target = "/ramen/v1/metrics/1/imx.a.1/?version=1&reqid=1"
                connection.request("POST", target, "{}", {"X-API-Token": token})
                assert connection.getresponse().read() == b'{"code":"ACCEPTED","details":null}'
                connection.close()
                process.send_signal(signal.SIGTERM)
                assert manager.recv(100) == b"STOPPING=1"
                assert process.wait(60) == 0
                assert token not in process.stdout.read()
            finally:
                process.kill()
