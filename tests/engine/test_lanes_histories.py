"""Any order of arrivals, departures, deadlines, errors and stops: every image ends once, and every slot returns.

The lanes and the decision are real, and nothing else is: what workers do with a batch is written out here.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.engine.decide import Drop, Escalate, Policy, decide
from service.engine.entry import Entry
from service.engine.lanes import Batch, Lanes
from service.errors import DeviceFailed
from tests.engine.lanes_of import TABLE, entry_of, timed

SLOTS = 5
BACKLOG = 2
SIZE = 3


class World:
    """Lanes, a decision, and workers that run whenever they are told to; time moves when it is told to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, depth: int, slots: int = SLOTS, size: int = SIZE) -> None:
        self.loop = loop
        self.slots = slots
        self.dropped: list[int] = []
        self.lanes = Lanes(timed(*[size] * depth), slots, BACKLOG, on_drop=self.dropped.append)
        self.policy = Policy(depth - 1)
        self.entries: list[Entry] = []
        self.running: list[Batch] = []
        self.audits: list[Entry] = []
        self.runs: list[tuple[int, bool, int]] = []
        self.now = 10.0

    # what happens to images

    def arrive(self, ages: list[float], patience: float | None = None) -> None:
        deadline = None if patience is None else self.now + patience
        entries = [entry_of(self.loop, self.now - age, deadline) for age in ages]
        self.entries += entries
        self.lanes.push(entries)
        self.tick()

    def tick(self) -> None:
        """The event loop's turn: what was sent to it, and deadlines."""
        self.loop.run_until_complete(asyncio.sleep(0))
        for entry in self.entries:
            if entry.deadline is not None and entry.deadline <= self.now:
                entry.expire()

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.tick()

    # what workers do

    def start(self) -> bool:
        batch = self.lanes.take(self.now)
        if batch is None:
            return False
        assert batch.entries
        assert len(set(batch.slots)) == len(batch.entries)
        self.running.append(batch)
        self.runs += [(batch.stage, batch.is_audit, id(entry)) for entry in batch.entries]
        if batch.is_audit:
            self.audits = [entry for entry in self.audits if entry not in batch.entries]
        return True

    def finish(self, batch: Batch, confidences: list[float], is_audited: bool = False) -> None:
        """As the executor does."""
        self.running.remove(batch)
        self.wait(TABLE.seconds(batch.stage, len(batch.entries)))
        if batch.is_audit:
            if batch.stage == self.policy.last:
                self.lanes.release(batch.slots)
            else:
                unused = [entry for entry in batch.entries if not self.audit(batch.stage + 1, entry)]
                self.lanes.release([entry.slot for entry in unused if entry.slot is not None])
            return
        stage, escalated, unused_slots = batch.stage, [], []
        for entry, slot, confidence in zip(batch.entries, batch.slots, confidences, strict=False):
            next_answer_at = self.now + TABLE.seconds(min(stage + 1, 2), 1)
            decision = decide(confidence, stage, entry, self.policy, next_answer_at)
            entry.slot, entry.enqueued = slot, self.now
            if isinstance(decision, Drop):
                unused_slots.append(slot)
            elif isinstance(decision, Escalate):
                entry.latest = stage, "deadline"
                escalated.append(entry)
            else:
                entry.resolve(stage, decision.reason)
                if not (is_audited and decision.reason == "confident" and self.audit(stage + 1, entry)):
                    entry.slot = None
                    unused_slots.append(slot)
        self.lanes.escalate(stage, escalated, len(batch.entries), unused_slots)

    def audit(self, stage: int, entry: Entry) -> bool:
        accepted = self.lanes.audit(stage, entry)
        if accepted:
            self.audits.append(entry)
        return accepted

    def fail(self, batch: Batch) -> None:
        """The device fails on it."""
        self.running.remove(batch)
        self.lanes.release(batch.slots)
        for entry in batch.entries:
            entry.fail(DeviceFailed("this image"))

    # what must hold

    def check_account(self) -> None:
        held = sum(self.lanes.depths[1:]) + len(self.audits) + sum(len(batch.entries) for batch in self.running)
        assert self.lanes.free_slots + held == self.slots
        assert len(self.audits) <= BACKLOG
        assert len(self.runs) == len(set(self.runs))  # no image runs a stage twice

    def finish_all(self, confidence: float = 0.9) -> None:
        while self.start() or self.running:
            if self.running:
                self.finish(self.running[0], [confidence] * SIZE)
        self.tick()  # those that were given up are told so in the event loop's turn
        assert all(entry.is_dead for entry in self.entries)  # else one was lost
        assert self.lanes.free_slots == self.slots


