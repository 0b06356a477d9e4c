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
    Reply,
    Reset,
    SlowDrip,
    Status,
    StoreThenReset,
    Truncated,
)
from infi.ramen_protocol import Code, answer_body, status_of

if TYPE_CHECKING:
    from infi.ramen_client.testing._connection import Connection
    from infi.ramen_client.testing.replies import Headers

_JSON = (("Content-Type", "application/json"),)
_CLOSE = (("Connection", "close"),)
_ACCEPTANCE = answer_body(Code.ACCEPTED)
_PIECE = b"4000\r\n" + b" " * 0x4000 + b"\r\n"


def deliver(reply: Reply, connection: Connection, *, keep_alive: bool) -> bool:
    """Send the reply or act it out; returns whether the connection can be used for another request.

    Raises ``OSError`` when the connection ends meanwhile.
    """
    match reply:
        case Hang():
            connection.left_within(None)
        case Reset() | StoreThenReset():
            connection.reset()
        case Raw(data):
            connection.send(data)
            connection.finish()
        case Truncated():
            connection.send(render(202, _JSON, _ACCEPTANCE)[: -len(_ACCEPTANCE) // 2])
            connection.finish()
        case SlowDrip(interval_seconds):
            _drip(render(202, _JSON + _CLOSE, _ACCEPTANCE), connection, interval_seconds)
        case Endless():
            connection.send(b"HTTP/1.1 202 Accepted\r\nTransfer-Encoding: chunked\r\n\r\n")
            connection.send(b"%x\r\n%b\r\n" % (len(_ACCEPTANCE), _ACCEPTANCE))
            while True:
                connection.send(_PIECE)
        case _:
            return _answer(reply, connection, keep_alive=keep_alive)
    return False


def _drip(data: bytes, connection: Connection, interval_seconds: float) -> None:
    for position in range(len(data)):
        connection.send(data[position : position + 1])
        if connection.left_within(interval_seconds):
            return
    connection.finish()


def _answer(
    reply: Accept | Drop | Refuse | Status | Redirect, connection: Connection, *, keep_alive: bool
) -> bool:
    status, headers, body = _parts(reply)
    closing = {value.lower() for name, value in headers if name.lower() == "connection"} == {"close"}
    if not keep_alive and not closing:
        headers += _CLOSE
    connection.send(render(status, headers, body))
    if keep_alive and not closing:
        return True
    connection.finish()
    return False


def _parts(reply: Accept | Drop | Refuse | Status | Redirect) -> tuple[int, Headers, bytes]:
    match reply:
        case Accept(details, headers):
            return 202, _JSON + headers, answer_body(Code.ACCEPTED, details)
        case Drop(_, details, headers):
            # Not by answer_body: the rule may be one that the protocol's own code would never send.
            answer: dict[str, object] = {"code": Code.DROPPED.value, "details": details}
            if reply.rule is not None:
                answer["rule"] = reply.rule_as_json()
            return 202, _JSON + headers, json.dumps(answer).encode()
        case Refuse(code, details, headers):
            return status_of(Code(code)), _JSON + headers, answer_body(Code(code), details)
        case Status(status, body, headers):
            return status, headers, body
        case Redirect(location, status):
            return status, (("Location", location),), b""
