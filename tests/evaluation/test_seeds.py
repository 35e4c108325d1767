"""Statistics over seeds give what follows by hand from networks that were made up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from service.evaluation.cascade import Cascade
from service.evaluation.passes import Bools
from service.evaluation.seeds import (
    Trial,
    cost_at_its_accuracy,
    gain_difference,
    lead_between,
    lead_over_naive,
    top1,
    top1_at_its_cost,
)

IMAGES = 100
LOW, HIGH = 1.0, 4.0


def first(count: int, of: int = IMAGES) -> Bools:
    """Right on so many, the first ones."""
    return np.arange(of) < count


def trial(high: int = 80, single: int = 70) -> Trial:
    """The first stage is right on the 60 images that it is surest of, the last one on the surest ``high``: each image
    of these that is escalated, the least sure first, once those are done on which neither is right, is one more."""
    confidence = 1 - np.arange(IMAGES) / IMAGES
    cascade = Cascade(confidence[:, None], np.stack([first(60), first(high)], axis=1), (LOW, HIGH))
    return Trial(cascade, first(single), HIGH, cascade)


def test_cost_at_equal_accuracy_is_that_of_the_images_that_have_to_be_escalated() -> None:
    found = cost_at_its_accuracy([trial(), trial(high=90)])
    escalated = (
        0.30,
        0.20,
    )  # of 40 that the first stage gets wrong the last 20, or 10, bring nothing; then 10 are needed
    each = [(LOW + share * HIGH) / HIGH for share in escalated]
    assert found.each == pytest.approx(each)
    assert found.mean == pytest.approx(sum(each) / 2)
    assert found.error == pytest.approx(abs(each[0] - each[1]) / 2)  # s / sqrt(2), s = difference / sqrt(2)
    assert found.low < each[1] < each[0] < found.high


def test_top1_at_its_cost_is_what_the_same_money_buys() -> None:
    found = top1_at_its_cost([trial(), trial(high=90, single=75)])  # 75 of 100 can be escalated
    assert found.each == pytest.approx((0.10, 0.15))


def test_costs_are_in_shares_of_the_single_scale_networks_whatever_the_unit() -> None:
    plain = trial()
    in_cents = replace(plain, multi=replace(plain.multi, costs=(100 * LOW, 100 * HIGH)), single_cost=100 * HIGH)
    cents, dollars = cost_at_its_accuracy([in_cents]), cost_at_its_accuracy([plain])
    assert (cents.mean, cents.low, cents.high) == pytest.approx((dollars.mean, dollars.low, dollars.high))


def test_accuracy_that_is_never_reached_costs_infinitely_much() -> None:
    found = cost_at_its_accuracy([trial(), trial(single=100)])
    assert math.isinf(found.mean)
    assert math.isinf(found.high)
    assert math.isnan(found.error)


def test_network_leads_over_itself_by_nothing_whatever_is_drawn() -> None:
    trials = [trial(), trial(high=90)]
    for found in (lead_over_naive(trials), lead_between(trials, trials), gain_difference(trials, trials)):
        assert found is not None
        assert (found.each, found.low, found.high) == ((0, 0), 0, 0)


def test_lead_over_a_cascade_that_is_wrong_ten_times_more_is_a_tenth() -> None:
    one = trial()
    right = one.multi.right & ~(np.arange(IMAGES) < 10)[:, None]  # images that both stages get right
    found = lead_over_naive([replace(one, naive=replace(one.multi, right=right))])
    assert found is not None
    assert found.mean == pytest.approx(0.10)
    assert 0 < found.low < 0.10 < found.high


def test_lead_needs_a_cascade_of_every_seed() -> None:
    assert lead_over_naive([trial(), replace(trial(), naive=None)]) is None


def test_interval_knows_of_the_seeds() -> None:
    found = top1([first(IMAGES), first(0)])  # photographs make no difference: every draw is all right, half or none
    assert (found.mean, found.error, found.low, found.high) == (0.5, 0.5, 0, 1)


def test_interval_of_one_seed_is_that_of_its_photographs() -> None:
    found = top1([first(800, of=1000)])
    assert math.isnan(found.error)
    half = 1.96 * math.sqrt(0.8 * 0.2 / 1000)
    assert (found.low, found.high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.004)


def test_photographs_are_the_same_for_both_sides() -> None:
    some, others = [trial(high=90)], [trial(high=90, single=69)]  # one photograph more, however easy the draw
    found = gain_difference(some, others)
    assert found.mean == pytest.approx(-0.01)
    assert found.high - found.low < 0.05 < top1([first(70)]).high - top1([first(70)]).low
