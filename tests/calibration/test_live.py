"""The table of live traffic: counted as a stored one, bounded as one, and asked the same questions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.calibration.certify import THRESHOLDS, Calibration, count_table
from service.calibration.live import (
    BUDGET_IMAGES,
    MOST,
    WINDOW,
    LiveTable,
    Passed,
    Seen,
    check_follows,
    window,
)
from service.errors import InvalidOption
from service.state.base import Goal

MMACS = {2: (10.0, 40.0), 3: (5.0, 10.0, 40.0)}


def passed(drawn: list[Seen], threshold: float = 0.5, per_second: float = 10.0) -> Passed:
    first = [sum(seen.confidences[0] > each for seen in drawn) for each in THRESHOLDS]
    exits = sum(any(sure > threshold for sure in seen.confidences) for seen in drawn)
    return Passed(len(drawn), tuple(first), exits, per_second)


def images(seed: int, count: int, depth: int = 2, classes: int = 4) -> list[Seen]:
    random = np.random.default_rng(seed)
    confidences = random.choice([*THRESHOLDS[::9], 0.3333], (count, depth - 1))  # many lie exactly on a threshold
    answers = random.integers(0, classes, (count, depth))
    return [
        Seen(float(when), tuple(sure), tuple(said), 0.1)
        for when, (sure, said) in enumerate(zip(confidences.tolist(), answers.tolist(), strict=True))
    ]


def table(drawn: list[Seen], depth: int = 2) -> LiveTable:
    return LiveTable.of(drawn, passed(drawn), MMACS[depth])


@given(st.integers(0, 1000), st.integers(0, 200), st.sampled_from([2, 3]))
@settings(max_examples=40, deadline=None)
def test_table_is_a_stored_one_of_the_same_images(seed: int, count: int, depth: int) -> None:
    drawn = images(seed, count, depth)
    live = table(drawn, depth)
    rows = live.table.rows
    assert all(sum(row.ends) == live.images == count for row in rows)
    assert live.stands_for == pytest.approx(10 * count)
    for lower, higher in pairwise(rows):
        assert lower.exited >= higher.exited
        assert depth > 2 or lower.disagreements >= higher.disagreements
    assert (rows[0].ends[-1], rows[-1].exited, rows[-1].disagreements) == (
        sum(all(sure == 0 for sure in seen.confidences) for seen in drawn), 0, 0,
    )  # fmt: skip
    for row in rows[::10]:
        ends = [
            next((s for s, sure in enumerate(seen.confidences) if sure > row.threshold), depth - 1) for seen in drawn
        ]
        assert row.disagreements == sum(
            seen.answers[end] != seen.answers[-1] for seen, end in zip(drawn, ends, strict=True)
        )


@given(st.integers(0, 1000), st.floats(0.3, 0.99))
@settings(max_examples=40, deadline=None)
def test_an_agreement_is_kept_by_the_bound_at_the_lowest_threshold(seed: int, value: float) -> None:
    live = table(images(seed, 300))
    threshold = live.keeping(value)
    assert live.calibration.predict(threshold).agreement_at_least >= value
    below = [row for row in live.table.rows if row.threshold < threshold]
    assert not below or live.calibration.predict(below[-1].threshold).agreement_at_least < value


@pytest.mark.parametrize("depth", [2, 3])
@given(seed=st.integers(0, 1000), budget=st.floats(0, 60))
@settings(max_examples=40, deadline=None)
def test_a_budget_gives_the_highest_threshold_whose_images_cost_no_more(depth: int, seed: int, budget: float) -> None:
    live = table(images(seed, 200, depth), depth)
    costs = live.mean_costs(MMACS[depth])
    assert (np.diff(costs) >= -1e-9).all()  # a higher threshold costs no less
    threshold = live.within(budget, MMACS[depth])
    for row, cost in zip(live.table.rows, costs, strict=True):
        assert cost == pytest.approx(np.dot(row.ends, np.cumsum(MMACS[depth])) / 200)
        assert (cost <= budget) == (row.threshold <= threshold) or (threshold == 0 and cost > budget)


def test_escalations_drawn_as_exits_are_give_the_table_of_all_images() -> None:
    """Above 0.6 an image exits and is audited one time in ten, else it is seen; drawn alike, both weigh alike."""
    random = np.random.default_rng(7)
    everything = images(3, 8000)
    kept = random.random(len(everything)) < 0.1
    drawn = [seen for seen, is_kept in zip(everything, kept, strict=True) if is_kept]
    found, truth = table(drawn), table(everything)
    skewed = table([seen for seen, k in zip(everything, kept, strict=True) if k or seen.confidences[0] <= 0.6])
    for row, true in zip(found.table.rows, truth.table.rows, strict=True):
        error = 4 * np.sqrt(0.25 / found.images)
        assert abs(row.exited / found.images - true.exited / truth.images) < error
        assert abs(row.disagreements / found.images - true.disagreements / truth.images) < error
    assert abs(skewed.exit_rate(0.6) - truth.exit_rate(0.6)) > 0.1  # what no weights would give
    assert found.stands_for == pytest.approx(len(everything), rel=0.05)


@pytest.mark.parametrize(
    ("goal", "value", "expected"),
    [
        ("min_agreement", 0.97, WINDOW),
        ("min_agreement", 0.999, 2 * 2995),
        ("min_agreement", 0.9999, MOST),
        ("min_agreement", 1.0, WINDOW),
        ("max_mean_mmacs", 12.0, WINDOW),
    ],
)
def test_window_holds_twice_what_a_goal_takes(goal: Goal, value: float, expected: int) -> None:
    assert window(goal, value) == expected


def refused(goal: Goal, value: float, live: LiveTable, audits: float = 0.1) -> str:
    with pytest.raises(InvalidOption) as error:
        check_follows(goal, value, live, audits)
    return error.value.message


def test_too_few_audits_say_how_many_it_takes_and_how_long() -> None:
    drawn = images(0, 39)
    message = refused("min_agreement", 0.97, table(drawn))
    assert "min_agreement is 0.97" in message
    assert "99 sampled images are needed" in message
    assert "39 exist" in message
    assert "at the current rate of 1 per second, that is in 1 minutes" in message
    none = LiveTable.of([], Passed(0, (0,) * len(THRESHOLDS), 0, 0.0), MMACS[2])
    assert "0 exist; no new ones arrive at present" in refused("min_agreement", 0.97, none)
    few = LiveTable.of([], passed(drawn, per_second=2.0), MMACS[2])
    assert "at the current rate of 0.2 per second, that is in 8.25 minutes" in refused("min_agreement", 0.97, few)
    assert f"{BUDGET_IMAGES} images are needed, 39 exist" in refused("max_mean_mmacs", 30.0, few)


def test_what_live_traffic_never_tells_is_refused() -> None:
    live = table(images(0, 300))
    assert "it must be absent with threshold" in refused("threshold", 0.5, live)
    assert "no labels" in refused("max_accuracy_drop", 0.01, live)
    assert "LOWFIRST_AUDIT_PROBABILITY is 0" in refused("min_agreement", 0.9, live, audits=0.0)
    assert f"a live table holds {MOST}" in refused("min_agreement", 0.9999, live)
    alone = LiveTable.of([], Passed(0, (0,) * len(THRESHOLDS), 0, 0.0), (40.0,))
    assert "one stage" in refused("min_agreement", 0.9, alone)
    check_follows("min_agreement", 0.9, live, 0.1)
    check_follows("max_mean_mmacs", 30.0, live, 0.0)  # of two stages, all confidences are known


def test_counting_all_thresholds_at_once_gives_what_a_stored_table_has() -> None:
    drawn = images(1, 100, 3)
    confidence = np.array([seen.confidences for seen in drawn])
    stored = count_table(confidence, np.array([seen.answers for seen in drawn]), None, "", "")
    assert table(drawn, 3).table == stored
    assert Calibration(stored, MMACS[3]).predict(0.5) == table(drawn, 3).calibration.predict(0.5)
