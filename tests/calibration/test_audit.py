"""What audits say of a promise: kept, broken, or not told yet."""

from __future__ import annotations

import pytest

from service.calibration.audit import Audit, Budget
from service.calibration.certify import upper_bound


@pytest.mark.parametrize(
    ("images", "disagreements", "exit_rate", "promised", "kept"),
    [
        (1000, 4, 1.0, 0.99, True),  # the most that certify one per cent
        (1000, 5, 1.0, 0.99, None),
        (1000, 5, 0.5, 0.99, True),  # half of the images escalate, and so agree
        (1000, 15, 1.0, 0.99, None),
        (1000, 16, 1.0, 0.99, False),  # the fewest that, by the lower bound, are more than one per cent
        (1000, 16, 0.5, 0.99, None),
        (10, 0, 1.0, 0.99, None),
        (0, 0, 1.0, 0.99, None),
        (0, 0, None, 0.99, None),
        (0, 0, 0.0, 1.0, True),  # nothing exits
        (1000, 0, 1.0, None, None),  # nothing is promised
    ],
)
def test_promise_is_kept_broken_or_unknown(
    images: int, disagreements: int, exit_rate: float | None, promised: float | None, kept: bool | None
) -> None:
    assert Audit(images, disagreements, exit_rate, promised).promise_kept is kept


def test_disagreement_over_all_is_that_of_the_audited_times_the_exit_rate() -> None:
    audit = Audit(200, 3, 0.6, 0.9)
    assert audit.disagreement == 3 / 200
    assert audit.disagreement_at_most == upper_bound(3, 200)
    assert audit.overall_at_most == pytest.approx(0.6 * upper_bound(3, 200))


def test_without_audits_nothing_is_known() -> None:
    audit = Audit(0, 0, 0.6, 0.9)
    assert (audit.disagreement, audit.disagreement_at_most, audit.overall_at_most) == (None, None, None)


@pytest.mark.parametrize(
    ("mean", "images", "kept"),
    [
        (None, 0, None),
        (30.0, 1000, True),
        (29.0, 99, None),  # too few
        (30.5, 1000, None),  # as chance may have it
        (32.0, 1000, False),
        (47.4, 4096, False),  # by 58 %
        (50.0, 100, False),  # all at the most
    ],
)
def test_budget_is_kept_exceeded_or_not_told_yet(mean: float | None, images: int, kept: bool | None) -> None:
    assert Budget(30.0, (mean or 0.0) * images, images, 10.0, 50.0).kept is kept


@pytest.mark.parametrize(
    ("disagreements", "mean", "kept"),
    [(0, 29.0, True), (0, 40.0, False), (16, 29.0, False), (10, 29.0, True), (10, 30.5, None)],
)
def test_promise_of_a_budget_is_the_budget_and_the_agreement_that_was_certified_for_it(
    disagreements: int, mean: float, kept: bool | None
) -> None:
    budget = Budget(30.0, mean * 1000, 1000, 10.0, 50.0)
    assert Audit(1000, disagreements, 1.0, 0.99, budget).promise_kept is kept
