"""The collector as a program: where it listens, its first token, TLS, start, stop, and being killed."""

import http.client
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import trustme
from collector_kit import target
from wire_kit import Wire, request

from infi.ramen_server import (
    CollectorServer,
    InsecureListen,
    Limits,
    Selection,
    ServerConfig,
    Settings,
    SqliteArchive,
    StoreInUse,
)

PROCESS = Path(__file__).with_name("collector_process.py")
ROOMY = Limits(min_free_bytes=0)


def config(directory, **fields):
    return ServerConfig(directory, **{"port": 0, "limits": ROOMY, **fields})


def reqids(directory):
    with SqliteArchive(directory) as archive:
        return [found.envelope.reqid for found in archive.export(Selection())]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "collector.example", "127.0.0.1.example", ""])
def test_beyond_loopback_it_wants_tls_or_to_be_told(directory, host):
    with pytest.raises(InsecureListen, match="TLS"):
        config(directory, host=host)
    config(directory, host=host, insecure=True)
    config(directory, host=host, tls_certificate=Path("c"), tls_key=Path("k"))
    assert not directory.exists()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_on_loopback_it_needs_no_tls(directory, host):
    config(directory, host=host)


def test_a_certificate_without_its_key_is_refused(directory):
    with pytest.raises(ValueError, match="go together"):
        config(directory, tls_certificate=Path("c"))


def test_the_first_start_makes_a_token_and_later_ones_make_none(directory):
    with CollectorServer(config(directory)) as server, Wire(server) as wire:
        assert server.url == f"http://127.0.0.1:{server.port}"
        token = server.first_token
        assert wire.post("1").status == 202
        assert token not in repr(server) + repr(
            vars(server.config) if hasattr(server.config, "__dict__") else server.config
        )
    with CollectorServer(config(directory)) as server, Wire(server) as wire:
        assert server.first_token is None
        assert wire.send(request(token, "2")).answer().status == 202
    assert reqids(directory) == ["1", "2"]


