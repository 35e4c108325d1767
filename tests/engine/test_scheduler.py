"""Which batch runs next: the decision alone, the lanes, many threads, and whole days on a simulated clock."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.engine.entry import Entry, Reason
from service.engine.scheduler import AHEAD, AUDIT_SHARE, PATIENCE, Batch, Pick, Plan, Scheduler, Waiting, pick
from service.inference.latency import LatencyTable, Stage

TIMEOUT = 20.0
NONE = Waiting(0)

# Seconds of a batch: a start, and something for each image. A larger high batch saves much.
TABLE = LatencyTable(
    low={size: 1.0 + 1.0 * size for size in (1, 2, 4, 8, 16, 32)},
    high={size: 8.0 + 4.0 * size for size in (1, 2, 4, 8, 16, 32)},
)

MakeEntry = Callable[[float], Entry]


def plan_of(size: int, high_size: int | None = None) -> Plan:
    """Time is no matter: nothing is gained by a fuller batch."""
    return Plan(size, high_size or size)


def timed(low_size: int = 8, high_size: int = 8) -> Plan:
    return Plan(low_size, high_size, TABLE.seconds)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """Never runs: the futures of entries must belong to one."""
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def make_entry(loop: asyncio.AbstractEventLoop) -> MakeEntry:
    return lambda arrival: entry_of(loop, arrival)


def entry_of(loop: asyncio.AbstractEventLoop, arrival: float) -> Entry:
    return Entry(0.5, 1, 1, arrival, None, loop, loop.create_future(), enqueued=arrival)


def taken(batch: Batch | None) -> Batch:
    assert batch is not None
    return batch


def arrivals(batch: Batch | None) -> list[float]:
    return [entry.arrival for entry in taken(batch).entries]


def escalate(scheduler: Scheduler, batch: Batch, unsure: list[Entry], now: float = 0.0) -> None:
    """What a worker does after a low pass: ``unsure`` keep their slots."""
    unused = []
    for entry, slot in zip(batch.entries, batch.slots, strict=True):
        if entry in unsure:
            entry.slot, entry.enqueued = slot, now
        else:
            unused.append(slot)
    scheduler.escalate(unsure, len(batch.entries), unused)


# pick: the oldest first


def pick_untimed(low: Waiting, high: Waiting, free: int, most: int) -> Pick | None:
    return pick(0.0, {"low": low, "high": high}, free, plan_of(most), 0.5)


def test_lane_with_the_oldest_image_goes_first() -> None:
    assert pick_untimed(Waiting(3, 4.0), Waiting(1, 5.0), 9, 8) == Pick("low", 3, "drained")
    assert pick_untimed(Waiting(3, 4.0), Waiting(1, 3.0), 9, 8) == Pick("high", 1, "drained")


def test_high_pass_goes_first_on_a_tie() -> None:
    assert pick_untimed(Waiting(8, 4.0), Waiting(1, 4.0), 9, 8) == Pick("high", 1, "drained")


def test_full_batch_says_so_even_when_it_empties_its_lane() -> None:
    assert pick_untimed(Waiting(8, 0.0), NONE, 9, 8) == Pick("low", 8, "full")
    assert pick_untimed(Waiting(30, 0.0), NONE, 9, 8) == Pick("low", 8, "full")
    assert pick_untimed(NONE, Waiting(8, 0.0), 0, 8) == Pick("high", 8, "full")


def test_each_pass_has_a_largest_batch_of_its_own() -> None:
    plan = plan_of(16, high_size=2)
    assert pick(0.0, {"low": Waiting(30, 0.0), "high": NONE}, 99, plan, 0.5) == Pick("low", 16, "full")
    assert pick(0.0, {"low": NONE, "high": Waiting(30, 0.0)}, 99, plan, 0.5) == Pick("high", 2, "full")


def test_low_batch_is_as_large_as_the_free_slots() -> None:
    assert pick_untimed(Waiting(5, 0.0), NONE, 3, 8) == Pick("low", 3, "slots")


def test_high_pass_needs_no_slots() -> None:
    assert pick_untimed(Waiting(5, 0.0), Waiting(2, 1.0), 0, 8) == Pick("high", 2, "drained")


def test_nothing_is_picked_when_nothing_may_start() -> None:
    assert pick_untimed(NONE, NONE, 9, 8) is None
    assert pick_untimed(Waiting(5, 0.0), NONE, 0, 8) is None


# pick: overtaking


def overtakes(
    now: float = 100.0, high: int = 1, since: float = 100.0, deadline: float = math.inf,
    free: int = 64, escalating: float = 0.5, start: float = 8.0,
) -> bool:  # fmt: skip
    """Whether 8 new images go before ``high`` older, escalated ones. ``start``: of a high batch, in seconds."""
    table = LatencyTable(TABLE.low, {size: start + 4.0 * size for size in TABLE.high})
    lanes: dict[Stage, Waiting] = {"low": Waiting(8, 50.0), "high": Waiting(high, 10.0, since, deadline)}
    picked = pick(now, lanes, free, Plan(8, 8, table.seconds), escalating)
    assert picked is not None
    return picked.stage == "low"


def test_escalated_image_waits_for_others_where_their_batch_saves_more_than_its_wait() -> None:
    # 8 low images take 9 seconds and escalate 4: together with the one, 28 seconds instead of 12 + 24.
    assert overtakes()


def test_escalated_images_that_are_many_do_not_wait() -> None:
    start = 2.0  # which one larger batch saves for all that wait, while each escalated one waits 9 seconds longer
    assert overtakes(high=2, start=start)
    assert not overtakes(high=3, start=start)


def test_batch_that_would_be_too_large_saves_nothing() -> None:
    assert not overtakes(high=7)  # 7 and 4 take as long as 8 and 3


def test_full_high_batch_does_not_wait() -> None:
    assert not overtakes(high=8)
    assert not overtakes(high=20)


def test_nothing_is_waited_for_where_nothing_will_escalate() -> None:
    assert not overtakes(escalating=0.0)


def test_nothing_is_waited_for_where_larger_batches_save_nothing() -> None:
    proportional = Plan(8, 8, lambda stage, size: size)
    lanes: dict[Stage, Waiting] = {"low": Waiting(8, 50.0), "high": Waiting(1, 10.0, 100.0)}
    assert pick(100.0, lanes, 64, proportional, 0.5) == Pick("high", 1, "drained")


def test_nothing_is_waited_for_without_a_slot() -> None:
    assert not overtakes(free=0)


def test_image_that_would_miss_its_deadline_does_not_wait() -> None:
    in_time = 100.0 + TABLE.seconds("low", 8) + TABLE.seconds("high", 1 + 4)
    assert overtakes(deadline=in_time + 1e-6)
    assert not overtakes(deadline=in_time - 1e-6)


def test_escalated_image_is_overtaken_for_a_few_low_batches_and_no_longer() -> None:
    patience = PATIENCE * TABLE.seconds("low", 8)
    last = 100.0 + patience - TABLE.seconds("low", 8)  # started then, a low batch ends just in time
    assert overtakes(now=last - 1e-6, since=100.0)
    assert not overtakes(now=last + 1e-6, since=100.0)


waits = st.builds(
    Waiting,
    st.integers(1, 20),
    st.integers(0, 5).map(float),
    st.floats(0, 100),
    st.floats(0, 200) | st.just(math.inf),
)
lanes_of_any_kind = st.fixed_dictionaries({stage: waits | st.just(NONE) for stage in ("low", "high")})
picks = given(
    now=st.floats(50, 100),
    lanes=lanes_of_any_kind,
    free=st.integers(0, 20),
    plan=st.builds(timed, st.integers(1, 8), st.integers(1, 8)) | st.builds(plan_of, st.integers(1, 8)),
    escalating=st.floats(0, 1),
)
untimed = settings(deadline=None)


@untimed
@picks
def test_device_never_idles_while_something_may_start(
    now: float, lanes: dict[Stage, Waiting], free: int, plan: Plan, escalating: float
) -> None:
    may_start = lanes["high"].size > 0 or (lanes["low"].size > 0 and free > 0)
    assert (pick(now, lanes, free, plan, escalating) is not None) == may_start


@untimed
@picks
def test_batch_is_as_large_as_lane_slots_and_limit_allow(
    now: float, lanes: dict[Stage, Waiting], free: int, plan: Plan, escalating: float
) -> None:
    picked = pick(now, lanes, free, plan, escalating)
    if picked is not None:
        bounds = {"low": [plan.low_size, free], "high": [plan.high_size]}[picked.stage]
        assert picked.size == min([lanes[picked.stage].size, *bounds]) > 0


@untimed
@picks
def test_younger_image_goes_first_only_for_want_of_slots_or_for_a_while_to_fill_a_batch(
    now: float, lanes: dict[Stage, Waiting], free: int, plan: Plan, escalating: float
) -> None:
    picked = pick(now, lanes, free, plan, escalating)
    if picked is None or lanes[picked.stage].oldest <= min(lane.oldest for lane in lanes.values()):
        return
    if picked.stage == "high":
        assert free == 0
    else:
        end = now + plan.seconds("low", picked.size)
        high = lanes["high"]
        assert high.size < plan.high_size
        assert end + plan.seconds("high", high.size) <= high.deadline
        assert end <= high.since + PATIENCE * plan.seconds("low", plan.low_size)


@untimed
@picks
def test_reason_tells_what_limited_the_batch(
    now: float, lanes: dict[Stage, Waiting], free: int, plan: Plan, escalating: float
) -> None:
    picked = pick(now, lanes, free, plan, escalating)
    if picked is not None:
        most = plan.low_size if picked.stage == "low" else plan.high_size
        limited_by = {"full": most, "drained": lanes[picked.stage].size, "slots": free}
        assert picked.size == limited_by[picked.reason]
        assert (picked.reason == "full") == (picked.size == most)


# take


def test_batch_holds_the_oldest_arrivals_in_order(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(3), slots=9)
    scheduler.push([make_entry(arrival) for arrival in (4.0, 2.0, 5.0, 1.0)])
    assert arrivals(scheduler.take(0.0)) == [1.0, 2.0, 4.0]
    assert arrivals(scheduler.take(0.0)) == [5.0]
    assert scheduler.take(0.0) is None


def test_images_of_one_request_keep_their_order(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(8), slots=9)
    entries = [make_entry(1.0) for _ in range(6)]
    scheduler.push(entries)
    assert taken(scheduler.take(0.0)).entries == entries


def test_escalated_image_goes_before_what_arrived_behind_it(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(1), slots=9)
    scheduler.push([make_entry(1.0), make_entry(2.0)])
    first = taken(scheduler.take(0.0))
    escalate(scheduler, first, first.entries)
    assert scheduler.take(0.0) == Batch("high", "full", first.entries, first.slots)


def test_low_batch_takes_a_slot_for_each_image_at_once(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(8), slots=3)
    scheduler.push([make_entry(float(i)) for i in range(5)])
    first = taken(scheduler.take(0.0))
    assert arrivals(first) == [0.0, 1.0, 2.0]
    assert sorted(first.slots) == [0, 1, 2]
    assert scheduler.free_slots == 0
    assert scheduler.take(0.0) is None
    scheduler.release([first.slots[1]])
    second = taken(scheduler.take(0.0))
    assert (arrivals(second), second.slots) == ([3.0], [first.slots[1]])


def test_escalation_keeps_the_slots_of_those_that_escalate_and_frees_the_others(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(4), slots=4)
    scheduler.push([make_entry(float(i)) for i in range(4)])
    low = taken(scheduler.take(0.0))
    escalate(scheduler, low, [low.entries[1], low.entries[3]])
    assert (scheduler.free_slots, scheduler.depth("high")) == (2, 2)
    assert scheduler.take(0.0) == Batch(
        "high", "drained", [low.entries[1], low.entries[3]], [low.slots[1], low.slots[3]]
    )


def test_share_that_escalates_follows_the_batches_lately(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(4), slots=400)
    shares = []
    for unsure in [2] * 60 + [0] * 60:
        scheduler.push([make_entry(0.0) for _ in range(4)])
        low = taken(scheduler.take(0.0))
        escalate(scheduler, low, low.entries[:unsure])
        shares.append(scheduler.escalating)
        while (high := scheduler.take(0.0)) is not None:
            scheduler.release(high.slots)
    assert shares[59] == pytest.approx(0.5, abs=0.01)
    assert shares[119] == pytest.approx(0.0, abs=0.01)


def test_waiting_is_counted_from_when_an_image_came_into_its_lane(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(timed(), slots=64)
    scheduler.push([make_entry(0.0), *(make_entry(1000.0) for _ in range(8))])
    scheduler.escalating = 0.5
    first = taken(scheduler.take(1000.0))
    escalate(scheduler, first, first.entries[:1], now=1000.0)
    scheduler.push([make_entry(1001.0) for _ in range(7)])
    scheduler.escalating = 0.5
    assert taken(scheduler.take(1001.0)).work == "low"  # old, but not long in the high lane
    scheduler.push([make_entry(1002.0) for _ in range(8)])
    assert taken(scheduler.take(1001.0 + PATIENCE * TABLE.seconds("low", 8))).work == "high"


def test_nearest_deadline_of_the_escalated_images_counts(make_entry: MakeEntry) -> None:
    for deadline, work in ((None, "low"), (1e6, "low"), (20.0, "high")):
        scheduler = Scheduler(timed(), slots=64)
        scheduler.push([make_entry(0.0), make_entry(0.0)])
        low = taken(scheduler.take(0.0))
        low.entries[0].deadline, low.entries[1].deadline = 1e9, deadline
        escalate(scheduler, low, low.entries)
        scheduler.push([make_entry(1.0) for _ in range(8)])
        scheduler.escalating = 0.5
        assert taken(scheduler.take(0.0)).work == work


def test_dead_images_are_dropped_wherever_they_stand(make_entry: MakeEntry) -> None:
    dropped: list[Stage] = []
    scheduler = Scheduler(plan_of(8), slots=9, on_drop=dropped.append)
    entries = [make_entry(float(i)) for i in range(5)]
    scheduler.push(entries)
    for dead in (0, 2, 4):
        entries[dead].future.cancel()
    batch = taken(scheduler.take(0.0))
    assert (batch.work, batch.reason, batch.entries) == ("low", "drained", [entries[1], entries[3]])
    assert dropped == ["low", "low", "low"]
    assert (scheduler.depth("low"), scheduler.free_slots) == (0, 7)


def test_dead_images_do_not_make_a_batch_look_full(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(2), slots=9)
    entries = [make_entry(float(i)) for i in range(3)]
    scheduler.push(entries)
    entries[1].future.cancel()
    entries[2].future.cancel()
    assert (taken(batch := scheduler.take(0.0)).reason, arrivals(batch)) == ("drained", [0.0])


class Fading(asyncio.Future[tuple[Stage, Reason]]):
    """Alive at the first look, dead at the second: its client leaves while a batch is made."""

    looks = 0

    def done(self) -> bool:
        self.looks += 1
        return self.looks > 1


def test_batch_is_never_empty_though_its_image_dies_while_it_is_made(
    loop: asyncio.AbstractEventLoop, make_entry: MakeEntry
) -> None:
    scheduler = Scheduler(plan_of(8), slots=4)
    entry = make_entry(0.0)
    entry.future = Fading(loop=loop)
    scheduler.push([entry])
    batch = scheduler.take(0.0)
    assert batch is None or batch.entries
    assert scheduler.free_slots == 4 - len(batch.entries if batch else [])


def test_escalated_image_that_dies_gives_its_slot_to_the_next(make_entry: MakeEntry) -> None:
    dropped: list[Stage] = []
    scheduler = Scheduler(plan_of(1), slots=1, on_drop=dropped.append)
    scheduler.push([make_entry(0.0), make_entry(1.0)])
    first = taken(scheduler.take(0.0))
    escalate(scheduler, first, first.entries)
    first.entries[0].future.cancel()
    assert arrivals(scheduler.take(0.0)) == [1.0]
    assert dropped == ["high"]


def test_lanes_with_nothing_but_dead_images_give_no_batch(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(8), slots=4)
    entries = [make_entry(0.0), make_entry(1.0)]
    scheduler.push(entries)
    for entry in entries:
        entry.future.cancel()
    assert scheduler.take(0.0) is None
    assert scheduler.free_slots == 4
    assert scheduler.is_idle


def test_oldest_arrival_and_depth_are_told_by_lane(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(8), slots=4)
    assert scheduler.is_idle
    scheduler.push([make_entry(7.0), make_entry(6.0)])
    assert (scheduler.oldest("low"), scheduler.depth("low")) == (6.0, 2)
    assert (scheduler.oldest("high"), scheduler.depth("high")) == (None, 0)
    assert not scheduler.is_idle


# audits


def audited(scheduler: Scheduler, make_entry: MakeEntry, count: int) -> list[Entry]:
    """Images that exited, were answered, and are sent to be audited; each holds a slot until it is refused."""
    scheduler.push([make_entry(0.0) for _ in range(count)])
    low = taken(scheduler.take(0.0))
    assert len(low.entries) == count
    accepted = []
    for entry, slot in zip(low.entries, low.slots, strict=True):
        entry.slot = slot
        entry.resolve("low", "confident")
        if scheduler.audit(entry):
            accepted.append(entry)
        else:
            scheduler.release([slot])
    return accepted


def test_audits_that_wait_are_bounded(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(8), slots=9, audit_backlog=3)
    assert len(audited(scheduler, make_entry, 5)) == 3
    assert scheduler.free_slots == 6


def test_no_audit_waits_where_there_is_no_room_for_any(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(8), slots=9)
    assert audited(scheduler, make_entry, 5) == []
    assert scheduler.take(0.0) is None
    assert scheduler.free_slots == 9


def test_audits_run_when_nothing_else_waits_though_their_images_are_answered(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(8, high_size=2), slots=9, audit_backlog=9)
    entries = audited(scheduler, make_entry, 5)
    batches = [taken(scheduler.take(0.0)) for _ in range(3)]
    assert [batch.work for batch in batches] == ["audit"] * 3
    assert [batch.entries for batch in batches] == [entries[:2], entries[2:4], entries[4:]]
    assert [batch.slots for batch in batches] == [[entry.slot for entry in batch.entries] for batch in batches]
    assert scheduler.take(0.0) is None


def test_audits_do_not_hold_up_what_somebody_waits_for(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(8), slots=9, audit_backlog=9)
    audited(scheduler, make_entry, 2)
    scheduler.spent("low", 1.0)
    scheduler.spent("audit", 1.0)  # more than their share
    scheduler.push([make_entry(1.0)])
    assert [taken(scheduler.take(0.0)).work for _ in range(2)] == ["low", "audit"]


def test_audits_run_when_no_slot_is_left_but_theirs(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(8), slots=4, audit_backlog=4)
    audited(scheduler, make_entry, 4)
    scheduler.spent("audit", 1.0)
    scheduler.push([make_entry(1.0)])
    batch = taken(scheduler.take(0.0))
    assert batch.work == "audit"
    scheduler.release(batch.slots)
    assert taken(scheduler.take(0.0)).work == "low"


def test_audits_are_given_up_on_close_with_their_slots(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(8), slots=9, audit_backlog=9)
    audited(scheduler, make_entry, 5)
    scheduler.close()
    assert scheduler.free_slots == 9
    assert scheduler.wait() is None


def test_nothing_is_audited_once_closed(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(8), slots=9, audit_backlog=9)
    scheduler.close()
    assert audited(scheduler, make_entry, 5) == []
    assert scheduler.wait() is None


@pytest.mark.parametrize("low_size", [4, 32])
@pytest.mark.parametrize("escalating", [0.0, 0.35])
def test_audits_get_their_share_of_a_device_that_always_has_work_and_no_more(
    make_entry: MakeEntry, low_size: int, escalating: float
) -> None:
    chance = random.Random(0)
    scheduler = Scheduler(timed(low_size, 8), slots=128, audit_backlog=16)
    spent = {"low": 0.0, "high": 0.0, "audit": 0.0}
    now = 0.0
    while now < 100_000:
        scheduler.push([make_entry(now) for _ in range(64 - scheduler.depth("low"))])
        batch = taken(scheduler.take(now))
        seconds = TABLE.seconds("low" if batch.work == "low" else "high", len(batch.entries))
        now += seconds
        spent[batch.work] += seconds
        scheduler.spent(batch.work, seconds)
        if batch.work != "low":
            scheduler.release(batch.slots)
            continue
        kept, unsure = [], [entry for entry in batch.entries if chance.random() < escalating]
        for entry, slot in zip(batch.entries, batch.slots, strict=True):
            entry.slot, entry.enqueued = slot, now
            if entry not in unsure and scheduler.audit(entry):
                kept.append(slot)
        held = {*kept, *(entry.slot for entry in unsure)}
        scheduler.escalate(unsure, len(batch.entries), [slot for slot in batch.slots if slot not in held])
    one_batch = TABLE.seconds("high", 8)
    assert AUDIT_SHARE * now - one_batch <= spent["audit"] <= AUDIT_SHARE * now + one_batch
    assert spent["audit"] > 10 * one_batch  # else this proves little


class Histories(RuleBasedStateMachine):
    """Any order of arrivals, deaths, passes, escalations and audits keeps the account of slots and loses no image."""

    SLOTS = 5
    BACKLOG = 2

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.dropped: list[Stage] = []
        self.scheduler = Scheduler(timed(3, 3), self.SLOTS, self.BACKLOG, on_drop=self.dropped.append)
        self.entries: list[Entry] = []
        self.running: list[Batch] = []
        self.audits: list[Entry] = []
        self.runs: list[tuple[str, Entry]] = []
        self.now = 10.0

    @rule(times=st.lists(st.integers(0, 9), min_size=1, max_size=4))
    def arrive(self, times: list[int]) -> None:
        entries = [entry_of(self.loop, float(time)) for time in times]
        self.entries += entries
        self.scheduler.push(entries)

    @rule(seconds=st.floats(0, 50))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def start(self) -> None:
        batch = self.scheduler.take(self.now)
        if batch is not None:
            assert batch.entries
            assert len(set(batch.slots)) == len(batch.entries)
            self.running.append(batch)
            self.runs += [(batch.work, entry) for entry in batch.entries]
            self.audits = [entry for entry in self.audits if batch.work != "audit" or entry not in batch.entries]

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99), fates=st.lists(st.sampled_from(["high", "exit", "audit"]), min_size=3, max_size=3))
    def finish(self, which: int, fates: list[str]) -> None:
        batch = self.running.pop(which % len(self.running))
        if batch.work != "low":
            self.scheduler.release(batch.slots)
            for entry in batch.entries:
                entry.slot = None
                entry.resolve("high", "escalated")
            return
        kept: set[int] = set()
        unsure = []
        for entry, slot, fate in zip(batch.entries, batch.slots, fates, strict=False):
            if fate == "exit":
                entry.resolve("low", "confident")
                continue
            entry.slot, entry.enqueued = slot, self.now
            if fate == "high":
                unsure.append(entry)
                kept.add(slot)
                continue
            entry.resolve("low", "confident")
            if self.scheduler.audit(entry):
                self.audits.append(entry)
                kept.add(slot)
        self.scheduler.escalate(unsure, len(batch.entries), [slot for slot in batch.slots if slot not in kept])

    @precondition(lambda self: self.entries)
    @rule(which=st.integers(0, 99))
    def die(self, which: int) -> None:
        self.entries[which % len(self.entries)].future.cancel()

    @invariant()
    def every_slot_is_free_or_held(self) -> None:
        held = self.scheduler.depth("high") + len(self.audits) + sum(len(batch.entries) for batch in self.running)
        assert self.scheduler.free_slots + held == self.SLOTS
        assert len(self.audits) <= self.BACKLOG

    @invariant()
    def no_image_runs_a_pass_twice(self) -> None:
        assert len(self.runs) == len({(work, id(entry)) for work, entry in self.runs})

    def teardown(self) -> None:
        self.start()
        while self.running:
            self.finish(0, ["exit"] * 3)
            self.start()
        assert all(entry.is_dead for entry in self.entries)  # else one was lost
        assert self.scheduler.free_slots == self.SLOTS
        low_runs = sum(work == "low" for work, _ in self.runs)
        assert low_runs + self.dropped.count("low") == len(self.entries)
        self.loop.close()


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


# threads


class Watched(asyncio.Future[tuple[Stage, Reason]]):
    """Counts how often it was looked at. Who looks holds the scheduler's lock, until it waits or has its batch."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self.looks = threading.Semaphore(0)

    def done(self) -> bool:
        self.looks.release()
        return super().done()

    def await_looks(self, count: int) -> None:
        for _ in range(count):
            assert self.looks.acquire(timeout=TIMEOUT)


