"""The loop that new transfers go to, and those before it, which only end what they have under way.

A new loop shares nothing with the one before it: no connection, no TLS session, no certificate, no authority. So ``renew`` makes
whatever has changed on disk count from the next transfer on, and no transfer that is under way fails for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._curl import Transfer
    from ._loop import Loop
    from .exchange import Request


class Loops:
    """One current loop and its predecessors, each of which has at least one transfer under way. Used by one thread."""

    def __init__(self, first: Loop) -> None:
        self._current = first
        self._older: list[Loop] = []

    def renew(self, following: Loop) -> None:
        """Begin the next transfers in another loop."""
        self._older.append(self._current)
        self._current = following
        for loop in self._older:
            following.attend(loop)
        self._retire_idle()

    def start(self, tag: int, request: Request) -> Transfer:
        """As ``Loop.start``."""
        return self._current.start(tag, request)

    def stop(self, transfer: Transfer) -> None:
        """As ``Loop.stop``."""
        self._loop_of(transfer).stop(transfer)
        self._retire_idle()

    def give_back(self, transfer: Transfer) -> None:
        """As ``Loop.give_back``."""
        self._loop_of(transfer).give_back(transfer)
        self._retire_idle()

    def turn(self, latest: float) -> tuple[bool, list[tuple[Transfer, int, str]]]:
        """As ``Loop.turn`` and then ``Loop.ended``, for all of them."""
        woken = False
        ended: list[tuple[Transfer, int, str]] = []
        for loop in self._older:
            woken |= loop.turn(0)
            ended += loop.ended()
        if self._older:
            latest = 0 if ended else min(latest, *(loop.due for loop in self._older))
        woken |= self._current.turn(latest)
        ended += self._current.ended()
        return woken, ended

    def retire(self) -> None:
        """As ``Loop.retire``, for all of them."""
        for loop in (*self._older, self._current):
            loop.retire()

    def _loop_of(self, transfer: Transfer) -> Loop:
        return next((loop for loop in self._older if loop.owns(transfer)), self._current)

    def _retire_idle(self) -> None:
        if not self._older:
            return
        for loop in self._older:
            if loop.is_idle:
                self._current.disregard(loop)
                loop.retire()
        self._older = [loop for loop in self._older if not loop.is_idle]
