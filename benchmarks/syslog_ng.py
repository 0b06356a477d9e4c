"""syslog-ng as a store-and-forward client: lines in over TCP, a reliable disk buffer, batches of 500 out over HTTP.

A message of its reliable buffer lies in the file when syslog-ng has taken it, so it outlives syslog-ng; nothing is ever synced, so it
does not outlive a power cut. Whoever sent it is told nothing: what is in a socket is lost with either side.
"""

from __future__ import annotations

import re
import socket
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.harness import RunError, installed, start

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_CONFIGURATION = r"""@version: 3.35
source s {{
    network(ip("127.0.0.1") port({source_port}) transport("tcp") flags(no-parse) log-iw-size(10000) max-connections(1));
}};
destination d {{
    http(
        url("http://127.0.0.1:{port}/lines") method("POST") body("${{MSG}}") delimiter("\n")
        batch-lines(500) batch-timeout(100) workers(1) time-reopen(1)
        disk-buffer(reliable(yes) disk-buf-size(536870912) mem-buf-size(16777216) dir("{directory}"))
    );
}};
log {{ source(s); destination(d); flags(flow-control); }};
"""
_START_SECONDS = 20


@contextmanager
def syslog_ng(directory: Path, port: int, before: Sequence[str] = ()) -> Iterator[tuple[int, socket.socket]]:
    """Run it, delivering to a port of 127.0.0.1: its process id, and the connection that takes lines. It ends with the block."""
    place = directory / "syslog-ng"
    place.mkdir()
    source_port = _free_port()
    configuration = place / "conf"
    configuration.write_text(_CONFIGURATION.format(source_port=source_port, port=port, directory=place))
    files = ("-f", configuration, "-R", place / "persist", "-c", place / "control", "-p", place / "pid")
    with start([*before, installed("syslog-ng"), "-F", "--no-caps", *map(str, files)]) as child:
        try:
            give_up_at = time.monotonic() + _START_SECONDS
            while (connection := _connected(source_port)) is None:
                if child.process.poll() is not None:
                    child.hear()  # which raises what it said before it ended
                if time.monotonic() > give_up_at:
                    raise RunError(f"syslog-ng takes no connection after {_START_SECONDS} s")
                time.sleep(0.02)
            with connection:
                yield child.process.pid, connection
        finally:
            child.process.terminate()


def version() -> str:
    """Return the version of the one that is installed."""
    said = subprocess.run(
        [installed("syslog-ng"), "--version"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"\((.+)\)", said)
    return found[1] if found else said.splitlines()[0]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


def _connected(port: int) -> socket.socket | None:
    try:
        return socket.create_connection(("127.0.0.1", port))
    except ConnectionRefusedError:
        return None
