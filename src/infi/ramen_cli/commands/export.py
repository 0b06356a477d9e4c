"""``ramen export``: what a collector holds, as NDJSON.

One line a message, in the order in which they were received:

    {"received_at": 1764000000000, "category": "metrics", "system_serial": 1099, "sender": "imx", "data_type": "cpu",
     "data_version": "v1", "system_version": "1.0", "reqid": "0199…", "data": {"percent": 12.5}}

``received_at`` is in ms since the epoch; ``data`` is the payload with its own digits. Memory is bounded (a page of at most 1,000
messages or 4 MiB), and the collector may go on taking messages meanwhile. A reader that goes away (``| head``) ends the export with 0.
``--output`` writes beside the file and puts it in its place when it is whole, so there is never a part of one; its mode is 0600.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from infi.ramen_cli._collector import data_dir_option, in_words
from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._options import Duration
from infi.ramen_cli._output import human_bytes
from infi.ramen_server import Selection, SqliteArchive

if TYPE_CHECKING:
    from collections.abc import Iterator


class When(click.ParamType[int]):
    """A time as ms since the epoch: an ISO date or time (local where it names no zone), or how long ago, as ``2h``."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """``value`` in ms since the epoch."""
        try:
            return round(datetime.fromisoformat(str(value)).timestamp() * 1000)
        except (ValueError, OverflowError, OSError):
            pass
        try:
            ago = Duration().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(
                f"{value!r} is neither a date (2026-11-23, 2026-11-23T14:30) nor how long ago (2h)",
                param,
                ctx,
            )
        return round((time.time() - ago) * 1000)


@click.command()
@data_dir_option
@click.option("--category", metavar="NAME", help="Only this category.")
@click.option("--data-type", metavar="NAME", help="Only this data type.")
@click.option("--sender", metavar="NAME", help="Only this sender.")
@click.option("--system-serial", type=click.IntRange(min=0), metavar="NUMBER", help="Only this system.")
@click.option(
    "--since", type=When(), metavar="WHEN", help="Received then or later: 2026-11-23, 2026-11-23T14:30, 2h."
)
@click.option("--until", type=When(), metavar="WHEN", help="Received before.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write to this file (0600) when the export is whole, not to stdout.")  # fmt: skip
def export(
    data_dir: Path,
    category: str | None,
    data_type: str | None,
    sender: str | None,
    system_serial: int | None,
    since: int | None,
    until: int | None,
    output: Path | None,
) -> ExitCode:
    """Write out what a collector holds, as NDJSON: one line a message, in the order in which they came.

    The collector may be running. WHEN is an ISO date or time, local if it names no zone, or how long ago.
    """
    selection = Selection(since, until, category, data_type, sender, system_serial)
    with in_words(data_dir), SqliteArchive(data_dir) as archive:
        lines = (message.as_ndjson() for message in archive.export(selection))
        if output is None:
            try:
                _write(lines, sys.stdout.buffer)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                # The reader has enough. What is buffered must not meet the closed pipe once more at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        else:
            with _in_place_of(output) as file:
                count, size = _write(lines, file)
            click.echo(f"{count} messages, {human_bytes(size)}, in {output}", err=True)
    return ExitCode.OK


def _write(lines: Iterator[bytes], file: IO[bytes]) -> tuple[int, int]:
    """Write the lines; how many they were, and their bytes."""
    count = size = 0
    for line in lines:
        file.write(line)
        count += 1
        size += len(line)
    return count, size


@contextmanager
def _in_place_of(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when all went well, and goes when not."""
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.unlink(missing_ok=True)  # of an export that was killed
    try:
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
