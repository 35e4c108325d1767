"""Whether promises are kept: how often, when calibration is repeated, a certified threshold breaks its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.errors import InvalidOption
from service.evaluation.passes import Passes
from service.inference.calibration import THRESHOLDS, Calibration, allowed_risk
from service.state.base import Goal
from service.store import CalibrationRow, CalibrationTable, Temperature

DRAWS = 1000
PROMISES: tuple[tuple[Goal, float], ...] = (
    ("min_agreement", 0.90),
    ("min_agreement", 0.95),
    ("min_agreement", 0.98),
    ("max_accuracy_drop", 0.01),
    ("max_accuracy_drop", 0.02),
    ("max_accuracy_drop", 0.05),
)
CHUNK = 100  # draws at a time, for the sake of memory


@dataclass(frozen=True, slots=True)
class Pool:
    """Images whose answers are all known: what a promise is held against.

    Attributes:
        confidence: of each low answer, (n,).
        low, high, targets: both passes' answers and the truth, class indices (n,).
    """

    confidence: npt.NDArray[np.float64]
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]

    @classmethod
    def of(cls, passes: Passes, temperature: Temperature) -> Pool:
        """Of a model's passes on labelled photographs."""
        return cls(passes.confidence(temperature), *passes.answers())

    def __len__(self) -> int:
        return len(self.targets)

    def risk(self, goal: Goal, threshold: float) -> float:
        """The share of all images that count against a promise: ``min_agreement``, those answered otherwise than by
        the high pass; ``max_accuracy_drop``, those that exit wrong and would have been right."""
        return float((self._against(goal) & (self.confidence > threshold)).mean())

    def drop(self, threshold: float) -> float:
        """How much less accurate than threshold 1 ``threshold`` is; what ``max_accuracy_drop`` bounds from above."""
        answers = np.where(self.confidence > threshold, self.low, self.high)
        return float((self.high == self.targets).mean() - (answers == self.targets).mean())

    def tables(self, images: int, draws: int, seed: int) -> Iterator[CalibrationTable]:
        """Calibration tables of ``draws`` sets of ``images`` drawn from the pool with replacement.

        As ``tabulate`` would count them, all thresholds at once.
        """
        random = np.random.default_rng(seed)
        exited = self.confidence[:, None] > np.array(THRESHOLDS)  # (n, thresholds)
        is_low, is_high = self.low == self.targets, self.high == self.targets
        of_exited = [np.ones(len(self), bool), self.low != self.high, is_low & ~is_high, ~is_low & is_high]
        counted = np.concatenate([exited & one[:, None] for one in of_exited], axis=1).astype(np.float32)
        for start in range(0, draws, CHUNK):
            size = (min(CHUNK, draws - start), images)
            drawn = np.stack([np.bincount(row, minlength=len(self)) for row in random.integers(len(self), size=size)])
            drawn = drawn.astype(np.float32)
            high_right = (drawn @ is_high).astype(np.int64)
            for right, row in zip(high_right.tolist(), (drawn @ counted).astype(np.int64), strict=True):
                yield _table(images, right, row.reshape(len(of_exited), len(THRESHOLDS)).tolist())

    def _against(self, goal: Goal) -> npt.NDArray[np.bool_]:
        disagree: npt.NDArray[np.bool_] = self.low != self.high
        if goal == "min_agreement":
            return disagree
        lost: npt.NDArray[np.bool_] = disagree & (self.high == self.targets)
        return lost


def _table(images: int, high_right: int, counts: list[list[int]]) -> CalibrationTable:
    rows = tuple(
        CalibrationRow(threshold, exited, disagreements, gained, lost, high_right + gained - lost)
        for threshold, exited, disagreements, gained, lost in zip(THRESHOLDS, *counts, strict=True)
    )
    return CalibrationTable("eager", "float32", images, rows)


def broken(pool: Pool, goal: Goal, value: float, images: int, draws: int = DRAWS, seed: int = 0) -> float:
    """The share of calibrations by ``images`` photographs whose threshold breaks ``goal`` on the whole pool.

    At most 0.05, but for the chance of the draws, if the bounds are right.

    Raises:
        InvalidOption: so many images cannot certify it; it says how many can.
    """
    allowed = allowed_risk(goal, value)
    risks = {threshold: pool.risk(goal, threshold) for threshold in THRESHOLDS}
    solved = [Calibration(table, 0.0, 1.0).solve(goal, value) for table in pool.tables(images, draws, seed)]
    return sum(risks[threshold] > allowed + 1e-12 for threshold in solved) / draws


@dataclass(frozen=True, slots=True)
class Promise:
    """What a model's calibration table certifies, held against photographs it never saw; shares of 1.

    All but ``goal``, ``value`` and ``why_not`` are None where the table has too few images for it.

    Attributes:
        threshold: that keeps the promise, by the table.
        exit_rate: what it gave on the photographs.
        measured: the agreement on them; or the images that exit wrong and would have been right, which bound the drop.
        is_kept: whether what the table bounds is within the promise on them.
        broken: share of calibrations anew, with as many images drawn from them, whose threshold breaks the promise.
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


def promises(pool: Pool, calibration: Calibration | None) -> tuple[Promise, ...]:
    """Each of ``PROMISES`` on ``pool``; none without a table."""
    return () if calibration is None else tuple(_promise(pool, calibration, *asked) for asked in PROMISES)


def _promise(pool: Pool, calibration: Calibration, goal: Goal, value: float) -> Promise:
    try:
        threshold = calibration.solve(goal, value)
    except InvalidOption as error:
        return Promise(goal, value, why_not=error.message)
    risk, allowed = pool.risk(goal, threshold), allowed_risk(goal, value)
    return Promise(
        goal,
        value,
        threshold=threshold,
        exit_rate=float((pool.confidence > threshold).mean()),
        measured=1 - risk if goal == "min_agreement" else risk,
        is_kept=risk <= allowed + 1e-12,
        broken=broken(pool, goal, value, calibration.table.n),
    )
