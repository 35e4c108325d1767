"""Overload lowers the threshold to its floor, and says so; audits tell how often that would be noticed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.engine.answer import Answer
from tests.engine.serving import WHITE, Case, Gate, Server, assert_answers, outcomes, refusing_white_at, serving, until

pytestmark = pytest.mark.anyio


async def swamp(server: Server, body: bytes, **ask: Any) -> tuple[Gate, asyncio.Task[Answer]]:
    """An image before the first gate, with the target so short that this one is too many; its gate is still shut."""
    await server.classify(body)  # so that a confidence is known
    gate = server.gate(0)
    task = server.start(body, **ask)
    await gate.arrival()
    steered = server.engine._steering._brown_out._at
    await until(
        lambda: server.engine._steering._brown_out._at != steered and server.engine._steering._brown_out._share == 0
    )
    return gate, task


@pytest.mark.parametrize(
    ("threshold", "floor", "ask", "in_force", "ends_first", "reason", "compared_with"),
    [
        (1.0, 0.1, {}, 0.1, True, "brownout", 0.1),
        (1.0, None, {}, 1.0, False, "escalated", 1.0),
        (1.0, 0.1, {"threshold": 1.0}, 0.1, False, "escalated", 1.0),  # the request named it
        (0.2, 0.1, {}, 0.1, True, "confident", 0.1),  # it would exit anyway
    ],
)
async def test_overload_lowers_the_threshold_to_its_floor_and_says_so(
    cascade: Case, threshold: float, floor: float | None, ask: dict[str, float], in_force: float, ends_first: bool,
    reason: str, compared_with: float,
) -> None:  # fmt: skip
    async with serving(cascade, threshold, floor=floor, target_latency_seconds=1e-9) as server:
        gate, task = await swamp(server, cascade.images[0].body, **ask)
        assert (server.engine.effective_threshold, server.engine.asked.threshold) == (in_force, threshold)
        gate.open()
        answer = await task
        assert (answer.stage, answer.reason) == (0 if ends_first else cascade.last, reason)
        assert (answer.threshold, answer.degraded) == (compared_with, reason == "brownout")
        assert answer.mmacs == sum(cascade.mmacs[: answer.stage + 1])
        assert server.answered(answer.stage, reason) >= 1


async def test_threshold_returns_when_the_overload_is_over(two: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.tuning.RETURN_SECONDS", 0.1)
    async with serving(two, 1.0, floor=0.1, target_latency_seconds=1e-9) as server:
        gate, task = await swamp(server, two.images[0].body)
        gate.open()
        await task
        await until(lambda: server.engine.effective_threshold == 1.0)


async def test_single_stage_answers_as_ever_under_overload(cases: dict[int, Case]) -> None:
    async with serving(cases[1], 1.0, floor=0.1, target_latency_seconds=1e-9) as server:
        gate, task = await swamp(server, cases[1].images[0].body)
        gate.open()
        assert ((await task).reason, (await task).degraded) == ("only", False)


# audits


def audits(server: Server) -> float:
    return server.count("audits_total", model="tiny/1")


async def test_image_that_exits_is_audited_after_its_client_has_the_answer(cascade: Case) -> None:
    async with serving(cascade, 0.0, audit_probability=1.0) as server:
        gate = server.gate(cascade.last)
        answer = await server.classify(cascade.images[0].body)
        assert (answer.stage, answer.mmacs) == (0, cascade.mmacs[0])
        await gate.arrival()
        assert audits(server) == 0
        gate.open()
        await until(lambda: audits(server) == 1)


async def test_audits_tell_how_often_the_last_stage_disagrees(cascade: Case) -> None:
    ends = [image.end(cascade.middle) for image in cascade.images]
    exited = [(end, image) for end, image in zip(ends, cascade.images, strict=True) if end < cascade.last]
    disagree = sum(int(image.outputs[end].argmax() != image.outputs[-1].argmax()) for end, image in exited)
    async with serving(cascade, cascade.middle, audit_probability=1.0) as server:
        for done, (_, image) in enumerate(exited, 1):
            await server.classify(image.body)
            await until(lambda done=done: audits(server) == done)  # type: ignore[misc]
        assert server.count("audit_disagreements_total", model="tiny/1") == disagree > 0
        assert server.engine.recent.disagreement_at(cascade.middle) == (disagree, len(exited))
        computed = sum(sum(round(mmacs * 1e6) for mmacs in cascade.mmacs[end + 1 :]) for end, _ in exited)
        assert server.count("multiply_adds_total", model="tiny/1", stage="audit") == computed
        await server.all_slots_free()


async def test_nothing_is_audited_that_was_not_drawn_or_did_not_exit(case: Case) -> None:
    for threshold, probability in ((0.0, 0.0), (1.0, 1.0)):
        async with serving(case, threshold, audit_probability=probability) as server:
            await outcomes([server.start(image.body) for image in case.images[:8]])
            await server.all_slots_free()
            assert audits(server) == 0


async def test_audits_that_there_is_no_room_for_are_counted(two: Case) -> None:
    async with serving(two, 0.0, audit_probability=1.0, feature_slots=4) as server:  # no eighth of four
        await outcomes([server.start(image.body) for image in two.images])
        await until(lambda: server.count("audits_skipped_total") == len(two.images))
        assert audits(server) == 0
        await server.all_slots_free()


@pytest.mark.parametrize("workers", [1, 2])
async def test_close_gives_audits_up_and_answers_all(cascade: Case, workers: int) -> None:
    async with serving(cascade, 0.0, audit_probability=1.0, workers=workers, feature_slots=64) as server:
        gate = server.gate(0)
        tasks = [server.start(image.body) for image in cascade.images]
        await gate.arrival()
        closing = asyncio.create_task(server.engine.close())
        await until(lambda: server.engine.why_not_ready() is not None)
        gate.open()
        assert all(isinstance(answer, Answer) for answer in await outcomes(tasks))
        await asyncio.wait_for(closing, 30)
        assert server.engine._lanes.free_slots == 64


async def test_image_that_cannot_be_audited_harms_nobody(cascade: Case) -> None:
    async with serving(cascade, 0.0, audit_probability=1.0) as server:
        server.predictor.before = refusing_white_at(cascade.last)
        assert isinstance(await server.classify(WHITE), Answer)
        await server.all_slots_free()
        assert_answers(await server.classify(cascade.images[0].body), cascade, cascade.images[0], 0.0)
        assert server.engine.why_not_ready() is None
