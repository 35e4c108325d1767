"""What is queued, in seconds, and what deadlines leave room for."""

from __future__ import annotations

import asyncio
import math

import pytest

from service.engine.backlog import Backlog
from service.engine.entry import Entry
from service.engine.lanes import Lanes
from service.engine.pace import Pace
from tests.engine.lanes_of import TABLE, entry_of, timed


def backlog_of(entries: list[Entry], slowdown: float = 1.0) -> Backlog:
    lanes, pace = Lanes(timed(4, 4, 4), 9), Pace(TABLE, (4, 4, 4), slowdown=slowdown)
    lanes.push(entries)
    return Backlog(entries, lanes, pace, names=("low", "high"))


def test_image_that_finds_nothing_waits_for_an_undisturbed_pass_alone() -> None:
    assert backlog_of([], slowdown=1e9).first_answer() == TABLE.seconds(0, 1)


@pytest.mark.parametrize("waiting", [1, 3, 9])
def test_image_waits_for_all_before_it_and_for_the_batch_it_is_in(
    loop: asyncio.AbstractEventLoop, waiting: int
) -> None:
    backlog = backlog_of([entry_of(loop, 0.0) for _ in range(waiting)], slowdown=2.0)
    assert backlog.seconds() == pytest.approx(2 * waiting * TABLE.seconds(0, 4) / 4)
    assert backlog.first_answer() == pytest.approx(backlog.seconds() + 2 * TABLE.seconds(0, min(waiting + 1, 4)))


@pytest.mark.parametrize(
    ("deadlines", "room"),
    [
        ([], math.inf),
        ([None, None, 20.0], math.inf),  # one in a hurry is not everybody
        ([None, 20.0, 30.0], 30.0 - TABLE.seconds(0, 4)),
        ([1.0], 0.0),
    ],
)
def test_deadlines_of_most_images_leave_room_for_so_much(
    loop: asyncio.AbstractEventLoop, deadlines: list[float | None], room: float
) -> None:
    entries = [entry_of(loop, 5.0, None if deadline is None else 5 + deadline) for deadline in deadlines]
    assert backlog_of(entries).foresight() == room
