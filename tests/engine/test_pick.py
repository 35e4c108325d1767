"""Which batch runs next: the oldest image's, unless it may wait for a fuller batch and that pays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine import tuning
from service.engine.pick import Pick, Plan, Waiting, most_in_time, pick
from service.inference.latency import LatencyTable
from tests.engine.lanes_of import TABLE, timed, untimed

NONE = Waiting(0)
EMPTY = (NONE,) * 3


def pick_untimed(*lanes: Waiting, free: int = 9, most: int = 8) -> Pick | None:
    return pick(0.0, lanes, free, untimed(most, len(lanes)), [0.5] * len(lanes))


# the oldest first


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_nothing_is_picked_when_nothing_may_start(depth: int) -> None:
    assert pick_untimed(*EMPTY[:depth]) is None
    assert pick_untimed(Waiting(5, 0.0), *EMPTY[1:depth], free=0) is None


@pytest.mark.parametrize("oldest", range(3))
def test_lane_with_the_oldest_image_goes_first(oldest: int) -> None:
    lanes = [Waiting(3, 1.0 if stage == oldest else 2.0 + stage) for stage in range(3)]
    assert pick_untimed(*lanes) == Pick(oldest, 3, "drained")


def test_later_stage_goes_first_on_a_tie() -> None:
    assert pick_untimed(Waiting(8, 4.0), Waiting(1, 4.0), Waiting(2, 4.0)) == Pick(2, 2, "drained")


@pytest.mark.parametrize("stage", range(3))
def test_full_batch_says_so_even_when_it_empties_its_lane(stage: int) -> None:
    for waiting in (8, 30):
        lanes = [*EMPTY[:stage], Waiting(waiting, 0.0), *EMPTY[stage + 1 :]]
        assert pick_untimed(*lanes) == Pick(stage, 8, "full")


@pytest.mark.parametrize("stage", range(3))
def test_each_stage_has_a_largest_batch_of_its_own(stage: int) -> None:
    lanes = [*EMPTY[:stage], Waiting(30, 0.0), *EMPTY[stage + 1 :]]
    sizes = (16, 4, 2)
    assert pick(0.0, lanes, 99, Plan(sizes), [0.5] * 3) == Pick(stage, sizes[stage], "full")


def test_batch_of_the_first_stage_alone_needs_free_slots() -> None:
    assert pick_untimed(Waiting(5, 0.0), NONE, free=3) == Pick(0, 3, "slots")
    assert pick_untimed(Waiting(5, 0.0), Waiting(2, 1.0), free=0) == Pick(1, 2, "drained")


# overtaking


def overtakes(
    now: float = 100.0, escalated: int = 1, since: float = 100.0, deadline: float = math.inf,
    free: int = 64, escalating: float = 0.5, start: float = 8.0,
) -> bool:  # fmt: skip
    """Whether 8 new images go before ``escalated`` older ones. ``start``: of a batch of the second stage, seconds."""
    table = LatencyTable((TABLE.stages[0], {size: start + 4.0 * size for size in TABLE.stages[1]}))
    lanes = (Waiting(8, 50.0), Waiting(escalated, 10.0, since, deadline))
    picked = pick(now, lanes, free, Plan((8, 8), table.seconds), [escalating, 0.0])
    assert picked is not None
    return picked.stage == 0


def test_escalated_image_waits_for_others_where_their_batch_saves_more_than_its_wait() -> None:
    # 8 new images take 9 seconds and escalate 4: together with the one, 28 seconds instead of 12 + 24.
    assert overtakes()


def test_escalated_images_that_are_many_do_not_wait() -> None:
    start = 2.0  # which one larger batch saves for all that wait, while each escalated one waits 9 seconds longer
    assert overtakes(escalated=2, start=start)
    assert not overtakes(escalated=3, start=start)


def test_nothing_is_waited_for_where_that_gains_nothing() -> None:
    assert not overtakes(escalated=7)  # 7 and 4 take as long as 8 and 3
    assert not overtakes(escalated=8)
    assert not overtakes(escalated=20)
    assert not overtakes(escalating=0.0)
    assert not overtakes(free=0)
    proportional = Plan((8, 8), lambda stage, size: size)
    assert pick(100.0, (Waiting(8, 50.0), Waiting(1, 10.0, 100.0)), 64, proportional, [0.5, 0.0]) == Pick(
        1, 1, "drained"
    )


def test_image_that_would_miss_its_deadline_does_not_wait() -> None:
    in_time = 100.0 + TABLE.seconds(0, 8) + TABLE.seconds(1, 1 + 4)
    assert overtakes(deadline=in_time + 1e-6)
    assert not overtakes(deadline=in_time - 1e-6)


def test_escalated_image_is_overtaken_for_a_few_batches_and_no_longer() -> None:
    last = 100.0 + (tuning.OVERTAKING - 1) * TABLE.seconds(0, 8)  # a batch of the first stage ends just in time
    assert overtakes(now=last - 1e-6, since=100.0)
    assert not overtakes(now=last + 1e-6, since=100.0)


def picked_of_three(deadline: float = math.inf, since: float = 100.0) -> int:
    """One image at the last stage and one at the second, which may wait for others; 32 new ones take 33 seconds."""
    lanes = (Waiting(32, 50.0), Waiting(1, 40.0, 100.0), Waiting(1, 10.0, since, deadline))
    picked = pick(100.0, lanes, 64, timed(32, 8, 8), [0.2, 0.9, 0.0])
    assert picked is not None
    return picked.stage


def test_a_stage_is_filled_from_the_one_before_which_is_filled_from_the_one_before_that() -> None:
    assert picked_of_three() == 0


@pytest.mark.parametrize(("stage", "delay"), [(1, TABLE.seconds(1, 1)), (0, TABLE.seconds(0, 32))])
def test_image_is_passed_over_by_no_batch_that_it_has_no_time_for(stage: int, delay: float) -> None:
    in_time = 100.0 + delay + TABLE.seconds(2, 1 + 0.9)
    assert picked_of_three(deadline=in_time + 1e-6) == stage
    assert picked_of_three(deadline=in_time - 1e-6) == stage + 1
    longest = 100.0 + delay - tuning.OVERTAKING * TABLE.seconds(1, 8)
    assert picked_of_three(since=longest + 1e-6) == stage
    assert picked_of_three(since=longest - 1e-6) == stage + 1


# whatever the lanes

waits = st.builds(
    Waiting,
    st.integers(1, 20),
    st.integers(0, 5).map(float),
    st.floats(0, 100),
    st.floats(0, 200) | st.just(math.inf),
)
sizes = st.integers(1, 8)
PICKS = st.integers(1, 3).flatmap(
    lambda depth: st.tuples(
        st.floats(50, 100),
        st.tuples(*[waits | st.just(NONE)] * depth),
        st.integers(0, 20),
        st.tuples(*[sizes] * depth).map(lambda each: timed(*each)) | sizes.map(lambda size: untimed(size, depth)),
        st.tuples(*[st.floats(0, 1)] * depth),
    )
)
picks = given(given_=PICKS)
unhurried = settings(deadline=None)
Given = tuple[float, tuple[Waiting, ...], int, Plan, Sequence[float]]


@unhurried
@picks
def test_device_never_idles_while_something_may_start(given_: Given) -> None:
    _, lanes, free, _, _ = given_
    may_start = any(lane.size for lane in lanes[1:]) or (lanes[0].size > 0 and free > 0)
    assert (pick(*given_) is not None) == may_start


@unhurried
@picks
def test_batch_is_as_large_as_lane_slots_and_limit_allow_and_says_what_limited_it(given_: Given) -> None:
    _, lanes, free, plan, _ = given_
    picked = pick(*given_)
    if picked is not None:
        limited_by = {"full": plan.sizes[picked.stage], "drained": lanes[picked.stage].size}
        if not picked.stage:
            limited_by["slots"] = free
        assert picked.size == min(limited_by.values()) == limited_by[picked.reason] > 0
        assert (picked.reason == "full") == (picked.size == plan.sizes[picked.stage])


@unhurried
@picks
def test_younger_image_goes_first_only_for_want_of_slots_or_for_a_while_to_fill_a_batch(given_: Given) -> None:
    now, lanes, free, plan, _ = given_
    picked = pick(*given_)
    oldest = min(lane.oldest for lane in lanes)
    if picked is None or lanes[picked.stage].oldest <= oldest:
        return
    passed_over = [stage for stage, lane in enumerate(lanes) if stage > picked.stage and lane.oldest == oldest]
    if not passed_over:
        assert free == 0
        return
    end = now + plan.seconds(picked.stage, picked.size)
    for stage in range(picked.stage + 1, min(passed_over) + 1):
        lane = lanes[stage]
        assert lane.size < plan.sizes[stage]
        assert end + plan.seconds(stage, lane.size) <= lane.deadline
        assert end <= lane.since + tuning.OVERTAKING * plan.seconds(stage - 1, plan.sizes[stage - 1])


@pytest.mark.parametrize(
    ("deadlines", "size"),
    [
        ([9.0, 9.0, 9.0, 9.0], 4),
        ([1.0, 9.0, 9.0, 9.0], 3),
        ([1.0, 2.0, 3.0, 4.0], 2),  # of three, one would be late
        ([1.0, 1.0, 1.0, 9.0], 1),
        ([0.5], 1),
        ([math.inf] * 9, 4),
    ],
)
def test_most_images_in_time_make_a_batch(deadlines: list[float], size: int) -> None:
    most = min(4, len(deadlines))
    assert most_in_time(10.0, [10 + deadline for deadline in deadlines], most, lambda images: float(images)) == size
