"""Three times what lowfirst can do, for a minute: what it still answers, and how soon it is itself again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.contenders.registry import LOWFIRST, Contender
from loadtest.course import CONNECTIONS, Course
from loadtest.load import Opened, Stage, opened
from loadtest.models import Network
from loadtest.ratios import Row

TIMES = 3.0
CALM = 0.5


@dataclass(frozen=True, slots=True)
class Overload:
    """lowfirst with ResNet-18.

    Attributes:
        capacity: images a second just before, on 16 connections of the same generator.
        before, during, after: at half the capacity, at three times it, at half of it again.
        recovery_seconds: from the end of the overload until a second's p99 is no higher than the highest before it;
            None if that did not come.
    """

    capacity: float
    before: Opened
    during: Opened
    after: Opened
    recovery_seconds: int | None

    @property
    def goodput(self) -> float:
        """Images answered during the overload, over the capacity."""
        return self.during.rate / self.capacity

    @property
    def rejected(self) -> float:
        """Share of the answers that were 429."""
        return self.during.statuses.get("429", 0) / sum(self.during.statuses.values())

    def rows(self) -> list[Row]:
        """For the table."""
        return [
            {
                "capacity, images/s": self.capacity,
                "goodput ÷ capacity": self.goodput,
                "share of 429": self.rejected,
                "other failures": self.during.failures - self.during.statuses.get("429", 0),
                "dropped": self.during.dropped,
                "p99 before, ms": self.before.p99_ms,
                "p99 during, ms": self.during.p99_ms,
                "recovered after s": self.recovery_seconds,
            }
        ]


def recovery(before: Sequence[float | None], after: Sequence[float | None]) -> int | None:
    """Index of the first second of ``after`` whose p99 is no higher than the highest of ``before``; None: of none."""
    normal = max(p99 for p99 in before if p99 is not None)
    return next((second for second, p99 in enumerate(after) if p99 is not None and p99 <= normal), None)


def overload(course: Course) -> Overload:
    """One run."""
    contender = Contender(LOWFIRST, "cascade", course.precision, course.runtime)
    short, long = (3, 6) if course.quick else (15, 60)
    with course.serving(contender, Network.resnet18) as server:
        (measured,) = opened(server.url, course.raw, [Stage("capacity", short, users=CONNECTIONS)])
        capacity = measured.rate
        before, during, after = opened(
            server.url,
            course.raw,
            [
                Stage("before", short, rate=CALM * capacity, windows=True),
                Stage("during", long, rate=TIMES * capacity),
                Stage("after", 2 * short, rate=CALM * capacity, windows=True),
            ],
        )
    return Overload(capacity, before, during, after, recovery(before.window_p99_ms, after.window_p99_ms))
