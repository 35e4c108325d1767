"""Overload on a simulated clock: deadlines that an idle server meets cost no answers, whatever is refused meanwhile."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from service.engine import tuning
from service.engine.admission import Admission
from service.engine.backlog import Backlog
from service.engine.brown_out import BrownOut
from service.engine.decide import Drop, Escalate, Policy, decide
from service.engine.entry import Entry
from service.engine.lanes import Batch, Lanes
from service.engine.pace import Pace
from service.engine.pick import Plan
from service.errors import Busy
from service.inference.latency import LatencyTable

CPU = LatencyTable(({1: 0.0022, 32: 0.05}, {1: 0.006, 32: 0.15}))  # a batch saves little
GPU = LatencyTable(({1: 0.006, 32: 0.016}, {1: 0.015, 32: 0.045}))  # and here it is everything
DECODING = 0.0005
WARM_UP, SECONDS = 1.0, 2.0
TARGET = 0.5
MOST_IMAGES, MOST_SECONDS = 256, 0.75


@dataclass
class Rush:
    """One engine on a virtual clock, with its real lanes, decisions and admission; its stages only take their time.

    Attributes:
        deadline: of every request, in seconds; None without.
        load: images that come, as a multiple of those that full batches would do.
        slowdown: what batches take, as a multiple of what was measured; each a third more or less by chance.
        floor: of the brown-out; None without.
        answers: seconds of each answer, by when it was given; ``wasted``: images that were run for nothing.
    """

    table: LatencyTable
    depth: int
    deadline: float | None = None
    load: float = 2.5
    workers: int = 2
    slowdown: float = 1.3
    floor: float | None = None

    answers: list[tuple[float, float]] = field(default_factory=list)
    refused: int = 0
    late: int = 0
    wasted: int = 0

    def __post_init__(self) -> None:
        self.now = 0.0
        self.chance = random.Random(1)
        sizes = (32,) * self.depth
        self.pace = Pace(LatencyTable(self.table.stages[: self.depth]), sizes, self.workers)
        plan = Plan(sizes, self.pace.predicted, self.pace.soonest)
        self.lanes = Lanes(plan, 128, on_late=self._count_late)
        self.waiting: set[Entry] = set()
        self.backlog = Backlog(self.waiting, self.lanes, self.pace, ("low", "high"))
        self.admission = Admission(MOST_IMAGES, 1 << 30, MOST_SECONDS, self.backlog.seconds)
        self.policy = Policy(self.depth - 1)
        self.brown_out = BrownOut(TARGET)
        self.sure: list[float] = []
        self.events: list[tuple[float, int, str, Any]] = []
        self.order = itertools.count()

    def run(self, loop: asyncio.AbstractEventLoop) -> float:
        """Answers in time per second."""
        end, idle = WARM_UP + SECONDS, self.workers
        arrival, rate = 0.0, self.load / self._seconds_each()
        while (arrival := arrival + self.chance.expovariate(rate)) < end:
            self._at(arrival, "arrive", None)
        for tick in range(int(end / tuning.STEERING_SECONDS)):
            self._at(tick * tuning.STEERING_SECONDS, "steer", None)
        while self.events:
            self.now, _, what, thing = heapq.heappop(self.events)
            if what == "arrive":
                self._arrive(loop)
            elif what == "steer":
                self._steer()
            elif what == "expire":
                thing.expire()
                self.waiting.discard(thing)
            else:
                idle += 1
                self._finish(*thing)
            while idle and (batch := self.lanes.take(self.now)) is not None:
                idle -= 1
                seconds = self._runs(batch)
                self._at(self.now + seconds, "finish", (batch, seconds))
        assert self.lanes.free_slots == 128
        return sum(WARM_UP <= at < end for at, _ in self.answers) / SECONDS

    def _at(self, when: float, what: str, thing: object) -> None:
        heapq.heappush(self.events, (when, next(self.order), what, thing))

    def _count_late(self, _: int) -> None:
        self.late += 1

    def _seconds_each(self) -> float:
        """Of the whole device, for an image, if half escalate."""
        stages = [0.5**stage * self.table.seconds(stage, 32) / 32 for stage in range(self.depth)]
        return (self.slowdown * sum(stages) + DECODING) / self.workers

    def _runs(self, batch: Batch) -> float:
        size = len(batch.entries)
        seconds = self.slowdown * self.table.seconds(batch.stage, size) * self.chance.uniform(2 / 3, 4 / 3)
        return seconds + (0.0 if batch.stage else DECODING * size)

    def _arrive(self, loop: asyncio.AbstractEventLoop) -> None:
        deadline = None if self.deadline is None else self.now + self.deadline
        try:
            self.admission.check()
        except Busy:
            self.refused += 1
            return
        if deadline is not None and deadline < self.now + self.backlog.first_answer():
            self.refused += 1
            return
        at_once: Any = SimpleNamespace(call_soon_threadsafe=lambda call, *args: call(*args))
        entry = Entry(0.5, 1, 1, self.now, deadline, at_once, loop.create_future(), enqueued=self.now)
        self.waiting.add(entry)
        self.admission.images = len(self.waiting)
        self.lanes.push([entry])
        if deadline is not None:
            self._at(deadline, "expire", entry)

    def _steer(self) -> None:
        room = self.backlog.foresight()
        lowered = self.brown_out.steer(self.now, self.backlog.load(), self.sure[-1024:], 0.5, self.floor, room)
        self.policy = replace(self.policy, lowered=lowered if lowered < 0.5 else math.inf)

    def _finish(self, batch: Batch, seconds: float) -> None:
        stage, size = batch.stage, len(batch.entries)
        decoding = 0.0 if stage else DECODING * size
        if not stage:
            self.pace.decoded(size, decoding)
        self.pace.ran(stage, size, seconds - decoding)
        escalated, unused = [], []
        next_answer_at = self.now
        if stage < self.policy.last:
            next_answer_at += self.pace.next_answer(stage + 1, self.lanes.depths[stage : stage + 2])
        for entry, slot in zip(batch.entries, batch.slots, strict=True):
            sure = self.chance.random()
            self.sure.append(sure)
            entry.slot, entry.enqueued = slot, self.now
            decision = decide(sure, stage, entry, self.policy, next_answer_at)
            if isinstance(decision, Escalate):
                entry.latest = stage, "deadline"
                escalated.append(entry)
                continue
            unused.append(slot)
            entry.slot = None
            if isinstance(decision, Drop):
                self.wasted += 1
            else:
                entry.resolve(stage, decision.reason)
        self.lanes.escalate(stage, escalated, size, unused)
        self._settle()

    def _settle(self) -> None:
        """What is answered is on its way."""
        for entry in [entry for entry in self.waiting if entry.is_dead]:
            self.waiting.discard(entry)
            if entry.failure is None:
                self.answers.append((self.now, self.now - entry.arrival))
        self.admission.images = len(self.waiting)


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()  # never runs: the futures of entries must belong to one
    yield loop
    loop.close()


@pytest.mark.parametrize("table", [CPU, GPU], ids=["cpu", "gpu"])
@pytest.mark.parametrize(("depth", "floor"), [(1, None), (2, None), (2, 0.0)], ids=["one", "two", "two-with-floor"])
def test_deadlines_cost_an_overloaded_server_no_answers(
    loop: asyncio.AbstractEventLoop, table: LatencyTable, depth: int, floor: float | None
) -> None:
    without = Rush(table, depth, floor=floor).run(loop)
    for deadline in (1.0, 0.3, 0.1):
        rush = Rush(table, depth, deadline, floor=floor)
        assert rush.run(loop) >= 0.9 * without
        assert all(seconds <= deadline + 1e-9 for _, seconds in rush.answers)
        assert rush.wasted + rush.late < 0.1 * len(rush.answers)  # all others are refused before they cost anything


def test_deadline_that_none_of_the_answers_can_meet_wastes_no_pass(loop: asyncio.AbstractEventLoop) -> None:
    rush = Rush(CPU, 2, deadline=0.002)
    assert rush.run(loop) == 0
    assert (rush.wasted, rush.late) == (0, 0)
