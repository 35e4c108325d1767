"""Which batch runs next.

A lane holds the entries that wait for one pass. ``pick`` decides, a pure function of time and lanes; ``Scheduler``
keeps the lanes, and lets worker threads wait for its decisions.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from service.engine.entry import Entry
from service.inference.latency import STAGES, Stage

# What a worker runs: a pass that somebody waits for, or the high pass of images that exited.
Work = Literal["low", "high", "audit"]

# Why a batch was released: it is full, nothing else waits, or no more feature slots are free.
Release = Literal["full", "drained", "slots"]

# How long new images may overtake escalated ones for the sake of a fuller high batch, in full low batches.
PATIENCE = 4

# Share of the workers' time that audits get even when there is other work.
AUDIT_SHARE = 0.01

# Full low batches to have decoded ahead.
AHEAD = 4

# Weight of the newest low batch in the running share of images that escalate.
NEWEST = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of the device: the largest batch worth running, and seconds of one by its stage and size."""

    low_size: int
    high_size: int
    seconds: Callable[[Stage, float], float] = lambda stage, size: 0.0


@dataclass(frozen=True, slots=True)
class Pick:
    """The next batch: ``size`` oldest entries of a lane."""

    stage: Stage
    size: int
    reason: Release


@dataclass(frozen=True, slots=True)
class Waiting:
    """A lane as ``pick`` sees it; times are absolute, infinite where there is none.

    Attributes:
        size: entries.
        oldest: when the oldest one's request arrived.
        since: when the one that waits longest in this lane came into it.
        deadline: the nearest.
    """

    size: int
    oldest: float = math.inf
    since: float = math.inf
    deadline: float = math.inf


def pick(now: float, lanes: Mapping[Stage, Waiting], free_slots: int, plan: Plan, escalating: float) -> Pick | None:
    """The next batch, or None when none may start.

    The lane whose oldest image arrived first goes first, so an escalated image, always older than what arrives
    behind it, never starves, and neither does a new one: everything older than it is finite. Escalated images may
    be overtaken where a fuller batch pays, see ``_should_fill``, for a bounded time. Greedy: an idle worker never
    waits. A low batch starts only as large as the free feature slots, since all of it may escalate; slots are held
    by escalated entries and a few audits, which need none to run, so there is no deadlock.

    Args:
        escalating: share of images that escalate, lately.
    """
    low, high = lanes["low"], lanes["high"]
    low_size = min(low.size, plan.low_size, free_slots)
    is_high_first = high.size and high.oldest <= low.oldest
    if is_high_first and low_size and _should_fill(now, high, low.size, low_size, plan, escalating):
        is_high_first = False
    if is_high_first or (high.size and not low_size):
        return Pick("high", min(high.size, plan.high_size), "full" if high.size >= plan.high_size else "drained")
    if not low_size:
        return None
    if low_size == plan.low_size:
        return Pick("low", low_size, "full")
    return Pick("low", low_size, "drained" if low_size == low.size else "slots")