def run_in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def work_through(scheduler: Scheduler, ran: Callable[[Batch], None]) -> threading.Thread:
    """A started thread that runs batches until there are no more; none of its images escalates."""

    def work() -> None:
        while (batch := scheduler.wait()) is not None:
            ran(batch)
            scheduler.release(batch.slots)

    return run_in_thread(work)


def feed(scheduler: Scheduler, entries: list[Entry]) -> threading.Thread:
    """A started thread that pushes ``entries`` one by one."""

    def push() -> None:
        for entry in entries:
            scheduler.push([entry])

    return run_in_thread(push)


def until(reached: Callable[[], bool]) -> None:
    """Look until other threads have got there."""
    end = time.monotonic() + TIMEOUT
    while not reached():
        assert time.monotonic() < end
        time.sleep(0)


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(TIMEOUT)
    assert not any(thread.is_alive() for thread in threads)


def test_every_worker_leaves_a_closed_scheduler_though_few_slots_come_free(
    loop: asyncio.AbstractEventLoop, make_entry: MakeEntry
) -> None:
    scheduler = Scheduler(plan_of(1), slots=1)
    scheduler.push([make_entry(0.0)])
    only = taken(scheduler.take(0.0))  # holds the only slot
    waiting = make_entry(1.0)
    waiting.future = future = Watched(loop)
    scheduler.push([waiting])
    threads = [work_through(scheduler, lambda batch: None) for _ in range(6)]
    future.await_looks(6)
    scheduler.close()
    future.await_looks(6)
    scheduler.release(only.slots)
    join(threads)


