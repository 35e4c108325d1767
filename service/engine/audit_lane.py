"""The images that wait for a stage behind their answer, and when workers have time for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.engine import tuning
from service.engine.entry import Entry


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another model's work on the same device: whether there is any now, and the seconds that it took lately."""

    is_busy: Callable[[], bool]
    spent: Callable[[], float]


class AuditLane:
    """Used under the lock of the lanes that it belongs to.

    Args:
        stages: how many the model has.
        backlog: audits that may wait. What runs whole behind an answer is bounded by whoever sends it.

    Attributes:
        neighbour: whose work audits make way for too; None while no other model is compared with this one.
        spent: seconds of compute, audits and all, as far as the audits' share looks back.
    """

    def __init__(self, stages: int, backlog: int) -> None:
        self.neighbour: Neighbour | None = None
        self.spent = 0.0
        self._spent_on_audits = 0.0
        self._waiting: list[deque[Entry]] = [deque() for _ in range(stages)]
        self._backlog = backlog
        self._reserved = 0
        self._closed = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting))

    @property
    def has_room(self) -> bool:
        """Whether one more audit may wait."""
        audits = sum(not entry.is_behind for waiting in self._waiting for entry in waiting)
        return audits + self._reserved < self._backlog

    def add(self, stage: int, entry: Entry) -> bool:
        """Let ``entry`` wait for ``stage``, unless enough do and it has no room reserved.

        What runs behind an answer is never turned away once it began: escalated images would be missing more often.
        """
        if not (entry.is_behind or (entry.is_drawn and not self._closed) or self.has_room):
            return False
        self._waiting[stage].append(entry)
        return True

    def extend(self, entries: Sequence[Entry]) -> None:
        """Let ``entries``, without slots, wait for the first stage."""
        self._waiting[0].extend(entries)

    def reserve(self) -> bool:
        """Keep room for an image that is yet to come, if there is any."""
        has_room = self.has_room
        self._reserved += has_room
        return has_room

    def free(self) -> None:
        """That image waits by now, or needs no audit."""
        self._reserved -= 1

    def count(self, seconds: float, is_audit: bool) -> None:
        """Count the time of a batch, for the audits' share."""
        kept = max(0.0, 1 - seconds / tuning.AUDIT_MEMORY_SECONDS)
        self.spent = kept * self.spent + seconds
        self._spent_on_audits = kept * self._spent_on_audits + (seconds if is_audit else 0.0)

    def may_run(self, is_idle: bool) -> bool:
        """Whether nothing else is to be done, or audits had less than their share of the time."""
        spent = self.spent
        if self.neighbour is not None:
            spent += self.neighbour.spent()
            is_idle = is_idle and not self.neighbour.is_busy()
        return is_idle or self._spent_on_audits < tuning.AUDIT_SHARE * spent

    def take(self, sizes: Sequence[int], free_slots: int) -> tuple[int, list[Entry]] | None:
        """Take out a batch of the latest stage that has any, and which stage that is.

        Args:
            sizes: the largest batch of each stage.
            free_slots: feature slots for those of the first stage, which have none yet.
        """
        for stage in reversed(range(len(self._waiting))):
            waiting = self._waiting[stage]
            most = sizes[stage] if stage else min(sizes[0], free_slots)
            entries = [waiting.popleft() for _ in range(min(len(waiting), most))]
            if entries:
                return stage, entries
        return None

    def close(self) -> list[Entry]:
        """Give up all that wait, and let no more wait: who they were."""
        self._closed, self._backlog = True, 0
        given_up = [entry for waiting in self._waiting for entry in waiting]
        for waiting in self._waiting:
            waiting.clear()
        return given_up
