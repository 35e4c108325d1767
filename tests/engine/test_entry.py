"""An entry is answered once, whoever comes first."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref

import pytest

from service.engine.answer import Reason
from service.engine.entry import Entry
from service.errors import DeadlinePassed, DeviceFailed, LowfirstError


@pytest.fixture
def entry(loop: asyncio.AbstractEventLoop) -> Entry:
    return Entry(0.5, 1, 1, time.monotonic(), None, loop, loop.create_future())


def answer(entry: Entry) -> tuple[int, Reason]:
    return entry.loop.run_until_complete(entry.answered())


def test_first_answer_stands(entry: Entry) -> None:
    assert not entry.is_dead
    entry.resolve(0, "confident")
    entry.resolve(1, "escalated")
    entry.fail(DeviceFailed("too late"))
    entry.expire()
    assert entry.is_dead
    assert answer(entry) == (0, "confident")


def test_first_error_stands(entry: Entry) -> None:
    entry.fail(DeviceFailed("broken"))
    entry.resolve(1, "escalated")
    entry.fail(DeviceFailed("again"))
    with pytest.raises(DeviceFailed, match="broken"):
        answer(entry)


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
        answer(entry)


@pytest.mark.parametrize("latest", [(0, "deadline"), (0, "brownout"), (1, "confident"), (2, "escalated")])
def test_deadline_gives_the_latest_output_for_the_reason_it_has(entry: Entry, latest: tuple[int, Reason]) -> None:
    entry.latest = latest
    entry.expire()
    assert answer(entry) == latest


def test_raised_failure_keeps_nothing_alive(entry: Entry) -> None:
    entry.fail(DeviceFailed("broken"))
    gone = weakref.ref(entry.future)

    def fail() -> LowfirstError | None:
        try:
            answer(entry)
        except LowfirstError as error:
            return error
        return None

    gc.disable()
    try:
        assert isinstance(fail(), DeviceFailed)
        entry.future = entry.loop.create_future()
        assert gone() is None
    finally:
        gc.enable()
