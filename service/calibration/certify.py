"""What a threshold means: the calibration table, its bounds, and the goals it solves.

A table counts, for each threshold, what happened on held-out images. Shares derived from it are estimates; the two
bounds hold with 95 % confidence for similar images: one-sided Clopper-Pearson (Clopper and Pearson, Biometrika 1934).
Thresholds are tested in a fixed order, from 1 down, and testing stops at the first broken promise. So no correction for
multiple tests is needed (fixed-sequence testing, as in Angelopoulos et al., "Learn then Test", 2021). This holds for
any number of stages, whose counts need not grow with every step down.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from service.calibration.exit_rule import end_stages
from service.calibration_table import CalibrationRow, CalibrationTable
from service.errors import InvalidOption
from service.model_spec import ModelSpec
from service.stages import mean_cost, up_to_each
from service.state.base import Goal, ThresholdConfig

RISK = 0.05  # 95 % confidence

# Hundredths, and finer towards 1, where the confidences of well-trained networks crowd.
THRESHOLDS: tuple[float, ...] = (
    *(i / 100 for i in range(100)),
    *(i / 1000 for i in range(991, 1000)),
    *(i / 10000 for i in range(9991, 10000)),
    1.0,
)


def allowed_risk(goal: Goal, value: float) -> float:
    """The share of images that may violate a promise: ``min_agreement`` names the others."""
    return 1 - value if goal == "min_agreement" else value


@dataclass(frozen=True, slots=True)
class Effect:
    """Predicted effect of a threshold; shares of all images.

    Attributes:
        ends: images that end at each stage.
        mean_mmacs: mean million multiply-adds per image.
        accuracy: images with a right answer; None without labels. ``accuracy_interval``: its two-sided 95 % interval
            (Clopper-Pearson).
        agreement: images with the same answer as the last stage.
        agreement_at_least, accuracy_drop_at_most: 95 % bounds, the drop compared with threshold 1. From a table of
            another runtime or precision, which bounds nothing here, 0 and 1; the drop is None without labels.
    """

    ends: tuple[float, ...]
    mean_mmacs: float
    accuracy: float | None
    agreement: float
    agreement_at_least: float
    accuracy_drop_at_most: float | None
    accuracy_interval: tuple[float, float] | None = None

    @property
    def exit_rate(self) -> float:
        """Images that end before the last stage."""
        return sum(self.ends[:-1])


@dataclass(frozen=True, slots=True)
class Calibration:
    """A model's table for one runtime and precision, with the costs of its stages.

    ``stands_in_for`` names the active runtime and precision if it has no table of its own. This table then only
    predicts, and certifies nothing.
    """

    table: CalibrationTable
    mmacs: tuple[float, ...]
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
        return cls(chosen[0], spec.mmacs, spec.title, stands_in_for)

    def predict(self, threshold: float) -> Effect:
        """The effect of ``threshold``: between two rows shares are interpolated, bounds are those of the worse row."""
        lower, upper, weight = self._around(threshold)
        bounding = (upper,) if weight == 1.0 else (lower,) if weight == 0.0 else (lower, upper)
        drops = [self._at_most(row.wrong_last_right, row) for row in bounding if row.wrong_last_right is not None]
        ends = tuple(self._share(*counts, weight) for counts in zip(lower.ends, upper.ends, strict=True))
        is_labelled = lower.right is not None and upper.right is not None
        accuracy = self._share(lower.right or 0, upper.right or 0, weight) if is_labelled else None
        return Effect(
            ends=ends,
            mean_mmacs=mean_cost(ends, self.mmacs),
            accuracy=accuracy,
            agreement=1 - self._share(lower.disagreements, upper.disagreements, weight),
            agreement_at_least=min(map(self.agreement_at_least, bounding)),
            accuracy_drop_at_most=max(drops, default=None),
            accuracy_interval=None
            if accuracy is None or self.stands_in_for
            else interval(accuracy * self.table.n, self.table.n),
        )

    def solve(self, goal: Goal, value: float) -> float:
        """The threshold of a goal.

        ``threshold``: ``value`` itself. ``max_mean_mmacs``: the highest threshold that costs at most ``value``.
        ``min_agreement``, ``max_accuracy_drop`` (shares): the lowest threshold whose bound keeps the promise.

        Raises:
            InvalidOption: ``value`` is out of bounds or below the first stage's cost; or it needs more calibration
                images, labels, or a table of the active runtime and precision.
        """
        if not math.isfinite(value):
            raise InvalidOption(goal, value, "a finite number")
        if goal == "max_mean_mmacs":
            return self.highest_within(goal, value, self.mmacs, "million multiply-adds")
        if not 0 <= value <= 1:
            raise InvalidOption(goal, value, "between 0 and 1")
        if goal == "threshold":
            return value
        return self._lowest_keeping(goal, value)

    def highest_within(self, goal: Goal, budget: float, costs: tuple[float, ...], unit: str) -> float:
        """The highest threshold whose mean cost per image is at most ``budget``.

        Args:
            costs: of each stage alone, in ``unit``.

        Raises:
            InvalidOption: even the first stage costs more, or ``budget`` is not a finite number.
        """
        if not math.isfinite(budget):
            raise InvalidOption(goal, budget, "a finite number")
        if budget < costs[0]:
            raise InvalidOption(goal, budget, f"at least {costs[0]:.4g} {unit}, the cost of the first stage")
        n, totals = self.table.n, np.array(up_to_each(costs))
        affordable = [row for row in self.table.rows if np.dot(row.ends, totals) / n <= budget]
        return affordable[-1].threshold if affordable else 0.0

    def promise(self, asked: ThresholdConfig) -> float | None:
        """The promised agreement: the goal, otherwise the certified bound of the threshold; None if the table stands in
        for another.
        """
        if asked.goal == "min_agreement" and (asked.table == "live" or not self.stands_in_for):
            return asked.value
        if self.stands_in_for:
            return None
        return self.predict(asked.threshold).agreement_at_least

    def agreement_at_least(self, row: CalibrationRow) -> float:
        """The bound at one row of the table."""
        return 1 - self._at_most(row.disagreements, row)

    @property
    def _name(self) -> str:
        """The model and the table, for messages."""
        return f"{self.model} ({self.table.runtime} {self.table.precision})"

    def _around(self, threshold: float) -> tuple[CalibrationRow, CalibrationRow, float]:
        """The rows below and above ``threshold``, and its relative position between them, 0 to 1."""
        rows = self.table.rows
        above = min(bisect_right(rows, threshold, key=lambda row: row.threshold), len(rows) - 1)
        lower, upper = rows[above - 1], rows[above]
        return lower, upper, min((threshold - lower.threshold) / (upper.threshold - lower.threshold), 1.0)

    def _share(self, lower: int, upper: int, weight: float) -> float:
        return (lower + weight * (upper - lower)) / self.table.n

    def _lowest_keeping(self, goal: Goal, value: float) -> float:
        n, risk = self.table.n, allowed_risk(goal, value)
        if self.stands_in_for and risk < 1:
            raise InvalidOption(
                goal,
                value,
                f"certifiable: {self.model} has no calibration table for {self.stands_in_for}, which it is served with "
                f"(run `lowfirst calibrate` there; threshold 1 keeps any promise)",
            )
        if goal == "max_accuracy_drop" and not self.table.is_labelled:
            raise InvalidOption(
                goal, value, f"absent: {self._name} was calibrated without labels (min_agreement needs none)"
            )
        if 0 < risk < upper_bound(0, n):
            raise InvalidOption(
                goal,
                value,
                f"certifiable: {takes(risk):.15g} certifying images are needed (half of those held out), "
                f"{self._name} has {n} (threshold 1 keeps any promise)",
            )
        chosen = 1.0
        for row in reversed(self.table.rows):
            broken = row.disagreements if goal == "min_agreement" else row.wrong_last_right
            if self._at_most(broken or 0, row) > risk:
                break
            chosen = row.threshold
        return chosen

    def _at_most(self, count: int, row: CalibrationRow) -> float:
        """Bound of a share at ``row``; at threshold 1 nothing can exit, so it is 0."""
        if row.threshold >= 1 or self.table.rows[-1].ends == (self.table.n,):
            return 0.0
        return 1.0 if self.stands_in_for else upper_bound(count, self.table.n)


@lru_cache(maxsize=4096)
def upper_bound(count: float, n: int, risk: float = RISK) -> float:
    """Clopper-Pearson: the largest share that shows only ``count`` in ``n`` with a probability of at least ``risk``."""
    return 1.0 if count >= n else float(betaincinv(count + 1, n - count, 1 - risk))


def lower_bound(count: int, n: int, risk: float = RISK) -> float:
    """Clopper-Pearson: the smallest such share that shows ``count`` in ``n``; 0 if ``count`` is 0."""
    return 1 - upper_bound(n - count, n, risk) if n else 0.0


def interval(count: float, n: int) -> tuple[float, float]:
    """Two-sided 95 % interval of a share that showed ``count`` in ``n``."""
    return 1 - upper_bound(n - count, n, RISK / 2), upper_bound(count, n, RISK / 2)


def takes(risk: float) -> float:
    """Number of images that certify a ``risk`` above 0 if none violates the promise; infinite for tiny risks."""
    return float(np.ceil(math.log(RISK) / math.log1p(-risk))) if risk < 1 else 0.0


def count_table(
    confidence: npt.NDArray[np.float64],
    answers: npt.NDArray[np.int64],
    targets: npt.NDArray[np.int64] | None,
    runtime: str,
    precision: str,
) -> CalibrationTable:
    """Count what each of ``THRESHOLDS`` does on n images.

    Args:
        confidence: of every stage except the last, (n, stages - 1).
        answers: of every stage, class indices (n, stages).
        targets: true labels, (n,); None without labels.
        runtime, precision: what computed them.
    """
    last = answers[:, -1]
    ends = end_stages(confidence, np.array(THRESHOLDS)[:, None, None])  # (thresholds, n)
    given = answers[np.arange(len(answers)), ends]
    counted = [np.count_nonzero(ends == stage, axis=1) for stage in range(answers.shape[1])]
    events = [given != last]
    if targets is not None:
        is_right, last_right = given == targets, last == targets
        events += [is_right & ~last_right, ~is_right & last_right, is_right]
    rows = tuple(
        CalibrationRow(threshold, tuple(at_each), *of_these)
        for threshold, at_each, of_these in zip(
            THRESHOLDS,
            np.stack(counted, axis=1).tolist(),
            np.stack([np.count_nonzero(event, axis=1) for event in events], axis=1).tolist(),
            strict=True,
        )
    )
    last_answers = tuple(np.bincount(last).tolist())
    return CalibrationTable(
        runtime, precision, len(answers), rows, is_labelled=targets is not None, last_answers=last_answers
    )
