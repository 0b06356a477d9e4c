"""``ramen tokens``: shown once, within its scope, refused when it is revoked."""

import json
import subprocess

import pytest
from serve_kit import RAMEN, Serve, connect, environment, post

from infi.ramen_cli.main import run
from infi.ramen_server import Settings


@pytest.fixture
def directory(tmp_path):
    directory = tmp_path / "data"
    Settings(directory).close()
    return directory


@pytest.fixture
def tokens(directory, capsys):
    """Run a subcommand; its exit code, stdout and stderr."""

    def call(name, *arguments):
        code = run(["tokens", name, "--data-dir", str(directory), *arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_tokens_count_in_a_running_collector_within_their_scope_until_they_are_revoked(tmp_path):
    directory = tmp_path / "data"

    def tokens(*arguments):
        return subprocess.run(
            [*RAMEN, "tokens", *arguments, "--data-dir", directory],
            capture_output=True, text=True, check=True, timeout=100, env=environment(),
        ).stdout.strip()  # fmt: skip

    with Serve(directory) as serve:
        mine = tokens("add", "--name", "mine", "--sender", "im*", "--system-serial", "1099")
        others = tokens("add", "--name", "others", "--sender", "ibox", "--sender", "xyz")
        reader = tokens("add", "--name", "reader", "--purpose", "read")
        connection = connect(serve)
        assert post(connection, mine, "1") == 202
        assert post(connection, others, "2") == 403
        assert post(connection, reader, "3") == 403
        connection.request("GET", "/metrics", headers={"Authorization": f"Bearer {reader}"})
        answer = connection.getresponse()
        assert (answer.status, b"ramen_store_messages 1\n" in answer.read()) == (200, True)
        assert tokens("revoke", "mine") == "Token mine is revoked."
        assert post(connection, mine, "4") == 401
        connection.close()
        assert serve.end() == 0
        assert not any(token in serve.log for token in (mine, others, reader))


def test_a_token_is_shown_once_and_alone_on_stdout(directory, tokens):
    code, token, hint = tokens("add", "--name", "site-1")
    assert code == 0
    assert token.startswith("ramen_")
    assert token.count("\n") == 1
    assert "shown once" in hint
    assert token.strip() not in hint
    for arguments in (["list"], ["list", "--json"]):
        assert token.strip() not in "".join(map(str, tokens(*arguments)))
    assert token.strip().encode() not in b"".join(path.read_bytes() for path in directory.iterdir())


def test_tokens_are_listed_with_their_scopes_and_ends(tokens):
    assert tokens("list")[:2] == (0, "There are no tokens. Make one by: ramen tokens add --name NAME\n")
    added = json.loads(tokens("add", "--name", "a", "--sender", "x*", "--sender", "y", "--json")[1])
    assert added.pop("token").startswith("ramen_")
    assert added == {
        "name": "a",
        "purpose": "send",
        "senders": ["x*", "y"],
        "system_serials": ["*"],
        "added_at": added["added_at"],
        "revoked_at": None,
    }
    tokens("add", "--name", "b", "--purpose", "read")
    assert tokens("revoke", "b")[0] == 0
    first, second = json.loads(tokens("list", "--json")[1])["tokens"]
    assert first == added
    assert (second["name"], second["purpose"], second["revoked_at"] >= second["added_at"]) == (
        "b",
        "read",
        True,
    )
    lines = [line.split() for line in tokens("list")[1].splitlines()]
    assert lines[0] == ["name", "purpose", "senders", "serials", "added", "revoked"]
    assert lines[1][:5] == ["a", "send", "x*", "y", "*"]
    assert len(lines[1]) == 7
    assert len(lines[2]) == 8, "with the time when it was revoked"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--name", "no spaces"], "a token's name must be"),
        (["--name", "x" * 65], "a token's name must be"),
        (["--name", "taken"], "there is a token of this name"),
        (["--name", "a", "--sender", "x.*"], "sender pattern 'x.*'"),
        (["--name", "a", "--system-serial", ""], "serial pattern ''"),
        (["--name", "a", "--purpose", "all"], "'all' is not one of"),
        ([], "Missing option '--name'"),
    ],
)
def test_a_token_that_cannot_be_made_is_refused_in_words(tokens, arguments, words):
    tokens("add", "--name", "taken")
    tokens("revoke", "taken")
    code, said, error = tokens("add", *arguments)
    assert (code, said) == (2, "")
    assert words in error
    assert len(json.loads(tokens("list", "--json")[1])["tokens"]) == 1


@pytest.mark.parametrize("name", ["unknown", "gone"])
def test_what_is_not_in_use_cannot_be_revoked(tokens, name):
    tokens("add", "--name", "gone")
    tokens("revoke", "gone")
    assert tokens("revoke", name) == (1, "", f"There is no token of this name that is in use: '{name}'.\n")


def test_files_that_are_no_databases_are_an_error_in_words(tmp_path, capsys):
    (tmp_path / "settings.db").write_bytes(b"not a database, but long enough to be looked at by SQLite" * 100)
    assert run(["tokens", "list", "--data-dir", str(tmp_path)]) == 3
    assert capsys.readouterr().err == (
        f"ramen: {tmp_path}: the collector's files cannot be used: file is not a database\n"
    )


@pytest.mark.parametrize("arguments", [["list"], ["add", "--name", "a"], ["revoke", "a"]])
def test_where_no_collector_ran_nothing_is_made(tmp_path, capsys, arguments):
    assert run(["tokens", *arguments, "--data-dir", str(tmp_path / "none")]) == 3
    assert "Has a collector run in this directory?" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
