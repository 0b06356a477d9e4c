"""api-1x.md: the queue's directory, its permissions, and what happens when it is taken away; the upgrade's differences."""

from __future__ import annotations

import grp
import json
import logging
import os
import shutil
import socket
import stat
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from infi.ramen_client.errors import QueueError, QueueGone, QueueUnusable
from infi.ramen_client.queue_reader import QueueReader
from infi.ramen_client.queue_writer import QueueWriter
from infi.ramen_client.testing import Drop, RamenServer, Refuse, Status
from infi.ramen_client.utils import create_queue_reader_and_writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from infi.ramen_client.config import QueueReaderConfig

    MakeConfig = Callable[..., QueueReaderConfig]


# Deleted and made again


def take_away(queue_dir: Path, how: str) -> None:
    if how == "deleted":
        shutil.rmtree(queue_dir)
    elif how == "deleted and made again":
        shutil.rmtree(queue_dir)
        queue_dir.mkdir()
    else:
        queue_dir.rename(queue_dir.with_name("moved"))


TAKEN_AWAY = pytest.mark.parametrize("how", ["deleted", "deleted and made again", "moved"])


@TAKEN_AWAY
def test_a_queue_taken_away_makes_push_raise_queue_gone(writer: Any, queue_dir: Path, how: str):
    writer.push("metrics", "x", "v1", {})
    take_away(queue_dir, how)

    for _ in range(2):
        with pytest.raises(QueueGone):
            writer.push("metrics", "x", "v1", {})
    assert not list(queue_dir.glob("*.db"))  # it made nothing


@TAKEN_AWAY
def test_the_readers_of_a_queue_taken_away_end_quietly(
    server: RamenServer,
    reader: QueueReader,
    queue_dir: Path,
    how: str,
    in_background: Any,
    caplog: pytest.LogCaptureFixture,
):
    running = in_background(reader.run)
    assert reader.consume_one() in (reader.EMPTY, reader.RETRY)
    with caplog.at_level(logging.INFO, logger="ramen_client"):
        take_away(queue_dir, how)
        assert running.join() == 0
        assert reader.run() == 0  # nor do they begin again
        assert reader.run(blocking=False) == 0
    assert "the reader ends" in caplog.text
    # Deleting a directory is many steps: a reader may meet half of it, and say so in one line.
    assert not any(record.exc_info for record in caplog.records)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert how != "moved" or all("the reader ends" in line for line in said)
    with pytest.raises(QueueGone):
        reader.consume_one()


def test_the_background_thread_of_a_queue_taken_away_ends(
    config: QueueReaderConfig, server: RamenServer, queue_dir: Path
):
    before = set(threading.enumerate())
    reader, writer = create_queue_reader_and_writer(config)
    (thread,) = [thread for thread in set(threading.enumerate()) - before if thread.name == "ramen-reader"]
    with reader, writer:
        writer.push("metrics", "x", "v1", {})
        server.wait_for(1)
        shutil.rmtree(queue_dir)
        thread.join(10)
        assert not thread.is_alive()


def test_a_reader_that_backs_off_from_a_dead_server_ends_too_when_its_queue_is_taken_away(
    server: RamenServer, writer: Any, reader: QueueReader, queue_dir: Path, in_background: Any
):
    server.default = Status(503)
    writer.push("metrics", "x", "v1", {})
    running = in_background(reader.run)
    server.wait_for_received(3)
    shutil.rmtree(queue_dir)

    assert running.join() == 0


def test_a_queue_made_again_at_the_same_path_works_for_whoever_opens_it_then(
    config: QueueReaderConfig,
    server: RamenServer,
    queue_dir: Path,
    in_background: Any,
    open_writer: Any,
    open_reader: Any,
):
    old_writer, old_reader = open_writer(), open_reader()
    old_writer.push("metrics", "x", "v1", {"age": "old"})
    shutil.rmtree(queue_dir)

    new_writer, new_reader = open_writer(), open_reader()
    assert new_writer.queue_size() == 0
    new_writer.push("metrics", "x", "v1", {"age": "new"})
    with pytest.raises(QueueGone):
        old_writer.push("metrics", "x", "v1", {"age": "old"})
    assert old_reader.run(blocking=False) == 0
    assert new_writer.queue_size() == 1
    assert new_reader.run(blocking=False) == 1
    assert [message.json()["age"] for message in server.accepted] == ["new"]


def test_old_objects_do_not_come_alive_in_a_new_queue_whatever_inode_it_has(
    config: QueueReaderConfig, queue_dir: Path, open_writer: Any
):
    """A file system gives a deleted file's inode number to the next one, unless somebody still has it open."""
    old = open_writer()
    old.push("metrics", "x", "v1", {})
    child = os.fork()  # lets go of every descriptor
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    shutil.rmtree(queue_dir)
    new = open_writer()

    with pytest.raises(QueueGone):
        old.push("metrics", "x", "v1", {})
    assert new.queue_size() == 0


