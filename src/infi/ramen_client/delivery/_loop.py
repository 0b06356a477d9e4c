"""libcurl's event loop: its sockets and timer, in our selector.

libcurl says which sockets it wants watched and when it wants to be called next; the loop waits for the first of
these, for the caller's wake-up descriptor or for the caller's time, and tells libcurl what happened. A loop is used
by one thread. ``retire`` ends it without waiting: the handles are cleaned up on a thread of their own, since
libcurl waits there for resolver threads, which a dead name server holds for ten seconds and more.

**Callbacks.** Python runs a signal's handler at the start of whatever Python function comes next in the main thread. Were
that a callback inside libcurl, what the handler raises (a KeyboardInterrupt) would be printed and forgotten, or not even
printed. So libcurl's callbacks lead to no Python function: the timer's is a ``deque.append``; a socket's, which has four
arguments, is a ``max`` whose key function sends each of them to a generator, and that is always inside its ``try``. What
was collected is acted upon after each call of libcurl, and what was caught is raised there.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from collections import deque
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from ._curl import POLL_NONE, POLL_REMOVE, TIMER, CurlError, Easy, Transfer, end, new_multi

if TYPE_CHECKING:
    from collections.abc import Generator

    from .exchange import Request
    from .identity import Identity
    from .route import Route


_ANOTHER = object()
"""Marks the selector of another loop among what is waited for."""


class Loop:
    """One multi handle, the transfers under way in it and the idle ones, ready to be used again."""

    def __init__(self, route: Route, identity: Identity | None, wake_descriptor: int) -> None:
        self._route = route
        self._identity = identity
        self._owner = os.getpid()
        self._wake_descriptor = wake_descriptor
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake_descriptor, selectors.EVENT_READ)
        self._watched: dict[int, int] = {}
        self._timer: float | None = None
        self._timer_calls: deque[int] = deque(maxlen=1)
        self._all: list[Transfer] = []
        self._idle: list[Transfer] = []
        self._active: dict[Easy, Transfer] = {}
        self._retired = False
        self._socket_calls: list[Any] = []
        self._raised: list[BaseException] = []
        collector = _collect(self._socket_calls, self._raised)
        next(collector)
        self._multi = new_multi(partial(max, key=collector.send), self._timer_calls.append)

    @property
    def is_idle(self) -> bool:
        """Whether no transfer is under way."""
        return not self._active

    @property
    def due(self) -> float:
        """When libcurl wants to be called, events or not (monotonic)."""
        return inf if self._timer is None else self._timer

    def owns(self, transfer: Transfer) -> bool:
        """Whether the transfer was made here."""
        return transfer in self._all

    def attend(self, other: Loop) -> None:
        """End a ``turn`` when there is something to do in another loop."""
        self._selector.register(other._selector, selectors.EVENT_READ, _ANOTHER)

    def disregard(self, other: Loop) -> None:
        """No longer; to be called before that one retires."""
        self._selector.unregister(other._selector)

    def start(self, tag: int, request: Request) -> Transfer:
        """Begin a transfer; its first byte leaves in a later ``turn``. ValueError as ``Transfer.load``."""
        if not self._idle:
            transfer = Transfer(self._route, self._identity)
            self._all.append(transfer)
            self._idle.append(transfer)
        transfer = self._idle[-1]
        transfer.load(tag, request)
        self._idle.pop()
        self._active[transfer.easy] = transfer
        self._multi.add_handle(transfer.easy)
        self._heed_calls()
        return transfer

    def stop(self, transfer: Transfer) -> None:
        """End a transfer that is under way; its connection is closed, nothing more of it is sent."""
        self._detach(transfer)
        self.give_back(transfer)

    def give_back(self, transfer: Transfer) -> None:
        """A transfer that ended, and whose answer was read, may be used again."""
        transfer.unload()
        self._idle.append(transfer)

    def turn(self, latest: float) -> bool:
        """Wait for one event, at most until ``latest`` (monotonic), and let libcurl act; True if woken.

        Raises ``CurlError`` if libcurl itself gives up (out of memory, say).
        """
        now = monotonic()
        if self._timer is not None and self._timer <= now:
            self._timer = None
            self._multi.socket_action(TIMER, 0)
            self._heed_calls()
            # What ended by this, and a wake-up, must be seen before any waiting.
            latest = now
        until = latest if self._timer is None else min(latest, self._timer)
        woken = False
        ready = self._selector.select(max(0.0, until - now))
        if not ready and monotonic() < until:
            self._renew_selector()
        for key, events in ready:
            if key.fd == self._wake_descriptor:
                woken = True
            elif (
                key.data is not _ANOTHER
            ):  # an earlier event of this turn may have closed it: libcurl ignores such a one
                self._multi.socket_action(key.fd, events)
                self._heed_calls()
        return woken

    def ended(self) -> list[tuple[Transfer, int, str]]:
        """The transfers that ended, with libcurl's code (0: complete) and text; each is told once."""
        ended: list[tuple[Transfer, int, str]] = []
        remaining = 1
        while remaining:
            remaining, complete, failed = self._multi.info_read()
            ended += [(self._active[easy], 0, "") for easy in complete]
            ended += [(self._active[easy], code, text) for easy, code, text in failed]
        for transfer, _, _ in ended:
            self._detach(transfer)
        return ended

    def retire(self) -> None:
        """Abandon everything, at once. In a forked child: leave the parent's things alone."""
        if self._retired or os.getpid() != self._owner:
            return
        self._retired = True
        self._selector.close()
        # RuntimeError: no thread to be had, or the interpreter is ending. The handles then live until the process ends.
        with contextlib.suppress(RuntimeError):
            threading.Thread(target=self._clean_up, name="ramen-transport-clean-up", daemon=True).start()

    def _clean_up(self) -> None:
        for transfer in self._all:
            if transfer.easy in self._active:
                with contextlib.suppress(CurlError):  # an exception may have come between adding and noting
                    self._multi.remove_handle(transfer.easy)
            end(transfer.easy)
        self._all.clear()
        self._idle.clear()
        self._active.clear()
        end(self._multi)

    def _detach(self, transfer: Transfer) -> None:
        self._multi.remove_handle(transfer.easy)
        del self._active[transfer.easy]
        self._heed_calls()

    def _heed_calls(self) -> None:
        """Do what libcurl has asked for by its callbacks; raise what was raised in them."""
        if self._raised:
            raise self._raised.pop()
        if self._timer_calls:
            milliseconds = self._timer_calls.pop()
            self._timer = None if milliseconds < 0 else monotonic() + milliseconds / 1000
        if self._socket_calls:
            self._watch_sockets()

    def _renew_selector(self) -> None:
        """Watch the same with a new selector: the old one was woken by what is not watched any more.

        Linux's epoll forgets a closed descriptor only when nobody holds its file open; but a child that was forked meanwhile does.
        """
        old, self._selector = self._selector, selectors.DefaultSelector()
        for key in old.get_map().values():
            self._selector.register(key.fd, key.events, key.data)
        old.close()

    def _watch_sockets(self) -> None:
        calls = iter(self._socket_calls)
        wanted: dict[int, int] = {}
        for what, descriptor, _, _ in zip(calls, calls, calls, calls, strict=True):
            if what in {POLL_REMOVE, POLL_NONE}:
                # It may be closed by now, and its number used again: forgetting it is safe, all else must wait.
                wanted.pop(descriptor, None)
                if self._watched.pop(descriptor, None) is not None:
                    self._selector.unregister(descriptor)
            else:
                wanted[descriptor] = what
        self._socket_calls.clear()
        for descriptor, what in wanted.items():
            if descriptor not in self._watched:
                self._selector.register(descriptor, what)
            elif self._watched[descriptor] != what:
                self._selector.modify(descriptor, what)
            self._watched[descriptor] = what


def _collect(calls: list[Any], raised: list[BaseException]) -> Generator[int, object, None]:
    """Note every value that is sent; catch what signal handlers raise meanwhile (that value is lost)."""
    while True:
        try:
            while True:
                calls.append((yield 0))
        except GeneratorExit:
            return
        except BaseException as exception:  # noqa: BLE001 (it is raised again, outside of libcurl)
            raised.append(exception)
