"""``make demo``, or ``python -m demo``: this machine's real telemetry on its way, hurt on purpose, and every message counted.

Exit status: 0 when the books balance and all was shown; 1 when not, or the demo could not be played to its end; 128 + the signal's
number when one ended it (130 after Ctrl-C). The temporary directory is kept after 1 alone.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from .books import problems, say_balance
from .drama import Drama
from .ledger import Ledger
from .plan import QUEUES
from .processes import Children, Fault
from .screen import make_console, make_screen, show_counts, write
from .settings import begin_config
from .stage import Interrupted, Interruption, Stage

if TYPE_CHECKING:
    from rich.console import Console

    from .drama import Played

_SECONDS = 40.0
_REST_SECONDS = 15.0
"""Starts and recoveries, about."""
_PLAN = (
    "Four writers push real telemetry of this machine into two queues on disk, and two readers deliver it to a collector on "
    "127.0.0.1. On the way, readers and collector are killed, the line fails in many ways, the operator wants some of it no more, "
    "and one of the queues is too small; at the end every message is counted. "
    "This takes about {seconds:.0f} seconds; nothing leaves this machine."
)


def main(arguments: list[str] | None = None) -> int:
    """Play the demo; returns the exit status."""
    interruption = Interruption()
    interruption.watch()
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description="Writers, readers, a collector; kills, outages, a captive portal, a rule, a full queue; and the books at the end.",
    )
    parser.add_argument(
        "--seconds",
        type=_duration,
        default=_SECONDS,
        metavar="N",
        help="how long the acts take, starts and recoveries apart (default %(default)g)",
    )
    seconds = parser.parse_args(arguments).seconds
    console = make_console()
    write(console, _PLAN.format(seconds=seconds + _REST_SECONDS))
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
                f"For a closer look, {directory} is kept: the queues, the records, each process's log.",
            )
        else:
            shutil.rmtree(directory)
    return 1 if wrong else 0


def _play(console: Console, directory: Path, seconds: float, interruption: Interruption) -> list[str]:
    """Return what is wrong at the end."""
    ledger = Ledger(directory, [begin_config(directory, queue) for queue in QUEUES])
    try:
        # The screen ends last, so that an interrupted display is not left half drawn.
        with make_screen(console) as screen, Children(directory) as children:
            played = Drama(Stage(children, ledger, screen, interruption), directory, seconds).play()
    except Fault as fault:
        write(console, f"The demo ends early: {fault}")
        return [str(fault)]
    else:
        return _settle(console, ledger, played)
    finally:
        ledger.close()


def _settle(console: Console, ledger: Ledger, played: Played) -> list[str]:
    counts, totals = ledger.counts(), ledger.totals()
    show_counts(console, counts)
    again = totals.duplicates
    unbalanced = problems(counts, held=totals.messages, again=again, toll=played.toll) + ledger.check_queues()
    if unbalanced:
        write(console, "The books do NOT balance:\n  " + "\n  ".join(unbalanced))
    else:
        write(console, say_balance(counts, again=again))
    if played.missed:
        write(console, "The demo did NOT show everything:\n  " + "\n  ".join(played.missed))
    return unbalanced + played.missed


def _duration(text: str) -> float:
    seconds = float(text)
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError
    return seconds


if __name__ == "__main__":
    sys.exit(main())
