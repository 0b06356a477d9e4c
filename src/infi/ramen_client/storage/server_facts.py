"""What is known of a server over restarts, in the table ``server``, by origin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _statements as sql

if TYPE_CHECKING:
    import apsw


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What is known of a server. Times are milliseconds since the epoch, None: not so, or not known."""

    failures: int = 0
    """In a row."""
    suspect_since_ms: int | None = None
    retry_at_ms: int | None = None
    """What the server itself asked for."""
    accept_encoding: str | None = None
    """Its last header of this name."""
    batch_offer: str | None = None
    """Its last ``Ramen-Batch`` header; None: it takes none."""
    batch_refused_at_ms: int | None = None
    """Since when the path of its offer is not there."""
    body_limit: int | None = None
    """Batches of more plain bytes than this were too large for it."""
    body_limit_at_ms: int | None = None


def read_server(connection: apsw.Connection, origin: str) -> ServerFacts:
    """What is known of a server."""
    for row in connection.execute(sql.READ_SERVER, (origin,)):
        failures, suspect_since, retry_at, accept_encoding, offer, *rest = row
        return ServerFacts(failures, suspect_since, retry_at, _text(accept_encoding), _text(offer), *rest)
    return ServerFacts()


def save_server(connection: apsw.Connection, origin: str, facts: ServerFacts, *, now_ms: int) -> None:
    """Remember what was learned of a server."""
    connection.execute(
        sql.SAVE_SERVER,
        (
            origin,
            facts.failures,
            facts.suspect_since_ms,
            facts.retry_at_ms,
            facts.accept_encoding,
            facts.batch_offer,
            facts.batch_refused_at_ms,
            facts.body_limit,
            facts.body_limit_at_ms,
            now_ms,
        ),
    )


def _text(value: Any) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else None
