"""Whether the goal is kept, judged by recent images."""

from __future__ import annotations

from collections.abc import Sequence

from service.calibration.audit import Audit, Budget
from service.calibration.certify import Calibration
from service.calibration.live import BUDGET_IMAGES
from service.engine.periods import Periods
from service.engine.recent import Recent
from service.stages import exit_rate, up_to_each
from service.state.base import BUDGETS, ThresholdConfig


def audit(
    asked: ThresholdConfig, recent: Recent, periods: Periods, calibration: Calibration | None, costs: Sequence[float]
) -> Audit:
    """The verdict of audits and costs on ``asked``.

    Args:
        costs: of each stage alone, in the unit of a budget.
    """
    disagreements, images = recent.disagreement_at(asked.threshold)
    rate = exit_rate(recent.ends_at(asked.threshold, len(costs)))
    seen = 0.0 if asked.threshold >= 1 else rate or None  # a zero rate over only a few exits is not evidence
    promised = None if calibration is None else calibration.promise(asked)
    if (asked.table, asked.goal) == ("live", "min_agreement"):
        promised = asked.value  # which needs no stored table
    return Audit(images, disagreements, seen, promised, _budget(asked, periods, costs))


def _budget(asked: ThresholdConfig, periods: Periods, costs: Sequence[float]) -> Budget | None:
    if asked.goal not in BUDGETS:
        return None
    lately, up_to = periods.lately(BUDGET_IMAGES), up_to_each(costs)
    if asked.goal == "max_mean_ms":
        return Budget(asked.value, 1e3 * lately.compute_seconds, lately.computed, up_to[0], up_to[-1])
    return Budget(asked.value, lately.mmacs, lately.images, up_to[0], up_to[-1])
