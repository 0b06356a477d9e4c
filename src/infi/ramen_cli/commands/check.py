"""``ramen check``: whether a queue's file is whole, and its books agree with its rows.

``--json``:

    queue     text     the file
    well      true or false
    problems  list of texts, one for each thing that is wrong
    books     object of integers, as ``ramen status --json`` has it; null where the file is too damaged to read them
    repaired  object with --repair, else null; problems and books are those after it
        found            integer        messages of which the books did not know
        damaged          integer        messages that the books knew, and that are not there
        counts_changed   true or false  whether any count was wrong
        rules_forgotten  integer        blacklist rules that were damaged

What else is wrong (damaged messages, a damaged file) mends itself: a reader makes dead letters of damaged messages, and whoever meets
a damage puts the file aside and goes on in a new one, into which the reader carries what can be read.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._options import config_options
from infi.ramen_cli._output import one_line, write_json

if TYPE_CHECKING:
    from infi.ramen_cli._options import Where
    from infi.ramen_client.admin import Repaired

_PROBLEM_CHARS = 500


@click.command()
@config_options
@click.option("--repair", is_flag=True, help="First set the books right by counting. No reader may live.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document for machines.")
def check(where: Where, *, repair: bool, as_json: bool) -> ExitCode:
    """Compare a queue's books with its rows.

    Also looks at every row's checksum and at the whole of the file (SQLite's integrity check). Reads everything, so it takes its
    time on a long queue; nobody is kept from writing meanwhile, but the write-ahead log grows. Exits with 1 when something is
    wrong. A reader sets wrong books right when it begins; --repair does so without one.
    """
    from infi.ramen_client.errors import QueueError  # noqa: PLC0415 - not needed for --help

    with where.open_queue() as queue:
        repaired = queue.repair() if repair else None
        problems = queue.check()
        try:
            books = queue.books()
        except QueueError:
            if not problems:
                raise
            books = None  # the problems say why
    if as_json:
        write_json(
            {
                "queue": str(queue.path),
                "well": not problems,
                "problems": problems,
                "books": None if books is None else asdict(books),
                "repaired": None if repaired is None else asdict(repaired),
            }
        )
    else:
        if repaired is not None:
            _say_repaired(repaired)
        for problem in problems:
            click.echo(one_line(problem, _PROBLEM_CHARS))
        if not problems and books is not None:
            click.echo(
                f"{queue.path}: all is well; the books balance over {books.pushed:,} pushed messages, {books.waiting:,} of them waiting."
            )
    return ExitCode.NOT_WELL if problems else ExitCode.OK


def _say_repaired(repaired: Repaired) -> None:
    if not repaired.counts_changed:
        click.echo("The books were right.")
    else:
        click.echo(
            f"The books were set right: {repaired.found:,} messages entered as found, {repaired.damaged:,} as damaged."
        )
    if repaired.rules_forgotten:
        click.echo(f"Damaged blacklist rules, forgotten: {repaired.rules_forgotten:,}.")
