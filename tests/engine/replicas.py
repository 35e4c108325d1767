"""Models that serve over a store, as one replica does, and what they were given."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from torch import Tensor

from service.engine.answer import Answer, Ask
from service.engine.comparison import Comparison
from service.engine.limits import Limits
from service.hosting.applied import first_config
from service.hosting.guard import Guard
from service.hosting.models import Models
from service.hosting.switching import Switching
from service.hosting.trials import Trials
from service.inference.latency import LatencyProfile, LatencyTable
from service.inference.predictor import Predictor
from service.metrics import Metrics
from service.networks.cascade import Carried
from service.state.base import ThresholdConfig
from service.state.memory import MemoryConfigStore
from service.store import WEIGHTS, ModelStore, read_spec, write_spec
from tests.engine.serving import TIMEOUT, in_time

PROFILE = LatencyProfile(LatencyTable(({1: 0.001}, {1: 0.002}), {1: 0.002}))
DEFAULTS = {"tiny/1": 0.65, "tiny/2": 0.4, "other/1": 0.8, "broken/1": 0.5}


def write_store(tiny: Path, root: Path) -> ModelStore:
    """The tiny model under three names, each with a default of its own, and once with weights that were changed."""
    for reference, threshold in DEFAULTS.items():
        folder = root / reference
        shutil.copytree(tiny / "tiny" / "1", folder)
        name, _, version = reference.partition("/")
        spec = dataclasses.replace(read_spec(folder), name=name, version=int(version), default_threshold=threshold)
        write_spec(folder, spec)
    weights = root / "broken" / "1" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    return ModelStore(root)


class Held(Predictor):
    """Stops every run of the first stage while it is not ``free``."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.free = threading.Event()
        self.free.set()
        self.arrived = threading.Event()

    def run(self, stage: int, images: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        if not stage and not self.free.is_set():
            self.arrived.set()
            assert self.free.wait(TIMEOUT)
        return super().run(stage, images, carried)

    async def hold(self) -> None:
        """An image stands before it."""
        assert await asyncio.to_thread(self.arrived.wait, TIMEOUT)


def load(folder: Path, converted: Path | None = None) -> Predictor:
    return Held.load(folder, "cpu", "float32", converted=converted)


@dataclasses.dataclass
class Replica:
    """Models that serve, and what they were given."""

    models: Models
    switching: Switching
    trials: Trials
    config: MemoryConfigStore
    registry: CollectorRegistry

    def served(self) -> list[str]:
        return [engine.spec.reference for engine in self.models]

    def held(self, reference: str | None = None) -> Held:
        predictor = self.models.find(reference).predictor
        assert isinstance(predictor, Held)
        return predictor

    async def ask(self, threshold: float) -> None:
        """Change the default model's threshold."""
        await self.demand(ThresholdConfig("threshold", threshold, threshold))

    async def demand(self, asked: ThresholdConfig) -> None:
        name = next(iter(self.models)).spec.name
        await self.config.update(lambda now: dataclasses.replace(now, thresholds={**now.thresholds, name: asked}))

    async def name(self, models: dict[str, int]) -> None:
        """Change which models are to be served, as another replica would."""
        await self.config.update(lambda now: dataclasses.replace(now, models=models))

    async def classify(self, body: bytes, reference: str | None = None) -> Answer:
        return await self.models.find(reference).classify(body, Ask(arrival=time.monotonic()))

    async def ask_for(self, body: bytes, **ask: Any) -> Answer:
        """As a client does, of the default model."""
        engine, asked = self.models.find(None), Ask(arrival=time.monotonic(), **ask)
        run = self.models.trial
        return await (engine.classify(body, asked) if run is None else run.classify(engine, body, asked))

    async def compared(self, images: int) -> Comparison:
        """What was counted, once that is of so many images."""
        trial = self.config.current.trial
        assert trial is not None
        async with asyncio.timeout(TIMEOUT):
            while (counts := await self.trials.comparison(trial)).images < images:
                await asyncio.sleep(0.001)
        return counts

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"lowfirst_{name}", labels)


@asynccontextmanager
async def serving_models(
    store: ModelStore, *references: str, config: MemoryConfigStore | None = None, **limits: int
) -> AsyncIterator[Replica]:
    predictors = [load(store.find(reference)) for reference in references or ("tiny/1",)]
    config = config or MemoryConfigStore(first_config(predictors))
    registry = CollectorRegistry()
    chosen = Limits(**{"max_batch_size": 2, **limits})
    models = Models(predictors, store, load, config, None, Metrics(registry), chosen, PROFILE)
    del predictors  # or the models that are replaced live on here
    switching = Switching(models, config)
    trials = Trials(models, config, switching, _nobody)
    guard = Guard(trials)
    try:
        await in_time(models.start())
        await in_time(switching.start())
        await guard.start()
        yield Replica(models, switching, trials, config, registry)
    finally:
        await in_time(guard.close())
        await in_time(switching.close())
        await in_time(models.close())


async def _nobody(_: float, __: Any) -> list[dict[str, Any]]:
    """What the other processes counted: there are none."""
    return []


def workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("worker-")}
