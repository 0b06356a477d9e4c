"""The queue against a model of it: any order of operations, the same messages, the same books."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from queues import GIB, ORIGIN, UNEXPLAINED, make_message, make_queue, open_1x, settlement

from infi.ramen_client.storage import ActiveReader, Fate, Queue, Settlement, StoredMessage
from infi.ramen_client.storage._database import Kind

if TYPE_CHECKING:
    import apsw

LIMIT = 40_960
SIZES = st.sampled_from([0, 10, 300, 3000, 9000])


class QueueMachine(RuleBasedStateMachine):
    """``waiting`` and ``dead`` are lists of reqids in the order of their positions."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.mkdtemp()
        self.queue: Queue = make_queue(self.directory, max_bytes=LIMIT)
        self.reader: ActiveReader | None = None
        self.claimed: list[StoredMessage] = []
        self.order: list[str] = []  # every reqid, in the order of its position
        self.waiting: set[str] = set()
        self.dead: set[str] = set()
        self.run: list[str] = []
        self.counts: Counter[str] = Counter()
        self.positions: dict[int, str] = {}

    def teardown(self) -> None:
        self._stand_down()
        self.queue.close()
        shutil.rmtree(self.directory)

    def _stand_down(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        self.claimed = []

    def _pushed(self, reqids: list[str]) -> None:
        self.order += reqids
        self.waiting |= set(reqids)
        self.counts["pushed"] += len(reqids)
        self._find_trimmed(reqids[-1])

    def _find_trimmed(self, newest: str) -> None:
        """The model does not foresee how many go, but which may: the oldest that are not in flight, never the newest."""
        left = {reqid for (reqid,) in self._rows("SELECT reqid FROM message")}
        gone = [reqid for reqid in self.order if reqid in self.waiting - left]
        in_flight = {message.reqid for message in self.claimed}
        assert newest not in gone
        assert not in_flight.intersection(gone)
        passed_over = [reqid for reqid in self.order if reqid in self.waiting - in_flight]
        assert gone == passed_over[: len(gone)]
        self.waiting -= set(gone)
        self.counts["trimmed"] += len(gone)
        self._check_limit()
        self.counts["discarded"] += len(self.dead) - self.queue.books().dead
        self.dead = {letter.message.reqid for letter in self.queue.dead_letters()}

    def _check_limit(self) -> None:
        stays = len(self.claimed) + len(self.run) + 1
        assert self.queue.bytes_used() <= LIMIT + stays * 4 * 4096

    def _rows(self, statement: str) -> list[tuple[str]]:
        connection: apsw.Connection = open_1x(self.queue.path)
        try:
            return list(connection.execute(statement))
        finally:
            connection.close()

    def _ready(self) -> list[str]:
        in_flight = {message.reqid for message in self.claimed}
        return [reqid for reqid in self.order if reqid in self.waiting - in_flight]

    @rule(size=SIZES)
    def push(self, size: int) -> None:
        message = make_message(size=size)
        self.queue.push((message,))
        self._pushed([message.reqid])

    @rule(sizes=st.lists(SIZES, min_size=1, max_size=12))
    def push_many(self, sizes: list[int]) -> None:
        messages = [make_message(size=size) for size in sizes]
        self.queue.push(messages)
        self._pushed([message.reqid for message in messages])

    @rule()
    def become_reader(self) -> None:
        reader = ActiveReader.activate(self.queue)
        assert (reader is None) is (self.reader is not None)
        self.reader = self.reader or reader

    @precondition(lambda self: self.reader)
    @rule(most=st.integers(1, 10), most_bytes=st.sampled_from([1, 4000, GIB]))
    def claim(self, most: int, most_bytes: int) -> None:
        assert self.reader is not None
        self.claimed = []
        expected = self._ready()
        self.claimed = self.reader.claim(most, most_bytes)
        found = [message.reqid for message in self.claimed]
        assert bool(found) is bool(expected)
        assert found == expected[: len(found)]
        for message in self.claimed:
            assert self.positions.setdefault(message.position, message.reqid) == message.reqid

    @precondition(lambda self: self.claimed)
    @rule(fate=st.sampled_from(Fate), part=st.integers(1, 10))
    def settle(self, fate: Fate, part: int) -> None:
        assert self.reader is not None
        settled, self.claimed = self.claimed[:part], self.claimed[part:]
        self.reader.settle([settlement(message, fate) for message in settled])
        reqids = {message.reqid for message in settled}
        self.waiting -= reqids
        if fate is Fate.DEAD:
            self._died(reqids)
        else:
            self.counts[fate.value] += len(reqids)
        if fate in (Fate.ACCEPTED, Fate.DROPPED):
            self.run = []

    def _died(self, reqids: set[str]) -> None:
        before = self.dead | reqids
        self.dead = {letter.message.reqid for letter in self.queue.dead_letters()}
        assert self.dead <= before
        assert set(self.run) <= self.dead | reqids
        self.counts["discarded"] += len(before - self.dead)

    @precondition(lambda self: self.claimed)
    @rule()
    def reject_unexplained(self) -> None:
        assert self.reader is not None
        message = self.claimed.pop(0)
        suspect = self.reader.reject_unexplained(Settlement(message, Fate.DEAD, UNEXPLAINED), ORIGIN)
        self.waiting.discard(message.reqid)
        self.run.append(message.reqid)
        assert suspect is (len(self.run) >= 5)
        if suspect:
            back = {reqid for reqid in self.run if reqid in self.dead or reqid == message.reqid}
            self.waiting |= back
            self.dead -= back
            self.run = []
            self.claimed = []
        else:
            self._died({message.reqid})

    @precondition(lambda self: self.reader)
    @rule()
    def give_back(self) -> None:
        assert self.reader is not None
        self.reader.give_back()
        self.claimed = []

    @rule()
    def stand_down(self) -> None:
        self._stand_down()

    @rule()
    def take_oldest(self) -> None:
        expected = self._ready()
        taken = self.queue.take_oldest()
        assert (taken.reqid if taken else None) == (expected[0] if expected else None)
        if taken:
            self.waiting.discard(taken.reqid)
            self.counts["purged"] += 1

    @rule(number=st.integers(1, 3))
    def retry_dead_letters(self, number: int) -> None:
        letters = self.queue.dead_letters()[:number]
        assert self.queue.retry_dead_letters([letter.message.position for letter in letters]) == len(letters)
        back = {letter.message.reqid for letter in letters}
        self.dead -= back
        self.run = [reqid for reqid in self.run if reqid not in back]
        self.waiting |= back

    @rule()
    def discard_dead_letters(self) -> None:
        assert self.queue.discard_dead_letters() == len(self.dead)
        self.counts["discarded"] += len(self.dead)
        self.dead = set()
        self.run = []

    @rule()
    def reopen(self) -> None:
        self._stand_down()
        self.queue.close()
        self.queue = make_queue(self.directory, max_bytes=LIMIT)

    @precondition(lambda self: self.reader)
    @rule()
    def tidy_and_checkpoint(self) -> None:
        assert self.reader is not None
        for _ in range(50):
            if not self.reader.tidy():
                break
        else:
            raise AssertionError("tidying does not end")
        self.queue.database.checkpoint(Kind.NORMAL)

    @invariant()
    def the_books_are_those_of_the_model(self) -> None:
        assert self.queue.check() == []
        books = self.queue.books()
        assert {
            "pushed": books.pushed,
            "trimmed": books.trimmed,
            "discarded": books.dead_discarded,
            "accepted": books.accepted,
            "dropped": books.dropped,
            "blacklisted": books.blacklisted,
            "purged": books.purged,
        } == {key: self.counts[key] for key in _KEYS}
        assert (books.waiting, books.dead) == (len(self.waiting), len(self.dead))
        assert self.queue.size() == len(self.waiting)


_KEYS = ("pushed", "trimmed", "discarded", "accepted", "dropped", "blacklisted", "purged")

TestQueueAgainstItsModel = QueueMachine.TestCase
TestQueueAgainstItsModel.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
