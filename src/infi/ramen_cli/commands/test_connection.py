"""``ramen test-connection``: try the way to the collector, step by step; no queue is needed, and none is touched.

Exit codes: 0 the collector took the test message; 1 it did not, and the output says where it failed and what to do; 2 the
configuration is wrong.

``--json`` prints one object:

    server   text: scheme, host and port
    ok       true or false
    steps    in the order of the way: configuration, name, proxy, connection, tls, token, answer; each an object of
             name     text
             outcome  "ok", "failed", "unknown" (it was not come so far), "not needed"
             text     what was found, maybe empty
             remedy   what to do about a failure, maybe empty
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._options import Where, config_options
from infi.ramen_cli._output import write_json
from infi.ramen_client.diagnosis import Outcome, diagnose

if TYPE_CHECKING:
    from infi.ramen_client.diagnosis import Diagnosis

_MARKS = {Outcome.OK: "ok", Outcome.FAILED: "FAILED", Outcome.UNKNOWN: "?", Outcome.NOT_NEEDED: "-"}


@click.command("test-connection")
@config_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def test_connection(where: Where, as_json: bool) -> ExitCode:
    """Try the way to the collector, step by step, by one test message: what works, what fails, what to do.

    Each step is what the reader does: the name, the proxy, the connection, TLS, the token, the answer.
    """
    diagnosis = diagnose(where.reader_config())
    if as_json:
        steps = [{**asdict(step), "outcome": step.outcome.value} for step in diagnosis.steps]
        write_json({"server": diagnosis.server, "ok": diagnosis.ok, "steps": steps})
    else:
        _print(diagnosis)
    return ExitCode.OK if diagnosis.ok else ExitCode.NOT_WELL


def _print(diagnosis: Diagnosis) -> None:
    click.echo(diagnosis.server)
    for step in diagnosis.steps:
        click.echo(f"  {step.name:<13}  {_MARKS[step.outcome]:<6}  {step.text}".rstrip())
    failed = diagnosis.failed
    if failed is None:
        click.echo("Messages are taken.")
    elif failed.remedy:
        click.echo(f"What to do: {failed.remedy}.")
