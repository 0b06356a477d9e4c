"""``ramen check``: whether a queue's file is whole, and its books agree with its rows.

``--json``:

    queue     text     the file
    well      true or false
    problems  list of texts, one for each thing that is wrong
    books     object of integers, as ``ramen status --json`` has it; null where the file is too damaged to read them
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

_PROBLEM_CHARS = 500


@click.command()
@config_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document for machines.")
def check(where: Where, *, as_json: bool) -> ExitCode:
    """Compare a queue's books with its rows.

    Also looks at every row's checksum and at the whole of the file (SQLite's integrity check). Reads everything, so it takes its
    time on a long queue; nobody is kept from writing meanwhile, but the write-ahead log grows. Exits with 1 when something is
    wrong.
    """
    from infi.ramen_client.errors import QueueError  # noqa: PLC0415 - not needed for --help

    with where.open_queue() as queue:
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
            }
        )
    else:
        for problem in problems:
            click.echo(one_line(problem, _PROBLEM_CHARS))
        if not problems and books is not None:
            click.echo(
                f"{queue.path}: all is well; the books balance over {books.pushed:,} pushed messages, {books.waiting:,} of them waiting."
            )
    return ExitCode.NOT_WELL if problems else ExitCode.OK
