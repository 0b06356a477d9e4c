"""What services share: telling the service manager, and the log."""

import logging
import os
import re
import socket
import subprocess
import sys

import pytest

from infi.ramen_cli._service import configure_logging, notify

LOG = """
import logging
from infi.ramen_cli._service import configure_logging
configure_logging()
configure_logging()
log = logging.getLogger("ramen_client")
log.debug("not shown")
log.info("%d delivered", 3)
log.warning("two\\n<0>lines")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broken")
log.critical("the end")
"""


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path, monkeypatch):
    name = "@ramen-test-" + os.urandom(8).hex() if request.param == "abstract" else str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.settimeout(20)
        yield listener


@pytest.fixture
def _root_logger_as_before():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def run_log(**environment):
    read, write = os.pipe()
    found = os.fstat(read)
    environment = {name: value.format(found=found) for name, value in environment.items()}
    with os.fdopen(read, encoding="utf-8") as output:
        try:
            subprocess.run([sys.executable, "-c", LOG], stderr=write, env=environment, check=True)
        finally:
            os.close(write)
        return output.read()


def test_the_service_manager_is_told(manager):
    notify("READY=1")
    notify("STOPPING=1\nSTATUS=Good-bye")
    assert manager.recv(100) == b"READY=1"
    assert manager.recv(100) == b"STOPPING=1\nSTATUS=Good-bye"


@pytest.mark.parametrize("address", [None, ""])
def test_without_a_service_manager_nothing_is_told(address, monkeypatch, caplog):
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    notify("READY=1")
    assert caplog.messages == []


def test_a_manager_that_is_gone_is_a_line_in_the_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    notify("READY=1")
    (line,) = caplog.messages
    assert line.startswith("The service manager could not be told READY=1: ")


def test_a_manager_that_does_not_read_holds_nothing_up(manager):
    for _ in range(2_000):  # more than a socket takes
        notify("WATCHDOG=1")


def test_a_line_of_the_log_has_time_level_logger_and_message():
    output = run_log(TZ="UTC")
    lines = [re.sub(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+0000 ", "TIME ", line) for line in output.splitlines()]
    assert lines[:4] == [
        "TIME INFO ramen_client: 3 delivered",
        "TIME WARNING ramen_client: two",
        "<0>lines",
        "TIME ERROR ramen_client: broken",
    ]
    assert lines[-1] == "TIME CRITICAL ramen_client: the end"
    assert "not shown" not in output


def test_in_the_journal_every_line_has_the_priority_and_none_a_time():
    lines = run_log(JOURNAL_STREAM="{found.st_dev}:{found.st_ino}").splitlines()
    assert lines[:4] == [
        "<6>ramen_client: 3 delivered",
        "<4>ramen_client: two",
        "<4><0>lines",
        "<3>ramen_client: broken",
    ]
    assert all(line.startswith("<3>") for line in lines[4:-1])
    assert lines[-1] == "<2>ramen_client: the end"


@pytest.mark.parametrize("stream", ["1:2", "", "nonsense"])
def test_a_journal_that_stderr_does_not_lead_to_does_not_count(stream):
    assert " INFO ramen_client: 3 delivered\n" in run_log(JOURNAL_STREAM=stream)


@pytest.mark.usefixtures("_root_logger_as_before")
def test_the_log_follows_stderr_and_the_last_call_counts(capsys):
    configure_logging(logging.DEBUG)
    configure_logging(logging.WARNING)
    logging.getLogger("ramen_server").info("not shown")
    logging.getLogger("ramen_server").warning("shown")
    assert capsys.readouterr().err.count("shown") == 1
