"""What is counted of two models, and when that ends a trial."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy.stats import binomtest

from service.engine.comparison import Comparison, Reply, pooled

ANT, BEE = Reply("ant", True, 1.0, 0.002), Reply("bee", False, 4.0, 0.006)


def counted(agreeing: int, differing: int, errors: int = 0) -> Comparison:
    counts = Comparison()
    for _ in range(agreeing):
        counts.add(ANT, ANT)
    for _ in range(differing):
        counts.add(ANT, BEE)
    counts.tried.errors = errors
    return counts


def test_agreement_exits_cost_and_times_are_of_the_images_that_both_answered() -> None:
    counts = counted(6, 2)
    assert (counts.images, counts.disagreements, counts.agreement) == (8, 2, 0.75)
    assert (counts.served.share(counts.served.exited), counts.tried.share(counts.tried.exited)) == (1.0, 0.75)
    assert counts.tried.share(counts.tried.mmacs) == (6 * 1 + 2 * 4) / 8
    assert counts.tried.latency_ms == pytest.approx({"p50": 2.0, "p95": 6.0, "p99": 6.0}, rel=0.025)


def test_what_the_cache_answered_counts_but_tells_no_time() -> None:
    counts = Comparison()
    counts.add(Reply("ant", True, 1.0, None), ANT)
    assert (counts.images, counts.agreement) == (1, 1.0)
    assert counts.served.latency_ms["p50"] is None
    assert counts.tried.latency_ms["p50"] == pytest.approx(2.0, rel=0.025)


def test_percentiles_are_the_nearest_ranks_to_within_a_fortieth() -> None:
    seconds = np.random.default_rng(0).exponential(0.01, 3000)
    counts = Comparison()
    for each in seconds:
        counts.add(ANT, dataclasses.replace(ANT, seconds=each))
    for q in (50, 95, 99):
        expected = 1e3 * np.percentile(seconds, q, method="inverted_cdf")
        assert counts.tried.latency_ms[f"p{q}"] == pytest.approx(expected, rel=0.025)


@pytest.mark.parametrize(("agreeing", "differing"), [(0, 1), (1, 0), (90, 10), (0, 7), (300, 0)])
def test_bounds_are_those_of_clopper_and_pearson(agreeing: int, differing: int) -> None:
    counts = counted(agreeing, differing)
    images = agreeing + differing
    known = [
        binomtest(differing, images, alternative=side).proportion_ci(0.95, "exact") for side in ("greater", "less")
    ]
    assert counts.disagreement_at_least == pytest.approx(known[0].low)
    assert counts.agreement_at_least == pytest.approx(1 - known[1].high)


@pytest.mark.parametrize(
    ("counts", "most", "outcome"),
    [
        (counted(0, 0), 0.0, None),
        (counted(100, 0), 0.0, None),
        (counted(1000, 1), 0.0, "disagreement"),
        (counted(97, 3), 0.02, None),  # 3 %, but at least 0.8 % alone is sure
        (counted(970, 30), 0.02, "disagreement"),  # at least 2.15 %
        (counted(100, 0, errors=10), 0.02, "errors"),
        (counted(100, 0, errors=10), 0.1, None),
        (counted(0, 0, errors=1), 0.02, "errors"),
    ],
)
def test_the_guard_ends_a_trial_by_the_lower_bound(counts: Comparison, most: float, outcome: str | None) -> None:
    assert counts.verdict(most) == outcome


def test_counts_of_several_processes_add_up() -> None:
    parts = [counted(6, 2), counted(3, 0, errors=1), counted(0, 0)]
    told = [json.loads(json.dumps(part.as_json())) for part in parts]
    both = pooled(told)
    assert (both.images, both.disagreements, both.tried.errors, both.tried.images) == (11, 2, 1, 11)
    assert sum(both.served.times.values()) == 11
    assert both.tried.latency_ms["p99"] == parts[0].tried.latency_ms["p99"]
    assert pooled([]).agreement is None
