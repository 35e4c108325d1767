"""What a threshold will do on this machine, in shares and in milliseconds, and the threshold for so many of them."""

from __future__ import annotations

import dataclasses
import math

import pytest

from service.calibration.certify import Calibration
from service.engine.prediction import TimeSpent, predict, solve
from service.errors import InvalidOption
from service.inference.latency import LatencyTable
from service.inference.predictor import Predictor
from tests.engine.serving import Case, load

SECONDS = (0.002, 0.010, 0.040)  # of each stage alone


def table_of(case: Case, single: float | None = 0.03) -> LatencyTable:
    return LatencyTable(
        tuple({1: seconds, 4: 4 * seconds} for seconds in SECONDS[: case.depth]),
        {} if single is None else {1: single, 4: 4 * single},
    )


def uncalibrated(case: Case) -> Predictor:
    predictor = load(case)
    predictor.calibration = None
    return predictor


def calibration(predictor: Predictor) -> Calibration:
    assert predictor.calibration is not None
    return predictor.calibration


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.77, 1.0])
def test_time_of_an_image_follows_from_where_images_end(case: Case, threshold: float) -> None:
    predictor = load(case)
    found = predict(predictor, table_of(case), 4, threshold)
    effect = calibration(predictor).predict(threshold)
    assert found.effect == effect
    seconds = sum(share * sum(SECONDS[: stage + 1]) for stage, share in enumerate(effect.ends))
    assert found.time.mean_seconds == pytest.approx(seconds)
    assert found.time.saved == pytest.approx(1 - seconds / 0.03)


def test_nothing_is_predicted_without_a_table_and_nothing_saved_without_a_single_scale_network(case: Case) -> None:
    found = predict(uncalibrated(case), table_of(case), 4, 0.5)
    assert (found.effect, found.time.mean_seconds, found.time.saved) == (None, None, None)
    assert predict(load(case), table_of(case, single=None), 4, 0.5).time.saved is None


def test_cascade_that_costs_more_saves_less_than_nothing(case: Case) -> None:
    assert (predict(load(case), table_of(case, single=0.001), 4, 1.0).time.saved or 0) < 0


def test_highest_threshold_within_so_many_milliseconds(cascade: Case) -> None:
    predictor, table = load(cascade), table_of(cascade)
    thresholds = [row.threshold for row in calibration(predictor).table.rows]

    def mean_ms(threshold: float) -> float:
        return 1e3 * (predict(predictor, table, 4, threshold).time.mean_seconds or math.inf)

    for budget in (2.0, 3.0, 5.0, 9.0, 100.0):
        solved = solve(predictor, table, 4, "max_mean_ms", budget)
        assert solved == max(threshold for threshold in thresholds if mean_ms(threshold) <= budget + 1e-9)


def test_less_than_the_first_stage_takes_cannot_be_had(case: Case) -> None:
    with pytest.raises(InvalidOption, match=r"max_mean_ms is 1\.9; it must be at least 2 ms"):
        solve(load(case), table_of(case), 4, "max_mean_ms", 1.9)


@pytest.mark.parametrize("budget", [math.nan, -math.inf])
def test_no_number_of_milliseconds_is_refused(case: Case, budget: float) -> None:
    with pytest.raises(InvalidOption, match="max_mean_ms"):
        solve(load(case), table_of(case), 4, "max_mean_ms", budget)


def test_milliseconds_need_a_calibration_table(case: Case) -> None:
    with pytest.raises(InvalidOption, match="no calibration table"):
        solve(uncalibrated(case), table_of(case), 4, "max_mean_ms", 9.0)
    assert solve(uncalibrated(case), table_of(case), 4, "threshold", 0.3) == 0.3


def test_other_goals_are_the_calibration_tables(case: Case) -> None:
    predictor = load(case)
    budget = sum(case.mmacs)
    solved = solve(predictor, table_of(case), 4, "max_mean_mmacs", budget)
    assert solved == predictor.solve("max_mean_mmacs", budget)


def test_time_spent_is_of_all_images_together() -> None:
    spent = TimeSpent(images=8, seconds=2.0, single_scale_seconds=4.0)
    assert (spent.mean_seconds, spent.single_scale_mean_seconds, spent.saved) == (0.25, 0.5, 0.5)
    nothing = dataclasses.replace(spent, images=0)
    assert (nothing.mean_seconds, nothing.single_scale_mean_seconds, nothing.saved) == (None, None, None)
    unmeasured = dataclasses.replace(spent, single_scale_seconds=None)
    assert (unmeasured.mean_seconds, unmeasured.single_scale_mean_seconds, unmeasured.saved) == (0.25, None, None)
    assert TimeSpent.cost_per_million(0.25, 3.6) == pytest.approx(250.0)
    assert TimeSpent.cost_per_million(None, 3.6) is TimeSpent.cost_per_million(0.25, None) is None
