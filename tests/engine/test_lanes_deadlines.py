"""No pass is begun that would come too late: such images get the answer they have, or an error, and wait no longer."""

from __future__ import annotations

import asyncio

import pytest

from service.engine.entry import Entry
from service.engine.lanes import Lanes
from service.engine.pick import Plan
from service.errors import DeadlinePassed
from tests.engine.lanes_of import TABLE, arrivals, entry_of, go_on, taken

FIRST, SECOND = TABLE.seconds(0, 1), TABLE.seconds(1, 1)


@pytest.fixture
def late() -> list[int]:
    """The stages that images came too late for."""
    return []


@pytest.fixture
def lanes(late: list[int]) -> Lanes:
    return Lanes(Plan((8, 8), TABLE.seconds), slots=9, on_late=late.append)


def settle(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_until_complete(asyncio.sleep(0))


def failure(entry: Entry) -> BaseException | None:
    return entry.failure if entry.is_dead else None


def test_image_that_its_first_stage_cannot_answer_in_time_fails(
    loop: asyncio.AbstractEventLoop, lanes: Lanes, late: list[int]
) -> None:
    hopeless, possible = entry_of(loop, 1.0, 10 + FIRST - 0.1), entry_of(loop, 2.0, 10 + FIRST)
    lanes.push([hopeless, possible])
    assert arrivals(lanes.take(10.0)) == [2.0]
    settle(loop)
    assert isinstance(failure(hopeless), DeadlinePassed)
    assert (late, lanes.depths, lanes.free_slots) == ([0], (0, 0), 8)


def test_batch_is_no_larger_than_its_deadlines_allow(
    loop: asyncio.AbstractEventLoop, lanes: Lanes, late: list[int]
) -> None:
    for arrival, deadline in enumerate((2.5, None, 3.5, 3.5)):  # a batch of two takes 3 seconds, and of three 4
        lanes.push([entry_of(loop, float(arrival), deadline)])
    batch = taken(lanes.take(0.0))
    assert (arrivals(batch), batch.reason) == ([1.0, 2.0], "deadline")
    assert arrivals(lanes.take(0.0)) == [0.0]  # another worker's
    assert arrivals(lanes.take(0.5)) == [3.0]
    assert (late, lanes.depths) == ([], (0, 0))


def test_escalated_image_that_cannot_be_in_time_has_the_answer_that_is_there(
    loop: asyncio.AbstractEventLoop, lanes: Lanes, late: list[int]
) -> None:
    entries = [entry_of(loop, 1.0, 10 + SECOND - 0.1), entry_of(loop, 2.0, 10 + SECOND)]
    lanes.push(entries)
    batch = taken(lanes.take(0.0))
    for entry in entries:
        entry.latest = 0, "deadline"
    go_on(lanes, batch, entries)
    assert arrivals(lanes.take(10.0)) == [2.0]
    settle(loop)
    assert entries[0].future.result() == (0, "deadline")
    assert (late, lanes.free_slots) == ([1], 8)


def test_where_all_are_late_the_oldest_is_tried_if_the_device_might_be_as_fast_as_measured(
    loop: asyncio.AbstractEventLoop, late: list[int]
) -> None:
    lanes = Lanes(Plan((8,), lambda stage, size: 1e9, lambda: FIRST), slots=9, on_late=late.append)
    lanes.push([entry_of(loop, arrival, deadline) for arrival, deadline in ((1.0, 10.0), (2.0, 20.0), (3.0, 20.0))])
    assert arrivals(lanes.take(10.0)) == [2.0]
    assert (late, lanes.take(10.0)) == ([0, 0], None)
