"""A client and a server in a network of their own that is hurt meanwhile; prints what became of it, as JSON.

Run as ``network_run.py SCENARIO DIRECTORY`` inside ``unshare --net --mount``: every packet on its loopback passes the rules that a
scenario sets by nft. A scenario ends with all healed and every message delivered.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.append(str(Path(__file__).parent.parent / "client"))

from test_hostile_server_kit import CANARY, Client, arrived

from infi.ramen_client.testing import RamenServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = "ramen.example"


@dataclass
class Outcome:
    """What the test looks at."""

    pushed: int = 0
    arrived_in_order: bool = False
    duplicates: int = 0
    books: dict[str, int] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    """The last error, noted whenever a scenario looked."""
    stops: list[float] = field(default_factory=list)
    """How long each stop in the middle of the trouble took, in seconds."""


def nft(*rules: str) -> None:
    """Set these rules, in place of those before."""
    script = "table inet hurt\ndelete table inet hurt\ntable inet hurt {\nchain way {\n"
    script += "type filter hook input priority 0;\n" + "\n".join(rules) + "\n}\n}\n"
    subprocess.run(["nft", "-f", "-"], input=script, text=True, check=True)


def heal() -> None:
    nft()


def names(*addresses: str) -> None:
    """What NAME stands for, from now on."""
    hosts.write_text("".join(f"{address} {NAME}\n" for address in addresses))


class Scene:
    """A server, and a client whose reader runs. The end heals, waits until all is delivered, and notes the outcome."""

    def __init__(self, host: str = "127.0.0.1", port: int | None = None, **fields: Any) -> None:
        self.server = RamenServer(token=CANARY)
        self.server.start()
        self.client = Client(
            directory / "queue",
            f"{host}:{port or self.server.port}",
            **{"server_timeout": 1, "retry_delay": 0.1, **fields},
        )
        self.outcome = Outcome()
        self._thread = self.client.reader.start_thread()

    def push(self, count: int = 1, payload_bytes: int = 100) -> None:
        payload = os.urandom(payload_bytes // 2).hex()
        self.client.pushed += self.client.writer.push_many(
            ("metrics", "san_totals", "v1", {"n": n, "noise": payload}) for n in range(count)
        )

    def await_delivered(self) -> None:
        self.client.wait_empty(40)

    def await_failures(self, count: int) -> None:
        """So many more in a row."""
        before = self._failures()
        self.client.wait_until(lambda: self._failures() >= before + count, 40)
        self.outcome.said.append(self.client.state()["last_error"])

    def stop_and_start_again(self) -> None:
        began = time.monotonic()
        self.client.reader.stop()
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.outcome.stops.append(round(time.monotonic() - began, 4))
        self._thread = self.client.reader.start_thread()

    def end(self) -> Outcome:
        self.await_delivered()
        self.stop_and_start_again()
        self.client.reader.stop()
        self._thread.join(30)
        self.client.verify()
        outcome = self.outcome
        outcome.pushed = len(self.client.pushed)
        outcome.arrived_in_order = arrived(self.server) == self.client.pushed
        outcome.duplicates = len(self.server.duplicates)
        outcome.books = self.client.counts()
        self.client.close()
        self.server.close()
        return outcome

    def _failures(self) -> int:
        return int(self.client.server_row().get("failures", 0))


def loss() -> Outcome:
    """Every tenth packet is lost, both ways."""
    scene = Scene(server_timeout=10)
    nft(f"tcp dport {scene.server.port} numgen random mod 10 == 0 drop",
        f"tcp sport {scene.server.port} numgen random mod 10 == 0 drop")  # fmt: skip
    for _ in range(10):
        scene.push(3)
        scene.await_delivered()
    heal()
    return scene.end()


def black_hole() -> Outcome:
    """From some moment on nothing comes through any more, on the connection that is there and on new ones."""
    scene = Scene()
    scene.push(5)
    scene.await_delivered()
    nft(f"tcp dport {scene.server.port} drop", f"tcp sport {scene.server.port} drop")
    scene.push(5)
    scene.stop_and_start_again()
    scene.await_failures(2)
    scene.stop_and_start_again()
    heal()
    return scene.end()


def reset_in_mid_body() -> Outcome:
    """A middlebox cuts the connection when 100 KB have passed, and lets no new one through."""
    scene = Scene()
    scene.push(2)
    scene.await_delivered()
    nft(f"tcp dport {scene.server.port} quota over 100 kbytes reject with tcp reset")
    scene.push(3, payload_bytes=400_000)
    scene.await_failures(3)
    scene.stop_and_start_again()
    heal()
    return scene.end()


def answers_lost() -> Outcome:
    """The server gets and stores everything; what it says is lost."""
    scene = Scene()
    scene.push(2)
    scene.await_delivered()
    # Bare acknowledgements are 52 bytes; so requests pass.
    nft(f"tcp sport {scene.server.port} meta length > 60 drop")
    scene.push(2)
    scene.server.wait_for(3, 20)
    scene.stop_and_start_again()
    scene.await_failures(2)
    heal()
    return scene.end()


def half_open() -> Outcome:
    """The server restarts behind a broken line: the client's connection is one to nobody."""
    scene = Scene(server_timeout=5)
    scene.push(2)
    scene.await_delivered()
    nft(f"tcp dport {scene.server.port} drop", f"tcp sport {scene.server.port} drop")
    scene.server.stop()
    scene.server.start()
    heal()
    scene.push(5)
    return scene.end()


