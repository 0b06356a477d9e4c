"""Every bound of the collector, with its default. docs/design/collector.md says what happens at each."""

from __future__ import annotations

from dataclasses import dataclass, fields

_KIB, _MIB = 1024, 1024 * 1024

MOST_BATCH_MESSAGES = 10_000

MAY_BE_NONE = frozenset(("messages_per_second",))


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds of one collector. Raises ``ValueError`` for one that is not a number above 0 (or 0, for free bytes)."""

    max_head_bytes: int = 32 * _KIB
    """Request line and headers together. The longest target that the protocol allows is half of it."""

    max_headers: int = 64

    max_connections: int = 2000

    head_seconds: float = 10
    """From a connection's first byte, or from its opening, to the end of the head."""

    body_idle_seconds: float = 20
    """Without a byte of the body."""

    body_seconds: float = 300
    """For the whole body: 64 MiB at 220 KB/s."""

    drain_seconds: float = 30
    """How long the rest of a body is read, and thrown away, after its request was refused."""

    keep_alive_seconds: float = 75
    """How long a connection may be idle between requests."""

    max_body_bytes: int = 64 * _MIB
    """On the wire. As large as a message may be, since a body need not be compressed."""

    max_message_bytes: int = 64 * _MIB
    """A payload after its content coding was taken off: the client's default for what ``push`` takes."""

    max_batch_bytes: int = 8 * _MIB
    """A batch after its content coding was taken off, but never more than a quarter of ``max_memory_bytes``: see ``batch_bytes``."""

    max_batch_messages: int = 1000
    """Messages in a batch, 1 to 10,000: each takes about 1 KiB beside its payload while it is handled."""

    max_requests: int = 1000
    """Requests under ``/ramen/`` in flight, from head to verdict."""

    max_memory_bytes: int = 256 * _MIB
    """Bodies and payloads of all requests in flight."""

    messages_per_second: float | None = None
    """What one token may send for one sender, in the long run; None: no limit."""

    burst: int = 100
    """How many messages may come at once before ``messages_per_second`` counts."""

    min_free_bytes: int = 256 * _MIB
    """Messages are refused when the disk would have less than this: room for checkpoints, and for the rest of the host."""

    stop_seconds: float = 10
    """How long a stop waits for the requests that are in flight."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.name in MAY_BE_NONE:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or value != value:  # noqa: PLR0124 - NaN
                raise ValueError(f"{field.name} must be a number, not {value!r}")
            if value < 0 or (value == 0 and field.name != "min_free_bytes"):
                raise ValueError(f"{field.name} must be more than 0, not {value!r}")
        if not 1 <= self.max_batch_messages <= MOST_BATCH_MESSAGES:
            raise ValueError(
                f"max_batch_messages must be 1 to {MOST_BATCH_MESSAGES}, not {self.max_batch_messages!r}"
            )
        if self.max_memory_bytes < self.max_body_bytes + self.max_message_bytes:
            raise ValueError(
                "max_memory_bytes must be at least max_body_bytes + max_message_bytes, or no message of that size fits"
            )

    @property
    def batch_bytes(self) -> int:
        """What is offered: on the wire a batch takes as much, decoded as much again, and so do its payloads."""
        return max(1, int(min(self.max_batch_bytes, self.max_memory_bytes // 4)))
