"""Which batch runs next.

A lane holds the entries that wait for one pass. ``pick`` decides, a pure function of the lanes; ``Scheduler``
keeps the lanes, and lets worker threads wait for its decisions.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from service.engine.entry import Entry, Stage

STAGES: tuple[Stage, ...] = ("high", "low")

# Why a batch was released: it is full, nothing else waits, or no more feature slots are free.
Release = Literal["full", "drained", "slots"]


@dataclass(frozen=True, slots=True)
class Pick:
    """The next batch: ``size`` oldest entries of a lane."""

    stage: Stage
    size: int
    reason: Release


@dataclass(frozen=True, slots=True)
class Waiting:
    """A lane as ``pick`` sees it: how many wait, and when the oldest one's request arrived."""

    size: int
    oldest: float


def pick(lanes: Mapping[Stage, Waiting], free_slots: int, max_batch_size: int) -> Pick | None:
    """The next batch, or None when none may start.

    The lane whose oldest image arrived first goes first, so an escalated image, always older than what
    arrives behind it, never starves, and neither does a new one: everything older than it is finite.
    Greedy: an idle worker never waits for a fuller batch. A low batch starts only as large as the free
    feature slots, since all of it may escalate; slots are held by high entries alone, which need none,
    so there is no deadlock.
    """
    ready = [stage for stage in STAGES if lanes[stage].size and (stage == "high" or free_slots)]
    if not ready:
        return None
    stage = min(ready, key=lambda stage: lanes[stage].oldest)
    limit = max_batch_size if stage == "high" else min(max_batch_size, free_slots)
    size = min(lanes[stage].size, limit)
    if size == max_batch_size:
        return Pick(stage, size, "full")
    return Pick(stage, size, "drained" if size == lanes[stage].size else "slots")


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries of one stage, oldest first. A low batch holds one feature slot for each."""

    stage: Stage
    reason: Release
    entries: list[Entry]


class Scheduler:
    """The lanes of one model, shared between threads.

    Args:
        max_batch_size: entries in a batch.
        slots: images whose low features may be kept at a time.
        on_drop: told of each dead entry, with the stage whose lane it was in.
    """

    def __init__(self, max_batch_size: int, slots: int, on_drop: Callable[[Stage], None] = lambda stage: None) -> None:
        self._max_batch_size = max_batch_size
        self._free_slots = slots
        self._on_drop = on_drop
        self._lanes: dict[Stage, list[tuple[float, int, Entry]]] = {stage: [] for stage in STAGES}
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = False

    def push(self, stage: Stage, entries: Sequence[Entry]) -> None:
        """Let ``entries`` wait for ``stage``. Entries pushed for the high pass keep the slot they hold."""
        with self._changed:
            for entry in entries:
                heapq.heappush(self._lanes[stage], (entry.arrival, next(self._order), entry))
            self._changed.notify(len(entries))

    def release(self, slots: int) -> None:
        """Give back feature slots."""
        if slots:
            with self._changed:
                self._free_slots += slots
                self._changed.notify(slots)

    def take(self) -> Batch | None:
        """The batch that should run now, or None. Never waits."""
        with self._changed:
            return self._take()

    def wait(self) -> Batch | None:
        """The next batch, as soon as there is one; None when the scheduler is closed and empty."""
        with self._changed:
            while True:
                batch = self._take()
                if batch is not None:
                    return batch
                if self._closed and not any(self._lanes.values()):
                    self._changed.notify_all()  # workers that waited for a slot: no release may come to wake them
                    return None
                self._changed.wait()

    def close(self) -> None:
        """Let waiting workers go once the lanes are empty."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def free_slots(self) -> int:
        """Feature slots that nothing holds."""
        return self._free_slots

    def depth(self, stage: Stage) -> int:
        """Entries waiting for ``stage``."""
        return len(self._lanes[stage])

    def oldest(self, stage: Stage) -> float | None:
        """Arrival of the oldest entry waiting for ``stage``."""
        with self._changed:
            lane = self._lanes[stage]
            return lane[0][0] if lane else None

    def _take(self) -> Batch | None:
        for stage in STAGES:
            self._drop_dead(stage)
        lanes = {stage: Waiting(len(lane), lane[0][0] if lane else math.inf) for stage, lane in self._lanes.items()}
        picked = pick(lanes, self._free_slots, self._max_batch_size)
        if picked is None:
            return None
        lane = self._lanes[picked.stage]
        if picked.stage == "low":
            self._free_slots -= picked.size
        return Batch(picked.stage, picked.reason, [heapq.heappop(lane)[2] for _ in range(picked.size)])

    def _drop_dead(self, stage: Stage) -> None:
        """All of them, wherever they stand, so that images nobody waits for take no memory: 0.05 us an entry."""
        lane = self._lanes[stage]
        alive = [waiting for waiting in lane if not waiting[2].is_dead]
        dropped = len(lane) - len(alive)
        if not dropped:
            return
        heapq.heapify(alive)
        self._lanes[stage] = alive
        if stage == "high":
            self._free_slots += dropped
            self._changed.notify(dropped)
        for _ in range(dropped):
            self._on_drop(stage)
