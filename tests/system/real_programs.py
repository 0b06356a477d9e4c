"""Real servers and proxies on free ports of the loopback, each with a configuration of the test's own.

They are started in the foreground, awaited until they accept connections, and ended with the test.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

USER, PASSWORD = "ramen", "Geheim42"
CREDENTIALS = f"{USER}:{PASSWORD}"


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str | Path], *ports: int, log: Path, ending: signal.Signals = signal.SIGTERM
) -> Iterator[None]:
    """A program, from when it listens on all these ports until it has ended."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        for port in ports:
            _await_listening(port, process, log)
        yield
    finally:
        process.send_signal(ending)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _await_listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    latest = time.monotonic() + 20
    while True:
        assert process.poll() is None, f"{process.args!r} has ended:\n{log.read_text()}"
        assert time.monotonic() < latest, f"{process.args!r} does not listen on {port}:\n{log.read_text()}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)


@contextmanager
def nginx(directory: Path, servers: str, *ports: int) -> Iterator[None]:
    """Run nginx with these ``server`` blocks, in one process; what else is in ``http`` may stand before them."""
    config = directory / "nginx.conf"
    config.write_text(f"""
        daemon off; master_process off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr warn;
        events {{ worker_connections 256; }}
        http {{
            access_log off;
            client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
            fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
            {servers}
        }}""")
    log = directory / "nginx.log"
    with running(["nginx", "-e", "stderr", "-p", directory, "-c", config], *ports, log=log):
        yield


@contextmanager
def haproxy(directory: Path, sections: str, *ports: int) -> Iterator[None]:
    """Run HAProxy with these ``frontend``, ``backend`` and ``listen`` sections."""
    config = directory / "haproxy.cfg"
    config.write_text(f"""
global
    maxconn 200
defaults
    mode http
    timeout connect 2s
    timeout client 20s
    timeout server 20s
    retries 0
{sections}
""")
    with running(["haproxy", "-db", "-f", config], *ports, log=directory / "haproxy.log"):
        yield


@contextmanager
def tinyproxy(directory: Path, port: int, settings: str = "") -> Iterator[None]:
    """Run tinyproxy, which wants ``USER`` and ``PASSWORD``."""
    config = directory / "tinyproxy.conf"
    # Its passwords are letters and digits.
    config.write_text(
        f"Port {port}\nListen 127.0.0.1\nTimeout 30\nMaxClients 50\nBasicAuth {USER} {PASSWORD}\n{settings}\n"
    )
    with running(["tinyproxy", "-d", "-c", config], port, log=directory / "tinyproxy.log"):
        yield


@contextmanager
def squid(port: int, rules: str = "") -> Iterator[None]:
    """Run squid, which wants ``USER`` and ``PASSWORD``; ``rules`` stand before its own."""
    # It gives up root for a user that may not look into the test's own directory.
    directory = Path(tempfile.mkdtemp(prefix="ramen-squid-"))
    try:
        passwords = directory / "passwords"
        sealed = subprocess.run(
            ["openssl", "passwd", "-apr1", "-stdin"],
            input=PASSWORD,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        passwords.write_text(f"{USER}:{sealed}")
        config = directory / "squid.conf"
        config.write_text(f"""
http_port 127.0.0.1:{port}
pid_filename none
access_log none
cache_log {directory}/cache.log
cache_store_log none
coredump_dir {directory}
cache deny all
shutdown_lifetime 0 seconds
netdb_filename none
pinger_enable off
visible_hostname proxy.example
auth_param basic program /usr/lib/squid/basic_ncsa_auth {passwords}
auth_param basic children 1 startup=1
acl known proxy_auth REQUIRED
{rules}
http_access allow known
http_access deny all
""")
        for path in (directory, passwords, config):
            path.chmod(0o755)
            if os.geteuid() == 0:
                shutil.chown(path, "proxy", "proxy")
        with running(["squid", "-N", "-f", config], port, log=directory / "squid.log", ending=signal.SIGKILL):
            yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def microsocks(directory: Path, port: int) -> Iterator[None]:
    """A SOCKS5 server, which wants ``USER`` and ``PASSWORD``."""
    command = ["microsocks", "-i", "127.0.0.1", "-p", str(port), "-u", USER, "-P", PASSWORD]
    with running(command, port, log=directory / "microsocks.log"):
        yield
