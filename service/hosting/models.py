"""The served models, each with its own engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from service.engine.engine import Engine
from service.engine.limits import Limits
from service.errors import BrokenModel, DeviceFailed, InvalidOption, LowfirstError, NotFound
from service.hosting.applied import Applied, first_config
from service.hosting.gauges import EngineGauges
from service.hosting.trial import TrialRun
from service.hosting.trial_gauges import TrialGauges
from service.inference.latency import LatencyProfile, LatencyTable
from service.inference.precomputing import Precomputed, Precomputing
from service.inference.predictor import Predictor
from service.inference.single_scale import single_scale
from service.log import logger
from service.metrics import Metrics
from service.samples.log import SampleLog
from service.state.base import ConfigStore, ResultCache, RuntimeConfig
from service.store import ModelStore


class Models:
    """Engines by model name; the first is the default. All methods run in one event loop.

    Args:
        first: the initial models, at least one, with different names.
        store: source of other models.
        load: loads a model from a folder of the store, with its converted stages if there are any. Called in a thread.
        config: names the served models and their thresholds.
        cache: computed results; None disables it.
        metrics: count everything.
        limits: of each engine.
        profile: latency profile, used for the model that it fits; None measures at start-up.
        agree: returns the latency table that all processes use, given a model's reference and the one measured here.
        samples: the sample log; None disables it.
        precomputing: converts and measures other models in a process of its own; closed with the models.

    Attributes:
        trial: the model that is ready for a trial; None without one.
    """

    def __init__(
        self,
        first: Sequence[Predictor],
        store: ModelStore,
        load: Callable[[Path, Path | None], Predictor],
        config: ConfigStore,
        cache: ResultCache | None,
        metrics: Metrics,
        limits: Limits,
        profile: LatencyProfile | None = None,
        agree: Callable[[str, LatencyTable], Awaitable[LatencyTable]] | None = None,
        samples: SampleLog | None = None,
        precomputing: Precomputing | None = None,
    ) -> None:
        self.store = store
        self.applied = Applied(config, first_config(first))
        self._load = load
        self._cache = cache
        self._metrics = metrics
        self._limits = limits
        self._profile = profile
        self._agree = agree
        self._samples = samples
        self._precomputing = precomputing or Precomputing(None)
        self._gauges = EngineGauges(metrics)
        self._trial_gauges = TrialGauges(metrics, self.applied)
        self._engines = {predictor.spec.name: self._engine(predictor, self._single(predictor)) for predictor in first}
        self.trial: TrialRun | None = None
        self.running = tuple(self)  # the served engines, and the one on trial
        self._retiring: set[asyncio.Task[None]] = set()
        self._draining = False
        self._follow()

    def __iter__(self) -> Iterator[Engine]:
        """All engines, that of the default model first."""
        return iter(tuple(self._engines.values()))

    @property
    def config(self) -> RuntimeConfig:
        """The runtime config as applied here."""
        return self.applied.current

    def queued_seconds(self) -> float:
        """Seconds that the device needs for all queued work."""
        return sum(engine.backlog.seconds() for engine in self.running)

    def named(self, name: str) -> Engine | None:
        """The engine that serves a version of model ``name``."""
        return self._engines.get(name)

    def known(self, reference: str) -> Engine | None:
        """The engine of ``name`` or ``name/version``; None if it is not served here."""
        return next((engine for engine in self if reference in (engine.spec.name, engine.spec.reference)), None)

    def find(self, reference: str | None) -> Engine:
        """The engine of ``name`` or ``name/version``; of the default model for None. Raises NotFound."""
        engine = next(iter(self)) if reference is None else self.known(reference)
        if engine is not None:
            return engine
        served = ", ".join(engine.spec.reference for engine in self)
        raise NotFound(f"model is {reference!r}; served: {served}", field="model", value=reference, bound=served)

    async def start(self) -> None:
        """Warm up every model. Raises: the exception of a stage."""
        for engine in self:
            await self._start(engine)

    def drain(self) -> None:
        """Become not ready. Requests are still answered until ``close``."""
        self._draining = True
        self._precomputing.stop()
        for engine in self:
            engine.drain()

    async def close(self) -> None:
        """Finish accepted images, then stop every thread."""
        await asyncio.gather(*self._retiring, *(engine.close() for engine in self.running))
        await asyncio.to_thread(self._precomputing.close)

    @property
    def is_draining(self) -> bool:
        """Whether the server is stopping."""
        return self._draining

    def why_not_ready(self) -> str | None:
        """Why the server is not ready; None if it is."""
        if self._draining:
            return "the server is stopping"
        return next((why for engine in self if (why := engine.why_not_ready()) is not None), None)

    async def prepare(self, reference: str) -> Engine:
        """Load and warm up a model of the store, without serving it yet.

        Raises:
            NotFound: it is not in the store.
            InvalidOption: it cannot be served.
            DeviceFailed: it cannot be run.
            PreparationEnded, Draining: see ``Precomputing.of``.
        """
        folder = self.store.find(reference)
        try:
            done = await self._precomputing.of(folder, is_timed=self._is_timed("/".join(folder.parts[-2:])))
            engine = await asyncio.to_thread(self._loaded, folder, done)
            await self._start(engine, done.table)
        except (BrokenModel, InvalidOption) as error:
            raise InvalidOption("model", reference, f"one that can be served: {error.message}") from error
        except LowfirstError:
            raise
        except Exception as error:
            logger.exception("%s cannot be warmed up", reference)
            raise DeviceFailed(f"{reference} cannot be warmed up: {error}", field="model", value=reference) from error
        return engine

    def stand_by(self, engine: Engine | None) -> None:
        """Keep ``engine`` ready for a trial, from the moment that the config names it; None: nothing."""
        if engine is not None and self.trial is not None and self.trial.tried is engine:
            return
        if self.trial is not None:
            self.trial.end()
        self.trial = None if engine is None else TrialRun(engine, self.applied, self._metrics)

    def adopt(self, engines: Mapping[str, Engine], tried: Engine | None = None) -> None:
        """Serve these engines, in this order, with ``tried`` on trial; the previous ones finish their images."""
        before, self._engines = self.running, dict(engines)
        self.stand_by(tried)
        self.running = (*self._engines.values(), *(() if tried is None else (tried,)))
        self.applied.served = tuple(engine.spec.key for engine in engines.values())
        self.applied.tried = None if tried is None else tried.spec.key
        for old in set(before) - set(self.running):
            retiring = asyncio.create_task(_retire(old))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
        self._follow()

    def _follow(self) -> None:
        """Point the gauges at the current engines."""
        self._gauges.follow(self.running)
        tried = self.running[len(self._engines) :]
        self._trial_gauges.follow(
            [(engine.spec.name, engine.spec.reference) for engine in self], tried[0].spec.reference if tried else None
        )

    def _loaded(self, folder: Path, done: Precomputed) -> Engine:
        """In a thread: nothing here takes the event loop's time."""
        predictor = self._load(folder, done.converted)
        return self._engine(predictor, None if done.table is not None else self._single(predictor))

    def _single(self, predictor: Predictor) -> Predictor | None:
        """The single-scale network, where it is to be timed."""
        return None if self._profile is not None and self._profile.fits(predictor) else single_scale(predictor)

    def _is_timed(self, reference: str) -> bool:
        return self._profile is not None and self._profile.model in ("", reference)

    def _engine(self, predictor: Predictor, single: Predictor | None) -> Engine:
        return Engine(
            predictor,
            self.applied,
            self._cache,
            self._metrics,
            self._limits,
            single=single,
            samples=self._samples,
        )

    async def _start(self, engine: Engine, table: LatencyTable | None = None) -> None:
        """Warm ``engine`` up; its times are those of the profile, or of ``table``, or measured."""
        profile = self._profile
        if profile is not None and profile.fits(engine.predictor):
            table = profile.table
        elif profile is not None:
            logger.warning(
                "the latency profile is for %s, not for %s: measuring again", profile.model, engine.spec.title
            )
        await engine.start(table)
        if self._agree is not None:
            engine.reckon_with(await self._agree(engine.spec.reference, engine.latency_table))


async def _retire(engine: Engine) -> None:
    """Let the engine finish its images. Its memory is freed with its last reference: no engine is part of a cycle."""
    reference = engine.spec.reference
    await engine.retire()
    logger.info("%s has finished its images and is unloaded", reference)
