"""The models that are served: each by an engine of its own, replaced by another without a stop."""

from __future__ import annotations

import asyncio
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from service.engine.admission import Admission
from service.engine.applied import Applied, first_config, solved_anew
from service.engine.engine import Engine
from service.engine.entry import Answer
from service.engine.limits import Limits
from service.errors import BrokenModel, ConfigConflict, DeviceFailed, InvalidOption, LowfirstError, NotFound
from service.inference.latency import STAGES, LatencyTable, Stage
from service.inference.predictor import Predictor
from service.log import logger
from service.metrics import Metrics
from service.state.base import ConfigStore, ResultCache, RuntimeConfig, check_expected_version
from service.store import ModelStore

# How often the runtime config is looked at for models that another replica was told to serve.
FOLLOW_SECONDS = 0.2

# How long replicas that prepare a model are waited for: as long as it took here, but not less than this.
MIN_PATIENCE_SECONDS = 1.0

# How long a model is kept ready that another replica was told to serve, until it does.
FORESEEN_SECONDS = 60.0

# How long before what could not be served is tried again: its files may yet come.
RETRY_SECONDS = 10.0


class Models:
    """Engines by the name of their model; the first is meant where none is named. All methods in one event loop.

    Args:
        first: the models to begin with, at least one, each of another name.
        store: where others come from.
        load: the model in a folder of the store, ready to be warmed up. Called in a thread.
        config: which models are to be served, and their thresholds.
        cache: results already computed; None keeps none.
        metrics: what is told of all that happens.
        limits: of each engine; those of work in flight are of all together.

    Attributes:
        on_answer: told of each answer, in the task that asked.
    """

    def __init__(
        self,
        first: Sequence[Predictor],
        store: ModelStore,
        load: Callable[[Path], Predictor],
        config: ConfigStore,
        cache: ResultCache | None,
        metrics: Metrics,
        limits: Limits,
    ) -> None:
        self.store = store
        self.on_answer: Callable[[Answer], None] = lambda answer: None
        self._load = load
        self._config = config
        self._cache = cache
        self._metrics = metrics
        self._limits = limits
        self._applied = Applied(config, first_config(first))
        self._engines = {predictor.spec.name: self._engine(predictor) for predictor in first}
        self._switching = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None
        self._foreseen: dict[tuple[str, int], Engine] = {}  # ready to serve, should they be asked for
        self._foretold = config.foretold  # of which they are
        self._forget_at = math.inf
        self._retiring: set[asyncio.Task[None]] = set()
        self._draining = False
        self._hindrance: str | None = None  # why the last attempt to serve what the config names failed
        self.admission = Admission(
            limits.max_images_in_flight,
            limits.max_bytes_in_flight,
            limits.max_queue,
            wait_seconds=lambda: sum(engine.queued_seconds() for engine in self),
            on_reject=lambda reason, images: metrics.rejected.labels(reason).inc(images),
        )
        self._watch()

    def __iter__(self) -> Iterator[Engine]:
        """Every engine, that of the default model first."""
        return iter(tuple(self._engines.values()))

    @property
    def config(self) -> RuntimeConfig:
        """The runtime config as far as it is applied."""
        return self._applied.current

    @property
    def is_hindered(self) -> bool:
        """Whether what the config names cannot be served here, and something else is."""
        return self._hindrance is not None

    def find(self, reference: str | None) -> Engine:
        """The engine of ``name`` or ``name/version``, of the default model for None. Raises NotFound."""
        if reference is None:
            return next(iter(self))
        for engine in self:
            if reference in (engine.spec.name, engine.spec.reference):
                return engine
        served = ", ".join(engine.spec.reference for engine in self)
        raise NotFound(f"model is {reference!r}; served: {served}", field="model", value=reference, bound=served)

    async def start(self, profile: LatencyTable | None = None) -> None:
        """Warm every model up, and serve what the config names already; then follow it. Raises: what a pass raised."""
        for engine in self:
            await engine.start(profile)
        async with self._switching:
            await self._catch_up()
        self._following = asyncio.create_task(self._follow())

    def drain(self) -> None:
        """Stop being ready. Requests are still answered until ``close``."""
        self._draining = True
        for engine in self:
            engine.drain()

    async def close(self) -> None:
        """Finish what was accepted, then stop every thread."""
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
        await self._forget()
        await asyncio.gather(*self._retiring, *(engine.close() for engine in self))

    @property
    def is_draining(self) -> bool:
        """Whether the server is stopping."""
        return self._draining

    def why_not_ready(self) -> str | None:
        """What keeps new work away, in words; None when nothing does."""
        if self._draining:
            return "the server is stopping"
        return next((why for engine in self if (why := engine.why_not_ready()) is not None), None)

    async def switch(
        self, reference: str, instead_of: str | None = None, expected_version: int | None = None
    ) -> Engine:
        """Serve ``reference`` instead of a model that is served: of that name, or as named, or else the default one.

        The new one is loaded, verified and warmed up beside the old one, whose goal is solved anew for it; in other
        replicas at the same time, so that all change over together. New images then go to the new one, and the old one
        finishes those that it has.

        Raises:
            NotFound: no such model in the store, or ``instead_of`` is not served.
            InvalidOption: it cannot be served, or the goal not be reached with it. Nothing has changed then.
            ConfigConflict: see ``ConfigStore.update``; or others switched meanwhile.
        """
        async with self._switching:
            if expected_version is not None and expected_version < self._config.current.version:
                check_expected_version(self._config.current, expected_version)  # before a model is loaded for nothing
            follows = await self._catch_up()
            name, version = self.store.locate(reference)
            old = self._replaced_by(name, instead_of)
            if (name, version) == old.spec.key and follows:
                check_expected_version(self._config.current, expected_version)
                return old
            before = self._applied.served
            models = dict((name, version) if key == old.spec.key else key for key in before)
            await self._config.foretell(models)  # so that other replicas prepare meanwhile
            began = time.monotonic()
            engines = await self._prepare(models)
            with suppress(TimeoutError):  # and all change over together
                async with asyncio.timeout(max(time.monotonic() - began, MIN_PATIENCE_SECONDS)):
                    await self._config.others_prepared()
            new = engines[name]

            def change(current: RuntimeConfig) -> RuntimeConfig:
                if follows and current.served != before:
                    raise ConfigConflict("the served models were changed meanwhile", field="model", value=reference)
                kept = {each: asked for each, asked in current.thresholds.items() if each in models}
                asked = current.thresholds.get(old.spec.name, old.asked)
                solved = solved_anew(asked, old.predictor, new.predictor)
                return replace(current, models=models, thresholds={**kept, name: solved})

            try:
                await self._config.update(change, expected_version)
            except BaseException:
                await self._discard(engines)
                raise
            self._adopt(engines)
            logger.info("serving %s instead of %s", new.spec.reference, old.spec.reference)
            return new

    def _replaced_by(self, name: str, instead_of: str | None) -> Engine:
        if instead_of is None:
            return self._engines.get(name) or self.find(None)
        old = self.find(instead_of)
        if name in self._engines and name != old.spec.name:
            raise InvalidOption("model", name, f"another one: it is served already, beside {old.spec.name}")
        return old

    def _tell(self, answer: Answer) -> None:
        self.on_answer(answer)

    def _engine(self, predictor: Predictor) -> Engine:
        return Engine(predictor, self._applied, self._cache, self._metrics, self._limits, self._tell)

    async def _prepare(self, models: Mapping[str, int]) -> dict[str, Engine]:
        """Engines of exactly ``models``: those that serve already, and new ones, warmed up.

        Raises:
            NotFound: one is not in the store.
            InvalidOption: one cannot be served.
        """
        engines: dict[str, Engine] = {}
        try:
            for name, version in models.items():
                known = self._engines.get(name)
                if known is None or known.spec.version != version:
                    known = self._foreseen.pop((name, version), None) or await self._started(f"{name}/{version}")
                engines[name] = known
        except BaseException:
            await self._discard(engines)
            raise
        return engines

    async def _started(self, reference: str) -> Engine:
        folder = self.store.find(reference)
        try:
            engine = self._engine(await asyncio.to_thread(self._load, folder))
            await engine.start()
        except (BrokenModel, InvalidOption) as error:
            raise InvalidOption("model", reference, f"one that can be served: {error.message}") from error
        except LowfirstError:
            raise
        except Exception as error:
            logger.exception("%s cannot be warmed up", reference)
            raise DeviceFailed(f"{reference} cannot be warmed up: {error}", field="model", value=reference) from error
        return engine

    async def _discard(self, engines: Mapping[str, Engine]) -> None:
        """Close those that were prepared and are not to serve."""
        serving = set(self)
        for engine in engines.values():
            if engine not in serving:
                await engine.close()

    def _adopt(self, engines: Mapping[str, Engine]) -> None:
        """From now on these serve, in this order."""
        before, self._engines = self._engines, dict(engines)
        self._applied.served = tuple(engine.spec.key for engine in engines.values())
        for old in set(before.values()) - set(self):
            self._unwatch_one(old)
            retiring = asyncio.create_task(_retire(old))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
        for new in set(self) - set(before.values()):
            self._watch_one(new)

    async def _follow(self) -> None:
        """Serve what the config names once it is changed elsewhere."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            async with self._switching:
                follows = await self._catch_up()
                await self._foresee()
            if not follows:
                await asyncio.sleep(RETRY_SECONDS)

    async def _foresee(self) -> None:
        """Prepare what another replica is about to ask for; forget it when that does not come."""
        if self._config.foretold is not self._foretold:  # said again, it is another
            self._foretold = self._config.foretold
            await self._forget()
            self._forget_at = time.monotonic() + FORESEEN_SECONDS
            for key in set(self._foretold.items()) - set(self._applied.served):
                with suppress(Exception):  # once it is asked for, the reason is told
                    self._foreseen[key] = await self._started("/".join(map(str, key)))
            await self._config.tell_prepared(self._foretold)
        if time.monotonic() > self._forget_at:
            await self._forget()

    async def _forget(self) -> None:
        self._forget_at = math.inf
        while self._foreseen:
            await self._foreseen.popitem()[1].close()

    async def _catch_up(self) -> bool:
        """Serve what the config names; whether that is so now. The log has each reason why not once."""
        if self._applied.is_newest:
            self._hindrance = None
            return True
        try:
            self._adopt(await self._prepare(self._config.current.models))
        except Exception as error:
            if str(error) != self._hindrance:
                logger.error("what the shared config names cannot be served here: %s", error)
            self._hindrance = str(error)
            return False
        logger.info("serving %s, as the shared config names", ", ".join(each.spec.reference for each in self))
        self._hindrance = None
        return True

    def _watch(self) -> None:
        metrics = self._metrics
        metrics.watch(metrics.in_flight, lambda: self.admission.images)
        metrics.watch(metrics.config_version, lambda: self.config.version)
        metrics.watch(metrics.feature_bytes, lambda: sum(engine.feature_bytes for engine in self))
        for stage in STAGES:
            metrics.watch(metrics.queue_depth, partial(self._queue_depth, stage), stage=stage)
            metrics.watch(metrics.queued_seconds, partial(self._queue_age, stage), stage=stage)
        for engine in self:
            self._watch_one(engine)

    def _watch_one(self, engine: Engine) -> None:
        metrics, model = self._metrics, engine.spec.reference
        metrics.single_scale_multiply_adds.labels(model).set(round(engine.spec.high_mmacs * 1e6))
        metrics.watch(metrics.threshold, lambda: engine.asked.threshold, model=model)
        metrics.watch(metrics.effective_threshold, lambda: engine.effective_threshold, model=model)
        metrics.serve(model)
        calibration = engine.predictor.calibration
        if calibration is not None:
            metrics.watch(
                metrics.expected_exit_rate,
                lambda: calibration.predict(engine.asked.threshold).exit_rate,
                model=model,
            )
            metrics.watch(
                metrics.promised_agreement, lambda: _as_number(calibration.promise(engine.asked)), model=model
            )
            metrics.watch(metrics.promise_kept, lambda: _as_number(engine.audit().promise_kept), model=model)

    def _unwatch_one(self, engine: Engine) -> None:
        metrics = self._metrics
        for gauge in (
            metrics.single_scale_multiply_adds,
            metrics.threshold,
            metrics.effective_threshold,
            metrics.expected_exit_rate,
            metrics.promised_agreement,
            metrics.promise_kept,
        ):
            with suppress(KeyError):  # of a model without a calibration table
                gauge.remove(engine.spec.reference)

    def _queue_depth(self, stage: Stage) -> int:
        return sum(engine.queue_depth()[stage] for engine in self)

    def _queue_age(self, stage: Stage) -> float:
        return max(engine.queue_age(stage) for engine in self)


def _as_number(known: float | None) -> float:
    return math.nan if known is None else float(known)


async def _retire(engine: Engine) -> None:
    """Let it finish what it has, and its memory go."""
    reference = engine.spec.reference
    await engine.retire()
    del engine
    logger.info("%s has answered all it had, and is gone", reference)
    if gc.get_freeze_count():  # what was loaded before the start is else never looked at again
        gc.unfreeze()
        gc.collect()
        gc.freeze()
