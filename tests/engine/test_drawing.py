"""Which images the live table counts: exits and escalations with one probability, where what was asked decides."""

from __future__ import annotations

import asyncio
import random

import pytest

from service.engine.decide import Policy
from service.engine.drawing import NOTHING_EXITS, is_drawn, is_governed, probability, seen
from service.engine.entry import Entry
from tests.engine.serving import Case, outcomes, serving, until


def entry(
    loop: asyncio.AbstractEventLoop, threshold: float = 0.5, compared_with: float = 0.5, is_fixed: bool = False
) -> Entry:
    made = Entry(threshold, 1, 5, 0.0, None, loop, loop.create_future(), is_fixed)
    made.compared_with = compared_with
    return made


def test_probability_is_the_audits_and_more_while_nothing_exits() -> None:
    policy = Policy(1, audit_probability=0.01)
    assert probability(0.5, policy) == 0.01
    assert probability(1.0, policy) == NOTHING_EXITS
    assert probability(1.0, Policy(1, audit_probability=0.5)) == 0.5
    assert probability(1.0, Policy(1)) == 0  # without audits nothing is drawn


def test_requests_of_their_own_threshold_and_overload_are_left_out(loop: asyncio.AbstractEventLoop) -> None:
    assert is_governed(entry(loop))
    assert not is_governed(entry(loop, is_fixed=True))
    assert not is_governed(entry(loop, compared_with=0.2))


def test_escalations_are_drawn_as_often_as_audits(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeded = random.Random(0)
    monkeypatch.setattr("service.engine.drawing.random.random", seeded.random)
    policy = Policy(1, audit_probability=0.2)
    drawn = [is_drawn(entry(loop), policy) for _ in range(2000)]
    assert sum(drawn) / 2000 == pytest.approx(0.2, abs=0.03)
    assert seen(entry(loop), policy, 0.0).probability == 0.2


@pytest.mark.anyio
async def test_every_image_is_drawn_once_with_what_all_stages_say(cascade: Case) -> None:
    """All are audited: those that exit at any stage, and those that reach the last."""
    async with serving(cascade, threshold=cascade.middle, audit_probability=1.0, feature_slots=256) as server:
        answers = await outcomes([server.start(image.body) for image in cascade.images])
        await server.start(cascade.images[0].body, threshold=0.0)  # of its own: left out
        await until(lambda: len(server.engine.recent.drawn(1000)) == len(cascade.images))
        drawn = server.engine.recent.drawn(1000)
    assert len(answers) == len(cascade.images)
    expected = sorted(
        (tuple(int(output.argmax()) for output in image.outputs), round(image.confidences[0], 3))
        for image in cascade.images
    )
    assert sorted((seen.answers, round(seen.confidences[0], 3)) for seen in drawn) == expected
    assert {len(seen.confidences) for seen in drawn} == {cascade.depth - 1}
    assert {seen.probability for seen in drawn} == {1.0}