def test_waiting_for_a_queue_that_was_taken_away_ends(
    server: RamenServer,
    writer: Any,
    reader: QueueReader,
    queue_dir: Path,
    in_background: Any,
    wait_until: Any,
):
    server.default = Status(503)
    writer.push("metrics", "x", "v1", {})
    waiting, draining = in_background(writer.wait_sent), in_background(reader.drain)
    server.wait_for_received(2)
    shutil.rmtree(queue_dir)

    with pytest.raises(QueueGone):
        waiting.join()
    with pytest.raises(QueueGone):
        draining.join()


# Permissions


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def use(config: QueueReaderConfig) -> None:
    """Everything that makes files."""
    with QueueWriter(config) as writer, QueueReader(config) as reader:
        writer.push("metrics", "x", "v1", {})
        reader.consume_one()


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_directories_that_2_0_makes_are_0700_and_files_0600(
    make_config: MakeConfig, server: RamenServer, queue_dir: Path, mask: int
):
    with umask(mask):
        use(make_config(queue_dir=str(queue_dir / "a" / "b")))

    assert [oct(mode(path)) for path in (queue_dir, queue_dir / "a", queue_dir / "a" / "b")] == ["0o700"] * 3
    files = list((queue_dir / "a" / "b").iterdir())
    assert len(files) >= 4
    assert {path.name: oct(mode(path)) for path in files} == {path.name: "0o600" for path in files}


def test_a_directory_that_exists_keeps_its_mode(
    config: QueueReaderConfig, server: RamenServer, queue_dir: Path
):
    queue_dir.mkdir()
    queue_dir.chmod(0o755)
    with umask(0):
        use(config)

    assert oct(mode(queue_dir)) == "0o755"
    assert {oct(mode(path)) for path in queue_dir.iterdir()} == {"0o600"}


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_queue_group_opens_the_queue_to_a_group(
    make_config: MakeConfig, server: RamenServer, queue_dir: Path, mask: int
):
    group = grp.getgrgid(os.getgid())
    with umask(mask):
        use(make_config(queue_group=group.gr_name))

    assert oct(mode(queue_dir)) == "0o2770"
    files = list(queue_dir.iterdir())
    assert {path.name: oct(mode(path)) for path in files} == {path.name: "0o660" for path in files}
    assert {path.stat().st_gid for path in (queue_dir, *files)} == {group.gr_gid}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as two users")
def test_two_users_of_the_queue_group_share_a_queue(
    make_config: MakeConfig, server: RamenServer, fields: dict[str, Any], run_python: Any
):
    """One makes the queue and pushes, another pushes into it and delivers."""
    import tempfile

    group = grp.getgrnam("users")
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        os.chown(place, 65533, group.gr_gid)
        shared = json.dumps(fields | {"queue_dir": f"{place}/queue", "queue_group": group.gr_name})
        program = f"""
            import json, os, sys
            from infi.ramen_client.config import QueueReaderConfig
            from infi.ramen_client.queue_reader import QueueReader
            from infi.ramen_client.queue_writer import QueueWriter
            import infi.ramen_client.delivery.courier, grp, encodings.idna
            config = QueueReaderConfig(json.loads(sys.argv[1]))
            user = int(sys.argv[2])
            os.setgroups([]); os.setgid({group.gr_gid}); os.setuid(user); os.umask(0o022)
            with QueueWriter(config) as writer, QueueReader(config) as reader:
                writer.push("metrics", "x", "v1", {{"user": user}})
                if sys.argv[3] == "deliver":
                    assert reader.run(blocking=False) == 2, "not everything was delivered"
        """
        Path(place).chmod(0o770)
        run_python(program, shared, "65533", "push")
        run_python(program, shared, "65532", "deliver")
    assert [message.json()["user"] for message in server.accepted] == [65533, 65532]


def test_a_queue_group_that_does_not_exist_is_a_clear_error(make_config: MakeConfig, queue_dir: Path):
    with pytest.raises(QueueUnusable, match="no group 'nobody-has-this-group'"):
        QueueWriter(make_config(queue_group="nobody-has-this-group"))


@pytest.mark.parametrize("suffix", ["", ".writers", ".reader"])
@pytest.mark.parametrize("dangling", [True, False])
def test_a_symbolic_link_in_place_of_a_file_is_refused_and_not_followed(
    config: QueueReaderConfig, queue_dir: Path, tmp_path: Path, suffix: str, dangling: bool
):
    victim = tmp_path / "victim"
    if not dangling:
        victim.write_bytes(b"precious")
    queue_dir.mkdir()
    (queue_dir / f"imx_1099.db{suffix}").symlink_to(victim)

    with pytest.raises(QueueError, match="imx_1099"):
        use(config)
    assert dangling == (not victim.exists())
    assert dangling or victim.read_bytes() == b"precious"


