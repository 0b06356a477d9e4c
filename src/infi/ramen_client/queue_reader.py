"""Forwarding messages: one thread, here or in a process of its own, until the server has accepted each one.

A reader is *active* for the length of one ``run``, ``drain`` or ``consume_one``, one of all on the host for a queue. Others stand by:
``run`` waits and takes over, ``consume_one`` answers RETRY, ``run(blocking=False)`` 0.

Nothing here dies silently: what goes wrong is logged, backed off from and tried again (``delivery.run``); only what a program
must decide itself (the token refused, under its own ``run``) is raised. A queue that was taken away ends the reader quietly.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Self

from infi.ramen_protocol import origin

from ._opening import open_queue
from ._status import look_at
from .blacklist import Blacklist, HeldRule, StoredBlacklist
from .config import QueueReaderConfig
from .delivery.courier import Courier
from .delivery.flight import Step
from .delivery.outage import OutageLog
from .delivery.run import Run, Until
from .delivery.stop import Stop
from .delivery.transport import Transport, route_of
from .diagnosis import diagnose
from .errors import (
    AuthenticationError,
    AutheticationError,
    QueueClosed,
    QueueError,
    QueueForked,
    QueueGone,
    QueueUnusable,
    WrongConfig,
)
from .health import HealthWatch, Observation
from .storage import ActiveReader, ExistingQueue

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from .delivery.transport import Route
    from .health import Health
    from .storage import Books, DeadLetter

__all__ = ["AuthenticationError", "AutheticationError", "Blacklist", "QueueReader"]

logger = logging.getLogger("ramen_client")

_STAND_BY_SECONDS = 0.25
"""How soon a reader that stands by takes over from one that died."""

_SLOW_DISK_SECONDS = 90.0
"""How long a turn may take that waits for a disk, or for a program that holds the file, on top of ``server_timeout``."""

_STANDING_BY = "another reader is active; this one stands by"


class QueueReader:
    """Delivers the messages of one queue.

    Building one opens the queue, creating it if needed (``ValidationError``, ``QueueUnusable``). ``stop`` and ``get_blacklist`` may be
    called from any thread; of ``run``, ``drain`` and ``consume_one`` one at a time does the work.
    """

    EMPTY = int(Step.EMPTY)
    """The queue is empty."""
    ACCEPTED = int(Step.ACCEPTED)
    """The server has the message."""
    DROPPED = int(Step.DROPPED)
    """The server, or a blacklist rule, does not want the message; or it was refused and is a dead letter."""
    RETRY = int(Step.RETRY)
    """The message stays in the queue; try again later."""

    def __init__(self, config: QueueReaderConfig) -> None:
        if not isinstance(config, QueueReaderConfig):
            raise WrongConfig(
                f"a QueueReader is built with a QueueReaderConfig, not with a {type(config).__name__}"
            )
        config.validate()
        self._config = config
        self._queue = open_queue(config)
        self._blacklist = StoredBlacklist(config, self._queue)
        self.name = f"{config.sender}_{config.system_serial}"
        """The queue's name, in front of this reader's lines in the log."""
        self._outage = OutageLog(self.name)
        self._watch = HealthWatch()
        self._closed = False
        # Made and replaced by whoever holds the reader's lock, so by one thread at a time.
        self._transport: tuple[int, Route, Transport] | None = None
        # One for each run under way. No lock guards it: ``stop`` may come from a signal handler, into the middle of anything.
        self._stops: list[Stop] = []

    def __repr__(self) -> str:
        return f"<QueueReader {self._queue!r} to {self._config.hostname}>"

    def __reduce__(self) -> tuple[type[QueueReader], tuple[QueueReaderConfig]]:
        # For multiprocessing's spawn and forkserver: the other process opens the queue anew.
        return type(self), (self._config,)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and let go of the queue and of the connections; messages stay in the queue."""
        self._closed = True
        self.stop()
        self._queue.close()
        self._outage.say_rest()
        if not self._stops:
            self._close_transport()

    def consume_one(self) -> int:
        """Handle the oldest message: EMPTY, ACCEPTED, DROPPED or RETRY. Makes its attempt at once, whatever happened before.

        While another reader is active, here or in another process, nothing is attempted: RETRY. Raises ``AuthenticationError``
        when the server refuses the token (the message stays in the queue), ``QueueGone`` when the queue was taken away,
        ``QueueClosed`` after ``close``.
        """
        stop = self._begin()
        try:
            taken = self._take_over(stop)
            if taken is None:
                return self.RETRY
            active, transport = taken
            try:
                courier = self._courier(active, transport, stop, hold=False, resumes_pause=False)
                return int(courier.step())
            finally:
                active.close()
        finally:
            self._end(stop)

    def run(self, blocking: bool = True) -> int:
        """Deliver messages and return how many were accepted or dropped.

        ``blocking``: go on until ``stop``, waiting for messages and retrying for ever; while another reader is active, stand by
        and take over from it. Otherwise return when the queue is empty, or after a failure, or while the server's ``Retry-After``
        lasts, or at once (0) while another reader is active. Raises ``AuthenticationError`` when the token is refused,
        ``QueueClosed`` after ``close``; a queue that is taken away meanwhile ends it quietly.
        """
        until = Until.STOPPED if blocking else Until.HELD_UP
        return self._run(until, self._begin(), raise_refused_token=True)

    def start_thread(self) -> threading.Thread:
        """``run`` in a daemon thread of its own; a refused token is logged, backed off from and tried again.

        A ``stop`` that comes before the thread has begun ends it, too. Raises ``QueueClosed`` after ``close``.
        """
        thread = threading.Thread(
            target=partial(self._run, Until.STOPPED, self._begin(), raise_refused_token=False),
            name="ramen-reader",
            daemon=True,
        )
        thread.start()
        return thread

    def drain(self, timeout: float | None = None) -> bool:
        """Deliver until the queue is empty; False when ``timeout`` seconds passed first, or after ``stop``.

        For scripts that end soon. While another reader is active, waits for that one to do it. Raises ``AuthenticationError``,
        ``QueueGone`` when the queue was taken away, and ``QueueClosed`` after ``close``.
        """
        stop = self._begin()
        timer = None
        if timeout is not None:
            timer = threading.Timer(timeout, self._halt, ((stop,),))
            timer.daemon = True
            timer.start()
        try:
            self._run(Until.DRAINED, stop, raise_refused_token=True)
        finally:
            if timer is not None:
                timer.cancel()
        return self._queue.size() == 0

    def stop(self) -> None:
        """Make ``run`` return within 0.1 s, out of whatever it does; nothing that is pushed afterwards is sent.

        From any thread and any signal handler. A later ``run`` starts again.
        """
        self._halt(tuple(self._stops))

    def test_connection(self) -> bool:
        """Whether the server accepts a test message with this configuration; says in the log what fails, and what to do.

        Waits at most ``server_timeout`` seconds; never raises for what network, server and token do. ``diagnosis.diagnose``
        says more.
        """
        diagnosis = diagnose(self._config)
        if (failed := diagnosis.failed) is not None:
            remedy = f": {failed.remedy}" if failed.remedy else ""
            logger.warning(
                "connection test of %s failed (%s): %s%s", diagnosis.server, failed.name, failed.text, remedy
            )
        return diagnosis.ok

    def books(self) -> Books:
        """Where every message that was ever pushed into this queue is now."""
        return self._queue.books()

    def health(self) -> Health:
        """Whether this queue is delivered as it should be, by whichever reader; if not, why, in words.

        Reads the file, about a millisecond. Raises ``QueueGone`` when the queue was taken away, ``QueueClosed`` after ``close``,
        ``QueueUnusable`` when it cannot be read.
        """
        return self.observe()[0].health

    def observe(self) -> list[Observation]:
        """This queue as ``infi.ramen_client.metrics`` wants it, which takes a reader as a source. Raises as ``health`` does."""
        database = self._queue.database
        database.check_in_place()
        place = self._queue.place
        queue = ExistingQueue(database, self._queue.meta, place.sender, place.system_serial)
        status = look_at(queue, max_queue_size=self._config.max_queue_size)
        health = self._watch.look(status, hangs_for_seconds=self.hangs_for())
        return [Observation(self.name, status, health, self._outage.outages)]

    def hangs_for(self) -> float:
        """For how many seconds a run of this reader has not turned, where that is longer than any turn may take; else 0.

        That is ``server_timeout`` and a minute and a half. Never waits: for a watchdog.
        """
        silent = max((stop.silent_seconds() for stop in tuple(self._stops)), default=0.0)
        return silent if silent > self._config.server_timeout + _SLOW_DISK_SECONDS else 0.0

    def dead_letters(self, limit: int = 1000) -> list[DeadLetter]:
        """The messages that were refused for good, or damaged, with the reason; the oldest first, at most ``limit``."""
        return self._queue.dead_letters(limit)

    def retry_dead_letters(self, positions: Iterable[int] | None = None) -> int:
        """Put dead letters back into the queue, in their old places; return how many. None: all that could be sent.

        ``positions`` are those of their messages (``DeadLetter.message.position``).
        """
        if positions is None:
            positions = self._queue.dead_letter_positions()
        return self._queue.retry_dead_letters(positions)

    def discard_dead_letters(self) -> int:
        """Throw every dead letter away, counted; return how many."""
        return self._queue.discard_dead_letters()

    def get_blacklist(self) -> list[HeldRule]:
        """The rules that are held now, each with its six attributes, ``added`` and ``last_seen``."""
        return self._blacklist.get_list()

    # One run

    def _begin(self) -> Stop:
        if self._closed:
            raise QueueClosed("this reader was closed; build a new one")
        stop = Stop()
        self._stops.append(stop)
        return stop

    def _end(self, stop: Stop) -> None:
        self._stops.remove(stop)
        if self._closed and not self._stops:
            self._close_transport()

    def _halt(self, stops: tuple[Stop, ...]) -> None:
        for stop in stops:
            stop.set()
        # After that: whoever waits with this transport is woken; whoever is about to wait looks for the stop before.
        if (current := self._transport) is not None:
            current[2].wake()

    def _run(self, until: Until, stop: Stop, *, raise_refused_token: bool) -> int:
        handled = 0
        try:
            taken = self._stand_by(until, stop)
            if taken is not None:
                handled = self._deliver(*taken, until, stop, raise_refused_token=raise_refused_token)
        except (QueueGone, QueueClosed) as error:
            if until is Until.DRAINED:
                raise
            logger.warning("%s: the reader ends: %s", self.name, error)
        finally:
            self._end(stop)
        return handled

    def _stand_by(self, until: Until, stop: Stop) -> tuple[ActiveReader, Transport] | None:
        """Become the active reader, waiting for that if ``until`` allows; None: there was nothing to wait for any more."""
        said = ""
        while not stop.is_set():
            try:
                taken = self._take_over(stop)
                trouble = ""
            except (QueueGone, QueueClosed, QueueForked):
                raise
            except QueueError as error:
                if until is Until.HELD_UP:
                    raise
                taken = None
                trouble = f"{error} Trying again."
            if taken is not None:
                return taken
            if (trouble or _STANDING_BY) != said:
                said = trouble or _STANDING_BY
                logger.log(logging.ERROR if trouble else logging.INFO, "%s: %s", self.name, said)
            if not trouble and (
                until is Until.HELD_UP or (until is Until.DRAINED and not self._queue.size())
            ):
                break
            stop.wait(_STAND_BY_SECONDS)
        return None

    def _deliver(
        self,
        active: ActiveReader,
        transport: Transport,
        until: Until,
        stop: Stop,
        *,
        raise_refused_token: bool,
    ) -> int:
        make_courier = partial(
            self._courier, active, transport, stop, hold=True, resumes_pause=until is Until.STOPPED
        )
        try:
            run = Run(active, make_courier, transport, self._config, stop)
            if until is not Until.STOPPED:  # of short runs a program may make many
                return run.go(until, raise_refused_token=raise_refused_token)
            server = origin(self._config.hostname, ssl=self._config.ssl)
            logger.info("%s: delivery to %s begins", self.name, server)
            handled = run.go(until, raise_refused_token=raise_refused_token)
            logger.info("%s: delivery to %s ends; accepted or dropped: %d", self.name, server, handled)
            return handled
        finally:
            active.close()
            self._outage.say_rest()

    def _take_over(self, stop: Stop) -> tuple[ActiveReader, Transport] | None:
        """Become the active reader, if none is; who does closes it. ``QueueUnusable`` when the system refuses."""
        try:
            active = ActiveReader.activate(self._queue, stop.is_set)
            if active is None:
                return None
            try:
                return active, self._usable_transport()
            except BaseException:
                active.close()
                raise
        except OSError as error:
            raise QueueUnusable(
                f"{self._queue.path}: the reader cannot begin: {error.strerror}. Check the owner and mode of the queue's "
                "files, and how many files this process has open."
            ) from error

    def _courier(
        self, active: ActiveReader, transport: Transport, stop: Stop, *, hold: bool, resumes_pause: bool
    ) -> Courier:
        return Courier(
            active,
            self._config,
            self._blacklist,
            transport,
            self._outage,
            stop=stop,
            hold=hold,
            resumes_pause=resumes_pause,
        )

    def _route(self) -> Route:
        return route_of(self._config)

    def _usable_transport(self) -> Transport:
        """The transport of this process, built anew after a fork and when the configuration's route has changed."""
        route = self._route()
        if self._transport is not None:
            process, built_for, transport = self._transport
            if process == os.getpid() and built_for == route:
                return transport
            self._close_transport()
        transport = Transport(route)
        self._transport = (os.getpid(), route, transport)
        return transport

    def _close_transport(self) -> None:
        if (current := self._transport) is not None:
            self._transport = None
            current[2].close()
