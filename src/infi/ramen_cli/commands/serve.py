"""``ramen serve``: a collector as a service.

stdout has where it listens (``Listening on URL``, one line) and, once in a collector's life, its first token and how to use it;
stderr has the log. A first token is never printed into the journal: ``--first-token-file`` is for services and scripts.

SIGTERM and SIGINT answer what is under way, commit it and end with 0; SIGHUP reads certificate and key again. The service manager
is told READY=1 when messages are taken, and STOPPING=1.
"""

from __future__ import annotations

import logging
import shlex
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from infi.ramen_cli._collector import in_words
from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._service import configure_logging, is_the_journal, notify
from infi.ramen_server import CollectorServer, ServerConfig
from infi.ramen_server.config_file import DEFAULT_DATA_DIR, load_config

_LIMITS = ("max_message_bytes", "messages_per_second", "burst", "min_free_bytes")

_FIRST_START = """\

This is the collector's first start. Its first token may send for everybody; it is shown this once:

    {token}

For a host that is to send, in ramen.toml:

    [ramen]
    hostname = "{host}"
    ssl = {ssl}
    auth_token = "{token}"
    sender = "imx"
    system_serial = 1099
    system_version = "1.0"
    queue_dir = "queue"

and there:

    echo '{{"value": 42}}' | ramen push -c ramen.toml metrics answer 1
    ramen forward -c ramen.toml

More tokens, also for single senders: ramen tokens add --data-dir {data_dir} --help
"""

_logger = logging.getLogger("ramen_server")


@click.command()
@click.option("--config", "-c", "config_file", type=click.Path(path_type=Path), metavar="FILE",
              help="TOML with the fields below (data_dir, …), and [limits]; options go over it.")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), metavar="DIR",
              help=f"Where messages, tokens and rules lie; made when missing.  [default: {DEFAULT_DATA_DIR}]")  # fmt: skip
@click.option("--host", metavar="ADDRESS", help="Where to listen.  [default: 127.0.0.1]")
@click.option("--port", type=int, metavar="NUMBER", help="0 takes a free one.  [default: 8443]")
@click.option("--tls-certificate", type=click.Path(path_type=Path), metavar="FILE",
              help="PEM: the certificate, then what leads to its authority.")  # fmt: skip
@click.option("--tls-key", type=click.Path(path_type=Path), metavar="FILE", help="PEM, without a passphrase.")
@click.option("--insecure", is_flag=True, default=None,
              help="Listen beyond loopback without TLS: something else protects the way.")  # fmt: skip
@click.option("--remember-days", type=int, metavar="NUMBER",
              help="For how many days, at least, duplicates are recognised.  [default: 30]")  # fmt: skip
@click.option("--max-message-bytes", type=int, metavar="NUMBER",
              help="The largest message, on the wire and decoded.  [default: 64 MiB]")  # fmt: skip
@click.option("--messages-per-second", type=float, metavar="NUMBER",
              help="What one token may send for one sender, in the long run.  [default: no limit]")  # fmt: skip
@click.option("--burst", type=int, metavar="NUMBER",
              help="How many may come at once before that counts.  [default: 100]")  # fmt: skip
@click.option("--min-free-bytes", type=int, metavar="NUMBER",
              help="Take nothing when the disk has less room.  [default: 256 MiB]")  # fmt: skip
@click.option("--first-token-file", type=click.Path(path_type=Path), metavar="FILE",
              help="Write the first token there (0600), when one is made, and do not print it.")  # fmt: skip
def serve(config_file: Path | None, **options: Any) -> ExitCode:
    """Run a collector: take messages over HTTP, keep each of them once, answer when they are on the disk.

    It listens beyond loopback only with TLS. Its first start makes a token and says how to use it. SIGTERM stops it in order,
    SIGHUP reads certificate and key again.
    """
    configure_logging()
    server = CollectorServer(_config(config_file, options))
    with in_words(server.config.data_dir):
        server.run(on_listening=lambda: _announce(server), on_stopping=_part)
    _logger.info("Stopped.")
    return ExitCode.OK


def _config(config_file: Path | None, options: dict[str, Any]) -> ServerConfig:
    given = {name: value for name, value in options.items() if value is not None}
    limits = {name: given.pop(name) for name in _LIMITS if name in given}
    if "max_message_bytes" in limits:
        limits["max_body_bytes"] = limits["max_message_bytes"]
    try:
        return load_config(config_file, limits=limits, **given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _announce(server: CollectorServer) -> None:
    click.echo(f"Listening on {server.url}")
    if server.first_token is not None:
        _tell_first_token(server, server.first_token)
    _logger.info("Started, version %s; data in %s.", version("infi.ramen_client"), server.config.data_dir)
    notify("READY=1")


def _part() -> None:
    notify("STOPPING=1")
    _logger.info("Stopping: what is under way is answered first.")


def _tell_first_token(server: CollectorServer, token: str) -> None:
    config = server.config
    if config.first_token_file is not None:
        click.echo(f"The first token, which may send for everybody, is in {config.first_token_file}")
    elif is_the_journal(sys.stdout):
        _logger.warning(
            "The first token is not shown: the journal is no place for it. Make one by ramen tokens add --data-dir %s",
            config.data_dir,
        )
    else:
        host = (
            f"{socket.gethostname()}:{server.port}"
            if _is_any(config.host)
            else server.url.partition("://")[2]
        )
        click.echo(
            _FIRST_START.format(
                token=token,
                host=host,
                ssl="false" if config.tls_certificate is None else "true",
                data_dir=shlex.quote(str(config.data_dir)),
            )
        )


def _is_any(host: str) -> bool:
    """Whether it stands for all addresses of this host, and so for none that a client could use."""
    return host in ("", "0.0.0.0", "::")  # noqa: S104 - compared, not listened to
