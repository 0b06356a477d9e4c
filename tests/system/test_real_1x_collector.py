"""The real `infi.ramen_client` 1.40.post3 against the collector: plain, by TLS, and both through a proxy.

1.x runs in an environment of its own (made once, by pip), in processes of its own; they talk by JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

sys.path.append(
    str(Path(__file__).parent.parent / "server")
)  # what the tests of the collector share is theirs

from hard_kit import ForwardingProxy, environment_without_proxies, stored, texts, values

from benchmarks.environment import ONE_X
from infi.ramen_protocol import Rule
from infi.ramen_server import CollectorServer, Limits, Scope, ServerConfig, Settings, SqliteArchive

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

PROGRAM = """
    import json, sys
    from infi.ramen_client.config import QueueReaderConfig
    from infi.ramen_client.queue_reader import QueueReader, AutheticationError
    from infi.ramen_client.queue_writer import QueueWriter
    from infi.ramen_client.__version__ import __version__
    assert __version__.startswith("1.40"), __version__
    order = json.load(sys.stdin)
    config = QueueReaderConfig(order["config"])
    writer, reader = QueueWriter(config), QueueReader(config)
    answer = {}
    for name, argument in order["steps"]:
        if name == "push":
            writer.push(*argument)
        elif name == "connection":
            answer["connection"] = reader.test_connection()
        elif name == "run":
            try:
                answer["ran"] = reader.run(blocking=False)
            except AutheticationError as error:
                answer["refused"] = str(error)
    answer["waiting"] = writer.queue_size()
    answer["rules"] = [str(rule) for rule in reader.get_blacklist()]
    print(json.dumps(answer))
