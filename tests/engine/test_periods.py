"""What was done in the last minute and since the threshold was moved, on a clock moved by hand."""

from __future__ import annotations

import pytest

from service.engine.periods import Done, Periods
from tests.engine.test_recent import Clock


class Work:
    """Done of images that cost 10 each, half of which exit."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self) -> Done:
        return Done(0.0, self.images, self.images / 2, 10.0 * self.images, self.images, 0.001 * self.images)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def periods(work: Work, clock: Clock) -> Periods:
    return Periods(work, clock)


def run(periods: Periods, work: Work, clock: Clock, seconds: int, per_second: int, threshold: float = 0.5) -> None:
    for _ in range(seconds):
        clock.now += 1
        work.images += per_second
        periods.look(threshold)


def test_last_minute_forgets_what_is_older(periods: Periods, work: Work, clock: Clock) -> None:
    run(periods, work, clock, 30, 100)
    minute = periods.last_minute()
    assert (minute.seconds, minute.images, minute.exited, minute.mmacs) == (30, 3000, 1500, 30_000)
    assert minute.computed == 3000
    assert minute.compute_seconds == pytest.approx(3.0)
    run(periods, work, clock, 200, 7)
    minute = periods.last_minute()
    assert minute.images / minute.seconds == 7
    assert 59 <= minute.seconds <= 61


def test_time_since_a_change_begins_where_the_threshold_moved(periods: Periods, work: Work, clock: Clock) -> None:
    run(periods, work, clock, 100, 5)
    assert periods.since_change().images == 495  # from the first look on
    periods.look(0.7)
    assert periods.since_change() == Done()
    run(periods, work, clock, 100, 3, threshold=0.7)
    assert (periods.since_change().seconds, periods.since_change().images) == (100, 300)


def test_lately_is_the_shorter_of_both_unless_the_minute_has_too_few(
    periods: Periods, work: Work, clock: Clock
) -> None:
    run(periods, work, clock, 300, 2)
    assert periods.lately(least=100) == periods.last_minute()
    assert periods.lately(least=1000) == periods.since_change()
    periods.look(0.9)
    run(periods, work, clock, 10, 2, threshold=0.9)
    assert periods.lately(least=10) == periods.since_change()


def test_processes_add_up() -> None:
    one, other = Done(10, 100, 50, 1000, 90, 1.0), Done(12, 10, 5, 100, 10, 0.5)
    assert one.beside(other) == Done(12, 110, 55, 1100, 100, 1.5)
