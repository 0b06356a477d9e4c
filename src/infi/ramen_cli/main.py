"""The ``ramen`` command: the group, and what an error looks like."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import NoReturn

import click

from infi.ramen_client.__version__ import __version__

from ._exit import ExitCode

COMMANDS = {
    "serve": "Run a collector.",
    "push": "Put messages into a queue.",
    "forward": "Deliver a queue's messages to the collector, as a service.",
    "status": "Say what waits, what was delivered, and what is in the way.",
    "test-connection": "Try the way to the collector, step by step.",
    "check": "Compare a queue's books with its rows.",
    "dead": "List, show, retry, export or discard dead letters.",
    "blacklist": "List or lift the rules that a collector sent.",
    "purge": "Remove waiting messages, counted.",
    "export": "Write out what a collector holds, as NDJSON; or a queue for 1.x.",
    "rules": "Manage a collector's blacklist rules.",
    "tokens": "Manage a collector's tokens.",
}
"""In the order of the help; each is an object of its name in the module of its name."""


class _Ramen(click.Group):
    """Imports a command when it is called."""

    def list_commands(self, _context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        name = name.replace("-", "_")
        command: click.Command = getattr(import_module(f"infi.ramen_cli.commands.{name}"), name)
        return command

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Ramen, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="ramen")
def ramen() -> None:
    """Store-and-forward telemetry: queues on this host, and the collector that they are delivered to."""


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code. Errors that a user can do something about are one line on stderr."""
    from infi.ramen_client.errors import RamenError, ValidationError  # noqa: PLC0415 - not needed for --help

    try:
        return int(ramen.main(arguments, prog_name="ramen", standalone_mode=False) or 0)
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except click.Abort:
        click.echo("Interrupted.", err=True)
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ValidationError as error:
        click.echo(f"ramen: {error}", err=True)
        return ExitCode.USAGE
    except (RamenError, OSError) as error:
        click.echo(f"ramen: {error}", err=True)
        return ExitCode.UNUSABLE
