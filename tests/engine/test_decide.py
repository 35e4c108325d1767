"""What becomes of an image once a stage has answered, case by case."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.decide import Decision, Drop, Escalate, Exit, Policy, decide
from service.engine.entry import Entry

THRESHOLD = 0.7


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def entry_of(loop: asyncio.AbstractEventLoop, **fields: object) -> Entry:
    values = {"threshold": THRESHOLD, "deadline": None, "is_fixed": False} | fields
    return Entry(config_version=1, top_k=1, arrival=0.0, loop=loop, future=loop.create_future(), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", [0, 1])
@pytest.mark.parametrize(
    ("confidence", "lowered", "is_fixed", "deadline", "decision"),
    [
        (0.8, math.inf, False, None, Exit("confident", THRESHOLD)),
        (0.7, math.inf, False, None, Escalate(THRESHOLD)),  # strictly above
        (0.6, math.inf, False, None, Escalate(THRESHOLD)),
        # overload
        (0.6, 0.5, False, None, Exit("brownout", 0.5)),
        (0.8, 0.5, False, None, Exit("confident", 0.5)),  # it would exit anyway
        (0.5, 0.5, False, None, Escalate(0.5)),
        (0.6, 0.5, True, None, Escalate(THRESHOLD)),  # the request named its threshold
        (0.6, 0.9, False, None, Escalate(THRESHOLD)),  # overload never raises it
        # deadlines: the next answer comes at 10
        (0.6, math.inf, False, 9.9, Exit("deadline", THRESHOLD)),
        (0.6, math.inf, False, 10.0, Escalate(THRESHOLD)),
        (0.8, math.inf, False, 9.9, Exit("confident", THRESHOLD)),  # not degraded by it
        (0.6, 0.5, False, 9.9, Exit("brownout", 0.5)),
        (0.4, 0.5, False, 9.9, Exit("deadline", 0.5)),
    ],
)
def test_before_the_last_stage(
    loop: asyncio.AbstractEventLoop, stage: int, confidence: float, lowered: float, is_fixed: bool,
    deadline: float | None, decision: Decision,
) -> None:  # fmt: skip
    entry = entry_of(loop, is_fixed=is_fixed, deadline=deadline)
    assert decide(confidence, stage, entry, Policy(2, lowered), 10.0) == decision


@pytest.mark.parametrize(("last", "reason"), [(0, "only"), (1, "escalated"), (2, "escalated")])
@pytest.mark.parametrize("confidence", [0.1, 0.9])
def test_answer_of_the_last_stage_is_final(
    loop: asyncio.AbstractEventLoop, last: int, reason: str, confidence: float
) -> None:
    decision = decide(confidence, last, entry_of(loop, deadline=0.0), Policy(last, lowered=0.0), 10.0)
    assert decision == Exit(reason, THRESHOLD)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_image_that_nobody_waits_for_is_dropped(loop: asyncio.AbstractEventLoop, stage: int) -> None:
    entry = entry_of(loop)
    entry.future.cancel()
    assert decide(0.9, stage, entry, Policy(2), 10.0) == Drop()


@given(confidence=st.floats(0, 1), threshold=st.floats(0, 1), lowered=st.floats(0, 1) | st.just(math.inf))
def test_image_exits_exactly_if_it_is_surer_than_the_threshold_in_force(
    loop: asyncio.AbstractEventLoop, confidence: float, threshold: float, lowered: float
) -> None:
    decision = decide(confidence, 0, entry_of(loop, threshold=threshold), Policy(1, lowered), 0.0)
    assert isinstance(decision, Exit) == (confidence > min(threshold, lowered))
    assert not isinstance(decision, Drop)
    assert decision.threshold == min(threshold, lowered)
