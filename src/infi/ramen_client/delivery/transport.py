"""The transport: many POSTs under way at once, on one thread, over libcurl's multi interface.

    transport = Transport(route_from(proxy=None, ca_file=None))
    transport.start(7, Request(url, headers, body, timeout_seconds=20))
    for tag, outcome in transport.wait(5):
        ...  # tag 7: an Answer (a complete HTTP answer, whatever its status) or a Failure

Invariants:

- Each started tag is reported once by ``wait``, as an ``Answer`` or a ``Failure``, at the latest when its time-out has
  run out (which bounds resolving, connecting, sending and the slowest drip of an answer), unless it was cancelled.
- Nothing raises for what the network, the server, the proxy or a file does: that is a ``Failure``. What raises
  is misuse (a tag twice, use after ``close``, use in a forked child).
- Memory: an answer's head and body are bounded, an answer beyond the bounds is a ``Failure`` (its status is not
  believed, so its message stays in the queue).
- The caller is never blocked: not by ``close`` or ``cancel`` while a resolver, a connection or an answer hangs.
- Redirects are never followed, no cookie, no ``.netrc``, no ``Expect: 100-continue``, no compressed answers; the token
  goes to the one server that the URL names, over verified TLS from 1.2 on where the URL says https.

**Connections** are kept and used again. When the server closed one meanwhile, libcurl notices, opens another and sends
the request there; the caller sees nothing of it. It does the same when a *reused* connection dies after the request
was sent and before any byte of the answer came, so a server that stored the message and then dropped the connection
gets the POST a second time (at most five times more) without our doing. That is safe by the protocol, since the message's
reqid, or the batch's number, is the same; ``Failure.connected`` takes it into account.

**Wake-up.** ``wake`` may be called from any thread and any signal handler; many calls before one ``wait`` count as one.

**Fork.** A transport belongs to the process that made it. In a child (by whatever fork) every use raises RuntimeError, and
nothing that happens there, the end of the interpreter included, touches the parent's connections: see ``_curl``.

**Trust.** libcurl keeps a CA bundle in memory for a day. After a failed TLS handshake the transport drops what it holds as
soon as nothing is in flight, so that a mended bundle is read at the next attempt.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from time import monotonic
from typing import TYPE_CHECKING

from ._loop import Loop
from .exchange import Answer, Request
from .failures import Failure, FailureKind, describe, setup_failure
from .route import Route, route_from

if TYPE_CHECKING:
    from ._curl import Transfer

__all__ = ["Answer", "Failure", "FailureKind", "Request", "Route", "Transport", "route_from"]

_MAX_WAIT_SECONDS = 3600.0


class Transport:
    """POSTs over one set of connections. One thread uses it; only ``wake`` is for others.

    A transport that is dropped without ``close`` is cleaned up all the same.
    """

    def __init__(self, route: Route) -> None:
        self._route = route
        self._owner = os.getpid()
        self._bell = _Bell()
        self._in_flight: dict[int, Transfer] = {}
        self._outcomes: dict[int, Answer | Failure] = {}
        self._distrusted = False
        self._closed = False
        self._open_loop()

    @property
    def in_flight(self) -> int:
        """How many tags were started and neither reported nor cancelled."""
        return len(self._in_flight) + len(self._outcomes)

    def start(self, tag: int, request: Request) -> None:
        """Begin a POST; ``wait`` does the work and reports it under this tag.

        Raises ValueError if the tag is in flight, RuntimeError after ``close`` and in a forked child.
        """
        self._check_usable()
        if tag in self._in_flight or tag in self._outcomes:
            raise ValueError(f"tag {tag} is in flight")
        if self._distrusted and not self._in_flight:
            self._renew()
        if self._route.ca_file is None and request.url.startswith("https:"):
            self._outcomes[tag] = setup_failure(
                "this machine has no bundle of certificate authorities: install one, or name a file as `ca_file`"
            )
            return
        try:
            self._in_flight[tag] = self._loop.start(tag, request)
        except ValueError as error:
            self._outcomes[tag] = setup_failure(str(error))

    def wait(self, timeout_seconds: float) -> list[tuple[int, Answer | Failure]]:
        """The transfers that have ended: as soon as one has, or empty after ``wake`` or ``timeout_seconds``.

        Raises RuntimeError after ``close`` and in a forked child.
        """
        self._check_usable()
        latest = monotonic() + min(timeout_seconds, _MAX_WAIT_SECONDS)
        woken = False
        while True:
            if self._outcomes:
                latest = 0.0
            woken = self._loop.turn(latest)
            self._collect()
            if woken:
                self._bell.silence()
            if woken or self._outcomes or monotonic() >= latest:
                break
        outcomes = list(self._outcomes.items())
        self._outcomes.clear()
        return outcomes

    def cancel(self, tag: int) -> None:
        """Abandon a transfer: nothing more of it is sent, and it is not reported. Without effect for other tags.

        Whether the server has received it is not known.
        """
        self._check_usable()
        self._outcomes.pop(tag, None)
        if (transfer := self._in_flight.pop(tag, None)) is not None:
            self._loop.stop(transfer)

    def wake(self) -> None:
        """Make ``wait`` return: the one under way, or else the next. For any thread or signal handler; never blocks."""
        if os.getpid() == self._owner:
            self._bell.ring()

    def close(self) -> None:
        """Abandon what is in flight and let go of all connections, without waiting. May be called again."""
        self._closed = True
        self._in_flight.clear()
        self._outcomes.clear()
        self._retire_loop()

    def _check_usable(self) -> None:
        if self._closed:
            raise RuntimeError("the transport is closed")
        if os.getpid() != self._owner:
            raise RuntimeError(
                "the transport belongs to the process that was forked: build a new one in the child"
            )

    def _collect(self) -> None:
        for transfer, code, text in self._loop.ended():
            request = transfer.request
            if request is None:  # cancelled while its end was on the way to us
                continue
            ended = transfer.facts(code, text) if code else transfer.answer()
            outcome = ended if isinstance(ended, Answer) else describe(ended, request, self._route)
            if isinstance(outcome, Failure) and outcome.kind is FailureKind.TLS:
                self._distrusted = True
            del self._in_flight[transfer.tag]
            self._outcomes[transfer.tag] = outcome
            self._loop.give_back(transfer)

    def _open_loop(self) -> None:
        self._loop = Loop(self._route, self._bell.descriptor)
        # Not at exit: what the interpreter's end finds open is left to the operating system.
        self._retire_loop = weakref.finalize(self, self._loop.retire)
        self._retire_loop.atexit = False

    def _renew(self) -> None:
        self._retire_loop()
        self._open_loop()
        self._distrusted = False


class _Bell:
    """A pipe to ourselves. It stays open as long as anybody can ring it: a descriptor's number is soon used again."""

    def __init__(self) -> None:
        self.descriptor, self._write_end = os.pipe()
        os.set_blocking(self.descriptor, False)
        os.set_blocking(self._write_end, False)
        self._rung = False

    def ring(self) -> None:
        if not self._rung:
            self._rung = True
            with contextlib.suppress(BlockingIOError):
                os.write(self._write_end, b"\0")

    def silence(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self.descriptor, 4096)) == 4096:  # noqa: PLR2004 (the size asked for)
                pass
        # Only now: whoever rings between the read and this is heard by the return of the wait that is under way.
        self._rung = False

    def __del__(self) -> None:
        os.close(self.descriptor)
        os.close(self._write_end)
