"""What a threshold means: the calibration table, the bounds it certifies, and the questions it answers.

A table counts, threshold by threshold, what happened on held-out images. Shares derived from it are
estimates; the two bounds hold with 95 % confidence for images like the held-out ones: one-sided
Clopper-Pearson (Clopper and Pearson, Biometrika 1934). Both bounded counts only grow as the threshold
falls, so walking down from 1 and stopping at the first broken promise needs no correction for looking
often (fixed-sequence testing, as in Angelopoulos et al., "Learn then Test", 2021).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from service.errors import InvalidOption
from service.state.base import Goal, ThresholdConfig
from service.store import CalibrationRow, CalibrationTable, ModelSpec

RISK = 0.05  # 95 % confidence

# Hundredths, and finer towards 1, where the confidences of well-trained networks crowd.
THRESHOLDS: tuple[float, ...] = (
    *(i / 100 for i in range(100)),
    *(i / 1000 for i in range(991, 1000)),
    *(i / 10000 for i in range(9991, 10000)),
    1.0,
)


def allowed_risk(goal: Goal, value: float) -> float:
    """The share of images that may count against a promise: ``min_agreement`` names the others."""
    return 1 - value if goal == "min_agreement" else value


@dataclass(frozen=True, slots=True)
class Effect:
    """What a threshold is expected to do; shares of all images.

    Attributes:
        exit_rate: images that exit.
        mean_mmacs: mean millions of multiply-adds an image.
        accuracy: images answered rightly.
        agreement: images answered as the high pass would.
        agreement_at_least, accuracy_drop_at_most: bounds at 95 % confidence, the drop against threshold 1; 0 and 1 by
            the table of another runtime or precision, which bounds nothing here.
    """

    exit_rate: float
    mean_mmacs: float
    accuracy: float
    agreement: float
    agreement_at_least: float
    accuracy_drop_at_most: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """A model's table for one runtime and precision, with its two costs, ready to be asked.

    ``stands_in_for`` names the runtime and precision that has no table of its own: this one tells what to expect there,
    and certifies nothing.
    """

    table: CalibrationTable
    low_mmacs: float
    high_mmacs: float
    model: str = "this model"
    stands_in_for: str = ""

    @classmethod
    def of(cls, spec: ModelSpec, runtime: str, precision: str) -> Calibration | None:
        """The table for exactly this runtime and precision, or the model's first; None if it has none."""
        exact = [t for t in spec.calibration if (t.runtime, t.precision) == (runtime, precision)]
        chosen = [*exact, *spec.calibration][:1]
        if not chosen:
            return None
        stands_in_for = "" if exact else f"{runtime} {precision}"
        return cls(chosen[0], spec.low_mmacs, spec.high_mmacs, spec.title, stands_in_for)

    def predict(self, threshold: float) -> Effect:
        """The effect of ``threshold``: between two rows shares are interpolated, bounds are the worse (lower) row's."""
        rows, n = self.table.rows, self.table.n
        above = min(bisect_right(rows, threshold, key=lambda row: row.threshold), len(rows) - 1)
        low, high = rows[above - 1], rows[above]
        weight = min((threshold - low.threshold) / (high.threshold - low.threshold), 1.0)

        def share(name: str) -> float:
            below: int = getattr(low, name)
            value: float = below + weight * (getattr(high, name) - below)
            return value / n

        bounding = high if weight == 1.0 else low
        exit_rate = share("exited")
        return Effect(
            exit_rate=exit_rate,
            mean_mmacs=self._mean_mmacs(exit_rate),
            accuracy=share("right"),
            agreement=1 - share("disagreements"),
            agreement_at_least=1 - self._at_most(bounding.disagreements, bounding),
            accuracy_drop_at_most=self._at_most(bounding.low_wrong_high_right, bounding),
        )

    def solve(self, goal: Goal, value: float) -> float:
        """The threshold that ``goal`` asks for.

        ``threshold``: ``value`` itself. ``max_mean_mmacs``: the highest threshold that costs at most ``value``.
        ``min_agreement``, ``max_accuracy_drop`` (shares): the lowest threshold whose bound keeps the promise.

        Raises:
            InvalidOption: ``value`` is out of bounds, below the low pass's cost, would take more calibration
                images than there are, or a table of the runtime and precision that serves.
        """
        if not math.isfinite(value):
            raise InvalidOption(goal, value, "a finite number")
        if goal == "max_mean_mmacs":
            return self._highest_within(value)
        if not 0 <= value <= 1:
            raise InvalidOption(goal, value, "between 0 and 1")
        if goal == "threshold":
            return value
        return self._lowest_keeping(goal, value)

    def promise(self, asked: ThresholdConfig) -> float | None:
        """The agreement that may be counted on: the one asked for, else what the table certifies of the threshold; None
        where it stands in for another."""
        if self.stands_in_for:
            return None
        if asked.goal == "min_agreement":
            return asked.value
        return self.predict(asked.threshold).agreement_at_least

    @property
    def _name(self) -> str:
        """The model, and which of its tables this is."""
        return f"{self.model} ({self.table.runtime} {self.table.precision})"

    def _mean_mmacs(self, exit_rate: float) -> float:
        return self.low_mmacs + (1 - exit_rate) * self.high_mmacs

    def _highest_within(self, budget: float) -> float:
        rows, n = self.table.rows, self.table.n
        if budget < self.low_mmacs:
            raise InvalidOption("max_mean_mmacs", budget, f"at least {self.low_mmacs:.2f}, the cost of the low pass")
        affordable = [row for row in rows if self._mean_mmacs(row.exited / n) <= budget]
        return affordable[-1].threshold if affordable else 0.0

    def _lowest_keeping(self, goal: Goal, value: float) -> float:
        n, risk = self.table.n, allowed_risk(goal, value)
        if self.stands_in_for and risk < 1:
            raise InvalidOption(
                goal,
                value,
                f"certifiable: {self.model} has no calibration table for {self.stands_in_for}, with which it is served "
                f"(`lowfirst calibrate` there makes one; threshold 1 keeps any promise)",
            )
        if 0 < risk < upper_bound(0, n):
            takes = np.ceil(math.log(RISK) / math.log1p(-risk))  # a float: there are risks that take infinitely many
            raise InvalidOption(
                goal,
                value,
                f"certifiable: it takes {takes:.15g} certifying images (half of those held out), and {self._name} "
                f"has {n} (threshold 1 keeps any promise)",
            )
        chosen = 1.0
        for row in reversed(self.table.rows):
            broken = row.disagreements if goal == "min_agreement" else row.low_wrong_high_right
            if self._at_most(broken, row) > risk:
                break
            chosen = row.threshold
        return chosen

    def _at_most(self, count: int, row: CalibrationRow) -> float:
        """Bound of a share at ``row``; at threshold 1 nothing can exit, whatever the images, so it is 0."""
        if row.threshold >= 1:
            return 0.0
        return 1.0 if self.stands_in_for else upper_bound(count, self.table.n)


