"""The product's own writer and reader against the collector."""

import json
from decimal import Decimal
from uuid import UUID

import pytest

from infi.ramen_client import QueueReader, QueueReaderConfig, QueueWriter
from infi.ramen_protocol import Rule
from infi.ramen_server import CollectorServer, Limits, Selection, ServerConfig, Settings, SqliteArchive


@pytest.fixture
def server(directory):
    with CollectorServer(ServerConfig(directory, port=0, limits=Limits(min_free_bytes=0))) as server:
        yield server


def client_config(server, tmp_path, **fields):
    return QueueReaderConfig(
        **{
            "sender": "imx",
            "system_serial": 1099,
            "system_version": "3.0.0.1-beta",
            "queue_dir": str(tmp_path / "queue"),
            "hostname": f"127.0.0.1:{server.port}",
            "auth_token": server.first_token,
            "ssl": False,
            "retry_delay": 0.01,
            **fields,
        }
    )


def stored(directory):
    with SqliteArchive(directory) as archive:
        return list(archive.export(Selection()))


def test_what_is_pushed_arrives_with_its_values_intact_and_in_the_order_of_its_stream(
    server, tmp_path, directory
):
    payloads = [
        {
            "price": Decimal("1.10"),
            "big": 2**80,
            "text": "ä \U0001f600 \u2028",
            "lone": "\ud800",
            "none": None,
        },
        [UUID(int=5), (1, 2.5), {"nested": [[]]}],
        ["x" * 300_000],
        {},
    ]
    config = client_config(server, tmp_path)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        for payload in payloads:
            writer.push("metrics", "san_totals", 1, payload)
        writer.push("events", "own", "v2", b' {"already": "serialised"}\n', reqid="my/own &id=ü")
        assert reader.run(blocking=False) == len(payloads) + 1
        assert writer.queue_size() == 0
    found = [message for message in stored(directory) if message.envelope.category == "metrics"]
    (last,) = [message for message in stored(directory) if message.envelope.category == "events"]
    assert [json.loads(message.payload, parse_float=Decimal) for message in found[:1]] == [payloads[0]]
    assert json.loads(found[1].payload) == [str(UUID(int=5)), [1, 2.5], {"nested": [[]]}]
    assert [json.loads(message.payload) for message in found[2:4]] == payloads[2:]
    assert (last.payload, last.envelope.reqid) == (b' {"already": "serialised"}\n', "my/own &id=ü")
    assert (last.envelope.category, last.envelope.data_type, last.envelope.data_version) == (
        "events",
        "own",
        "v2",
    )
    assert (last.envelope.sender, last.envelope.system_serial) == ("imx", 1099)
    assert last.envelope.system_version == "3.0.0.1-beta"


def test_a_rule_of_the_operator_is_obeyed_by_the_client(server, tmp_path, directory):
    config = client_config(server, tmp_path)
    with Settings(directory) as settings, QueueWriter(config) as writer, QueueReader(config) as reader:
        rule = settings.add_rule(Rule(data_type="noise"))
        for number in range(5):
            writer.push("metrics", "noise", 1, {"n": number})
            writer.push("metrics", "signal", 1, {"n": number})
        assert reader.run(blocking=False) == 10
        assert [str(held) for held in reader.get_blacklist()]
        assert len(reader.get_blacklist()) == 1
        assert reader.get_blacklist()[0].data_type == "noise"
    server.stop()
    assert [message.envelope.data_type for message in stored(directory)] == ["signal"] * 5
    with Settings(directory) as settings:
        assert [(listed.rule_id, listed.hits) for listed in settings.list_rules()] == [(rule.rule_id, 1)]


def test_the_same_reqid_is_stored_once(server, tmp_path, directory):
    config = client_config(server, tmp_path)
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        for _ in range(3):
            writer.push("metrics", "a", 1, {}, reqid="once")
        assert reader.run(blocking=False) == 3
    assert [message.envelope.reqid for message in stored(directory)] == ["once"]


def test_a_message_that_the_collector_refuses_leaves_the_queue_and_the_next_one_arrives(tmp_path, directory):
    small = Limits(min_free_bytes=0, max_message_bytes=10_000, max_body_bytes=10_000)
    with CollectorServer(ServerConfig(directory, port=0, limits=small)) as server:
        config = client_config(server, tmp_path)
        with QueueWriter(config) as writer, QueueReader(config) as reader:
            writer.push("metrics", "a", 1, ["x" * 100_000])
            writer.push("metrics", "a", 1, b"NaN")
            writer.push("metrics", "a", 1, {"good": True})
            assert reader.run(blocking=False) == 3
    assert [message.payload for message in stored(directory)] == [b'{"good":true}']


def test_the_connection_test_says_true_and_with_a_revoked_token_false(server, tmp_path, directory):
    config = client_config(server, tmp_path)
    with QueueReader(config) as reader, Settings(directory) as settings:
        assert reader.test_connection() is True
        settings.revoke_token("first")
        assert reader.test_connection() is False