def test_workers_that_wait_are_woken_by_a_push(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(4), slots=4)
    ran = threading.Semaphore(0)
    threads = [work_through(scheduler, lambda batch: ran.release(len(batch.entries))) for _ in range(3)]
    for arrival in range(30):
        scheduler.push([make_entry(float(arrival))])
    for _ in range(30):
        assert ran.acquire(timeout=TIMEOUT)
    scheduler.close()
    join(threads)


def test_workers_that_wait_are_woken_by_an_audit(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(4), slots=4, audit_backlog=4)
    ran = threading.Semaphore(0)
    threads = [work_through(scheduler, lambda batch: ran.release(len(batch.entries))) for _ in range(2)]
    for _ in range(10):
        entry = make_entry(0.0)
        entry.slot = 0
        assert scheduler.audit(entry)
        assert ran.acquire(timeout=TIMEOUT)
    scheduler.close()
    join(threads)


def test_worker_that_waits_for_a_slot_is_woken_by_one_that_an_exit_gave_back(
    loop: asyncio.AbstractEventLoop, make_entry: MakeEntry
) -> None:
    scheduler = Scheduler(plan_of(1), slots=1)
    scheduler.push([make_entry(0.0)])
    only = taken(scheduler.take(0.0))
    waiting = make_entry(1.0)
    waiting.future = future = Watched(loop)
    scheduler.push([waiting])
    ran = threading.Semaphore(0)
    worker = work_through(scheduler, lambda batch: ran.release())
    future.await_looks(1)
    escalate(scheduler, only, [])
    assert ran.acquire(timeout=TIMEOUT)
    scheduler.close()
    join([worker])


