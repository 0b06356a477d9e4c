"""The package as a whole."""

from __future__ import annotations

import subprocess
import sys

import infi.ramen_protocol as protocol


def test_every_public_name_is_there_and_listed_once() -> None:
    assert len(set(protocol.__all__)) == len(protocol.__all__)
    for name in protocol.__all__:
        assert hasattr(protocol, name)


def test_importing_the_protocol_loads_neither_network_nor_database_nor_numpy() -> None:
    unwanted = [
        "socket",
        "ssl",
        "http.client",
        "asyncio",
        "apsw",
        "pycurl",
        "numpy",
        "email",
        "infi.ramen_client",
    ]
    code = f"import sys, infi.ramen_protocol; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
