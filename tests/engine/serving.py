"""A real engine over the tiny models, with real threads, stopped by gates where a test must know what a worker does.

Nothing here waits for time alone, but for a state, and fails when that does not come.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from service.calibration.exit_rule import end_stage
from service.engine.answer import Answer, Ask
from service.engine.engine import Engine
from service.engine.entry import Entry
from service.engine.limits import Limits
from service.inference.latency import LatencyTable
from service.inference.predictor import Predictor
from service.metrics import Metrics
from service.networks.cascade import Carried
from service.samples.log import SampleLog
from service.state.base import ResultCache, RuntimeConfig, ThresholdConfig
from service.state.memory import MemoryConfigStore

TIMEOUT = 30.0

WHITE = (
    b"BM\x3a\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00"
    b"\x18\x00\x00\x00\x00\x00\x04\x00\x00\x00" + bytes(16) + b"\xff\xff\xff\x00"
)  # a BMP of one white pixel

T = TypeVar("T")
Before = Callable[[int, Tensor], None]


def nothing(stage: int, images: Tensor) -> None:
    """A stage that just runs."""


class Watched(Predictor):
    """Calls ``before`` with each run's stage and images; what it raises, the stage raises."""

    before: Before = staticmethod(nothing)
    after: Callable[[int, Tensor], Tensor] = staticmethod(lambda stage, logits: logits)

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        self.before(stage, images)
        logits, handed_on = super().run(stage, images, carried)
        return self.after(stage, logits), handed_on


class Gate:
    """Stops every run of ``stage`` until it is let through; remembers the sizes of the batches that came."""

    def __init__(self, stage: int) -> None:
        self.sizes: list[int] = []
        self._stage = stage
        self._open = False
        self._arrived = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)

    def __call__(self, stage: int, images: Tensor) -> None:
        if stage == self._stage:
            self.sizes.append(len(images))
            self._arrived.release()
            if not self._open and not self._permits.acquire(timeout=TIMEOUT):
                raise TimeoutError("the gate was never opened")

    async def arrival(self) -> None:
        """The next batch stands before the gate."""
        assert await asyncio.to_thread(self._arrived.acquire, timeout=TIMEOUT)

    def let_one_through(self) -> None:
        self._permits.release()

    def open(self) -> None:
        self._open = True
        self._permits.release(100)


def refuse_white(stage: int, images: Tensor) -> None:
    """Raises when any image of the batch is ``WHITE``."""
    if (images == 255).flatten(1).all(dim=1).any():
        raise ValueError(f"white at stage {stage}")


def refusing_white_at(stage: int) -> Before:
    return lambda now, images: refuse_white(now, images) if now == stage else None


def one_after_another(*steps: Before) -> Before:
    def run(stage: int, images: Tensor) -> None:
        for step in steps:
            step(stage, images)

    return run


@dataclass(frozen=True)
class Direct:
    """An image, and what each stage says of it when it is run by hand and alone: probabilities (K,)."""

    body: bytes
    outputs: tuple[Tensor, ...]

    @property
    def confidences(self) -> list[float]:
        """Of each stage but the last."""
        return [output.max().item() for output in self.outputs[:-1]]

    def end(self, threshold: float) -> int:
        """The stage at which it ends."""
        return end_stage(self.confidences, threshold)


@dataclass(frozen=True)
class Case:
    """A model in a store, and images with what it says of them. ``middle``: a threshold that some pass, by no hair."""

    folder: Path
    names: tuple[str, ...]
    mmacs: tuple[float, ...]
    images: list[Direct]
    middle: float

    @property
    def depth(self) -> int:
        return len(self.names)

    @property
    def last(self) -> int:
        return self.depth - 1


def profile_of(depth: int) -> LatencyTable:
    """The largest batches are the best; no escalation takes so long that a test's deadline rules it out."""
    return LatencyTable(({1: 0.001, 32: 0.001}, *({1: 1e-5, 32: 1e-5},) * (depth - 1)))


def start_config(threshold: float, floor: float | None = None) -> RuntimeConfig:
    """The runtime config of a server of ``tiny/1``."""
    return RuntimeConfig(1, {"tiny": ThresholdConfig("threshold", threshold, threshold, floor)}, {"tiny": 1})


