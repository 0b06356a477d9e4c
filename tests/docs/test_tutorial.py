"""The tutorial is true: its commands are run in its order, in real processes, and write what it shows.

In what it shows, ``…`` stands for anything, and times, tokens, ids and lengths of time for any others. The port is a free one.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```(\w+)(?: (\w+))?\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)

PATIENCE_SECONDS = 60

ANY = [
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\+\d{4})?", "TIME"),
    (r"ramen_[\w-]{43}", "TOKEN"),
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
    (r'"received_at":\d+', "RECEIVED"),
    (r"\b\d+(\.\d+)? (ms|s|min)( \d+ s)?\b", "LONG"),
    (r"version \S+;", "VERSION;"),
]


def same(text):
    for pattern, name in ANY:
        text = re.sub(pattern, name, text)
    return text.replace("/home/ada/tour", str(Path.cwd())).strip()


def shows(output, expected):
    """Whether what was written is what the page shows."""
    pattern = ".*?".join(re.escape(part) for part in same(expected).split("…"))
    return re.fullmatch(pattern, same(output), re.DOTALL) is not None


def wait_for(output, expected):
    """Call ``output`` until what it gives is what the page shows."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not shows(found := output(), expected):
        assert time.monotonic() < deadline, f"the page shows\n{expected}\nbut there is\n{found}"
        time.sleep(0.05)


class Terminal:
    """Where a command runs that does not end by itself."""

    def __init__(self, command):
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._said = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def said(self):
        return "".join(self._said)

    def interrupt(self):
        """Press Ctrl-C, and wait for the end."""
        self._said.clear()
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(PATIENCE_SECONDS) == 0
        self._reading.join()

    def close(self):
        self.process.kill()
        self.process.wait()
        self._reading.join()
        self.process.stdout.close()

    def _read(self):
        for line in self.process.stdout:
            self._said.append(line)


def run(command):
    return subprocess.run(
        ["bash", "-c", command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
        check=False,
    ).stdout


@pytest.fixture
def port(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("RAMEN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_the_tutorial_runs_as_it_stands(port):
    terminals = {}
    try:
        for kind, where, shown in BLOCKS:
            text = shown.replace("8443", port)
            if kind == "toml":
                Path("ramen.toml").write_text(text)
            elif kind == "python":
                Path("sensor.py").write_text(text)
            elif kind == "console" and not where:
                for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
                    if re.match(r"ramen (status|export|check|blacklist list)\b", command):
                        # A question: what it is about may take a moment.
                        wait_for(lambda command=command: run(command), expected)
                    else:
                        assert shows(said := run(command), expected), f"{command}\n{said}"
            elif kind == "console":
                first, _, expected = text.partition("\n")
                if first == "^C":
                    terminals[where].interrupt()
                else:
                    if where in terminals:
                        terminals.pop(where).close()
                    terminals[where] = Terminal(first.removeprefix("$ "))
                wait_for(terminals[where].said, expected)
        assert len(run("ramen export --data-dir collector --data-type temperature").splitlines()) == 5
    finally:
        for terminal in terminals.values():
            terminal.close()


def test_what_the_tutorial_installs_is_this_package():
    (requirement,) = re.findall(r"pip install '([^']+)'", PAGE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    name, extra = re.fullmatch(r"([\w.]+)\[(\w+)\]", requirement).groups()
    assert name == project["name"]
    assert extra in project["optional-dependencies"]
