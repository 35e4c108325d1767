"""The bounds keep what they promise: calibrated a thousand times, at most one threshold in twenty breaks its own."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from service.calibration.certify import RISK, THRESHOLDS, Calibration, allowed_risk, count_table
from service.calibration_table import CalibrationRow, CalibrationTable
from service.evaluation.coverage import PROMISES, broken, promises, risk
from service.evaluation.passes import Answers
from service.state.base import Goal

DRAWS = 1000
CHUNK = 100  # draws at a time, for the sake of memory

# The share of broken promises is itself drawn: three standard errors above the risk.
MOST = RISK + 3 * math.sqrt(RISK * (1 - RISK) / DRAWS)


def _pool(seed: int = 0, images: int = 4000, classes: int = 10) -> Answers:
    """Softmax answers of two passes, the high one better, whose logits share most of their noise."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, images)
    noise = random.normal(size=(images, classes))
    truth = np.eye(classes)[targets] * random.gamma(2, 2, (images, 1))
    low = truth + 1.2 * noise + 0.5 * random.normal(size=noise.shape)
    high = 1.3 * truth + 1.2 * noise
    exponents = np.exp(low - low.max(1, keepdims=True))
    confidence = (exponents / exponents.sum(1, keepdims=True)).max(1)
    return Answers(confidence[:, None], np.stack([low.argmax(1), high.argmax(1)], axis=1), targets)


def _tables(pool: Answers, images: int, draws: int, seed: int) -> Iterator[CalibrationTable]:
    """Calibration tables of ``draws`` sets of ``images`` drawn from the pool with replacement.

    As ``count_table`` would count them, all thresholds at once.
    """
    random = np.random.default_rng(seed)
    exited = pool.confidence > np.array(THRESHOLDS)  # (n, thresholds)
    is_low, is_high = pool.right.T
    differ = pool.answers[:, 0] != pool.last
    of_exited = [np.ones(len(pool), bool), differ, is_low & ~is_high, ~is_low & is_high]
    counted = np.concatenate([exited & one[:, None] for one in of_exited], axis=1).astype(np.float32)
    for start in range(0, draws, CHUNK):
        size = (min(CHUNK, draws - start), images)
        drawn = np.stack([np.bincount(row, minlength=len(pool)) for row in random.integers(len(pool), size=size)])
        drawn = drawn.astype(np.float32)
        high_right = (drawn @ is_high).astype(np.int64)
        for right, row in zip(high_right.tolist(), (drawn @ counted).astype(np.int64), strict=True):
            yield _table(images, right, row.reshape(len(of_exited), len(THRESHOLDS)).tolist())


def _table(images: int, high_right: int, counts: list[list[int]]) -> CalibrationTable:
    rows = tuple(
        CalibrationRow(threshold, (exited, images - exited), disagreements, gained, lost, high_right + gained - lost)
        for threshold, exited, disagreements, gained, lost in zip(THRESHOLDS, *counts, strict=True)
    )
    return CalibrationTable("eager", "float32", images, rows)


def _simulated(pool: Answers, goal: Goal, value: float, images: int) -> float:
    """The share of ``DRAWS`` calibrations whose threshold breaks the promise on the whole pool."""
    allowed = allowed_risk(goal, value)
    risks = {threshold: risk(pool, goal, threshold) for threshold in THRESHOLDS}
    solved = [Calibration(table, (0.0, 1.0)).solve(goal, value) for table in _tables(pool, images, DRAWS, seed=0)]
    return sum(risks[threshold] > allowed + 1e-12 for threshold in solved) / DRAWS


@pytest.fixture(scope="module")
def pool() -> Answers:
    return _pool()


@pytest.mark.parametrize(("goal", "value"), PROMISES)
@pytest.mark.parametrize("images", [473, 2000])
def test_promise_is_broken_by_at_most_one_calibration_in_twenty(
    pool: Answers, goal: Goal, value: float, images: int
) -> None:
    exact, simulated = broken(pool, goal, value, images), _simulated(pool, goal, value, images)
    assert simulated <= MOST
    assert exact <= RISK + 1e-9
    assert simulated == pytest.approx(exact, abs=3.5 * math.sqrt(max(exact, 1 / DRAWS) / DRAWS))


def test_without_the_bound_promises_would_be_broken_far_more_often(
    pool: Answers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The simulation can fail: shares taken as they were counted break four times as many promises and more."""
    monkeypatch.setattr("service.calibration.certify.upper_bound", lambda count, n: count / n)
    assert _simulated(pool, "min_agreement", 0.95, 473) > 4 * RISK
    assert _simulated(pool, "max_accuracy_drop", 0.02, 473) > 4 * RISK


def test_drawn_tables_are_what_counting_the_drawn_images_gives(pool: Answers) -> None:
    (table,) = _tables(pool, 300, 1, seed=5)
    index = np.random.default_rng(5).integers(len(pool), size=(1, 300))[0]
    expected = count_table(pool.confidence[index], pool.answers[index], pool.targets[index], "eager", "float32")
    assert table == replace(expected, last_answers=None)


@pytest.mark.parametrize("goal", ["min_agreement", "max_accuracy_drop"])
def test_risk_grows_as_the_threshold_falls_and_bounds_the_drop(pool: Answers, goal: Goal) -> None:
    risks = [risk(pool, goal, threshold) for threshold in THRESHOLDS]
    assert risks == sorted(risks, reverse=True)
    assert risks[-1] == 0
    assert all(pool.accuracy(1) - pool.accuracy(t) <= each + 1e-12 for t, each in zip(THRESHOLDS, risks, strict=True))


@pytest.mark.parametrize(("goal", "value"), [("min_agreement", 1.0), ("min_agreement", 0.0), ("max_accuracy_drop", 1)])
def test_promise_that_nothing_can_break_is_never_broken(pool: Answers, goal: Goal, value: float) -> None:
    assert broken(pool, goal, value, 200) == 0


def test_promises_are_solved_by_the_table_and_measured_on_the_pool(pool: Answers) -> None:
    (table,) = _tables(pool, 1000, 1, seed=2)
    calibration = Calibration(table, (1.0, 4.0))
    found = promises(pool, calibration)
    assert promises(pool, None) == ()
    for promise in found:
        assert promise.threshold is not None
        assert promise.measured is not None
        assert promise.threshold == calibration.solve(promise.goal, promise.value)
        assert promise.exit_rate == (pool.confidence[:, 0] > promise.threshold).mean()
        answers = np.where(pool.confidence[:, 0] > promise.threshold, pool.answers[:, 0], pool.last)
        if promise.goal == "min_agreement":
            assert promise.measured == pytest.approx((answers == pool.last).mean())
            assert promise.is_kept == (promise.measured >= promise.value)
        else:
            gone = (pool.last == pool.targets).mean() - (answers == pool.targets).mean()
            lost = ((pool.last == pool.targets) & (answers != pool.targets)).mean()
            assert gone <= promise.measured == pytest.approx(lost)
            assert promise.is_kept == (lost <= promise.value)
        assert promise.broken is not None
        assert promise.broken <= RISK + 1e-9
    few = Calibration(count_table(pool.confidence[:30], pool.answers[:30], pool.targets[:30], "", ""), (1, 4))
    assert "149 certifying images are needed" in promises(pool, few)[2].why_not
