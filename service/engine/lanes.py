"""The lanes: each holds the entries that wait for one stage; worker threads take batches from them."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.engine import tuning
from service.engine.audit_lane import AuditLane
from service.engine.entry import Entry, give_up
from service.engine.pick import Pick, Plan, Release, Waiting, most_in_time, pick
from service.errors import LowfirstError


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries for one stage, oldest first, and their feature slots; at the first stage one free slot for each."""

    stage: int
    reason: Release
    entries: list[Entry]
    slots: list[int]
    is_audit: bool = False


class Lanes:
    """The lanes of one model, shared between threads.

    Args:
        plan: what the device can do; may be replaced before the first work.
        slots: number of images whose features may be stored.
        audit_backlog: how many of these audits may use.
        on_drop: called with the stage of each dead entry that is dropped from its lane.
        on_late: called for each entry whose deadline its stage cannot meet; it gets the answer it has, or an error.

    Attributes:
        escalating: recent share of each stage's images that escalate.
        batches, seconds: batches run and compute time since the start, without audits.
        single_scale_seconds: time that the single-scale network would have taken for the same images.
        audits: entries that wait for a stage in the background.
    """

    def __init__(
        self,
        plan: Plan,
        slots: int,
        audit_backlog: int = 0,
        on_drop: Callable[[int], None] = lambda stage: None,
        on_late: Callable[[int], None] = lambda stage: None,
    ) -> None:
        self.plan = plan
        self.escalating = [0.0] * len(plan.sizes)
        self._free = list(range(slots))
        self._on_drop = on_drop
        self._on_late = on_late
        self._lanes: list[list[tuple[float, int, Entry]]] = [[] for _ in plan.sizes]
        self.audits = AuditLane(len(plan.sizes), audit_backlog)
        self.batches, self.seconds, self.single_scale_seconds = 0, 0.0, 0.0
        self._order = itertools.count()
        lock = threading.Lock()
        self._changed = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._closed = False
        self._failure: Callable[[], LowfirstError] | None = None

    def push(self, entries: Sequence[Entry]) -> None:
        """Let new ``entries`` wait for the first stage; fail them while no worker runs, see ``fail_all``."""
        with self._changed:
            if self._failure is None:
                self._push(0, entries)
                return
            failure = self._failure
        _fail(entries, failure)

    def escalate(self, stage: int, entries: Sequence[Entry], of: int, unused: Sequence[int]) -> None:
        """Move ``entries`` of a batch of ``of`` from ``stage`` to the next, with their slots; free ``unused``."""
        with self._changed:
            self.escalating[stage] += tuning.NEWEST_BATCH * (len(entries) / of - self.escalating[stage])
            if entries:
                self._push(stage + 1, entries)
            self._release(unused)

    def audit(self, stage: int, entry: Entry) -> bool:
        """Let ``entry`` and its slot wait for an audit's ``stage``, unless the backlog is full and it has no
        reservation."""
        with self._changed:
            is_added = self.audits.add(stage, entry)
            self._changed.notify(is_added)
            return is_added

    def reserve_audit(self) -> bool:
        """Reserve room for the audit of a later image, unless the backlog is full."""
        with self._changed:
            return self.audits.reserve()

    def free_audit(self) -> None:
        """Release a reservation: the image waits for its audit, or needs none."""
        with self._changed:
            self.audits.free()

    @property
    def has_audit_room(self) -> bool:
        """Whether ``audit`` would take one now."""
        with self._changed:
            return self.audits.has_room

    def behind(self, entries: Sequence[Entry]) -> bool:
        """Let ``entries``, without slots, wait for the first stage after clients' work; False while no worker runs."""
        with self._changed:
            if self._closed or self._failure is not None:
                return False
            self.audits.extend(entries)
            self._changed.notify()
            return True

    def wait_for_room(self) -> None:
        """Wait until the first lane has only a few full batches, so that decoding never delays compute."""
        with self._room:
            self._room.wait_for(self._has_room)

    def release(self, slots: Sequence[int]) -> None:
        """Give back feature slots."""
        with self._changed:
            self._release(slots)

    def spent(self, seconds: float, is_audit: bool, single_scale_seconds: float = 0.0) -> None:
        """Count the time of a batch, for the audits' share; and the single-scale network's, once for each image."""
        with self._changed:
            self.batches += not is_audit
            self.seconds += 0.0 if is_audit else seconds
            self.single_scale_seconds += single_scale_seconds
            self.audits.count(seconds, is_audit)

    def take(self, now: float) -> Batch | None:
        """The batch to run now, or None. Never waits."""
        with self._changed:
            return self._take(now)

    def wait(self) -> Batch | None:
        """Wait for the next batch; None when the lanes are closed and empty."""
        with self._changed:
            while True:
                batch = self._take(time.monotonic())
                if batch is not None:
                    return batch
                if self._closed and not any(self._lanes):
                    self._changed.notify_all()  # workers that waited for a slot; no release may come to wake them
                    return None
                self._changed.wait(tuning.YIELD_SECONDS if self.audits else None)

    def close(self) -> None:
        """Release waiting workers once the lanes are empty; audits are dropped."""
        with self._changed:
            self._closed = True
            self._release(_slots(self.audits.close()))
            self._changed.notify_all()
            self._room.notify_all()

    def fail_all(self, error: Callable[[], LowfirstError]) -> None:
        """Fail every entry that waits or arrives until ``resume``, each with its own ``error``: no worker runs."""
        with self._changed:
            self._failure = error
            entries = [waiting[2] for lane in self._lanes for waiting in lane]
            for lane in self._lanes:
                lane.clear()
            self._release(_slots(entries))
            self._room.notify_all()
            self._changed.notify_all()
        _fail(entries, error)

    def resume(self) -> None:
        """Let entries wait again: a worker runs."""
        with self._changed:
            self._failure = None

    @property
    def free_slots(self) -> int:
        """Free feature slots."""
        return len(self._free)

    @property
    def depths(self) -> tuple[int, ...]:
        """Entries waiting for each stage."""
        return tuple(map(len, self._lanes))

    def oldest(self, stage: int) -> float | None:
        """Arrival of the oldest entry waiting for ``stage``."""
        with self._changed:
            lane = self._lanes[stage]
            return lane[0][0] if lane else None

    def _has_room(self) -> bool:
        is_short = len(self._lanes[0]) < tuning.DECODED_AHEAD * self.plan.sizes[0]
        return is_short or self._closed or self._failure is not None

    def _push(self, stage: int, entries: Sequence[Entry]) -> None:
        for entry in entries:
            heapq.heappush(self._lanes[stage], (entry.arrival, next(self._order), entry))
        self._changed.notify(len(entries))

    def _release(self, slots: Sequence[int]) -> None:
        if slots:
            self._free.extend(slots)
            self._changed.notify(len(slots))

    def _take(self, now: float) -> Batch | None:
        for stage in range(len(self._lanes)):
            self._drop(stage, now)
        lanes = [_waiting(lane) for lane in self._lanes]
        picked = pick(now, lanes, len(self._free), self.plan, self.escalating)
        audit = self._take_audit() if self.audits and self.audits.may_run(is_idle=picked is None) else None
        if audit is not None:
            return audit
        if picked is None:
            return None
        entries = self._pop(picked, now, lanes[picked.stage].deadline)
        reason = picked.reason if len(entries) == picked.size else "deadline"
        if picked.stage:
            return Batch(picked.stage, reason, entries, _slots(entries))
        self._room.notify_all()
        return Batch(0, reason, entries, [self._free.pop() for _ in entries])

    def _pop(self, picked: Pick, now: float, nearest: float) -> list[Entry]:
        """Pop the oldest entries of a lane: as many as picked, or as can be in time together."""
        stage, lane, size = picked.stage, self._lanes[picked.stage], picked.size
        if now + self.plan.seconds(stage, size) <= nearest:
            return [heapq.heappop(lane)[2] for _ in range(size)]
        ordered = sorted(lane)  # still a heap, whichever entries are left out
        deadlines = [waiting[2].due for waiting in ordered]
        size = most_in_time(now, deadlines, size, lambda size: self.plan.seconds(stage, size))
        ready = now + self.plan.seconds(stage, size)
        fitting = [index for index, deadline in enumerate(deadlines) if deadline >= ready][:size] or [0]
        entries = [ordered[index][2] for index in fitting]
        for index in reversed(fitting):
            del ordered[index]
        self._lanes[stage] = ordered
        return entries

    def _take_audit(self) -> Batch | None:
        taken = self.audits.take(self.plan.sizes, len(self._free))
        if taken is None:
            return None
        stage, entries = taken
        slots = _slots(entries) if stage else [self._free.pop() for _ in entries]
        return Batch(stage, "drained", entries, slots, is_audit=True)

    def _drop(self, stage: int, now: float) -> None:
        """Drop all dead entries, wherever they are, to free their memory, and all that would be late."""
        alive: list[tuple[float, int, Entry]] = []
        late: list[tuple[float, int, Entry]] = []
        dead: list[Entry] = []
        soonest = now + self.plan.seconds(stage, 1)
        for waiting in self._lanes[stage]:
            entry = waiting[2]
            if entry.is_dead:  # read once: the event loop may resolve it at any moment
                dead.append(entry)
            else:
                (late if entry.due < soonest else alive).append(waiting)
        if not dead and not late:
            return
        tried = [] if alive or stage else self._to_try(late, now)
        gone = [waiting[2] for waiting in late if waiting not in tried]
        alive += tried
        heapq.heapify(alive)
        self._lanes[stage] = alive
        self._room.notify_all()
        self._release(_slots(dead) + _slots(gone))
        for _ in dead:
            self._on_drop(stage)
        for _ in gone:
            self._on_late(stage)
        give_up(gone)

    def _to_try(self, late: list[tuple[float, int, Entry]], now: float) -> list[tuple[float, int, Entry]]:
        """If recent durations make all entries late, try the one most likely to be in time: it shows whether they still
        hold."""
        soonest = now + self.plan.soonest()
        return sorted(waiting for waiting in late if waiting[2].due >= soonest)[:1]


def _fail(entries: Sequence[Entry], error: Callable[[], LowfirstError]) -> None:
    for entry in entries:
        entry.loop.call_soon_threadsafe(entry.fail, error())


def _slots(entries: Sequence[Entry]) -> list[int]:
    return [entry.slot for entry in entries if entry.slot is not None]


def _waiting(lane: Sequence[tuple[float, int, Entry]]) -> Waiting:
    if not lane:
        return Waiting(0)
    entries = [waiting[2] for waiting in lane]
    return Waiting(len(lane), lane[0][0], min(entry.enqueued for entry in entries), min(entry.due for entry in entries))
