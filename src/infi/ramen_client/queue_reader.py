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

from infi.ramen_protocol import Envelope, Verdict, classify, compress, message_target, origin

from ._opening import open_queue
from .blacklist import Blacklist, HeldRule, StoredBlacklist
from .config import QueueReaderConfig
from .delivery.courier import Courier, Step, request_headers
from .delivery.outage import OutageLog
from .delivery.run import Run, Until
from .delivery.transport import Answer, Request, Transport, route_from
from .errors import (
    AuthenticationError,
    AutheticationError,
    InvalidMessage,
    QueueClosed,
    QueueGone,
)
from .storage import ActiveReader

if TYPE_CHECKING:
    from types import TracebackType

    from .delivery.transport import Route

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
            raise InvalidMessage("a QueueReader is built with a QueueReaderConfig")
        config.validate()
        self._config = config
        self._queue = open_queue(config)
        self._blacklist = StoredBlacklist(config, self._queue)
        self._outage = OutageLog()
        # Guards everything below.
        self._guard = threading.Lock()
        self._transport: tuple[int, Route, Transport] | None = None
        self._stops: list[threading.Event] = []
        self._run_is_expected = False
        self._stopped_early = False

    def __repr__(self) -> str:
        return f"<QueueReader {self._queue!r} to {self._config.hostname}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop, and let go of the queue and of the connections; messages stay in the queue."""
        self.stop()
        with self._guard:
            if self._transport is not None and not self._stops:
                self._transport[2].close()
                self._transport = None
        self._queue.close()

    def consume_one(self) -> int:
        """Handle the oldest message: EMPTY, ACCEPTED, DROPPED or RETRY. Makes its attempt at once, whatever happened before.

        Raises ``AuthenticationError`` when the server refuses the token; the message stays in the queue.
        """
        active = ActiveReader.activate(self._queue)
        if active is None:
            return self.RETRY
        stop = self._new_stop()
        try:
            return int(self._courier(active, stop).step())
        finally:
            self._forget_stop(stop)
            active.close()

    def run(self, blocking: bool = True) -> int:
        """Deliver messages and return how many were accepted or dropped.

        ``blocking``: go on until ``stop``, waiting for messages and retrying for ever. Otherwise return when the queue is empty, or
        after a failure, or while the server's ``Retry-After`` lasts. Raises ``AuthenticationError`` when the token is refused.
        """
        return self._run(Until.STOPPED if blocking else Until.HELD_UP, raise_refused_token=True)

    def drain(self, timeout: float | None = None) -> bool:
        """Deliver until the queue is empty; False when ``timeout`` seconds passed first, or after ``stop``.

        For scripts that end soon. While another reader is active, waits for that one to do it. Raises ``AuthenticationError``.
        """
        timer = None
        if timeout is not None:
            timer = threading.Timer(timeout, self.stop)
            timer.daemon = True
            timer.start()
        try:
            self._run(Until.DRAINED, raise_refused_token=True)
        finally:
            if timer is not None:
                timer.cancel()
        return self._queue.size() == 0

    def stop(self) -> None:
        """Make ``run`` return within 0.1 s, out of whatever it does; nothing that is pushed afterwards is sent.

        From any thread. A later ``run`` starts again.
        """
        with self._guard:
            for stop in self._stops:
                stop.set()
            self._stopped_early = self._run_is_expected
            if self._transport is not None:
                self._transport[2].wake()

    def test_connection(self) -> bool:
        """Whether the server accepts a test message with this configuration; says in the log what fails."""
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
        request = Request(
            server + message_target(target),
            request_headers(self._config),
            compress(b"{}"),
            float(self._config.server_timeout),
        )
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
        judgement = classify(outcome.status, outcome.headers, outcome.body)
        if judgement.verdict is not Verdict.ACCEPTED:
            logger.warning(
                "connection test of %s failed: it answered %d: %s", server, outcome.status, judgement.details
            )
        return judgement.verdict is Verdict.ACCEPTED

    def get_blacklist(self) -> list[HeldRule]:
        """The rules that are held now, each with its six attributes, ``added`` and ``last_seen``."""
        return StoredBlacklist(self._config, self._queue).get_list()

    def expect_run(self) -> None:
        """Have the next ``run`` obey a ``stop`` that comes before it has begun (in the thread that will call it)."""
        with self._guard:
            self._run_is_expected = True

    def run_in_background(self) -> None:
        """``run`` for a thread of its own: a refused token is logged, backed off from and tried again."""
        self._run(Until.STOPPED, raise_refused_token=False)

    # One run

    def _run(self, until: Until, *, raise_refused_token: bool) -> int:
        stop = self._new_stop(for_run=True)
        handled = 0
        try:
            while not stop.is_set():
                active = ActiveReader.activate(self._queue)
                if active is not None:
                    try:
                        run = Run(
                            active,
                            partial(self._courier, active, stop),
                            self._usable_transport(),
                            self._config,
                            stop,
                        )
                        handled = run.go(until, raise_refused_token=raise_refused_token)
                    finally:
                        active.close()
                    break
                if until is Until.HELD_UP or (until is Until.DRAINED and not self._queue.size()):
                    break
                stop.wait(_STAND_BY_SECONDS)
        except (QueueGone, QueueClosed) as error:
            logger.info("the reader ends: %s", error)
        finally:
            self._forget_stop(stop)
        return handled

    def _courier(self, active: ActiveReader, stop: threading.Event) -> Courier:
        return Courier(
            active, self._config, self._blacklist, self._usable_transport(), self._outage, stop=stop
        )

    def _route(self) -> Route:
        return route_from(proxy=self._config.proxy, ca_file=self._config.ca_file)

    def _usable_transport(self) -> Transport:
        """The transport of this process, built anew after a fork and when the configuration's route has changed."""
        route = self._route()
        with self._guard:
            if self._transport is not None:
                process, built_for, transport = self._transport
                if process == os.getpid() and built_for == route:
                    return transport
                if process == os.getpid():
                    transport.close()
            transport = Transport(route)
            self._transport = (os.getpid(), route, transport)
            return transport

    # Stopping

    def _new_stop(self, *, for_run: bool = False) -> threading.Event:
        stop = threading.Event()
        with self._guard:
            self._stops.append(stop)
            if for_run:
                if self._stopped_early:
                    stop.set()
                self._run_is_expected = self._stopped_early = False
        return stop

    def _forget_stop(self, stop: threading.Event) -> None:
        with self._guard:
            self._stops.remove(stop)
