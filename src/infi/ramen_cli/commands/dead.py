"""``ramen dead``: messages that were refused for good, or are damaged, and are kept to be looked at.

Times are milliseconds since the epoch. A dead letter is, under ``--json``:

    position       integer           its number, for the other commands
    category       text
    data_type      text
    data_version   text or integer
    system_version text
    reqid          text
    pushed_at      integer
    plain_bytes    integer or null   the payload's length; null: it is damaged, and cannot be sent again
    stored_bytes   integer           what the payload takes in the queue
    died_at        integer
    reason         text
    status         integer or null   the HTTP status of the server's answer
    code           text or null      the code in it; null: it did not speak the protocol
    details        text              the server's explanation

``ramen dead list --json``: an object: ``dead_letters``, a list of these; ``next_after``, what ``--after`` needs for the next page, or null
on the last one.

``ramen dead show --json``: such an object with ``payload_text``, the payload's beginning (text; what is no UTF-8 in it is replaced),
``payload_is_whole`` and ``payload_is_damaged`` (true or false).

``ramen dead retry --json`` and ``ramen dead discard --json``: an object of integers: ``letters``, how many it was done to; ``damaged``, left
where they are, since they cannot be sent; ``missing``, positions at which there is none.

``ramen dead add --json``: an object: ``position``, that of the new dead letter, or null.

``ramen dead export`` writes one line of JSON for each letter (NDJSON): the fields above from position to pushed_at and from died_at to
details, and one of ``payload`` (the JSON that was pushed), ``payload_base64`` (where that was no JSON), ``damaged_base64`` (what is left
of a damaged one, as stored).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._options import config_options, selection_options
from infi.ramen_cli._output import human_bytes, human_time, one_line, printable_lines, table, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infi.ramen_cli._options import Where
    from infi.ramen_client.admin import Changed, DeadHead, Selection

_POSITIONS = {"ignore_unknown_options": True}
"""The positions of a 1.x backlog are below 0: they are no options."""

_REASON_CHARS = 60


@click.group()
def dead() -> None:
    """List, show, add, retry, export or discard dead letters."""


@dead.command("list")
@config_options
@selection_options
@click.option("--after", type=int, metavar="POSITION", help="Begin after this one.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="At most so many."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document for machines.")
def list_letters(
    where: Where, *, selection: Selection | None, after: int | None, limit: int, as_json: bool
) -> ExitCode:
    """List dead letters, page by page, by position."""
    with where.open_queue() as queue:
        # One more than asked for tells whether there is another page.
        found = queue.dead_letters(selection, after=after, limit=limit + 1)
    letters, more = found[:limit], len(found) > limit
    next_after = letters[-1].position if more else None
    if as_json:
        write_json({"dead_letters": [letter_as_json(head) for head in letters], "next_after": next_after})
    elif letters:
        click.echo(table(map(_row, letters), _HEADERS))
        if more:
            click.echo(f"There are more: --after {next_after}")
    else:
        click.echo("No dead letters.")
    return ExitCode.OK


_HEADERS = ("position", "category", "data type", "version", "died", "size", "reason")


def _row(head: DeadHead) -> tuple[object, ...]:
    size = "damaged" if head.plain_bytes is None else human_bytes(head.plain_bytes)
    return (
        head.position,
        head.category,
        head.data_type,
        str(head.data_version),
        human_time(head.died_at_ms),
        size,
        _why(head, _REASON_CHARS),
    )


def _why(head: DeadHead, max_chars: int) -> str:
    return one_line(": ".join(filter(None, (head.death.reason, head.death.details))), max_chars)


def letter_as_json(head: DeadHead) -> dict[str, Any]:
    """The object that the module's docstring describes."""
    return {
        "position": head.position,
        "category": head.category,
        "data_type": head.data_type,
        "data_version": head.data_version,
        "system_version": head.system_version,
        "reqid": head.reqid,
        "pushed_at": head.pushed_at_ms,
        "plain_bytes": head.plain_bytes,
        "stored_bytes": head.stored_bytes,
        "died_at": head.died_at_ms,
        "reason": head.death.reason,
        "status": head.death.status,
        "code": head.death.code,
        "details": head.death.details,
    }


@dead.command(context_settings=_POSITIONS)
@config_options
@click.argument("position", type=int)
@click.option(
    "--bytes",
    "max_bytes",
    type=click.IntRange(0, 1024 * 1024 * 1024),
    default=64 * 1024,
    show_default=True,
    help="How much of the payload to show.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document for machines.")