def _should_fill(now: float, high: Waiting, waiting: int, low_size: int, plan: Plan, escalating: float) -> bool:
    """Whether a low batch should run before the escalated images, to escalate more to their batch.

    It should if the compute that one larger batch saves, for everybody who waits, is worth more than the delay
    of those that could run now, unless one of them would miss its deadline or has waited long.
    """
    if high.size >= plan.high_size:
        return False
    delay = plan.seconds("low", low_size)
    more = escalating * low_size
    full = min(high.size + more, plan.high_size)
    together = plan.seconds("high", full) + plan.seconds("high", high.size + more - full)
    if now + delay + together > high.deadline:
        return False
    if now + delay - high.since > PATIENCE * plan.seconds("low", plan.low_size):
        return False
    saved = plan.seconds("high", high.size) + plan.seconds("high", more) - together
    return saved * (high.size + waiting) > delay * high.size


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries for one pass, oldest first, and the feature slots they hold: of a low batch one for each, to use."""

    work: Work
    reason: Release
    entries: list[Entry]
    slots: list[int]


class Scheduler:
    """The lanes of one model, shared between threads.

    Args:
        plan: what the device can do; may be replaced before work comes.
        slots: images whose low features may be kept at a time.
        audit_backlog: of these, for audits.
        on_drop: told of each dead entry, with the stage whose lane it was in.
    """

    def __init__(
        self, plan: Plan, slots: int, audit_backlog: int = 0, on_drop: Callable[[Stage], None] = lambda stage: None
    ) -> None:
        self.plan = plan
        self.escalating = 0.0
        self._free = list(range(slots))
        self._audit_backlog = audit_backlog
        self._on_drop = on_drop
        self._lanes: dict[Stage, list[tuple[float, int, Entry]]] = {stage: [] for stage in STAGES}
        self._audits: deque[Entry] = deque()
        self._spent = {"audit": 0.0, "all": 0.0}
        self._order = itertools.count()
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._closed = False

    def push(self, entries: Sequence[Entry]) -> None:
        """Let new ``entries`` wait for the low pass."""
        with self._changed:
            self._push("low", entries)

    def escalate(self, entries: Sequence[Entry], of: int, unused: Sequence[int]) -> None:
        """Let ``entries`` of a low batch of ``of`` wait for the high pass with their slots; give back the others'."""
        with self._changed:
            self.escalating += NEWEST * (len(entries) / of - self.escalating)
            self._push("high", entries)
            self._release(unused)

    def audit(self, entry: Entry) -> bool:
        """Let ``entry`` and its slot wait for an audit, unless enough do already."""
        with self._changed:
            if len(self._audits) >= self._audit_backlog:
                return False
            self._audits.append(entry)
            self._changed.notify()
            return True

    def wait_for_room(self) -> None:
        """Wait until the low lane holds less than ``AHEAD`` full batches, so that decoding never starves compute."""
        with self._room:
            self._room.wait_for(lambda: self._closed or len(self._lanes["low"]) < AHEAD * self.plan.low_size)

    def release(self, slots: Sequence[int]) -> None:
        """Give back feature slots."""
        with self._changed:
            self._release(slots)

    def spent(self, work: Work, seconds: float) -> None:
        """Tell how long a batch took, for the audits' share."""
        with self._changed:
            self._spent["all"] += seconds
            if work == "audit":
                self._spent["audit"] += seconds

    def take(self, now: float) -> Batch | None:
        """The batch that should run now, or None. Never waits."""
        with self._changed:
            return self._take(now)

    def wait(self) -> Batch | None:
        """The next batch, as soon as there is one; None when the scheduler is closed and empty."""
        with self._changed:
            while True:
                batch = self._take(time.monotonic())
                if batch is not None:
                    return batch
                if self._closed and not any(self._lanes.values()):
                    self._changed.notify_all()  # workers that waited for a slot: no release may come to wake them
                    return None
                self._changed.wait()

    def close(self) -> None:
        """Let waiting workers go once the lanes are empty; audits are given up."""
        with self._changed:
            self._closed = True
            self._release([entry.slot for entry in self._audits if entry.slot is not None])
            self._audits.clear()
            self._audit_backlog = 0
            self._changed.notify_all()
            self._room.notify_all()

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits for a pass."""
        return not any(self._lanes.values())

    @property
    def free_slots(self) -> int:
        """Feature slots that nothing holds."""
        return len(self._free)

    def depth(self, stage: Stage) -> int:
        """Entries waiting for ``stage``."""
        return len(self._lanes[stage])

    def oldest(self, stage: Stage) -> float | None:
        """Arrival of the oldest entry waiting for ``stage``."""
        with self._changed:
            lane = self._lanes[stage]
            return lane[0][0] if lane else None

    def _push(self, stage: Stage, entries: Sequence[Entry]) -> None:
        for entry in entries:
            heapq.heappush(self._lanes[stage], (entry.arrival, next(self._order), entry))
        self._changed.notify(len(entries))

    def _release(self, slots: Sequence[int]) -> None:
        self._free.extend(slots)
        self._changed.notify(len(slots))

    def _take(self, now: float) -> Batch | None:
        for stage in STAGES:
            self._drop_dead(stage)
        lanes = {stage: _waiting(self._lanes[stage]) for stage in STAGES}
        picked = pick(now, lanes, len(self._free), self.plan, self.escalating)
        if self._audits and (picked is None or self._spent["audit"] < AUDIT_SHARE * self._spent["all"]):
            audited = [self._audits.popleft() for _ in range(min(len(self._audits), self.plan.high_size))]
            return _batch("audit", "drained", audited)
        if picked is None:
            return None
        lane = self._lanes[picked.stage]
        entries = [heapq.heappop(lane)[2] for _ in range(picked.size)]
        if picked.stage == "high":
            return _batch("high", picked.reason, entries)
        self._room.notify_all()
        return Batch("low", picked.reason, entries, [self._free.pop() for _ in entries])

    def _drop_dead(self, stage: Stage) -> None:
        """All of them, wherever they stand, so that images nobody waits for take no memory."""
        lane = self._lanes[stage]
        alive: list[tuple[float, int, Entry]] = []
        dead: list[Entry] = []
        for waiting in lane:  # asked once: the event loop may settle it at any moment
            if waiting[2].is_dead:
                dead.append(waiting[2])
            else:
                alive.append(waiting)
        if not dead:
            return
        heapq.heapify(alive)
        self._lanes[stage] = alive
        self._room.notify_all()
        self._release([entry.slot for entry in dead if entry.slot is not None])
        for _ in dead:
            self._on_drop(stage)


def _batch(work: Work, reason: Release, entries: list[Entry]) -> Batch:
    return Batch(work, reason, entries, [entry.slot for entry in entries if entry.slot is not None])


def _waiting(lane: Sequence[tuple[float, int, Entry]]) -> Waiting:
    if not lane:
        return Waiting(0)
    entries = [waiting[2] for waiting in lane]
    deadlines = [entry.deadline for entry in entries if entry.deadline is not None]
    return Waiting(len(lane), lane[0][0], min(entry.enqueued for entry in entries), min(deadlines, default=math.inf))
