"""The built wheel, installed into an environment of its own, is the product."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    target = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", target, ROOT],
        check=True,
        capture_output=True,
        text=True,
    )
    (found,) = target.glob("*.whl")
    return found


def test_the_wheel_holds_the_packages_their_types_and_the_schema_and_no_namespace_init(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "infi/ramen_protocol/__init__.py",
        "infi/ramen_protocol/py.typed",
        "infi/ramen_client/__init__.py",
        "infi/ramen_client/py.typed",
        "infi/ramen_client/storage/schema.sql",
        "infi/ramen_client/testing/__init__.py",
    } <= names
    assert "infi/__init__.py" not in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "demo"))]


def test_the_wheel_asks_for_few_packages_and_pins_none_from_above(wheel):
    archive = zipfile.ZipFile(wheel)
    (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
    required = [
        line.removeprefix("Requires-Dist: ")
        for line in archive.read(metadata).decode().splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert sorted(line.split(">=")[0] for line in required) == [
        "apsw",
        "click",
        "orjson",
        "pycurl",
        "pydantic",
    ]
    assert not [line for line in required if "<" in line or "==" in line]


def test_a_message_travels_with_nothing_but_the_wheel_on_the_path(wheel, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from infi.ramen_client import QueueReaderConfig, QueueWriter, QueueReader\n"
        "from infi.ramen_client.testing import RamenServer\n"
        "import infi.ramen_client\n"
        "assert '.whl-unpacked' in infi.ramen_client.__file__, infi.ramen_client.__file__\n"
        "with RamenServer() as server:\n"
        "    config = QueueReaderConfig(sender='imx', system_serial=1, system_version='1', queue_dir=sys.argv[1],\n"
        "                               hostname=server.hostname, auth_token=server.token, ssl=False)\n"
        "    with QueueWriter(config) as writer, QueueReader(config) as reader:\n"
        "        writer.push('metrics', 'a', 1, {'x': 1})\n"
        "        assert reader.run(blocking=False) == 1\n"
        "print('delivered')\n"
    )
    unpacked = tmp_path / ".whl-unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    done = subprocess.run(
        [sys.executable, script, tmp_path / "queue"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("delivered\n", 0), done.stderr