@lru_cache(maxsize=4096)
def upper_bound(count: int, n: int, risk: float = RISK) -> float:
    """Clopper-Pearson: the largest share that could still, with probability ``risk``, show only ``count`` in ``n``."""
    if count >= n:
        return 1.0
    low, high = count / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if binomial_cdf(count, n, middle) > risk else (low, middle)
    return high


def binomial_cdf(count: int, n: int, p: float) -> float:
    """Probability of at most ``count`` in ``n``, for ``p`` above ``count / n``: then terms fall from ``count`` down."""
    if p == 1.0:
        return 0.0
    ways = math.lgamma(n + 1) - math.lgamma(count + 1) - math.lgamma(n - count + 1)
    term = math.exp(ways + count * math.log(p) + (n - count) * math.log1p(-p))
    total = 0.0
    for k in range(count, -1, -1):
        total += term
        term *= k / (n - k + 1) * (1 - p) / p
        if term <= 1e-17 * total:  # the rest is less than what float64 can tell
            break
    return total


def tabulate(
    confidence: npt.NDArray[np.float64],
    low: npt.NDArray[np.int64],
    high: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64],
    runtime: str,
    precision: str,
) -> CalibrationTable:
    """Count what each of ``THRESHOLDS`` does to n images.

    Args:
        confidence: of the low answers, (n,).
        low, high: the two passes' answers, class indices (n,).
        targets: the truth, (n,).
        runtime, precision: what computed them.
    """
    rows = []
    for threshold in THRESHOLDS:
        exited = confidence > threshold
        rows.append(
            CalibrationRow(
                threshold=threshold,
                exited=int(exited.sum()),
                disagreements=int((exited & (low != high)).sum()),
                low_right_high_wrong=int((exited & (low == targets) & (high != targets)).sum()),
                low_wrong_high_right=int((exited & (low != targets) & (high == targets)).sum()),
                right=int((np.where(exited, low, high) == targets).sum()),
            )
        )
    return CalibrationTable(runtime, precision, len(targets), tuple(rows))
