"""``ramen blacklist``: the rules under which messages are dropped here without being sent, since a collector asked for that.

``ramen blacklist list --json``: an object with ``rules``, a list of objects; times are milliseconds since the epoch.

    number        integer   the rule's number, for ``ramen blacklist lift``
    rule          object    the fields that it names, as text: some of category, system_serial, sender, data_type, data_version,
                            system_version
    added_at      integer   when it was first received
    last_seen_at  integer   when it was last received
    hits          integer   messages dropped under it
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._options import config_options
from infi.ramen_cli._output import human_age, human_time, table, write_json

if TYPE_CHECKING:
    from infi.ramen_cli._options import Where
    from infi.ramen_client.admin import StoredRule


@click.group()
def blacklist() -> None:
    """List or lift the rules that a collector sent."""


@blacklist.command("list")
@config_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document for machines.")
def list_rules(where: Where, *, as_json: bool) -> ExitCode:
    """List the rules in the queue's file.

    A rule's time is over blacklist_ttl after it was last received; the reader removes it then, when it next looks.
    """
    from infi.ramen_client.admin import QueueAdmin  # noqa: PLC0415 - not needed for --help

    place = where.queue_place()
    with QueueAdmin(place.path) as queue:
        rules = queue.rules()
    if as_json:
        write_json({"rules": [rule_as_json(rule) for rule in rules]})
    elif rules:
        click.echo(table((_row(rule, place.blacklist_ttl) for rule in rules), _HEADERS))
    else:
        click.echo("No rules.")
    return ExitCode.OK


_HEADERS = ("number", "rule", "hits", "added", "last received", "ends in")


def _row(stored: StoredRule, ttl: float | None) -> tuple[object, ...]:
    from infi.ramen_client.admin import now_ms  # noqa: PLC0415 - loaded by the time there is a rule

    names = ", ".join(f"{name}={value}" for name, value in stored.rule.as_json().items())
    left = "" if ttl is None else human_age(max(0.0, ttl - (now_ms() - stored.last_seen_at_ms) / 1000))
    times = human_time(stored.added_at_ms), human_time(stored.last_seen_at_ms)
    return (stored.rule_id, names, stored.hits, *times, left or "(see --config)")


def rule_as_json(stored: StoredRule) -> dict[str, Any]:
    """The object that the module's docstring describes."""
    return {
        "number": stored.rule_id,
        "rule": stored.rule.as_json(),
        "added_at": stored.added_at_ms,
        "last_seen_at": stored.last_seen_at_ms,
        "hits": stored.hits,
    }


@blacklist.command()
@config_options
@click.argument("numbers", nargs=-1, type=int, metavar="[NUMBER]...")
@click.option("--rule-category", metavar="TEXT", help="Lift the rules with this category.")
@click.option("--rule-data-type", metavar="TEXT", help="Lift the rules with this data type.")
@click.option("--rule-data-version", metavar="TEXT", help="Lift the rules with this data version.")
@click.option("--rule-sender", metavar="TEXT", help="Lift the rules with this sender.")
@click.option("--rule-system-serial", metavar="TEXT", help="Lift the rules with this system serial.")
@click.option("--rule-system-version", metavar="TEXT", help="Lift the rules with this system version.")
@click.option("--all", "everything", is_flag=True, help="Lift all rules.")
def lift(where: Where, *, numbers: tuple[int, ...], everything: bool, **fields: str | None) -> ExitCode:
    """Forget rules, so that what they match is sent again.

    By their numbers (ramen blacklist list), by the values that they name (a rule must name all that are given), or all. A reader
    that runs takes notice at its next message. The collector may send the rule again. Exits with 1 when there was no such rule.
    """
    wanted = {name.removeprefix("rule_"): value for name, value in fields.items() if value is not None}
    if bool(numbers) + bool(wanted) + everything != 1:
        raise click.UsageError("say which rules to lift: their numbers, the values they name, or --all")
    with where.open_queue() as queue:
        lifted = queue.lift_rules(numbers or [rule.rule_id for rule in queue.rules(wanted)])
    click.echo(f"{lifted} {'rule' if lifted == 1 else 'rules'} lifted.")
    missing = lifted < len(set(numbers)) if numbers else bool(wanted) and not lifted
    if missing:
        click.echo("Not every rule that was asked for is there.", err=True)
    return ExitCode.NOT_WELL if missing else ExitCode.OK
