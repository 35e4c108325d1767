"""Worker threads measure, warm up, take the plan that follows, and leave."""

from __future__ import annotations

import asyncio
import threading
import weakref

import pytest
from prometheus_client import CollectorRegistry
from torch import Tensor

from service.engine.decide import Policy
from service.engine.executor import Executor
from service.engine.features import FeaturePool
from service.engine.lanes import Lanes
from service.engine.limits import Limits
from service.engine.pace import Pace
from service.engine.pick import Plan
from service.engine.preparing import Preparation
from service.engine.recent import Recent
from service.engine.workers import Workers
from service.inference.latency import LatencyTable
from service.inference.predictor import Predictor
from service.inference.single_scale import single_scale
from service.metrics import Metrics
from tests.engine.serving import Case, Watched, in_time, load, threads_since

pytestmark = pytest.mark.anyio


def workers_of(predictor: Watched, count: int = 2, single: Predictor | None = None) -> tuple[Workers, Lanes, Pace]:
    depth = predictor.depth
    lanes, pace = Lanes(Plan((4,) * depth), 8), Pace(LatencyTable(({1: 1.0},) * depth), (4,) * depth, count)
    policy, metrics = Policy(depth - 1), Metrics(CollectorRegistry())
    executor = Executor(lanes, predictor, FeaturePool(8), pace, Recent(), metrics, policy)
    preparation = Preparation(predictor, single, Limits(max_batch_size=4, workers=count))
    return Workers(lanes, executor, preparation, pace, count), lanes, pace


async def test_workers_take_the_times_they_are_given_and_the_batch_sizes_that_follow(case: Case) -> None:
    worth_it, not_worth_it = {1: 0.001, 4: 0.0011}, {1: 0.1, 4: 0.4}
    profile = LatencyTable((worth_it, not_worth_it, worth_it)[: case.depth])
    predictor = load(case)
    sizes: set[tuple[int, int]] = set()
    predictor.before = lambda stage, images: sizes.add((stage, len(images)))
    workers, lanes, pace = workers_of(predictor)
    await in_time(asyncio.to_thread(workers.start, profile))
    try:
        assert pace.table == profile
        assert lanes.plan.sizes == pace.sizes == (4, 1, 4)[: case.depth]
        assert lanes.plan.seconds(case.last, 4) == profile.seconds(case.last, 4)
        assert sizes >= {(stage, size) for stage, most in enumerate(pace.sizes) for size in range(1, most + 1)}
        assert workers.failure is None
    finally:
        lanes.close()
        await in_time(asyncio.to_thread(workers.join))
    assert workers.alive == 0


async def test_single_scale_network_is_measured_and_let_go(case: Case) -> None:
    single = single_scale(load(case))
    gone = weakref.ref(single)
    workers, lanes, pace = workers_of(load(case), count=1, single=single)
    del single
    await in_time(asyncio.to_thread(workers.start))
    try:
        assert pace.table.single
        assert gone() is None
    finally:
        lanes.close()
        await in_time(asyncio.to_thread(workers.join))


async def test_failed_warm_up_is_told_and_leaves_no_thread(case: Case) -> None:
    predictor = load(case)

    def refuse(stage: int, images: Tensor) -> None:
        if stage == case.last:
            raise ValueError(f"{len(images)} refused")

    predictor.before = refuse
    before = set(threading.enumerate())
    workers, _, _ = workers_of(predictor)
    with pytest.raises(ValueError, match="refused"):
        await in_time(asyncio.to_thread(workers.start))
    assert not threads_since(before)


class Kept:
    """What a native runtime keeps for a thread, and frees slowly once it ends."""

    def __init__(self) -> None:
        self.is_freed_now, self.may_be_freed = threading.Event(), threading.Event()

    def __del__(self) -> None:
        self.is_freed_now.set()
        self.may_be_freed.wait()


async def test_workers_are_joined_with_all_that_was_kept_for_their_threads(case: Case) -> None:
    predictor, local, kept = load(case), threading.local(), Kept()
    freed, may_be_freed = kept.is_freed_now, kept.may_be_freed
    left = [kept]
    del kept

    def keep(stage: int, images: Tensor) -> None:
        del stage, images
        if left:
            local.kept = left.pop()

    predictor.before = keep
    workers, lanes, _ = workers_of(predictor, count=1)
    await in_time(asyncio.to_thread(workers.start))
    lanes.close()
    await in_time(asyncio.to_thread(freed.wait))
    joining = threading.Thread(target=workers.join)
    joining.start()
    joining.join(0.1)
    assert joining.is_alive()
    may_be_freed.set()
    await in_time(asyncio.to_thread(joining.join))