def test_many_threads_run_every_image_once(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(4), slots=3)
    entries = [make_entry(float(i % 7)) for i in range(400)]
    ran: list[Entry] = []
    threads = [work_through(scheduler, lambda batch: ran.extend(batch.entries)) for _ in range(4)]
    feeders = [feed(scheduler, part) for part in (entries[::2], entries[1::2])]
    join(feeders)
    scheduler.close()
    join(threads)
    assert sorted(map(id, ran)) == sorted(map(id, entries))
    assert scheduler.free_slots == 3


# decoders wait for room


def decode_through(scheduler: Scheduler, entries: list[Entry], depths: list[int]) -> threading.Thread:
    """A started thread that pushes each of ``entries`` once there is room, and notes how many wait then."""

    def decode() -> None:
        for entry in entries:
            scheduler.wait_for_room()
            scheduler.push([entry])
            depths.append(scheduler.depth("low"))

    return run_in_thread(decode)


def test_decoders_stay_a_few_batches_ahead_and_no_more(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(2), slots=4)
    depths: list[int] = []
    decoders = [decode_through(scheduler, [make_entry(0.0) for _ in range(50)], depths) for _ in range(3)]
    ran = 0
    while ran < 150:
        until(lambda: len(depths) == 150 or scheduler.depth("low") >= AHEAD * 2)  # nothing is run before
        batch = taken(scheduler.take(0.0))
        ran += len(batch.entries)
        scheduler.release(batch.slots)
    join(decoders)
    assert AHEAD * 2 <= max(depths) <= AHEAD * 2 + len(decoders) - 1


