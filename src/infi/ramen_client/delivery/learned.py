"""What the server's own answers taught about it: whether and how it takes batches, which codings it reads, what is too large.

Only answers that speak the protocol are listened to. Everything is kept over a restart (``ServerFacts``), written when it changes.

- **Codings**: 1.x's bytes until the server names what it reads (``Accept-Encoding``, or by offering batches, which are new); then
  gzip by re-framing for single messages, and zstd for batches, where both sides have it. A coding that is refused (415) is not used
  again in this process. A configured coding is used whatever the server says.
- **Batches**: offered by the ``Ramen-Batch`` header of each answer; an answer without it takes the offer back. A path that is not
  there (404, 405) stops them until the next offer that comes ``_OFFER_AGAIN_SECONDS`` later.
- **Too large** (413): half of it is the limit, for ``_LIMIT_FOR_SECONDS``; then larger ones are tried again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from infi.ramen_protocol import BatchOffer, Coding, Dedupe, accepted_codings, readable_codings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from infi.ramen_client.storage import ServerFacts

_OFFER_AGAIN_SECONDS = 60
_LIMIT_FOR_SECONDS = 3600

_MAX_HEADER_CHARS = 1024
"""What is longer is no header of a Ramen server, and is not kept."""

_SINGLE = (Coding.GZIP, Coding.LEGACY, Coding.IDENTITY)
"""For a message, best first: re-framing costs nothing; the others would compress again."""

_BATCH = (Coding.ZSTD, Coding.GZIP, Coding.IDENTITY)


class Learned:
    """What is known of one server. ``facts`` is what is to be kept; whoever changes it saves it."""

    def __init__(
        self,
        facts: ServerFacts,
        *,
        now_ms: Callable[[], int],
        batches_allowed: bool = True,
        coding: Coding | None = None,
    ) -> None:
        self.facts = facts
        self._now_ms = now_ms
        self._batches_allowed = batches_allowed
        self._forced = coding
        self._refused: set[Coding] = set()
        self._offer = None if facts.batch_offer is None else BatchOffer.parse(facts.batch_offer)
        self._knows_messages = False
        self._note_dedupe()

    def hear(self, headers: Mapping[str, str]) -> bool:
        """Read an answer that speaks the protocol; whether it said anything new that is to be kept."""
        accept, offer = _header(headers, "accept-encoding"), _header(headers, "ramen-batch")
        accept = self.facts.accept_encoding if accept is None else accept
        if offer is not None and BatchOffer.parse(offer) is None:
            offer = None
        facts = self.facts
        if (accept, offer) == (facts.accept_encoding, facts.batch_offer):
            return False
        self._offer = None if offer is None else BatchOffer.parse(offer)
        self._note_dedupe()
        self.facts = replace(facts, accept_encoding=accept, batch_offer=offer)
        return True

    @property
    def offer(self) -> BatchOffer | None:
        """How batches are taken; None: send messages one by one."""
        if not self._batches_allowed or self._offer is None:
            return None
        refused_at = self.facts.batch_refused_at_ms
        if refused_at is not None and self._seconds_since(refused_at) < _OFFER_AGAIN_SECONDS:
            return None
        return self._offer

    @property
    def path(self) -> str:
        """Where a batch that lies frozen is sent, offered or not."""
        return _USUAL_PATH if self._offer is None else self._offer.path

    @property
    def knows_messages(self) -> bool:
        """Whether the server recognises each message, whatever version and batch it comes by.

        As it said last, also after it took its offer back; False where this process never heard it.
        """
        return self._knows_messages

    @property
    def most_bytes(self) -> int | None:
        """What a batch may take, plain, as far as it was learned the hard way."""
        limit, since = self.facts.body_limit, self.facts.body_limit_at_ms
        if limit is None or since is None or self._seconds_since(since) >= _LIMIT_FOR_SECONDS:
            return None
        return limit

    def no_batches(self) -> None:
        """The path of its offer is not there."""
        self.facts = replace(self.facts, batch_refused_at_ms=self._now_ms())

    def batches_work(self) -> bool:
        """It took a batch; whether that is news to be kept."""
        if self.facts.batch_refused_at_ms is None:
            return False
        self.facts = replace(self.facts, batch_refused_at_ms=None)
        return True

    def too_large(self, size: int) -> None:
        """A batch of so many plain bytes was too large."""
        self.facts = replace(self.facts, body_limit=max(1, size // 2), body_limit_at_ms=self._now_ms())

    def message_coding(self) -> Coding:
        """How a single message is sent."""
        return self._choose(_SINGLE, Coding.LEGACY)

    def batch_coding(self) -> Coding:
        """How a batch is sent."""
        return self._choose(_BATCH, Coding.GZIP)

    def refused(self, coding: Coding) -> bool:
        """A coding was refused (415); whether the server reads another one that is left to try."""
        self._refused.add(coding)
        if self._forced is not None or self.facts.accept_encoding is None:
            return False
        return not {self.message_coding(), self.batch_coding()} <= self._refused

    def _choose(self, best_first: tuple[Coding, ...], unknown: Coding) -> Coding:
        if self._forced is not None:
            return self._forced
        said = self.facts.accept_encoding
        if said is None:
            return unknown
        writable = {"gzip", "identity", *readable_codings()}
        accepted = accepted_codings(said) & writable
        usable = (coding for coding in best_first if coding.label in accepted and coding not in self._refused)
        return next(usable, unknown)

    def _note_dedupe(self) -> None:
        if self._offer is not None:
            self._knows_messages = self._offer.dedupe is Dedupe.MESSAGE

    def _seconds_since(self, at_ms: int) -> float:
        # A wall clock that was set back makes it as if it had been just now.
        return max(0.0, (self._now_ms() - at_ms) / 1000)


_USUAL_PATH = "/ramen/v2/batch"


def _header(headers: Mapping[str, str], name: str) -> str | None:
    value = headers.get(name)
    return value if value is not None and len(value) <= _MAX_HEADER_CHARS else None