def show(where: Where, *, position: int, max_bytes: int, as_json: bool) -> ExitCode:
    """Show one dead letter with its payload. Exits with 1 when there is none at this position."""
    with where.open_queue() as queue:
        found = queue.dead_letter(position, max_payload_bytes=max_bytes)
    if found is None:
        click.echo(f"There is no dead letter {position}.", err=True)
        return ExitCode.NOT_WELL
    head, payload = found
    text = payload.plain.decode(errors="replace")
    if as_json:
        write_json(
            {
                **letter_as_json(head),
                "payload_text": text,
                "payload_is_whole": payload.is_whole,
                "payload_is_damaged": payload.is_damaged,
            }
        )
        return ExitCode.OK
    for name, value in letter_as_json(head).items():
        shown = human_time(value) if name in ("pushed_at", "died_at") else value
        if shown not in (None, ""):
            click.echo(f"{name:<15} {one_line(str(shown), 1000)}")
    click.echo("")
    click.echo(printable_lines(text))
    if payload.is_damaged:
        click.echo("(the payload is damaged here)", err=True)
    elif not payload.is_whole:
        click.echo(f"(the first {len(payload.plain):,} bytes; --bytes shows more)", err=True)
    return ExitCode.OK


@dead.command(context_settings=_POSITIONS)
@config_options
@selection_options
@click.argument("positions", nargs=-1, type=int, metavar="[POSITION]...")
@click.option("--json", "as_json", is_flag=True, help="One JSON document for machines.")
def retry(
    where: Where, *, positions: tuple[int, ...], selection: Selection | None, as_json: bool
) -> ExitCode:
    """Put dead letters back into the queue, in their old places.

    Exits with 1 when some were not there, or are damaged and cannot be sent.
    """
    which = _which(positions, selection)
    with where.open_queue() as queue:
        changed = queue.retry_dead_letters(which)
    return _report(changed, "put back into the queue", as_json=as_json)


@dead.command(context_settings=_POSITIONS)
@config_options
@selection_options
@click.argument("positions", nargs=-1, type=int, metavar="[POSITION]...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document for machines.")
def discard(
    where: Where, *, positions: tuple[int, ...], selection: Selection | None, yes: bool, as_json: bool
) -> ExitCode:
    """Throw dead letters away, counted. Asks before it does. Exits with 1 when some were not there."""
    which = _which(positions, selection)
    with where.open_queue() as queue:
        if not yes and not click.confirm(f"Throw dead letters of {queue.path.name} away for good?", err=True):
            click.echo("Nothing was thrown away.", err=True)
            return ExitCode.NOT_WELL
        changed = queue.discard_dead_letters(which)
    return _report(changed, "thrown away", as_json=as_json)


def _which(positions: tuple[int, ...], selection: Selection | None) -> Selection | Iterable[int]:
    if bool(positions) == (selection is not None):
        raise click.UsageError("say which: positions, or --category, --data-type, --older-than, or --all")
    return selection or positions


def _report(changed: Changed, done: str, *, as_json: bool) -> ExitCode:
    if as_json:
        write_json({"letters": changed.letters, "damaged": changed.damaged, "missing": changed.missing})
    else:
        click.echo(f"{changed.letters:,} dead letters were {done}.")
        if changed.damaged:
            click.echo(f"{changed.damaged:,} are damaged and cannot be sent; they stayed.", err=True)
        if changed.missing:
            click.echo(f"{changed.missing:,} were not there.", err=True)
    return ExitCode.NOT_WELL if changed.damaged or changed.missing else ExitCode.OK


@dead.command()
@config_options
@click.argument("category")
@click.argument("data_type", metavar="TYPE")
@click.option("--reason", default="", help="A note to be kept with it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document for machines.")
def add(where: Where, *, category: str, data_type: str, reason: str, as_json: bool) -> ExitCode:
    """Make the oldest message of a category and type a dead letter, since it never gets through.

    What is under way stays. Exits with 1 when there is no other.
    """
    with where.open_queue() as queue:
        position = queue.add_dead_letter(category, data_type, reason=reason)
    if as_json:
        write_json({"position": position})
    elif position is not None:
        click.echo(f"The oldest message of {category}/{data_type} is dead letter {position} now.")
    if position is None:
        click.echo(f"No message of {category}/{data_type} waits that is not under way.", err=True)
        return ExitCode.NOT_WELL
    return ExitCode.OK


@dead.command()
@config_options
@selection_options
def export(where: Where, *, selection: Selection | None) -> ExitCode:
    """Write dead letters out as lines of JSON (NDJSON), all or a selection; they stay."""
    with where.open_queue() as queue:
        try:
            for line in queue.export_dead_letters(selection):
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            # The reader (head, say) has enough. What is buffered must not meet the closed pipe once more at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return ExitCode.OK
