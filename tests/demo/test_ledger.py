"""The demo's arithmetic: each way in which the books can fail to balance is seen and said."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from demo.ledger import SERVER_RECORD, Account, Figures, Ledger, problems, reckon, writer_record
from infi.ramen_client import QueueWriter, QueueWriterConfig
from infi.ramen_client.storage import Books

BALANCED = Account(
    pushed=10, waiting=0, waiting_twice=0, arrived_once=10, arrived_again=1, lost=0, unknown=0, pushed_twice=0
)
BOOKS = Books(
    pushed=10, found=0, waiting=0, accepted=10, dropped=0, blacklisted=0, dead=0, dead_discarded=0,
    trimmed=0, expired=0, purged=0, damaged=0, removed_by_1x=0, maybe_twice=0,
)  # fmt: skip


def test_every_message_is_counted_where_it_is():
    account = reckon(Counter("abcdeff"), Counter({"a": 1, "b": 3, "c": 1, "x": 1}), {"c", "d", "y"})
    assert account == Account(
        pushed=7,
        waiting=3,
        waiting_twice=1,
        arrived_once=4,
        arrived_again=2,
        lost=2,
        unknown=2,
        pushed_twice=1,
    )


def test_a_few_arrivals_again_after_a_kill_are_no_problem():
    assert problems(BALANCED, BOOKS, kills=1) == []
    assert problems(replace(BALANCED, arrived_again=128), BOOKS, kills=2) == []


@pytest.mark.parametrize(
    ("account", "books", "said"),
    [
        ({"lost": 1}, {}, "lost"),
        ({"waiting": 2}, {}, "still wait"),
        ({"arrived_again": 129}, {}, "arrived again"),
        ({"unknown": 1}, {}, "no writer has pushed"),
        ({"pushed_twice": 1}, {}, "identity of another"),
        ({}, {"pushed": 11}, "books say 11 pushed"),
        ({}, {"accepted": 9}, "books say 9 accepted"),
    ],
)
def test_whatever_does_not_balance_is_said(account, books, said):
    [problem] = problems(replace(BALANCED, **account), replace(BOOKS, **books), kills=2)
    assert said in problem


def test_the_ledger_reads_records_as_they_grow_and_finds_what_waits_in_the_file(tmp_path):
    config = QueueWriterConfig(
        sender="demo", system_serial=1, system_version="1", queue_dir=str(tmp_path / "queue")
    )
    ledger = Ledger(tmp_path, config, ("host", "devices"))
    with QueueWriter(config) as writer:
        reqids = [writer.push("metrics", "load", version, "{}") for version in (1, "v1", "v1")]
    paths = [f"/ramen/v1/metrics/1/demo.load.{version}/" for version in (1, "v1", "v1")]
    pushed = [f"{path} {reqid}\n" for path, reqid in zip(paths, reqids, strict=True)]
    writer_record(tmp_path, "host").write_text(pushed[0])
    with (
        writer_record(tmp_path, "devices").open("w") as record,
        (tmp_path / SERVER_RECORD).open("w") as arrived,
    ):
        record.write(pushed[1] + pushed[2][:10])
        record.flush()
        looked = ledger.look()
        assert looked == Figures(pushed=2, waiting=3)
        record.write(pushed[2][10:])
        record.flush()
        arrived.write(f'{{"path": "{paths[0]}", "reqid": "{reqids[0]}", "duplicate": false}}\n' * 2)
        arrived.flush()
        looked = ledger.look()
        assert looked == Figures(pushed=3, waiting=3, arrived=1, arrived_again=1)
        assert looked.arrivals == 2
    assert ledger.account() == Account(
        pushed=3,
        waiting=3,
        waiting_twice=1,
        arrived_once=1,
        arrived_again=1,
        lost=0,
        unknown=0,
        pushed_twice=0,
    )
    assert ledger.books().pushed == 3
    assert ledger.check_queue() == []
    ledger.close()
