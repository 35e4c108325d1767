"""Which batch runs next: a pure function of time and lanes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from service.engine import tuning

# Why a batch was released: it is full, nothing else waits, no more feature slots are free, or a larger one would come
# too late for its images.
Release = Literal["full", "drained", "slots", "deadline"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of the device.

    Attributes:
        sizes: the largest batch worth running at each stage.
        seconds: of a batch of a stage by its size, as the device runs now.
        soonest: seconds of one image's first stage where nothing disturbs the device.
    """

    sizes: tuple[int, ...]
    seconds: Callable[[int, float], float] = lambda stage, size: 0.0
    soonest: Callable[[], float] = lambda: 0.0


@dataclass(frozen=True, slots=True)
class Pick:
    """The next batch: ``size`` oldest entries of a lane."""

    stage: int
    size: int
    reason: Release


@dataclass(frozen=True, slots=True)
class Waiting:
    """A lane as ``pick`` sees it; times are absolute, infinite where there is none.

    Attributes:
        size: entries.
        oldest: when the oldest one's request arrived.
        since: when the one that waits longest in this lane came into it.
        deadline: the nearest.
    """

    size: int
    oldest: float = math.inf
    since: float = math.inf
    deadline: float = math.inf


def pick(now: float, lanes: Sequence[Waiting], free_slots: int, plan: Plan, escalating: Sequence[float]) -> Pick | None:
    """The next batch, or None when none may start.

    The lane whose oldest image arrived first goes first, so an escalated image, always older than what arrives
    behind it, never starves, and neither does a new one: everything older than it is finite. Escalated images may
    be overtaken where a fuller batch pays, see ``_should_fill``, for a bounded time, see ``_can_wait``. Greedy: an
    idle worker never waits. A batch of the first stage starts only as large as the free feature slots, since all of
    it may escalate; slots are held by escalated entries and a few audits, which need none to run: no deadlock.

    Args:
        escalating: share of each stage's images that escalate, lately.
    """
    sizes = [min(lane.size, most) for lane, most in zip(lanes, plan.sizes, strict=True)]
    sizes[0] = min(sizes[0], free_slots)
    ready = [stage for stage, size in enumerate(sizes) if size]
    if not ready:
        return None
    oldest = stage = min(ready, key=lambda each: (lanes[each].oldest, -each))
    while stage and _should_fill(stage, lanes, sizes, plan, escalating):
        delay = plan.seconds(stage - 1, sizes[stage - 1])
        if not all(_can_wait(now, each, delay, lanes, sizes, plan, escalating) for each in range(stage, oldest + 1)):
            break
        stage -= 1
    if sizes[stage] == plan.sizes[stage]:
        return Pick(stage, sizes[stage], "full")
    return Pick(stage, sizes[stage], "drained" if sizes[stage] == lanes[stage].size else "slots")


def most_in_time(now: float, deadlines: Sequence[float], most: int, seconds: Callable[[int], float]) -> int:
    """How many images the largest batch has, of at most ``most``, that is done before the deadline of each; or 1.

    Args:
        deadlines: of all that wait, in any order; those that cannot be met in a batch of that size stay behind.
        seconds: of a batch by its size.
    """
    last_first = sorted(deadlines, reverse=True)
    for size in range(most, 1, -1):
        if last_first[size - 1] >= now + seconds(size):
            return size
    return 1


def _should_fill(
    stage: int, lanes: Sequence[Waiting], sizes: Sequence[int], plan: Plan, escalating: Sequence[float]
) -> bool:
    """Whether the stage before should run before ``stage`` does, to escalate more to its batch.

    It should if the compute that one larger batch saves, for everybody who waits, is worth more than the delay
    of those that could run now.
    """
    lane, before = lanes[stage], stage - 1
    if lane.size >= plan.sizes[stage] or not sizes[before]:
        return False
    more = escalating[before] * sizes[before]
    together = _in_batches(stage, lane.size + more, plan)
    saved = plan.seconds(stage, lane.size) + plan.seconds(stage, more) - together
    return saved * (lane.size + lanes[before].size) > plan.seconds(before, sizes[before]) * lane.size


def _can_wait(
    now: float,
    stage: int,
    delay: float,
    lanes: Sequence[Waiting],
    sizes: Sequence[int],
    plan: Plan,
    escalating: Sequence[float],
) -> bool:
    """Whether those that could run at ``stage`` may be overtaken for ``delay`` seconds.

    Not if one of them would miss its deadline, in a batch with all that may have escalated meanwhile; nor if one has
    waited long.
    """
    lane, before = lanes[stage], stage - 1
    more = escalating[before] * sizes[before]
    if now + delay + _in_batches(stage, lane.size + more, plan) > lane.deadline:
        return False
    return now + delay - lane.since <= tuning.OVERTAKING * plan.seconds(before, plan.sizes[before])


def _in_batches(stage: int, images: float, plan: Plan) -> float:
    """Seconds of a batch of ``images``, or of a full one and the rest."""
    full = min(images, plan.sizes[stage])
    return plan.seconds(stage, full) + plan.seconds(stage, images - full)
