"""The way of one image, whatever happens on it: a real engine over the tiny model, with real threads.

A pass is stopped by a gate where a test needs to know what a worker is doing; nothing here waits for time alone,
but for a state, and fails when that does not come.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from prometheus_client import CollectorRegistry
from torch import Tensor

from service.engine import batch_runner, decoding
from service.engine.admission import Admission
from service.engine.engine import Engine
from service.engine.entry import Answer, Ask, Entry
from service.engine.limits import Limits
from service.engine.scheduler import AHEAD
from service.errors import DeadlinePassed, DeviceFailed, Draining, InvalidImage, UnsupportedImage
from service.images.decode import decode
from service.images.transforms import Preprocessing
from service.inference.exit_rule import confidence, probabilities
from service.inference.latency import LatencyTable, Stage
from service.inference.predictor import Predictor
from service.metrics import Metrics
from service.networks.msnet import LowState
from service.state.base import CachedPasses, ResultCache, RuntimeConfig, ThresholdConfig
from service.state.memory import MemoryConfigStore, MemoryResultCache

pytestmark = pytest.mark.anyio

TIMEOUT = 30.0
IMAGES = 40

# The largest batches are the best; no escalation takes so long that a test's deadline rules it out.
PROFILE = LatencyTable({1: 0.01, 32: 0.01}, {1: 1e-5, 32: 1e-5})

T = TypeVar("T")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# real parts that can be watched


class WatchedPredictor(Predictor):
    """Calls ``before`` with each pass's stage and images; what it raises, the pass raises."""

    before: Callable[[Stage, Tensor], None] = staticmethod(lambda stage, images: None)

    def low(self, images: Tensor, wide: bool = False) -> LowState:
        self.before("low", images)
        return super().low(images, wide)

    def high(self, images: Tensor, low: LowState, wide: bool = False) -> Tensor:
        self.before("high", images)
        return super().high(images, low, wide)


class Gate:
    """Stops every pass of ``stage`` until it is let through; remembers the sizes of the batches that came."""

    def __init__(self, stage: Stage) -> None:
        self.sizes: list[int] = []
        self._stage = stage
        self._open = False
        self._arrived = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)

    def __call__(self, stage: Stage, images: Tensor) -> None:
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


class Death(BaseException):
    """Nothing that a worker survives."""


WHITE = (
    b"BM\x3a\x00\x00\x00\x00\x00\x00\x00\x36\x00\x00\x00\x28\x00\x00\x00\x01\x00\x00\x00\x01\x00\x00\x00\x01\x00"
    b"\x18\x00\x00\x00\x00\x00\x04\x00\x00\x00" + bytes(16) + b"\xff\xff\xff\x00"
)  # a BMP of one white pixel


def refuse_white(stage: Stage, images: Tensor) -> None:
    """Raises when any image of the batch is ``WHITE``."""
    if (images == 255).flatten(1).all(dim=1).any():
        raise ValueError(f"white in the {stage} pass")


def start(threshold: float, floor: float | None = None) -> RuntimeConfig:
    """The runtime config of a server of ``tiny/1``."""
    return RuntimeConfig(1, {"tiny": ThresholdConfig("threshold", threshold, threshold, floor)}, {"tiny": 1})


@dataclass
class Server:
    """An engine that runs, and what it was given."""

    engine: Engine
    predictor: WatchedPredictor
    config: MemoryConfigStore
    registry: CollectorRegistry
    admission: Admission

    def start(self, body: bytes, **ask: Any) -> asyncio.Task[Answer]:
        """One image on its way, as from a client."""
        return asyncio.create_task(self.classify(body, **ask))

    async def classify(self, body: bytes, **ask: Any) -> Answer:
        with self.admission.admit(images=1, size=len(body)):
            return await in_time(self.engine.classify(body, Ask(**{"arrival": time.monotonic(), **ask})))

    def gate(self, stage: Stage) -> Gate:
        self.predictor.before = gate = Gate(stage)
        return gate

    async def waiting(self, stage: Stage, count: int) -> None:
        """``count`` images stand in a lane."""
        await until(lambda: self.engine.queue_depth()[stage] == count)

    async def change_threshold(self, threshold: float) -> None:
        await self.config.update(lambda _: start(threshold))

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"lowfirst_{name}", labels) or 0.0

    def dropped(self) -> dict[str, float]:
        points = {point: self.count("dropped_total", point=point) for point in ("decode", "low", "escalation", "high")}
        return {point: count for point, count in points.items() if count}


async def in_time(work: Coroutine[Any, Any, T]) -> T:
    return await asyncio.wait_for(work, TIMEOUT)


async def until(reached: Callable[[], bool]) -> None:
    """Look until a state is reached that announces itself to nobody."""
    async with asyncio.timeout(TIMEOUT):
        while not reached():
            await asyncio.sleep(0.001)


async def outcomes(tasks: list[asyncio.Task[Answer]]) -> list[Answer | BaseException]:
    return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), TIMEOUT)


async def leave(*tasks: asyncio.Task[Answer]) -> None:
    """As clients do: nobody waits for these any more."""
    for task in tasks:
        task.cancel()
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in await outcomes(list(tasks)))


@pytest.fixture(scope="session")
def model(tiny_store: Path) -> Path:
    return tiny_store / "tiny" / "1"


@asynccontextmanager
async def serving(
    model: Path,
    threshold: float = 0.5,
    cache: ResultCache | None = None,
    floor: float | None = None,
    profile: LatencyTable | None = PROFILE,
    **limits: Any,
) -> AsyncIterator[Server]:
    """A started engine; closed at the end, whatever stands in it."""
    predictor = WatchedPredictor.load(model, "cpu", "float32")
    assert isinstance(predictor, WatchedPredictor)
    config = MemoryConfigStore(start(threshold, floor))
    registry = CollectorRegistry()
    chosen = Limits(**{"max_batch_size": 4, **limits})
    engine = Engine(predictor, config, cache, Metrics(registry), chosen)
    await in_time(engine.start(profile))
    try:
        admission = Admission(chosen.max_images_in_flight, chosen.max_bytes_in_flight)
        yield Server(engine, predictor, config, registry, admission)
    finally:
        if isinstance(predictor.before, Gate):
            predictor.before.open()
        await in_time(engine.close())


