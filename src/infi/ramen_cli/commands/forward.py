"""``ramen forward``: the reader as a service.

Delivers the queue that the configuration names (created if needed), or with ``--all DIR`` every queue of a directory: queues that
appear are picked up, those that are gone are dropped. While the server cannot be reached, or refuses the token, nothing is lost: the
log says it, and it goes on trying. Of several forwarders of a queue one is active, the others stand by.

    SIGTERM, SIGINT   stop, within 0.1 s and the time that the process takes to end; exit code 0
    SIGHUP            read the configuration and the token's file again and go on with them; a wrong one is logged and changes nothing

The service manager is told READY=1 when the queues are open, STATUS= with the numbers, STOPPING=1 at the end. If it has a watchdog
(``WatchdogSec=``), it hears WATCHDOG=1 as long as every reader's thread turns, waiting for a server included; a thread that has not
turned for ``server_timeout`` and a minute and a half silences it, and the manager starts the service anew.

``--listen`` serves, to this machine alone unless a host is given:

    /healthz   200 if all is well with every queue, else 503; as JSON: healthy, problem (text or null: what is the matter with the
               forwarder itself), queues: an object with, for each queue, what ``ramen status --json`` has under health
    /metrics   docs/metrics.md, as Prometheus' text

``--textfile`` writes the same metrics every 15 s for the node exporter's textfile collector: ``ramen_QUEUE.prom`` in that directory,
``ramen.prom`` with ``--all``. The file is replaced in one step, and removed at the end.

``--once`` delivers what waits and ends, for scripts and timers; it does not wait for a server that is away, and prints one line for
each queue. No signal is caught then: killed at any moment, nothing is lost.

Exit codes: 0 stopped by a signal, or with ``--once`` all delivered; 1 with ``--once`` something still waits, was refused, or was in the
way; 2 the configuration is wrong; 3 the queue or the directory cannot be used, or ``--listen``'s address.
"""

from __future__ import annotations

import logging
import queue
import signal
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from infi.ramen_cli._exit import ExitCode
from infi.ramen_cli._monitor import Address, Reporter
from infi.ramen_cli._options import Where, config_options
from infi.ramen_cli._service import configure_logging, notify, watchdog_seconds
from infi.ramen_client.errors import QueueError, ValidationError
from infi.ramen_client.forwarder import Forwarder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_logger = logging.getLogger("ramen")

_LOOK_EVERY_SECONDS = 1.0

_BEATS = 3
"""For each of the watchdog's periods."""

_STOPPING = (signal.SIGTERM, signal.SIGINT)
_HEEDED = (*_STOPPING, signal.SIGHUP)


@click.command()
@config_options
@click.option("--all", "directory", metavar="DIR", help="Deliver every queue of this directory.")
@click.option("--once", is_flag=True, help="Deliver what waits and end; 1 if something is left.")
@click.option(
    "--listen",
    type=Address(),
    metavar="[HOST:]PORT",
    help="Serve /healthz and /metrics; on 127.0.0.1 if no HOST.",
)
@click.option("--textfile", metavar="DIR", help="Write metrics for the node exporter into this directory.")
def forward(
    where: Where, directory: str | None, once: bool, listen: tuple[str, int] | None, textfile: str | None
) -> ExitCode:
    """Deliver a queue's messages to the collector, as a service.

    SIGTERM ends it with 0, SIGHUP reads configuration and token again. It tells a service manager when it is ready.
    """
    if directory is not None and (where.queue_dir or where.sender or where.system_serial):
        raise click.UsageError(
            "--all takes every queue of its directory: leave out --queue-dir, --sender, --system-serial"
        )
    if once and (listen is not None or textfile is not None):
        raise click.UsageError("--listen and --textfile are for the service: leave out --once")
    configure_logging()
    if once:
        return _deliver_once(Forwarder(where.reader_config, directory))
    with _signals() as heard, Forwarder(where.reader_config, directory) as forwarder:
        forwarder.look()
        with closing(_reporter(forwarder, directory, listen, textfile)) as reporter:
            notify("READY=1")
            _serve(forwarder, reporter, heard)
            notify("STOPPING=1")
            forwarder.close()  # at once; the reporter takes its time
    _logger.info("stopped")
    return ExitCode.OK


