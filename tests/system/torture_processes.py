"""The processes that the torture tests kill: a collector, and those of a ``queue_load``."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from infi.ramen_server import Selection, SqliteArchive

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_COLLECTOR = """
import sys
from pathlib import Path
from infi.ramen_server import CollectorServer, Limits, ServerConfig

directory = Path(sys.argv[1])
config = ServerConfig(
    directory / "data", port=int(sys.argv[2]), limits=Limits(min_free_bytes=0), first_token_file=directory / "token"
)
CollectorServer(config).run()
"""


class Collector:
    """A collector's process, which can be killed and started again at its port. What it says goes to ``directory/collector.log``."""

    def __init__(self, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.log = directory / "collector.log"
        self._environment = environment
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", _COLLECTOR, self.directory, str(self.port)],
                stderr=log,
                env=self._environment,
            )

    def token(self) -> str:
        deadline = time.monotonic() + 30
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                return (self.directory / "token").read_text().strip()
            assert time.monotonic() < deadline, "the collector does not listen"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def freeze(self) -> None:
        """It still listens, and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0

    def count(self) -> int:
        """How many messages are stored; 0 as long as none ever was."""
        if not (self.directory / "data" / "messages.db").exists():
            return 0
        with SqliteArchive(self.directory / "data") as archive:
            return archive.totals().messages

    def stored(self) -> Iterator[tuple[str, bytes]]:
        with SqliteArchive(self.directory / "data") as archive:
            for message in archive.export(Selection()):
                yield message.envelope.reqid, message.payload


class Company:
    """Processes of a load, which are started again when they die; reads who they are from their parent's output."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._lock = threading.Lock()
        self._pids: dict[str, int] = {}
        self.starts = 0
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if not line.endswith("\n"):
                return  # it was killed in the middle of it
            _, role, pid = line.split()
            with self._lock:
                self._pids[role] = int(pid)
                self.starts += 1

    def pid(self, role: str) -> int | None:
        """None until it has been started."""
        with self._lock:
            return self._pids.get(role)

    def kill(self, role: str) -> None:
        """Have its parent kill it; one that was just killed and not yet replaced does as well."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{role}\n")
        self._process.stdin.flush()

    def kill_all(self) -> None:
        """At one moment, and nobody is started again."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._thread.join()

    def stop(self) -> None:
        """Ask them to end, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._thread.join()
        self._process.wait(60)
