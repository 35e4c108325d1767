from __future__ import annotations

import pytest

from loadtest.ratios import Cost, Spread, ceiling, difference, ratio


def test_a_spread_is_the_median_with_least_and_most() -> None:
    spread = Spread.of([3, 1, 2])
    assert spread == Spread(median=2, least=1, most=3)
    assert str(spread) == "2.00 (1.00 to 3.00)"


@pytest.mark.parametrize(("value", "shown"), [(0.123, "0.12"), (12.34, "12.3"), (1234.5, "1234")])
def test_three_digits_are_shown(value: float, shown: str) -> None:
    assert str(Spread.of([value])) == shown


def test_ratios_are_taken_within_rounds() -> None:
    # The machine was half as fast in the second round, for both.
    assert ratio([100, 50], [50, 25]) == Spread(2, 2, 2)


def test_differences_are_taken_within_rounds() -> None:
    assert difference([3, 9, 5], [1, 8, 2]) == Spread(2, 1, 3)


def test_a_contender_that_failed_is_compared_by_the_rounds_it_had() -> None:
    assert ratio([100, 60], [50]) == Spread(2, 2, 2)


def test_the_ceiling_is_a_single_scale_images_cost_over_a_cascades() -> None:
    # (1 + 10) / (1 + 2 + 0.35 * 10)
    assert ceiling(Cost(1, 0, 10), Cost(1, 2, 10), escalated=0.35) == pytest.approx(11 / 6.5)
