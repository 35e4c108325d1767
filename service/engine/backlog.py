"""The queued work of an engine, and how soon it could answer one more image."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from statistics import median_low

from service.engine.brown_out import Load
from service.engine.entry import Entry
from service.engine.lanes import Lanes
from service.engine.pace import Pace


class Backlog:
    """Queued work of one engine, in seconds of its device.

    Args:
        waiting: all images not yet answered.
        lanes: the queues of images that are not being decoded or run.
        pace: measured durations.
        names: of the stages.
    """

    def __init__(self, waiting: Collection[Entry], lanes: Lanes, pace: Pace, names: Sequence[str]) -> None:
        self._waiting = waiting
        self._lanes = lanes
        self._pace = pace
        self._names = names

    def load(self) -> Load:
        """Queued work by stage."""
        later, escalating = self._lanes.depths[1:], self._lanes.escalating
        seconds = [self._pace.from_stage(stage, escalating) for stage in range(1, len(later) + 1)]
        return Load(
            undecided=max(0, len(self._waiting) - sum(later)),
            first_seconds=self._pace.image(0),
            later_seconds=seconds[0] if seconds else 0.0,
            escalated_seconds=sum(waiting * each for waiting, each in zip(later, seconds, strict=True)),
        )

    def depths(self) -> dict[str, int]:
        """Images waiting for each stage, by name."""
        return dict(zip(self._names, self._lanes.depths, strict=True))

    def age(self, stage: int) -> float:
        """Seconds since the oldest image that waits for ``stage`` arrived; 0 without any."""
        oldest = self._lanes.oldest(stage)
        return 0.0 if oldest is None else time.monotonic() - oldest

    def seconds(self) -> float:
        """Seconds that the device needs for the queued work, at the recent escalation rate."""
        return self.load().queued_seconds(self._lanes.escalating[0])

    def first_answer(self) -> float:
        """Seconds until the first stage's answer for an image that arrives now.

        Older images go first at every stage; the new image then runs in one batch with others that wait.
        """
        if not self._waiting:  # recent durations may no longer hold, and nothing else would show it
            return self._pace.soonest()
        beside = min(self._lanes.depths[0] + 1, self._pace.sizes[0])
        return self.seconds() + self._pace.predicted(0, beside)

    def foresight(self) -> float:
        """Seconds of queued work that deadlines allow, for the median image; infinite without deadlines."""
        allowed = [entry.allowed for entry in self._waiting]
        if not allowed or (median := median_low(allowed)) == math.inf:
            return math.inf
        return max(0.0, median - self._pace.predicted(0, self._pace.sizes[0]))
