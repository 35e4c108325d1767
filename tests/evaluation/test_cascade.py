"""A cascade's curve is what counting gives, and the bootstrap tells a lead from chance."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from service.evaluation.cascade import Cascade, Estimate, gain, gap, matching_cost
from service.evaluation.passes import Passes

IMAGES = 800
LOW, HIGH = 10.0, 40.0


def _cascade(seed: int = 0, high_right: float = 0.9, images: int = IMAGES) -> Cascade:
    """The surer, the more often the low pass is right."""
    random = np.random.default_rng(seed)
    confidence = random.random(images)
    right = np.stack([random.random(images) < confidence, random.random(images) < high_right], axis=1)
    return Cascade(confidence[:, None], right, (LOW, HIGH))


def test_threshold_gives_what_counting_image_by_image_gives() -> None:
    cascade = _cascade()
    exit_rate, cost, accuracy = cascade.at(0.7)
    exits = [confidence > 0.7 for confidence in cascade.confidence[:, 0]]
    answers = zip(exits, *cascade.right.T, strict=True)
    assert exit_rate == pytest.approx(sum(exits) / IMAGES)
    assert cost == pytest.approx(LOW + (1 - exit_rate) * HIGH)
    assert accuracy == sum(low if is_out else high for is_out, low, high in answers) / IMAGES


def test_every_threshold_lies_on_the_curve() -> None:
    cascade = _cascade()
    for threshold in (0.0, 0.1, 0.5, 0.77, 1.0):
        _, cost, accuracy = cascade.at(threshold)
        assert cascade.accuracy_at(np.array([cost]))[0] == pytest.approx(accuracy)


def test_curve_runs_from_the_high_pass_to_the_low_one() -> None:
    cascade = _cascade()
    costs, accuracy = cascade.curve()
    assert (costs[0], costs[-1]) == (LOW + HIGH, LOW)
    assert (accuracy[0], accuracy[-1]) == pytest.approx(cascade.right.mean(0)[::-1].tolist())


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_curve_of_any_number_of_stages_is_what_every_threshold_gives(depth: int) -> None:
    random = np.random.default_rng(depth)
    confidence, right = random.random((60, depth - 1)), random.random((60, depth)) < 0.7
    cascade = Cascade(confidence, right, tuple(4.0**stage for stage in range(depth)))
    costs, accuracy = cascade.curve()
    at_each = [cascade.at(threshold)[1:] for threshold in (1.0, *sorted((confidence - 1e-9).ravel(), reverse=True))]
    for cost, share in at_each:
        assert min(abs(costs - cost) + abs(accuracy - share)) == pytest.approx(0, abs=1e-9)
    assert (costs[0], accuracy[0]) == pytest.approx(cascade.at(1.0)[1:])
    assert (costs[-1], accuracy[-1]) == pytest.approx(cascade.at(0.0)[1:])


def test_drawn_images_count_as_often_as_they_were_drawn() -> None:
    cascade, costs = _cascade(images=50), np.linspace(LOW, LOW + HIGH, 7)
    index = np.random.default_rng(1).integers(50, size=50)
    drawn = dataclasses.replace(cascade, confidence=cascade.confidence[index], right=cascade.right[index])
    counts = np.bincount(index, minlength=50)[None]
    # Between two images the curve is interpolated; an image drawn twice moves it twice at once.
    whole = cascade.accuracy_at(costs, counts)[0]
    assert whole == pytest.approx(drawn.accuracy_at(costs), abs=2 / 50)
    assert whole[[0, -1]] == pytest.approx(drawn.accuracy_at(costs)[[0, -1]])


def test_cheapest_is_the_least_cost_that_is_accurate_enough() -> None:
    cascade = _cascade()
    once = np.ones((2, len(cascade.right)), dtype=np.int64)
    cost, never = cascade.cheapest(np.array([0.8, 1.01]), once)
    assert cascade.accuracy_at(np.array([cost]))[0] >= 0.8
    assert all(cascade.accuracy_at(np.linspace(LOW, cost - 0.06, 50)) < 0.8)
    assert math.isinf(never)


def test_matching_cost_is_that_of_the_same_images_for_both() -> None:
    cascade = _cascade()
    first, last = cascade.right.T
    found = matching_cost(cascade, first)
    assert found.value == LOW
    assert found.low == LOW <= found.high
    worse = matching_cost(cascade, first & last)
    assert worse == Estimate(LOW, LOW, LOW)
    always = matching_cost(cascade, np.ones_like(first))
    assert math.isinf(always.value)
    assert math.isinf(always.high)


def test_naive_cascade_asks_the_first_network_and_then_the_second() -> None:
    targets = torch.tensor([0, 1, 0, 1])
    low = torch.tensor([[3.0, 0.0], [0.2, 0.0], [0.0, 0.1], [0.0, 4.0]])  # sure and right, unsure and wrong twice, sure
    high = torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # wrong on the first alone
    cascade = Cascade.naive([Passes((low,), targets), Passes((high,), targets)], (LOW, HIGH))
    assert cascade.at(0.9) == (0.5, LOW + HIGH / 2, 1.0)
    assert cascade.at(1.0)[2] == 0.75
    assert cascade.at(0.0)[2] == 0.5
    multi = Cascade.of(Passes((low, high), targets), (1.0, 1.0), (LOW, HIGH))
    assert multi.at(0.9) == cascade.at(0.9)


def test_gap_to_itself_is_nothing() -> None:
    found = gap(_cascade(), _cascade(), HIGH)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_clear_lead_excludes_zero_and_turns_its_sign_with_the_sides() -> None:
    better, worse = _cascade(high_right=0.95), _cascade(high_right=0.8)
    lead, lag = gap(better, worse, HIGH), gap(worse, better, HIGH)
    assert 0 < lead.low < lead.value < lead.high
    assert (lag.low, lag.value, lag.high) == pytest.approx((-lead.high, -lead.value, -lead.low))


def test_lead_by_chance_includes_zero() -> None:
    one, other = _cascade(seed=1, images=200), _cascade(seed=2, images=200)
    found = gap(one, other, HIGH)
    assert found.low < 0 < found.high


def test_same_seed_gives_the_same_interval() -> None:
    one, other = _cascade(1), _cascade(2)
    assert gap(one, other, HIGH, seed=3) == gap(one, other, HIGH, seed=3)
    assert gap(one, other, HIGH, seed=3) != gap(one, other, HIGH, seed=4)


def test_interval_of_the_gain_covers_the_truth_in_most_samples() -> None:
    pool = _cascade(images=20_000)
    right = np.random.default_rng(9).random(20_000) < 0.85
    truth = gain(pool, right, HIGH, draws=2).value
    covered, samples = 0, 60
    for seed in range(samples):
        index = np.random.default_rng(seed).integers(20_000, size=400)
        sample = Cascade(pool.confidence[index], pool.right[index], (LOW, HIGH))
        found = gain(sample, right[index], HIGH, draws=200, seed=seed)
        covered += found.low <= truth <= found.high
    assert covered >= 51  # of 60 at 95 %, all but one time in a thousand
