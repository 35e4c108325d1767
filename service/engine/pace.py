"""Current speed of the device: the latency table, corrected by actual batch durations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.engine import tuning
from service.inference.latency import LatencyTable


@dataclass(slots=True)
class Pace:
    """Durations per image and batch. Workers update it; a lost update of a running average does no harm.

    Attributes:
        table: seconds of each stage by batch size, measured on an undisturbed device.
        sizes: of a full batch at each stage.
        workers: number that share the device.
        slowdown: running ratio of actual to predicted batch seconds.
        decoding: running mean of seconds to decode one image in a worker; 0 if other threads decode.
    """

    table: LatencyTable
    sizes: tuple[int, ...]
    workers: int = 1
    slowdown: float = 1.0
    decoding: float = field(default=0.0)

    def predicted(self, stage: int, size: float) -> float:
        """Predicted seconds of a batch at the current speed, including decoding."""
        return self.slowdown * self.table.seconds(stage, size) + (self.decoding * size if stage == 0 else 0.0)

    def soonest(self) -> float:
        """Seconds to the first stage's answer for an image on an idle, undisturbed device."""
        return self.table.seconds(0, 1)

    def image(self, stage: int) -> float:
        """Device seconds per image at ``stage`` in full batches, at the current speed, including decoding."""
        size = self.sizes[stage]
        decoding = self.decoding if stage == 0 else 0.0
        return (self.slowdown * self.table.seconds(stage, size) / size + decoding) / self.workers

    def next_answer(self, stage: int, depths: Sequence[int]) -> float:
        """Seconds to the answer of a later ``stage`` for an image that enters its lane now.

        Args:
            depths: images waiting for the stage before, of which one batch may go first, and for this one.
        """
        before, waiting = depths
        overtaking = min(before, self.sizes[stage - 1])
        size = min(waiting + 1, self.sizes[stage])
        return self.predicted(stage - 1, overtaking) + waiting * self.image(stage) + self.predicted(stage, size)

    def from_stage(self, stage: int, escalating: Sequence[float]) -> float:
        """Seconds of the whole device for an image from ``stage`` on, at the recent escalation rate."""
        seconds, share = 0.0, 1.0
        for each in range(stage, len(self.sizes)):
            seconds += share * self.image(each)
            share *= escalating[each]
        return seconds

    def ran(self, stage: int, size: int, seconds: float) -> None:
        """Count a batch."""
        self.slowdown += tuning.NEWEST_BATCH * (seconds / self.table.seconds(stage, size) - self.slowdown)

    def decoded(self, images: int, seconds: float) -> None:
        """Count images that a worker decoded."""
        self.decoding += tuning.NEWEST_BATCH * (seconds / images - self.decoding)
