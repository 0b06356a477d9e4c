"""The public API as a typed program uses it: checked by mypy (`make lint`), never run.

A `type: ignore` marks what the types must refuse: mypy's strict mode reports one that is not needed.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, assert_type

from prometheus_client import REGISTRY

import infi.ramen_client
from infi.ramen_client.async_writer import AsyncQueueWriter
from infi.ramen_client.config import QueueReaderConfig, QueueWriterConfig
from infi.ramen_client.errors import (
    AuthenticationError,
    DurabilityError,
    InvalidMessage,
    MessageTooLarge,
    QueueError,
    QueueGone,
    RamenError,
    ValidationError,
)
from infi.ramen_client.health import Health
from infi.ramen_client.logging_handler import RamenHandler
from infi.ramen_client.metrics import Metric, QueueFiles, Source, collect
from infi.ramen_client.metrics.opentelemetry import instrument
from infi.ramen_client.metrics.prometheus import QueueCollector
from infi.ramen_client.queue_reader import AutheticationError, Blacklist, QueueReader
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import Accept, Drop, RamenServer, Received, Refuse, Reply, Status
from infi.ramen_client.utils import (
    compress,
    create_queue_reader_and_writer,
    dump_json,
    logger,
    validate_name,
    validate_version,
)

if TYPE_CHECKING:
    import logging
    from collections.abc import Iterator

    from opentelemetry.metrics import Meter

    from infi.ramen_client.forwarder import Forwarder


def configure() -> QueueReaderConfig:
    QueueWriterConfig(sender="imx", system_serial=1099, system_version="3.0.0.1")
    QueueWriterConfig({"sender": "imx"}, system_serial="1099")
    config = QueueReaderConfig(dict(sender="imx", hostname="ramen.example"))  # noqa: C408 - as 1.x programs do
    config.blacklist_ttl = 2
    config.retry_delay = 0.01
    config.proxy = None
    assert_type(config.validate(), None)
    assert_type(config.ssl, bool)
    assert_type(config.max_queue_size, int)
    assert_type(config.auth_token, str | None)
    assert_type(QueueReaderConfig.load(Path("/etc/ramen.toml"), environ={}, sender="imx"), QueueReaderConfig)
    assert_type(QueueWriterConfig.load("ramen.toml"), QueueWriterConfig)
    QueueReaderConfig(["sender"])  # type: ignore[arg-type]
    return config


def write(config: QueueWriterConfig) -> None:
    with QueueWriter(config) as writer:
        assert_type(writer, QueueWriter)
        assert_type(writer.push("metrics", "x", "v1", {"a": 1}), str)
        writer.push("metrics", "x", 1, "{}", "mine")
        writer.push("metrics", "x", 1, b"{}", reqid=5)
        writer.push(category="metrics", data_type="x", data_version="v1", data=None, reqid=uuid.uuid4())
        writer.push("metrics", "x", 1.5, {})  # type: ignore[arg-type]
        writer.push("metrics", "x", "v1", {}, reqid=b"x")  # type: ignore[arg-type]
        assert_type(
            writer.push_many([("metrics", "x", "v1", {}), ("metrics", "x", 2, {}, "mine")]), list[str]
        )
        assert_type(writer.push_many(lazily()), list[str])
        assert_type(writer.queue_size(), int)
        assert_type(writer.wait_sent(), bool)
        assert_type(writer.wait_sent(timeout=2.5), bool)
        assert_type(writer.unserialisable_count, int)
        assert_type(len(writer._queue), int)
    writer.close()


def lazily() -> Iterator[tuple[str, str, int, object]]:
    yield "metrics", "x", 1, {}


def read(config: QueueReaderConfig, writer_config: QueueWriterConfig) -> None:
    with QueueReader(config) as reader:
        assert_type(reader, QueueReader)
        assert_type(reader.consume_one() == QueueReader.ACCEPTED, bool)
        assert_type([reader.EMPTY, reader.ACCEPTED, reader.DROPPED, reader.RETRY], list[int])
        assert_type(reader.run(), int)
        assert_type(reader.run(blocking=False), int)
        assert_type(reader.run(False), int)
        assert_type(reader.drain(), bool)
        assert_type(reader.drain(timeout=10), bool)
        assert_type(reader.stop(), None)
        assert_type(reader.start_thread(), Thread)
        assert_type(reader.test_connection(), bool)
        for rule in reader.get_blacklist():
            assert_type(rule.category, str | None)
            assert_type(rule.system_serial, int | str | None)
            assert_type(rule.data_version, str | None)
            assert_type(rule.added, datetime)
            assert_type(rule.last_seen, datetime)
            assert_type(str(rule), str)
    QueueReader(writer_config)  # type: ignore[arg-type]


def hold_rules(config: QueueReaderConfig) -> None:
    blacklist = Blacklist(config)
    blacklist.add({"data_type": "x", "system_serial": 1099, "sender": None})
    assert_type(blacklist.matches({"category": "metrics", "data_type": "x", "data_version": 1}), bool)
    assert [rule.data_type for rule in blacklist.get_list()]


def both(config: QueueReaderConfig) -> None:
    reader, writer = create_queue_reader_and_writer(config)
    assert_type(reader, QueueReader)
    assert_type(writer, QueueWriter)


def help_out() -> None:
    assert_type(dump_json({"a": 1}), str)
    assert_type(compress(b"{}"), bytes)
    validate_name("imx")
    validate_version("3.0")
    logger.warning("%s", "text")


def fail(error: RamenError) -> str:
    if isinstance(error, DurabilityError):
        return error.reqid
    wrong: list[type[ValueError]] = [ValidationError, InvalidMessage, MessageTooLarge]
    refused: type[AssertionError] = InvalidMessage
    gone: type[QueueError] = QueueGone
    spelt: type[AuthenticationError] = AutheticationError
    return repr((wrong, refused, gone, spelt))


def choose(message: Received) -> Reply:
    if message.json():
        return Drop({"data_type": message.envelope.data_type})
    return Refuse("TOO_MANY_REQUESTS", headers=(("Retry-After", "3"),))


def try_out() -> None:
    with RamenServer(token="t") as server:
        server.answer_with(Status(503), Accept("duplicate"))
        server.default = choose
        server.wait_for(1, timeout_seconds=2)
        assert_type(server.hostname, str)
        assert_type(server.accepted, list[Received])


async def write_awaited(config: QueueWriterConfig) -> None:
    async with AsyncQueueWriter(config, max_pending=10) as writer:
        assert_type(await writer.push("metrics", "cpu", 1, {"percent": 1.5}, reqid=uuid.uuid4()), str)
        assert_type(await writer.push_many([("metrics", "cpu", 1, {})]), list[str])
        assert_type(await writer.wait_sent(timeout=3), bool)


def watch(reader: QueueReader, forwarder: Forwarder, meter: Meter) -> None:
    health = reader.health()
    assert_type(health, Health)
    assert_type(health.healthy, bool)
    assert_type(health.reasons, tuple[str, ...])
    assert_type(health.last_success_at_ms, int | None)
    sources: list[Source] = [reader, forwarder, QueueFiles("/var/lib/ramen", max_queue_size=10_000)]
    for source in sources:
        REGISTRY.register(QueueCollector(source))
        instrument(source, meter)
        for metric, samples in collect(source):
            assert_type(metric, Metric)
            assert_type(samples, list[tuple[dict[str, str], float]])


def log(writer: QueueWriter) -> logging.Handler:
    return RamenHandler(writer, category="logs", data_type="python", data_version="v1", level="INFO")


def from_the_package_itself(config: QueueReaderConfig) -> None:
    assert_type(infi.ramen_client.__version__, str)
    assert_type(infi.ramen_client.QueueWriter(config), QueueWriter)
    assert_type(infi.ramen_client.QueueReader(config), QueueReader)
    infi.ramen_client.nonsense  # type: ignore[attr-defined]  # noqa: B018
