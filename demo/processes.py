"""The demo's child processes: started, killed, asked to end; none outlives the demo.

Every child's standard input is a pipe from the demo and its lifeline (``lifeline``). Children are in sessions of their
own, so that a Ctrl-C reaches the demo alone, which then ends them. ``NAME.out`` and ``NAME.log`` in the demo's directory hold what a child
says; the log of one that is started again goes on, its output begins anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType

_ROOT = Path(__file__).resolve().parent.parent
_END_WITHIN_SECONDS = 10.0
_LOG_LINES = 10


class Fault(Exception):
    """The demo could not be played to its end; the text says why."""


class Child:
    """One running child process; use ``Children.start``."""

    def __init__(self, name: str, role: str, directory: Path, which: tuple[str, ...]) -> None:
        self.name = name
        self._out = directory / f"{name}.out"
        self._log = directory / f"{name}.log"
        self._may_have_ended = False
        with self._out.open("wb") as out, self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"demo.{role}", str(directory), *which],
                cwd=_ROOT,
                env=os.environ | {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"},
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def tell(self, order: str) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # ``check`` will find that it has ended
            self._process.stdin.write(f"{order}\n".encode())
            self._process.stdin.flush()

    def said(self) -> list[Any]:
        """What it has said on standard output so far: the JSON values of whole lines."""
        return [
            json.loads(line)
            for line in self._out.read_bytes().splitlines(keepends=True)
            if line.endswith(b"\n")
        ]

    def kill(self) -> None:
        """End it by SIGKILL, if it still runs."""
        self._may_have_ended = True
        self._process.kill()
        self._process.wait()
        self._close_lifeline()

    def stop(self) -> None:
        """Ask it to end and wait for it. Raises ``Fault`` when it does not, or not well."""
        self._may_have_ended = True
        self._close_lifeline()
        try:
            status = self._process.wait(_END_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            raise Fault(
                f"the {self.name} was asked to end and still ran {_END_WITHIN_SECONDS:.0f} s later."
            ) from None
        if status != 0:
            raise Fault(self._ended_badly(status))

    def check(self) -> None:
        """Raise ``Fault`` when it ended though nobody asked it to."""
        status = self._process.poll()
        if status is not None and not self._may_have_ended:
            raise Fault(self._ended_badly(status))

    def _close_lifeline(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()

    def _ended_badly(self, status: int) -> str:
        log = self._log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n  ".join([f"the {self.name} ended with status {status}. The last of its log:", *log])


class Children:
    """All child processes of one demo; the end of the ``with`` block kills those that still run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._all: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._all:
            child.kill()

    def start(self, name: str, role: str, *which: str) -> Child:
        """Start ``python -m demo.ROLE``; ``which``: what it is to work on."""
        child = Child(name, role, self._directory, which)
        self._all.append(child)
        return child

    def check(self) -> None:
        """Raise ``Fault`` when one ended though nobody asked it to."""
        for child in self._all:
            child.check()
