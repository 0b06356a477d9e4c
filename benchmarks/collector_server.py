"""One collector process of a benchmark: `python -m benchmarks.collector_server ADAPTER DIRECTORY`.

The adapter is a module of ``benchmarks.variants`` with a ``collector``. Prints one JSON line (port, token, pid), serves until
its standard input ends, and prints another: what is stored, and what it took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import apsw

from benchmarks.measurement import memory_bytes
from infi.ramen_server import SqliteArchive


def main() -> None:
    adapter, directory = sys.argv[1:]
    with import_module(adapter).collector(directory) as (port, token):
        print(json.dumps({"port": port, "token": token, "pid": os.getpid()}), flush=True)
        cpu_before = time.process_time()
        sys.stdin.read()
        cpu_seconds = time.process_time() - cpu_before
    with SqliteArchive(Path(directory)) as archive:
        messages = archive.totals().messages
    versions = {library: version(library) for library in ("uvicorn", "httptools", "starlette", "apsw")}
    answer = {
        "messages": messages,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": memory_bytes("VmHWM"),
        "versions": versions | {"SQLite": apsw.sqlite_lib_version()},
    }
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