def _reporter(
    forwarder: Forwarder, directory: str | None, listen: tuple[str, int] | None, textfile: str | None
) -> Reporter:
    file = None
    if textfile is not None:
        file = Path(textfile) / (
            "ramen.prom" if directory is not None else f"ramen_{forwarder.queues[0]}.prom"
        )
    reporter = Reporter(listen, file)
    if reporter.port is not None:
        _logger.info("serving /healthz and /metrics on port %d", reporter.port)
    reporter.report(forwarder)
    return reporter


@contextmanager
def _signals() -> Iterator[queue.SimpleQueue[int]]:
    """The signals that are heeded, as they come, in place of what they would do. A ``SimpleQueue`` takes them out of any moment."""
    heard: queue.SimpleQueue[int] = queue.SimpleQueue()

    def note(number: int, _frame: FrameType | None) -> None:
        heard.put(number)

    former = {number: signal.signal(number, note) for number in _HEEDED}
    try:
        yield heard
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _serve(forwarder: Forwarder, reporter: Reporter, heard: queue.SimpleQueue[int]) -> None:
    """Look after the queues until a signal says stop. Trouble is said when it is new, and ends nothing."""
    watchdog = _Watchdog(watchdog_seconds())
    pause = min(_LOOK_EVERY_SECONDS, watchdog.seconds / _BEATS if watchdog.seconds else _LOOK_EVERY_SECONDS)
    told = trouble = ""
    while True:
        told = _tell(forwarder, told)
        watchdog.beat(forwarder)
        reporter.report(forwarder)
        try:
            number = heard.get(timeout=pause)
        except queue.Empty:
            number = 0
        if number in _STOPPING:
            _logger.info("%s: stopping", signal.Signals(number).name)
            return
        try:
            if number == signal.SIGHUP:
                forwarder.reload()
                _logger.info("SIGHUP: the configuration was read again")
            else:
                forwarder.look()
            trouble = ""
        except ValidationError as error:
            _logger.error("SIGHUP: all goes on as before, since the configuration cannot be used: %s", error)  # noqa: TRY400
        except QueueError as error:
            if str(error) != trouble:
                trouble = str(error)
                _logger.error("%s Trying again.", trouble)  # noqa: TRY400 - the text says it all


class _Watchdog:
    """Tells the service manager that all readers' threads turn; silent when one does not."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._said: set[str] = set()

    def beat(self, forwarder: Forwarder) -> None:
        """To be called several times within ``seconds``."""
        hanging = forwarder.hanging()
        for name in hanging.keys() - self._said:
            _logger.error("%s: its reader has not turned for %.0f s: it hangs", name, hanging[name])
        self._said = set(hanging)
        if not hanging and self.seconds is not None:
            notify("WATCHDOG=1")


def _tell(forwarder: Forwarder, told: str) -> str:
    """Give the service manager the numbers, if they changed; return them."""
    names = forwarder.queues
    what = names[0] if len(names) == 1 else f"{len(names)} queues"
    status = f"{what}: {forwarder.waiting()} waiting"
    if status != told:
        notify(f"STATUS={status}")
    return status


def _deliver_once(forwarder: Forwarder) -> ExitCode:
    complete = True
    for done in forwarder.deliver_once():
        complete = complete and done.complete
        refused = f", {done.refused} of them refused (dead letters)" if done.refused else ""
        problem = f": {done.problem}" if done.problem else ""
        click.echo(f"{done.queue}: {done.handled} handled{refused}, {done.waiting} still waiting{problem}")
    return ExitCode.OK if complete else ExitCode.NOT_WELL
