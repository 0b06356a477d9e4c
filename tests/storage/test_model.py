"""The queue against a model of it: any order of operations and disasters, the same messages, the same books.

After every step the invariants of ``storage/__init__.py`` hold, and the queue holds what the model says. Disasters:

- a killed process: its files are copied as they are, in the middle of a transaction too, and opened elsewhere;
- a power cut under ``durability="normal"``: the log is cut behind one of the commits since the last checkpoint;
- a disk that has no page left;
- a page of the database overwritten: what is found again is taken over into the model, and may lack what one page can hold.

``State`` is what a commit leaves on disk. A frozen batch is synced, so a power cut leaves it, and everything before it.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from queues import GIB, ORIGIN, UNEXPLAINED, empty_wal, make_message, make_queue, settlement

from infi.ramen_client.errors import DiskFull
from infi.ramen_client.storage import (
    ActiveReader,
    Books,
    Fate,
    FrozenBatch,
    Matching,
    Queue,
    Settlement,
    StoredMessage,
    add_rule,
    load_rules,
    purge,
)
from infi.ramen_client.storage import lift_rules as lift_stored_rules
from infi.ramen_client.storage._cells import read_leaf
from infi.ramen_client.storage._database import Kind
from infi.ramen_client.storage._errors import Damaged
from infi.ramen_client.storage._expiry import Clocks, Expiry
from infi.ramen_client.storage._heal import heal
from infi.ramen_client.storage._pages import Pages, RawFile, Use
from infi.ramen_protocol import Rule

if TYPE_CHECKING:
    from collections.abc import Iterable

LIMIT = 40_960
SIZES = st.sampled_from([0, 10, 300, 3000, 9000])
CATEGORIES = st.sampled_from(["metrics", "events"])
MAX_AGE_MS = 1000 * 3600
QUIET_STEPS = 5
PAGE = 4096
FRAME = 24 + PAGE
LOG_HEADER = 32


@dataclass
class State:
    """What is on disk after a commit. ``waiting`` and ``dead`` are reqids."""

    order: list[str] = field(default_factory=list)
    """Every reqid, in the order of its position."""
    waiting: set[str] = field(default_factory=set)
    dead: set[str] = field(default_factory=set)
    unsendable: set[str] = field(default_factory=set)
    """Of the dead, those that are damaged."""
    run: list[str] = field(default_factory=list)
    """Rejections without a protocol body."""
    leased: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    rules: dict[int, str] = field(default_factory=dict)
    lanes: dict[str, int] = field(default_factory=dict)
    """The last number of each."""
    frozen: dict[int, tuple[str, int, tuple[str, ...]]] = field(default_factory=dict)
    """Batches: lane, number, members."""

    @property
    def members(self) -> set[str]:
        """What is frozen."""
        return {reqid for _, _, reqids in self.frozen.values() for reqid in reqids}

    def in_order(self, reqids: set[str]) -> list[str]:
        return [reqid for reqid in self.order if reqid in reqids]


class Disk:
    """The log's commits since it was last copied into the database: what a power cut may leave."""

    def __init__(self, queue: Queue, state: State) -> None:
        self._log = queue.path.with_name(queue.path.name + "-wal")
        self._salts = b""
        self._latest = deepcopy(state)
        self.commits: list[tuple[int, State]] = []
        self.note_checkpoint()

    def note(self, state: State) -> None:
        """Something may have been committed."""
        salts, frames = self._frames()
        if salts != self._salts:  # the log began anew, so all that was is in the database
            self._salts, self.commits = salts, [(0, self._latest)]
        self._latest = deepcopy(state)
        self.commits = [(number, found) for number, found in self.commits if number < frames]
        self.commits.append((frames, self._latest))

    def note_checkpoint(self) -> None:
        """All that is in the log was synced."""
        self._salts, frames = self._frames()
        self.commits = [(frames, self._latest)]

    def note_synced(self, state: State) -> None:
        """The last commit was synced."""
        self.note(state)
        self.commits = self.commits[-1:]

    def cut(self, log: Path, frames: int, torn: bytes) -> None:
        if log.exists():
            os.truncate(log, min(log.stat().st_size, LOG_HEADER + frames * FRAME))
            with log.open("ab") as file:
                file.write(torn)

    def _frames(self) -> tuple[bytes, int]:
        """The log's salts, and how many of its frames are committed."""
        content = self._log.read_bytes() if self._log.exists() else b""
        salts = content[16:24]
        committed = 0
        for number, offset in enumerate(range(LOG_HEADER, len(content) - FRAME + 1, FRAME), 1):
            _, size = struct.unpack_from(">II", content, offset)
            if content[offset + 8 : offset + 16] != salts:
                break
            committed = number if size else committed
        return salts, committed


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.clocks = Clocks(1_790_000_000_000, 10**9, "first start")
        self.pushed_at: dict[str, int] = {}
        self.categories: dict[str, str] = {}
        self.state = State()
        self.quiet = 0  # steps since the last disaster
        self.reader: ActiveReader | None = None
        self.claimed: list[StoredMessage] = []
        self.batches: list[FrozenBatch] = []
        self.lanes_opened = 0
        self._open(tempfile.mkdtemp())

    def _open(self, directory: str) -> None:
        self.directory = directory
        self.quiet = 0
        self.queue: Queue = make_queue(directory, max_bytes=LIMIT, max_age_seconds=MAX_AGE_MS / 1000)
        self.queue.expiry = Expiry(MAX_AGE_MS / 1000, lambda: self.clocks)
        self.disk = Disk(self.queue, self.state)
        database = self.queue.database
        original = database.checkpoint

        def checkpoint(kind: Kind) -> None:
            original(kind)
            self.disk.note_checkpoint()

        database.checkpoint = checkpoint  # type: ignore[method-assign]

    def teardown(self) -> None:
        self._leave()

    def _leave(self) -> None:
        self._drop_reader()
        self.queue.close()
        shutil.rmtree(self.directory)

    def _drop_reader(self) -> None:
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        self.claimed = []
        self.batches = []

    def _rows(self) -> list[str]:
        with self.queue.database.connection(Kind.NORMAL) as connection:
            return [reqid for (reqid,) in connection.execute("SELECT reqid FROM message ORDER BY position")]

    # Pushing and trimming

    def _messages(self, sizes: Iterable[int], category: str) -> list[object]:
        messages = [
            make_message(size=size, category=category, pushed_at_ms=self.clocks.wall_ms) for size in sizes
        ]
        for message in messages:
            self.pushed_at[message.reqid] = message.pushed_at_ms
            self.categories[message.reqid] = category
        return messages

    def _push(self, sizes: list[int], category: str) -> None:
        messages = self._messages(sizes, category)
        self.queue.push(messages)  # type: ignore[arg-type]
        self._pushed([message.reqid for message in messages])  # type: ignore[attr-defined]

    def _pushed(self, reqids: list[str]) -> None:
        state = self.state
        state.order += reqids
        state.waiting |= set(reqids)
        state.counts["pushed"] += len(reqids)
        # The model does not foresee how many are trimmed, but which may: the oldest that are not in flight, never the newest.
        gone = state.in_order(state.waiting - set(self._rows()))
        assert reqids[-1] not in gone
        assert not state.leased.intersection(gone)
        assert gone == state.in_order(state.waiting - state.leased)[: len(gone)]
        state.waiting -= set(gone)
        state.counts["trimmed"] += len(gone)
        stays = len(state.leased) + len(state.run) + 1
        assert self.queue.bytes_used() <= LIMIT + stays * 4 * PAGE
        self._find_dead()

    def _find_dead(self, came: Iterable[str] = ()) -> None:
        """Dead letters beyond their share are discarded, but for those that may yet go back."""
        before = self.state.dead | set(came)
        self.state.dead = {letter.message.reqid for letter in self.queue.dead_letters()}
        assert self.state.dead <= before
        assert set(self.state.run) <= self.state.dead | set(came)
        self.state.counts["dead_discarded"] += len(before - self.state.dead)

    @rule(size=SIZES, category=CATEGORIES)
    def push(self, size: int, category: str) -> None:
        self._push([size], category)

    @rule(sizes=st.lists(SIZES, min_size=1, max_size=12), category=CATEGORIES)
    def push_many(self, sizes: list[int], category: str) -> None:
        self._push(sizes, category)

    @rule(sizes=st.lists(SIZES, min_size=1, max_size=4))
    def push_on_a_full_disk(self, sizes: list[int]) -> None:
        before = self._rows()
        with self.queue.database.connection(Kind.NORMAL) as connection:
            connection.pragma("max_page_count", connection.pragma("page_count"))
        try:
            self._push(sizes, "metrics")
        except DiskFull:
            assert self._rows() == before
        finally:
            with self.queue.database.connection(Kind.NORMAL) as connection:
                connection.pragma("max_page_count", 2**32 - 2)

    # The reader

    @rule()
    def become_reader(self) -> None:
        reader = ActiveReader.activate(self.queue)
        assert (reader is None) is (self.reader is not None)
        if reader is not None:
            self.reader = reader
            reader.give_back()
            self.state.leased = self.state.members
            self.batches = reader.batches.load(_digest)
            found = {
                batch.batch_id: (batch.lane, batch.number, _reqids(batch.members)) for batch in self.batches
            }
            assert found == self.state.frozen
            assert list(found) == sorted(found)

    @rule(most=st.integers(1, 10), most_bytes=st.sampled_from([1, 4000, GIB]))
    def claim(self, most: int, most_bytes: int) -> None:
        if self.reader is None:
            self.become_reader()
        assert self.reader is not None
        self.give_back()
        self.claimed = self.reader.claim(most, most_bytes)
        self._find_expired()
        expected = self.state.in_order(self.state.waiting - self.state.members)
        found = [message.reqid for message in self.claimed]
        assert bool(found) is bool(expected)
        assert found == expected[: len(found)]
        self.state.leased = self.state.members | set(found)

    def _find_expired(self) -> None:
        """The model does not foresee when, since the clocks are watched first; but none too early."""
        gone = self.state.waiting - set(self._rows())
        assert not gone & self.state.members
        assert all(self.clocks.wall_ms - self.pushed_at[reqid] > MAX_AGE_MS for reqid in gone)
        self.state.waiting -= gone
        self.state.counts["expired"] += len(gone)

    def _let_time_pass(self, milliseconds: int) -> None:
        now = self.clocks
        self.clocks = replace(now, wall_ms=now.wall_ms + milliseconds, steady_ms=now.steady_ms + milliseconds)

    @rule(part=st.sampled_from([0.3, 0.6, 1.1]))
    def let_messages_grow_old(self, part: float) -> None:
        for _ in range(2):  # both clocks are watched for a while before they are believed
            self.claim(1, 1)
            self._let_time_pass(int(part * MAX_AGE_MS / 2))
        self.claim(1, 1)

    @precondition(lambda self: self.claimed)
    @rule(fate=st.sampled_from(Fate), part=st.integers(1, 10))
    def settle(self, fate: Fate, part: int) -> None:
        assert self.reader is not None
        settled, self.claimed = self.claimed[:part], self.claimed[part:]
        self.reader.settle([settlement(message, fate) for message in settled])
        self._settled([(message.reqid, fate) for message in settled])

    def _settled(self, fates: list[tuple[str, Fate]]) -> None:
        state = self.state
        for reqid, fate in fates:
            state.waiting.discard(reqid)
            state.leased.discard(reqid)
            if fate is not Fate.DEAD:
                state.counts[fate.value] += 1
        dead = {reqid for reqid, fate in fates if fate is Fate.DEAD}
        if dead:
            self._find_dead(dead)
        if {Fate.ACCEPTED, Fate.DROPPED}.intersection(fate for _, fate in fates):
            state.run = []

    @precondition(lambda self: self.claimed)
    @rule()
    def reject_unexplained(self) -> None:
        assert self.reader is not None
        message = self.claimed.pop(0)
        suspect = self.reader.reject_unexplained(Settlement(message, Fate.DEAD, UNEXPLAINED), ORIGIN)
        state = self.state
        state.waiting.discard(message.reqid)
        state.leased.discard(message.reqid)
        state.run.append(message.reqid)
        assert suspect is (len(state.run) >= 5)
        if suspect:
            back = {reqid for reqid in state.run if reqid in state.dead or reqid == message.reqid}
            state.waiting |= back
            state.dead -= back
            state.run = []
            self.give_back()
        else:
            self._find_dead({message.reqid})

    @precondition(lambda self: self.reader)
    @rule()
    def give_back(self) -> None:
        assert self.reader is not None
        self.reader.give_back()
        self.claimed = []
        self.state.leased = self.state.members

    @rule()
    def stand_down(self) -> None:
        if self.reader is not None:
            self.give_back()
        self._drop_reader()

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

    # Version 2

    @precondition(lambda self: self.claimed)
    @rule(part=st.integers(1, 10), in_old_lane=st.booleans())
    def freeze(self, part: int, in_old_lane: bool) -> None:
        assert self.reader is not None
        taken, self.claimed = self.claimed[:part], self.claimed[part:]
        free = sorted(set(self.state.lanes) - {lane for lane, _, _ in self.state.frozen.values()})
        self.lanes_opened += 1
        lane = free[0] if free and in_old_lane else f"lane-{self.lanes_opened}"
        batch = self.reader.batches.freeze(taken, lane=lane, origin=ORIGIN, digest=_digest(taken))
        assert batch is not None
        assert batch.number == self.state.lanes.get(lane, 0) + 1
        self.batches.append(batch)
        self.state.lanes[lane] = batch.number
        self.state.frozen[batch.batch_id] = (lane, batch.number, _reqids(taken))
        self.disk.note_synced(self.state)

    def _end_batch(self, which: int) -> FrozenBatch:
        """What ends a batch does it in one transaction, which the caller makes; its members are free."""
        batch = self.batches.pop(which % len(self.batches))
        del self.state.frozen[batch.batch_id]
        self.state.leased -= set(_reqids(batch.members))
        return batch

    @precondition(lambda self: self.batches)
    @rule(which=st.integers(0, 3), fates=st.lists(st.sampled_from([None, *Fate]), min_size=1, max_size=10))
    def settle_batch(self, which: int, fates: list[Fate | None]) -> None:
        """Each member has a verdict of its own, or goes back."""
        assert self.reader is not None
        batch = self._end_batch(which)
        judged = [
            (message, fate) for message, fate in zip(batch.members, fates, strict=False) if fate is not None
        ]
        self.reader.settle([settlement(message, fate) for message, fate in judged], batch=batch)
        self._settled([(message.reqid, fate) for message, fate in judged])

    @precondition(lambda self: self.batches)
    @rule(which=st.integers(0, 3), maybe_twice=st.booleans(), end_lane=st.booleans())
    def dissolve_batch(self, which: int, maybe_twice: bool, end_lane: bool) -> None:
        assert self.reader is not None
        batch = self._end_batch(which)
        self.reader.batches.dissolve(batch, maybe_twice=maybe_twice, end_lane=end_lane)
        self.state.counts["maybe_twice"] += len(batch.members) if maybe_twice else 0
        if end_lane:
            del self.state.lanes[batch.lane]

    # Programs and operators

    @rule()
    def take_oldest(self) -> None:
        held = self.state.leased if self.reader else self.state.members
        expected = self.state.in_order(self.state.waiting - held)
        taken = self.queue.take_oldest()
        assert (taken.reqid if taken else None) == (expected[0] if expected else None)
        if taken:
            self.state.waiting.discard(taken.reqid)
            self.state.leased.discard(taken.reqid)
            self.state.counts["purged"] += 1

    @rule(category=CATEGORIES)
    def purge(self, category: str) -> None:
        held = self.state.leased if self.reader else self.state.members
        meant = {reqid for reqid in self.state.waiting if self.categories[reqid] == category} - held
        purged = purge(self.queue.database, Matching(category), dry_run=False, sleep=lambda _: None)
        assert purged.messages == len(meant)
        self.state.waiting -= meant
        self.state.leased -= meant
        self.state.counts["purged"] += len(meant)

    @rule(number=st.integers(1, 3))
    def retry_dead_letters(self, number: int) -> None:
        letters = self.queue.dead_letters()[:number]
        back = {letter.message.reqid for letter in letters} - self.state.unsendable
        raised = self.queue.retry_dead_letters([letter.message.position for letter in letters])
        assert raised == len(back)
        self.state.dead -= back
        self.state.run = [reqid for reqid in self.state.run if reqid not in back]
        self.state.waiting |= back

    @rule()
    def discard_dead_letters(self) -> None:
        assert self.queue.discard_dead_letters() == len(self.state.dead)
        self.state.counts["dead_discarded"] += len(self.state.dead)
        self.state.dead = set()
        self.state.run = []

    @rule(category=CATEGORIES)
    def receive_rule(self, category: str) -> None:
        self.state.rules[add_rule(self.queue, Rule(category=category))] = category

    @precondition(lambda self: self.state.rules)
    @rule()
    def lift_rules(self) -> None:
        assert lift_stored_rules(self.queue.database, self.state.rules) == len(self.state.rules)
        self.state.rules = {}

    # Disasters: not so often that nothing comes about between them

    @precondition(lambda self: self.quiet > QUIET_STEPS)
    @rule()
    def reopen(self) -> None:
        self.stand_down()
        self.queue.close()
        self._open(self.directory)

    @precondition(lambda self: self.quiet > QUIET_STEPS)
    @rule(amid=st.booleans())
    def kill(self, amid: bool) -> None:
        """What the killed one had committed is there, nothing else, and its leases are void for the next reader."""
        if not amid:
            self._go_on_in(self._copy())
            return
        copies = []

        class Killed(Exception):
            pass

        try:
            with self.queue.database.transaction(Kind.NORMAL) as connection:
                connection.execute("DELETE FROM message WHERE position % 2")
                connection.execute("UPDATE book SET pushed = 0, accepted = 99")
                connection.cache_flush()
                copies.append(self._copy())
                raise Killed
        except Killed:
            pass
        self._go_on_in(copies[0])

    @precondition(lambda self: self.quiet > QUIET_STEPS)
    @rule(chance=st.randoms(use_true_random=False))
    def cut_the_power(self, chance: object) -> None:
        frames, state = chance.choice(self.disk.commits)  # type: ignore[attr-defined]
        torn = chance.randbytes(chance.choice([0, 10, FRAME, 3 * FRAME]))  # type: ignore[attr-defined]
        copy = self._copy()
        self.disk.cut(Path(copy) / (self.queue.path.name + "-wal"), frames, torn)
        self.state = deepcopy(state)
        self._go_on_in(copy)

    @precondition(lambda self: self.quiet > QUIET_STEPS)
    @rule(chance=st.randoms(use_true_random=False))
    def damage_a_page(self, chance: object) -> None:
        self.stand_down()
        empty_wal(self.queue)
        copy = self._copy()
        path = Path(copy) / self.queue.path.name
        page = chance.randrange(path.stat().st_size // PAGE)  # type: ignore[attr-defined]
        hit = _rows_on(path, page + 1)
        with path.open("r+b") as file:
            file.seek(page * PAGE)
            file.write(chance.choice([bytes(PAGE), chance.randbytes(PAGE)]))  # type: ignore[attr-defined]
        self._go_on_in(copy)
        if self.queue.check():
            heal(self.queue.database, self.queue.place, Damaged("for the test"))
        reader = ActiveReader.activate(self.queue)
        assert reader is not None
        reader.claim(1, 1)
        reader.give_back()
        reader.close()
        self._adopt(hit)

    def _copy(self) -> str:
        """The files as a kill leaves them; by another process, for the sake of SQLite's locks in this one."""
        copy = tempfile.mkdtemp()
        files = [str(file) for file in Path(self.directory).iterdir() if not file.name.endswith("-shm")]
        subprocess.run(["cp", "--", *files, copy], check=True)
        return copy

    def _go_on_in(self, directory: str) -> None:
        self._leave()
        self._open(directory)

    def _adopt(self, hit: int) -> None:
        """Take over what a healed file holds: nothing that never was, and at most what was hit is missing."""
        state, rows = self.state, self._rows()
        books = self.queue.books()
        letters = {letter.message.reqid: letter.message for letter in self.queue.dead_letters()}
        was_healed = (
            self.queue.meta is not None
            and books.found + books.damaged > state.counts["found"] + state.counts["damaged"]
        )
        assert set(rows) <= set(state.order)
        assert len(set(rows)) == len(rows)
        assert len(state.waiting - set(rows) - set(letters)) <= hit
        stayed = [reqid for reqid in rows if reqid in state.waiting]
        assert stayed == [reqid for reqid in state.order if reqid in set(stayed)] or was_healed
        with self.queue.database.connection(Kind.NORMAL) as connection:
            run = [
                reqid
                for (reqid,) in connection.execute(
                    "SELECT reqid FROM dead_letter JOIN unexplained USING (position) ORDER BY unexplained.position"
                )
            ]
        rules = {stored.rule_id: stored.rule.category or "" for stored in load_rules(self.queue)}
        assert rules.items() <= state.rules.items()
        with self.queue.database.connection(Kind.NORMAL) as connection:
            places = dict(
                connection.execute(
                    "SELECT reqid, position FROM message UNION ALL SELECT reqid, position FROM dead_letter"
                )
            )
            batches = {batch_id for (batch_id,) in connection.execute("SELECT batch_id FROM batch")}
            lanes = {lane for (lane,) in connection.execute("SELECT lane FROM lane")}
        assert not was_healed or not batches
        here = sorted(places, key=places.__getitem__)
        self.state = State(
            order=[reqid for reqid in state.order if reqid not in places] + here,
            waiting=set(rows),
            dead=set(letters),
            unsendable={reqid for reqid, message in letters.items() if message.plain_length < 0},
            run=[reqid for reqid in state.run if reqid in run],
            rules=rules,
            counts=Counter({key: getattr(books, key) for key in KEYS}),
            lanes={lane: number for lane, number in state.lanes.items() if lane in lanes},
            frozen={batch_id: batch for batch_id, batch in state.frozen.items() if batch_id in batches},
        )
        self.state.leased = self.state.members
        self.disk.note(self.state)
        self.disk.note_checkpoint()

    # After each step

    @invariant()
    def the_queue_is_as_the_model_says(self) -> None:
        state, books = self.state, self.queue.books()
        self.quiet += 1
        self.disk.note(state)
        assert self.queue.check() == []
        assert {key: getattr(books, key) for key in KEYS} == {key: state.counts[key] for key in KEYS}
        assert (books.waiting, books.dead) == (len(state.waiting), len(state.dead))
        assert self.queue.size() == len(state.waiting)
        assert self._rows() == state.in_order(state.waiting)
        assert {stored.rule_id for stored in load_rules(self.queue)} == set(state.rules)


def _rows_on(path: Path, number: int) -> int:
    """How many rows a page of a database that has no log may take with it."""
    database, log = RawFile(path), RawFile(path.with_name("no log"))
    pages = Pages(database, log, {}, None)
    leaf, entry = read_leaf(pages.read(number), number), pages.entry(number)
    database.close()
    if entry is not None and entry.use in (Use.OVERFLOW, Use.OVERFLOW_FIRST):
        return 1
    return len(leaf.cells) if leaf and number > 1 else 0


def _reqids(messages: Iterable[StoredMessage]) -> tuple[str, ...]:
    return tuple(message.reqid for message in messages)


def _digest(messages: Iterable[StoredMessage]) -> str:
    return " ".join(_reqids(messages))


KEYS = sorted(set(Books.__dataclass_fields__) - {"waiting", "dead", "removed_by_1x"})

TestQueueAgainstItsModel = QueueMachine.TestCase
TestQueueAgainstItsModel.settings = settings(max_examples=50, stateful_step_count=50, deadline=None)


class QueueMachineForLong(QueueMachine):
    pass


TestQueueAgainstItsModelForLong = pytest.mark.soak(pytest.mark.timeout(3600)(QueueMachineForLong.TestCase))
TestQueueAgainstItsModelForLong.settings = settings(max_examples=1500, stateful_step_count=60, deadline=None)
