"""Whether promises are kept: how probable it is, calibrated again, that a certified threshold breaks its own."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from scipy.special import bdtr

from service.calibration.certify import THRESHOLDS, Calibration, allowed_risk, upper_bound
from service.errors import InvalidOption
from service.evaluation.passes import Answers
from service.state.base import Goal

PROMISES: tuple[tuple[Goal, float], ...] = (
    ("min_agreement", 0.90),
    ("min_agreement", 0.95),
    ("min_agreement", 0.98),
    ("max_accuracy_drop", 0.01),
    ("max_accuracy_drop", 0.02),
    ("max_accuracy_drop", 0.05),
)


def risk(answers: Answers, goal: Goal, threshold: float) -> float:
    """The share of all images that count against a promise: ``min_agreement``, those answered otherwise than by the
    last stage; ``max_accuracy_drop``, those that exit wrong and would have been right."""
    otherwise = answers.at(threshold) != answers.last
    return float((otherwise if goal == "min_agreement" else otherwise & answers.right[:, -1]).mean())


def broken(pool: Answers, goal: Goal, value: float, images: int) -> float:
    """How probable it is that a calibration by ``images`` photographs drawn from the pool with replacement gives a
    threshold that breaks ``goal`` on the whole pool: at most 0.05.

    Thresholds are tried from 1 downwards until one fails. So the promise can only be broken where the first threshold
    that breaks it passes, which is where few enough of its images are drawn: exact with two stages, whose images that
    exit at one threshold exit at every lower one, and an upper bound with more.
    """
    allowed = allowed_risk(goal, value)
    too_much = next((r for t in reversed(THRESHOLDS) if (r := risk(pool, goal, t)) > allowed + 1e-12), None)
    passing = bisect_right(range(images + 1), allowed, key=lambda count: upper_bound(count, images))
    if too_much is None or passing == 0:
        return 0.0
    return float(bdtr(passing - 1, images, too_much))


@dataclass(frozen=True, slots=True)
class Promise:
    """What a model's calibration table certifies, held against photographs it never saw; shares of 1.

    All but ``goal``, ``value`` and ``why_not`` are None where the table has too few images for it.

    Attributes:
        threshold: that keeps the promise, by the table.
        exit_rate: what it gave on the photographs.
        measured: the agreement on them; or the images that exit wrong and would have been right, which bound the drop.
        is_kept: whether what the table bounds is within the promise on them.
        broken: probability that another calibration, with as many images drawn from them, breaks it.
        why_not: what it would take.
    """

    goal: Goal
    value: float
    threshold: float | None = None
    exit_rate: float | None = None
    measured: float | None = None
    is_kept: bool | None = None
    broken: float | None = None
    why_not: str = ""


def promises(pool: Answers, calibration: Calibration | None) -> tuple[Promise, ...]:
    """Each of ``PROMISES`` on ``pool``; none without a table."""
    return () if calibration is None else tuple(_promise(pool, calibration, *asked) for asked in PROMISES)


def _promise(pool: Answers, calibration: Calibration, goal: Goal, value: float) -> Promise:
    try:
        threshold = calibration.solve(goal, value)
    except InvalidOption as error:
        return Promise(goal, value, why_not=error.message)
    against, allowed = risk(pool, goal, threshold), allowed_risk(goal, value)
    return Promise(
        goal,
        value,
        threshold=threshold,
        exit_rate=float(pool.exited(threshold).mean()),
        measured=1 - against if goal == "min_agreement" else against,
        is_kept=against <= allowed + 1e-12,
        broken=broken(pool, goal, value, calibration.table.n),
    )
