"""Totals of the last minute, and since the last change of the threshold, from regular snapshots."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from service.engine.answering import Answering
from service.engine.lanes import Lanes
from service.engine.recent import Recent

MINUTE_SECONDS = 60
LOOK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Done:
    """Totals of a period.

    Attributes:
        seconds: its length.
        images, exited, mmacs: answered; of these exited early; million multiply-adds of all.
        computed, compute_seconds: images that were not cached; worker seconds for them.
    """

    seconds: float = 0.0
    images: float = 0.0
    exited: float = 0.0
    mmacs: float = 0.0
    computed: float = 0.0
    compute_seconds: float = 0.0

    def since(self, earlier: Done) -> Done:
        """The part after ``earlier``."""
        return Done(
            self.seconds - earlier.seconds,
            self.images - earlier.images,
            self.exited - earlier.exited,
            self.mmacs - earlier.mmacs,
            self.computed - earlier.computed,
            self.compute_seconds - earlier.compute_seconds,
        )

    def beside(self, other: Done) -> Done:
        """The sum of two processes over the same period."""
        return Done(
            max(self.seconds, other.seconds),
            self.images + other.images,
            self.exited + other.exited,
            self.mmacs + other.mmacs,
            self.computed + other.computed,
            self.compute_seconds + other.compute_seconds,
        )


NOTHING = Done()


class Periods:
    """Used only in the event loop's thread; keeps a minute of snapshots, one per second.

    Args:
        totals: returns those since the start, except ``seconds``, which ``clock`` gives.
    """

    def __init__(self, totals: Callable[[], Done], clock: Callable[[], float] = time.monotonic) -> None:
        self._totals = totals
        self._clock = clock
        self._began = clock()
        self._looks: deque[Done] = deque([self._now()], maxlen=MINUTE_SECONDS + 1)
        self._changed = self._looks[0]
        self._threshold: float | None = None

    def look(self, threshold: float) -> None:
        """Take a snapshot, and note whether ``threshold`` has changed."""
        now = self._now()
        if threshold != self._threshold:
            self._threshold, self._changed = threshold, now
        if now.seconds - self._looks[-1].seconds >= LOOK_SECONDS:
            self._looks.append(now)

    def last_minute(self) -> Done:
        """Totals of the last minute, or since the start."""
        now = self._now()
        kept = [each for each in self._looks if now.seconds - each.seconds <= MINUTE_SECONDS + LOOK_SECONDS]
        return now.since(kept[0] if kept else now)

    def since_change(self) -> Done:
        """Totals since the last change of the threshold, or the start."""
        return self._now().since(self._changed)

    def lately(self, least: int) -> Done:
        """The shorter period; the last minute is ignored if it has fewer than ``least`` images."""
        minute, since = self.last_minute(), self.since_change()
        return minute if minute.seconds < since.seconds and minute.images >= least else since

    def _now(self) -> Done:
        return replace(self._totals(), seconds=self._clock() - self._began)


def done_by(recent: Recent, answering: Answering, lanes: Lanes) -> Done:
    """Totals of an engine since the start."""
    images, exited, mmacs = recent.counts
    return Done(0.0, images, exited, mmacs, answering.computed, lanes.seconds)
