"""Batches for the tests of the collector."""

from __future__ import annotations

from infi.ramen_protocol import (
    BATCH_CONTENT_TYPE,
    BatchId,
    BatchOutcome,
    Coding,
    Envelope,
    batch_digest,
    compress_batch,
    encode_record,
    judge_batch,
)

PATH = "/ramen/v2/batch"


def record(reqid, payload=b"{}", **parts):
    fields = {
        "category": "metrics",
        "system_serial": 1099,
        "sender": "imx",
        "data_type": "totals",
        "data_version": "v1",
        "system_version": "3.0",
        "reqid": reqid,
    }
    return encode_record(Envelope(**{**fields, **parts}), payload)


def head(records, coding=Coding.ZSTD, lane="lane", number=1, **over):
    headers = {
        "content-type": BATCH_CONTENT_TYPE,
        "content-encoding": coding.label,
        "ramen-batch-id": BatchId(lane, number, batch_digest(records)).header(),
        **{name.replace("_", "-"): value for name, value in over.items()},
    }
    return [(name.encode(), value.encode("latin-1")) for name, value in headers.items() if value is not None]


def post_batch(client, *records, coding=Coding.ZSTD, lane="lane", number=1, token=..., **over):
    """Send records (as ``record`` makes them, or texts that are reqids)."""
    plain = b"".join(made if isinstance(made, bytes) else record(made) for made in records)
    return client.run(send_batch(client, plain, coding, lane, number, token, **over))


def send_batch(client, plain, coding=Coding.ZSTD, lane="lane", number=1, token=..., **over):
    headers = head(plain, coding, lane, number, **over)
    return client.send("POST", PATH, compress_batch(plain, coding), headers, token)


def judged(reply, count):
    return judge_batch(reply.status, reply.headers, reply.body, count)


def codes(reply, count):
    judgement = judged(reply, count)
    assert judgement.outcome is BatchOutcome.RESULTS, (reply.status, reply.body)
    return [result.code for result in judgement.results]
