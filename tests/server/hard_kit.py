"""For the hard tests: collectors as processes, what lies on their disk, a forwarding proxy, messages of every kind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

import apsw

from infi.ramen_server import Selection, SqliteArchive, StoredMessage

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROCESS = Path(__file__).with_name("hard_process.py")


class CollectorProcess:
    """One collector process; ``config``, ``port`` and ``first_token`` are those of ``CollectorServer``, so ``Wire`` takes it.

    Its log goes to a file beside the data directory, over all of its lives.
    """

    def __init__(self, directory: Path, port: int = 0, slow_ms: float | None = None, **limits: float) -> None:
        self.directory = directory
        self.config = SimpleNamespace(host="127.0.0.1", data_dir=directory)
        self._log = directory.with_name(directory.name + ".log")
        slow = [] if slow_ms is None else [str(slow_ms)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    _PROCESS,
                    directory,
                    str(port),
                    json.dumps({"min_free_bytes": 0} | limits),
                    *slow,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        first = self.process.stdout.readline().split()
        assert first, f"the collector did not start:\n{self.log()}"
        self.port, self.first_token = int(first[0]), first[1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end(signal.SIGTERM)

    def end(self, number: signal.Signals) -> None:
        """Signal it and wait for its end. Does nothing when it has ended."""
        assert self.process.stdout is not None
        self.process.send_signal(number)
        self.process.wait(30)
        self.process.stdout.close()

    def log(self) -> str:
        return self._log.read_text()

    def memory(self, name: str) -> int:
        """``VmRSS`` is what is resident now, ``VmHWM`` the peak, in bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
        raise LookupError(name)

    def forget_peak(self) -> None:
        """Let ``VmHWM`` begin anew (proc(5), ``clear_refs``)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")


def stored(directory: Path) -> list[StoredMessage]:
    with SqliteArchive(directory) as archive:
        return list(archive.export(Selection()))


def rows(directory: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of the collector's two files, the keys of duplicates and the books among them."""
    found: dict[str, list[tuple[Any, ...]]] = {}
    for name in ("messages.db", "settings.db"):
        with closing(apsw.Connection(str(directory / name), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
            tables = [
                table
                for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            ]
            for table in tables:
                found[f"{name}: {table}"] = sorted(connection.execute(f'SELECT * FROM "{table}"'), key=repr)
    return found


def bytes_written(directory: Path) -> dict[str, tuple[int, int]]:
    """Size and time of last change of the collector's files; the shared memory's aside, which reading changes."""
    return {
        path.name: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in directory.iterdir()
        if not path.name.endswith("-shm")
    }


# A forwarding proxy


class ForwardingProxy:
    """Passes plain HTTP on, and tunnels what asks for CONNECT; ``seen`` are the request lines that it got."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        handler = type("Handler", (_Forward,), {"seen": self.seen})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[str]
    _hop_by_hop = frozenset(
        ("connection", "proxy-connection", "proxy-authorization", "keep-alive", "transfer-encoding")
    )

    def do_POST(self) -> None:
        self.seen.append(self.requestline)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        host, _, rest = self.path.removeprefix("http://").partition("/")
        onward = HTTPConnection(host, timeout=30)
        with closing(onward):
            onward.putrequest("POST", f"/{rest}", skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in self._hop_by_hop:
                    onward.putheader(name, value)
            onward.putheader("Via", "1.1 test")
            onward.endheaders(body)
            answer = onward.getresponse()
            content = answer.read()
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in self._hop_by_hop:
                self.send_header(name, value)
        self.send_header("Via", "1.1 test")
        self.end_headers()
        self.wfile.write(content)

    def do_CONNECT(self) -> None:
        self.seen.append(self.requestline)
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=30) as onward:
            self.send_response_only(200, "Connection established")
            self.end_headers()
            there = threading.Thread(target=_copy, args=(self.connection, onward), daemon=True)
            there.start()
            _copy(onward, self.connection)
            there.join(30)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def environment_without_proxies(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return kept | more


# Messages


def values() -> Iterator[tuple[str, Any]]:
    """Values of every JSON type, each with a name that can be a data_type. None is text, which would be taken for JSON."""
    deep: Any = []
    for _ in range(300):
        deep = {"in": [deep]}
    yield "null", None
    yield "booleans", [True, False]
    yield "integers", [0, -1, 2**31, 2**53 + 1, 2**63, -(2**64), 10**300]
    yield "floats", [0.1, -0.0, 1e308, 5e-324, 1.0, -2.5e-7]
    yield (
        "strings",
        ["", " ", '\u0000\u001f"\\/', "ä€\U0001f600", "\u2028\u2029", "e\u0301", "\ufeff", "שלום"],
    )
    yield "lone", ["\ud83d"]
    yield "names", {"": 0, "ключ": 1, "a b": 2, "__proto__": None, "\U0001f600": []}
    yield "nested", deep
    yield "empty", [{}, [], "", {"": {"": [[]]}}]
    yield "wide", list(range(20_000))
    yield "long", ["x" * 1_000_000]


def texts() -> Iterator[tuple[str, str]]:
    """JSON texts that must come out byte for byte: no reader in between may touch digits, spaces or order."""
    yield (
        "digits",
        '{"third": 0.3333333333333333333333333333, "big": ' + "9" * 400 + ', "e": 1E+2, "z": 1.10}',
    )
    yield "order", '{"b" : 1,\t"a":2, "b":3}\n'
    yield "escapes", '"\\u00e4\\ud83d\\ude00\\/"'
    yield "scalar", " 17 "
    yield "utf-8", '{"ä": "€\U0001f600"}'
