"""systemd itself reads the units in deploy/, and finds nothing wrong with them."""

import http.client
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.system

UNITS = sorted((Path(__file__).parents[2] / "deploy").glob("*.service"))
RAMEN = Path(sys.executable).with_name("ramen")


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong_with_the_unit(unit, tmp_path, need_program):
    """With the command of this environment in place of the one that the unit expects to be installed."""
    need_program("systemd-analyze")
    text, count = re.subn(r"^(Exec\w+=)/\S+/ramen ", rf"\1{RAMEN} ", unit.read_text(), flags=re.MULTILINE)
    assert count
    (tmp_path / unit.name).write_text(text)
    found = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=one", tmp_path / unit.name],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def members(*names):
    """The system calls of systemd's sets, with those of the sets in them."""
    calls = set()
    for name in names:
        listed = subprocess.run(
            ["systemd-analyze", "syscall-filter", name],
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        ).stdout.split("\n")[1:]
        entries = {line.strip() for line in listed if line.strip() and not line.strip().startswith("#")}
        calls |= {entry for entry in entries if not entry.startswith("@")}
        calls |= members(*(entry for entry in entries if entry.startswith("@")))
    return calls


def test_the_collector_makes_no_system_call_that_its_unit_forbids(tmp_path, need_program):
    need_program("strace")
    need_program("systemd-analyze")
    unit = next(unit for unit in UNITS if unit.name == "ramen-collector.service").read_text()
    allowed, forbidden = re.findall(r"^SystemCallFilter=(.*)$", unit, re.MULTILINE)
    allowed = members(*allowed.split()) - members(*forbidden.removeprefix("~").split())
    trace = tmp_path / "trace"
    serve = [RAMEN, "serve", "--data-dir", tmp_path / "data", "--port", "0", "--min-free-bytes", "0"]
    with subprocess.Popen(
        ["strace", "-f", "-qq", "--signal=none", "-o", trace, *serve], stdout=subprocess.PIPE, text=True
    ) as process:
        url = process.stdout.readline().split()[-1]
        # Not before: strace itself has children for a moment, to try out what it may do.
        server = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        try:
            lines = iter(process.stdout.readline, "")
            token = next(line.strip() for line in lines if line.startswith("    ramen_"))
            connection = http.client.HTTPConnection(url.partition("://")[2], timeout=60)
            for number in range(20):
                target = f"/ramen/v1/metrics/1/imx.a.1/?version=1&reqid={number}"
                connection.request("POST", target, "{}", {"X-API-Token": token})
                assert connection.getresponse().read().startswith(b'{"code":"ACCEPTED"')
            connection.close()
            os.kill(server, signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            if process.poll() is None:
                os.kill(server, signal.SIGKILL)
    made = set(re.findall(r"^\d+\s+(?:<\.\.\. )?(\w+)[( ]", trace.read_text(), re.MULTILINE))
    assert {"fdatasync", "accept4"} & made
    # SQLite gives new files to the owner of the database, but only as root, which the unit is not.
    assert made - allowed <= {"fchown"}
