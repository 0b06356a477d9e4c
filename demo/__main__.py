"""``make demo``, or ``python -m demo``: this machine's real telemetry on its way, hurt on purpose, and every message counted.

Exit status: 0 when the books balance; 1 when they do not, or the demo could not be played to its end; 128 + the signal's
number when one ended it (130 after Ctrl-C). The temporary directory is kept after 1 alone.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from infi.ramen_client import QueueWriterConfig
from infi.ramen_client.testing import DEFAULT_TOKEN

from .drama import Interrupted, Interruption, Stage, play
from .ledger import Ledger, problems
from .processes import Children, Fault
from .screen import make_console, make_screen, show_account, write
from .telemetry import TELEMETRY
from .worker import CONFIG

if TYPE_CHECKING:
    from rich.console import Console

_SECONDS = 40.0
_PLAN = (
    "Two writers push real telemetry of this machine into a queue on disk, and a reader delivers it to a test server on "
    "127.0.0.1; the reader is killed twice, the server fails for a while, and at the end every message is counted. "
    "This takes about {seconds:.0f} seconds; nothing leaves this machine."
)


def main(arguments: list[str] | None = None) -> int:
    """Play the demo; returns the exit status."""
    interruption = Interruption()
    interruption.watch()
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Two writers, a reader, two kills, an outage, and the books at the end.",
    )
    parser.add_argument(
        "--seconds",
        type=_duration,
        default=_SECONDS,
        metavar="N",
        help="how long the writers push (default %(default)g)",
    )
    seconds = parser.parse_args(arguments).seconds
    console = make_console()
    write(console, _PLAN.format(seconds=seconds + 5))
    directory = Path(tempfile.mkdtemp(prefix="ramen-demo-"))
    keep = False
    try:
        write(console, f"Everything is in {directory}, which is removed at the end.")
        wrong = _play(console, directory, seconds, interruption)
        keep = bool(wrong)
    except Interrupted as interrupted:
        write(console, "Interrupted: every process was ended, and the directory is removed.")
        return 128 + interrupted.number
    except Exception:
        keep = True
        raise
    finally:
        if keep:
            write(
                console,
                f"For a closer look, {directory} is kept: the queue, the records, each process's log.",
            )
        else:
            shutil.rmtree(directory)
    return 1 if wrong else 0


def _play(console: Console, directory: Path, seconds: float, interruption: Interruption) -> list[str]:
    """Return what is wrong at the end."""
    ledger = Ledger(directory, _begin_config(directory), tuple(TELEMETRY))
    try:
        # The screen ends last, so that an interrupted display is not left half drawn.
        with make_screen(console) as screen, Children(directory) as children:
            kills = play(Stage(children, ledger, screen, interruption), directory, seconds)
    except Fault as fault:
        write(console, f"The demo ends early: {fault}")
        return [str(fault)]
    else:
        return _settle(console, ledger, kills)
    finally:
        ledger.close()


def _settle(console: Console, ledger: Ledger, kills: int) -> list[str]:
    account, books = ledger.account(), ledger.books()
    show_account(console, account, books)
    wrong = problems(account, books, kills=kills) + ledger.check_queue()
    if wrong:
        write(console, "The books do NOT balance:\n  " + "\n  ".join(wrong))
        return wrong
    again = account.arrived_again
    write(
        console,
        f"The books balance: all {account.pushed:,} messages that were pushed have arrived, none is lost. "
        + (
            f"{again} arrived again, under the same id, after a kill: a server knows it by that."
            if again
            else "None arrived twice."
        ),
    )
    return []


def _begin_config(directory: Path) -> QueueWriterConfig:
    """Write the configuration file of writers and reader; the reader's part is complete when the server runs."""
    fields = {
        "sender": "demo",
        "system_serial": 1,
        "system_version": "1.0",
        "queue_dir": str(directory / "queue"),
        "ssl": False,
        "auth_token": DEFAULT_TOKEN,
        "retry_delay": 1,
    }
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in fields.items()]
    (directory / CONFIG).write_text("".join(lines), encoding="utf-8")
    return QueueWriterConfig.load(directory / CONFIG, environ={})


def _duration(text: str) -> float:
    seconds = float(text)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError
    return seconds


if __name__ == "__main__":
    sys.exit(main())
