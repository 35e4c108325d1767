"""An engine starts, stops, and leaves neither threads nor memory behind."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref

import pytest
from prometheus_client import CollectorRegistry
from torch import Tensor

from service.engine.answer import Answer, Ask
from service.engine.engine import Engine
from service.engine.limits import Limits
from service.errors import DeviceFailed, Draining, LowfirstError
from service.inference.latency import LatencyTable
from service.metrics import Metrics
from service.state.memory import MemoryConfigStore, MemoryResultCache
from tests.engine.serving import (
    WHITE,
    Case,
    Watched,
    assert_answers,
    in_time,
    load,
    outcomes,
    profile_of,
    refuse_white,
    serving,
    start_config,
    threads_since,
    until,
    without_collector,
)

pytestmark = pytest.mark.anyio


async def test_engine_starts_with_the_times_it_is_given(case: Case) -> None:
    profile = LatencyTable(({1: 1.0, 8: 3.0}, {2: 4.0}, {1: 5.0})[: case.depth])
    async with serving(case, profile=profile) as server:
        assert server.engine.latency_table == profile
        assert server.engine.why_not_ready() is None


async def test_engine_measures_the_times_it_is_not_given(case: Case) -> None:
    async with serving(case, measured=True, max_batch_size=1) as server:
        table = server.engine.latency_table
        assert [list(times) for times in table.stages] == [[1]] * case.depth


@pytest.mark.parametrize("fails", [1, 1000])
@pytest.mark.parametrize("at", [0, -1])
async def test_engine_that_cannot_warm_up_says_why_and_leaves_no_thread(two: Case, at: int, fails: int) -> None:
    predictor = load(two)
    left = iter(range(fails))  # so many runs, of one worker or of both
    before = set(threading.enumerate())

    def refuse(now: int, images: Tensor) -> None:
        if now == at % two.depth and next(left, None) is not None:
            raise ValueError(f"{len(images)} are too many")

    predictor.before = refuse
    config = MemoryConfigStore(start_config(0.5))
    engine = Engine(predictor, config, None, Metrics(CollectorRegistry()), Limits(max_batch_size=2, workers=2))
    try:
        with pytest.raises(ValueError, match="are too many"):
            await in_time(engine.start(profile_of(two.depth)))
        assert engine.why_not_ready() == "the model is being loaded"
        await until(lambda: not threads_since(before))
    finally:
        await in_time(engine.close())


async def test_network_that_gives_no_finite_numbers_is_not_started(case: Case) -> None:
    predictor = load(case)
    limits = Limits(max_batch_size=1)
    predictor.after = lambda stage, logits: logits / 0 if stage == case.last else logits
    engine = Engine(predictor, MemoryConfigStore(start_config(0.5)), None, Metrics(CollectorRegistry()), limits)
    with pytest.raises(DeviceFailed, match="not finite"):
        await in_time(engine.start(profile_of(case.depth)))


async def test_engine_that_was_not_started_takes_nothing(two: Case) -> None:
    engine = Engine(load(two), MemoryConfigStore(start_config(0.5)), None, Metrics(CollectorRegistry()), Limits())
    assert engine.why_not_ready() == "the model is being loaded"
    with pytest.raises(Draining, match="the model is being loaded"):
        await engine.classify(two.images[0].body, Ask(arrival=time.monotonic()))
    await in_time(engine.close())


async def test_drained_engine_is_not_ready_and_answers(two: Case) -> None:
    async with serving(two) as server:
        server.engine.drain()
        assert server.engine.why_not_ready() == "the server is stopping"
        assert_answers(await server.classify(two.images[0].body), two, two.images[0], 0.5)


@pytest.mark.parametrize("slots", [1, 128])
async def test_close_answers_all_that_wait(case: Case, slots: int) -> None:
    async with serving(case, 1.0, workers=4, feature_slots=slots) as server:
        gate = server.gate(0)
        tasks = [server.start(image.body) for image in case.images]
        await gate.arrival()
        closing = asyncio.create_task(server.engine.close())
        await until(lambda: server.engine.why_not_ready() is not None)
        with pytest.raises(Draining):
            await server.classify(case.images[0].body)
        gate.open()
        for answer, image in zip(await outcomes(tasks), case.images, strict=True):
            assert_answers(answer, case, image, 1.0)
        await asyncio.wait_for(closing, 30)


async def test_retired_engine_closes_once_nobody_waits(two: Case) -> None:
    async with serving(two) as server:
        gate = server.gate(0)
        task = server.start(two.images[0].body)
        await gate.arrival()
        retiring = asyncio.create_task(server.engine.retire())
        await asyncio.sleep(0)
        assert not retiring.done()
        gate.open()
        assert isinstance(await task, Answer)
        await asyncio.wait_for(retiring, 30)


async def test_closing_twice_is_harmless(two: Case) -> None:
    async with serving(two) as server:
        await in_time(server.engine.close())
        await in_time(server.engine.close())
        with pytest.raises(Draining):
            await server.classify(b"")


async def test_closed_engine_leaves_no_thread(two: Case) -> None:
    before = set(threading.enumerate())
    async with serving(two, workers=3, decode_threads=1) as server:
        await server.classify(two.images[0].body)
        started = {thread.name for thread in threads_since(before)}
        assert {"worker-0", "worker-1", "worker-2", "decode_0"} <= started
    assert not threads_since(before)


async def live(case: Case, fails: bool) -> weakref.ref[Watched]:
    """A whole life of an engine; what is left of it is a weak reference to its predictor."""
    async with serving(case, case.middle, MemoryResultCache(9), floor=0.1, decode_threads=1, workers=2) as server:
        gone = weakref.ref(server.predictor)
        server.predictor.before = refuse_white
        for body in (case.images[0].body, case.images[1].body, WHITE, b"no image"):
            try:
                await server.classify(body, passes=True)
            except LowfirstError:
                continue
        if fails:

            def fail(stage: int, images: Tensor) -> None:
                raise RuntimeError(f"no stage {stage} for {len(images)}")

            server.predictor.before = fail
            await outcomes([server.start(image.body) for image in case.images[:4]])
            await until(lambda: server.engine.why_not_ready() is not None)
        return gone


@pytest.mark.parametrize("fails", [False, True])
async def test_closed_engine_is_freed_without_the_garbage_collector(case: Case, fails: bool) -> None:
    async with without_collector():
        gone = await live(case, fails)
        await until(lambda: gone() is None)
