"""Numbers of several rounds as one, and what a cascade could gain at best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# A line of a table, by column.
Row = dict[str, "str | float | Spread | None"]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most of one number's values in the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        """``1.20 (1.10 to 1.30)``; the median alone where the values agree."""
        middle, least, most = map(show, (self.median, self.least, self.most))
        return middle if least == most else f"{middle} ({least} to {most})"


def show(value: float) -> str:
    """Three digits, and all of those before the point."""
    size = abs(value)
    return f"{value:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def ratio(reference: Sequence[float], other: Sequence[float]) -> Spread:
    """``reference`` over ``other``, round by round: what disturbs a round disturbs both.

    Args:
        reference, other: a value for each round; ``other`` may have been stopped early, its values are positive.
    """
    return Spread.of([mine / theirs for mine, theirs in zip(reference, other, strict=False)])


def difference(mine: Sequence[float], theirs: Sequence[float]) -> Spread:
    """``mine`` less ``theirs``, round by round."""
    return Spread.of([one - other for one, other in zip(mine, theirs, strict=True)])


@dataclass(frozen=True, slots=True)
class Cost:
    """Milliseconds of one core that an image takes; a single-scale network has all its cost in ``high``."""

    decode: float
    low: float
    high: float

    def mean(self, escalated: float) -> float:
        """Of an image, when the share ``escalated`` goes on to the high pass."""
        return self.decode + self.low + escalated * self.high


def ceiling(single: Cost, cascade: Cost, escalated: float) -> float:
    """How many times a single-scale server's images a cascade could serve if serving itself cost nothing."""
    return single.mean(1.0) / cascade.mean(escalated)
