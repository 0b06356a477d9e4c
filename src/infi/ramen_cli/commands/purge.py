"""``ramen purge``: remove waiting messages that nobody shall have.

``--json``:

    purged     integer        messages that were removed (with --dry-run: that would be)
    in_flight  integer        selected as well, but left alone, since the reader had them in flight
    dry_run    true or false
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._options import config_options, selection_options
from infi.ramen_cli._output import write_json

if TYPE_CHECKING:
    from infi.ramen_cli._options import Where
    from infi.ramen_client.admin import Selection


@click.command()
@config_options
@selection_options
@click.option("--dry-run", is_flag=True, help="Only say how many there are.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document for machines.")
def purge(where: Where, *, selection: Selection | None, dry_run: bool, yes: bool, as_json: bool) -> ExitCode:
    """Remove waiting messages, counted.

    They are counted as purged in the books. Messages that are in flight are left alone, and so is what is pushed after this began.
    Asks before it removes anything.
    """
    if selection is None:
        raise click.UsageError("say what to purge: --category, --data-type, --older-than, or --all")
    with where.open_queue() as queue:
        if not (dry_run or yes):
            found = queue.purge(selection, dry_run=True)
            question = f"Remove {found.messages:,} of the waiting messages of {queue.path.name} for good?"
            if not click.confirm(question, err=True):
                click.echo("Nothing was removed.", err=True)
                return ExitCode.NOT_WELL
        purged = queue.purge(selection, dry_run=dry_run)
    if as_json:
        write_json({"purged": purged.messages, "in_flight": purged.in_flight, "dry_run": dry_run})
        return ExitCode.OK
    click.echo(f"{purged.messages:,} messages {'would be' if dry_run else 'were'} removed.")
    if purged.in_flight:
        click.echo(f"{purged.in_flight:,} more are in flight and {'would stay' if dry_run else 'stayed'}.")
    return ExitCode.OK
