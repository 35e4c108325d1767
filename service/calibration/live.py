"""What a threshold means for recent traffic: a calibration table of live images, and the goals it solves.

The last stage's answer is known for every image that escalates, and for exited images with the audits' probability.
Both must have the same weight, so an escalated image is sampled with the same probability: each sample represents one
divided by that probability (Horvitz and Thompson, JASA 1952). At any time this is one number for all images, whatever
their confidence, so the samples are a simple random sample of the traffic. Their counts are binomial, unlike weighted
counts, and the bounds of a stored table (Clopper-Pearson, tested from 1 down) hold for them exactly.

For a budget and a two-stage model, every image has the required data: the first stage's confidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.calibration.certify import THRESHOLDS, Calibration, allowed_risk, count_table, takes
from service.calibration_table import CalibrationTable
from service.errors import InvalidOption
from service.stages import up_to_each
from service.state.base import BUDGETS, Goal

# Number of samples in a table: this many, or twice what the goal needs, so that a few disagreements do not
# rule it out. A smaller number adapts sooner after a shift.
WINDOW = 1024
MOST = 8192

# Least number of images for a budget.
BUDGET_IMAGES = 100


@dataclass(frozen=True, slots=True)
class Seen:
    """One sampled image, with the answers of all stages.

    Attributes:
        when: seconds, on a clock that all processes of a machine share.
        confidences: of each stage except the last. ``answers``: of each stage, class indices.
        probability: sampling probability at that time.
    """

    when: float
    confidences: tuple[float, ...]
    answers: tuple[int, ...]
    probability: float


@dataclass(frozen=True, slots=True)
class Passed:
    """The latest images, sampled or not.

    Attributes:
        images: their number.
        first: how many have a first-stage confidence above each of ``THRESHOLDS``.
        exits: how many have a confidence, in any stage that ran, above the threshold in force.
        per_second: recent rate.
    """

    images: int
    first: tuple[int, ...]
    exits: int
    per_second: float

    @staticmethod
    def together(all_of: Sequence[Passed]) -> Passed:
        """Sum over several processes."""
        return Passed(
            sum(each.images for each in all_of),
            tuple(map(sum, zip(*(each.first for each in all_of), strict=True))),
            sum(each.exits for each in all_of),
            sum(each.per_second for each in all_of),
        )


def window(goal: Goal, value: float) -> int:
    """Number of sampled images in a table for a goal."""
    risk = allowed_risk(goal, value)
    needed = takes(risk) if goal == "min_agreement" and 0 < risk < 1 else 0.0
    return int(min(max(WINDOW, 2 * needed), MOST))


@dataclass(frozen=True, slots=True)
class LiveTable:
    """The table of recent traffic.

    Attributes:
        table: of the sampled images.
        passed: the latest images, sampled or not.
        mmacs: of each stage alone, in millions.
        oldest, newest: times of samples, seconds on their clock; 0 without any.
        stands_for: images that the samples represent.
        is_complete: whether every ready process reported its images in time.
    """

    table: CalibrationTable
    passed: Passed
    mmacs: tuple[float, ...]
    oldest: float = 0.0
    newest: float = 0.0
    stands_for: float = 0.0
    is_complete: bool = True

    @classmethod
    def of(
        cls,
        drawn: Sequence[Seen],
        passed: Passed,
        mmacs: tuple[float, ...],
        runtime: str = "",
        precision: str = "",
    ) -> LiveTable:
        """Count ``drawn`` images, oldest first, for a model with the stages of ``mmacs``."""
        depth = len(mmacs)
        confidence = np.array([each.confidences for each in drawn], dtype=np.float64).reshape(len(drawn), depth - 1)
        answers = np.array([each.answers for each in drawn], dtype=np.int64).reshape(len(drawn), depth)
        table = count_table(confidence, answers, None, runtime, precision)
        when = [each.when for each in drawn] or [0.0]
        return cls(table, passed, mmacs, when[0], when[-1], sum(1 / each.probability for each in drawn))

    @property
    def images(self) -> int:
        """Number of samples."""
        return self.table.n

    @property
    def drawn_per_second(self) -> float | None:
        """Rate of samples; None with fewer than two."""
        lasted = self.newest - self.oldest
        return (self.images - 1) / lasted if self.images > 1 and lasted > 0 else None

    @property
    def calibration(self) -> Calibration:
        """The samples' counts as a calibration; there must be some."""
        return Calibration(self.table, self.mmacs, "live traffic")

    def missing(self, goal: Goal, value: float) -> tuple[float, int] | None:
        """The number of images that the goal needs, and that exist, if these are too few; otherwise None.

        Counts samples; for budgets of two-stage models all images.
        """
        if goal in BUDGETS:
            there = self.passed.images if self.knows_all_ends else self.images
            return None if there >= BUDGET_IMAGES else (BUDGET_IMAGES, there)
        risk = allowed_risk(goal, value)
        needed = takes(risk) if risk > 0 else 0.0
        return None if self.images >= needed else (needed, self.images)

    @property
    def knows_all_ends(self) -> bool:
        """Whether the first stage's confidence alone determines where an image ends."""
        return len(self.mmacs) == 2

    def keeping(self, value: float) -> float:
        """The lowest threshold whose bound of the agreement is at least ``value``; 1 if no lower one has it."""
        if self.missing("min_agreement", value) is not None:
            return 1.0
        return self.calibration.solve("min_agreement", value) if self.images else float(value > 0)

    def mean_costs(self, costs: Sequence[float]) -> npt.NDArray[np.float64]:
        """Mean cost of recent images at each of ``THRESHOLDS``, from the cost of each stage alone."""
        up_to = np.array(up_to_each(costs))
        if self.knows_all_ends:
            exited = np.array(self.passed.first) / max(1, self.passed.images)
            ends = np.stack([exited, 1 - exited], axis=1)
        else:
            ends = np.array([row.ends for row in self.table.rows]) / max(1, self.images)
        means: npt.NDArray[np.float64] = ends @ up_to
        return means

    def mean_cost(self, threshold: float, costs: Sequence[float]) -> float:
        """The same at ``threshold``, interpolated between two of ``THRESHOLDS``."""
        return float(np.interp(threshold, THRESHOLDS, self.mean_costs(costs)))

    def exit_rate(self, threshold: float) -> float:
        """Share of recent images that would exit early."""
        return 1 - self.mean_cost(threshold, [*(0.0 for _ in self.mmacs[1:]), 1.0])

    def within(self, budget: float, costs: Sequence[float]) -> float:
        """The highest threshold at which recent images cost at most ``budget`` on average; 0 if none does."""
        affordable = np.flatnonzero(self.mean_costs(costs) <= budget)
        return THRESHOLDS[int(affordable[-1])] if affordable.size else 0.0


