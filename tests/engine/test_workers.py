"""Worker threads alone: what is decided after a low pass, and what is counted, with no clock to wait for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from torch import Tensor

from service.engine.entry import Entry, Reason, Stage
from service.engine.scheduler import Scheduler
from service.engine.workers import Workers
from service.errors import DeviceFailed
from service.images.decode import decode
from service.inference.predictor import Predictor
from service.metrics import Metrics
from service.networks.msnet import LowState

pytestmark = pytest.mark.anyio

TIMEOUT = 30.0
FAR = 1e6  # seconds: a deadline that no test reaches
SLOTS = 8


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Refusing(Predictor):
    """Refuses the batches that ``refuses`` picks."""

    refuses: Callable[[Stage, Tensor], bool] = staticmethod(lambda stage, images: False)

    def low(self, images: Tensor) -> LowState:
        if self.refuses("low", images):
            raise ValueError("refused")
        return super().low(images)

    def high(self, images: Tensor, low: LowState) -> Tensor:
        if self.refuses("high", images):
            raise ValueError("refused")
        return super().high(images, low)


@dataclass
class Bench:
    """Workers and their scheduler; images go straight into the low lane, all at once."""

    workers: Workers
    scheduler: Scheduler
    predictor: Refusing
    registry: CollectorRegistry
    images: list[Tensor]

    async def run(self, threshold: float, deadline: float | None = None) -> list[tuple[Stage, Reason] | BaseException]:
        loop = asyncio.get_running_loop()
        now = time.monotonic()
        entries = [
            Entry(threshold, 1, 1, now, deadline, loop, loop.create_future(), image, enqueued=now)
            for image in self.images
        ]
        self.scheduler.push("low", entries)
        outcomes = asyncio.gather(*(entry.future for entry in entries), return_exceptions=True)
        return list(await asyncio.wait_for(outcomes, TIMEOUT))

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
async def bench(tiny_store: Path, make_jpeg: Callable[[int], bytes]) -> AsyncIterator[Bench]:
    predictor = Refusing.load(tiny_store / "tiny" / "1", "cpu", "float32")
    assert isinstance(predictor, Refusing)
    images = [decode(make_jpeg(seed), predictor.spec.preprocessing) for seed in range(3)]
    scheduler = Scheduler(max_batch_size=4, slots=SLOTS)
    registry = CollectorRegistry()
    deaths: list[BaseException] = []
    workers = Workers(scheduler, predictor, Metrics(registry), "tiny/1", count=1, on_death=deaths.append)
    workers.start()
    yield Bench(workers, scheduler, predictor, registry, images)
    scheduler.close()
    await asyncio.wait_for(asyncio.to_thread(workers.join), TIMEOUT)
    assert deaths == []
    assert scheduler.free_slots == SLOTS


async def test_unsure_images_escalate_and_sure_ones_exit(bench: Bench) -> None:
    assert await bench.run(threshold=0.0) == [("low", "confident")] * 3
    assert await bench.run(threshold=1.0) == [("high", "escalated")] * 3


async def test_escalation_that_would_miss_its_deadline_is_not_begun(bench: Bench) -> None:
    bench.workers.escalation_seconds = 2 * FAR
    assert await bench.run(threshold=1.0, deadline=time.monotonic() + FAR) == [("low", "deadline")] * 3
    assert bench.count("lowfirst_batches_total", stage="high", reason="drained") == 0


async def test_sure_answer_is_not_degraded_by_a_near_deadline(bench: Bench) -> None:
    bench.workers.escalation_seconds = 2 * FAR
    assert await bench.run(threshold=0.0, deadline=time.monotonic() + FAR) == [("low", "confident")] * 3


async def test_escalation_that_will_make_its_deadline_is_run(bench: Bench) -> None:
    bench.workers.escalation_seconds = FAR / 2
    assert await bench.run(threshold=1.0, deadline=time.monotonic() + FAR) == [("high", "escalated")] * 3


async def test_past_overload_does_not_rule_out_escalations_for_ever(bench: Bench) -> None:
    bench.workers.escalation_seconds = 2 * FAR
    for _ in range(100):
        outcomes = await bench.run(threshold=1.0, deadline=time.monotonic() + FAR)
        if outcomes[-1] == ("high", "escalated"):
            return
    pytest.fail("300 images were degraded, with nothing else to do")


async def test_escalations_teach_how_long_one_takes(bench: Bench) -> None:
    bench.workers.escalation_seconds = FAR
    await bench.run(threshold=1.0)
    assert bench.workers.escalation_seconds == pytest.approx(0.8**3 * FAR, rel=1e-3)


async def test_only_the_image_at_fault_fails(bench: Bench) -> None:
    guilty = bench.images[1]
    bench.predictor.refuses = lambda stage, images: bool((images == guilty).flatten(1).all(1).any())
    outcomes = await bench.run(threshold=0.0)
    assert isinstance(outcomes[1], DeviceFailed)
    assert "low pass" in str(outcomes[1])
    assert [outcomes[0], outcomes[2]] == [("low", "confident")] * 2


async def test_image_at_fault_in_the_high_pass_fails_alone(bench: Bench) -> None:
    guilty = bench.images[1]
    bench.predictor.refuses = lambda stage, images: stage == "high" and bool((images == guilty).flatten(1).all(1).any())
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