def full_lane(scheduler: Scheduler, make_entry: MakeEntry) -> list[Entry]:
    entries = [make_entry(float(i)) for i in range(AHEAD * scheduler.plan.low_size)]
    scheduler.push(entries)
    return entries


def test_close_lets_decoders_go(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(2), slots=4)
    full_lane(scheduler, make_entry)
    decoders = [run_in_thread(scheduler.wait_for_room) for _ in range(3)]
    scheduler.close()
    join(decoders)
    scheduler.wait_for_room()  # nor does it stop anybody from then on


def test_images_whose_clients_left_make_room(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(2), slots=4)
    entries = full_lane(scheduler, make_entry)
    decoders = [run_in_thread(scheduler.wait_for_room) for _ in range(3)]
    for entry in entries:
        entry.future.cancel()
    assert scheduler.take(0.0) is None
    join(decoders)


def test_escalated_images_do_not_keep_decoders_waiting(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(plan_of(2), slots=64)
    full_lane(scheduler, make_entry)
    batches = [taken(scheduler.take(0.0)) for _ in range(AHEAD)]
    for batch in batches:
        escalate(scheduler, batch, batch.entries)
    join([run_in_thread(scheduler.wait_for_room)])


# a simulated clock


@dataclass
class Day:
    """A server on a virtual clock: images arrive at random, are admitted while few are in flight, and are run.

    Attributes:
        loads: arrivals as a multiple of what the server can do, one after the other, each for ``images`` of them.
        ended: when each image was answered, by its arrival; ``started`` in the order of their low passes.
        bounds: seconds within which each must be answered, see ``_bound``.
    """

    workers: int
    slots: int
    low_size: int
    high_size: int
    exit_rate: float
    loads: tuple[float, ...]
    seed: int
    images: int = 100
    max_in_flight: int = 40

    ended: dict[float, float] = field(default_factory=dict)
    ahead: dict[float, int] = field(default_factory=dict)  # arrival -> admitted before it and not ended
    bounds: dict[float, float] = field(default_factory=dict)
    started: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.escalates: dict[float, bool] = {}
        self.has_low: set[float] = set()

    @property
    def rate(self) -> float:
        """Images a second that full batches would do."""
        low, high = self._full("low"), self._full("high")
        return self.workers / (low / self.low_size + (1 - self.exit_rate) * high / self.high_size)

    @property
    def longest_pass(self) -> float:
        return max(self._full("low"), self._full("high"))

    def run(self, make_entry: MakeEntry) -> Scheduler:
        scheduler = Scheduler(timed(self.low_size, self.high_size), self.slots)
        order = itertools.count()
        events: list[tuple[float, int, Batch | None]] = []
        now = 0.0
        for load in self.loads:
            for _ in range(self.images):
                now += self.chance.expovariate(load * self.rate)
                heapq.heappush(events, (now, next(order), None))
        idle = self.workers
        while events:
            now, _, batch = heapq.heappop(events)
            if batch is None:
                self._arrive(scheduler, make_entry, now)
            else:
                idle += 1
                self._finish(scheduler, batch, now)
            while idle and (next_batch := scheduler.take(now)) is not None:
                idle -= 1
                heapq.heappush(events, (now + self._seconds(next_batch), next(order), next_batch))
        return scheduler

    def _full(self, stage: Stage) -> float:
        return TABLE.seconds(stage, self.low_size if stage == "low" else self.high_size)

    def _seconds(self, batch: Batch) -> float:
        if batch.work == "low":
            self.started += [entry.arrival for entry in batch.entries]
        return TABLE.seconds("low" if batch.work == "low" else "high", len(batch.entries))

    def _arrive(self, scheduler: Scheduler, make_entry: MakeEntry, now: float) -> None:
        in_flight = len(self.ahead) - len(self.ended)
        if in_flight < self.max_in_flight:
            self.escalates[now] = self.chance.random() >= self.exit_rate
            self.bounds[now] = self._bound(now)
            self.ahead[now] = in_flight
            scheduler.push([make_entry(now)])

    def _bound(self, arrival: float) -> float:
        """The promise: the work that is older, each pass of it alone, and the batches that the image itself is in.

        While it waits, some worker runs a batch of older images, which takes no longer than they would one by one;
        or, once it has escalated, one that overtakes it, until ``PATIENCE`` full low batches after that. With older
        images o that are not answered yet:

            sum over o of (low(1) if its low pass is to end yet) + (high(1) if it escalates)
            + low(full) + (PATIENCE * low(full) + high(full) if it escalates)
        """
        work = self._full("low")
        if self.escalates[arrival]:
            work += PATIENCE * self._full("low") + self._full("high")
        for older in self.ahead:
            if older not in self.ended:
                work += 0.0 if older in self.has_low else TABLE.seconds("low", 1)
                work += TABLE.seconds("high", 1) if self.escalates[older] else 0.0
        return work

    def _finish(self, scheduler: Scheduler, batch: Batch, now: float) -> None:
        if batch.work == "low":
            self.has_low.update(entry.arrival for entry in batch.entries)
            unsure = [entry for entry in batch.entries if self.escalates[entry.arrival]]
            escalate(scheduler, batch, unsure, now)
        else:
            unsure = []
            scheduler.release(batch.slots)
        for entry in batch.entries:
            if entry not in unsure:
                assert entry.arrival not in self.ended
                self.ended[entry.arrival] = now


days = st.builds(
    Day,
    workers=st.integers(1, 4),
    slots=st.integers(1, 40),
    low_size=st.integers(1, 16),
    high_size=st.integers(1, 8),
    exit_rate=st.floats(0, 1),
    loads=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)),
    seed=st.integers(0, 10**6),
)
simulated = settings(max_examples=40, deadline=None)


