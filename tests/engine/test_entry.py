"""An entry is answered once, whoever comes first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from service.engine.answer import Reason
from service.engine.entry import Entry
from service.errors import DeadlinePassed, DeviceFailed


@pytest.fixture
def entry() -> Iterator[Entry]:
    loop = asyncio.new_event_loop()
    yield Entry(0.5, 1, 1, time.monotonic(), None, loop, loop.create_future())
    loop.close()


def test_first_answer_stands(entry: Entry) -> None:
    assert not entry.is_dead
    entry.resolve(0, "confident")
    entry.resolve(1, "escalated")
    entry.fail(DeviceFailed("too late"))
    entry.expire()
    assert entry.is_dead
    assert entry.future.result() == (0, "confident")


def test_first_error_stands(entry: Entry) -> None:
    entry.fail(DeviceFailed("broken"))
    entry.resolve(1, "escalated")
    assert isinstance(entry.failure, DeviceFailed)


def test_entry_whose_client_left_takes_no_answer(entry: Entry) -> None:
    entry.future.cancel()
    entry.resolve(0, "confident")
    entry.fail(DeviceFailed("too late"))
    entry.expire()
    assert entry.future.cancelled()


def test_deadline_before_any_answer_is_an_error_that_tells_the_wait(entry: Entry) -> None:
    entry.arrival -= 0.25
    entry.expire()
    with pytest.raises(DeadlinePassed, match=r"after 2\d\d ms|after [3-9]\d\d ms|after \d{4,} ms"):
        entry.loop.run_until_complete(entry.answered())


def test_deadline_of_an_unsure_image_gives_its_latest_answer(entry: Entry) -> None:
    entry.latest = (0, "deadline")
    entry.expire()
    assert entry.future.result() == (0, "deadline")


@pytest.mark.parametrize("reason", ["confident", "brownout"])
def test_deadline_after_the_decision_leaves_its_reason(entry: Entry, reason: Reason) -> None:
    entry.latest = (0, reason)
    entry.expire()
    assert entry.future.result() == (0, reason)


def test_deadline_between_later_stages_gives_the_latest_answer(entry: Entry) -> None:
    entry.latest = (1, "deadline")
    entry.expire()
    assert entry.future.result() == (1, "deadline")
