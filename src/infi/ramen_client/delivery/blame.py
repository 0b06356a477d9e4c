"""Whose fault it is when the server does not take a message now: that of the message's stream, or everybody's.

A stream that is told to wait holds up no other; a server that has enough is left alone by all. An answer tells the two apart only in
the light of others:

- Other streams were accepted since this one was last refused: it is the stream's own.
- It is an answer of the protocol, and no other stream was refused since the last acceptance: the stream's own, as far as one knows.
- Else everybody's: there is no other stream, or a second one is refused as well, or what came is no answer of a Ramen server.

Pure: it only counts.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infi.ramen_client.storage import Stream


class Blame:
    """What happened to the streams of one queue, lately."""

    def __init__(self) -> None:
        self._accepted = 0
        self._accepted_of: Counter[Stream] = Counter()
        self._at_refusal: dict[Stream, int] = {}
        self._refused_in_a_row: set[Stream] = set()

    def accepted(self, stream: Stream, messages: int = 1) -> None:
        """The server took messages of a stream."""
        self._accepted += messages
        if self._at_refusal or self._refused_in_a_row:
            self._accepted_of[stream] += messages
            self._at_refusal.pop(stream, None)
            self._refused_in_a_row.clear()
        else:
            # Nobody's refusal is to be compared with: what was counted is of no use any more.
            self._accepted_of.clear()
            self._accepted = 0

    def is_own(self, stream: Stream, *, explained: bool, is_alone: bool) -> bool:
        """Count a refusal; whether it is the stream's own. ``is_alone``: no other stream has anything to send."""
        others = self._accepted - self._accepted_of[stream]
        before = self._at_refusal.get(stream)
        self._at_refusal[stream] = others
        self._refused_in_a_row.add(stream)
        if before is not None and others > before:
            return True
        return explained and not is_alone and self._refused_in_a_row == {stream}
