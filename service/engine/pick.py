"""Which batch runs next: a pure function of time and lanes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from service.engine import tuning

# Why a batch starts: it is full, nothing else waits, no more feature slots are free, or a larger one would come
# too late for its images.
Release = Literal["full", "drained", "slots", "deadline"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known about the device.

    Attributes:
        sizes: the largest useful batch at each stage.
        seconds: of a batch of a stage by its size, at the current speed.
        soonest: seconds of one image's first stage on an undisturbed device.
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
    """A lane as seen by ``pick``; times are absolute, infinite if there is none.

    Attributes:
        size: number of entries.
        oldest: arrival of the oldest one's request.
        since: when the entry that waits longest in this lane entered it.
        deadline: the nearest.
    """

    size: int
    oldest: float = math.inf
    since: float = math.inf
    deadline: float = math.inf


def pick(now: float, lanes: Sequence[Waiting], free_slots: int, plan: Plan, escalating: Sequence[float]) -> Pick | None:
    """The next batch, or None if none may start.

    The lane with the oldest image goes first. An escalated image is older than all that arrive after it, so it never
    starves; neither does a new one, because the number of older images is finite. Escalated images may be overtaken if
    a fuller batch pays, see ``_should_fill``, for a limited time, see ``_can_wait``. Greedy: an idle worker never
    waits. A batch of the first stage is at most as large as the number of free feature slots, since all of it may
    escalate. Slots are held by escalated entries and a few audits, which need none to run, so there is no deadlock.

    Args:
        escalating: recent share of each stage's images that escalate.
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
    """Number of images in the largest batch, of at most ``most``, that meets the deadline of each; at least 1.

    Args:
        deadlines: of all waiting images, in any order; those that no batch of that size can meet stay behind.
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
    """Whether the stage before should run before ``stage``, so that more images escalate into its batch.

    It should if the compute saved by one larger batch, for all waiting images, outweighs the delay of those that could
    run now.
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
    """Whether the images that could run at ``stage`` may be delayed by ``delay`` seconds.

    Not if one of them would miss its deadline, in a batch with all that may have escalated meanwhile; nor if one has
    waited long.
    """
    lane, before = lanes[stage], stage - 1
    more = escalating[before] * sizes[before]
    if now + delay + _in_batches(stage, lane.size + more, plan) > lane.deadline:
        return False
    return now + delay - lane.since <= tuning.OVERTAKING * plan.seconds(before, plan.sizes[before])


def _in_batches(stage: int, images: float, plan: Plan) -> float:
    """Seconds of ``images`` in one batch, or in full ones and a rest."""
    full = min(images, plan.sizes[stage])
    return plan.seconds(stage, full) + plan.seconds(stage, images - full)
