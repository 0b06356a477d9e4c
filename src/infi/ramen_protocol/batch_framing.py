r"""The body of a batch, under its content coding: records, one after the other (protocol section 2, "Request").

    {"category":…,"system_serial":…,"sender":…,"data_type":…,"data_version":…,"system_version":…,"reqid":…,"length":812}\n
    <812 bytes, the message's JSON>\n

A head is one line of JSON, in which a line end can only stand escaped; the length makes the rest safe for any bytes.

Reading believes nothing: a head ends within ``MAX_RECORD_HEAD_BYTES`` or is refused before it is parsed, a length must leave
its payload and the line end within the body, the count of records stops at the caller's bound. Whether a record's *names* keep
the protocol's rules is not looked at here: a record that breaks them is one message's fault, one that breaks the
framing that of the whole batch. Members of a head that are not known here are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from infi.ramen_protocol.message import Envelope

MAX_RECORD_HEAD_BYTES = 16 * 1024
"""The longest head: a reqid of 2 KiB in which every byte is escaped is 12 KiB, the rest is for names."""

_LINE_END = ord("\n")


class FramingError(ValueError):
    """The body is no sequence of records (a 400 for the whole batch)."""


class TooManyRecords(FramingError):
    """There are more records than the server takes (a 413)."""


@dataclass(slots=True)
class Record:
    """One message of a batch; ``payload`` is any bytes. Nothing of the envelope was checked but its types.

    Never changed, and not frozen for the same reason as the envelope.
    """

    envelope: Envelope
    payload: bytes = field(repr=False)


def encode_record(envelope: Envelope, plain: bytes) -> bytes:
    """Write one record.

    Raises ``ValueError`` when its head could not be read again: lone surrogates, a serial beyond 64 bits, names so long that
    the head exceeds ``MAX_RECORD_HEAD_BYTES`` (only rows of an old queue hold such; version 1 may still carry them).
    """
    try:
        head = orjson.dumps(
            {
                "category": envelope.category,
                "system_serial": envelope.system_serial,
                "sender": envelope.sender,
                "data_type": envelope.data_type,
                "data_version": envelope.data_version,
                "system_version": envelope.system_version,
                "reqid": envelope.reqid,
                "length": len(plain),
            }
        )
    except orjson.JSONEncodeError as error:
        raise ValueError(f"the message's identity cannot be written as JSON: {error}") from None
    if len(head) > MAX_RECORD_HEAD_BYTES:
        raise ValueError(f"the message's identity is longer than {MAX_RECORD_HEAD_BYTES} bytes")
    return b"%b\n%b\n" % (head, plain)


def decode_records(body: bytes, *, max_records: int) -> list[Record]:
    """Read the records of a decoded body: 1 to ``max_records``.

    Raises ``TooManyRecords`` as soon as there is one more, ``FramingError`` for anything that is not a record from its first
    byte to its last; both say which record, and none of its content.
    """
    records: list[Record] = []
    position = 0
    size = len(body)
    while position < size:
        if len(records) == max_records:
            raise TooManyRecords(f"the batch has more than {max_records} records")
        head_end = body.find(b"\n", position, position + MAX_RECORD_HEAD_BYTES + 1)
        if head_end < 0:
            raise _malformed(records, f"has no head line of at most {MAX_RECORD_HEAD_BYTES} bytes")
        envelope, length = _read_head(body[position:head_end], records)
        payload_end = head_end + 1 + length
        if payload_end >= size:
            raise _malformed(records, "is longer than the rest of the body")
        if body[payload_end] != _LINE_END:
            raise _malformed(records, "does not end where its length says")
        records.append(Record(envelope, body[head_end + 1 : payload_end]))
        position = payload_end + 1
    if not records:
        raise FramingError("the batch holds no record")
    return records


def _read_head(line: bytes, before: list[Record]) -> tuple[Envelope, int]:
    try:
        head = orjson.loads(line)  # bounds its own depth, refuses invalid UTF-8
        envelope = Envelope(
            head["category"],
            head["system_serial"],
            head["sender"],
            head["data_type"],
            head["data_version"],
            head["system_version"],
            head["reqid"],
        )
        length = head["length"]
    except orjson.JSONDecodeError:
        raise _malformed(before, "has a head that is not JSON") from None
    except (KeyError, TypeError, IndexError):
        raise _malformed(before, "has a head that is no object with all its members") from None
    texts = (
        envelope.category,
        envelope.sender,
        envelope.data_type,
        envelope.data_version,
        envelope.system_version,
        envelope.reqid,
    )
    if not {str}.issuperset(map(type, texts)) or type(envelope.system_serial) is not int:
        raise _malformed(before, "has a head with a member of the wrong type")
    if type(length) is not int or length < 0:
        raise _malformed(before, "has a length that is none")
    return envelope, length


def _malformed(before: list[Record], fault: str) -> FramingError:
    return FramingError(f"record {len(before) + 1} {fault}")
