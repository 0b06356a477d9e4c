"""The product's own client against the collector: plain, by TLS, through a proxy; values, duplicates, rules, tokens."""

import json
import zlib

import pytest
import trustme
from hard_kit import ForwardingProxy, stored, texts, values

from infi.ramen_client import AuthenticationError, QueueReader, QueueReaderConfig, QueueWriter
from infi.ramen_protocol import Rule
from infi.ramen_server import CollectorServer, Limits, Scope, ServerConfig, Settings

WAYS = ["plain", "proxy", "tls", "tls through a proxy"]


@pytest.fixture(params=WAYS)
def way(request, tmp_path, monkeypatch):
    """A collector, and the fields with which a client reaches it."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    fields = {
        "sender": "imx", "system_serial": 1099, "system_version": "3.0.0.1", "queue_dir": str(tmp_path / "queue"),
        "ssl": "tls" in request.param, "retry_delay": 0.05,
    }  # fmt: skip
    tls = {}
    if fields["ssl"]:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(tmp_path / "cert.pem", append=True)
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        fields["ca_file"] = str(tmp_path / "ca.pem")
        tls = {"tls_certificate": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    config = ServerConfig(tmp_path / "data", port=0, limits=Limits(min_free_bytes=0), **tls)
    with CollectorServer(config) as server, ForwardingProxy() as proxy:
        fields |= {"hostname": f"127.0.0.1:{server.port}", "auth_token": server.first_token}
        if "proxy" in request.param:
            fields["proxy"] = proxy.url
        yield server, fields
        assert bool(proxy.seen) == ("proxy" in request.param)
        assert all(line.startswith("CONNECT" if fields["ssl"] else "POST http://") for line in proxy.seen)


def open_client(fields, **more):
    config = QueueReaderConfig(fields | more)
    return QueueWriter(config), QueueReader(config)


def test_values_of_every_kind_arrive_intact(way):
    server, fields = way
    writer, reader = open_client(fields)
    with writer, reader:
        for name, value in values():
            writer.push("metrics", name, "v1", value)
        for name, text in texts():
            writer.push("events", name, "v1", text)
        count = len([*values(), *texts()])
        assert reader.run(blocking=False) == count
    found = {message.envelope.data_type: message.payload for message in stored(server.config.data_dir)}
    assert len(found) == count
    for name, value in values():
        assert json.loads(found[name]) == value, name
        assert repr(json.loads(found[name])) == repr(value), "also -0.0, and whole numbers as such"
    for name, text in texts():
        assert found[name] == text.encode(), name


def test_a_message_that_is_sent_twice_is_stored_once(way, tmp_path):
    server, fields = way
    for queue_dir in ("queue", "another"):
        writer, reader = open_client(fields, queue_dir=str(tmp_path / queue_dir))
        with writer, reader:
            for reqid in ("mine", "ü & /?#", "mine"):
                writer.push("metrics", "a", "v1", {"from": queue_dir}, reqid=reqid)
            assert reader.run(blocking=False) == 3
            assert writer.books().accepted == 3
    found = stored(server.config.data_dir)
    assert [(message.envelope.reqid, json.loads(message.payload)["from"]) for message in found] == [
        ("mine", "queue"),
        ("ü & /?#", "queue"),
    ]


def test_a_rule_is_obeyed_from_its_first_answer_on_and_no_more_when_it_is_lifted(way):
    server, fields = way
    writer, reader = open_client(fields)
    with writer, reader, Settings(server.config.data_dir) as settings:
        rule = settings.add_rule(Rule(data_type="noise", data_version="2"))
        for number in range(4):
            writer.push("metrics", "noise", 2, number)
            writer.push("metrics", "noise", 3, number)
        assert reader.run(blocking=False) == 8
        assert settings.remove_rule(rule.rule_id)
        writer.push("metrics", "noise", 2, "still held by the client")
        assert reader.run(blocking=False) == 1
    assert [message.envelope.data_version for message in stored(server.config.data_dir)] == ["3"] * 4


def test_the_connection_test_tells_a_good_token_from_others_and_a_refused_message_stays(way):
    server, fields = way
    with Settings(server.config.data_dir) as settings:
        narrow = settings.add_token("narrow", scope=Scope(("other",)))
    writer, reader = open_client(fields)
    with writer, reader:
        assert reader.test_connection() is True
        writer.push("metrics", "a", "v1", 1)
        for token in (narrow, "x" * 30):
            with QueueReader(QueueReaderConfig(fields | {"auth_token": token})) as other:
                assert other.test_connection() is False
                with pytest.raises(AuthenticationError):
                    other.run(blocking=False)
        assert writer.queue_size() == 1
        assert reader.run(blocking=False) == 1
    assert [message.envelope.data_type for message in stored(server.config.data_dir)] == ["test", "a"]


def test_what_the_client_puts_on_the_wire_is_what_the_collector_keeps_once_decoded(way):
    server, fields = way
    text = json.dumps({"x": "y" * 5000})
    writer, reader = open_client(fields)
    with writer, reader:
        writer.push("metrics", "a", "v1", text)
        assert zlib.decompress(writer._queue.peek()["data"]).decode() == text
        assert reader.run(blocking=False) == 1
    assert [message.payload.decode() for message in stored(server.config.data_dir)] == [text]
