"""The Ramen protocol, without any I/O: what client and server build and parse, shared by both.

Nothing here reads a clock, a file or a socket, or makes randomness: time and random bytes are passed in. Whatever
comes from outside is bounded before it is believed. Version 1 is complete; of version 2 there are the types.
"""

from infi.ramen_protocol.answers import Code, RefusedRequest, answer_body, status_of
from infi.ramen_protocol.batch import BatchId, BatchOffer, Dedupe, RecordResult
from infi.ramen_protocol.codings import (
    BodyTooLarge,
    Coding,
    CodingError,
    UnsupportedCoding,
    accepted_codings,
    compress,
    decode_body,
    decompress_zlib,
    gzip_from_zlib,
)
from infi.ramen_protocol.jsonforms import dump
from infi.ramen_protocol.message import MAX_REQID_BYTES, Envelope, message_id, normalise_reqid
from infi.ramen_protocol.names import is_name, is_version
from infi.ramen_protocol.rules import RULE_FIELDS, Rule, UnusableRule
from infi.ramen_protocol.url import message_path, message_target, origin, parse_target
from infi.ramen_protocol.verdict import (
    MAX_ANSWER_BYTES,
    MAX_RETRY_AFTER_SECONDS,
    Judgement,
    Verdict,
    classify,
    parse_retry_after,
)

__all__ = [
    "MAX_ANSWER_BYTES",
    "MAX_REQID_BYTES",
    "MAX_RETRY_AFTER_SECONDS",
    "RULE_FIELDS",
    "BatchId",
    "BatchOffer",
    "BodyTooLarge",
    "Code",
    "Coding",
    "CodingError",
    "Dedupe",
    "Envelope",
    "Judgement",
    "RecordResult",
    "RefusedRequest",
    "Rule",
    "UnsupportedCoding",
    "UnusableRule",
    "Verdict",
    "accepted_codings",
    "answer_body",
    "classify",
    "compress",
    "decode_body",
    "decompress_zlib",
    "dump",
    "gzip_from_zlib",
    "is_name",
    "is_version",
    "message_id",
    "message_path",
    "message_target",
    "normalise_reqid",
    "origin",
    "parse_retry_after",
    "parse_target",
    "status_of",
]
