"""Whether today's traffic keeps the promise made for the threshold, by what audits of it found."""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.inference.calibration import lower_bound, upper_bound
from service.inference.live import BUDGET_IMAGES

NORMAL = 1.645  # quantile at 95 %, one-sided


@dataclass(frozen=True, slots=True)
class Budget:
    """What images cost lately, in the unit of the budget that was asked for.

    Attributes:
        asked: for each on average.
        spent: on all ``images``.
        least, most: what an image costs that ends at the first stage, and at the last.
    """

    asked: float
    spent: float
    images: float
    least: float
    most: float

    @property
    def mean(self) -> float | None:
        """For each image; None before the first."""
        return self.spent / self.images if self.images else None

    @property
    def kept(self) -> bool | None:
        """Whether it is held: False where the mean exceeds it by more than chance does (95 %), None where too few tell.

        Costs between ``least`` and ``most`` vary by at most (most - mean)(mean - least), as they do where all are one
        or the other (Bhatia and Davis, 2000); their mean is nearly normal.
        """
        if self.mean is None or self.images < BUDGET_IMAGES:
            return None
        if self.mean <= self.asked:
            return True
        variance = max(0.0, (self.most - self.mean) * (self.mean - self.least))
        return False if self.mean - NORMAL * math.sqrt(variance / self.images) > self.asked else None


@dataclass(frozen=True, slots=True)
class Audit:
    """What the last stage said of the latest audited images that exit at the threshold, and what follows for all.

    An image that escalates has the last stage's answer, so over all images the disagreement is that of the audited
    ones times the exit rate. Bounds hold with 95 % confidence (one-sided Clopper-Pearson), for the traffic audited.

    Attributes:
        images, disagreements: audited, and of these answered otherwise by the last stage.
        exit_rate: of the latest images at the threshold; None before the first exit, 0 where nothing can exit.
        promised: the agreement promised for the threshold, a share of all images; None without a calibration table.
        budget: what was asked for, where that is a budget; else None.
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
        """Upper bound of the share of all images that are answered otherwise than by the last stage."""
        return self._overall(self.disagreement_at_most)

    @property
    def promise_kept(self) -> bool | None:
        """Whether what was asked for holds, and what the table promised: False where either is broken for sure.

        None where that is not known yet: of a budget, by what images cost; else by the audits.
        """
        if self.budget is None or self.agreement_kept is False:
            return self.agreement_kept
        return self.budget.kept

    @property
    def agreement_kept(self) -> bool | None:
        """The same of the agreement: False where even the lower bound breaks it, None where audits do not tell yet."""
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