# what each image's answer must be


@dataclass(frozen=True)
class Direct:
    """An image and both its passes, run by hand and alone: probabilities (K,)."""

    body: bytes
    low: Tensor
    high: Tensor
    confidence: float

    def scores(self, exit_: Stage) -> Tensor:
        return self.low if exit_ == "low" else self.high


@pytest.fixture(scope="session")
def direct(model: Path, make_jpeg: Callable[[int], bytes]) -> list[Direct]:
    predictor = Predictor.load(model, "cpu", "float32")
    return [_direct(predictor, make_jpeg(seed)) for seed in range(IMAGES)]


def _direct(predictor: Predictor, body: bytes) -> Direct:
    spec = predictor.spec
    image = decode(body, spec.preprocessing)[None]
    state = predictor.low(image)
    low = probabilities(state.logits, spec.temperature.low)
    high = probabilities(predictor.high(image, state), spec.temperature.high)
    return Direct(body, low[0], high[0], confidence(low).item())


@pytest.fixture(scope="session")
def middle(direct: list[Direct]) -> float:
    """A threshold that some images pass and some do not, none of them by a hair."""
    sure = sorted(image.confidence for image in direct)[IMAGES // 4 : -IMAGES // 4]
    gap, below = max((above - below, below) for below, above in itertools.pairwise(sure))
    assert gap > 1e-3
    return below + gap / 2


def assert_answers(answer: Answer | BaseException, image: Direct, threshold: float) -> None:
    """The answer is the one that the image gets alone, up to the rounding of another batch."""
    assert isinstance(answer, Answer)
    assert answer.exit == ("low" if image.confidence > threshold else "high")
    scores = torch.empty(len(image.low))
    for ranked in answer.top_k:
        scores[ranked.index] = ranked.score
    torch.testing.assert_close(scores, image.scores(answer.exit), rtol=1e-3, atol=1e-5)
    assert answer.confidence == pytest.approx(image.confidence, rel=1e-3)


# answers


async def test_answer_is_that_of_decode_predictor_and_exit_rule(
    model: Path, direct: list[Direct], middle: float
) -> None:
    async with serving(model, middle) as server:
        for image in direct[:12]:
            answer = await server.classify(image.body)
            assert_answers(answer, image, middle)
            assert answer.top_k[0].label == server.engine.spec.classes[int(image.scores(answer.exit).argmax())]
            assert answer.threshold == middle
            assert (answer.model, answer.version, answer.config_version) == ("tiny", 1, 1)


async def test_threshold_zero_lets_every_image_exit(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 0.0) as server:
        answers = [await server.classify(image.body) for image in direct[:6]]
        assert {(answer.exit, answer.reason) for answer in answers} == {("low", "confident")}
        assert {answer.mmacs for answer in answers} == {server.engine.spec.low_mmacs}


async def test_threshold_one_lets_none_exit(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0) as server:
        answers = [await server.classify(image.body) for image in direct[:6]]
        spec = server.engine.spec
        assert {(answer.exit, answer.reason) for answer in answers} == {("high", "escalated")}
        assert {answer.mmacs for answer in answers} == {spec.low_mmacs + spec.high_mmacs}


async def test_request_may_bring_its_own_threshold(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0) as server:
        answer = await server.classify(direct[0].body, threshold=0.0)
        assert (answer.exit, answer.threshold) == ("low", 0.0)


async def test_change_of_threshold_holds_from_the_next_image_on(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0) as server:
        gate = server.gate("low")
        before = server.start(direct[0].body)
        await gate.arrival()
        await server.change_threshold(0.0)
        gate.open()
        after = await server.classify(direct[0].body)
        assert ((await before).exit, (await before).config_version) == ("high", 1)
        assert (after.exit, after.config_version) == ("low", 2)


@pytest.mark.parametrize(("asked", "given"), [(1, 1), (3, 3), (99, 4)])
async def test_top_k_is_ordered_and_at_most_the_classes(
    model: Path, direct: list[Direct], asked: int, given: int
) -> None:
    async with serving(model) as server:
        answer = await server.classify(direct[0].body, top_k=asked)
        scores = [ranked.score for ranked in answer.top_k]
        assert len(scores) == given
        assert scores == sorted(scores, reverse=True)


async def test_a_hundred_images_at_once_each_get_their_own_answer(
    model: Path, direct: list[Direct], middle: float
) -> None:
    images = [direct[i * 7 % IMAGES] for i in range(100)]
    async with serving(model, middle, workers=3, feature_slots=5) as server:
        answers = await outcomes([server.start(image.body) for image in images])
        for answer, image in zip(answers, images, strict=True):
            assert_answers(answer, image, middle)


async def test_metrics_tell_what_happened(model: Path, direct: list[Direct], middle: float) -> None:
    async with serving(model, middle) as server:
        answers = [await server.classify(image.body) for image in direct[:20]]
        spec = server.engine.spec
        high = sum(image.confidence <= middle for image in direct[:20])
        assert server.count("images_total", model="tiny/1", exit="low", reason="confident") == 20 - high
        assert server.count("images_total", model="tiny/1", exit="high", reason="escalated") == high
        assert server.count("multiply_adds_total", model="tiny/1", stage="low") == 20 * round(spec.low_mmacs * 1e6)
        assert server.count("multiply_adds_total", model="tiny/1", stage="high") == high * round(spec.high_mmacs * 1e6)
        assert server.count("batch_size_sum", stage="low") == server.count("decode_seconds_count") == 20
        summary = server.engine.recent.summary()
        assert (summary.images, summary.exit_rate) == (20, (20 - high) / 20)
        assert summary.mean_mmacs == pytest.approx(sum(answer.mmacs for answer in answers) / 20)


async def test_images_that_wait_together_run_together(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 0.0) as server:
        gate = server.gate("low")
        first = server.start(direct[0].body)
        await gate.arrival()
        others = [server.start(image.body) for image in direct[1:7]]
        await server.waiting("low", 6)
        assert server.engine.queue_age("low") > 0
        gate.open()
        await outcomes([first, *others])
        assert gate.sizes == [1, 4, 2]


# errors


async def test_undecodable_image_fails_and_the_next_is_answered(model: Path, direct: list[Direct]) -> None:
    async with serving(model) as server:
        for body in (b"", b"no image", direct[0].body[:60]):
            with pytest.raises(InvalidImage):
                await server.classify(body)
        assert_answers(await server.classify(direct[0].body), direct[0], 0.5)


@pytest.mark.parametrize(("stage", "threshold"), [("low", 0.0), ("high", 1.0)])
async def test_image_that_breaks_its_batch_fails_alone(
    model: Path, direct: list[Direct], stage: Stage, threshold: float
) -> None:
    async with serving(model, threshold) as server:

        def gate_then_refuse_white(now: Stage, images: Tensor) -> None:
            gate(now, images)
            if now == stage:
                refuse_white(now, images)

        gate = Gate("low")
        server.predictor.before = gate_then_refuse_white
        first = server.start(direct[0].body)
        await gate.arrival()
        bodies = [direct[1].body, WHITE, direct[2].body]
        others = [server.start(body) for body in bodies]
        await server.waiting("low", 3)
        gate.open()
        good, poisonous, fine = await outcomes(others)
        assert isinstance(poisonous, DeviceFailed)
        assert "white" not in str(poisonous)
        for answer, image in ((await first, direct[0]), (good, direct[1]), (fine, direct[2])):
            assert_answers(answer, image, threshold)
        assert gate.sizes[:2] == [1, 3]


# clients that leave


async def test_client_that_leaves_while_its_batch_runs_harms_nobody(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0) as server:
        gate = server.gate("low")
        tasks = [server.start(direct[0].body)]
        await gate.arrival()
        tasks += [server.start(image.body) for image in direct[1:4]]
        await server.waiting("low", 3)
        gate.let_one_through()
        await gate.arrival()
        await leave(tasks.pop(2))
        gate.open()
        answers = await outcomes(tasks)
        for answer, image in zip(answers, (direct[0], direct[1], direct[3]), strict=True):
            assert_answers(answer, image, 1.0)
        assert server.dropped() == {"escalation": 1}
        assert server.count("images_total", model="tiny/1", exit="high", reason="escalated") == 3


async def test_image_of_a_client_that_left_is_not_decoded(model: Path, direct: list[Direct]) -> None:
    async with serving(model, decode_threads=1) as server:
        free = threading.Event()
        assert server.engine._decoders is not None
        server.engine._decoders.submit(free.wait, TIMEOUT)
        leaving, staying = server.start(direct[0].body), server.start(direct[1].body)
        await asyncio.sleep(0)
        await leave(leaving)
        free.set()
        assert_answers(await staying, direct[1], 0.5)
        assert server.dropped() == {"decode": 1}
        assert server.count("decode_seconds_count") == 1


async def test_image_of_a_client_that_left_is_dropped_before_its_low_pass(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 0.0) as server:
        gate = server.gate("low")
        tasks = [server.start(direct[0].body)]
        await gate.arrival()
        tasks += [server.start(image.body) for image in direct[1:4]]
        await server.waiting("low", 3)
        await leave(tasks.pop(2))
        gate.open()
        assert all(isinstance(answer, Answer) for answer in await outcomes(tasks))
        assert gate.sizes == [1, 2]
        assert server.dropped() == {"low": 1}


async def escalate_behind(server: Server, gate: Gate, body: bytes, **ask: Any) -> tuple[asyncio.Task[Answer], ...]:
    """An image that waits for its high pass, behind an older one that stands before the low gate."""
    escalated = server.start(body, **ask)
    await gate.arrival()
    older = server.start(body, arrival=time.monotonic() - 1000)
    await server.waiting("low", 1)
    gate.let_one_through()
    await gate.arrival()
    await server.waiting("high", 1)
    return escalated, older


async def test_image_of_a_client_that_left_is_dropped_before_its_high_pass(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0) as server:
        gate = server.gate("low")
        escalated, older = await escalate_behind(server, gate, direct[0].body)
        await leave(escalated)
        gate.open()
        await older
        assert server.dropped() == {"high": 1}
        assert server.count("batch_size_sum", stage="high") == 1


async def test_many_clients_that_leave_at_once_leave_nothing_behind(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0, workers=2) as server:
        gate = server.gate("low")
        tasks = [server.start(image.body) for image in direct]
        await gate.arrival()
        await leave(*tasks)
        gate.open()
        assert server.admission.images == 0
        assert_answers(await server.classify(direct[0].body), direct[0], 1.0)
        await until(lambda: sum(server.dropped().values()) == IMAGES)


# deadlines


async def test_deadline_before_the_low_pass_is_an_error(model: Path, direct: list[Direct]) -> None:
    async with serving(model) as server:
        gate = server.gate("low")
        first = server.start(direct[0].body)
        await gate.arrival()
        with pytest.raises(DeadlinePassed, match="before any answer existed"):
            await server.classify(direct[1].body, deadline=0.01)
        gate.open()
        await first
        await until(lambda: sum(server.dropped().values()) == 1)


async def test_deadline_that_passed_on_arrival_is_an_error(model: Path, direct: list[Direct]) -> None:
    async with serving(model) as server:
        server.gate("low")
        with pytest.raises(DeadlinePassed):
            await server.classify(direct[0].body, arrival=time.monotonic() - 5, deadline=1.0)


async def test_deadline_while_waiting_for_the_high_pass_gives_the_low_answer(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0) as server:
        gate = server.gate("low")
        escalated, older = await escalate_behind(server, gate, direct[0].body, deadline=1.5)
        answer = await escalated  # while the only worker stands before the gate
        assert (answer.exit, answer.reason, answer.degraded) == ("low", "deadline", True)
        assert answer.mmacs == server.engine.spec.low_mmacs
        torch.testing.assert_close(answer.top_k[0].score, direct[0].low.max().item(), rtol=1e-3, atol=0)
        gate.open()
        await older
        assert server.dropped() == {"high": 1}
        assert server.count("images_total", model="tiny/1", exit="low", reason="deadline") == 1


async def test_far_deadline_changes_nothing(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0) as server:
        answer = await server.classify(direct[0].body, deadline=1000.0)
        assert (answer.exit, answer.degraded) == ("high", False)


# limits


@pytest.mark.parametrize("slots", [1, 3])
async def test_few_feature_slots_slow_down_and_stop_nothing(model: Path, direct: list[Direct], slots: int) -> None:
    async with serving(model, 1.0, workers=3, feature_slots=slots) as server:
        answers = await outcomes([server.start(image.body) for image in direct])
        for answer, image in zip(answers, direct, strict=True):
            assert_answers(answer, image, 1.0)


async def test_every_slot_comes_back_whatever_became_of_its_image(
    model: Path, direct: list[Direct], middle: float
) -> None:
    async with serving(model, middle, feature_slots=3, workers=2) as server:
        server.predictor.before = refuse_white
        bodies = [WHITE if i % 5 == 0 else image.body for i, image in enumerate(direct)]
        tasks = [server.start(body, deadline=0.05 if i % 7 == 0 else None) for i, body in enumerate(bodies)]
        for task in tasks[3::11]:
            task.cancel()
        await outcomes(tasks)
        await until(lambda: server.engine._scheduler.free_slots == 3)


async def test_answered_images_are_let_go_at_once(model: Path, direct: list[Direct], middle: float) -> None:
    async with serving(model, middle, workers=2) as server:
        gc.collect()
        gc.disable()  # what only the collector would find is kept too long
        try:
            await outcomes([server.start(image.body, deadline=1000.0) for image in direct])
            await until(lambda: not entries_alive())
        finally:
            gc.enable()


async def test_images_of_clients_that_left_are_let_go(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0) as server:
        gate = server.gate("low")
        tasks = [server.start(image.body) for image in direct]
        await gate.arrival()
        await leave(*tasks)
        tasks.clear()
        gate.open()
        await until(lambda: sum(server.dropped().values()) == IMAGES)
        await until(lambda: gc.collect() >= 0 and not entries_alive())


def entries_alive() -> int:
    return sum(type(thing) is Entry for thing in gc.get_objects())


# what is kept of escalated images


def bytes_kept(server: Server) -> float:
    return server.engine.feature_bytes


async def nothing_is_kept(server: Server) -> None:
    await until(lambda: bytes_kept(server) == 0)


async def test_features_of_an_escalated_image_are_counted_until_its_answer(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0) as server:
        assert bytes_kept(server) == 0
        state = server.predictor.low(decode(direct[0].body, server.engine.spec.preprocessing)[None])
        gate = server.gate("high")
        task = server.start(direct[0].body)
        await gate.arrival()
        assert bytes_kept(server) == sum(tensor.nbytes for tensor in (state.logits, *state.features)) > 0
        gate.open()
        await task
        await nothing_is_kept(server)


async def test_features_of_images_that_exit_are_not_kept(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 0.0) as server:
        await outcomes([server.start(image.body) for image in direct])
        await nothing_is_kept(server)


async def test_features_of_an_image_whose_client_left_are_let_go(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0) as server:
        gate = server.gate("low")
        escalated, older = await escalate_behind(server, gate, direct[0].body)
        assert bytes_kept(server) > 0
        await leave(escalated)
        gate.open()
        await older
        await nothing_is_kept(server)


@pytest.mark.parametrize("stage", ["low", "high"])
async def test_features_of_an_image_that_fails_are_let_go(model: Path, direct: list[Direct], stage: Stage) -> None:
    async with serving(model, 1.0) as server:
        await server.classify(direct[0].body)
        server.predictor.before = lambda now, images: refuse_white(now, images) if now == stage else None
        with pytest.raises(DeviceFailed):
            await server.classify(WHITE)
        await nothing_is_kept(server)


# overload


async def swamp(server: Server, body: bytes, **ask: Any) -> tuple[Gate, asyncio.Task[Answer]]:
    """An image before the low gate, with the target so short that this one is too many; its gate is still shut."""
    await server.classify(body)  # so that a confidence is known
    gate = server.gate("low")
    task = server.start(body, **ask)
    await gate.arrival()
    steered = server.engine._brown_out._at
    await until(lambda: server.engine._brown_out._at != steered and server.engine._brown_out._share == 0)
    return gate, task


async def test_overload_lowers_the_threshold_to_its_floor_and_says_so(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0, floor=0.1, target_latency=1e-9) as server:
        gate, task = await swamp(server, direct[0].body)
        assert server.engine.effective_threshold == 0.1
        assert server.engine.asked.threshold == 1.0
        gate.open()
        answer = await task
        assert (answer.exit, answer.reason, answer.degraded, answer.threshold) == ("low", "brownout", True, 0.1)
        assert answer.mmacs == server.engine.spec.low_mmacs
        assert server.count("images_total", model="tiny/1", exit="low", reason="brownout") == 1


async def test_overload_lowers_nothing_without_a_floor(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0, target_latency=1e-9) as server:
        gate, task = await swamp(server, direct[0].body)
        assert server.engine.effective_threshold == 1.0
        gate.open()
        assert (await task).reason == "escalated"


async def test_threshold_that_a_request_names_is_not_lowered(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0, floor=0.1, target_latency=1e-9) as server:
        gate, task = await swamp(server, direct[0].body, threshold=1.0)
        assert server.engine.effective_threshold == 0.1
        gate.open()
        answer = await task
        assert (answer.exit, answer.reason, answer.threshold) == ("high", "escalated", 1.0)


async def test_image_that_would_exit_anyway_is_not_degraded_by_overload(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 0.2, floor=0.1, target_latency=1e-9) as server:
        gate, task = await swamp(server, direct[0].body)
        assert server.engine.effective_threshold == 0.1
        gate.open()
        answer = await task
        assert (answer.reason, answer.degraded) == ("confident", False)


async def test_threshold_returns_when_the_overload_is_over(
    model: Path, direct: list[Direct], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.engine.brown_out.RETURN_SECONDS", 0.1)
    async with serving(model, 1.0, floor=0.1, target_latency=1e-9) as server:
        gate, task = await swamp(server, direct[0].body)
        gate.open()
        await task
        await until(lambda: server.engine.effective_threshold == 1.0)


async def test_workers_decode_where_no_thread_does(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0, decode_threads=0) as server:
        gate = server.gate("low")
        tasks = [server.start(direct[0].body)]
        await gate.arrival()
        bodies = [direct[1].body, b"\xff\xd8\xff and no more", direct[2].body]
        tasks += [server.start(body) for body in bodies]
        await server.waiting("low", 3)
        leaving = server.start(direct[3].body)
        await server.waiting("low", 4)
        gate.open()
        await leave(leaving)
        first, second, broken, third = await outcomes(tasks)
        for answer, image in zip((first, second, third), direct[:3], strict=True):
            assert_answers(answer, image, 1.0)
        assert isinstance(broken, InvalidImage)
        assert gate.sizes[0] == 1
        assert gate.sizes[1] <= 3  # the broken one is in no pass
        assert server.count("decode_seconds_count") <= 4
        await until(lambda: server.engine._scheduler.free_slots == Limits().feature_slots)


async def test_batch_of_nothing_but_broken_images_is_told_and_gives_its_slots_back(model: Path) -> None:
    async with serving(model, decode_threads=0, feature_slots=2) as server:
        told = await outcomes([server.start(b"no image") for _ in range(6)])
        assert [type(error) for error in told] == [UnsupportedImage] * 6
        await until(lambda: server.engine._scheduler.free_slots == 2)
        assert server.engine.why_not_ready() is None


async def test_images_not_decoded_in_time_wait_again(
    model: Path, direct: list[Direct], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "DECODE_SECONDS", 0.0)
    async with serving(model, 1.0) as server:
        gate = server.gate("low")
        tasks = [server.start(direct[0].body)]
        await gate.arrival()
        tasks += [server.start(image.body) for image in direct[1:4]]
        await server.waiting("low", 3)
        gate.open()
        for answer, image in zip(await outcomes(tasks), direct, strict=False):
            assert_answers(answer, image, 1.0)
        assert gate.sizes == [1, 1, 1, 1]
        await until(lambda: server.engine._scheduler.free_slots == Limits().feature_slots)


async def test_image_that_dies_while_its_batch_is_decoded_is_not_computed(
    model: Path, direct: list[Direct], monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def wait_at_the_third(data: bytes, preprocessing: Preprocessing) -> Tensor:
        if data == direct[2].body:
            reached.set()
            assert go_on.wait(TIMEOUT)
        return decode(data, preprocessing)

    monkeypatch.setattr(batch_runner, "DECODE_SECONDS", TIMEOUT)
    monkeypatch.setattr(decoding, "decode", wait_at_the_third)
    async with serving(model) as server:
        gate = server.gate("low")
        first = server.start(direct[0].body)
        await gate.arrival()
        leaving, staying = server.start(direct[1].body), server.start(direct[2].body)
        await server.waiting("low", 2)
        gate.open()
        assert await asyncio.to_thread(reached.wait, TIMEOUT)
        await leave(leaving)
        go_on.set()
        await outcomes([first, staying])
        assert gate.sizes == [1, 1]
        assert server.dropped() == {"low": 1}
        await until(lambda: server.engine._scheduler.free_slots == Limits().feature_slots)


async def test_decoder_that_breaks_is_our_fault_and_costs_its_image_alone(
    model: Path, direct: list[Direct], monkeypatch: pytest.MonkeyPatch
) -> None:
    def break_down(data: bytes, preprocessing: Preprocessing) -> Tensor:
        if data == direct[0].body:
            raise MemoryError
        return decode(data, preprocessing)

    monkeypatch.setattr(decoding, "decode", break_down)
    async with serving(model) as server:
        broken, answer = await outcomes([server.start(direct[0].body), server.start(direct[1].body)])
        assert isinstance(broken, DeviceFailed)
        assert_answers(answer, direct[1], 0.5)
        assert server.engine.why_not_ready() is None


async def test_decoded_images_that_wait_are_bounded(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 0.0, max_batch_size=1, decode_threads=2) as server:
        gate = server.gate("low")
        tasks = [server.start(image.body) for image in direct]
        depths = []
        for _ in direct:
            await gate.arrival()
            waits = server.engine.queue_depth()["low"]
            depths.append(waits)
            gate.let_one_through()
        assert all(isinstance(answer, Answer) for answer in await outcomes(tasks))
        assert max(depths) <= AHEAD + 2 - 1


# audits


async def test_image_that_exits_is_audited_after_its_client_has_the_answer(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 0.0, audit_probability=1.0) as server:
        gate = server.gate("high")
        answer = await server.classify(direct[0].body)
        assert (answer.exit, answer.mmacs) == ("low", server.engine.spec.low_mmacs)
        await gate.arrival()
        assert server.count("audits_total", model="tiny/1") == 0
        gate.open()
        await until(lambda: server.count("audits_total", model="tiny/1") == 1)


async def test_audits_tell_how_often_the_high_pass_disagrees(model: Path, direct: list[Direct]) -> None:
    disagree = [image.low.argmax() != image.high.argmax() for image in direct]
    assert 0 < sum(disagree) < IMAGES
    async with serving(model, 0.0, audit_probability=1.0) as server:
        for done, image in enumerate(direct, 1):
            await server.classify(image.body)
            await until(lambda done=done: server.count("audits_total", model="tiny/1") == done)  # type: ignore[misc]
        assert server.count("audit_disagreements_total", model="tiny/1") == sum(disagree)
        assert server.engine.recent.disagreement_at(0.0) == (sum(disagree), IMAGES)
        each = round(server.engine.spec.high_mmacs * 1e6)
        assert server.count("multiply_adds_total", model="tiny/1", stage="audit") == IMAGES * each
        assert server.count("images_total", model="tiny/1", exit="low", reason="confident") == IMAGES
        await until(lambda: server.engine._scheduler.free_slots == Limits().feature_slots)


async def test_only_the_drawn_share_is_audited(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 0.0, audit_probability=0.0) as server:
        gate = server.gate("high")
        await outcomes([server.start(image.body) for image in direct])
        await until(lambda: server.engine._scheduler.free_slots == Limits().feature_slots)
        assert gate.sizes == []


async def test_audits_that_there_is_no_room_for_are_counted(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 0.0, audit_probability=1.0, feature_slots=4) as server:  # no eighth of four
        await outcomes([server.start(image.body) for image in direct])
        await until(lambda: server.count("audits_skipped_total") == IMAGES)
        assert server.count("audits_total", model="tiny/1") == 0
        await until(lambda: server.engine._scheduler.free_slots == 4)


@pytest.mark.parametrize("workers", [1, 2])
async def test_close_gives_audits_up_and_answers_all(model: Path, direct: list[Direct], workers: int) -> None:
    async with serving(model, 0.0, audit_probability=1.0, workers=workers, feature_slots=64) as server:
        gate = server.gate("low")
        tasks = [server.start(image.body) for image in direct]
        await gate.arrival()
        closing = asyncio.create_task(server.engine.close())
        await until(lambda: server.engine.why_not_ready() is not None)
        gate.open()
        assert all(isinstance(answer, Answer) for answer in await outcomes(tasks))
        await asyncio.wait_for(closing, TIMEOUT)
        assert server.engine._scheduler.free_slots == 64


async def test_image_that_cannot_be_audited_harms_nobody(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 0.0, audit_probability=1.0) as server:
        server.predictor.before = lambda now, images: refuse_white(now, images) if now == "high" else None
        assert isinstance(await server.classify(WHITE), Answer)
        await until(lambda: server.engine._scheduler.free_slots == Limits().feature_slots)
        assert_answers(await server.classify(direct[0].body), direct[0], 0.0)
        assert server.engine.why_not_ready() is None


# starting and stopping


async def test_engine_starts_with_the_times_it_is_given(model: Path) -> None:
    profile = LatencyTable({1: 1.0, 8: 3.0}, {2: 4.0})
    async with serving(model, profile=profile) as server:
        assert server.engine.latency_table == profile


async def test_engine_measures_the_times_it_is_not_given(model: Path) -> None:
    async with serving(model, profile=None) as server:
        table = server.engine.latency_table
        assert 1 in table.low
        assert 1 in table.high


def workers_since(before: set[threading.Thread]) -> set[threading.Thread]:
    """Worker threads alive now; another engine of this process may have its own."""
    return {thread for thread in set(threading.enumerate()) - before if thread.name.startswith("worker-")}


@pytest.mark.parametrize("fails", [1, 1000])
@pytest.mark.parametrize("stage", ["low", "high"])
async def test_engine_that_cannot_warm_up_says_why_and_leaves_no_thread(model: Path, stage: Stage, fails: int) -> None:
    predictor = WatchedPredictor.load(model, "cpu", "float32")
    assert isinstance(predictor, WatchedPredictor)
    left = iter(range(fails))  # so many passes, of one worker or of both
    before = set(threading.enumerate())

    def refuse(now: Stage, images: Tensor) -> None:
        if now == stage and next(left, None) is not None:
            raise ValueError(f"{len(images)} are too many")

    predictor.before = refuse
    config = MemoryConfigStore(start(0.5))
    engine = Engine(predictor, config, None, Metrics(CollectorRegistry()), Limits(max_batch_size=2, workers=2))
    try:
        with pytest.raises(ValueError, match="are too many"):
            await in_time(engine.start(PROFILE))
        assert engine.why_not_ready() == "the model is being loaded"
        await until(lambda: not workers_since(before))
    finally:
        await in_time(engine.close())


async def test_engine_that_was_not_started_takes_nothing(model: Path, direct: list[Direct]) -> None:
    predictor = Predictor.load(model, "cpu", "float32")
    config = MemoryConfigStore(start(0.5))
    engine = Engine(predictor, config, None, Metrics(CollectorRegistry()), Limits())
    assert engine.why_not_ready() == "the model is being loaded"
    with pytest.raises(Draining, match="the model is being loaded"):
        await engine.classify(direct[0].body, Ask(arrival=time.monotonic()))
    await in_time(engine.close())


async def test_started_engine_is_ready(model: Path) -> None:
    async with serving(model) as server:
        assert server.engine.why_not_ready() is None


async def test_drained_engine_is_not_ready_and_answers(model: Path, direct: list[Direct]) -> None:
    async with serving(model) as server:
        server.engine.drain()
        assert server.engine.why_not_ready() == "the server is stopping"
        assert_answers(await server.classify(direct[0].body), direct[0], 0.5)


@pytest.mark.parametrize("slots", [1, 128])
async def test_close_answers_all_that_wait(model: Path, direct: list[Direct], slots: int) -> None:
    async with serving(model, 1.0, workers=4, feature_slots=slots) as server:
        gate = server.gate("low")
        tasks = [server.start(image.body) for image in direct]
        await gate.arrival()
        closing = asyncio.create_task(server.engine.close())
        await until(lambda: server.engine.why_not_ready() is not None)
        with pytest.raises(Draining):
            await server.classify(direct[0].body)
        gate.open()
        for answer, image in zip(await outcomes(tasks), direct, strict=True):
            assert_answers(answer, image, 1.0)
        await asyncio.wait_for(closing, TIMEOUT)


async def test_closing_twice_is_harmless(model: Path) -> None:
    async with serving(model) as server:
        await in_time(server.engine.close())
        await in_time(server.engine.close())
        with pytest.raises(Draining):
            await server.classify(b"")


async def test_closed_engine_leaves_no_thread(model: Path, direct: list[Direct]) -> None:
    before = set(threading.enumerate())
    async with serving(model, workers=3, decode_threads=1) as server:
        await server.classify(direct[0].body)
        started = {thread.name for thread in set(threading.enumerate()) - before}
        assert {"worker-0", "worker-1", "worker-2", "decode_0"} <= started
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not [name for name in left if name.startswith(("worker-", "decode"))]


# a device that fails


def die_behind(gate: Gate) -> Callable[[Stage, Tensor], None]:
    def die(stage: Stage, images: Tensor) -> None:
        gate(stage, images)
        raise Death

    return die


@pytest.mark.parametrize("workers", [1, 2])
async def test_nobody_waits_for_a_dead_worker(model: Path, direct: list[Direct], workers: int) -> None:
    async with serving(model, workers=workers, feature_slots=1) as server:
        gate = Gate("low")
        server.predictor.before = die_behind(gate)
        tasks = [server.start(image.body) for image in direct[:10]]
        await gate.arrival()
        gate.open()
        assert all(isinstance(error, DeviceFailed) for error in await outcomes(tasks))
        assert "the device failed" in (server.engine.why_not_ready() or "")
        with pytest.raises(Draining, match="the device failed"):
            await server.classify(direct[0].body)


async def test_device_that_works_again_is_ready_again(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0, workers=2) as server:
        gate = Gate("low")
        server.predictor.before = die_behind(gate)
        tasks = [server.start(image.body) for image in direct[:10]]
        gate.open()
        await outcomes(tasks)
        await until(lambda: server.engine.why_not_ready() is not None)
        server.predictor.before = WatchedPredictor.before
        await until(lambda: server.engine.why_not_ready() is None)
        assert_answers(await server.classify(direct[0].body), direct[0], 1.0)


async def test_device_that_fails_tells_why_and_answers_the_next_image_once_it_works(
    model: Path, direct: list[Direct]
) -> None:
    async with serving(model, 1.0) as server:

        def fail(stage: Stage, images: Tensor) -> None:
            raise RuntimeError(f"no {stage} pass of {len(images)}")

        server.predictor.before = fail
        answered = await outcomes([server.start(image.body) for image in direct[:6]])
        assert all(isinstance(answer, DeviceFailed | Draining) for answer in answered)
        assert any(isinstance(answer, DeviceFailed) for answer in answered)
        assert "no low pass" in (server.engine.why_not_ready() or "")
        server.predictor.before = WatchedPredictor.before
        await until(lambda: server.engine.why_not_ready() is None)
        assert_answers(await server.classify(direct[0].body), direct[0], 1.0)
        await until(lambda: server.engine._scheduler.free_slots == Limits().feature_slots)


async def test_worker_that_fails_leaves_the_other_serving(model: Path, direct: list[Direct]) -> None:
    before = set(threading.enumerate())
    async with serving(model, 1.0, workers=2) as server:
        first_life = workers_since(before)
        failing: list[threading.Thread] = []

        def fail(stage: Stage, images: Tensor) -> None:
            """In the worker that comes first, and in those that replace it."""
            failing[:] = failing or [threading.current_thread()]
            if threading.current_thread() not in first_life.difference(failing):
                raise RuntimeError(f"one of two, in its {stage} pass of {len(images)}")

        server.predictor.before = fail
        with pytest.raises(DeviceFailed):
            await server.classify(direct[0].body)
        await until(lambda: server.engine.why_not_ready() is not None)
        for image in direct[1:5]:
            assert_answers(await server.classify(image.body), image, 1.0)
        assert "one of two" in (server.engine.why_not_ready() or "")
        server.predictor.before = WatchedPredictor.before
        await until(lambda: server.engine.why_not_ready() is None)
        assert_answers(await server.classify(direct[0].body), direct[0], 1.0)


async def test_image_that_no_pass_can_run_does_not_stop_the_server(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0) as server:
        server.predictor.before = refuse_white
        for _ in range(3):
            with pytest.raises(DeviceFailed):
                await server.classify(WHITE)
            assert server.engine.why_not_ready() is None
        assert_answers(await server.classify(direct[0].body), direct[0], 1.0)


async def test_death_of_one_worker_leaves_nobody_waiting(model: Path, direct: list[Direct]) -> None:
    async with serving(model, 1.0, workers=2) as server:
        deaths = iter(range(1))

        def die_once(stage: Stage, images: Tensor) -> None:
            if next(deaths, None) is not None:
                raise Death(stage, len(images))

        server.predictor.before = die_once
        with pytest.raises(DeviceFailed):
            await server.classify(direct[0].body)
        await until(lambda: server.engine._scheduler.free_slots == Limits().feature_slots)


@pytest.mark.parametrize("closes_first", [False, True])
async def test_close_does_not_wait_for_a_device_that_fails(
    model: Path, direct: list[Direct], closes_first: bool
) -> None:
    async with serving(model, 1.0, max_batch_size=1) as server:
        gate = Gate("low")

        def fail_behind(stage: Stage, images: Tensor) -> None:
            gate(stage, images)
            raise RuntimeError("it never works again")

        server.predictor.before = fail_behind
        tasks = [server.start(image.body) for image in direct[: 3 * AHEAD]]
        await gate.arrival()
        await until(lambda: server.engine.queue_depth()["low"] >= AHEAD)  # decoders wait for room
        try:
            closing = asyncio.create_task(server.engine.close()) if closes_first else None
            await asyncio.sleep(0)
            gate.open()
            assert all(isinstance(error, DeviceFailed) for error in await outcomes(tasks))
            await asyncio.wait_for(closing or server.engine.close(), TIMEOUT)
        finally:
            server.predictor.before = WatchedPredictor.before  # or the decoders wait for ever


async def test_images_of_a_closing_server_are_answered_though_its_last_worker_fails(
    model: Path, direct: list[Direct]
) -> None:
    one_by_one = LatencyTable(PROFILE.low, {1: 1.0, 32: 32.0})
    before = set(threading.enumerate())
    async with serving(model, 1.0, workers=2, profile=one_by_one) as server:
        first, second = server.gate("low"), Gate("low")
        tasks = []
        for image in direct[:2]:
            tasks.append(server.start(image.body))
            await first.arrival()  # in a worker of its own
        tasks += [server.start(image.body) for image in direct[2:6]]
        await server.waiting("low", 4)
        closing = asyncio.create_task(server.engine.close())
        await until(lambda: server.engine._scheduler._closed)
        server.predictor.before = second
        first.open()
        await second.arrival()  # the four, in one worker
        await until(lambda: len(workers_since(before)) == 1)  # the other one has left

        def fail(stage: Stage, images: Tensor) -> None:
            second(stage, images)
            if stage == "high":
                raise RuntimeError("broken")

        server.predictor.before = fail
        second.open()
        answered = await outcomes(tasks)
        await asyncio.wait_for(closing, TIMEOUT)
        assert all(isinstance(answer, Answer) for answer in answered[:2])
        assert all(isinstance(answer, DeviceFailed) for answer in answered[2:])


async def test_death_while_closing_does_not_hold_it_up(model: Path, direct: list[Direct]) -> None:
    async with serving(model, workers=3, feature_slots=1) as server:
        gate = Gate("low")
        server.predictor.before = die_behind(gate)
        tasks = [server.start(image.body) for image in direct[:3]]
        await gate.arrival()
        await server.waiting("low", 2)
        closing = asyncio.create_task(server.engine.close())
        await until(lambda: server.engine._scheduler._closed)
        gate.open()
        await asyncio.wait_for(closing, TIMEOUT)
        assert all(isinstance(error, DeviceFailed) for error in await outcomes(tasks))


# the cache


@pytest.fixture
def cache() -> MemoryResultCache:
    return MemoryResultCache(capacity=100)


async def test_image_seen_before_is_answered_from_the_cache(
    model: Path, direct: list[Direct], middle: float, cache: MemoryResultCache
) -> None:
    async with serving(model, middle, cache) as server:
        for image in direct[:8]:
            first, again = await server.classify(image.body), await server.classify(image.body)
            assert_answers(again, image, middle)
            assert (again.top_k, again.confidence, again.exit) == (first.top_k, first.confidence, first.exit)
            assert (again.reason, again.cached, again.mmacs, again.degraded) == ("cached", True, 0, False)
        assert server.count("cache_requests_total", result="hit") == 8
        assert server.count("cache_requests_total", result="miss") == 8
        assert server.count("batch_size_sum", stage="low") == 8


async def test_cached_passes_answer_at_any_threshold(
    model: Path, direct: list[Direct], cache: MemoryResultCache
) -> None:
    async with serving(model, 1.0, cache) as server:
        await server.classify(direct[0].body)
        await server.change_threshold(0.0)
        low = await server.classify(direct[0].body)
        await server.change_threshold(1.0)
        high = await server.classify(direct[0].body)
        assert (low.exit, low.reason, high.exit, high.reason) == ("low", "cached", "high", "cached")
        assert_answers(low, direct[0], 0.0)
        assert_answers(high, direct[0], 1.0)


async def test_escalation_completes_what_the_cache_knows(
    model: Path, direct: list[Direct], cache: MemoryResultCache
) -> None:
    async with serving(model, 0.0, cache) as server:
        await server.classify(direct[0].body)
        escalated = await server.classify(direct[0].body, threshold=1.0)
        assert (escalated.exit, escalated.reason) == ("high", "escalated")
        assert (await server.classify(direct[0].body, threshold=1.0)).reason == "cached"
        assert (await server.classify(direct[0].body)).reason == "cached"


async def test_other_bytes_are_another_image(model: Path, direct: list[Direct], cache: MemoryResultCache) -> None:
    async with serving(model, 0.5, cache) as server:
        await server.classify(direct[0].body)
        assert not (await server.classify(direct[0].body + b"\0")).cached


async def test_errors_are_not_cached(model: Path, cache: MemoryResultCache) -> None:
    async with serving(model, 0.5, cache) as server:
        for _ in range(2):
            with pytest.raises(InvalidImage):
                await server.classify(b"no image")


class SlowCache(MemoryResultCache):
    """Answers once ``answers`` is set, as one that is far away does."""

    def __init__(self) -> None:
        super().__init__(capacity=10)
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def get(self, key: str) -> CachedPasses | None:
        self.asked.set()
        await self.answers.wait()
        return await super().get(key)


async def test_engine_that_closes_while_the_cache_is_asked_says_so(model: Path, direct: list[Direct]) -> None:
    cache = SlowCache()
    async with serving(model, 0.5, cache) as server:
        task = server.start(direct[0].body)
        await cache.asked.wait()
        await in_time(server.engine.close())
        cache.answers.set()
        with pytest.raises(Draining):
            await task