def hanging_resolver() -> Outcome:
    """Questions for the server's name are never answered; then the name is found."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 53))
        scene = Scene(NAME)
        scene.push(3)
        scene.await_failures(1)
        scene.stop_and_start_again()
        time.sleep(0.2)  # the resolver is under way again
        scene.stop_and_start_again()
        names("127.0.0.1")
        # Whoever asked before waits for the resolver's own patience to end; an attempt that begins now finds the name.
        scene.stop_and_start_again()
        return scene.end()


def moved_server() -> Outcome:
    """The name is pointed to another address while the server is away at the old one."""
    names("127.0.0.2")
    with relay("127.0.0.2") as (port, onward):
        scene = Scene(NAME, port)
        onward(scene.server.port)
        scene.push(3)
        scene.await_delivered()
    names("127.0.0.3")
    with relay("127.0.0.3", port) as (_, onward):
        onward(scene.server.port)
        scene.push(3)
        return scene.end()


def only_one_kind() -> Outcome:
    """The name has an address of IPv6 that swallows everything, and one of IPv4 that works."""
    names("::1", "127.0.0.1")
    scene = Scene(NAME)
    nft("ip6 daddr ::1 drop")
    scene.push(10)
    return scene.end()


@contextmanager
def relay(address: str, port: int = 0) -> Iterator[tuple[int, Callable[[int], None]]]:
    """What connects here talks to the server; at the end all of it is cut."""
    ends: list[socket.socket] = []
    target: list[int] = []

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", target[-1]))
            except OSError:
                return
            ends.extend((near, far))
            for pair in ((near, far), (far, near)):
                threading.Thread(target=copy, args=pair, daemon=True).start()

    with socket.create_server((address, port)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1], target.append
        listener.shutdown(socket.SHUT_RDWR)
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


SCENARIOS: dict[str, Callable[[], Outcome]] = {
    scenario.__name__: scenario
    for scenario in (
        loss,
        black_hole,
        reset_in_mid_body,
        answers_lost,
        half_open,
        hanging_resolver,
        moved_server,
        only_one_kind,
    )
}

if __name__ == "__main__":
    directory = Path(sys.argv[2])
    hosts = directory / "hosts"
    hosts.touch()
    resolver = directory / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\n")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for path, place in ((hosts, "/etc/hosts"), (resolver, "/etc/resolv.conf")):
        subprocess.run(["mount", "--bind", path, place], check=True)
    print(json.dumps(asdict(SCENARIOS[sys.argv[1]]())))
