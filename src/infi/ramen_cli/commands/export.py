"""``ramen export``: what a collector holds, as NDJSON; or what waits in a queue, as a file of 1.x.

A collector's messages are one line each, in the order in which they were received:

    {"received_at": 1764000000000, "category": "metrics", "system_serial": 1099, "sender": "imx", "data_type": "cpu",
     "data_version": "v1", "system_version": "1.0", "reqid": "0199…", "data": {"percent": 12.5}}

``received_at`` is in ms since the epoch; ``data`` is the payload with its own digits. Memory is bounded (a page of at most 1,000
messages or 4 MiB), and the collector may go on taking messages meanwhile. A reader that goes away (``| head``) ends the export with 0.
``--output`` writes beside the file and puts it in its place when it is whole, so there is never a part of one; its mode is 0600.

``--to-1x DIR`` is the way back (docs/from-1x.md): a queue's waiting messages as ``DIR/SENDER_SERIAL.db``, for a program of 1.x whose
``queue_dir`` is DIR. The queue is told of by ``--config``, ``--queue-dir``, ``--sender`` and ``--system-serial``; it stays as it is, so a
program of 2.0 that goes on would send the same messages, under the same ids. No reader may live meanwhile. With ``--json``:

    file              text      the file that was made
    file_bytes        integer   1.x throws messages away when it is larger than max_queue_size
    messages          integer   how many were copied
    perhaps_sent      integer   of these: a reader that was killed had them in flight
    changed_versions  list of objects, at most 100: a version that 1.x sends as another one (it takes what looks like a number for one)
        category      text
        data_type     text
        data_version  text
        becomes       text
        messages      integer
    damaged           integer   messages that are not whole; they stay in the queue, as the next two do
    dead_letters      integer
    pushed_meanwhile  integer   after the export began
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._options import Duration, Where, config_file_option
from infi.ramen_cli._output import human_bytes, one_line, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from infi.ramen_client.admin import ExportedTo1x
    from infi.ramen_server import Selection

DEFAULT_DATA_DIR = Path("/var/lib/ramen")
"""The collector's own default, which cannot be asked where the collector's packages are not installed."""


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
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR",
              help=f"The collector's directory; it may be running.  [default: {DEFAULT_DATA_DIR}]")  # fmt: skip
@click.option("--category", metavar="NAME", help="Only this category.")
@click.option("--data-type", metavar="NAME", help="Only this data type.")
@click.option("--sender", metavar="NAME", help="Only this sender; of a queue: whose it is.")
@click.option("--system-serial", type=click.IntRange(min=0), metavar="NUMBER",
              help="Only this system; of a queue: whose it is.")  # fmt: skip
@click.option(
    "--since", type=When(), metavar="WHEN", help="Received then or later: 2026-11-23, 2026-11-23T14:30, 2h."
)
@click.option("--until", type=When(), metavar="WHEN", help="Received before.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write to this file (0600) when the export is whole, not to stdout.")  # fmt: skip
@click.option("--to-1x", "to_1x", type=click.Path(path_type=Path), metavar="DIR",
              help="Copy what waits in a queue into a file for 1.x, in this directory.")  # fmt: skip
@config_file_option
@click.option(
    "--queue-dir", metavar="DIR", help="With --to-1x: the queue's directory, over the configuration's."
)
@click.option("--json", "as_json", is_flag=True, help="With --to-1x: one JSON document for machines.")
def export(
    *,
    data_dir: Path | None,
    category: str | None,
    data_type: str | None,
    sender: str | None,
    system_serial: int | None,
    since: int | None,
    until: int | None,
    output: Path | None,
    to_1x: Path | None,
    config_file: str | None,
    queue_dir: str | None,
    as_json: bool,
) -> ExitCode:
    """Write out what a collector holds, as NDJSON; or, for the way back, what waits in a queue as a file of 1.x.

    The collector may be running; of a queue no reader may be. WHEN is an ISO date or time, local if it names no zone, or how long ago.
    """
    if to_1x is None:
        if queue_dir is not None or as_json:
            raise click.UsageError("--queue-dir and --json go with --to-1x")
        from infi.ramen_cli import _collector  # noqa: PLC0415 - before the next: it says what is not installed
        from infi.ramen_server import Selection  # noqa: PLC0415

        selection = Selection(since, until, category, data_type, sender, system_serial)
        place = DEFAULT_DATA_DIR if data_dir is None else data_dir
        with _collector.in_words(place):
            _export_collector(place, selection, output)
        return ExitCode.OK
    if any(given is not None for given in (data_dir, category, data_type, since, until, output)):
        raise click.UsageError(
            "--to-1x takes all that waits in a queue: no --data-dir, selection or --output"
        )
    serial = None if system_serial is None else str(system_serial)
    with Where(config_file, queue_dir, sender, serial).open_queue() as queue:
        exported = queue.export_to_1x(to_1x)
    if as_json:
        fields = asdict(exported)
        write_json({"file": str(fields.pop("path")), **fields})
    else:
        _say(exported)
    return ExitCode.OK


def _say(exported: ExportedTo1x) -> None:
    """Tell people what was copied, and what they must know."""
    click.echo(
        f"{exported.messages:,} messages, {human_bytes(exported.file_bytes)}, in {exported.path}; give 1.x a larger max_queue_size."
    )
    click.echo(
        "The queue itself stays as it is: let only one of the two deliver, then `ramen purge --all` here."
    )
    notes = {
        "Of them perhaps delivered already, since a reader was killed (the ids are the same)": exported.perhaps_sent,
        "Pushed meanwhile, and not in it": exported.pushed_meanwhile,
        "Damaged messages, which stay here": exported.damaged,
        "Dead letters, which stay here (`ramen dead export`)": exported.dead_letters,
    }
    for text, count in notes.items():
        if count:
            click.echo(f"{text}: {count:,}.")
    for version in exported.changed_versions:
        changed = f"{version.category}/{version.data_type}, version {version.data_version}"
        click.echo(
            f"Sent by 1.x as version {one_line(version.becomes)}: {version.messages:,} of {one_line(changed)}."
        )


def _export_collector(data_dir: Path, selection: Selection, output: Path | None) -> None:
    from infi.ramen_server import SqliteArchive  # noqa: PLC0415

    with SqliteArchive(data_dir) as archive:
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