def check_follows(goal: Goal, value: float, live: LiveTable, audit_probability: float) -> None:
    """Raise InvalidOption if the live table cannot solve a goal, or not yet; then say how long that takes."""
    if goal == "threshold":
        raise InvalidOption("table", "live", "absent with threshold, which needs no table")
    if len(live.mmacs) == 1:
        raise InvalidOption("table", "live", "absent: the model has one stage, so no image exits early")
    if goal == "max_accuracy_drop":
        raise InvalidOption(goal, value, "absent with the live table: recent images have no labels (use min_agreement)")
    uses_drawn = goal not in BUDGETS or not live.knows_all_ends
    if uses_drawn and not audit_probability:
        raise InvalidOption(
            "table", "live", f"absent with {goal}: LOWFIRST_AUDIT_PROBABILITY is 0, so nothing is audited"
        )
    missing = live.missing(goal, value)
    if missing is None:
        return
    needed, there = missing
    kind = "sampled images" if uses_drawn else "images"
    if needed > MOST:
        raise InvalidOption(
            goal, value, f"certifiable: {needed:.15g} {kind} are needed, a live table holds {MOST} (1 is always kept)"
        )
    rate = live.passed.per_second * audit_probability if uses_drawn else live.passed.per_second
    drawn = live.drawn_per_second if uses_drawn else None
    raise InvalidOption(
        goal,
        value,
        f"certifiable: {needed:.15g} {kind} are needed, {there} exist; {wait(needed - there, drawn or rate)}",
    )


def wait(images: float, per_second: float) -> str:
    """How long this many images take, in words."""
    if per_second <= 0:
        return "no new ones arrive at present"
    seconds = images / per_second
    unit, size = next((u, s) for u, s in (("hours", 3600), ("minutes", 60), ("seconds", 1)) if seconds >= s or s == 1)
    return f"at the current rate of {per_second:.3g} per second, that is in {seconds / size:.3g} {unit}"
