"""The child of the footprint benchmark: what an import costs, in a process that has imported next to nothing.

Run as `python -c 'from benchmarks.footprint_child import main; main()' ADAPTER DIRECTORY OPTIONS`; not by
`-m`, whose own machinery would have been imported by then and would not be counted.
"""

import os
import sys
import time

import benchmarks.variants  # noqa: F401 (so that the adapter's own package is not counted)


def main() -> None:
    name, directory, options_text = sys.argv[1:]
    before = time.perf_counter()
    __import__(name)
    import_seconds = time.perf_counter() - before
    imported_bytes = _resident_bytes()

    import json

    adapter = sys.modules[name]
    options = json.loads(options_text)
    push = adapter.open_writer(directory, **options)
    push({"temperature_c": 41.5})
    drain = adapter.open_reader(directory, 1, **options)
    ready_bytes = _resident_bytes()
    del push, drain
    figures = {
        "import_ms": import_seconds * 1000,
        "imported_mib": imported_bytes / 2**20,
        "ready_mib": ready_bytes / 2**20,
    }
    print(json.dumps({"figures": figures, "versions": adapter.versions()}), flush=True)


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:  # noqa: PTH123 (pathlib is one of the imports to be counted)
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
