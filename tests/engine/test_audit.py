"""What audits say of a promise: kept, broken, or not told yet."""

from __future__ import annotations

import pytest

from service.engine.audit import Audit
from service.inference.calibration import upper_bound


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
