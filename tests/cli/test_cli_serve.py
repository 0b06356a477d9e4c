"""``ramen serve``: real processes that are stopped, killed, told to read their certificate again, and wrongly started."""

import http.client
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import tomllib

import pytest
import trustme
from cryptography.hazmat.primitives import serialization  # trustme's own
from serve_kit import RAMEN, Serve, client_config, connect, deliver, environment, post

from infi.ramen_cli.main import run
from infi.ramen_client import QueueReaderConfig
from infi.ramen_server import Purpose, Selection, Settings, SqliteArchive


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "data"


def held(directory):
    with SqliteArchive(directory) as archive:
        return [message.envelope.reqid for message in archive.export(Selection())]


def token_of(directory, name="test", purpose=Purpose.SEND):
    with Settings(directory) as settings:
        return settings.add_token(name, purpose=purpose)


def failing(*arguments, **more):
    """Run to the end; the exit code, and stderr."""
    found = subprocess.run(
        [*RAMEN, "serve", "--port", "0", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment(**more),
        check=False,
    )
    assert found.stdout == ""
    return found.returncode, found.stderr


class Authority:
    """Issues certificates for 127.0.0.1 and their keys, always at the same two paths."""

    def __init__(self, directory):
        self.certificate, self.key = directory / "cert.pem", directory / "key.pem"
        self.options = ("--tls-certificate", self.certificate, "--tls-key", self.key)
        self.ca_file = directory / "ca.pem"
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(self.ca_file)
        self.client = ssl.create_default_context()
        self._authority.configure_trust(self.client)

    def issue(self):
        """The new certificate, in the form in which a client sees it."""
        issued = self._authority.issue_cert("127.0.0.1")
        self.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())
        return ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())

    def seen_at(self, serve):
        with (
            socket.create_connection((serve.host, serve.port), timeout=60) as plain,
            self.client.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            return connection.getpeercert(binary_form=True)


# The first start


def test_the_first_start_says_how_to_send_and_what_it_says_works(directory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Serve(directory) as serve:
        assert serve.url == f"http://127.0.0.1:{serve.port}"
        assert serve.end() == 0
        said = serve.rest_of_stdout()
        token = re.search(r"^    (ramen_\S+)$", said, re.MULTILINE)[1]
        assert token not in serve.log
    lines = re.search(r"^    \[ramen\]\n(    .*\n)+", said, re.MULTILINE)[0]
    (tmp_path / "ramen.toml").write_text(textwrap.dedent(lines))
    with Serve(directory, port=serve.port) as serve:
        assert deliver(QueueReaderConfig.load(tmp_path / "ramen.toml"), {"value": 42}) == 1
        assert serve.end() == 0
        assert serve.rest_of_stdout() == "", "a later start has no token to tell"
    assert len(held(directory)) == 1


def test_a_first_token_goes_into_a_file_of_its_owner_instead(directory, tmp_path):
    path = tmp_path / "token"
    path.write_text("of an earlier collector")
    path.chmod(0o644)
    with Serve(directory, "--first-token-file", path) as serve:
        token = path.read_text().strip()
        assert path.stat().st_mode & 0o777 == 0o600
        config = client_config(serve, None, tmp_path / "queue", auth_token_file=str(path))
        assert deliver(config, 1) == 1
        assert serve.end() == 0
        assert serve.rest_of_stdout() == f"The first token, which may send for everybody, is in {path}\n"
        assert token not in serve.log
    path.write_text("mine")
    with Serve(directory, "--first-token-file", path) as serve:
        assert serve.end() == 0
    assert path.read_text() == "mine"


def test_a_first_token_that_cannot_be_kept_is_not_made(directory, tmp_path):
    code, said = failing("--data-dir", directory, "--first-token-file", tmp_path / "none" / "token")
    assert code == 3
    assert said.endswith(f"ramen: {tmp_path}/none/token.unfinished: No such file or directory\n")
    with Settings(directory) as settings:
        assert settings.list_tokens() == []


def test_a_first_token_never_goes_into_the_journal(directory):
    read, write = os.pipe()
    found = os.fstat(write)
    process = subprocess.Popen(
        [*RAMEN, "serve", "--data-dir", directory, "--port", "0"],
        stdout=write,
        stderr=write,
        env=environment(JOURNAL_STREAM=f"{found.st_dev}:{found.st_ino}"),
    )
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as journal:
        said = ""
        while "Started" not in said:
            line = journal.readline()
            assert line
            said += line
        process.terminate()
        said += journal.read()
    assert process.wait(60) == 0
    assert "<4>ramen_server: The first token is not shown" in said
    assert "ramen_" not in said.replace("ramen_server", "")
    assert run(["tokens", "add", "--name", "other", "--data-dir", str(directory)]) == 0


# Stopping


def test_a_stop_answers_and_stores_what_is_under_way(directory):
    with Serve(directory) as serve:
        token, reader = token_of(directory), token_of(directory, "read", Purpose.READ)
        with socket.create_connection((serve.host, serve.port), timeout=60) as slow:
            head = (
                f"POST /ramen/v1/metrics/1/imx.a.1/?version=1&reqid=slow HTTP/1.1\r\nHost: x\r\n"
                f"X-API-Token: {token}\r\nContent-Length: 2\r\n\r\n{{"
            )
            slow.sendall(head.encode())
            asking = connect(serve)
            while b"ramen_requests_in_flight 1\n" not in _metrics(asking, reader):
                pass
            asking.close()
            serve.process.send_signal(signal.SIGTERM)
            serve.wait_for_log("Stopping")
            slow.sendall(b"}")
            assert slow.recv(4096).startswith(b"HTTP/1.1 202 ")
        assert serve.process.wait(60) == 0
        assert serve.log_after_end().endswith("INFO ramen_server: Stopped.\n")
    assert held(directory) == ["slow"]


def _metrics(connection, token):
    connection.request("GET", "/metrics", headers={"X-API-Token": token})
    return connection.getresponse().read()


def test_a_stop_under_load_loses_no_answered_message_and_stores_none_unanswered(directory):
    answered, others = [], []

    def push(worker):
        number = 0
        connection = connect(serve)
        try:
            while True:
                number += 1
                reqid = f"{worker}-{number}"
                status = post(connection, token, reqid)
                (answered if status == 202 else others).append(reqid if status == 202 else status)
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()

    with Serve(directory) as serve:
        token = token_of(directory)
        threads = [threading.Thread(target=push, args=(worker,)) for worker in range(6)]
        for thread in threads:
            thread.start()
        while len(answered) < 50:
            threads[0].join(0.01)
        assert serve.end(signal.SIGINT) == 0
        for thread in threads:
            thread.join(60)
        assert "Traceback" not in serve.log
    assert set(others) <= {503}
    assert sorted(held(directory)) == sorted(answered)


def test_killed_it_goes_on_where_it_was(directory, tmp_path):
    with Serve(directory) as serve:
        config = client_config(serve, token_of(directory), tmp_path / "queue")
        assert deliver(config, 1, 2) == 2
        assert serve.end(signal.SIGKILL) == -signal.SIGKILL
        assert deliver(config, 3, 4) == 0
    with Serve(directory, port=serve.port):
        assert deliver(config, 5) == 3
    with SqliteArchive(directory) as archive:
        assert [message.payload for message in archive.export(Selection())] == [b"1", b"2", b"3", b"4", b"5"]


# TLS


def test_a_hang_up_brings_the_new_certificate_and_cuts_no_connection(directory, tmp_path):
    authority = Authority(tmp_path)
    first = authority.issue()
    with Serve(directory, *authority.options) as serve:
        token = token_of(directory)
        assert serve.url.startswith("https://")
        assert authority.seen_at(serve) == first
        old = connect(serve, authority.client)
        assert post(old, token, "1") == 202

        second = authority.issue()
        serve.process.send_signal(signal.SIGHUP)
        serve.wait_for_log("Certificate and key were read again.")
        assert authority.seen_at(serve) == second
        assert post(old, token, "2") == 202

        authority.key.write_text("nonsense")
        serve.process.send_signal(signal.SIGHUP)
        serve.wait_for_log("the former one stays in use")
        assert authority.seen_at(serve) == second
        authority.certificate.unlink()
        serve.process.send_signal(signal.SIGHUP)
        serve.wait_for_log(f"No such file or directory: '{authority.certificate}'")
        assert post(old, token, "3") == 202
        old.close()
        assert "Traceback" not in serve.log

        config = client_config(serve, token, tmp_path / "queue", ca_file=str(authority.ca_file))
        assert deliver(config, {"by": "the client"}) == 1
        assert serve.end() == 0
    assert held(directory)[:3] == ["1", "2", "3"]
    assert len(held(directory)) == 4


def test_a_hang_up_without_tls_ends_nothing(directory):
    with Serve(directory) as serve:
        serve.process.send_signal(signal.SIGHUP)
        serve.wait_for_log("no certificate to read again")
        assert serve.end() == 0


def test_a_certificate_that_cannot_be_used_is_said_with_its_files(directory, tmp_path):
    authority = Authority(tmp_path)
    authority.issue()
    other = trustme.CA().issue_cert("127.0.0.1")
    other.private_key_pem.write_to_path(authority.key)
    code, said = failing("--data-dir", directory, *authority.options)
    assert code == 3
    assert said == (
        f"ramen: tls_certificate {authority.certificate} and tls_key {authority.key} cannot be used: "
        "KEY_VALUES_MISMATCH. They must be PEM, belong together, and the key have no passphrase.\n"
    )
    authority.key.unlink()
    assert failing("--data-dir", directory, *authority.options) == (
        3,
        f"ramen: {authority.key}: No such file or directory\n",
    )


def test_a_key_with_a_passphrase_is_refused_and_asks_nobody(directory, tmp_path):
    authority = Authority(tmp_path)
    authority.issue()
    key = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    authority.key.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    code, said = failing("--data-dir", directory, *authority.options)
    assert code == 3
    assert "cannot be used" in said


# What it refuses


def test_a_second_collector_on_the_same_data_is_refused_in_words(directory):
    with Serve(directory) as serve:
        code, said = failing("--data-dir", directory)
        assert (code, said) == (
            3,
            f"ramen: {directory}: another collector writes here. Stop it, or use another directory.\n",
        )
        code, said = failing("--data-dir", directory.with_name("other"), "--port", str(serve.port))
        assert code == 3
        assert said == f"ramen: cannot listen on 127.0.0.1:{serve.port}: Address already in use\n"
        assert serve.end() == 0


def test_beyond_loopback_it_wants_tls_or_to_be_told(directory):
    code, said = failing("--data-dir", directory, "--host", "0.0.0.0")
    assert code == 2
    assert "0.0.0.0 is not a loopback address: without TLS everybody on the way reads" in said
    assert not directory.exists()
    with Serve(directory, "--host", "0.0.0.0", "--insecure") as serve:
        assert serve.url.startswith("http://0.0.0.0:")
        assert serve.end() == 0
        assert f'hostname = "{socket.gethostname()}:{serve.port}"' in serve.rest_of_stdout()


@pytest.mark.parametrize("command", ["serve", "export", "rules", "tokens"])
def test_without_its_packages_it_says_what_to_install(command):
    code = f"import sys; sys.modules['uvicorn'] = None; sys.argv[1:] = [{command!r}]; from infi.ramen_cli.main import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False
    )
    assert (found.returncode, found.stdout, found.stderr) == (
        3,
        "",
        "ramen: the collector's packages are not installed (uvicorn): pip install 'infi.ramen_client[server]'\n",
    )


# Options and the file


def test_the_limits_of_the_command_line_hold(directory):
    with Serve(
        directory, "--max-message-bytes", "100", "--messages-per-second", "0.001", "--burst", "1"
    ) as serve:
        token = token_of(directory)
        connection = connect(serve)
        assert post(connection, token, "x" * 200) == 413
        assert post(connection, token, "1") == 202
        assert post(connection, token, "2") == 429
        connection.close()
        assert serve.end() == 0
    with Serve(directory, "--min-free-bytes", str(2**60)) as serve:
        connection = connect(serve)
        assert post(connection, token, "3") == 503
        connection.close()


def test_options_go_over_the_file(directory, tmp_path):
    file = tmp_path / "collector.toml"
    file.write_text(
        f'data_dir = "{tmp_path}/unused"\nport = 1\n[limits]\nmin_free_bytes = {2**60}\nburst = 1\n'
    )
    with Serve(directory, "-c", file) as serve:  # which gives port, directory and min_free_bytes
        connection = connect(serve)
        assert post(connection, token_of(directory), "1") == 202
        connection.close()
        assert serve.end() == 0
    assert tomllib.loads(file.read_text())["port"] == 1
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prot = 1", "'prot' is no field; did you mean port?"),
        ("[limits]\nburts = 1", "limits.'burts' is no field; did you mean limits.burst?"),
        ('port = "x"', "port must be a whole number, not 'x'"),
        ("port = 70000", "port must be 0 (any free one) to 65535, not 70000"),
        ("[limits]\nburst = -1", "burst must be more than 0, not -1"),
        ("remember_days = 0", "remember_days must be 1 or more, not 0"),
        ('tls_key = "k"', "tls_certificate and tls_key go together"),
        ("= 1", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_said_by_field(tmp_path, capsys, text, words):
    file = tmp_path / "collector.toml"
    file.write_text(text)
    assert run(["serve", "-c", str(file)]) == 2
    assert words in capsys.readouterr().err


def test_a_file_that_is_not_there_is_said(tmp_path, capsys):
    assert run(["serve", "-c", str(tmp_path / "none")]) == 3
    assert capsys.readouterr().err == f"ramen: [Errno 2] No such file or directory: '{tmp_path}/none'\n"
