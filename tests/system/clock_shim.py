"""Build ``clock_shim.c``, set its clock, and the environment that puts a process under it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


class ShimClock:
    """The wall clock of all processes that are started in its environment."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self._file.write_bytes(bytes(8))
        library = directory / "clock_shim.so"
        command = ["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, SOURCE]
        subprocess.run(command, check=True)
        self.environment = {**os.environ, "LD_PRELOAD": str(library), "CLOCK_SHIM_FILE": str(self._file)}

    def set(self, seconds: float) -> None:
        """Before (or, below 0, behind) the system's from now on."""
        with self._file.open("r+b") as file:
            file.write(int(seconds * 1e9).to_bytes(8, "little", signed=True))
