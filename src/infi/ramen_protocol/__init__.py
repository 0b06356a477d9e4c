"""The Ramen protocol, without any I/O: what client and server build and parse, shared by both.

Nothing here reads a clock, a file or a socket, or makes randomness: time and random bytes are passed in. Whatever
comes from outside is bounded before it is believed. Version 1 sends one message with each request, version 2 a batch of them.
"""

from infi.ramen_protocol.answers import Code, RefusedRequest, answer_body, status_of
from infi.ramen_protocol.batch import (
    BATCH_CONTENT_TYPE,
    BatchDigest,
    BatchId,
    BatchOffer,
    Dedupe,
    RecordResult,
    batch_digest,
)
from infi.ramen_protocol.batch_answer import (
    BatchJudgement,
    BatchOutcome,
    encode_results,
    judge_batch,
    max_batch_answer_bytes,
)
from infi.ramen_protocol.batch_framing import (
    FramingError,
    Record,
    TooManyRecords,
    decode_records,
    encode_record,
)
from infi.ramen_protocol.codings import (
    BodyTooLarge,
    Coding,
    CodingError,
    Compressor,
    UnsupportedCoding,
    accepted_codings,
    batch_compressor,
    compress,
    compress_batch,
    decode_body,
    decompress_zlib,
    gzip_from_zlib,
    readable_codings,
)
from infi.ramen_protocol.jsonforms import dump
from infi.ramen_protocol.message import MAX_REQID_BYTES, Envelope, message_id, normalise_reqid
from infi.ramen_protocol.names import is_name, is_version
from infi.ramen_protocol.rules import RULE_FIELDS, Rule, UnusableRule
from infi.ramen_protocol.url import check_envelope, message_path, message_target, origin, parse_target
from infi.ramen_protocol.verdict import (
    MAX_ANSWER_BYTES,
    MAX_RETRY_AFTER_SECONDS,
    Judgement,
    Verdict,
    classify,
    parse_retry_after,
)

__all__ = [
    "BATCH_CONTENT_TYPE",
    "MAX_ANSWER_BYTES",
    "MAX_REQID_BYTES",
    "MAX_RETRY_AFTER_SECONDS",
    "RULE_FIELDS",
    "BatchDigest",
    "BatchId",
    "BatchJudgement",
    "BatchOffer",
    "BatchOutcome",
    "BodyTooLarge",
    "Code",
    "Coding",
    "CodingError",
    "Compressor",
    "Dedupe",
    "Envelope",
    "FramingError",
    "Judgement",
    "Record",
    "RecordResult",
    "RefusedRequest",
    "Rule",
    "TooManyRecords",
    "UnsupportedCoding",
    "UnusableRule",
    "Verdict",
    "accepted_codings",
    "answer_body",
    "batch_compressor",
    "batch_digest",
    "check_envelope",
    "classify",
    "compress",
    "compress_batch",
    "decode_body",
    "decode_records",
    "decompress_zlib",
    "dump",
    "encode_record",
    "encode_results",
    "gzip_from_zlib",
    "is_name",
    "is_version",
    "judge_batch",
    "max_batch_answer_bytes",
    "message_id",
    "message_path",
    "message_target",
    "normalise_reqid",
    "origin",
    "parse_retry_after",
    "parse_target",
    "readable_codings",
    "status_of",
]
