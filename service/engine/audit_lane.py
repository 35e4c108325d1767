"""Images that wait for a stage in the background, and when workers have time for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.engine import tuning
from service.engine.entry import Entry


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Work of another model on the same device: whether there is any now, and its recent seconds."""

    is_busy: Callable[[], bool]
    spent: Callable[[], float]


class AuditLane:
    """Used under the lock of the lanes that it belongs to.

    Args:
        stages: number of stages of the model.
        backlog: most waiting audits. Images that run completely in the background are limited by their sender.

    Attributes:
        neighbour: another model whose work has precedence over audits; None without a comparison.
        spent: seconds of compute, including audits, within the window of the audits' share.
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
        """Let ``entry`` wait for ``stage``, unless the backlog is full and it has no reservation.

        An image that has started in the background is never dropped: otherwise escalated images would be missing more
        often.
        """
        if not (entry.is_behind or (entry.is_drawn and not self._closed) or self.has_room):
            return False
        self._waiting[stage].append(entry)
        return True

    def extend(self, entries: Sequence[Entry]) -> None:
        """Let ``entries``, which have no feature slots, wait for the first stage."""
        self._waiting[0].extend(entries)

    def reserve(self) -> bool:
        """Reserve room for an image that will come later, if there is any."""
        has_room = self.has_room
        self._reserved += has_room
        return has_room

    def free(self) -> None:
        """Release a reservation: the image waits now, or needs no audit."""
        self._reserved -= 1

    def count(self, seconds: float, is_audit: bool) -> None:
        """Count the time of a batch, for the audits' share."""
        kept = max(0.0, 1 - seconds / tuning.AUDIT_MEMORY_SECONDS)
        self.spent = kept * self.spent + seconds
        self._spent_on_audits = kept * self._spent_on_audits + (seconds if is_audit else 0.0)

    def may_run(self, is_idle: bool) -> bool:
        """Whether the workers are idle, or audits had less than their share of the time."""
        spent = self.spent
        if self.neighbour is not None:
            spent += self.neighbour.spent()
            is_idle = is_idle and not self.neighbour.is_busy()
        return is_idle or self._spent_on_audits < tuning.AUDIT_SHARE * spent

    def take(self, sizes: Sequence[int], free_slots: int) -> tuple[int, list[Entry]] | None:
        """Take a batch of the latest stage that has any, and return it with the stage.

        Args:
            sizes: the largest batch of each stage.
            free_slots: feature slots for images of the first stage, which have none yet.
        """
        for stage in reversed(range(len(self._waiting))):
            waiting = self._waiting[stage]
            most = sizes[stage] if stage else min(sizes[0], free_slots)
            entries = [waiting.popleft() for _ in range(min(len(waiting), most))]
            if entries:
                return stage, entries
        return None

    def close(self) -> list[Entry]:
        """Drop all waiting images, accept no more, and return the dropped ones."""
        self._closed, self._backlog = True, 0
        given_up = [entry for waiting in self._waiting for entry in waiting]
        for waiting in self._waiting:
            waiting.clear()
        return given_up