class Histories(RuleBasedStateMachine):
    """Whatever happens, in whatever order, with one, two or three stages."""

    world: World

    @initialize(depth=st.integers(1, 3))
    def begin(self, depth: int) -> None:
        self.world = World(asyncio.new_event_loop(), depth)
        self.is_broken = self.is_closed = False

    @rule(ages=st.lists(st.integers(0, 9).map(float), min_size=1, max_size=4), patience=st.none() | st.floats(0, 120))
    def arrive(self, ages: list[float], patience: float | None) -> None:
        self.world.arrive(ages, patience)

    @rule(seconds=st.floats(0, 50))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @precondition(lambda self: not self.is_broken)
    @rule()
    def start(self) -> None:
        self.world.start()

    @precondition(lambda self: self.world.running)
    @rule(data=st.data(), sure=st.lists(st.floats(0, 1), min_size=SIZE, max_size=SIZE), is_audited=st.booleans())
    def finish(self, data: st.DataObject, sure: list[float], is_audited: bool) -> None:
        self.world.finish(data.draw(st.sampled_from(self.world.running)), sure, is_audited)

    @precondition(lambda self: self.world.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        self.world.fail(data.draw(st.sampled_from(self.world.running)))

    @precondition(lambda self: self.world.entries)
    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        self.world.entries[which % len(self.world.entries)].future.cancel()

    @rule(lowered=st.floats(0, 1))
    def steer(self, lowered: float) -> None:
        self.world.policy = Policy(self.world.policy.last, lowered)

    @precondition(lambda self: not self.world.running)
    @rule()
    def break_down(self) -> None:
        self.world.lanes.fail_all(lambda: DeviceFailed("all of it"))
        self.is_broken = True
        self.world.tick()
        assert self.world.lanes.depths == (0,) * (self.world.policy.last + 1)

    @precondition(lambda self: self.is_broken)
    @rule()
    def recover(self) -> None:
        self.world.lanes.resume()
        self.is_broken = False

    @precondition(lambda self: not self.is_closed)
    @rule()
    def stop(self) -> None:
        self.world.lanes.close()
        self.world.audits.clear()
        self.is_closed = True

    @invariant()
    def account_holds(self) -> None:
        if hasattr(self, "world"):
            self.world.check_account()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.world.finish_all()
            finally:
                self.world.loop.close()


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHistories: Any = Histories.TestCase


# all interleavings of a few images


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


STEPS = ("start", "sure", "unsure", "leave", "fail")


def histories(length: int) -> Iterator[tuple[str, ...]]:
    return itertools.product(STEPS, repeat=length)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("images", [1, 2, 3, 4])
def test_every_interleaving_of_a_few_images_ends_each_of_them_once(
    loop: asyncio.AbstractEventLoop, depth: int, images: int
) -> None:
    """Workers take, answer, escalate or fail batches of at most two with three slots; a client leaves in between."""
    for history in histories(5):
        world = World(loop, depth, slots=3, size=2)
        world.arrive([float(age) for age in range(images)])
        for step in history:
            if step == "start":
                world.start()
            elif step == "leave":
                world.entries[0].future.cancel()
            elif world.running and step == "fail":
                world.fail(world.running[-1])
            elif world.running:
                world.finish(world.running[-1], [0.9 if step == "sure" else 0.1] * 2)
            world.check_account()
        world.finish_all()
