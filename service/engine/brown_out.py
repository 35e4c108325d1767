"""Lowers the threshold while the server is overloaded, down to the floor."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from service.engine import tuning


@dataclass(frozen=True, slots=True)
class Load:
    """Queued work in images, and current seconds per image on the whole device.

    Attributes:
        undecided: images whose first stage has not finished.
        first_seconds: the first stage, per image.
        later_seconds: all later stages, per image that escalates.
        escalated_seconds: all images waiting for later stages, together.
    """

    undecided: int
    first_seconds: float
    later_seconds: float
    escalated_seconds: float

    def queued_seconds(self, escalating: float) -> float:
        """Seconds that the device needs for all of it, if the share ``escalating`` of the undecided escalates."""
        each = self.first_seconds + escalating * self.later_seconds
        return self.undecided * each + self.escalated_seconds


class BrownOut:
    """Computes the share of images that may escalate, and the threshold for that share.

    Args:
        target_seconds: how long queued work may take.
    """

    def __init__(self, target_seconds: float) -> None:
        self._target = target_seconds
        self._share = 1.0
        self._at = -math.inf

    def steer(
        self,
        now: float,
        load: Load,
        confidences: Sequence[float],
        threshold: float,
        floor: float | None,
        allowed: float = math.inf,
    ) -> float:
        """The threshold in force from ``now`` on: between ``floor`` and ``threshold``; without a floor, ``threshold``.

        Args:
            confidences: of the latest images; their quantiles convert a share into a threshold.
            allowed: seconds of queued work beyond which new images would miss their deadlines.
        """
        sustainable = self._sustainable(load, min(self._target, allowed))
        risen = self._share + (now - self._at) / tuning.RETURN_SECONDS
        self._share, self._at = min(1.0, sustainable, risen), now
        if floor is None or self._share >= 1.0 or not confidences:
            return threshold
        ordered = sorted(confidences)
        may_escalate = int(self._share * len(ordered))
        exiting = bisect_left(ordered, ordered[may_escalate])  # equals of the first one that exits, exit too
        lowered = ordered[exiting - 1] if exiting else 0.0
        return max(floor, min(threshold, lowered))

    def _sustainable(self, load: Load, target: float) -> float:
        """The share of the undecided images that may escalate if all queued work is to be done in time."""
        left = tuning.QUEUE_SHARE * target - load.queued_seconds(escalating=0.0)
        if not load.undecided or not load.later_seconds:
            return 1.0 if left > 0 else 0.0
        return max(0.0, left / (load.undecided * load.later_seconds))
