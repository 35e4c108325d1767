"""A device that fails: nobody waits for it, nobody gets what it made up, and it serves again once it works."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from service.engine import tuning
from service.engine.answer import Answer
from service.errors import DeviceFailed, Draining
from service.inference.latency import LatencyTable
from tests.engine.serving import (
    TIMEOUT,
    WHITE,
    Before,
    Case,
    Gate,
    assert_answers,
    in_time,
    nothing,
    one_after_another,
    outcomes,
    profile_of,
    refuse_white,
    serving,
    threads_since,
    until,
)

pytestmark = pytest.mark.anyio


class Death(BaseException):
    """Nothing that a worker survives."""


def die(stage: int, images: Tensor) -> None:
    raise Death(stage, len(images))


def fail(stage: int, images: Tensor) -> None:
    raise RuntimeError(f"no stage {stage} for {len(images)}")


def failing_at(stage: int) -> Before:
    return lambda now, images: fail(now, images) if now == stage else None


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("decode_threads", [0, 1])
async def test_nobody_waits_for_a_dead_worker(two: Case, workers: int, decode_threads: int) -> None:
    async with serving(
        two, workers=workers, feature_slots=1, decode_threads=decode_threads, max_batch_size=1
    ) as server:
        gate = Gate(0)
        server.predictor.before = one_after_another(gate, die)
        tasks = [server.start(image.body) for image in two.images[: 3 * tuning.DECODED_AHEAD]]
        await gate.arrival()
        gate.open()
        errors = await outcomes(tasks)
        assert all(isinstance(error, DeviceFailed) for error in errors)
        assert len(set(map(id, errors))) == len(tasks)  # errors are edited: each has its own
        assert "the device failed (" in (server.engine.why_not_ready() or "")
        with pytest.raises(Draining, match="the device failed"):
            await server.classify(two.images[0].body)


@pytest.mark.parametrize("broken", [die, fail])
async def test_device_that_works_again_is_ready_again(case: Case, broken: Before) -> None:
    async with serving(case, 1.0, workers=2, decode_threads=1) as server:
        server.predictor.before = broken
        answered = await outcomes([server.start(image.body) for image in case.images[:10]])
        assert all(isinstance(answer, DeviceFailed | Draining) for answer in answered)
        assert any(isinstance(answer, DeviceFailed) for answer in answered)
        await until(lambda: "the device failed (" in (server.engine.why_not_ready() or ""))
        server.predictor.before = nothing
        await server.ready()
        assert_answers(await server.classify(case.images[0].body), case, case.images[0], 1.0)
        await server.all_slots_free()


async def test_every_image_of_a_failed_batch_gets_an_error_of_its_own(case: Case) -> None:
    async with serving(case, 1.0) as server:
        gate = Gate(0)
        server.predictor.before = one_after_another(gate, failing_at(case.last))
        tasks = await server.behind(gate, [image.body for image in case.images[:5]])
        gate.open()
        errors = await outcomes(tasks)
        assert all(isinstance(error, DeviceFailed) for error in errors)
        assert len(set(map(id, errors))) == 5


async def test_worker_that_fails_leaves_the_other_serving(two: Case) -> None:
    before = set(threading.enumerate())
    async with serving(two, 1.0, workers=2) as server:
        first_life = threads_since(before)
        failing: list[threading.Thread] = []

        def fail_in_one(stage: int, images: Tensor) -> None:
            """In the worker that comes first, and in those that replace it."""
            failing[:] = failing or [threading.current_thread()]
            if threading.current_thread() not in first_life.difference(failing):
                raise RuntimeError(f"one of two, at stage {stage} with {len(images)}")

        server.predictor.before = fail_in_one
        with pytest.raises(DeviceFailed):
            await server.classify(two.images[0].body)
        await until(lambda: server.engine.why_not_ready() is not None)
        for image in two.images[1:5]:
            assert_answers(await server.classify(image.body), two, image, 1.0)
        assert "one of two" in (server.engine.why_not_ready() or "")
        server.predictor.before = nothing
        await server.ready()
        assert_answers(await server.classify(two.images[0].body), two, two.images[0], 1.0)


async def test_death_of_one_worker_leaves_nobody_waiting(two: Case) -> None:
    async with serving(two, 1.0, workers=2) as server:
        deaths = iter(range(1))
        server.predictor.before = lambda stage, images: die(stage, images) if next(deaths, None) is not None else None
        with pytest.raises(DeviceFailed):
            await server.classify(two.images[0].body)
        await server.all_slots_free()


async def test_image_that_no_stage_can_run_does_not_stop_the_server(case: Case) -> None:
    async with serving(case, 1.0) as server:
        server.predictor.before = refuse_white
        for _ in range(3):
            with pytest.raises(DeviceFailed):
                await server.classify(WHITE)
            assert server.engine.why_not_ready() is None
        assert_answers(await server.classify(case.images[0].body), case, case.images[0], 1.0)


async def test_probe_that_dies_leaves_nobody_waiting(two: Case) -> None:
    """The batch raises what a worker would survive; finding out whether anything runs at all does not."""
    async with serving(two, 1.0) as server:
        runs = iter((fail, die))
        server.predictor.before = lambda stage, images: next(runs, nothing)(stage, images)
        with pytest.raises(DeviceFailed):
            await server.classify(two.images[0].body)
        await server.all_slots_free()
        await server.ready()


# numbers that are none


def spoiling(stage: int, value: float, spoilt: Callable[[Tensor], bool]) -> Callable[[int, Tensor], Tensor]:
    def spoil(now: int, logits: Tensor) -> Tensor:
        return torch.full_like(logits, value) if now == stage and spoilt(logits) else logits

    return spoil


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
async def test_device_whose_numbers_are_not_finite_answers_nobody(case: Case, value: float) -> None:
    async with serving(case, 1.0) as server:
        server.predictor.after = spoiling(case.last, value, lambda logits: True)
        with pytest.raises(DeviceFailed):
            await server.classify(case.images[0].body)
        await until(lambda: "not finite" in (server.engine.why_not_ready() or ""))
        assert server.engine.recent.summary().images == 0
        server.predictor.after = lambda stage, logits: logits
        await server.ready()
        assert_answers(await server.classify(case.images[0].body), case, case.images[0], 1.0)
        await server.all_slots_free()


async def test_image_whose_numbers_are_not_finite_fails_alone(case: Case) -> None:
    async with serving(case, 1.0) as server:
        white: set[int] = set()  # stages whose next logits are of a batch with the white image

        def note(stage: int, images: Tensor) -> None:
            white.discard(stage)
            if (images == 255).flatten(1).all(1).any():
                white.add(stage)

        gate = Gate(0)
        server.predictor.before = one_after_another(gate, note)
        server.predictor.after = lambda stage, logits: logits * torch.nan if stage in white else logits
        images = case.images
        tasks = await server.behind(gate, [images[0].body, images[1].body, WHITE, images[2].body])
        gate.open()
        first, good, spoilt, fine = await outcomes(tasks)
        assert isinstance(spoilt, DeviceFailed)
        assert "not finite" in str(spoilt)
        for answer, image in ((first, images[0]), (good, images[1]), (fine, images[2])):
            assert_answers(answer, case, image, 1.0)
        assert server.engine.why_not_ready() is None


# while it closes


@pytest.mark.parametrize("closes_first", [False, True])
async def test_close_does_not_wait_for_a_device_that_fails(two: Case, closes_first: bool) -> None:
    async with serving(two, 1.0, max_batch_size=1, decode_threads=2) as server:
        gate = Gate(0)
        server.predictor.before = one_after_another(gate, fail)
        tasks = [server.start(image.body) for image in two.images[: 3 * tuning.DECODED_AHEAD]]
        await gate.arrival()
        await until(
            lambda: sum(server.engine.backlog.depths().values()) >= tuning.DECODED_AHEAD
        )  # decoders wait for room
        closing = asyncio.create_task(server.engine.close()) if closes_first else None
        await asyncio.sleep(0)
        gate.open()
        assert all(isinstance(error, DeviceFailed) for error in await outcomes(tasks))
        await in_time(server.engine.close())
        if closing is not None:
            await asyncio.wait_for(closing, TIMEOUT)


async def test_images_of_a_closing_server_are_answered_though_its_last_worker_fails(cascade: Case) -> None:
    one_by_one = LatencyTable((profile_of(1).stages[0], *({1: 1.0, 32: 32.0},) * cascade.last))
    before = set(threading.enumerate())
    async with serving(cascade, 1.0, workers=2, profile=one_by_one) as server:
        first, second = server.gate(0), Gate(0)
        tasks = []
        for image in cascade.images[:2]:
            tasks.append(server.start(image.body))
            await first.arrival()  # in a worker of its own
        tasks += [server.start(image.body) for image in cascade.images[2:6]]
        await server.waiting(0, 4)
        closing = asyncio.create_task(server.engine.close())
        await until(lambda: server.engine._lanes._closed)
        server.predictor.before = second
        first.open()
        await second.arrival()  # the four, in one worker
        await until(lambda: len(threads_since(before)) == 1)  # the other one has left
        server.predictor.before = one_after_another(second, failing_at(1))
        second.open()
        answered = await outcomes(tasks)
        await asyncio.wait_for(closing, TIMEOUT)
        assert all(isinstance(answer, Answer) for answer in answered[:2])
        assert all(isinstance(answer, DeviceFailed) for answer in answered[2:])


async def test_death_while_closing_does_not_hold_it_up(two: Case) -> None:
    async with serving(two, workers=3, feature_slots=1) as server:
        gate = Gate(0)
        server.predictor.before = one_after_another(gate, die)
        tasks = await server.behind(gate, [image.body for image in two.images[:3]])
        closing = asyncio.create_task(server.engine.close())
        await until(lambda: server.engine._lanes._closed)
        gate.open()
        await asyncio.wait_for(closing, TIMEOUT)
        assert all(isinstance(error, DeviceFailed) for error in await outcomes(tasks))
