"""Decisions about a batch (protocol section 2): what ``admission`` is for one message. Pure, but for the JSON check.

    ``admit``    the head: path, type, id, declared length
    ``read``     the body: coding, decoded length, framing, digest; then each record by itself: names, scope, size, JSON
    ``judge``    each record that is in order: blacklist rules, rate

What is wrong with the batch is the answer to all of it, and nothing is stored; what is wrong with a record is that record's result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from infi.ramen_protocol import (
    BATCH_CONTENT_TYPE,
    BatchId,
    BatchOffer,
    FramingError,
    Record,
    RefusedRequest,
    TooManyRecords,
    check_envelope,
    decode_records,
    encode_results,
)

from . import admission
from .admission import ACCEPTED, DUPLICATE, Decision, Headers, Kind, LargerThanTried
from .stores import NewMessage, Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .auth import Token
    from .limits import Limits
    from .rate import RateLimiter
    from .rules import StoredRule
    from .settings import Current
    from .stores import Store

PATH = "/ramen/v2/batch"

RECORD_BYTES = 1024
"""What a record takes beside its payload while it is handled."""

COPIES = 2
"""How often the decoded bytes are in memory while they are read: once whole, once as payloads."""

_ACCEPTED = admission.result(ACCEPTED)
_DUPLICATE = admission.result(DUPLICATE)
_WIRE_ROOM_BYTES = 64 * 1024  # what cannot be compressed grows by less than a thousandth


@dataclass(frozen=True, slots=True)
class AdmittedBatch:
    """A request whose head is in order. ``declared_bytes`` is None where no length was declared."""

    token: Token
    batch: BatchId
    coding: str | None
    declared_bytes: int | None


@dataclass(frozen=True, slots=True)
class ReadBatch:
    """The records of a batch, and of each what is wrong with it (None: nothing so far)."""

    records: list[Record] = field(repr=False)
    faults: list[Decision | None]

    @property
    def memory_bytes(self) -> int:
        """What it takes."""
        return sum(len(record.payload) + RECORD_BYTES for record in self.records)


def offer(store: Store, limits: Limits) -> BatchOffer:
    """Make the offer that is announced."""
    return BatchOffer(
        PATH, int(limits.max_batch_messages), limits.batch_bytes, store.dedupe, store.window_seconds
    )


def max_wire_bytes(limits: Limits) -> int:
    """Tell how large a batch may be under its content coding."""
    return limits.batch_bytes + _WIRE_ROOM_BYTES


def admit(token: Token, headers: Headers, limits: Limits) -> AdmittedBatch | Decision:
    """Judge what comes before the body of a batch."""
    kinds = [value for name, value in headers if name == b"content-type"]
    if kinds != [BATCH_CONTENT_TYPE.encode()]:
        return Decision(Kind.BAD_REQUEST, f"the Content-Type of a batch is {BATCH_CONTENT_TYPE}")
    ids = [value for name, value in headers if name == b"ramen-batch-id"]
    batch = BatchId.parse(ids[0].decode("latin-1")) if len(ids) == 1 else None
    if batch is None:
        return Decision(
            Kind.BAD_REQUEST, "a batch needs one Ramen-Batch-Id header with lane, number and digest"
        )
    declared = admission.declared_bytes(headers, max_wire_bytes(limits))
    if isinstance(declared, Decision):
        return declared
    return AdmittedBatch(token, batch, admission.content_coding(headers), declared)


def read(
    admitted: AdmittedBatch, limits: Limits, body: bytes, try_bytes: int
) -> ReadBatch | Decision | LargerThanTried:
    """Take the content coding off, and read the records; holds at most ``COPIES`` times ``try_bytes`` of them."""
    plain = admission.decode(body, admitted.coding, try_bytes=try_bytes, max_bytes=limits.batch_bytes)
    if not isinstance(plain, bytes):
        return plain
    try:
        records = decode_records(plain, max_records=int(limits.max_batch_messages))
    except TooManyRecords as error:
        return Decision(Kind.TOO_LARGE, str(error))
    except FramingError as error:
        return Decision(Kind.BAD_REQUEST, str(error))
    if not admitted.batch.names(plain):
        return Decision(Kind.BAD_REQUEST, "the digest in Ramen-Batch-Id is not that of the records")
    return ReadBatch(records, [_fault(record, admitted.token, limits) for record in records])


def _fault(record: Record, token: Token, limits: Limits) -> Decision | None:
    try:
        check_envelope(record.envelope)
    except RefusedRequest as refusal:
        return Decision(Kind.BAD_REQUEST, refusal.details)
    if not token.scope.covers(record.envelope):
        return admission.OUT_OF_SCOPE
    if len(record.payload) > limits.max_message_bytes:
        return admission.too_large(limits.max_message_bytes)
    return None if admission.is_json(record.payload) else admission.NO_JSON


def judge(
    found: ReadBatch, token: Token, current: Current, rates: RateLimiter, now: float
) -> tuple[list[Decision | None], list[StoredRule]]:
    """Decide upon each record: None when it is to be stored; and give the rules that were hit. ``now`` is monotonic seconds."""
    decisions = list(found.faults)
    hits: list[StoredRule] = []
    for place, record in enumerate(found.records):
        if decisions[place] is not None:
            continue
        judged = admission.judge(record.envelope, token, current, rates, now)
        if judged is not None:
            decisions[place], rule = judged
            hits += [] if rule is None else [rule]
    return decisions, hits


def to_store(found: ReadBatch, decisions: Sequence[Decision | None], token: Token) -> tuple[NewMessage, ...]:
    """Give the messages that are to be stored."""
    return tuple(
        NewMessage(record.envelope, record.payload, token.name)
        for record, decision in zip(found.records, decisions, strict=True)
        if decision is None
    )


def settle(decisions: Sequence[Decision | None], outcomes: Sequence[Outcome]) -> list[Decision]:
    """Fill in what became of the messages that were stored."""
    left = iter(outcomes)
    return [
        decision or (DUPLICATE if next(left) is Outcome.DUPLICATE else ACCEPTED) for decision in decisions
    ]


def results(decisions: Sequence[Decision]) -> bytes:
    """Write the body of the answer."""
    # Nearly all are one of these two; to make a result of each anew would cost what its JSON check does.
    return encode_results(
        [
            _ACCEPTED
            if decision is ACCEPTED
            else _DUPLICATE
            if decision is DUPLICATE
            else admission.result(decision)
            for decision in decisions
        ]
    )
