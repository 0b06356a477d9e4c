"""The test server's version 2: what it offers, remembers and gets wrong on request."""

from __future__ import annotations

import pytest
from test_testing_kit_client import post, target

from infi.ramen_client.testing import (
    Accept,
    Drop,
    RamenServer,
    Refuse,
    Reset,
    Results,
    Status,
    StoreThen,
    StoreThenReset,
    Truncated,
)
from infi.ramen_protocol import (
    BatchId,
    BatchOffer,
    BatchOutcome,
    Coding,
    Dedupe,
    Envelope,
    Rule,
    Verdict,
    batch_digest,
    compress_batch,
    encode_record,
    judge_batch,
)

PATH = "/ramen/v2/batch"


def records_of(*reqids: str) -> bytes:
    return b"".join(
        encode_record(Envelope("metrics", 1099, "imx", "san_totals", "v1", "3.0.0.1", reqid), b'{"a": 1}')
        for reqid in reqids
    )


def post_batch(server, *reqids, lane="lane", number=1, coding=Coding.ZSTD, records=None, headers=None):
    records = records_of(*reqids) if records is None else records
    own = {
        "Content-Type": "application/vnd.ramen.batch",
        "Content-Encoding": coding.label,
        "Ramen-Batch-Id": BatchId(lane, number, batch_digest(records)).header(),
    }
    return post(server, PATH, compress_batch(records, coding), headers=own | (headers or {}))


def judged(answer, count):
    return judge_batch(answer.status, answer.headers, answer.body, count)


def verdicts(answer, count):
    judgement = judged(answer, count)
    assert judgement.outcome is BatchOutcome.RESULTS, judgement
    return [result.verdict for result in judgement.results]


def outcome(answer, count=2):
    return judged(answer, count).outcome


@pytest.fixture(params=Dedupe)
def server(request):
    with RamenServer(offer=BatchOffer(PATH, 100, 1 << 20, request.param)) as running:
        yield running


@pytest.fixture
def by_message():
    with RamenServer(offer=BatchOffer(PATH, 100, 1 << 20, Dedupe.MESSAGE)) as running:
        yield running


@pytest.fixture
def by_batch():
    with RamenServer(offer=BatchOffer(PATH, 100, 1 << 20, Dedupe.BATCH)) as running:
        yield running


@pytest.mark.parametrize("coding", Coding)
def test_a_batch_is_accepted_and_remembered_as_it_came(server, coding):
    assert verdicts(post_batch(server, "a", "b", coding=coding), 2) == [Verdict.ACCEPTED] * 2
    (batch,) = server.batches
    assert batch.batch == BatchId("lane", 1, batch_digest(records_of("a", "b")))
    assert (batch.coding, batch.records) == (coding.label, records_of("a", "b"))
    assert batch.body == compress_batch(batch.records, coding)
    assert [message.reqid for message in batch.messages] == ["a", "b"]
    assert list(batch.messages) == server.received == server.accepted
    assert server.accepted[0].json() == {"a": 1}
    assert server.accepted[0].target == target("a")
    assert server.accepted[0].batch == batch.batch
    server.wait_for(2)
    server.wait_for_batches(1)


def test_the_offer_comes_with_every_answer_of_the_protocol_until_it_is_withdrawn(server):
    server.answer_with(Accept(), Refuse("BAD_REQUEST"), Status(503), Accept(headers=(("Ramen-Batch", "x"),)))
    offers = [post(server, target(str(number))).headers.get("ramen-batch") for number in range(4)]
    assert [BatchOffer.parse(offer) for offer in offers[:2]] == [server.offer] * 2
    assert offers[2:] == [None, "x"]
    assert BatchOffer.parse(post_batch(server, "a").headers["ramen-batch"]) == server.offer
    assert "ramen-batch" in post(server, target("x"), headers={"X-API-Token": "wrong"}).headers
    server.offer = None
    assert "ramen-batch" not in post(server, target("y")).headers
    assert outcome(post_batch(server, "b", number=2), 1) is BatchOutcome.RESULTS


