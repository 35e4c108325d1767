"""The calibration table: counted right, bounded right, and asked right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from service.calibration.certify import THRESHOLDS, Calibration, count_table, upper_bound
from service.calibration.exit_rule import exits
from service.calibration_table import CalibrationTable
from service.errors import InvalidOption
from service.state.base import GOALS, Goal, ThresholdConfig

LOW_MMACS, HIGH_MMACS = 10.0, 40.0


def _table(seed: int, n: int, classes: int = 4, low_right: float = 0.8, high_right: float = 0.9) -> CalibrationTable:
    """Made-up answers: the more confident, the more often right."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, n)
    confidence = random.beta(3, 1, n)

    def answers(right: float) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        is_right = random.random(n) < right * (0.5 + confidence / 2)
        return np.where(is_right, targets, (targets + random.integers(1, classes, n)) % classes)

    said = np.stack([answers(low_right), answers(high_right)], axis=1)
    return count_table(confidence[:, None], said, targets, "eager", "float32")


def _calibration(seed: int = 0, n: int = 2000, **of: float) -> Calibration:
    return Calibration(_table(seed, n, **of), (LOW_MMACS, HIGH_MMACS))  # type: ignore[arg-type]


calibrations = st.builds(
    _calibration,
    seed=st.integers(0, 1000),
    n=st.integers(1, 400),
    low_right=st.floats(0.3, 1),
    high_right=st.floats(0.3, 1),
)


@pytest.mark.parametrize("n", [1, 2, 10, 59, 300, 1000, 5000])
@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 1])
@pytest.mark.parametrize("risk", [0.01, 0.05, 0.5])
def test_upper_bound_is_clopper_and_pearsons(n: int, share: float, risk: float) -> None:
    count = round(n * share)
    expected = 1.0 if count == n else stats.beta.ppf(1 - risk, count + 1, n - count)
    assert upper_bound(count, n, risk) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("n", "allowed"), [(1000, 4), (5000, 38)])
def test_one_percent_is_certified_by_so_many_disagreements_and_no_more(n: int, allowed: int) -> None:
    assert upper_bound(allowed, n) <= 0.01 < upper_bound(allowed + 1, n)


def test_thresholds_ascend_from_0_to_1() -> None:
    assert THRESHOLDS[0] == 0
    assert THRESHOLDS[-1] == 1
    assert list(THRESHOLDS) == sorted(set(THRESHOLDS))
    assert {i / 100 for i in range(101)} <= set(THRESHOLDS)


def test_table_is_what_counting_image_by_image_gives() -> None:
    random = np.random.default_rng(0)
    n = 200
    confidence = random.choice([*THRESHOLDS[::7], 0.3333, 1.0], n)  # many lie exactly on a threshold
    low, high, targets = random.integers(0, 3, (3, n))
    table = count_table(confidence[:, None], np.stack([low, high], axis=1), targets, "eager", "float32")
    for row in table.rows:
        counted = dict.fromkeys(("exited", "disagreements", "low_right", "high_right", "right"), 0)
        for c, a, b, truth in zip(confidence, low, high, targets, strict=True):
            is_out = exits(c, row.threshold)
            counted["exited"] += is_out
            counted["disagreements"] += is_out and a != b
            counted["low_right"] += is_out and a == truth != b
            counted["high_right"] += is_out and b == truth != a
            counted["right"] += (a if is_out else b) == truth
        assert tuple(counted.values()) == (
            row.exited,
            row.disagreements,
            row.right_last_wrong,
            row.wrong_last_right,
            row.right,
        )
    assert (table.n, table.runtime, table.precision) == (n, "eager", "float32")


@given(calibrations)
@settings(max_examples=20, deadline=None)
def test_counts_of_exited_images_never_grow_with_the_threshold(calibration: Calibration) -> None:
    rows = calibration.table.rows
    for name in ("exited", "disagreements", "right_last_wrong", "wrong_last_right"):
        counts = [getattr(row, name) for row in rows]
        assert counts == sorted(counts, reverse=True)
    assert rows[0].exited == calibration.table.n
    assert rows[-1].exited == 0


