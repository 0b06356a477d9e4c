"""Write docs/commands.md from the commands themselves: ``python docs/make_commands.py``.

A command's section is its help, its options, and the text of its module's docstring after the first line, where the format of what it
writes under ``--json`` stands.
"""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infi.ramen_cli import _exit
from infi.ramen_cli._options import config_options
from infi.ramen_cli.main import COMMANDS, ramen

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = Path(__file__).with_name("commands.md")

HEAD = """\
# The `ramen` command

<!-- Written by docs/make_commands.py from the commands of infi.ramen_cli; change those, not this. -->

Results go to standard output, everything else to standard error. With `--json` a result is one JSON document; keys may be added
to it, but none goes away or changes its type. Everything that a command does is a call that a program can make, too.
"""


WHICH_QUEUE = """
## Which queue

Commands that look at a queue, or push into one, are told of it by a configuration (docs/configuration.md), by the environment, or by
options; `sender` and `system_serial` may be missing for those that only look, where the directory has one queue that fits.

"""


def _exit_codes() -> Iterator[str]:
    """The codes with what stands below each in the source."""
    enum = next(node for node in ast.parse(inspect.getsource(_exit)).body if isinstance(node, ast.ClassDef))
    texts = [
        ast.literal_eval(after.value)
        for before, after in pairwise(enum.body)
        if isinstance(before, ast.Assign) and isinstance(after, ast.Expr)
    ]
    yield "\n## Exit codes\n\n| code | name | meaning |\n| --- | --- | --- |\n"
    for code, text in zip(_exit.ExitCode, texts, strict=True):
        yield f"| {code.value} | `{code.name}` | {text} |\n"
    yield "| 130 | | Ctrl-C |\n"


@click.command()
@config_options
def _any_queue(where: object) -> None:
    """Bears the options of every command that has a queue."""


def _options(command: click.Command, context: click.Context) -> list[str]:
    records = [parameter.get_help_record(context) for parameter in command.params]
    return [f"- `{names}`: {_sentence(text)}\n" for names, text in filter(None, records) if text]


def _section(command: click.Command, path: str, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=path)
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    yield f"\n{'#' * level} `{path}`\n\n    {usage}\n"
    yield "".join(f"\n{paragraph}\n" for paragraph in _paragraphs(command.help or ""))
    options = _options(command, context)
    common = _options(_any_queue, context)
    if set(common) <= set(options):
        options = ["- those of [which queue](#which-queue)\n", *(one for one in options if one not in common)]
    if options:
        yield "\n" + "".join(options)


def _paragraphs(text: str) -> list[str]:
    """Each on one line, as click wraps them, but for those that click is told to leave."""
    blocks = re.split(r"\n\s*\n", inspect.cleandoc(text).replace("\f", ""))
    return [
        block.removeprefix("\b\n") if block.startswith("\b") else " ".join(block.split()) for block in blocks
    ]


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "]")) else text + "."


def _notes(module_name: str) -> str:
    """A module's docstring without its first line, as Markdown."""
    _title, _, rest = inspect.cleandoc(import_module(module_name).__doc__ or "").partition("\n")
    rest = rest.strip("\n").replace("``", "`")
    return f"\n{rest}\n" if rest else ""


def reference() -> str:
    """The whole document."""
    context = click.Context(ramen, info_name="ramen")
    parts = [HEAD, *_exit_codes(), WHICH_QUEUE, *_options(_any_queue, context)]
    for name in COMMANDS:
        module = f"infi.ramen_cli.commands.{name.replace('-', '_')}"
        command: click.Command = getattr(import_module(module), name.replace("-", "_"))
        parts += _section(command, f"ramen {name}", 2)
        parts.append(_notes(module))
        if isinstance(command, click.Group):
            for inner_name, inner in sorted(command.commands.items()):
                parts += _section(inner, f"ramen {name} {inner_name}", 3)
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
