"""The transport: many POSTs under way at once, on one thread, over libcurl's multi interface.

    transport = Transport(route_from(proxy=None, ca_file=None))
    transport.start(7, Request(url, headers, body, timeout_seconds=20))
    for tag, outcome in transport.wait(5):
        ...  # tag 7: an Answer (a complete HTTP answer, whatever its status) or a Failure

Invariants:

- Each started tag is reported once by ``wait``, as an ``Answer`` or a ``Failure``, at the latest when its time-out has
  run out (which bounds resolving, connecting, sending and the slowest drip of an answer), unless it was cancelled.
- A 407 is an ``Answer`` only where no proxy is used; a proxy's own is a ``Failure`` of the proxy.
- Nothing raises for what the network, the server, the proxy or a file does: that is a ``Failure``. What raises
  is misuse (a tag twice, use after ``close``, use in a forked child).
- Memory: an answer's head and body are bounded, an answer beyond the bounds is a ``Failure`` (its status is not
  believed, so its message stays in the queue).
- The caller is never blocked: not by ``close`` or ``cancel`` while a resolver, a connection or an answer hangs.
- Redirects are never followed, no cookie, no ``.netrc``, no ``Expect: 100-continue``, no compressed answers; the token
  goes to the one server that the URL names, over verified TLS from 1.2 on where the URL says https.

**Connections** are kept and used again. When the server closed one meanwhile, libcurl notices, opens another and sends
the request there; the caller sees nothing of it. It does the same when a *reused* connection dies after the request
was sent and before the answer's first line came, so a server that stored the message and then dropped the connection
gets the POST a second time (at most five times more) without our doing. That is safe by the protocol, since the message's
reqid, or the batch's number, is the same; ``Failure.connected`` takes it into account.

**Wake-up.** ``wake`` may be called from any thread and any signal handler; many calls before one ``wait`` count as one.

**Exceptions.** What a signal handler raises (KeyboardInterrupt, say) comes out of whatever call is under way. The transport
stays usable: what was in flight is reported as failed by the next ``wait``, over new connections from then on.

**Fork.** A transport belongs to the process that made it. In a child (by whatever fork) every use raises RuntimeError, and
nothing that happens there, the end of the interpreter included, touches the parent's connections: see ``_curl``. (The
child does hold copies of their descriptors: after the parent's ``close`` the server sees them end when the child ends too.)

**Trust.** libcurl keeps a CA bundle in memory for a day, and connections and TLS sessions under the names of files. So after
one of the route's files has changed (looked at once a second, see ``_files``), and after every failure of TLS or of our
own set-up, the next request begins in a loop of its own, with files that are read anew; what is under way ends in the old one.

**A server that moves** is found: no connection takes a new request when it is older than five minutes or was idle for 30
seconds, and a name's addresses are looked up again for each connection that is made more than five seconds later.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from time import monotonic
from typing import TYPE_CHECKING

from ._curl import CurlError
from ._files import FileWatch
from ._loop import Loop
from ._loops import Loops
from .exchange import Answer, Request
from .failures import Failure, FailureKind, setup_failure
from .identity import read_identity
from .route import Route, route_from, route_of
from .sayings import describe

if TYPE_CHECKING:
    from ._curl import Transfer

__all__ = ["Answer", "Failure", "FailureKind", "Request", "Route", "Transport", "route_from", "route_of"]

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
        self._torn = False
        self._open_loops()

    @property
    def in_flight(self) -> int:
        """How many tags were started and neither reported nor cancelled."""
        return len(self._in_flight) + len(self._outcomes)

    def start(self, tag: int, request: Request) -> None:
        """Begin a POST; ``wait`` does the work and reports it under this tag.

        Raises ValueError if the tag is in flight, RuntimeError after ``close`` and in a forked child.
        """
        self._make_ready()
        if tag in self._in_flight or tag in self._outcomes:
            raise ValueError(f"tag {tag} is in flight")
        if self._distrusted or self._files.changed():
            self._torn = True
            self._loops.renew(self._new_loop())
            self._torn = False
        if self._unusable is not None and request.url.startswith("https:"):
            self._outcomes[tag] = self._unusable
            self._distrusted = True
            return
        self._torn = True
        try:
            self._in_flight[tag] = self._loops.start(tag, request)
        except ValueError as error:
            self._outcomes[tag] = setup_failure(str(error))
        self._torn = False

    def wait(self, timeout_seconds: float) -> list[tuple[int, Answer | Failure]]:
        """The transfers that have ended: as soon as one has, or empty after ``wake`` or ``timeout_seconds``.

        Raises RuntimeError after ``close`` and in a forked child, and whatever a signal handler raises meanwhile.
        """
        self._make_ready()
        latest = monotonic() + min(timeout_seconds, _MAX_WAIT_SECONDS)
        self._torn = True
        woken = False
        while not (woken or self._outcomes):
            woken = self._turn(latest)
            if monotonic() >= latest:
                break
        self._torn = False
        outcomes = list(self._outcomes.items())
        self._outcomes.clear()
        return outcomes

    def cancel(self, tag: int) -> None:
        """Abandon a transfer: nothing more of it is sent, and it is not reported. Without effect for other tags.

        Whether the server has received it is not known.
        """
        self._make_ready()
        self._outcomes.pop(tag, None)
        if (transfer := self._in_flight.pop(tag, None)) is not None:
            self._torn = True
            self._loops.stop(transfer)
            self._torn = False

    def wake(self) -> None:
        """Make ``wait`` return: the one under way, or else the next. For any thread or signal handler; never blocks."""
        if os.getpid() == self._owner:
            self._bell.ring()

    def close(self) -> None:
        """Abandon what is in flight and let go of all connections, without waiting. May be called again."""
        self._closed = True
        self._in_flight.clear()
        self._outcomes.clear()
        self._retire_loops()

    def _make_ready(self) -> None:
        if self._closed:
            raise RuntimeError("the transport is closed")
        if os.getpid() != self._owner:
            raise RuntimeError(
                "the transport belongs to the process that was forked: build a new one in the child"
            )
        if self._torn:
            self._give_up("an exception in this process interrupted it")

    def _turn(self, latest: float) -> bool:
        try:
            woken, ended = self._loops.turn(latest)
        except CurlError as error:
            self._give_up(f"libcurl gave up: {error}")
            return False
        if woken:
            self._bell.silence()
        for transfer, code, text in ended:
            request = transfer.request
            if request is not None:
                self._outcomes[transfer.tag] = self._outcome(transfer, code, text, request)
                del self._in_flight[transfer.tag]
            self._loops.give_back(transfer)
        return woken

    def _outcome(self, transfer: Transfer, code: int, text: str, request: Request) -> Answer | Failure:
        ended = transfer.facts(code, text) if code else transfer.answer()
        if isinstance(ended, Answer):
            return ended
        failure = describe(ended, request, self._route)
        if failure.kind in {FailureKind.TLS, FailureKind.SETUP}:
            self._distrusted = True
        return failure

    def _open_loops(self) -> None:
        self._loops = Loops(self._new_loop())
        # Not at exit: what the interpreter's end finds open is left to the operating system.
        self._retire_loops = weakref.finalize(self, self._loops.retire)
        self._retire_loops.atexit = False

    def _new_loop(self) -> Loop:
        """A loop that knows the route's files as they are now."""
        self._distrusted = False
        self._files = FileWatch(self._route.files)  # before they are read
        identity = read_identity(self._route)
        self._unusable: Failure | None = None
        if isinstance(identity, Failure):
            self._unusable, identity = identity, None
        elif self._route.ca_file is None:
            self._unusable = setup_failure(
                "this machine has no bundle of certificate authorities",
                "install one, or name a file as `ca_file`",
            )
        return Loop(self._route, identity, self._bell.descriptor)

    def _give_up(self, why: str) -> None:
        """Start afresh: what was in flight is reported as failed, its fate unknown."""
        self._retire_loops()
        self._open_loops()
        for tag in self._in_flight:
            self._outcomes.setdefault(
                tag, Failure(FailureKind.BROKEN, f"the exchange was broken off: {why}", connected=True)
            )
        self._in_flight.clear()
        self._torn = False


class _Bell:
    """A pipe to ourselves. It stays open as long as anybody can ring it: a descriptor's number is soon used again."""

    def __init__(self) -> None:
        self._ends: tuple[int, ...] = ()
        self._ends = self.descriptor, self._write_end = os.pipe()
        for end in self._ends:
            os.set_blocking(end, False)
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
        for end in self._ends:
            os.close(end)
