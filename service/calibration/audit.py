"""Whether recent traffic keeps the promise of the threshold, judged by audits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.calibration.certify import lower_bound, upper_bound
from service.calibration.live import BUDGET_IMAGES

NORMAL = 1.645  # quantile at 95 %, one-sided


@dataclass(frozen=True, slots=True)
class Budget:
    """Recent cost of images, in the unit of the budget.

    Attributes:
        asked: budget per image on average.
        spent: on all ``images``.
        least, most: cost of an image that ends at the first stage, and at the last.
    """

    asked: float
    spent: float
    images: float
    least: float
    most: float

    @property
    def mean(self) -> float | None:
        """Mean per image; None before the first."""
        return self.spent / self.images if self.images else None

    @property
    def kept(self) -> bool | None:
        """Whether the budget is kept: False if the mean exceeds it by more than chance (95 %), None with too few
        images.

        Costs between ``least`` and ``most`` have a variance of at most (most - mean)(mean - least), reached if all
        costs are one or the other (Bhatia and Davis, 2000); their mean is nearly normal.
        """
        if self.mean is None or self.images < BUDGET_IMAGES:
            return None
        if self.mean <= self.asked:
            return True
        variance = max(0.0, (self.most - self.mean) * (self.mean - self.least))
        return False if self.mean - NORMAL * math.sqrt(variance / self.images) > self.asked else None


@dataclass(frozen=True, slots=True)
class Audit:
    """Answers of the last stage for recent audited images that exit at the threshold, and bounds over all images.

    Escalated images have the last stage's answer. So the disagreement over all images is that of the audited images
    times the exit rate. Bounds hold with 95 % confidence (one-sided Clopper-Pearson), for the audited traffic.

    Attributes:
        images, disagreements: audited images, and those with another answer of the last stage.
        exit_rate: of the latest images at the threshold; None before the first exit, 0 if nothing can exit.
        promised: the promised agreement, a share of all images; None without a calibration table.
        budget: set if the goal is a budget, otherwise None.
    """

    images: int
    disagreements: int
    exit_rate: float | None
    promised: float | None
    budget: Budget | None = None

    @property
    def disagreement(self) -> float | None:
        """Share of the audited images."""
        return self.disagreements / self.images if self.images else None

    @property
    def disagreement_at_most(self) -> float | None:
        """Its upper bound."""
        return upper_bound(self.disagreements, self.images) if self.images else None

    @property
    def overall_at_most(self) -> float | None:
        """Upper bound of the share of all images whose answer differs from that of the last stage."""
        return self._overall(self.disagreement_at_most)

    @property
    def promise_kept(self) -> bool | None:
        """Whether goal and certified agreement are kept: False if either is certainly broken.

        None while undecided: for a budget by the cost of images, otherwise by the audits.
        """
        if self.budget is None or self.agreement_kept is False:
            return self.agreement_kept
        return self.budget.kept

    @property
    def agreement_kept(self) -> bool | None:
        """The same for the agreement: False if even the lower bound breaks it, None while undecided."""
        if self.promised is None or self.overall_at_most is None:
            return None
        allowed = 1 - self.promised
        if self.overall_at_most <= allowed:
            return True
        at_least = self._overall(lower_bound(self.disagreements, self.images))
        return False if at_least is not None and at_least > allowed else None

    def _overall(self, of_audited: float | None) -> float | None:
        if self.exit_rate == 0:  # nothing to audit, and nothing to disagree on
            return 0.0
        return None if of_audited is None or self.exit_rate is None else of_audited * self.exit_rate
