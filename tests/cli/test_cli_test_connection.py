"""`ramen test-connection`: the steps for people and for machines, and the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_cli.main import run
from infi.ramen_client.testing import RamenServer, Refuse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RamenServer]:
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with RamenServer() as running:
        yield running


@pytest.fixture
def config(server: RamenServer, tmp_path: Path) -> Callable[..., list[str]]:
    """The options for a configuration of the test's server."""

    def write(**changes: Any) -> list[str]:
        fields = {
            "sender": "imx",
            "system_serial": 7,
            "system_version": "1",
            "queue_dir": str(tmp_path / "queue"),
            "hostname": server.hostname,
            "auth_token": server.token,
            "ssl": False,
            **changes,
        }
        lines = (f"{name} = {json.dumps(value)}" for name, value in fields.items())
        (tmp_path / "ramen.toml").write_text("\n".join(["[ramen]", *lines]))
        return ["--config", str(tmp_path / "ramen.toml")]

    return write


def test_a_way_that_works_is_0_and_needs_no_queue(
    server: RamenServer, config: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["test-connection", *config()]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"http://{server.hostname}"
    assert [line.split()[:2] for line in lines[1:-1]] == [
        ["configuration", "ok"],
        ["name", "-"],
        ["proxy", "-"],
        ["connection", "ok"],
        ["tls", "-"],
        ["token", "ok"],
        ["answer", "ok"],
    ]
    assert lines[-1] == "Messages are taken."
    assert not (tmp_path / "queue").exists()


def test_a_refused_token_is_1_and_says_what_to_do(
    server: RamenServer, config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["test-connection", *config(auth_token="secret-4711")]) == 1
    out, err = capsys.readouterr()
    assert "  token          FAILED  the token is refused" in out
    assert out.endswith("and that the token is meant for this server.\n")
    assert "secret-4711" not in out + err


def test_the_json_document_is_as_documented(
    server: RamenServer, config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.answer_with(Refuse("UNAVAILABLE", "disk full"))
    assert run(["test-connection", "--json", *config()]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["server"], document["ok"]) == (f"http://{server.hostname}", False)
    assert set(document) == {"server", "ok", "steps"}
    *_, token, answer = document["steps"]
    assert token == {"name": "token", "outcome": "unknown", "text": "", "remedy": ""}
    assert (answer["name"], answer["outcome"]) == ("answer", "failed")
    assert "503 UNAVAILABLE: disk full" in answer["text"]
    assert answer["remedy"]


def test_a_configuration_without_what_it_needs_is_2(config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["test-connection", *config(hostname="no host")]) == 2
    assert "hostname" in capsys.readouterr().err


def test_it_runs_as_a_process(server: RamenServer, config: Any) -> None:
    command = [sys.executable, "-m", "infi.ramen_cli", "test-connection", *config()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(server.accepted) == 1