def test_a_symbolic_link_on_the_way_to_the_directory_is_the_operators(
    make_config: MakeConfig, server: RamenServer, tmp_path: Path
):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    use(make_config(queue_dir=str(tmp_path / "link")))

    assert (tmp_path / "real" / "imx_1099.db").is_file()


# Where 2.0 differs by default


def test_messages_that_the_server_rejects_are_kept_as_dead_letters_and_can_be_sent_again(
    server: RamenServer, writer: Any, reader: QueueReader
):
    server.answer_with(Refuse("BAD_REQUEST", "no such field"))
    reqid = writer.push("metrics", "x", "v1", {"a": 1})
    assert reader.consume_one() == reader.DROPPED
    assert writer.queue_size() == 0

    (dead,) = writer._store.dead_letters()
    assert (dead.death.status, dead.death.code, dead.death.details) == (400, "BAD_REQUEST", "no such field")
    assert writer._store.retry_dead_letters([dead.message.position]) == 1
    assert reader.consume_one() == reader.ACCEPTED
    assert server.accepted[0].reqid == reqid
    assert writer._store.books().difference() == 0


@pytest.mark.parametrize(
    "status", [200, 201, 204, 301, 302, 303, 307, 308, 402, 404, 405, 407, 408, 421, 425, 451, 999]
)
def test_statuses_that_are_not_listed_are_retried(
    server: RamenServer, writer: Any, reader: QueueReader, status: int
):
    server.answer_with(Status(status), Status(status))
    writer.push("metrics", "x", "v1", {})

    assert reader.consume_one() == reader.RETRY
    assert reader.consume_one() == reader.RETRY
    assert reader.consume_one() == reader.ACCEPTED


@contextmanager
def proxy() -> Iterator[tuple[str, list[str]]]:
    """An HTTP proxy that answers for the server; the heads of the requests that it was sent."""
    heads: list[str] = []
    answer = b'HTTP/1.1 202 Accepted\r\nContent-Length: 35\r\nConnection: close\r\n\r\n{"code":"ACCEPTED","details": null}'

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                head = b"".join(iter(stream.readline, b"\r\n")).decode()
                length = int(head.lower().partition("content-length:")[2].split()[0])
                stream.read(length)
                heads.append(head)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heads
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize("no_proxy", ["", "*"])
def test_an_explicit_proxy_beats_the_environments(
    make_config: MakeConfig,
    no_proxies: None,
    writer: Any,
    open_reader: Any,
    monkeypatch: pytest.MonkeyPatch,
    no_proxy: str,
):
    with proxy() as (explicit, heads), proxy() as (environments, other_heads):
        monkeypatch.setenv("http_proxy", environments)
        monkeypatch.setenv("all_proxy", environments)
        monkeypatch.setenv("no_proxy", no_proxy)
        reader = open_reader(make_config(hostname="ramen.example:8080", proxy=explicit))
        writer.push("metrics", "x", "v1", {})

        assert reader.consume_one() == reader.ACCEPTED
    assert heads[0].startswith("POST http://ramen.example:8080/ramen/v1/metrics/")
    assert not other_heads


def test_without_a_proxy_of_its_own_the_environments_is_used(
    make_config: MakeConfig, no_proxies: None, writer: Any, open_reader: Any, monkeypatch: pytest.MonkeyPatch
):
    with proxy() as (environments, heads):
        monkeypatch.setenv("http_proxy", environments)
        reader = open_reader(make_config(hostname="ramen.example:8080"))
        writer.push("metrics", "x", "v1", {})

        assert reader.consume_one() == reader.ACCEPTED
    assert len(heads) == 1


def test_netrc_is_not_read(
    config: QueueReaderConfig,
    server: RamenServer,
    writer: Any,
    reader: QueueReader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / ".netrc").write_text(
        "machine 127.0.0.1 login me password secret\ndefault login me password secret\n"
    )
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    writer.push("metrics", "x", "v1", {})

    assert reader.consume_one() == reader.ACCEPTED
    assert "authorization" not in server.accepted[0].headers


def test_a_blacklist_rule_is_kept_in_the_queue_not_in_the_process(
    server: RamenServer, writer: Any, open_reader: Any
):
    server.answer_with(Drop({"data_type": "x"}))
    writer.push("metrics", "x", "v1", {})
    with open_reader() as reader:
        reader.consume_one()

    assert [str(rule) for rule in open_reader().get_blacklist()] == ["Rule(data_type=x)"]