"""


class OneX:
    """One client's place: its configuration, and ``do``, which runs the steps in a process of the real 1.x."""

    def __init__(self, config: dict[str, Any], environment: dict[str, str], server: CollectorServer) -> None:
        self.config = config
        self.server = server
        self.directory = server.config.data_dir
        self._environment = environment
        self._python = str(ONE_X.interpreter())

    def do(self, *steps: tuple[str, Any], **config: Any) -> dict[str, Any]:
        done = subprocess.run(
            [self._python, "-I", "-W", "ignore", "-c", textwrap.dedent(PROGRAM)],
            input=json.dumps({"config": self.config | config, "steps": steps}),
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture(params=["plain", "proxy", "tls", "tls through a proxy"])
def one_x(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OneX]:
    """A collector and the real 1.x beside it; its directory is ``one_x.directory``."""
    by_tls, by_proxy = "tls" in request.param, "proxy" in request.param
    environment = environment_without_proxies()
    tls: dict[str, Path] = {}
    if by_tls:
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(tmp_path / "cert.pem", append=True)
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        environment["REQUESTS_CA_BUNDLE"] = str(tmp_path / "ca.pem")
        tls = {"tls_certificate": tmp_path / "cert.pem", "tls_key": tmp_path / "key.pem"}
    config = ServerConfig(tmp_path / "data", port=0, limits=Limits(min_free_bytes=0), **tls)
    with CollectorServer(config) as server, ForwardingProxy() as proxy:
        fields = {
            "sender": "imx", "system_serial": 1099, "system_version": "3.0.0.1", "queue_dir": str(tmp_path / "queue"),
            "hostname": f"127.0.0.1:{server.port}", "auth_token": server.first_token, "ssl": by_tls, "retry_delay": 0.05,
        }  # fmt: skip
        if by_proxy:
            fields["proxy"] = proxy.url
        yield OneX(fields, environment, server)
        assert bool(proxy.seen) == by_proxy
        assert all(line.startswith("CONNECT" if by_tls else "POST http://") for line in proxy.seen)


def push(data_type: str, data: Any, reqid: str | None = None, version: Any = "v1") -> tuple[str, Any]:
    return "push", ["metrics", data_type, version, data, reqid]


def test_values_of_every_kind_arrive_intact(one_x: OneX) -> None:
    pushes = [push(name, data) for name, data in (*values(), *texts())]
    answer = one_x.do(*pushes, ("run", None))
    assert answer == {"ran": len(pushes), "waiting": 0, "rules": []}
    found = {message.envelope.data_type: message for message in stored(one_x.directory)}
    assert len(found) == len(pushes)
    for name, value in values():
        payload = json.loads(found[name].payload)
        assert payload == value, name
        assert repr(payload) == repr(value), "also -0.0, and whole numbers as such"
    for name, text in texts():
        assert found[name].payload == text.encode(), name
    envelope = found["empty"].envelope
    assert (envelope.category, envelope.sender, envelope.system_serial) == ("metrics", "imx", 1099)
    assert (envelope.data_version, envelope.system_version) == ("v1", "3.0.0.1")


def test_a_message_that_is_sent_twice_is_stored_once(one_x: OneX, tmp_path: Path) -> None:
    twice = [push("a", {"n": 1}, "mine"), push("a", {"n": 2}, "mine"), ("run", None)]
    assert one_x.do(*twice)["ran"] == 2
    assert one_x.do(*twice, queue_dir=str(tmp_path / "another"))["ran"] == 2
    found = [(message.envelope.reqid, json.loads(message.payload)) for message in stored(one_x.directory)]
    assert found == [("mine", {"n": 1})]
    with SqliteArchive(one_x.directory) as archive:
        assert archive.totals().duplicates == 3


def test_messages_without_a_reqid_of_their_own_are_all_stored(one_x: OneX) -> None:
    assert one_x.do(*(push("a", {"n": number}) for number in range(20)), ("run", None))["ran"] == 20
    found = stored(one_x.directory)
    assert [json.loads(message.payload)["n"] for message in found] == list(range(20))
    assert len({message.envelope.reqid for message in found}) == 20


def test_a_rule_is_obeyed_from_its_first_answer_on(one_x: OneX) -> None:
    with Settings(one_x.directory) as settings:
        rule = settings.add_rule(Rule(data_type="noise", system_serial="1099"))
    mixed = [push(data_type, {"n": number}) for number in range(4) for data_type in ("noise", "signal")]
    answer = one_x.do(*mixed, ("run", None))
    assert answer == {"ran": 8, "waiting": 0, "rules": ["Rule(system_serial=1099, data_type=noise)"]}
    assert [message.envelope.data_type for message in stored(one_x.directory)] == ["signal"] * 4
    one_x.server.stop()  # writes the hits
    with Settings(one_x.directory) as settings:
        assert [(held.rule_id, held.hits) for held in settings.list_rules()] == [(rule.rule_id, 1)]


def test_the_connection_test_is_true_with_a_good_token_only_and_a_refused_message_stays(one_x: OneX) -> None:
    with Settings(one_x.directory) as settings:
        narrow = settings.add_token("narrow", scope=Scope(("other",)))
        revoked = settings.add_token("leaving")
        settings.revoke_token("leaving")
    assert one_x.do(("connection", None))["connection"] is True
    for token in (narrow, revoked, "wrong"):
        answer = one_x.do(
            ("connection", None), push("a", {"token": token == narrow}), ("run", None), auth_token=token
        )
        assert answer["connection"] is False
        assert "refused" in answer
        assert "ran" not in answer
    assert one_x.do(("run", None)) == {"ran": 3, "waiting": 0, "rules": []}
    assert [message.envelope.data_type for message in stored(one_x.directory)] == ["test", "a", "a", "a"]


def test_a_message_that_the_collector_refuses_leaves_the_queue_and_the_next_one_arrives(one_x: OneX) -> None:
    answer = one_x.do(push("a", "NaN"), push("a", "{"), push("a", {"good": True}), ("run", None))
    assert (answer["ran"], answer["waiting"]) == (3, 0)
    assert [message.payload for message in stored(one_x.directory)] == [b'{"good":true}']
