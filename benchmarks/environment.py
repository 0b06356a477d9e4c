"""Python environments to run variants in. 1.x and 2.0 have one import name, so 1.x needs a place of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_MAKE_TIMEOUT_SECONDS = 600


class EnvironmentMakeError(Exception):
    """An environment could not be made (no network, say); the text ends with what pip said."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment beside this file, made on first use by this interpreter and kept.

    ``installs`` are the argument lists of successive ``pip install``; none at all means that this
    interpreter's own environment is meant.
    """

    folder: str | None = None
    installs: tuple[tuple[str, ...], ...] = ()

    def interpreter(self) -> Path:
        """Return the path of the environment's Python; the environment is made first if it is not ready."""
        if self.folder is None:
            return Path(sys.executable)
        path = Path(__file__).parent / self.folder
        python = path / "bin" / "python"
        ready = path / ".ready"
        recipe = f"{sys.version}\n{self.installs}\n"
        if not ready.exists() or ready.read_text() != recipe:
            shutil.rmtree(path, ignore_errors=True)
            _run([sys.executable, "-m", "venv", str(path)])
            for arguments in self.installs:
                _run(
                    [
                        str(python),
                        "-m",
                        "pip",
                        "install",
                        "--quiet",
                        "--disable-pip-version-check",
                        *arguments,
                    ]
                )
            ready.write_text(recipe)
        return python


HERE = Environment()
# setuptools 81 and later warn about pkg_resources, 82 has none, and 1.x imports it; the build of its sdist must
# not fetch a newer one either.
ONE_X = Environment(
    ".env-1x",
    (
        ("--upgrade", "setuptools<81"),
        ("--no-build-isolation", "setuptools<81", "infi.ramen_client==1.40.post3"),
    ),
)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_MAKE_TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise EnvironmentMakeError(f"{' '.join(command)}: no end after {_MAKE_TIMEOUT_SECONDS} s") from None
    if done.returncode:
        raise EnvironmentMakeError(f"{' '.join(command)}:\n{(done.stdout + done.stderr)[-2000:].strip()}")
