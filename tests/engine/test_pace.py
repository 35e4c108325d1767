"""What images take of the device now, from what batches took when it was measured."""

from __future__ import annotations

import pytest

from service.engine import tuning
from service.engine.pace import Pace
from service.inference.latency import LatencyTable

TABLE = LatencyTable(({1: 1.0, 8: 4.0}, {1: 3.0, 2: 4.0, 4: 6.0}, {1: 10.0, 2: 12.0}))


def pace_of(**fields: float) -> Pace:
    return Pace(TABLE, (8, 4, 2), 2, **fields)


def test_image_takes_its_part_of_a_full_batch_and_of_the_workers() -> None:
    assert [pace_of().image(stage) for stage in range(3)] == [4 / 8 / 2, 6 / 4 / 2, 12 / 2 / 2]
    assert pace_of(slowdown=10.0).image(1) == 10 * 6 / 4 / 2
    assert pace_of(slowdown=10.0, decoding=0.2).image(0) == pytest.approx((10 * 4 / 8 + 0.2) / 2)


def test_next_answer_takes_as_long_as_what_waits_before_it() -> None:
    pace = pace_of(slowdown=10.0, decoding=7.0)
    assert pace.next_answer(1, (0, 0)) == 10 * 3
    assert pace.next_answer(1, (0, 1)) == pace.image(1) + 10 * 4
    assert pace.next_answer(1, (0, 6)) == 6 * pace.image(1) + 10 * 6


@pytest.mark.parametrize(("waiting", "overtaking"), [(1, 1), (8, 8), (99, 8)])
def test_next_answer_may_be_overtaken_by_a_batch_of_the_stage_before(waiting: int, overtaking: int) -> None:
    pace = pace_of(slowdown=10.0, decoding=7.0)
    assert pace.next_answer(1, (waiting, 0)) == pace.predicted(0, overtaking) + 10 * 3


def test_image_takes_of_later_stages_as_often_as_it_gets_there() -> None:
    pace = pace_of()
    first, second, third = (pace.image(stage) for stage in range(3))
    assert pace.from_stage(0, [0.5, 0.2, 0.0]) == pytest.approx(first + 0.5 * second + 0.1 * third)
    assert pace.from_stage(1, [0.5, 0.2, 0.0]) == pytest.approx(second + 0.2 * third)
    assert pace.from_stage(2, [0.5, 0.2, 0.0]) == third


def test_batch_is_predicted_as_the_device_runs_now_with_its_decoding() -> None:
    pace = pace_of(slowdown=10.0, decoding=0.5)
    assert (pace.predicted(0, 8), pace.predicted(1, 4)) == (10 * 4 + 8 * 0.5, 10 * 6)
    assert pace.soonest() == 1


def test_averages_follow_the_newest_batches() -> None:
    pace = pace_of()
    pace.ran(1, 4, 12.0)
    assert pace.slowdown == pytest.approx(1 + tuning.NEWEST_BATCH)
    pace.decoded(4, 2.0)
    assert pace.decoding == pytest.approx(tuning.NEWEST_BATCH * 0.5)
    for _ in range(100):
        pace.ran(1, 4, 6.0)
    assert pace.slowdown == pytest.approx(1, abs=1e-3)
