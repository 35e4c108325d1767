"""Whether recent images differ from the calibration images: four two-sample tests.

Each test has a quarter of ``LEVEL`` (Bonferroni). So without a real difference, the four together report one in at most
one check out of twenty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import scipy  # its parts are imported as they are first used: statistics take most of a second

from service.calibration.certify import THRESHOLDS, Calibration
from service.calibration.live import LiveTable
from service.calibration_table import CalibrationTable

LEVEL = 0.05
TESTS = 4

# Below this number of images on either side nothing is tested.
LEAST = 50

# A chi-squared test needs this many expected images per class on either side (Cochran 1954); rarer classes are merged.
EXPECTED = 5.0

NO_CLASSES = (
    "the class mix is not compared: the calibration table does not count classes; "
    "`lowfirst calibrate MODEL` writes one that does"
)

Of = Literal["exit_rate", "confidence", "agreement", "classes"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One test.

    Attributes:
        of: what is compared. ``name``: of the test.
        stored, live: the compared shares, if the test compares shares; otherwise None.
        images: number of live ones.
        p_value: None with too few images, or if the stored table lacks the data; ``untested`` says which.
    """

    of: Of
    name: str
    images: int
    p_value: float | None
    stored: float | None = None
    live: float | None = None
    untested: str | None = None

    @property
    def differs(self) -> bool | None:
        """Whether the test rejects, at its part of the level."""
        return None if self.p_value is None else self.p_value < LEVEL / TESTS


@dataclass(frozen=True, slots=True)
class Drift:
    """Results of all tests at one threshold."""

    threshold: float
    tests: tuple[Comparison, ...]

    @property
    def differs(self) -> bool | None:
        """Whether any test rejects; None if no test was possible."""
        verdicts = [test.differs for test in self.tests if test.differs is not None]
        return any(verdicts) if verdicts else None

    def as_json(self) -> dict[str, Any]:
        """For ``of_json``."""
        return asdict(self)

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> Drift:
        """Inverse of ``as_json``."""
        return cls(told["threshold"], tuple(Comparison(**test) for test in told["tests"]))

    @property
    def notice(self) -> str | None:
        """One sentence about a difference; None without one."""
        if not self.differs:
            return None
        exits = next(test for test in self.tests if test.of == "exit_rate")
        others = {"exit_rate": "exit rate", "confidence": "confidences", "agreement": "agreement", "classes": "classes"}
        named = ", ".join(others[test.of] for test in self.tests if test.differs)
        rates = ""
        if exits.stored is not None and exits.live is not None:
            rates = f": {exits.live:.1%} of the latest {exits.images:,} images exit early, not {exits.stored:.1%}"
        return f"Recent images differ from the calibration images ({named}){rates}."


def drift(stored: Calibration, live: LiveTable, threshold: float) -> Drift:
    """Compare live traffic with a stored table, at the threshold in force."""
    return Drift(
        threshold,
        (
            _exit_rate(stored, live, threshold),
            _confidence(stored.table, live),
            _agreement(stored.table, live, threshold),
            _classes(stored.table, live),
        ),
    )


def _exit_rate(stored: Calibration, live: LiveTable, threshold: float) -> Comparison:
    """Exit rate of all recent images."""
    n, images = stored.table.n, live.passed.images
    predicted = stored.predict(threshold).exit_rate
    rate = live.passed.exits / images if images else None
    p_value, few = None, _few(n, images)
    if few is None:
        p_value = _chi_squared(
            [round(predicted * n), n - round(predicted * n)], [live.passed.exits, images - live.passed.exits]
        )
    return Comparison("exit_rate", "chi-squared", images, p_value, predicted, rate, few)


def _confidence(stored: CalibrationTable, live: LiveTable) -> Comparison:
    """First-stage confidences of all recent images: Kolmogorov-Smirnov, with both distributions known at the
    thresholds.

    The largest distance there is at most that of the exact values, so the test rejects no more often than its level.
    """
    n, images = stored.n, live.passed.images
    p_value, few = None, _few(n, images)
    if few is None:
        above = dict(zip(THRESHOLDS, live.passed.first, strict=True))
        both = [(row.ends[0] / n, above[row.threshold] / images) for row in stored.rows if row.threshold in above]
        distance = max(abs(one - other) for one, other in both)
        p_value = float(scipy.stats.kstwobign.sf(distance * np.sqrt(n * images / (n + images))))
    return Comparison("confidence", "Kolmogorov-Smirnov", images, p_value, untested=few)


def _agreement(stored: CalibrationTable, live: LiveTable, threshold: float) -> Comparison:
    """Agreement of the sampled images, at the row next to the threshold."""
    row = min(stored.rows, key=lambda row: abs(row.threshold - threshold))
    own = min(live.table.rows, key=lambda each: abs(each.threshold - row.threshold))
    n, images = stored.n, live.images
    p_value, few = None, _few(n, images)
    if few is None:
        table = np.array([[row.disagreements, n - row.disagreements], [own.disagreements, images - own.disagreements]])
        p_value = float(scipy.stats.fisher_exact(table).pvalue)
    agreement = 1 - own.disagreements / images if images else None
    return Comparison("agreement", "Fisher's exact", images, p_value, 1 - row.disagreements / n, agreement, few)


def _classes(stored: CalibrationTable, live: LiveTable) -> Comparison:
    """Classes predicted by the last stage for the sampled images."""
    known, own = stored.last_answers, live.table.last_answers or ()
    p_value, untested = None, _few(stored.n, live.images) if known is not None else NO_CLASSES
    if known is not None and untested is None:
        p_value = _chi_squared(known, own)
    return Comparison("classes", "chi-squared", live.images, p_value, untested=untested)


def _few(stored: int, live: int) -> str | None:
    """Why so many images are not compared; None where they are."""
    if min(stored, live) >= LEAST:
        return None
    return f"there are {live} live images and {stored} of the calibration; it takes {LEAST} of each"


def _chi_squared(these: Sequence[int], those: Sequence[int]) -> float:
    """P-value for two samples by category; 1 if there is only one category."""
    counts = np.zeros((2, max(len(these), len(those))))
    counts[0, : len(these)], counts[1, : len(those)] = these, those
    counts = _merged(counts)
    return 1.0 if counts.shape[1] < 2 else float(scipy.stats.chi2_contingency(counts, correction=False).pvalue)


def _merged(counts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Merge categories (2, k) with too few expected images on either side."""
    expected = counts.sum(axis=0) * counts.sum(axis=1).min() / max(1.0, counts.sum())
    rare = expected < EXPECTED
    merged = np.concatenate([counts[:, ~rare], counts[:, rare].sum(axis=1, keepdims=True)], axis=1)
    return merged[:, merged.sum(axis=0) > 0]
