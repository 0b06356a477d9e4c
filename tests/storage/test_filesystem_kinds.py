"""A queue on a file system that cannot be trusted with one is warned of: once, in words, and used all the same."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from queues import make_queue, push, run

from infi.ramen_client.storage import _filesystem
from infi.ramen_client.storage._filesystem import kind_of, warn_of_unfit

MOUNTS = r"""22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw
28 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
31 28 254:2 / /var rw shared:2 - xfs /dev/vda2 rw
40 31 0:40 / /var/share rw,relatime shared:30 - nfs4 filer:/export/ramen rw,vers=4.2
41 31 0:41 / /var/share/deep rw - ext4 /dev/vdb1 rw
42 28 0:42 / /mnt/with\040blank rw - cifs //filer/share rw
43 28 0:43 / /mnt/ssh rw master:7 propagate_from:2 - fuse.sshfs host: rw
44 28 0:44 / /mnt/ntfs rw - fuseblk /dev/sdb1 rw
45 28 0:45 / /box rw - overlay overlay rw,lowerdir=/a,upperdir=/b
46 28 0:46 / /box rw - btrfs /dev/vdc rw
47 28 0:47 / /tmp rw - tmpfs tmpfs rw
48 28 0:48 / /layers rw - overlay overlay rw
a line of some later kernel
50 28 0:50 / /torn rw -
"""

FIT = ["/", "/var", "/var/share/deep", "/var/share/deep/er", "/mnt/ntfs", "/box", "/tmp", "/torn", "/variety"]


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTS)
    return path


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_filesystem, "_warned_of", set())


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/ramen", "xfs"),
        ("/variety", "ext4"),
        ("/var/share", "nfs4"),
        ("/var/share/ramen", "nfs4"),
        ("/var/share/deep/er", "ext4"),
        ("/mnt/with blank/x", "cifs"),
        ("/mnt/ssh/x", "fuse.sshfs"),
        ("/box/x", "btrfs"),
        ("/layers/x", "overlay"),
    ],
)
def test_the_kind_is_that_of_the_innermost_and_latest_mount(mounts: Path, path: str, kind: str) -> None:
    assert kind_of(Path(path), mounts) == kind


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/var/share/x", "kind nfs4: locks and syncs of network file systems cannot be trusted"),
        ("/mnt/with blank", "kind cifs: locks and syncs of network"),
        (
            "/mnt/ssh/x",
            "kind fuse.sshfs: whether its locks and syncs can be trusted is up to the program behind it",
        ),
        ("/layers/x", "kind overlay: it belongs to a container"),
    ],
)
def test_a_network_a_fuse_and_an_overlay_file_system_are_warned_of_with_the_remedy(
    mounts: Path, caplog: pytest.LogCaptureFixture, path: str, words: str
) -> None:
    for _ in range(3):
        warn_of_unfit(Path(path), mounts)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("ramen_client", logging.WARNING)
    assert record.getMessage().startswith(f"{path}: lies on a file system of the ")
    assert words in record.getMessage()
    assert "Give queue_dir a directory on" in record.getMessage()


def test_each_path_is_warned_of_by_itself(mounts: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/var/share/x", "/var/share/y", "/var/share/x"):
        warn_of_unfit(Path(path), mounts)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("path", FIT)
def test_a_local_file_system_is_not_warned_of(
    mounts: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    warn_of_unfit(Path(path), mounts)
    assert caplog.records == []


def test_where_the_kernel_does_not_tell_nothing_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_unfit(Path("/var"), tmp_path / "missing")
    assert caplog.records == []


@given(st.text())
def test_no_mount_table_can_stop_a_program(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    mounts = tmp_path_factory.mktemp("mounts") / "mountinfo"
    mounts.write_bytes(
        text.encode(errors="surrogateescape")
        if text.isprintable()
        else b"\xff" + text.encode(errors="replace")
    )
    assert isinstance(kind_of(Path("/var"), mounts), str)


def test_the_kernels_own_table_is_understood() -> None:
    if not Path("/proc/self/mountinfo").exists():
        pytest.fail("these tests are for Linux")
    assert kind_of(Path("/proc/self")) == "proc"


@pytest.fixture
def on_nfs(mounts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts.write_text(MOUNTS + f"60 28 0:60 / {tmp_path} rw - nfs4 filer:/export rw\n")
    monkeypatch.setattr(
        "infi.ramen_client.storage._create.warn_of_unfit", lambda directory: warn_of_unfit(directory, mounts)
    )


def test_opening_a_queue_there_warns_once_in_a_process_and_works(
    tmp_path: Path, on_nfs: None, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        queue = make_queue(tmp_path / "queue")
        push(queue)
    assert queue.size() == 3
    (record,) = caplog.records
    assert str(tmp_path / "queue") in record.getMessage()


def test_a_forked_child_may_open_another_queue(tmp_path: Path) -> None:
    code = """
make_queue(sys.argv[1] + "/a")
if os.fork() == 0:
    push(make_queue(sys.argv[1] + "/b"))
    os._exit(0)
assert os.wait()[1] == 0
"""
    run(code, os.fspath(tmp_path))
