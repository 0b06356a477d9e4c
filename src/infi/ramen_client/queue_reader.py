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
import uuid
from functools import partial
from typing import TYPE_CHECKING, Self

from infi.ramen_protocol import Envelope, Verdict, compress, message_target, origin

from ._opening import open_queue
from .blacklist import Blacklist, HeldRule, StoredBlacklist
from .config import QueueReaderConfig
from .delivery.courier import Courier, Step, judge, request_headers, say_answer
from .delivery.outage import OutageLog
from .delivery.run import Run, Until
from .delivery.stop import Stop
from .delivery.transport import Answer, Request, Transport, route_from
from .errors import (
    AuthenticationError,
    AutheticationError,
    QueueClosed,
    QueueError,
    QueueForked,
    QueueGone,
    QueueUnusable,
    ValidationError,
    WrongConfig,
)
from .storage import ActiveReader

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from .delivery.transport import Route
    from .storage import Books, DeadLetter

__all__ = ["AuthenticationError", "AutheticationError", "Blacklist", "QueueReader"]

logger = logging.getLogger("ramen_client")

_STAND_BY_SECONDS = 0.25
"""How soon a reader that stands by takes over from one that died."""


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
        self._outage = OutageLog()
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

        Raises ``AuthenticationError`` when the server refuses the token (the message stays in the queue), ``QueueGone`` when
        the queue was taken away.
        """
        stop = self._begin()
        try:
            taken = self._take_over(stop)
            if taken is None:
                return self.RETRY
            active, transport = taken
            try:
                return int(self._courier(active, transport, stop).step())
            finally:
                active.close()
        finally:
            self._end(stop)

    def run(self, blocking: bool = True) -> int:
        """Deliver messages and return how many were accepted or dropped.

        ``blocking``: go on until ``stop``, waiting for messages and retrying for ever. Otherwise return when the queue is empty, or
        after a failure, or while the server's ``Retry-After`` lasts. Raises ``AuthenticationError`` when the token is refused.
        """
        until = Until.STOPPED if blocking else Until.HELD_UP
        return self._run(until, self._begin(), raise_refused_token=True)

    def start_thread(self) -> threading.Thread:
        """``run`` in a daemon thread of its own; a refused token is logged, backed off from and tried again.

        A ``stop`` that comes before the thread has begun ends it, too.
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
        and ``QueueGone`` when the queue was taken away.
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
        """Whether the server accepts a test message with this configuration; says in the log what fails.

        Waits at most ``server_timeout`` seconds; never raises for what network, server and token do.
        """
        target = Envelope(
            "metrics",
            self._config.system_serial,
            self._config.sender,
            "test",
            "v1",
            self._config.system_version,
            uuid.uuid4().hex,
        )
        server = origin(self._config.hostname, ssl=self._config.ssl)
        try:
            headers = request_headers(self._config)
        except ValidationError as error:  # the token's file
            logger.warning("connection test of %s failed: %s", server, error)
            return False
        url = server + message_target(target)
        request = Request(url, headers, compress(b"{}"), float(self._config.server_timeout))
        transport = Transport(self._route())
        try:
            transport.start(0, request)
            outcomes = transport.wait(request.timeout_seconds)
            while not outcomes:
                outcomes = transport.wait(request.timeout_seconds)
        finally:
            transport.close()
        (_tag, outcome), *_ = outcomes
        if not isinstance(outcome, Answer):
            logger.warning("connection test of %s failed: %s", server, outcome.text)
            return False
        judgement = judge(outcome, headers)
        if judgement.verdict is not Verdict.ACCEPTED:
            logger.warning("connection test of %s failed: %s", server, say_answer(outcome.status, judgement))
        return judgement.verdict is Verdict.ACCEPTED

    def books(self) -> Books:
        """Where every message that was ever pushed into this queue is now."""
        return self._queue.books()

    def dead_letters(self, limit: int = 1000) -> list[DeadLetter]:
        """The messages that were refused for good, or damaged, with the reason; the oldest first, at most ``limit``."""
        return self._queue.dead_letters(limit)

    def retry_dead_letters(self, positions: Iterable[int] | None = None) -> int:
        """Put dead letters back into the queue, in their old places; return how many. None: all that could be sent.

        ``positions`` are those of their messages (``DeadLetter.message.position``).
        """
        if positions is None:
            positions = [letter.message.position for letter in self._queue.dead_letters(2**31)]
        return self._queue.retry_dead_letters(positions)

    def discard_dead_letters(self) -> int:
        """Throw every dead letter away, counted; return how many."""
        return self._queue.discard_dead_letters()

    def get_blacklist(self) -> list[HeldRule]:
        """The rules that are held now, each with its six attributes, ``added`` and ``last_seen``."""
        return self._blacklist.get_list()

    # One run

    def _begin(self) -> Stop:
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
        said = ""
        try:
            while not stop.is_set():
                try:
                    taken = self._take_over(stop)
                except (QueueGone, QueueClosed, QueueForked):
                    raise
                except QueueError as error:
                    if until is Until.HELD_UP:
                        raise
                    if str(error) != said:
                        said = str(error)
                        logger.error("%s Trying again.", said)  # noqa: TRY400 - the text says it all
                else:
                    if taken is not None:
                        return self._deliver(*taken, until, stop, raise_refused_token=raise_refused_token)
                    if until is Until.HELD_UP or (until is Until.DRAINED and not self._queue.size()):
                        break
                stop.wait(_STAND_BY_SECONDS)
        except (QueueGone, QueueClosed) as error:
            if until is Until.DRAINED:
                raise
            logger.warning("the reader ends: %s", error)
        finally:
            self._end(stop)
        return 0

    def _deliver(
        self,
        active: ActiveReader,
        transport: Transport,
        until: Until,
        stop: Stop,
        *,
        raise_refused_token: bool,
    ) -> int:
        make_courier = partial(self._courier, active, transport, stop)
        try:
            run = Run(active, make_courier, transport, self._config, stop)
            return run.go(until, raise_refused_token=raise_refused_token)
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

    def _courier(self, active: ActiveReader, transport: Transport, stop: Stop) -> Courier:
        return Courier(active, self._config, self._blacklist, transport, self._outage, stop=stop)

    def _route(self) -> Route:
        return route_from(proxy=self._config.proxy, ca_file=self._config.ca_file)

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
