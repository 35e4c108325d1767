"""The bounds keep what they promise: calibrated a thousand times, at most one threshold in twenty breaks its own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.errors import InvalidOption
from service.evaluation.coverage import DRAWS, PROMISES, Pool, broken, promises
from service.inference.calibration import RISK, THRESHOLDS, Calibration, tabulate
from service.state.base import Goal

# The share of broken promises is itself drawn: three standard errors above the risk.
MOST = RISK + 3 * math.sqrt(RISK * (1 - RISK) / DRAWS)


def _pool(seed: int = 0, images: int = 4000, classes: int = 10) -> Pool:
    """Softmax answers of two passes, the high one better, whose logits share most of their noise."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, images)
    noise = random.normal(size=(images, classes))
    truth = np.eye(classes)[targets] * random.gamma(2, 2, (images, 1))
    low = truth + 1.2 * noise + 0.5 * random.normal(size=noise.shape)
    high = 1.3 * truth + 1.2 * noise
    exponents = np.exp(low - low.max(1, keepdims=True))
    return Pool((exponents / exponents.sum(1, keepdims=True)).max(1), low.argmax(1), high.argmax(1), targets)


@pytest.fixture(scope="module")
def pool() -> Pool:
    return _pool()


@pytest.mark.parametrize(("goal", "value"), PROMISES)
@pytest.mark.parametrize("images", [473, 2000])
def test_promise_is_broken_by_at_most_one_calibration_in_twenty(
    pool: Pool, goal: Goal, value: float, images: int
) -> None:
    assert broken(pool, goal, value, images) <= MOST


def test_without_the_bound_promises_would_be_broken_far_more_often(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation can fail: shares taken as they were counted break four times as many promises and more."""
    monkeypatch.setattr("service.inference.calibration.upper_bound", lambda count, n: count / n)
    assert broken(pool, "min_agreement", 0.95, 473) > 4 * RISK
    assert broken(pool, "max_accuracy_drop", 0.02, 473) > 4 * RISK


def test_drawn_tables_are_what_counting_the_drawn_images_gives(pool: Pool) -> None:
    (table,) = pool.tables(300, 1, seed=5)
    index = np.random.default_rng(5).integers(len(pool), size=(1, 300))[0]
    expected = tabulate(
        pool.confidence[index], pool.low[index], pool.high[index], pool.targets[index], "eager", "float32"
    )
    assert table == expected


@pytest.mark.parametrize("goal", ["min_agreement", "max_accuracy_drop"])
def test_risk_grows_as_the_threshold_falls_and_bounds_the_drop(pool: Pool, goal: Goal) -> None:
    risks = [pool.risk(goal, threshold) for threshold in THRESHOLDS]
    assert risks == sorted(risks, reverse=True)
    assert risks[-1] == 0
    assert all(pool.drop(t) <= risk + 1e-12 for t, risk in zip(THRESHOLDS, risks, strict=True))


def test_promise_that_so_few_images_cannot_certify_says_how_many_can(pool: Pool) -> None:
    with pytest.raises(
        InvalidOption, match=r"it takes 299 calibration images, and this model \(eager float32\) has 200"
    ):
        broken(pool, "min_agreement", 0.99, 200)


def test_promises_are_solved_by_the_table_and_measured_on_the_pool(pool: Pool) -> None:
    (table,) = pool.tables(1000, 1, seed=2)
    calibration = Calibration(table, 1.0, 4.0)
    found = promises(pool, calibration)
    assert promises(pool, None) == ()
    for promise in found:
        assert promise.threshold is not None
        assert promise.measured is not None
        assert promise.threshold == calibration.solve(promise.goal, promise.value)
        assert promise.exit_rate == (pool.confidence > promise.threshold).mean()
        answers = np.where(pool.confidence > promise.threshold, pool.low, pool.high)
        if promise.goal == "min_agreement":
            assert promise.measured == pytest.approx((answers == pool.high).mean())
            assert promise.is_kept == (promise.measured >= promise.value)
        else:
            gone = (pool.high == pool.targets).mean() - (answers == pool.targets).mean()
            lost = ((pool.high == pool.targets) & (answers != pool.targets)).mean()
            assert gone <= promise.measured == pytest.approx(lost)
            assert promise.is_kept == (lost <= promise.value)
        assert promise.broken is not None
        assert promise.broken <= MOST
    few = Calibration(tabulate(pool.confidence[:30], pool.low[:30], pool.high[:30], pool.targets[:30], "", ""), 1, 4)
    assert "it takes 149 calibration images" in promises(pool, few)[2].why_not