@simulated
@given(day=days)
def test_everything_admitted_ends_and_every_slot_comes_back(make_entry: MakeEntry, day: Day) -> None:
    scheduler = day.run(make_entry)
    assert day.ended.keys() == day.ahead.keys()
    assert scheduler.free_slots == day.slots


def assert_kept(day: Day) -> None:
    for arrival, end in day.ended.items():
        assert end - arrival <= day.bounds[arrival] + 1e-6


@simulated
@given(day=days)
def test_waiting_is_bounded_whatever_the_server(make_entry: MakeEntry, day: Day) -> None:
    day.run(make_entry)
    assert_kept(day)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("exit_rate", [0.0, 0.01, 0.35, 0.65, 0.99, 1.0])
def test_waiting_is_bounded_at_every_exit_rate_and_load(
    make_entry: MakeEntry, exit_rate: float, workers: int, seed: int
) -> None:
    loads = (0.5, 0.8, 0.95, 3.0, 0.5, 8.0, 0.3)
    day = Day(workers, 128, 32, 8, exit_rate, loads, seed, images=300, max_in_flight=256)
    day.run(make_entry)
    assert len(day.ended) == len(day.ahead) > 1200
    assert_kept(day)


@simulated
@given(day=days)
def test_images_start_in_the_order_of_their_arrival(make_entry: MakeEntry, day: Day) -> None:
    day.run(make_entry)
    assert day.started == sorted(day.started)


@pytest.mark.parametrize("exit_rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("workers", [1, 3])
def test_overload_turns_images_away_and_serves_the_admitted(
    make_entry: MakeEntry, workers: int, exit_rate: float
) -> None:
    day = Day(workers, 2, 4, 4, exit_rate, loads=(20.0,), seed=0, images=400)
    day.run(make_entry)
    assert len(day.ended) == len(day.ahead) < day.images / 2
    longest = max(end - arrival for arrival, end in day.ended.items())
    assert longest <= 2 * day.max_in_flight * day.longest_pass


def test_idle_server_runs_an_image_at_once(make_entry: MakeEntry) -> None:
    day = Day(1, 8, 8, 8, exit_rate=0.0, loads=(0.001,), seed=0, images=20)
    day.run(make_entry)
    alone = TABLE.seconds("low", 1) + TABLE.seconds("high", 1)
    assert [end - arrival for arrival, end in day.ended.items()] == pytest.approx([alone] * 20)