def test_prediction_at_a_row_is_that_row() -> None:
    calibration = _calibration()
    n = calibration.table.n
    for row in calibration.table.rows[:-1]:
        effect = calibration.predict(row.threshold)
        assert effect.exit_rate == row.exited / n
        assert row.right is not None
        assert row.wrong_last_right is not None
        assert effect.accuracy == row.right / n
        assert effect.agreement == 1 - row.disagreements / n
        assert effect.mean_mmacs == pytest.approx(LOW_MMACS + (1 - row.exited / n) * HIGH_MMACS)
        assert effect.agreement_at_least == 1 - upper_bound(row.disagreements, n)
        assert effect.accuracy_drop_at_most == upper_bound(row.wrong_last_right, n)


@pytest.mark.parametrize("goal", ["min_agreement", "max_accuracy_drop"])
def test_table_of_another_runtime_tells_what_to_expect_and_certifies_nothing(goal: Goal) -> None:
    own = _calibration()
    other = replace(own, stands_in_for="cuda float16")
    expected, foreseen = own.predict(0.6), other.predict(0.6)
    assert (foreseen.exit_rate, foreseen.accuracy) == (expected.exit_rate, expected.accuracy)
    assert (foreseen.agreement_at_least, foreseen.accuracy_drop_at_most) == (0, 1)
    assert other.predict(1).agreement_at_least == 1
    assert other.solve("max_mean_mmacs", 30) == own.solve("max_mean_mmacs", 30)
    with pytest.raises(InvalidOption, match=f"{goal} is 0.5; .*no calibration table for cuda float16"):
        other.solve(goal, 0.5)
    assert other.promise(ThresholdConfig("min_agreement", 0.5, 0.6)) is None


def test_prediction_between_two_rows_is_interpolated() -> None:
    calibration = _calibration()
    low, middle, high = (calibration.predict(threshold) for threshold in (0.60, 0.6025, 0.61))
    for name in ("exit_rate", "mean_mmacs", "accuracy", "agreement"):
        expected = 0.75 * getattr(low, name) + 0.25 * getattr(high, name)
        assert getattr(middle, name) == pytest.approx(expected)


def test_at_0_every_image_exits_and_at_1_none() -> None:
    calibration = _calibration()
    all_out, none_out = calibration.predict(0), calibration.predict(1)
    assert (all_out.exit_rate, all_out.mean_mmacs) == (1, LOW_MMACS)
    assert (none_out.exit_rate, none_out.mean_mmacs) == (0, LOW_MMACS + HIGH_MMACS)
    assert (none_out.agreement, none_out.agreement_at_least, none_out.accuracy_drop_at_most) == (1, 1, 0)