@dataclass
class Server:
    """An engine that runs, and what it was given."""

    case: Case
    engine: Engine
    predictor: Watched
    config: MemoryConfigStore
    registry: CollectorRegistry
    slots: int

    def start(self, body: bytes, **ask: Any) -> asyncio.Task[Answer]:
        """One image on its way, as from a client."""
        return asyncio.create_task(self.classify(body, **ask))

    async def classify(self, body: bytes, **ask: Any) -> Answer:
        async with asyncio.timeout(TIMEOUT):  # ``wait_for`` makes a cycle of an error
            return await self.engine.classify(body, Ask(**{"arrival": time.monotonic(), **ask}))

    def gate(self, stage: int) -> Gate:
        self.predictor.before = gate = Gate(stage)
        return gate

    async def behind(self, gate: Gate, bodies: Iterable[bytes]) -> list[asyncio.Task[Answer]]:
        """The first stands before the first stage's gate, the others wait behind it."""
        first, *others = bodies
        tasks = [self.start(first)]
        await gate.arrival()
        tasks += [self.start(body) for body in others]
        await self.waiting(0, len(others))
        return tasks

    async def escalate_behind(self, gate: Gate, body: bytes, **ask: Any) -> tuple[asyncio.Task[Answer], ...]:
        """An image that waits for the second stage, behind an older one that stands before the first one's gate."""
        escalated = self.start(body, **ask)
        await gate.arrival()
        older = self.start(body, arrival=time.monotonic() - 1000)
        await self.waiting(0, 1)
        gate.let_one_through()
        await gate.arrival()
        await self.waiting(1, 1)
        return escalated, older

    async def waiting(self, stage: int, count: int) -> None:
        """``count`` images stand in a lane."""
        await until(lambda: self.engine.backlog.depths()[self.case.names[stage]] == count)

    async def all_slots_free(self) -> None:
        await until(lambda: self.engine._lanes.free_slots == self.slots)

    async def ready(self) -> None:
        await until(lambda: self.engine.why_not_ready() is None)

    async def change_threshold(self, threshold: float) -> None:
        await self.config.update(lambda _: start_config(threshold))

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"lowfirst_{name}", labels) or 0.0

    def answered(self, stage: int, reason: str) -> float:
        return self.count("images_total", model="tiny/1", exit=self.case.names[stage], reason=reason)

    def dropped(self) -> dict[str, float]:
        points = ("decode", "deadline", "escalation", "answer", *self.case.names)
        counts = {point: self.count("dropped_total", point=point) for point in points}
        return {point: count for point, count in counts.items() if count}


@asynccontextmanager
async def serving(
    case: Case,
    threshold: float = 0.5,
    cache: ResultCache | None = None,
    floor: float | None = None,
    profile: LatencyTable | None = None,
    measured: bool = False,
    samples: SampleLog | None = None,
    **limits: Any,
) -> AsyncIterator[Server]:
    """A started engine; closed at the end, whatever stands in it."""
    predictor = load(case)
    config = MemoryConfigStore(start_config(threshold, floor))
    registry = CollectorRegistry()
    chosen = Limits(**{"max_batch_size": 4, **limits})
    engine = Engine(predictor, config, cache, Metrics(registry), chosen, samples=samples)
    await in_time(engine.start(None if measured else profile or profile_of(case.depth)))
    try:
        yield Server(case, engine, predictor, config, registry, chosen.feature_slots)
    finally:
        if isinstance(predictor.before, Gate):
            predictor.before.open()
        await in_time(engine.close())


def load(case: Case) -> Watched:
    predictor = Watched.load(case.folder, "cpu", "float32")
    assert isinstance(predictor, Watched)
    return predictor


async def in_time(work: Coroutine[Any, Any, T]) -> T:
    return await asyncio.wait_for(work, TIMEOUT)


async def until(reached: Callable[[], bool]) -> None:
    """Look until a state is reached that announces itself to nobody."""
    async with asyncio.timeout(TIMEOUT):
        while not reached():
            await asyncio.sleep(0.001)


async def outcomes(tasks: Iterable[asyncio.Task[Answer]]) -> list[Answer | BaseException]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), TIMEOUT)


async def leave(*tasks: asyncio.Task[Answer]) -> None:
    """As clients do: nobody waits for these any more."""
    for task in tasks:
        task.cancel()
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in await outcomes(tasks))


def assert_answers(answer: Answer | BaseException, case: Case, image: Direct, threshold: float) -> None:
    """The answer is the one that the image gets alone, up to the rounding of another batch."""
    assert isinstance(answer, Answer)
    assert answer.stage == image.end(threshold)
    assert answer.exit == case.names[answer.stage]
    assert answer.mmacs in (0.0, sum(case.mmacs[: answer.stage + 1]))
    scores = torch.empty(len(image.outputs[0]))
    for ranked in answer.top_k:
        scores[ranked.index] = ranked.score
    torch.testing.assert_close(scores, image.outputs[answer.stage], rtol=1e-3, atol=1e-5)
    known = [output.max().item() for output in image.outputs[: min(answer.stage + 1, max(case.last, 1))]]
    torch.testing.assert_close(torch.tensor(answer.confidences), torch.tensor(known), rtol=1e-3, atol=1e-5)


def threads_since(before: set[threading.Thread]) -> set[threading.Thread]:
    """Worker and decode threads alive now; another engine of this process may have its own."""
    return {thread for thread in set(threading.enumerate()) - before if thread.name.startswith(("worker-", "decode"))}


@asynccontextmanager
async def without_collector() -> AsyncIterator[None]:
    """What only the garbage collector would find is kept too long. Nothing is logged: pytest keeps tracebacks."""
    gc.collect()
    gc.disable()
    logging.disable()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        gc.enable()


def entries_alive() -> int:
    return sum(type(thing) is Entry for thing in gc.get_objects())
