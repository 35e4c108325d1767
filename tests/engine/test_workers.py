"""Workers and what they do with a batch: decisions, counts, and what a failing device leaves behind."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry
from torch import Tensor

from service.engine import batch_runner
from service.engine.batch_runner import BatchRunner
from service.engine.entry import Entry, Reason
from service.engine.features import FeaturePool
from service.engine.limits import Limits
from service.engine.scheduler import Plan, Scheduler
from service.engine.workers import Workers
from service.errors import DeviceFailed
from service.images.decode import decode
from service.inference.latency import LatencyTable, Stage
from service.inference.predictor import Predictor
from service.metrics import Metrics
from service.networks.msnet import LowState

pytestmark = pytest.mark.anyio

TIMEOUT = 30.0
FAR = 1e6  # seconds: a deadline that no test reaches
SLOTS = 8
PROFILE = LatencyTable({1: 0.001, 4: 0.0011}, {1: 0.001, 4: 0.0011})  # batches of 4 are worth it
SLOW = LatencyTable({1: 4 * FAR}, {1: 4 * FAR})

Outcome = tuple[Stage, Reason] | BaseException


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Refusing(Predictor):
    """Refuses the batches that ``refuses`` picks."""

    refuses: Callable[[Stage, Tensor], bool] = staticmethod(lambda stage, images: False)

    def low(self, images: Tensor, wide: bool = False) -> LowState:
        if self.refuses("low", images):
            raise ValueError("refused")
        return super().low(images, wide)

    def high(self, images: Tensor, low: LowState, wide: bool = False) -> Tensor:
        if self.refuses("high", images):
            raise ValueError("refused")
        return super().high(images, low, wide)


@dataclass
class Bench:
    """Workers and their scheduler; images go straight into the low lane, all at once."""

    scheduler: Scheduler
    predictor: Refusing
    registry: CollectorRegistry
    images: list[Tensor]
    lowered: float = 1.0
    audited: list[bool] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    recovered: threading.Event = field(default_factory=threading.Event)
    runner: BatchRunner = field(init=False)
    workers: Workers = field(init=False)

    def entries(self, threshold: float, deadline: float | None = None) -> list[Entry]:
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        return [
            Entry(threshold, 1, 1, now, deadline, loop, loop.create_future(), image, enqueued=now)
            for image in self.images
        ]

    async def run(self, threshold: float, deadline: float | None = None) -> list[Outcome]:
        entries = self.entries(threshold, deadline)
        self.scheduler.push(entries)
        outcomes = asyncio.gather(*(entry.future for entry in entries), return_exceptions=True)
        return list(await asyncio.wait_for(outcomes, TIMEOUT))

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not reached():
                await asyncio.sleep(0)


@asynccontextmanager
async def working(
    store: Path, make_jpeg: Callable[[int], bytes], workers: int = 1, audit_probability: float = 0.0, backlog: int = 2
) -> AsyncIterator[Bench]:
    predictor = Refusing.load(store / "tiny" / "1", "cpu", "float32")
    assert isinstance(predictor, Refusing)
    images = [decode(make_jpeg(seed), predictor.spec.preprocessing) for seed in range(3)]
    scheduler = Scheduler(Plan(4, 4), SLOTS, audit_backlog=backlog)
    bench = Bench(scheduler, predictor, CollectorRegistry(), images)
    bench.runner = BatchRunner(
        scheduler,
        predictor,
        FeaturePool(SLOTS),
        Metrics(bench.registry),
        Limits(max_batch_size=4, workers=workers, audit_probability=audit_probability),
        threshold_for=lambda entry: min(entry.threshold, bench.lowered),
        on_audit=lambda entry, agreed: bench.audited.append(agreed),
    )
    bench.workers = Workers(
        scheduler,
        bench.runner,
        workers,
        on_failure=lambda error, left: bench.failures.append(left),
        on_recovery=bench.recovered.set,
    )
    await asyncio.to_thread(bench.workers.start, PROFILE)
    bench.recovered.clear()
    yield bench
    await asyncio.wait_for(bench.until(lambda: scheduler.free_slots == SLOTS), TIMEOUT)
    scheduler.close()
    await asyncio.wait_for(asyncio.to_thread(bench.workers.join), TIMEOUT)


@pytest.fixture
async def bench(tiny_store: Path, make_jpeg: Callable[[int], bytes]) -> AsyncIterator[Bench]:
    async with working(tiny_store, make_jpeg) as bench:
        yield bench
        assert bench.failures == []


def is_image(guilty: Tensor, images: Tensor) -> bool:
    return bool((images == guilty).flatten(1).all(1).any())


async def test_unsure_images_escalate_and_sure_ones_exit(bench: Bench) -> None:
    assert await bench.run(threshold=0.0) == [("low", "confident")] * 3
    assert await bench.run(threshold=1.0) == [("high", "escalated")] * 3


async def test_escalation_that_would_miss_its_deadline_is_not_begun(bench: Bench) -> None:
    bench.runner.table = SLOW
    assert await bench.run(threshold=1.0, deadline=time.monotonic() + FAR) == [("low", "deadline")] * 3
    assert bench.count("lowfirst_batches_total", stage="high", reason="drained") == 0


async def test_sure_answer_is_not_degraded_by_a_near_deadline(bench: Bench) -> None:
    bench.runner.table = SLOW
    assert await bench.run(threshold=0.0, deadline=time.monotonic() + FAR) == [("low", "confident")] * 3


async def test_escalation_that_will_make_its_deadline_is_run(bench: Bench) -> None:
    assert await bench.run(threshold=1.0, deadline=time.monotonic() + FAR) == [("high", "escalated")] * 3


async def test_past_overload_does_not_rule_out_escalations_for_ever(bench: Bench) -> None:
    bench.runner.slowdown = 1e4 * FAR
    for _ in range(100):
        outcomes = await bench.run(threshold=1.0, deadline=time.monotonic() + FAR)
        if outcomes[-1] == ("high", "escalated"):
            return
    pytest.fail("300 images were degraded, with nothing else to do")


async def test_batches_teach_how_much_slower_the_machine_is_than_measured(bench: Bench) -> None:
    bench.runner.table = LatencyTable({1: 1e-9}, {1: 1e-9})
    await bench.run(threshold=1.0)
    assert bench.runner.slowdown > 10
    assert bench.runner.seconds("high") > 10 * 1e-9


async def test_machine_that_became_slower_rules_out_what_its_table_would_allow(bench: Bench) -> None:
    bench.runner.table = LatencyTable({1: FAR / 2}, {1: FAR / 2})
    assert await bench.run(threshold=1.0, deadline=time.monotonic() + FAR) == [("high", "escalated")] * 3
    bench.runner.slowdown = 1000.0
    assert await bench.run(threshold=1.0, deadline=time.monotonic() + FAR) == [("low", "deadline")] * 3


async def test_workers_take_the_times_and_the_batch_sizes_they_are_given(bench: Bench) -> None:
    assert bench.runner.table == PROFILE
    plan = bench.scheduler.plan
    assert (plan.low_size, plan.high_size) == (4, 4)
    assert plan.seconds("high", 4) == PROFILE.seconds("high", 4)


async def test_escalation_takes_as_long_as_what_waits_before_it(tiny_store: Path) -> None:
    predictor = Predictor.load(tiny_store / "tiny" / "1", "cpu", "float32")
    scheduler = Scheduler(Plan(8, 4), SLOTS)
    runner = BatchRunner(scheduler, predictor, FeaturePool(SLOTS), Metrics(CollectorRegistry()), Limits(workers=2))
    runner.table, runner.slowdown = LatencyTable({1: 1.0}, {1: 3.0, 2: 4.0, 4: 6.0}), 10.0
    assert runner.escalation_seconds() == 10 * 3
    loop = asyncio.get_running_loop()
    scheduler.push([Entry(0.5, 1, 1, 0.0, None, loop, loop.create_future()) for _ in range(6)])
    batch = scheduler.take(0.0)
    assert batch is not None
    for entry, slot in zip(batch.entries, batch.slots, strict=True):
        entry.slot = slot
    scheduler.escalate(batch.entries, 6, [])
    assert runner.seconds("high") == 10 * 6 / 4 / 2  # in batches of 4, by two workers
    assert runner.escalation_seconds() == 6 * runner.seconds("high") + 10 * 6


async def test_decoding_counts_as_time_that_the_low_pass_takes(
    bench: Bench, make_jpeg: Callable[[int], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, foretold = bench.runner.seconds("low"), bench.scheduler.plan.seconds("low", 2)
    ticks = itertools.count(time.monotonic(), 0.5)
    monkeypatch.setattr(batch_runner, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    entries = bench.entries(threshold=0.0)
    for seed, entry in enumerate(entries):
        entry.image, entry.body = None, make_jpeg(seed)
    bench.scheduler.push(entries)
    await asyncio.wait_for(asyncio.gather(*(entry.future for entry in entries)), TIMEOUT)
    assert bench.runner.seconds("low") > before + 0.01
    assert bench.scheduler.plan.seconds("low", 2) > foretold + 0.02
    assert bench.scheduler.plan.seconds("high", 2) == PROFILE.seconds("high", 2)


async def test_image_that_exits_by_a_lowered_threshold_says_so(bench: Bench) -> None:
    bench.lowered = 0.0
    entries = bench.entries(threshold=1.0)
    bench.scheduler.push(entries)
    for entry in entries:
        assert await asyncio.wait_for(entry.future, TIMEOUT) == ("low", "brownout")
        assert entry.threshold == 0.0


async def test_image_that_is_sure_anyway_does_not_blame_the_brown_out(bench: Bench) -> None:
    bench.lowered = 0.0
    assert await bench.run(threshold=0.0) == [("low", "confident")] * 3


async def test_only_the_image_at_fault_fails(bench: Bench) -> None:
    guilty = bench.images[1]
    bench.predictor.refuses = lambda stage, images: is_image(guilty, images)
    outcomes = await bench.run(threshold=0.0)
    assert isinstance(outcomes[1], DeviceFailed)
    assert "low pass" in str(outcomes[1])
    assert [outcomes[0], outcomes[2]] == [("low", "confident")] * 2


async def test_image_at_fault_in_the_high_pass_fails_alone(bench: Bench) -> None:
    guilty = bench.images[1]
    bench.predictor.refuses = lambda stage, images: stage == "high" and is_image(guilty, images)
    outcomes = await bench.run(threshold=1.0)
    assert isinstance(outcomes[1], DeviceFailed)
    assert "high pass" in str(outcomes[1])
    assert [outcomes[0], outcomes[2]] == [("high", "escalated")] * 2


async def test_failed_batch_is_counted_once(bench: Bench) -> None:
    bench.predictor.refuses = lambda stage, images: len(images) > 1
    assert await bench.run(threshold=1.0) == [("high", "escalated")] * 3
    spec = bench.predictor.spec
    for stage, each in (("low", spec.low_mmacs), ("high", spec.high_mmacs)):
        assert bench.count("lowfirst_queue_wait_seconds_count", stage=stage) == 3
        assert bench.count("lowfirst_batches_total", stage=stage, reason="drained") == 1
        assert bench.count("lowfirst_multiply_adds_total", model="tiny/1", stage=stage) == 3 * round(each * 1e6)


async def test_images_that_exit_are_audited_after_their_answer(
    tiny_store: Path, make_jpeg: Callable[[int], bytes]
) -> None:
    async with working(tiny_store, make_jpeg, audit_probability=1.0, backlog=4) as bench:
        assert await bench.run(threshold=0.0) == [("low", "confident")] * 3
        await bench.until(lambda: len(bench.audited) == 3)
        each = round(bench.predictor.spec.high_mmacs * 1e6)
        assert bench.count("lowfirst_multiply_adds_total", model="tiny/1", stage="audit") == 3 * each
        assert bench.count("lowfirst_multiply_adds_total", model="tiny/1", stage="high") == 0


async def test_audits_beyond_the_backlog_are_skipped_and_counted(
    tiny_store: Path, make_jpeg: Callable[[int], bytes]
) -> None:
    async with working(tiny_store, make_jpeg, audit_probability=1.0, backlog=2) as bench:
        await bench.run(threshold=0.0)
        await bench.until(lambda: len(bench.audited) == 2)
        assert bench.count("lowfirst_audits_skipped_total") == 1


async def test_degraded_and_escalated_images_are_not_audited(
    tiny_store: Path, make_jpeg: Callable[[int], bytes]
) -> None:
    async with working(tiny_store, make_jpeg, audit_probability=1.0) as bench:
        await bench.run(threshold=1.0)
        bench.runner.table = SLOW
        await bench.run(threshold=1.0, deadline=time.monotonic() + FAR)
        assert bench.audited == []


@pytest.mark.parametrize("stage", ["low", "high"])
async def test_device_that_fails_answers_what_it_had_and_works_again(
    stage: Stage, tiny_store: Path, make_jpeg: Callable[[int], bytes]
) -> None:
    async with working(tiny_store, make_jpeg) as bench:
        bench.predictor.refuses = lambda at, images: at == stage
        outcomes = await bench.run(threshold=1.0)
        assert all(isinstance(outcome, DeviceFailed) for outcome in outcomes)
        await bench.until(lambda: bench.failures == [0])
        assert bench.workers.alive == 0
        bench.predictor.refuses = lambda at, images: False
        assert await asyncio.to_thread(bench.recovered.wait, TIMEOUT)
        assert await bench.run(threshold=1.0) == [("high", "escalated")] * 3


async def test_device_that_breaks_in_the_middle_of_a_batch_still_answers_all_of_it(
    tiny_store: Path, make_jpeg: Callable[[int], bytes]
) -> None:
    async with working(tiny_store, make_jpeg) as bench:
        runs = iter(range(100))
        # the whole batch, then a probe that works, then one image, and from there on nothing
        bench.predictor.refuses = lambda stage, images: len(images) > 1 or (stage == "low" and next(runs) > 1)
        outcomes = await bench.run(threshold=0.0)
        assert outcomes[0] == ("low", "confident")
        assert all(isinstance(outcome, DeviceFailed) for outcome in outcomes[1:])
        bench.predictor.refuses = lambda stage, images: False
        assert await asyncio.to_thread(bench.recovered.wait, TIMEOUT)


async def test_failed_warm_up_is_told_and_leaves_no_thread(tiny_store: Path) -> None:
    predictor = Refusing.load(tiny_store / "tiny" / "1", "cpu", "float32")
    assert isinstance(predictor, Refusing)
    predictor.refuses = lambda stage, images: stage == "high"
    before = set(threading.enumerate())
    scheduler = Scheduler(Plan(4, 4), SLOTS)
    runner = BatchRunner(scheduler, predictor, FeaturePool(SLOTS), Metrics(CollectorRegistry()), Limits(workers=2))
    workers = Workers(scheduler, runner, 2)
    with pytest.raises(ValueError, match="refused"):
        await asyncio.to_thread(workers.start)
    await asyncio.wait_for(asyncio.to_thread(workers.join), TIMEOUT)
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("worker-")]