def test_the_path_can_vanish(server):
    server.batch_path = None
    assert outcome(post_batch(server, "a")) is BatchOutcome.NO_BATCHES
    server.batch_path = PATH
    server.answer_batches_with(Status(404, b"<html>"))
    assert outcome(post_batch(server, "a")) is BatchOutcome.NO_BATCHES
    assert server.accepted == []


def test_each_record_gets_what_a_function_says(server):
    def choose(message):
        return {"b": Refuse("BAD_REQUEST", "no"), "c": Drop(Rule(sender="imx"))}.get(message.reqid, Accept())

    server.default = choose
    assert verdicts(post_batch(server, "a", "b", "c"), 3) == [
        Verdict.ACCEPTED,
        Verdict.REJECTED,
        Verdict.DROPPED,
    ]
    assert [message.reqid for message in server.accepted] == ["a"]
    assert [type(message.reply).__name__ for message in server.received] == ["Accept", "Refuse", "Drop"]


def test_a_script_gives_replies_by_place(server):
    wait = Refuse("TOO_MANY_REQUESTS", "slowly", (("Retry-After", "3"),))
    server.answer_batches_with(Results({1: wait}))
    judgement = judged(post_batch(server, "a", "b"), 2)
    assert [result.verdict for result in judgement.results] == [Verdict.ACCEPTED, Verdict.RETRY]
    assert judgement.results[1].retry_after == "3"
    assert [message.reqid for message in server.accepted] == ["a"]


def test_a_record_that_is_no_message_is_refused_for_itself(server):
    bad_name = encode_record(Envelope("met rics", 1, "s", "t", "v", "1", "r"), b"{}")
    no_json = encode_record(Envelope("metrics", 1, "s", "t", "v", "1", "r"), b"{")
    answer = post_batch(server, records=bad_name + records_of("a") + no_json)
    assert verdicts(answer, 3) == [Verdict.REJECTED, Verdict.ACCEPTED, Verdict.REJECTED]


def test_a_plain_default_that_is_an_outage_is_that_of_the_whole_batch(server):
    server.default = Refuse("UNAUTHORIZED")
    assert outcome(post_batch(server, "a")) is BatchOutcome.UNAUTHORISED
    server.default = lambda message: Status(503) if message.reqid == "b" else Accept()
    assert outcome(post_batch(server, "a", "b")) is BatchOutcome.UNKNOWN
    assert server.accepted == []
    assert [message.reply for message in server.received] == [Refuse("UNAUTHORIZED")] + [Status(503)] * 2


@pytest.mark.parametrize("void", [Results(surplus=-1), Results(surplus=2), Results(last_code="FINE")])
def test_void_results_store_all_the_same(server, void):
    server.answer_batches_with(void)
    assert outcome(post_batch(server, "a", "b")) is BatchOutcome.UNKNOWN
    assert len(server.accepted) == 2
    assert verdicts(post_batch(server, "a", "b"), 2) == [Verdict.ACCEPTED] * 2
    assert (len(server.accepted), len(server.duplicates)) == (2, 2)


@pytest.mark.parametrize(("fault", "stored"), [(StoreThenReset(), 2), (StoreThen(Truncated()), 2), (Truncated(), 0), (Reset(), 0), (Reset(before_body=True), 0)])  # fmt: skip
def test_an_answer_is_lost_or_cut(server, fault, stored):
    server.answer_batches_with(fault)
    with pytest.raises((ConnectionError, OSError, Exception)):
        post_batch(server, "a", "b")
    assert len(server.accepted) == stored
    post_batch(server, "a", "b")
    assert len(server.accepted) == 2
    assert len(server.duplicates) == stored


def test_a_proxy_s_answer_may_come_after_the_server_stored(server):
    server.answer_batches_with(StoreThen(Status(504, b"gateway")))
    assert outcome(post_batch(server, "a", "b")) is BatchOutcome.UNKNOWN
    assert len(server.accepted) == 2


