"""Whether today's traffic keeps the promise made for the threshold, by what audits of it found."""

from __future__ import annotations

from dataclasses import dataclass

from service.inference.calibration import lower_bound, upper_bound


@dataclass(frozen=True, slots=True)
class Audit:
    """What the last stage said of the latest audited images that exit at the threshold, and what follows for all.

    An image that escalates has the last stage's answer, so over all images the disagreement is that of the audited
    ones times the exit rate. Bounds hold with 95 % confidence (one-sided Clopper-Pearson), for the traffic audited.

    Attributes:
        images, disagreements: audited, and of these answered otherwise by the last stage.
        exit_rate: of the latest images at the threshold; None before the first exit, 0 where nothing can exit.
        promised: the agreement promised for the threshold, a share of all images; None without a calibration table.
    """

    images: int
    disagreements: int
    exit_rate: float | None
    promised: float | None

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
        """Whether the promise holds: False where even the lower bound breaks it, None where audits do not tell yet."""
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
