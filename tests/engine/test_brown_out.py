"""Overload lowers the threshold at once, by no more than it must, and gives it back slowly. No clock runs here."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine import tuning
from service.engine.brown_out import BrownOut, Load

TARGET = 0.5
LOW, HIGH = 0.004, 0.016  # seconds an image
THRESHOLD, FLOOR = 0.8, 0.1
EVENLY = [i / 200 for i in range(200)]  # confidences


def load_of(undecided: int, escalated: int) -> Load:
    return Load(undecided, LOW, HIGH, escalated * HIGH)


IDLE = load_of(0, 0)
SWAMPED = load_of(10_000, 0)
SECONDS = st.floats(1e-5, 0.1)

loads = st.builds(Load, st.integers(0, 300), SECONDS, SECONDS | st.just(0.0), st.floats(0, 2))
confidences = st.lists(st.floats(0, 1) | st.sampled_from([0.25, 0.5, 0.75]), max_size=60)


def steer(load: Load, sure: list[float] = EVENLY, threshold: float = THRESHOLD, floor: float | None = FLOOR) -> float:
    """The first decision of a brown-out that knows nothing yet."""
    return BrownOut(TARGET).steer(0.0, load, sure, threshold, floor)


@pytest.mark.parametrize("allowed", [0.1, 0.3, 2 * TARGET])
def test_deadlines_that_leave_less_room_than_the_target_take_its_place(allowed: float) -> None:
    load = load_of(20, 0)
    steered = BrownOut(TARGET).steer(0.0, load, EVENLY, THRESHOLD, FLOOR, allowed)
    assert steered == BrownOut(min(TARGET, allowed)).steer(0.0, load, EVENLY, THRESHOLD, FLOOR)


def sustainable(load: Load) -> float:
    """The share of undecided images that may escalate: what is left of the target, by what their later stages take."""
    left = tuning.QUEUE_SHARE * TARGET - load.undecided * load.first_seconds - load.escalated_seconds
    wanted = load.undecided * load.later_seconds
    return min(1.0, max(0.0, left) / wanted) if wanted else float(left > 0)


def escalating(threshold: float, sure: list[float]) -> float:
    """The share of images that do not exit at a threshold."""
    return sum(confidence <= threshold for confidence in sure) / len(sure)


@given(load=loads, sure=confidences, threshold=st.floats(0, 1))
def test_threshold_without_a_floor_never_moves(load: Load, sure: list[float], threshold: float) -> None:
    assert steer(load, sure, threshold, None) == threshold


def test_threshold_stays_while_there_is_little_to_do() -> None:
    assert steer(IDLE) == THRESHOLD
    assert steer(load_of(3, 2)) == THRESHOLD


def test_threshold_stays_while_nothing_is_known_of_confidences() -> None:
    assert steer(SWAMPED, []) == THRESHOLD


@pytest.mark.parametrize("load", [SWAMPED, load_of(1, 10_000), load_of(0, 10_000)])
def test_overload_beyond_all_help_brings_the_floor(load: Load) -> None:
    assert steer(load) == FLOOR


@given(load=loads, sure=confidences, threshold=st.floats(0, 1), depth=st.floats(0, 1))
def test_threshold_is_between_the_floor_and_what_was_asked(
    load: Load, sure: list[float], threshold: float, depth: float
) -> None:
    floor = depth * threshold
    assert floor <= steer(load, sure, threshold, floor) <= threshold


@given(load=loads, sure=confidences.filter(len))
def test_no_more_images_escalate_than_can_be_done_in_time(load: Load, sure: list[float]) -> None:
    lowered = steer(load, sure, floor=0.0)
    if 0 < lowered < THRESHOLD:
        assert escalating(lowered, sure) <= sustainable(load) + 1e-9


def test_images_that_are_all_alike_do_not_all_escalate() -> None:
    load = load_of(50, 0)
    assert 0 < sustainable(load) < 1
    assert escalating(steer(load, [0.5] * 100), [0.5] * 100) == 0


@given(undecided=st.integers(1, 300), escalated=st.integers(0, 20))
def test_threshold_falls_no_further_than_it_must(undecided: int, escalated: int) -> None:
    load = load_of(undecided, escalated)
    lowered = steer(load, floor=0.0)
    asked = escalating(THRESHOLD, EVENLY)
    assert escalating(lowered, EVENLY) >= min(asked, sustainable(load)) - 2 / len(EVENLY)


def test_more_to_do_never_raises_the_threshold() -> None:
    for loads in (
        [load_of(undecided, 0) for undecided in range(100)],
        [load_of(10, escalated) for escalated in range(40)],
    ):
        lowered = [steer(load) for load in loads]
        assert lowered == sorted(lowered, reverse=True)
        assert (lowered[0], lowered[-1]) == (THRESHOLD, FLOOR)


def test_threshold_falls_at_once_and_returns_slowly() -> None:
    brown_out = BrownOut(TARGET)
    moments = [i * tuning.RETURN_SECONDS / 20 for i in range(20)]
    assert brown_out.steer(-1.0, IDLE, EVENLY, 1.0, 0.0) == 1.0
    assert brown_out.steer(0.0, SWAMPED, EVENLY, 1.0, 0.0) == 0.0
    returning = [brown_out.steer(now, IDLE, EVENLY, 1.0, 0.0) for now in moments]
    assert returning == sorted(returning)
    for now, lowered in zip(moments[1:], returning[1:], strict=True):
        assert escalating(lowered, EVENLY) == pytest.approx(now / tuning.RETURN_SECONDS, abs=0.02)
    assert brown_out.steer(tuning.RETURN_SECONDS + 0.01, IDLE, EVENLY, 1.0, 0.0) == 1.0


def test_return_takes_as_long_however_often_it_is_looked_at() -> None:
    seldom, often = BrownOut(TARGET), BrownOut(TARGET)
    for brown_out in (seldom, often):
        brown_out.steer(0.0, SWAMPED, EVENLY, 1.0, 0.0)
    for i in range(1, 300):
        often.steer(i * tuning.RETURN_SECONDS / 600, IDLE, EVENLY, 1.0, 0.0)
    now = tuning.RETURN_SECONDS / 2
    ours, theirs = (brown_out.steer(now, IDLE, EVENLY, 1.0, 0.0) for brown_out in (seldom, often))
    assert ours == pytest.approx(theirs, abs=0.01)


def test_second_burst_during_the_return_falls_at_once() -> None:
    brown_out = BrownOut(TARGET)
    brown_out.steer(0.0, SWAMPED, EVENLY, THRESHOLD, FLOOR)
    assert brown_out.steer(tuning.RETURN_SECONDS / 2, IDLE, EVENLY, THRESHOLD, FLOOR) > FLOOR
    assert brown_out.steer(tuning.RETURN_SECONDS / 2, SWAMPED, EVENLY, THRESHOLD, FLOOR) == FLOOR


# a closed loop


@dataclass
class Loop:
    """A device on a virtual clock, one image at a time and the oldest first, steered every ``PERIOD``.

    Attributes:
        rates: arrivals a second and for how long, one after the other.
        waits: seconds from each image's arrival to its answer, by its arrival.
        steered: the threshold at each period.
        escalated: whether each image escalated, by its arrival.
    """

    rates: list[tuple[float, float]]
    seed: int = 0
    waits: dict[float, float] = field(default_factory=dict)
    steered: dict[float, float] = field(default_factory=dict)
    escalated: dict[float, bool] = field(default_factory=dict)

    PERIOD = 0.05
    CAPACITY = 1 / (LOW + escalating(THRESHOLD, EVENLY) * HIGH)  # images a second at the threshold asked for

    def run(self) -> None:
        chance = random.Random(self.seed)
        arrivals, end = self._arrivals(chance)
        brown_out = BrownOut(TARGET)
        undecided: deque[float] = deque()
        escalated: deque[float] = deque()
        seen: deque[float] = deque(EVENLY, maxlen=1024)
        threshold, free, now = THRESHOLD, 0.0, 0.0
        while now < end or undecided or escalated:
            load = load_of(len(undecided), len(escalated))
            threshold = self.steered[now] = brown_out.steer(now, load, list(seen), THRESHOLD, FLOOR)
            now += self.PERIOD
            while arrivals and arrivals[0] < now:
                undecided.append(arrivals.popleft())
            while free < now and (undecided or escalated):
                if escalated:
                    arrival = escalated.popleft()
                    free = max(free, arrival) + HIGH
                    self.waits[arrival] = free - arrival
                    continue
                arrival = undecided.popleft()
                free = max(free, arrival) + LOW
                seen.append(chance.random())
                self.escalated[arrival] = seen[-1] <= threshold
                if self.escalated[arrival]:
                    escalated.append(arrival)
                else:
                    self.waits[arrival] = free - arrival

    def _arrivals(self, chance: random.Random) -> tuple[deque[float], float]:
        arrivals, now, end = [], 0.0, 0.0
        for rate, seconds in self.rates:
            end += seconds
            while (now := now + chance.expovariate(rate)) < end:
                arrivals.append(now)
            now = end
        return deque(arrivals), end

    def share(self, since: float, until: float) -> float:
        """Of the images that arrived then, the share that escalated."""
        chosen = [escalated for arrival, escalated in self.escalated.items() if since <= arrival < until]
        return sum(chosen) / len(chosen)


seeds = pytest.mark.parametrize("seed", range(3))


@seeds
def test_load_that_can_be_borne_lowers_nothing(seed: int) -> None:
    loop = Loop([(0.7 * Loop.CAPACITY, 60)], seed)
    loop.run()
    assert set(loop.steered.values()) == {THRESHOLD}


@seeds
@pytest.mark.parametrize("overload", [1.5, 2.5])
def test_overload_keeps_waits_within_the_target_and_the_device_busy_with_what_counts(
    overload: float, seed: int
) -> None:
    rate = overload * Loop.CAPACITY
    loop = Loop([(0.5 * Loop.CAPACITY, 10), (rate, 60)], seed)
    loop.run()
    longest = sorted(loop.waits.values(), reverse=True)
    assert longest[0] <= 1.25 * TARGET  # by chance, of arrivals and of confidences
    assert longest[len(longest) // 1000] <= TARGET
    bearable = (1 / rate - LOW) / HIGH
    assert 0 < bearable < escalating(THRESHOLD, EVENLY)
    assert loop.share(15, 70) == pytest.approx(bearable, rel=0.1)


@seeds
def test_threshold_returns_after_the_burst(seed: int) -> None:
    loop = Loop([(0.5 * Loop.CAPACITY, 5), (1.5 * Loop.CAPACITY, 20), (0.5 * Loop.CAPACITY, 20)], seed)
    loop.run()
    lowered = [now for now, threshold in loop.steered.items() if threshold < THRESHOLD]
    assert min(lowered) > 5
    assert 25 <= max(lowered) <= 25 + TARGET + tuning.RETURN_SECONDS
    assert loop.share(25 + TARGET + tuning.RETURN_SECONDS, 45) == pytest.approx(escalating(THRESHOLD, EVENLY), abs=0.05)


def test_overload_beyond_all_help_keeps_the_floor() -> None:
    loop = Loop([(2 / LOW, 3)])
    loop.run()
    assert min(loop.steered.values()) == FLOOR
    assert loop.share(1, 3) == pytest.approx(escalating(FLOOR, EVENLY), abs=0.05)
