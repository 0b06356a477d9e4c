"""From a reply to bytes, or to a fault, on a connection."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from infi.ramen_client.testing._connection import render
from infi.ramen_client.testing.replies import (
    Accept,
    Drop,
    Endless,
    Hang,
    Raw,
    Redirect,
    Refuse,
    Reset,
    Results,
    SlowDrip,
    Status,
    StoreThen,
    StoreThenReset,
    Truncated,
)
from infi.ramen_protocol import Code, answer_body, status_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from infi.ramen_client.testing._connection import Connection
    from infi.ramen_client.testing.replies import BatchReply, Headers, Reply

_JSON = (("Content-Type", "application/json"),)
_CLOSE = (("Connection", "close"),)
_PIECE = b"4000\r\n" + b" " * 0x4000 + b"\r\n"

Acceptance = tuple[int, bytes]
"""Status and body of the answer that says that all is well."""

ACCEPTANCE: Acceptance = (202, answer_body(Code.ACCEPTED))


def deliver(
    reply: BatchReply,
    connection: Connection,
    *,
    keep_alive: bool,
    announced: Headers = (),
    acceptance: Acceptance = ACCEPTANCE,
) -> bool:
    """Send the reply or act it out; returns whether the connection can be used for another request.

    ``announced`` are headers for the answers of the protocol. Raises ``OSError`` when the connection ends meanwhile.
    """
    status, body = acceptance
    match reply:
        case StoreThen(then):
            return deliver(
                then, connection, keep_alive=keep_alive, announced=announced, acceptance=acceptance
            )
        case Hang():
            connection.left_within(None)
        case Reset() | StoreThenReset():
            connection.reset()
        case Raw(data):
            connection.send(data)
            connection.finish()
        case Truncated():
            connection.send(render(status, _JSON + announced, body)[: -len(body) // 2])
            connection.finish()
        case SlowDrip(interval_seconds):
            _drip(render(status, _JSON + announced + _CLOSE, body), connection, interval_seconds)
        case Endless():
            connection.send(b"HTTP/1.1 %d OK\r\nTransfer-Encoding: chunked\r\n\r\n" % status)
            connection.send(b"%x\r\n%b\r\n" % (len(body), body))
            while True:
                connection.send(_PIECE)
        case Results():
            return _answer(status, _JSON + announced, body, connection, keep_alive=keep_alive)
        case _:
            return _answer(*_parts(reply, announced), connection, keep_alive=keep_alive)
    return False


def _drip(data: bytes, connection: Connection, interval_seconds: float) -> None:
    for position in range(len(data)):
        connection.send(data[position : position + 1])
        if connection.left_within(interval_seconds):
            return
    connection.finish()


def _answer(status: int, headers: Headers, body: bytes, connection: Connection, *, keep_alive: bool) -> bool:
    closing = {value.lower() for name, value in headers if name.lower() == "connection"} == {"close"}
    if not keep_alive and not closing:
        headers += _CLOSE
    connection.send(render(status, headers, body))
    if keep_alive and not closing:
        return True
    connection.finish()
    return False


def _parts(
    reply: Accept | Drop | Refuse | Status | Redirect, announced: Headers
) -> tuple[int, Headers, bytes]:
    match reply:
        case Accept(details, headers):
            return 202, _JSON + _together(announced, headers), answer_body(Code.ACCEPTED, details)
        case Drop(_, details, headers):
            # Not by answer_body: the rule may be one that the protocol's own code would never send.
            answer: dict[str, object] = {"code": Code.DROPPED.value, "details": details}
            if reply.rule is not None:
                answer["rule"] = reply.rule_as_json()
            return 202, _JSON + _together(announced, headers), json.dumps(answer).encode()
        case Refuse(code, details, headers):
            body = answer_body(Code(code), details)
            return status_of(Code(code)), _JSON + _together(announced, headers), body
        case Status(status, body, headers):
            return status, headers, body
        case Redirect(location, status):
            return status, (("Location", location),), b""


def _together(announced: Headers, headers: Headers) -> Headers:
    """Let a reply's own header stand in place of an announced one."""
    own = {name.lower() for name, _ in headers}
    return tuple((name, value) for name, value in announced if name.lower() not in own) + headers


def results_body(replies: Iterable[Reply | None], how: Results) -> bytes:
    """Write the body of the 200, with the faults that the script asks for. What is no verdict on a record counts as Accept."""
    # Not by the protocol's own code, which would never send some of these.
    results = [_result(reply) for reply in replies]
    if how.surplus > 0:
        results += results[-1:] * how.surplus
    elif how.surplus < 0:
        del results[how.surplus :]
    if how.last_code is not None and results:
        results[-1] = {**results[-1], "code": how.last_code}
    return json.dumps({"results": results}).encode()


def _result(reply: Reply | None) -> dict[str, object]:
    result: dict[str, object]
    match reply:
        case Drop(rule, details):
            result = {"status": 202, "code": Code.DROPPED.value, "details": details}
            return result if rule is None else {**result, "rule": reply.rule_as_json()}
        case Refuse(code, details, headers):
            result = {"status": status_of(Code(code)), "code": Code(code).value, "details": details}
            wait = dict(headers).get("Retry-After")
            return result if wait is None else {**result, "retry_after": int(wait)}
        case _:
            details = reply.details if isinstance(reply, Accept) else None
            return {"status": 202, "code": Code.ACCEPTED.value, "details": details}
