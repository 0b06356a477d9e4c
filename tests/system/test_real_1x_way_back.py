"""The way back: what `ramen export --to-1x` made is delivered by the real `infi.ramen_client` 1.40.post3 to our collector.

1.x runs in an environment of its own (made once, by pip), in a process of its own.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.append(str(Path(__file__).parent.parent / "server"))

from hard_kit import environment_without_proxies, stored

from benchmarks.environment import ONE_X
from infi.ramen_cli.main import run
from infi.ramen_client.admin import QueueAdmin
from infi.ramen_client.config import QueueReaderConfig
from infi.ramen_client.queue_reader import QueueReader
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_server import CollectorServer, Limits, ServerConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

DELIVER = """
    import json, sys
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_reader import QueueReader
    from infi.ramen_client.queue_writer import QueueWriter
    from infi.ramen_client.__version__ import __version__
    assert __version__.startswith("1.40"), __version__
    config = QueueReaderConfig(json.load(sys.stdin))
    writer, reader = QueueWriter(config), QueueReader(config)
    waiting = writer.queue_size()
    for number in range(3):
        writer.push("metrics", "by_1x", "v1", {"n": number})
    print(json.dumps([waiting, reader.run(blocking=False), writer.queue_size()]))
"""


class Place:
    """A collector, a queue of 2.0 that fills in its outage, and the real 1.x."""

    def __init__(self, server: CollectorServer, directory: Path) -> None:
        self.server = server
        self.directory = directory
        self.fields: dict[str, Any] = {
            "sender": "imx", "system_serial": 1099, "system_version": "3.0.0.1", "queue_dir": str(directory / "queue"),
            "hostname": f"127.0.0.1:{server.port}", "auth_token": server.first_token, "ssl": False, "retry_delay": 0.05,
        }  # fmt: skip

    def export(self) -> int:
        return run(
            ["export", "--to-1x", str(self.directory / "old"), "--queue-dir", str(self.directory / "queue")]
        )

    def deliver_by_1x(self) -> list[int]:
        """How many waited, how many it handled, how many are left; it pushes three of its own in between."""
        done = subprocess.run(
            [str(ONE_X.interpreter()), "-I", "-W", "ignore", "-c", textwrap.dedent(DELIVER)],
            input=json.dumps(self.fields | {"queue_dir": str(self.directory / "old")}),
            env=environment_without_proxies(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: list[int] = json.loads(done.stdout)
        return answer


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    config = ServerConfig(tmp_path / "data", port=0, limits=Limits(min_free_bytes=0))
    with CollectorServer(config) as server:
        yield Place(server, tmp_path)


def test_the_real_1x_delivers_every_message_once_in_order_under_its_id(place: Place) -> None:
    ids = [None, "mine-%d", "a&reqid=b%d", "ü %d", "100%%-%d", "x" * 200 + "%d"]
    payloads = [b'{"n": 1.10}', b"[]", b'"text"', json.dumps("x" * 300_000).encode(), b"0"]
    pushed = []
    with QueueWriter(QueueReaderConfig(place.fields)) as writer:
        for number in range(500):
            form = ids[number % len(ids)]
            data_type, version = f"x{number % 7}", ["v1", "2", 3, "a-b_c", "-5"][number % 5]
            payload = payloads[number % len(payloads)]
            reqid = writer.push("metrics", data_type, version, payload, form and form % number)
            pushed.append((data_type, str(version), reqid, payload))
    assert place.export() == 0
    assert place.deliver_by_1x() == [500, 503, 0]

    arrived = [
        (message.envelope.data_type, message.envelope.data_version, message.envelope.reqid, message.payload)
        for message in stored(place.server.config.data_dir)
    ]
    assert arrived[:500] == pushed
    assert [row[0] for row in arrived[500:]] == ["by_1x"] * 3


def test_when_both_deliver_the_collector_stores_each_message_once(place: Place) -> None:
    with QueueWriter(QueueReaderConfig(place.fields)) as writer:
        reqids = [writer.push("metrics", "x", "v1", {"n": number}) for number in range(50)]
    assert place.export() == 0
    assert place.deliver_by_1x() == [50, 53, 0]
    with QueueReader(QueueReaderConfig(place.fields)) as reader:
        assert reader.run(blocking=False) == 50
    assert [message.envelope.reqid for message in stored(place.server.config.data_dir)][:50] == reqids
    assert len(stored(place.server.config.data_dir)) == 53


def test_exports_that_are_killed_at_any_moment_leave_all_in_the_queue_or_all_in_both(place: Place) -> None:
    with QueueWriter(QueueReaderConfig(place.fields)) as writer:
        reqids = [writer.push("metrics", "x", "v1", {"n": number}) for number in range(2000)]
    target = place.directory / "old" / "imx_1099.db"
    order = ["export", "--to-1x", str(target.parent), "--queue-dir", place.fields["queue_dir"]]
    left_nothing = 0
    for milliseconds in range(150, 450, 20):
        process = subprocess.Popen(
            [sys.executable, "-m", "infi.ramen_cli", *order],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            process.wait(milliseconds / 1000)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        with QueueAdmin(place.directory / "queue" / "imx_1099.db") as queue:
            assert queue.books().waiting == 2000
        if target.exists():
            break
        left_nothing += 1
    if not target.exists():
        assert place.export() == 0
    assert left_nothing > 0
    assert place.deliver_by_1x() == [2000, 2003, 0]
    assert [message.envelope.reqid for message in stored(place.server.config.data_dir)][:2000] == reqids