@given(calibrations, st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_bounds_between_rows_promise_no_more_than_the_rows_around(calibration: Calibration, threshold: float) -> None:
    below = max(t for t in THRESHOLDS if t <= threshold)
    effect, row = calibration.predict(threshold), calibration.predict(below)
    assert effect.agreement_at_least == row.agreement_at_least <= effect.agreement + 1e-12
    assert effect.accuracy_drop_at_most == row.accuracy_drop_at_most


@given(calibrations)
@settings(max_examples=10, deadline=None)
def test_a_higher_threshold_never_promises_less(calibration: Calibration) -> None:
    effects = [calibration.predict(threshold) for threshold in np.linspace(0, 1, 57).tolist()]
    for lower, higher in pairwise(effects):
        assert lower.exit_rate >= higher.exit_rate
        assert lower.mean_mmacs <= higher.mean_mmacs
        assert lower.agreement_at_least <= higher.agreement_at_least
        assert (lower.accuracy_drop_at_most or 0) >= (higher.accuracy_drop_at_most or 0)


@given(calibrations, st.floats(LOW_MMACS, 2 * (LOW_MMACS + HIGH_MMACS)))
@settings(max_examples=60, deadline=None)
def test_budget_gives_the_highest_threshold_that_keeps_it(calibration: Calibration, budget: float) -> None:
    solved = calibration.solve("max_mean_mmacs", budget)
    assert solved in THRESHOLDS
    assert calibration.predict(solved).mean_mmacs <= budget
    assert all(calibration.predict(t).mean_mmacs > budget for t in THRESHOLDS if t > solved)


@pytest.mark.parametrize(("budget", "threshold"), [(LOW_MMACS + HIGH_MMACS, 1.0), (1e9, 1.0)])
def test_budget_for_everything_gives_threshold_1(budget: float, threshold: float) -> None:
    assert _calibration().solve("max_mean_mmacs", budget) == threshold


def test_budget_of_the_low_pass_lets_everything_exit() -> None:
    calibration = _calibration()
    assert calibration.predict(calibration.solve("max_mean_mmacs", LOW_MMACS)).exit_rate == 1


@given(calibrations, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("goal", ["min_agreement", "max_accuracy_drop"])
def test_promise_is_kept_at_the_solved_threshold_and_broken_just_below(
    goal: Goal, calibration: Calibration, value: float
) -> None:
    def broken_by(threshold: float) -> float:
        effect = calibration.predict(threshold)
        if goal == "min_agreement":
            return value - effect.agreement_at_least
        assert effect.accuracy_drop_at_most is not None
        return effect.accuracy_drop_at_most - value

    try:
        solved = calibration.solve(goal, value)
    except InvalidOption:
        return
    assert all(broken_by(t) <= 1e-12 for t in THRESHOLDS if t >= solved)
    lower = [t for t in THRESHOLDS if t < solved]
    assert not lower or broken_by(lower[-1]) > -1e-12


def test_promise_of_nothing_lets_everything_exit_and_of_everything_nothing() -> None:
    calibration = _calibration()
    assert calibration.solve("min_agreement", 0.0) == 0
    assert calibration.solve("max_accuracy_drop", 1.0) == 0
    assert calibration.solve("min_agreement", 1.0) == 1
    assert calibration.solve("max_accuracy_drop", 0.0) == 1


@pytest.mark.parametrize("value", [0.0, 0.123456, 1.0])
def test_threshold_is_taken_as_given(value: float) -> None:
    assert _calibration().solve("threshold", value) == value


@pytest.mark.parametrize("goal", [goal for goal in GOALS if goal != "max_mean_ms"])  # of which the engine knows
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_value_that_is_no_number_is_refused(goal: Goal, value: float) -> None:
    with pytest.raises(InvalidOption, match=f"{goal} is .*; it must be a finite number"):
        _calibration(n=100).solve(goal, value)


@pytest.mark.parametrize("goal", ["threshold", "min_agreement", "max_accuracy_drop"])
@pytest.mark.parametrize("value", [-0.01, 1.01])
def test_share_outside_0_and_1_is_refused(goal: Goal, value: float) -> None:
    with pytest.raises(InvalidOption, match="it must be between 0 and 1"):
        _calibration(n=100).solve(goal, value)


def test_budget_below_the_low_pass_is_refused_with_its_cost() -> None:
    with pytest.raises(InvalidOption, match="at least 10 million multiply-adds, the cost of the first") as caught:
        _calibration(n=100).solve("max_mean_mmacs", 9.99)
    assert caught.value.status == 422


@pytest.mark.parametrize(("goal", "value"), [("min_agreement", 0.99), ("max_accuracy_drop", 0.01)])
def test_promise_that_no_table_of_this_size_can_keep_says_how_many_images_it_takes(goal: Goal, value: float) -> None:
    perfect: Callable[[int], Calibration] = lambda n: _calibration(n=n, low_right=2, high_right=2)  # noqa: E731
    with pytest.raises(
        InvalidOption,
        match=r"299 certifying images are needed \(half of those held out\), this model \(eager float32\) has 298",
    ):
        perfect(298).solve(goal, value)
    assert perfect(299).solve(goal, value) == 0


def test_promise_too_fine_for_any_number_of_images_is_refused() -> None:
    with pytest.raises(InvalidOption, match="inf certifying images are needed"):
        _calibration(n=100).solve("max_accuracy_drop", 1e-313)


def test_the_promise_is_what_was_asked_or_else_what_the_table_certifies() -> None:
    calibration = _calibration()
    solved = calibration.solve("min_agreement", 0.9)
    certified = calibration.predict(solved).agreement_at_least
    assert calibration.promise(ThresholdConfig("min_agreement", 0.9, solved)) == 0.9
    assert calibration.promise(ThresholdConfig("threshold", solved, solved)) == certified >= 0.9


def _three(seed: int, n: int) -> tuple[Any, Any, Any]:
    """Confidences (n, 2), answers (n, 3) and targets of three stages, each better than the one before."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, 4, n)
    confidence = random.beta(3, 1, (n, 2))
    rights = np.concatenate([0.6 + 0.4 * confidence * (0.8, 0.95), np.full((n, 1), 0.95)], axis=1)
    wrong = (targets[:, None] + random.integers(1, 4, (n, 3))) % 4
    return confidence, np.where(random.random((n, 3)) < rights, targets[:, None], wrong), targets


def test_three_stages_are_counted_image_by_image() -> None:
    confidence, answers, targets = _three(0, 200)
    table = count_table(confidence, answers, targets, "eager", "float32")
    for row in table.rows:
        ends = [next((i for i in (0, 1) if exits(sure[i], row.threshold)), 2) for sure in confidence]
        given = [said[end] for said, end in zip(answers, ends, strict=True)]
        assert row.ends == tuple(ends.count(stage) for stage in range(3))
        assert row.disagreements == sum(a != said[2] for a, said in zip(given, answers, strict=True))
        assert row.right == sum(a == truth for a, truth in zip(given, targets, strict=True))


def test_certificate_of_three_stages_is_broken_in_at_most_one_calibration_in_twenty() -> None:
    """Thresholds are tested in one order and testing stops at the first that fails, so counts need not be monotone."""
    confidence, answers, targets = _three(1, 200_000)
    truth = count_table(confidence, answers, targets, "", "")
    random, broken = np.random.default_rng(2), 0
    for _ in range(200):
        drawn = random.integers(0, len(targets), 400)
        table = count_table(confidence[drawn], answers[drawn], None, "", "")
        solved = Calibration(table, (1, 2, 4)).solve("min_agreement", 0.9)
        row = next(row for row in truth.rows if row.threshold == solved)
        broken += row.disagreements / truth.n > 0.1
    assert broken <= 18  # of 200: at most 5 % are expected, and 10 by chance more than 18 once in 100


def test_without_labels_agreement_is_certified_and_what_needs_labels_says_so() -> None:
    confidence, answers, _ = _three(3, 1000)
    calibration = Calibration(count_table(confidence, answers, None, "eager", "float32"), (1, 2, 4))
    effect = calibration.predict(0.7)
    assert (effect.accuracy, effect.accuracy_drop_at_most) == (None, None)
    assert 0 < calibration.solve("min_agreement", 0.9) <= 1
    with pytest.raises(InvalidOption, match="was calibrated without labels"):
        calibration.solve("max_accuracy_drop", 0.5)


def test_one_stage_promises_everything_at_every_threshold() -> None:
    answers = np.array([[0], [1], [1]])
    calibration = Calibration(count_table(np.empty((3, 0)), answers, np.array([0, 1, 0]), "", ""), (7.0,))
    effect = calibration.predict(0.3)
    assert (effect.ends, effect.exit_rate, effect.mean_mmacs) == ((1.0,), 0, 7)
    assert (effect.agreement_at_least, effect.accuracy_drop_at_most) == (1, 0)
    assert effect.accuracy == pytest.approx(2 / 3)
