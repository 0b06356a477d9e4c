"""``ramen tokens``: a collector's tokens. They count, and are refused, from the collector's next message on.

``list --json`` writes one object:

    {"tokens": [{"name": "site-1", "purpose": "send", "senders": ["imx*"], "system_serials": ["*"],
                 "added_at": 1764000000000, "revoked_at": null}]}

Times are in ms since the epoch. ``add --json`` writes one such element with the ``token``, which nothing shows again; without
``--json``, ``add`` writes the token alone to stdout, so that a script can take it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from infi.ramen_cli._collector import data_dir_option, in_words
from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._output import human_time, table, write_json
from infi.ramen_server import Purpose, Scope, Settings, Token

if TYPE_CHECKING:
    from pathlib import Path


@click.group()
def tokens() -> None:
    """Manage a collector's tokens."""


@tokens.command("add")
@data_dir_option
@click.option("--name", required=True, metavar="NAME", help="What the token is called from then on.")
@click.option("--purpose", type=click.Choice([purpose.value for purpose in Purpose]), default=Purpose.SEND.value,
              show_default=True, help="To send messages, or to read the metrics.")  # fmt: skip
@click.option("--sender", "senders", multiple=True, metavar="PATTERN", default=("*",), show_default=True,
              help="For whom it may send; * stands for any characters. May be given several times.")  # fmt: skip
@click.option("--system-serial", "serials", multiple=True, metavar="PATTERN", default=("*",), show_default=True,
              help="For which systems it may send, likewise.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def add(
    data_dir: Path, name: str, purpose: str, senders: tuple[str, ...], serials: tuple[str, ...], as_json: bool
) -> ExitCode:
    """Add a token and show it, once: what is kept is only a hash of it."""
    with in_words(data_dir), Settings(data_dir, must_exist=True) as settings:
        try:
            text = settings.add_token(name, purpose=Purpose(purpose), scope=Scope(senders, serials))
        except ValueError as error:  # NameTaken, too
            raise click.UsageError(str(error)) from None
        (added,) = (token for token in settings.list_tokens() if token.name == name)
    if as_json:
        write_json(_as_json(added) | {"token": text})
    else:
        click.echo(
            "This token is shown once. Best keep it in a file of mode 0600 (auth_token_file):", err=True
        )
        click.echo(text)
    return ExitCode.OK


@tokens.command("list")
@data_dir_option
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def list_(data_dir: Path, as_json: bool) -> ExitCode:
    """List all tokens, revoked ones too; what is listed is not enough to use them."""
    with in_words(data_dir), Settings(data_dir, must_exist=True) as settings:
        found = settings.list_tokens()
    if as_json:
        write_json({"tokens": [_as_json(token) for token in found]})
    elif found:
        headers = ("name", "purpose", "senders", "serials", "added", "revoked")
        click.echo(table([_row(token) for token in found], headers))
    else:
        click.echo("There are no tokens. Make one by: ramen tokens add --name NAME")
    return ExitCode.OK


@tokens.command("revoke")
@data_dir_option
@click.argument("name")
def revoke(data_dir: Path, name: str) -> ExitCode:
    """Refuse the token of this name from now on. Its name is not given again."""
    with in_words(data_dir), Settings(data_dir, must_exist=True) as settings:
        revoked = settings.revoke_token(name)
    if not revoked:
        click.echo(f"There is no token of this name that is in use: {name!r}.", err=True)
        return ExitCode.NOT_WELL
    click.echo(f"Token {name} is revoked.")
    return ExitCode.OK


def _row(token: Token) -> tuple[str, ...]:
    return (
        token.name,
        token.purpose.value,
        " ".join(token.scope.senders),
        " ".join(token.scope.serials),
        human_time(token.added_at_ms),
        "" if token.revoked_at_ms is None else human_time(token.revoked_at_ms),
    )


def _as_json(token: Token) -> dict[str, Any]:
    return {
        "name": token.name,
        "purpose": token.purpose.value,
        "senders": list(token.scope.senders),
        "system_serials": list(token.scope.serials),
        "added_at": token.added_at_ms,
        "revoked_at": token.revoked_at_ms,
    }
