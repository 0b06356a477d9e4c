"""The documents are true: their code runs, their links lead somewhere, the reference is that of the code."""

import contextlib
import io
import re
import runpy
import signal
from pathlib import Path

import pytest

from infi.ramen_client.testing import RamenServer

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks" / "README.md"]


def snippets(document: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE)


README_SNIPPETS = snippets(ROOT / "README.md")


@pytest.mark.parametrize("number", range(len(README_SNIPPETS)))
def test_every_python_snippet_of_the_readme_runs(number, tmp_path, monkeypatch):
    """As it stands, but for the three addresses: the server's name (and no TLS), the queue's directory, the token's file."""
    token_file = tmp_path / "token"
    token_file.write_text("xxxx\n")
    token_file.chmod(0o600)
    monkeypatch.setenv("RAMEN_SSL", "false")
    for name in ("RAMEN_HOSTNAME", "RAMEN_AUTH_TOKEN_FILE"):  # a snippet sets them, and they shall not stay
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    with RamenServer(token="xxxx") as server:
        code = README_SNIPPETS[number]
        code = code.replace("/var/ramen_client/", str(tmp_path / "queue")).replace(
            "/etc/ramen/token", str(token_file)
        )
        code = code.replace('hostname="ramen.example.com"', f'hostname="{server.hostname}", ssl=False')
        code = code.replace("ramen.example.com", server.hostname)
        code = code.replace("reader.run()\n", "")  # for ever
        output = io.StringIO()
        space: dict[str, object] = {}
        with contextlib.redirect_stdout(output):
            exec(compile(code, f"README.md, snippet {number}", "exec"), space)
        if "run(blocking=False)" in code:
            assert output.getvalue().startswith("9 messages wait\n9 messages delivered\nBooks(pushed=9, ")
            assert len(server.accepted) == 9
        elif "wait_sent" in code:
            assert not output.getvalue()
            server.wait_for(1)
        elif "server.accepted" in code:
            assert output.getvalue() == "{'value': 42}\n"
        elif "create_queue_reader_and_writer" in code:
            server.wait_for(1)
            assert server.accepted[0].json() == {"iops": 1234, "latency_ms": 0.4}
            space["reader"].stop()
        elif "signal" in code:
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        else:
            assert "xxxx" not in output.getvalue()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_file(document):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    missing = [link for link in links if not (document.parent / link).exists()]
    assert missing == []


def test_the_configuration_reference_is_what_the_code_says():
    """Red: run ``python docs/make_configuration.py``."""
    module = runpy.run_path(str(ROOT / "docs" / "make_configuration.py"))
    assert module["reference"]() == (ROOT / "docs" / "configuration.md").read_text()


def test_the_reference_of_the_commands_is_what_the_code_says():
    """Red: run ``python docs/make_commands.py``."""
    module = runpy.run_path(str(ROOT / "docs" / "make_commands.py"))
    assert module["reference"]() == (ROOT / "docs" / "commands.md").read_text()


def test_every_make_command_that_the_documents_name_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        name
        for document in DOCUMENTS
        for name in re.findall(r"(?:^\s*|`)make ([a-z-]+)", document.read_text(), re.MULTILINE)
    }
    assert named <= targets
