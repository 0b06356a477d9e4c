"""``ramen rules``: a collector's blacklist rules. They count from the collector's next message on.

``list --json`` writes one object:

    {"rules": [{"number": 3, "rule": {"category": "metrics", "data_type": "cpu"}, "hits": 12, "added_at": 1764000000000}]}

``rule`` has the fields that the rule names, as text; ``added_at`` is in ms since the epoch; ``hits``, written every few seconds, is
how many messages fell under it. ``add --json`` writes one such element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from infi.ramen_cli._collector import data_dir_option, in_words
from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._output import human_time, table, write_json
from infi.ramen_protocol import Rule, UnusableRule
from infi.ramen_server import Settings, StoredRule

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def rules() -> None:
    """Manage a collector's blacklist rules.

    A message that matches a rule is answered DROPPED: it is not stored, and its sender is told to keep such messages back.
    """


@rules.command("add")
@data_dir_option
@click.option("--category", metavar="NAME")
@click.option("--system-serial", metavar="NUMBER")
@click.option("--sender", metavar="NAME")
@click.option("--data-type", metavar="NAME")
@click.option("--data-version", metavar="NAME")
@click.option("--system-version", metavar="VERSION")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def add(data_dir: Path, as_json: bool, **named: str | None) -> ExitCode:
    """Add a rule: messages for which all that is named holds are not wanted. At least one field."""
    try:
        rule = Rule.parse(named)
    except UnusableRule as error:
        raise click.UsageError(f"{error}.") from None
    with in_words(data_dir), Settings(data_dir, must_exist=True) as settings:
        try:
            stored = settings.add_rule(rule)
        except ValueError as error:
            raise click.UsageError(f"{error}; remove some.") from None
    if as_json:
        write_json(_as_json(stored))
    else:
        click.echo(f"Rule {stored.rule_id}: {_words(stored)}")
    return ExitCode.OK


@rules.command("list")
@data_dir_option
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def list_(data_dir: Path, as_json: bool) -> ExitCode:
    """List all rules, with how many messages fell under each."""
    with in_words(data_dir), Settings(data_dir, must_exist=True) as settings:
        found = settings.list_rules()
    if as_json:
        write_json({"rules": [_as_json(stored) for stored in found]})
    elif found:
        rows = [
            (stored.rule_id, stored.hits, human_time(stored.added_at_ms), _words(stored)) for stored in found
        ]
        click.echo(table(rows, ("rule", "hits", "added", "messages with")))
    else:
        click.echo("There are no rules.")
    return ExitCode.OK


@rules.command("remove")
@data_dir_option
@click.argument("number", type=int)
def remove(data_dir: Path, number: int) -> ExitCode:
    """Remove the rule of this number. Senders forget it when their blacklist_ttl is over."""
    with in_words(data_dir), Settings(data_dir, must_exist=True) as settings:
        removed = settings.remove_rule(number)
    if not removed:
        click.echo(f"There is no rule {number}.", err=True)
        return ExitCode.NOT_WELL
    click.echo(f"Rule {number} is removed.")
    return ExitCode.OK


def _words(stored: StoredRule) -> str:
    return " ".join(f"{name}={value}" for name, value in stored.rule.as_json().items())


def _as_json(stored: StoredRule) -> dict[str, Any]:
    return {
        "number": stored.rule_id,
        "rule": stored.rule.as_json(),
        "hits": stored.hits,
        "added_at": stored.added_at_ms,
    }