def test_a_batch_that_is_too_large_is_refused_as_a_whole(server):
    server.max_batch_messages = 1
    assert outcome(post_batch(server, "a", "b")) is BatchOutcome.TOO_LARGE
    server.max_batch_messages, server.max_batch_bytes = None, 100
    assert outcome(post_batch(server, "a", "b")) is BatchOutcome.TOO_LARGE
    assert (server.batches, [refused.target for refused in server.refused]) == ([], [PATH] * 2)
    server.max_batch_bytes = None
    assert outcome(post_batch(server, *map(str, range(101))), 101) is BatchOutcome.TOO_LARGE


def test_a_coding_can_be_refused_whatever_is_announced(server):
    server.accept_encoding, server.codings = "zstd", frozenset({"gzip"})
    answer = post_batch(server, "a")
    assert (outcome(answer), answer.headers["accept-encoding"]) == (BatchOutcome.UNSUPPORTED_CODING, "gzip")
    assert post(server, headers={"Content-Encoding": "zstd"}).status == 415
    assert outcome(post_batch(server, "a", coding=Coding.GZIP), 1) is BatchOutcome.RESULTS
    assert post(server).headers["accept-encoding"] == "zstd"


@pytest.mark.parametrize("headers", [{"Ramen-Batch-Id": "lane=1"}, {"Content-Type": "application/json"}])
def test_a_batch_that_cannot_be_read_is_refused(server, headers):
    assert outcome(post_batch(server, "a", headers=headers)) is BatchOutcome.REFUSED
    wrong = BatchId("lane", 1, "0" * 32).header()
    assert outcome(post_batch(server, "a", headers={"Ramen-Batch-Id": wrong})) is BatchOutcome.REFUSED
    assert outcome(post_batch(server, records=records_of("a") + b"{}")) is BatchOutcome.REFUSED
    assert outcome(post_batch(server, "a", headers={"X-API-Token": "x"})) is BatchOutcome.UNAUTHORISED


def test_a_message_that_came_by_both_versions_is_stored_once(by_message):
    post(by_message, target("a"))
    post_batch(by_message, "a", "b", "b")
    post(by_message, target("b"))
    assert [message.reqid for message in by_message.accepted] == ["a", "b"]
    assert [message.reqid for message in by_message.duplicates] == ["a", "b", "b"]
    post_batch(by_message, "a", number=7)
    assert len(by_message.duplicates) == 4


def test_a_lane_goes_on_by_one_and_knows_its_last_batch(by_batch):
    assert outcome(post_batch(by_batch, "a", "b", number=2)) is BatchOutcome.LANE_CONFLICT
    by_batch.answer_batches_with(Results({1: Refuse("BAD_REQUEST", "poison")}))
    first = post_batch(by_batch, "a", "b")
    again = post_batch(by_batch, "a", "b", coding=Coding.GZIP)
    assert first.body == again.body
    assert [batch.repeated for batch in by_batch.batches] == [False, False, True]
    assert outcome(post_batch(by_batch, "a", "c")) is BatchOutcome.LANE_CONFLICT
    assert outcome(post_batch(by_batch, "c", "d", number=2)) is BatchOutcome.RESULTS
    assert outcome(post_batch(by_batch, "a", "b")) is BatchOutcome.LANE_CONFLICT
    assert [message.reqid for message in by_batch.accepted] == ["a", "c", "d"]
    assert [message.reqid for message in by_batch.duplicates] == ["a"]


def test_a_store_of_whole_batches_does_not_see_what_came_by_another_lane_or_version(by_batch):
    post_batch(by_batch, "a")
    post_batch(by_batch, "a", lane="other")
    post(by_batch, target("a"))
    assert [message.reqid for message in by_batch.accepted] == ["a", "a", "a"]
    post(by_batch, target("a"))
    assert len(by_batch.duplicates) == 1
    by_batch.wait_for(1)
