"""Which batch runs next: the decision alone, the lanes, many threads, and whole days on a simulated clock."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.engine.entry import Entry, Reason, Stage
from service.engine.scheduler import Batch, Pick, Scheduler, Waiting, pick

TIMEOUT = 20.0
NONE = Waiting(0, math.inf)

MakeEntry = Callable[[float], Entry]


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
    return Entry(0.5, 1, 1, arrival, None, loop, loop.create_future())


def arrivals(batch: Batch | None) -> list[float]:
    assert batch is not None
    return [entry.arrival for entry in batch.entries]


# pick


def test_lane_with_the_oldest_image_goes_first() -> None:
    assert pick({"high": Waiting(1, 5.0), "low": Waiting(3, 4.0)}, 9, 8) == Pick("low", 3, "drained")
    assert pick({"high": Waiting(1, 3.0), "low": Waiting(3, 4.0)}, 9, 8) == Pick("high", 1, "drained")


def test_high_pass_goes_first_on_a_tie() -> None:
    assert pick({"high": Waiting(1, 4.0), "low": Waiting(8, 4.0)}, 9, 8) == Pick("high", 1, "drained")


def test_full_batch_says_so_even_when_it_empties_its_lane() -> None:
    assert pick({"high": NONE, "low": Waiting(8, 0.0)}, 9, 8) == Pick("low", 8, "full")
    assert pick({"high": NONE, "low": Waiting(30, 0.0)}, 9, 8) == Pick("low", 8, "full")


def test_low_batch_is_as_large_as_the_free_slots() -> None:
    assert pick({"high": NONE, "low": Waiting(5, 0.0)}, 3, 8) == Pick("low", 3, "slots")


def test_high_pass_needs_no_slots() -> None:
    assert pick({"high": Waiting(2, 1.0), "low": Waiting(5, 0.0)}, 0, 8) == Pick("high", 2, "drained")


def test_nothing_is_picked_when_nothing_may_start() -> None:
    assert pick({"high": NONE, "low": NONE}, 9, 8) is None
    assert pick({"high": NONE, "low": Waiting(5, 0.0)}, 0, 8) is None


lanes_of_any_kind = st.fixed_dictionaries(
    {
        stage: st.builds(Waiting, st.integers(1, 20), st.integers(0, 5).map(float)) | st.just(NONE)
        for stage in ("low", "high")
    }
)
picks = given(lanes=lanes_of_any_kind, free=st.integers(0, 20), most=st.integers(1, 8))
untimed = settings(deadline=None)


@untimed
@picks
def test_something_is_picked_whenever_something_may_start(lanes: dict[Stage, Waiting], free: int, most: int) -> None:
    may_start = lanes["high"].size > 0 or (lanes["low"].size > 0 and free > 0)
    assert (pick(lanes, free, most) is not None) == may_start


@untimed
@picks
def test_batch_is_as_large_as_lane_slots_and_limit_allow(lanes: dict[Stage, Waiting], free: int, most: int) -> None:
    picked = pick(lanes, free, most)
    if picked is not None:
        bounds = [lanes[picked.stage].size, most] + ([free] if picked.stage == "low" else [])
        assert picked.size == min(bounds) > 0


@untimed
@picks
def test_only_want_of_slots_lets_a_younger_image_go_first(lanes: dict[Stage, Waiting], free: int, most: int) -> None:
    picked = pick(lanes, free, most)
    if picked is not None and lanes[picked.stage].oldest > min(lane.oldest for lane in lanes.values()):
        assert (picked.stage, free) == ("high", 0)


@untimed
@picks
def test_reason_tells_what_limited_the_batch(lanes: dict[Stage, Waiting], free: int, most: int) -> None:
    picked = pick(lanes, free, most)
    if picked is not None:
        limited_by = {"full": most, "drained": lanes[picked.stage].size, "slots": free}
        assert picked.size == limited_by[picked.reason]
        assert (picked.reason == "full") == (picked.size == most)


# take


def test_batch_holds_the_oldest_arrivals_in_order(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(max_batch_size=3, slots=9)
    scheduler.push("low", [make_entry(arrival) for arrival in (4.0, 2.0, 5.0, 1.0)])
    assert arrivals(scheduler.take()) == [1.0, 2.0, 4.0]
    assert arrivals(scheduler.take()) == [5.0]
    assert scheduler.take() is None


def test_images_of_one_request_keep_their_order(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(max_batch_size=8, slots=9)
    entries = [make_entry(1.0) for _ in range(6)]
    scheduler.push("low", entries)
    batch = scheduler.take()
    assert batch is not None
    assert batch.entries == entries


def test_escalated_image_goes_before_what_arrived_behind_it(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(max_batch_size=1, slots=9)
    scheduler.push("low", [make_entry(1.0), make_entry(2.0)])
    first = scheduler.take()
    assert first is not None
    scheduler.push("high", first.entries)
    assert scheduler.take() == Batch("high", "full", first.entries)


def test_low_batch_takes_its_slots_at_once(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(max_batch_size=8, slots=3)
    scheduler.push("low", [make_entry(float(i)) for i in range(5)])
    assert arrivals(scheduler.take()) == [0.0, 1.0, 2.0]
    assert scheduler.free_slots == 0
    assert scheduler.take() is None
    scheduler.release(1)
    assert arrivals(scheduler.take()) == [3.0]


def test_dead_images_are_dropped_wherever_they_stand(make_entry: MakeEntry) -> None:
    dropped: list[Stage] = []
    scheduler = Scheduler(max_batch_size=8, slots=9, on_drop=dropped.append)
    entries = [make_entry(float(i)) for i in range(5)]
    scheduler.push("low", entries)
    for dead in (0, 2, 4):
        entries[dead].future.cancel()
    assert scheduler.take() == Batch("low", "drained", [entries[1], entries[3]])
    assert dropped == ["low", "low", "low"]
    assert (scheduler.depth("low"), scheduler.free_slots) == (0, 7)


def test_dead_images_do_not_make_a_batch_look_full(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(max_batch_size=2, slots=9)
    entries = [make_entry(float(i)) for i in range(3)]
    scheduler.push("low", entries)
    entries[1].future.cancel()
    entries[2].future.cancel()
    assert scheduler.take() == Batch("low", "drained", [entries[0]])


class Fading(asyncio.Future[tuple[Stage, Reason]]):
    """Alive at the first look, dead at the second: its client leaves while a batch is made."""

    looks = 0

    def done(self) -> bool:
        self.looks += 1
        return self.looks > 1


def test_batch_is_never_empty_though_its_image_dies_while_it_is_made(
    loop: asyncio.AbstractEventLoop, make_entry: MakeEntry
) -> None:
    scheduler = Scheduler(max_batch_size=8, slots=4)
    entry = make_entry(0.0)
    entry.future = Fading(loop=loop)
    scheduler.push("low", [entry])
    batch = scheduler.take()
    assert batch is None or batch.entries
    assert scheduler.free_slots == 4 - len(batch.entries if batch else [])


def test_escalated_image_that_dies_gives_its_slot_to_the_next(make_entry: MakeEntry) -> None:
    dropped: list[Stage] = []
    scheduler = Scheduler(max_batch_size=1, slots=1, on_drop=dropped.append)
    scheduler.push("low", [make_entry(0.0), make_entry(1.0)])
    first = scheduler.take()
    assert first is not None
    scheduler.push("high", first.entries)
    first.entries[0].future.cancel()
    assert arrivals(scheduler.take()) == [1.0]
    assert dropped == ["high"]


def test_lanes_with_nothing_but_dead_images_give_no_batch(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(max_batch_size=8, slots=4)
    entries = [make_entry(0.0), make_entry(1.0)]
    scheduler.push("low", entries)
    for entry in entries:
        entry.future.cancel()
    assert scheduler.take() is None
    assert scheduler.free_slots == 4


def test_oldest_arrival_and_depth_are_told_by_lane(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(max_batch_size=8, slots=4)
    scheduler.push("low", [make_entry(7.0), make_entry(6.0)])
    assert (scheduler.oldest("low"), scheduler.depth("low")) == (6.0, 2)
    assert (scheduler.oldest("high"), scheduler.depth("high")) == (None, 0)


class Histories(RuleBasedStateMachine):
    """Any order of arrivals, deaths, passes and escalations keeps the account of slots and loses no image."""

    SLOTS = 5

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.dropped: list[Stage] = []
        self.scheduler = Scheduler(max_batch_size=3, slots=self.SLOTS, on_drop=self.dropped.append)
        self.entries: list[Entry] = []
        self.running: list[Batch] = []
        self.runs: list[tuple[Stage, Entry]] = []

    @rule(times=st.lists(st.integers(0, 9), min_size=1, max_size=4))
    def arrive(self, times: list[int]) -> None:
        entries = [entry_of(self.loop, float(time)) for time in times]
        self.entries += entries
        self.scheduler.push("low", entries)

    @rule()
    def start(self) -> None:
        batch = self.scheduler.take()
        if batch is not None:
            assert batch.entries
            self.running.append(batch)
            self.runs += [(batch.stage, entry) for entry in batch.entries]

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 99), sure=st.lists(st.booleans(), min_size=3, max_size=3))
    def finish(self, which: int, sure: list[bool]) -> None:
        batch = self.running.pop(which % len(self.running))
        escalated = [entry for entry, exits in zip(batch.entries, sure, strict=False) if not exits]
        if batch.stage == "low":
            self.scheduler.push("high", escalated)
            self.scheduler.release(len(batch.entries) - len(escalated))
        else:
            self.scheduler.release(len(batch.entries))
        for entry in batch.entries:
            if batch.stage == "high" or entry not in escalated:
                entry.resolve(batch.stage, "confident")

    @precondition(lambda self: self.entries)
    @rule(which=st.integers(0, 99))
    def die(self, which: int) -> None:
        self.entries[which % len(self.entries)].future.cancel()

    @invariant()
    def every_slot_is_free_or_held(self) -> None:
        held = self.scheduler.depth("high") + sum(len(batch.entries) for batch in self.running)
        assert self.scheduler.free_slots + held == self.SLOTS

    @invariant()
    def no_image_runs_a_pass_twice(self) -> None:
        assert len(self.runs) == len({(stage, id(entry)) for stage, entry in self.runs})

    def teardown(self) -> None:
        self.start()
        while self.running:
            self.finish(0, [False] * 3)
            self.start()
        assert all(entry.is_dead for entry in self.entries)  # else one was lost
        assert self.scheduler.free_slots == self.SLOTS
        low_runs = sum(stage == "low" for stage, _ in self.runs)
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


def work_through(scheduler: Scheduler, ran: Callable[[Batch], None]) -> threading.Thread:
    """A started thread that runs batches until there are no more; none of its images escalates."""

    def work() -> None:
        while (batch := scheduler.wait()) is not None:
            ran(batch)
            scheduler.release(len(batch.entries))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def feed(scheduler: Scheduler, entries: list[Entry]) -> threading.Thread:
    """A started thread that pushes ``entries`` one by one."""

    def push() -> None:
        for entry in entries:
            scheduler.push("low", [entry])

    thread = threading.Thread(target=push, daemon=True)
    thread.start()
    return thread


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(TIMEOUT)
    assert not any(thread.is_alive() for thread in threads)


def test_every_worker_leaves_a_closed_scheduler_though_few_slots_come_free(
    loop: asyncio.AbstractEventLoop, make_entry: MakeEntry
) -> None:
    scheduler = Scheduler(max_batch_size=1, slots=1)
    scheduler.push("low", [make_entry(0.0)])
    assert scheduler.take() is not None  # holds the only slot
    waiting = make_entry(1.0)
    waiting.future = future = Watched(loop)
    scheduler.push("low", [waiting])
    threads = [work_through(scheduler, lambda batch: None) for _ in range(6)]
    future.await_looks(6)
    scheduler.close()
    future.await_looks(6)
    scheduler.release(1)
    join(threads)


def test_workers_that_wait_are_woken_by_a_push(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(max_batch_size=4, slots=4)
    ran = threading.Semaphore(0)
    threads = [work_through(scheduler, lambda batch: ran.release(len(batch.entries))) for _ in range(3)]
    for arrival in range(30):
        scheduler.push("low", [make_entry(float(arrival))])
    for _ in range(30):
        assert ran.acquire(timeout=TIMEOUT)
    scheduler.close()
    join(threads)


def test_many_threads_run_every_image_once(make_entry: MakeEntry) -> None:
    scheduler = Scheduler(max_batch_size=4, slots=3)
    entries = [make_entry(float(i % 7)) for i in range(400)]
    ran: list[Entry] = []
    threads = [work_through(scheduler, lambda batch: ran.extend(batch.entries)) for _ in range(4)]
    feeders = [feed(scheduler, part) for part in (entries[::2], entries[1::2])]
    join(feeders)
    scheduler.close()
    join(threads)
    assert sorted(map(id, ran)) == sorted(map(id, entries))
    assert scheduler.free_slots == 3


# a simulated clock


@dataclass
class Day:
    """A server on a virtual clock: images arrive at random, are admitted while few are in flight, and are run.

    A pass takes ``START_SECONDS`` and, for each image of the batch, ``LOW_SECONDS`` or ``HIGH_SECONDS``.
    """

    workers: int
    slots: int
    max_batch_size: int
    exit_rate: float
    load: float
    seed: int
    images: int = 200
    max_in_flight: int = 40

    START_SECONDS = 1.0
    LOW_SECONDS = 1.0
    HIGH_SECONDS = 4.0

    ended: dict[float, float] = field(default_factory=dict)  # arrival -> end
    ahead: dict[float, int] = field(default_factory=dict)  # arrival -> admitted before it and not ended
    started: list[float] = field(default_factory=list)  # arrivals in the order of their low passes

    def run(self, make_entry: MakeEntry) -> Scheduler:
        chance = random.Random(self.seed)
        scheduler = Scheduler(self.max_batch_size, self.slots)
        order = itertools.count()
        events: list[tuple[float, int, Batch | None]] = []
        each = self.START_SECONDS + self.LOW_SECONDS + (1 - self.exit_rate) * (self.START_SECONDS + self.HIGH_SECONDS)
        now = 0.0
        for _ in range(self.images):
            now += chance.expovariate(self.load * self.workers / each)
            heapq.heappush(events, (now, next(order), None))
        idle = self.workers
        while events:
            now, _, batch = heapq.heappop(events)
            if batch is None:
                self._arrive(scheduler, make_entry, now)
            else:
                idle += 1
                self._finish(scheduler, batch, now, chance)
            while idle and (next_batch := scheduler.take()) is not None:
                idle -= 1
                heapq.heappush(events, (now + self._seconds(next_batch), next(order), next_batch))
        return scheduler

    @property
    def longest_pass(self) -> float:
        return self.START_SECONDS + self.max_batch_size * self.HIGH_SECONDS

    def _seconds(self, batch: Batch) -> float:
        if batch.stage == "low":
            self.started += [entry.arrival for entry in batch.entries]
        return self.START_SECONDS + len(batch.entries) * (
            self.LOW_SECONDS if batch.stage == "low" else self.HIGH_SECONDS
        )

    def _arrive(self, scheduler: Scheduler, make_entry: MakeEntry, now: float) -> None:
        in_flight = len(self.ahead) - len(self.ended)
        if in_flight < self.max_in_flight:
            self.ahead[now] = in_flight
            scheduler.push("low", [make_entry(now)])

    def _finish(self, scheduler: Scheduler, batch: Batch, now: float, chance: random.Random) -> None:
        unsure = [entry for entry in batch.entries if batch.stage == "low" and chance.random() >= self.exit_rate]
        scheduler.push("high", unsure)
        scheduler.release(len(batch.entries) - len(unsure))
        for entry in batch.entries:
            if entry not in unsure:
                assert entry.arrival not in self.ended
                self.ended[entry.arrival] = now


days = st.builds(
    Day,
    workers=st.integers(1, 4),
    slots=st.integers(1, 10),
    max_batch_size=st.integers(1, 8),
    exit_rate=st.floats(0, 1),
    load=st.floats(0.2, 20),
    seed=st.integers(0, 10**6),
)
simulated = settings(max_examples=40, deadline=None)


@simulated
@given(day=days)
def test_everything_admitted_ends_and_every_slot_comes_back(make_entry: MakeEntry, day: Day) -> None:
    scheduler = day.run(make_entry)
    assert day.ended.keys() == day.ahead.keys()
    assert scheduler.free_slots == day.slots


@simulated
@given(day=days)
def test_no_image_waits_longer_than_the_work_before_it_takes(make_entry: MakeEntry, day: Day) -> None:
    """Until an image ends, some worker runs a batch with it or an older one in it; each of these is in two at most."""
    day.run(make_entry)
    for arrival, end in day.ended.items():
        assert end - arrival <= 2 * (day.ahead[arrival] + 1) * day.longest_pass + 1e-6


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
    day = Day(workers, slots=2, max_batch_size=4, exit_rate=exit_rate, load=20, seed=0)
    day.run(make_entry)
    assert len(day.ended) == len(day.ahead) < day.images / 2
    longest = max(end - arrival for arrival, end in day.ended.items())
    assert longest <= 2 * day.max_in_flight * day.longest_pass


def test_idle_server_runs_an_image_at_once(make_entry: MakeEntry) -> None:
    day = Day(workers=1, slots=1, max_batch_size=8, exit_rate=0.0, load=0.001, seed=0, images=20)
    day.run(make_entry)
    alone = 2 * day.START_SECONDS + day.LOW_SECONDS + day.HIGH_SECONDS
    assert [end - arrival for arrival, end in day.ended.items()] == pytest.approx([alone] * 20)
