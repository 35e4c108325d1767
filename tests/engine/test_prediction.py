"""What a threshold does in milliseconds: the calibration table's shares times the latency table's seconds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from service.engine.prediction import TimeSpent, predict, solve
from service.errors import InvalidOption
from service.inference.latency import LatencyTable
from service.inference.predictor import Predictor

SECONDS = (0.001, 0.003, 0.005)
SINGLE = {1: 0.004}


@pytest.fixture(params=[1, 2, 3], ids=lambda depth: f"{depth} stages")
def predictor(request: pytest.FixtureRequest, stores: Mapping[int, Path]) -> Predictor:
    """Of a model of so many stages."""
    return Predictor.load(stores[request.param] / "tiny" / "1", "cpu", "float32")


def table(predictor: Predictor, single: Mapping[int, float] = SINGLE) -> LatencyTable:
    """Stages that take 1, 3 and 5 ms."""
    return LatencyTable(tuple({1: seconds} for seconds in SECONDS[: predictor.depth]), single)


@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.65, 0.9, 1.0])
def test_mean_time_is_that_of_the_stages_up_to_where_images_end(predictor: Predictor, threshold: float) -> None:
    prediction = predict(predictor, table(predictor), 1, threshold)
    assert prediction.effect is not None
    up_to = [sum(SECONDS[: stage + 1]) for stage in range(predictor.depth)]
    expected = sum(share * seconds for share, seconds in zip(prediction.effect.ends, up_to, strict=True))
    assert prediction.time.mean_seconds == pytest.approx(expected)
    assert prediction.time.single_scale_seconds == 0.004
    assert prediction.time.saved == pytest.approx(1 - expected / 0.004)


def test_batches_of_the_best_size_are_reckoned_with(predictor: Predictor) -> None:
    batches = LatencyTable(({1: 0.010, 8: 0.016},) * predictor.depth, {1: 0.010, 8: 0.024})
    whole = predict(predictor, batches, 8, 1.0).time
    assert whole.mean_seconds == pytest.approx(0.002 * predictor.depth)
    assert whole.single_scale_seconds == pytest.approx(0.003)
    alone = predict(predictor, batches, 1, 1.0).time
    assert alone.mean_seconds == pytest.approx(0.010 * predictor.depth)


def test_without_a_calibration_table_no_time_is_predicted(predictor: Predictor) -> None:
    predictor.calibration = None
    prediction = predict(predictor, table(predictor), 1, 0.5)
    assert prediction.effect is None
    assert (prediction.time.mean_seconds, prediction.time.saved) == (None, None)
    assert prediction.time.single_scale_seconds == 0.004


def test_where_the_single_scale_network_was_not_measured_nothing_is_said_to_be_saved(predictor: Predictor) -> None:
    time = predict(predictor, table(predictor, {}), 1, 0.5).time
    assert time.mean_seconds is not None
    assert (time.single_scale_seconds, time.saved) == (None, None)


@pytest.mark.parametrize("budget", [1.0, 1.5, 2.5, 4.0, 100.0])
def test_budget_gives_the_highest_threshold_that_keeps_it(predictor: Predictor, budget: float) -> None:
    times = table(predictor)
    threshold = solve(predictor, times, 1, "max_mean_ms", budget)
    assert 1e3 * (predict(predictor, times, 1, threshold).time.mean_seconds or 0) <= budget + 1e-9
    assert predictor.calibration is not None
    for row in predictor.calibration.table.rows:
        if row.threshold > threshold:
            assert 1e3 * (predict(predictor, times, 1, row.threshold).time.mean_seconds or 0) > budget


def test_budget_below_the_first_stage_is_refused(predictor: Predictor) -> None:
    with pytest.raises(InvalidOption, match=r"max_mean_ms is 0\.9; it must be at least 1 ms, the cost of the first"):
        solve(predictor, table(predictor), 1, "max_mean_ms", 0.9)


def test_budget_needs_a_calibration_table(predictor: Predictor) -> None:
    predictor.calibration = None
    with pytest.raises(InvalidOption, match="the model has no calibration table"):
        solve(predictor, table(predictor), 1, "max_mean_ms", 2)
    assert solve(predictor, table(predictor), 1, "threshold", 0.5) == 0.5


def test_other_goals_do_not_look_at_times(predictor: Predictor) -> None:
    calibration = predictor.calibration
    assert calibration is not None
    budget = calibration.mmacs[0] * 1.5
    for goal, value in (("threshold", 0.3), ("min_agreement", 0.8), ("max_mean_mmacs", budget)):
        assert solve(predictor, table(predictor), 1, goal, value) == calibration.solve(goal, value)  # type: ignore[arg-type]


def test_cost_of_a_million_images_is_their_time_at_an_hours_price() -> None:
    assert TimeSpent.cost_per_million(0.0036, 2.0) == pytest.approx(2.0)  # 3,600 s
    assert TimeSpent.cost_per_million(None, 2.0) is None
    assert TimeSpent.cost_per_million(0.0036, None) is None
