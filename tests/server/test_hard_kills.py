"""SIGKILL to the collector at random moments, with the real client behind it: each acknowledged message stored once."""

import random
import signal
import socket
import threading
import time
from collections import Counter

import pytest
from hard_kit import CollectorProcess, rows, stored

from infi.ramen_client import QueueReader, QueueReaderConfig, QueueWriter

STREAMS = 12
SLOW_MS = 2


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def torture(tmp_path, rounds):
    """Push all the time, kill and restart the collector ``rounds`` times; returns how many messages there were."""
    seed = random.SystemRandom().randrange(2**32)
    print("seed:", seed)
    dice = random.Random(seed)
    directory, port = tmp_path / "data", free_port()
    collector = CollectorProcess(directory, port, slow_ms=SLOW_MS)
    config = QueueReaderConfig(
        {
            "sender": "imx", "system_serial": 1099, "system_version": "3.0.0.1", "queue_dir": str(tmp_path / "queue"),
            "hostname": f"127.0.0.1:{port}", "auth_token": collector.first_token, "ssl": False, "retry_delay": 0.02,
        }
    )  # fmt: skip
    pushed = []
    over = threading.Event()

    def push():
        number = 0
        while not over.is_set():
            number += 1
            pushed.append(writer.push("metrics", f"stream{number % STREAMS}", "v1", {"number": number}))
            if writer.queue_size() > 200:
                time.sleep(0.01)

    with QueueWriter(config) as writer, QueueReader(config) as reader:
        threads = [threading.Thread(target=push), threading.Thread(target=reader.run)]
        for thread in threads:
            thread.start()
        interrupted = 0
        for _ in range(rounds):
            enough = writer.books().accepted + dice.randint(1, 40)
            wait_until(lambda enough=enough: writer.books().accepted >= enough)
            time.sleep(dice.uniform(0, 4 * SLOW_MS / 1000))
            collector.end(signal.SIGKILL)
            acknowledged = writer.books().accepted
            kept = Counter(message.envelope.reqid for message in stored(directory))
            assert max(kept.values()) == 1, "none twice"
            assert len(kept) >= acknowledged, "what left the queue is stored"
            interrupted += len(kept) > acknowledged
            if dice.random() < 0.3:
                time.sleep(dice.uniform(0, 0.1))  # an outage
            collector = CollectorProcess(directory, port, slow_ms=SLOW_MS)
        over.set()
        threads[0].join(30)
        assert writer.wait_sent(60)
        reader.stop()
        threads[1].join(30)
        books = writer.books()
        assert (books.pushed, books.accepted, books.waiting) == (len(pushed), len(pushed), 0)
        collector.end(signal.SIGTERM)
    kept = Counter(message.envelope.reqid for message in stored(directory))
    assert kept == Counter(pushed), "each pushed message once, and nothing else"
    tables = rows(directory)
    (book,) = tables["messages.db: book"]
    assert book[3:5] == (len(pushed), len(pushed)), "the last position and the number of messages"
    days = [day for _, day, *_ in tables["messages.db: seen_day"]]
    assert sum(len(tables[f"messages.db: seen_{day}"]) for day in days) == len(pushed)
    print(
        f"{len(pushed)} messages, {interrupted} of {rounds} kills between a commit and its answers' settlement"
    )
    return interrupted


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_killed_5_times_it_has_each_acknowledged_message_once(tmp_path):
    torture(tmp_path, 5)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_killed_50_times_it_has_each_acknowledged_message_once(tmp_path):
    assert torture(tmp_path, 50) > 5, "or the moments are not random"
