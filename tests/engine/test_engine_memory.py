"""Few slots slow down and stop nothing; what images held is let go, whatever became of them."""

from __future__ import annotations

import asyncio

import pytest

from tests.engine.serving import (
    WHITE,
    Case,
    assert_answers,
    entries_alive,
    leave,
    outcomes,
    refusing_white_at,
    serving,
    until,
    without_collector,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("slots", [1, 3])
async def test_few_feature_slots_slow_down_and_stop_nothing(case: Case, slots: int) -> None:
    async with serving(case, 1.0, workers=3, feature_slots=slots) as server:
        answers = await outcomes([server.start(image.body) for image in case.images])
        for answer, image in zip(answers, case.images, strict=True):
            assert_answers(answer, case, image, 1.0)


async def test_every_slot_comes_back_whatever_became_of_its_image(case: Case) -> None:
    async with serving(case, case.middle, feature_slots=3, workers=2, audit_probability=0.5) as server:
        server.predictor.before = refusing_white_at(case.last)
        bodies = [WHITE if i % 5 == 0 else image.body for i, image in enumerate(case.images)]
        tasks = [server.start(body, deadline=0.05 if i % 7 == 0 else None) for i, body in enumerate(bodies)]
        for task in tasks[3::11]:
            task.cancel()
        await outcomes(tasks)
        await server.all_slots_free()


async def test_images_are_let_go_at_once_answered_or_not(case: Case) -> None:
    async with serving(case, case.middle, workers=2) as server:
        server.predictor.before = refusing_white_at(case.last)
        bodies = [*(image.body for image in case.images), b"no image", WHITE]
        async with without_collector():
            tasks = [server.start(body, deadline=1000.0) for body in bodies]
            await asyncio.wait(tasks)
            assert sum(task.exception() is not None for task in tasks) >= 1
            tasks.clear()
            await until(lambda: not entries_alive())


async def test_features_are_counted_from_escalation_to_the_answer(cascade: Case) -> None:
    async with serving(cascade, 1.0) as server:
        assert server.engine.feature_bytes == 0
        gate = server.gate(1)
        task = server.start(cascade.images[0].body)
        await gate.arrival()
        assert server.engine.feature_bytes > 0
        gate.open()
        await task
        await until(lambda: server.engine.feature_bytes == 0)


async def test_features_of_images_that_exit_are_not_kept(case: Case) -> None:
    async with serving(case, 0.0) as server:
        await outcomes([server.start(image.body) for image in case.images])
        await until(lambda: server.engine.feature_bytes == 0)


async def test_features_of_an_image_whose_client_left_are_let_go(cascade: Case) -> None:
    async with serving(cascade, 1.0) as server:
        gate = server.gate(0)
        escalated, older = await server.escalate_behind(gate, cascade.images[0].body)
        assert server.engine.feature_bytes > 0
        await leave(escalated)
        gate.open()
        await older
        await until(lambda: server.engine.feature_bytes == 0)