def test_it_speaks_tls(directory, tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    (tmp_path / "cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    (tmp_path / "key.pem").write_bytes(certificate.private_key_pem.bytes())
    client = ssl.create_default_context()
    authority.configure_trust(client)
    secure = config(directory, tls_certificate=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem")
    with CollectorServer(secure) as server:
        assert server.url.startswith("https://127.0.0.1:")
        with Wire(server, client) as wire:
            assert wire.post("1").status == 202
        with Wire(server) as plain:
            assert plain.send(request(server.first_token, "2")).is_closed()
    assert reqids(directory) == ["1"]


def test_what_keeps_it_from_starting_is_raised_and_leaves_nothing_open(directory):
    with CollectorServer(config(directory)) as server:
        with pytest.raises(StoreInUse):
            CollectorServer(config(directory)).start()
        with pytest.raises(OSError, match="in use"):
            CollectorServer(config(directory.with_name("other"), port=server.port)).start()
        with pytest.raises(FileNotFoundError):
            CollectorServer(
                config(directory.with_name("other"), tls_certificate=Path("none"), tls_key=Path("none"))
            ).start()
        with Wire(server) as wire:
            assert wire.post("1").status == 202
    with CollectorServer(config(directory.with_name("other"))):
        pass


def test_it_can_be_started_again_and_stop_without_start_does_nothing(directory):
    server = CollectorServer(config(directory))
    server.stop()
    for _ in range(2):
        server.start()
        server.stop()
        server.stop()


def test_a_signal_that_comes_while_it_starts_is_not_forgotten(directory, monkeypatch):
    server = CollectorServer(config(directory))
    whole_start = server.start

    def start():
        os.kill(os.getpid(), signal.SIGTERM)
        whole_start()

    monkeypatch.setattr(server, "start", start)
    server.run()  # returns
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_signal_that_another_thread_gets_ends_it_too(directory):
    """The kernel gives it to any thread when the main one is traced."""
    server = CollectorServer(config(directory))

    def signal_to_myself():
        server.listening.wait()
        time.sleep(0.1)  # until the main thread waits; sooner is no fault, but shows nothing
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    threading.Thread(target=signal_to_myself).start()
    server.run()  # returns


def test_tokens_and_rules_of_another_process_count_at_once(directory):
    with CollectorServer(config(directory)) as server, Wire(server) as wire, Settings(directory) as other:
        assert wire.post("1").status == 202
        other.revoke_token("first")
        assert wire.post("2").status == 401
        token = other.add_token("new")
        assert wire.send(request(token, "3")).answer().status == 202
    assert reqids(directory) == ["1", "3"]


def test_a_graceful_stop_answers_and_stores_what_it_has_and_loses_no_answer(directory):
    answered, broken = [], []

    def push(worker, server):
        number = 0
        try:
            with Wire(server) as wire:
                while True:
                    number += 1
                    answer = wire.post(f"{worker}-{number}")
                    if answer is None:
                        return
                    if answer.status != 202:
                        broken.append(answer.status)
                        return
                    answered.append(f"{worker}-{number}")
                    if answer.headers.get("connection") == "close":
                        return
        except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
            return

    with CollectorServer(config(directory)) as server:
        threads = [threading.Thread(target=push, args=(worker, server)) for worker in range(8)]
        for thread in threads:
            thread.start()
        while len(answered) < 100:
            time.sleep(0.005)
        server.stop()
        for thread in threads:
            thread.join(20)
    assert set(broken) <= {503}
    assert sorted(reqids(directory)) == sorted(answered), (
        "each stored message was answered, and each answered one stored"
    )


def test_a_stop_does_not_wait_longer_than_told_for_a_body_that_does_not_come(directory):
    with (
        CollectorServer(config(directory, limits=Limits(min_free_bytes=0, stop_seconds=1))) as server,
        Wire(server) as wire,
    ):
        wire.send(request(server.first_token, "1", b"{", b"Content-Length: 2\r\n"))
        time.sleep(0.2)
        begun = time.monotonic()
        server.stop()
        assert time.monotonic() - begun < 10
        assert wire.answer().status == 503
    assert reqids(directory) == []


# As a process


class Process:
    def __init__(self, directory, port=0):
        self.process = subprocess.Popen(
            [sys.executable, PROCESS, directory, str(port)], stdout=subprocess.PIPE, text=True
        )
        first = self.process.stdout.readline().split()
        assert first, "the collector did not start"
        self.port, self.token = int(first[0]), first[1]

    def end(self, number):
        self.process.send_signal(number)
        rest = self.process.stdout.read()
        self.process.stdout.close()
        return rest, self.process.wait(30)


def post(connection, token, reqid):
    connection.request("POST", target(reqid), b'{"n":1}', {"X-API-Token": token})
    answer = connection.getresponse()
    answer.read()
    return answer.status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_process_in_order(directory, number):
    process = Process(directory)
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=20)
    assert post(connection, process.token, "1") == 202
    connection.close()
    assert process.end(number) == ("stopped\n", 0)
    assert sorted(path.name for path in directory.iterdir()) == [
        "messages.db",
        "messages.db.lock",
        "settings.db",
    ]
    assert reqids(directory) == ["1"]


def test_killed_in_the_middle_of_load_it_has_each_answered_message_once(directory):
    dice = random.Random(7)
    token, port = None, 0
    answered, unknown = set(), set()
    guard = threading.Lock()

    def push(worker, round_number, port, enough):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        number = 0
        reqid = ""
        try:
            while True:
                number += 1
                reqid = f"{round_number}-{worker}-{number}"
                status = post(connection, token, reqid)
                with guard:
                    assert status == 202
                    answered.add(reqid)
                    if len(answered) >= enough[0]:
                        enough[1].set()
        except (OSError, http.client.HTTPException):
            with guard:
                unknown.add(reqid)
        finally:
            connection.close()

    for round_number in range(5):
        process = Process(directory, port)
        token, port = (process.token if token is None else token), process.port
        enough = (len(answered) + dice.randint(1, 150), threading.Event())
        threads = [
            threading.Thread(target=push, args=(worker, round_number, port, enough)) for worker in range(6)
        ]
        for thread in threads:
            thread.start()
        assert enough[1].wait(30)
        process.end(signal.SIGKILL)
        for thread in threads:
            thread.join(30)

    stored = reqids(directory)
    assert len(stored) == len(set(stored)), "none twice"
    assert answered <= set(stored), "none lost"
    assert set(stored) <= answered | unknown

    # What was not answered is sent again, as a client does, and with it some of what was.
    process = Process(directory, port)
    connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=20)
    for reqid in [*sorted(unknown), *sorted(answered)[::20]]:
        assert post(connection, token, reqid) == 202
    connection.close()
    process.end(signal.SIGTERM)
    stored = reqids(directory)
    assert sorted(stored) == sorted(answered | unknown)
    with SqliteArchive(directory) as archive:
        assert archive.totals().messages == len(stored)


def test_a_file_that_was_only_begun_is_made_anew(directory):
    directory.mkdir(mode=0o700)
    for name in ("settings.db", "messages.db"):
        (directory / name).touch(mode=0o600)
    with CollectorServer(config(directory)) as server, Wire(server) as wire:
        assert wire.post("1").status == 202
    assert reqids(directory) == ["1"]


def test_no_descriptor_stays_open(directory):
    def count():
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    with CollectorServer(config(directory)):
        pass
    before = count()
    for _ in range(3):
        with CollectorServer(config(directory)) as server:
            socket.create_connection((server.config.host, server.port)).close()
    assert count() <= before
