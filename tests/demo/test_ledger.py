"""The demo's arithmetic: each way in which the books can fail to balance is seen and said."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from demo.books import Count, Toll, count, problems, say_balance
from demo.ledger import Figures, Ledger
from demo.plan import MAIN, QUEUES, SMALL, collector_data, token_file, writer_record
from demo.settings import begin_config
from infi.ramen_client import QueueWriter
from infi.ramen_client.storage import Books
from infi.ramen_protocol import Envelope
from infi.ramen_server import NewMessage, SqliteStore, Submission

BOOKS = Books(
    pushed=20, found=0, waiting=0, accepted=10, dropped=1, blacklisted=4, dead=0, dead_discarded=0,
    trimmed=5, expired=0, purged=0, damaged=0, removed_by_1x=0, maybe_twice=0,
)  # fmt: skip
BALANCED = Count(
    "main", pushed=20, stored=10, stored_twice=0, waiting=0, waiting_stored=0, dead=0,
    missing_unwanted=5, missing=5, unknown=0, pushed_twice=0, books=BOOKS,
)  # fmt: skip


def test_every_message_is_counted_where_it_is():
    counted = count(
        "main",
        pushed=Counter(["a", "b", "c", "d", "e", "f", "f", "unwanted1"]),
        stored=Counter({"a": 1, "b": 3, "c": 1, "x": 1}),
        waiting={"c", "d", "y"},
        dead={"e"},
        books=BOOKS,
        unwanted=lambda message: message.startswith("unwanted"),
    )
    assert counted == Count(
        "main",
        pushed=8,
        stored=4,
        stored_twice=2,
        waiting=3,
        waiting_stored=1,
        dead=1,
        missing_unwanted=1,
        missing=1,
        unknown=2,
        pushed_twice=1,
        books=BOOKS,
    )


def test_books_that_balance_are_put_into_words():
    assert BALANCED.unaccounted == 0
    assert problems([BALANCED], held=10, again=0, toll=Toll()) == []
    said = say_balance([BALANCED], again=3)
    assert "20 pushed = 10 stored once" in said
    assert "3 arrived again under the same id" in said
    assert "None arrived twice" in say_balance([BALANCED], again=0)


def test_what_arrives_again_is_explained_by_kills_and_cuts_and_by_nothing_else():
    toll = Toll(readers_killed=2, cuts=3)
    assert problems([BALANCED], held=10, again=5000, toll=toll) == []
    [problem] = problems([BALANCED], held=10, again=5001, toll=toll)
    assert "5,001 messages arrived again" in problem
    assert problems([BALANCED], held=10, again=1, toll=Toll()) != []


@pytest.mark.parametrize(
    ("counts", "books", "said"),
    [
        ({"missing": 6}, {}, "1 messages are lost"),
        ({"missing_unwanted": 7}, {}, "2 messages are lost"),
        ({}, {"trimmed": 4}, "1 messages are lost"),
        ({}, {"blacklisted": 3}, "1 messages are lost"),
        ({}, {"dropped": 2}, "1 messages more are counted"),
        ({"missing": 4}, {}, "1 messages more are counted"),
        ({"waiting": 2, "waiting_stored": 1}, {}, "2 messages still wait; 1 of them"),
        ({"dead": 1}, {}, "dead letters"),
        ({"unknown": 1}, {}, "no writer has pushed"),
        ({"pushed_twice": 1}, {}, "identity of another"),
        ({}, {"pushed": 21}, "books say 21 pushed"),
        ({}, {"accepted": 9}, "books say 9 accepted"),
    ],
)
def test_whatever_does_not_balance_is_said_with_its_queue(counts, books, said):
    wrong = replace(BALANCED, books=replace(BOOKS, **books), **counts)
    [problem] = problems([wrong], held=10, again=0, toll=Toll())
    assert problem.startswith("main: ")
    assert said in problem


def test_a_loss_of_one_kind_is_not_made_up_by_an_excess_of_the_other():
    wrong = replace(BALANCED, missing=6, missing_unwanted=4)
    assert wrong.unaccounted == 0
    assert len(problems([wrong], held=10, again=0, toll=Toll())) == 2


def test_what_the_collector_stores_twice_or_counts_wrongly_is_said():
    twice = replace(BALANCED, stored_twice=1)
    [problem] = problems([twice], held=11, again=0, toll=Toll())
    assert "stored more than once" in problem
    [problem] = problems([BALANCED], held=11, again=0, toll=Toll())
    assert "has counted 11 messages, and holds 10" in problem


def test_the_ledger_reads_records_as_they_grow_and_finds_what_waits_and_what_is_stored(tmp_path):
    configs = [begin_config(tmp_path, queue) for queue in QUEUES]
    assert not token_file(tmp_path).exists()
    ledger = Ledger(tmp_path, configs)
    with QueueWriter(configs[0]) as writer:
        reqids = [writer.push("metrics", "load", version, "{}") for version in (1, "v1", "v1")]
    paths = [f"/ramen/v1/metrics/1/main.load.{version}/" for version in (1, "v1", "v1")]
    pushed = [f"{path} {reqid}\n" for path, reqid in zip(paths, reqids, strict=True)]
    writer_record(tmp_path, "host").write_text(pushed[0])
    with writer_record(tmp_path, "devices").open("w") as record:
        record.write(pushed[1] + pushed[2][:10])
        record.flush()
        assert ledger.look() == Figures(pushed=2, waiting=(3, 0))
        record.write(pushed[2][10:])
    store = SqliteStore(collector_data(tmp_path))
    envelope = Envelope("metrics", 1, "main", "load", "1", "1.0", str(reqids[0]))
    submission = Submission((NewMessage(envelope, b"{}", "first"),))
    store.commit([submission, submission], 1000)
    store.close()
    ledger.find_collector()
    looked = ledger.look()
    assert looked == Figures(pushed=3, waiting=(3, 0), arrived=1, arrived_again=1)
    assert looked.arrivals == 2
    main, small = ledger.counts()
    assert (main.pushed, main.waiting, main.stored, main.waiting_stored) == (3, 3, 1, 1)
    assert (main.missing, main.unknown, main.dead, main.books.pushed) == (0, 0, 0, 3)
    assert (small.name, small.pushed, small.waiting, small.stored) == (SMALL.name, 0, 0, 0)
    assert ledger.check_queues() == []
    assert ledger.active_reader(MAIN) is None
    assert not ledger.unwanted_since(0)
    ledger.close()
