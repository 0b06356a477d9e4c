"""Build ``disk_shim.c``, and the environment that puts a process under it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def build_shim(directory: Path) -> Path:
    library = directory / "disk_shim.so"
    command = ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"]
    subprocess.run(command, check=True)
    return library


def shim_environment(library: Path, directory: Path, mode: str, **settings: object) -> dict[str, str]:
    """``settings``: those of the shim, in lower case and without their prefix."""
    given = {"dir": directory, "mode": mode, **settings}
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        **{f"DISK_SHIM_{name.upper()}": str(value) for name, value in given.items()},
    }
