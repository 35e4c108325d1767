"""Whole days of a server on a simulated clock: waiting is bounded at every load, with one, two and three stages."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import tuning
from service.engine.lanes import Batch, Lanes
from tests.engine.lanes_of import TABLE, MakeEntry, entry_of, go_on, timed


@pytest.fixture(scope="module")
def make_entry() -> Iterator[MakeEntry]:
    loop = asyncio.new_event_loop()  # never runs: the futures of entries must belong to one
    yield lambda arrival: entry_of(loop, arrival)
    loop.close()


@dataclass
class Day:
    """A server on a virtual clock: images arrive at random, are admitted while few are in flight, and are run.

    Attributes:
        exit_rate: of each stage but the last.
        loads: arrivals as a multiple of what the server can do, one after the other, each for ``images`` of them.
        ended: when each image was answered, by its arrival; ``started`` in the order of their first stages.
        ends: at which stage each ends; ``done``: stages that it has behind it.
        bounds: seconds within which each must be answered, see ``_bound``.
    """

    workers: int
    slots: int
    sizes: tuple[int, ...]
    exit_rate: float
    loads: tuple[float, ...]
    seed: int
    images: int = 100
    max_in_flight: int = 40

    ended: dict[float, float] = field(default_factory=dict)
    admitted: dict[float, int] = field(default_factory=dict)  # arrival -> admitted before it and not ended
    ends: dict[float, int] = field(default_factory=dict)
    done: dict[float, int] = field(default_factory=dict)
    bounds: dict[float, float] = field(default_factory=dict)
    started: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.last = len(self.sizes) - 1

    @property
    def rate(self) -> float:
        """Images a second that full batches would do."""
        each, share = 0.0, 1.0
        for stage, size in enumerate(self.sizes):
            each += share * self.full(stage) / size
            share *= 1 - self.exit_rate
        return self.workers / each

    def full(self, stage: int) -> float:
        return TABLE.seconds(stage, self.sizes[stage])

    def run(self, make_entry: MakeEntry) -> Lanes:
        lanes = Lanes(timed(*self.sizes), self.slots)
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
                self._arrive(lanes, make_entry, now)
            else:
                idle += 1
                self._finish(lanes, batch, now)
            while idle and (taken := lanes.take(now)) is not None:
                idle -= 1
                if not taken.stage:
                    self.started += [entry.arrival for entry in taken.entries]
                heapq.heappush(events, (now + TABLE.seconds(taken.stage, len(taken.entries)), next(order), taken))
        return lanes

    def _arrive(self, lanes: Lanes, make_entry: MakeEntry, now: float) -> None:
        in_flight = len(self.admitted) - len(self.ended)
        if in_flight >= self.max_in_flight:
            return
        stages = range(self.last)
        self.ends[now] = next((stage for stage in stages if self.chance.random() < self.exit_rate), self.last)
        self.done[now] = 0
        self.bounds[now] = self._bound(now)
        self.admitted[now] = in_flight
        lanes.push([make_entry(now)])

    def _bound(self, arrival: float) -> float:
        """The promise: the work that is older, and the batches that the image itself is in, with what overtakes it.

        While it waits, some worker runs a batch with an older image in it; or, once it has escalated, one that
        overtakes it, until a few full batches of the stage before after that. Of one or two stages such a batch holds
        none but older images and takes no longer than they would one by one; of more, it takes no longer than a full
        one.
        """
        end, tight = self.ends[arrival], self.last < 2
        work = sum(self.full(stage) for stage in range(end + 1)) + tuning.OVERTAKING * sum(map(self.full, range(end)))
        for older in self.admitted:
            if older not in self.ended:
                for stage in range(self.done[older], self.ends[older] + 1):
                    work += TABLE.seconds(stage, 1) if tight or not stage else self.full(stage)
        return work

    def _finish(self, lanes: Lanes, batch: Batch, now: float) -> None:
        unsure = [entry for entry in batch.entries if self.ends[entry.arrival] > batch.stage]
        go_on(lanes, batch, unsure, now)
        for entry in batch.entries:
            assert self.done[entry.arrival] == batch.stage
            self.done[entry.arrival] += 1
            if entry not in unsure:
                assert entry.arrival not in self.ended
                self.ended[entry.arrival] = now

    def check(self, lanes: Lanes) -> None:
        """Everything admitted ended, in time, and every slot came back; images started in their order."""
        assert self.ended.keys() == self.admitted.keys()
        assert lanes.free_slots == self.slots
        assert self.started == sorted(self.started)
        for arrival, end in self.ended.items():
            assert end - arrival <= self.bounds[arrival] + 1e-6


days = st.builds(
    Day,
    workers=st.integers(1, 4),
    slots=st.integers(1, 40),
    sizes=st.integers(1, 3).flatmap(lambda depth: st.tuples(*[st.integers(1, 12)] * depth)),
    exit_rate=st.floats(0, 1),
    loads=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)),
    seed=st.integers(0, 10**6),
)


@settings(max_examples=60, deadline=None)
@given(day=days)
def test_everything_admitted_ends_in_time_and_in_order_whatever_the_server(make_entry: MakeEntry, day: Day) -> None:
    day.check(day.run(make_entry))


@pytest.mark.parametrize("sizes", [(32,), (32, 8), (32, 8, 4)], ids=lambda sizes: f"{len(sizes)}-stage")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("exit_rate", [0.0, 0.01, 0.35, 0.65, 0.99, 1.0])
def test_waiting_is_bounded_at_every_exit_rate_and_load(
    make_entry: MakeEntry, exit_rate: float, workers: int, sizes: tuple[int, ...]
) -> None:
    loads = (0.5, 0.8, 0.95, 3.0, 0.5, 8.0, 0.3)
    day = Day(workers, 128, sizes, exit_rate, loads, seed=0, images=150, max_in_flight=256)
    day.check(day.run(make_entry))
    assert len(day.ended) > 600


@pytest.mark.parametrize("exit_rate", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_overload_turns_images_away_and_serves_the_admitted(
    make_entry: MakeEntry, workers: int, exit_rate: float, depth: int
) -> None:
    day = Day(workers, 2, (4,) * depth, exit_rate, loads=(20.0,), seed=0, images=400)
    day.check(day.run(make_entry))
    assert len(day.ended) < day.images / 2
    longest = max(end - arrival for arrival, end in day.ended.items())
    assert longest <= depth * day.max_in_flight * max(map(day.full, range(depth)))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_idle_server_runs_an_image_at_once(make_entry: MakeEntry, depth: int) -> None:
    day = Day(1, 8, (8,) * depth, exit_rate=0.0, loads=(0.001,), seed=0, images=20)
    day.run(make_entry)
    alone = sum(TABLE.seconds(stage, 1) for stage in range(depth))
    assert [end - arrival for arrival, end in day.ended.items()] == pytest.approx([alone] * 20)
