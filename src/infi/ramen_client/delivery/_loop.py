"""libcurl's event loop: its sockets and timer, in our selector.

libcurl says which sockets it wants watched and when it wants to be called next; the loop waits for the first of
these, for the caller's wake-up descriptor or for the caller's time, and tells libcurl what happened. A loop is used
by one thread. ``retire`` ends it without waiting: the handles are cleaned up on a thread of their own, since
libcurl waits there for resolver threads, which a dead name server holds for ten seconds and more.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from time import monotonic
from typing import TYPE_CHECKING

from ._curl import POLL_NONE, POLL_REMOVE, TIMER, Easy, Transfer, end, new_multi

if TYPE_CHECKING:
    from .exchange import Request
    from .route import Route


class Loop:
    """One multi handle, the transfers under way in it and the idle ones, ready to be used again."""

    def __init__(self, route: Route, wake_descriptor: int) -> None:
        self._route = route
        self._owner = os.getpid()
        self._wake_descriptor = wake_descriptor
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake_descriptor, selectors.EVENT_READ)
        self._watched: dict[int, int] = {}
        self._timer: float | None = None
        self._idle: list[Transfer] = []
        self._active: dict[Easy, Transfer] = {}
        self._retired = False
        self._multi = new_multi(self._on_socket, self._on_timer)

    def start(self, tag: int, request: Request) -> Transfer:
        """Begin a transfer; its first byte leaves in a later ``turn``. ValueError as ``Transfer.load``."""
        transfer = self._idle.pop() if self._idle else Transfer(self._route)
        try:
            transfer.load(tag, request)
        except ValueError:
            self._idle.append(transfer)
            raise
        self._multi.add_handle(transfer.easy)
        self._active[transfer.easy] = transfer
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
        """Wait for one event, at most until ``latest`` (monotonic), and let libcurl act; True if woken."""
        now = monotonic()
        if self._timer is not None and self._timer <= now:
            self._timer = None
            self._multi.socket_action(TIMER, 0)
            now = monotonic()
            # What ended by this, and a wake-up, must be seen before any waiting.
            latest = now
        until = latest if self._timer is None else min(latest, self._timer)
        woken = False
        for key, events in self._selector.select(max(0.0, until - now)):
            if key.fd == self._wake_descriptor:
                woken = True
            elif key.fd in self._watched:  # an earlier event of this turn may have closed it
                self._multi.socket_action(key.fd, events)
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
        for transfer in list(self._active.values()):
            self._detach(transfer)
            end(transfer.easy)
        for transfer in self._idle:
            end(transfer.easy)
        self._idle.clear()
        end(self._multi)

    def _detach(self, transfer: Transfer) -> None:
        self._multi.remove_handle(transfer.easy)
        del self._active[transfer.easy]

    def _on_socket(self, what: int, descriptor: int, _multi: object, _data: object) -> None:
        if self._retired:
            return
        watched = self._watched
        if what in {POLL_REMOVE, POLL_NONE}:
            if watched.pop(descriptor, None) is not None:
                self._selector.unregister(descriptor)
        elif descriptor not in watched:
            self._selector.register(descriptor, what)
            watched[descriptor] = what
        elif watched[descriptor] != what:
            self._selector.modify(descriptor, what)
            watched[descriptor] = what

    def _on_timer(self, milliseconds: int) -> None:
        self._timer = None if milliseconds < 0 else monotonic() + milliseconds / 1000
