"""Switches models without interruption, in all replicas at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TypeVar

from service.engine import tuning
from service.engine.engine import Engine
from service.errors import ConfigConflict, Conflict, Draining, InvalidOption
from service.hosting.background import end
from service.hosting.models import Models
from service.log import logger
from service.state.base import BUDGETS, ConfigStore, RuntimeConfig, ThresholdConfig, check_expected_version

T = TypeVar("T")


class Switching:
    """Keeps the served models in step with the runtime config. All methods run in one event loop."""

    def __init__(self, models: Models, config: ConfigStore) -> None:
        self._models = models
        self._config = config
        self.lock = asyncio.Lock()
        self._following: asyncio.Task[None] | None = None
        self._prepared: dict[tuple[str, int], Engine] = {}  # prepared engines, in case the config names them
        self._announced = config.announced  # of which they are
        self._forget_at = math.inf
        self._patience = tuning.MIN_PATIENCE_SECONDS  # how long to wait for other replicas, in seconds
        self._obstacle: str | None = None  # why the last attempt to serve the config's models failed
        self._tried_for: object = None  # what was attempted
        self._retry_at = math.inf  # when to try again

    @property
    def obstacle(self) -> str | None:
        """Why the models of the config cannot be served here; None if they are."""
        return self._obstacle

    async def start(self) -> None:
        """Serve the models of the config, and follow it from now on."""
        async with self.lock:
            if self._models.applied.is_newest:  # a change made since this replica joined may wait for it
                await self._config.tell_serving(self._config.current.version)
            await self._catch_up()
        self._following = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following."""
        await end(self._following)
        self._models.stand_by(self._tried if self._tried in self._models.running else None)
        await self._forget()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Within, nobody else changes models, here or in another replica: changes are made one after the other.

        Whoever waits for its turn follows the change of the one that has it.
        """
        async with self._config.turn(), self.lock:
            yield

    async def switch(
        self, reference: str, instead_of: str | None = None, expected_version: int | None = None
    ) -> Engine:
        """Serve ``reference`` in place of ``instead_of``, otherwise of the model with its name, otherwise of the first.

        The new model is loaded, verified and warmed up beside the old one, whose goal is solved again for it. Other
        replicas do this at the same time, so that all switch together. New images then go to the new model, and the old
        one finishes its images. Returns once the other replicas have switched too.

        Raises, where nothing has changed:
            NotFound: no such model in the store, or ``instead_of`` is not served.
            InvalidOption: it cannot be served, or cannot reach the goal.
            Conflict: another replica cannot serve it, or a trial runs beside the old model.
            ConfigConflict: see ``ConfigStore.update``; or another switch happened meanwhile.
            PreparationEnded, Draining: see ``Models.prepare``.
        """
        async with self.turn():
            follows = await self.begin(expected_version)
            name, version = self._models.store.locate(reference)
            old = self.replaced_by(name, instead_of)
            check_not_tried_beside(self._config.current, old, reference)
            if (name, version) == old.spec.key and follows:
                check_expected_version(self._config.current, expected_version)
                return old
            before = self._models.applied.served
            wanted = dict((name, version) if key == old.spec.key else key for key in before)
            engines = await self.prepare_everywhere(wanted)
            new = engines[name]

            def change(current: RuntimeConfig) -> RuntimeConfig:
                check_not_tried_beside(current, old, reference)
                if follows and current.served != before:
                    raise ConfigConflict("the served models changed meanwhile", field="model", value=reference)
                kept = {each: asked for each, asked in current.thresholds.items() if each in wanted}
                asked = current.thresholds.get(old.spec.name, old.asked)
                return replace(current, models=wanted, thresholds={**kept, name: solved_again(asked, old, new)})

            try:
                changed = await self._config.update(change, expected_version)
            except BaseException:
                await self.discard(engines)
                raise
            self._models.adopt(engines, self._tried)
            logger.info("serving %s instead of %s", new.spec.reference, old.spec.reference)
            await self._wait(self._config.others_serving(changed.version))
            return new

    async def begin(self, expected_version: int | None) -> bool:
        """Check before a change, in its turn, that the config's models are served. Raises ConfigConflict."""
        if expected_version is not None and expected_version < self._config.current.version:
            check_expected_version(self._config.current, expected_version)  # before a model is loaded in vain
        return await self._catch_up()

    @property
    def _tried(self) -> Engine | None:
        """The current trial."""
        run, config = self._models.trial, self._config.current
        is_on = run is not None and config.trial is not None and config.trial.key == run.tried.spec.key
        return run.tried if run is not None and is_on else None

    def replaced_by(self, name: str, instead_of: str | None) -> Engine:
        """The model that ``name`` would replace. Raises NotFound, InvalidOption."""
        if instead_of is None:
            return self._models.named(name) or self._models.find(None)
        old = self._models.find(instead_of)
        if self._models.named(name) is not None and name != old.spec.name:
            raise InvalidOption(
                "model", name, f"a model that is not served yet; {name} is served beside {old.spec.name}"
            )
        return old

    async def prepare_everywhere(self, wanted: Mapping[str, int]) -> dict[str, Engine]:
        """Engines of exactly ``wanted`` here, once other replicas have theirs or the wait for them is over.

        Raises: as ``prepare``; Conflict: another replica cannot prepare its own.
        """
        await self._config.announce(wanted)
        began = time.monotonic()
        engines = await self._prepare(wanted)
        patience = max(tuning.PATIENCE * (time.monotonic() - began), tuning.MIN_PATIENCE_SECONDS)
        self._patience = min(patience, tuning.MAX_PATIENCE_SECONDS)
        try:
            if refused := await self._wait(self._config.others_prepared()):
                raise Conflict(f"another replica cannot serve it, so nothing has changed: {refused[0]}", field="model")
        except BaseException:
            await self.discard(engines)
            raise
        return engines

    async def _wait(self, others: Awaitable[T]) -> T | None:
        """What ``others`` give; None where they take too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience):
                return await others
        logger.warning("another replica takes more than %.0f s to change over: it follows", self._patience)
        return None

    async def _prepare(self, wanted: Mapping[str, int]) -> dict[str, Engine]:
        """Engines of exactly ``wanted``: served ones, and new ones, warmed up. Raises as ``prepare``."""
        engines: dict[str, Engine] = {}
        try:
            for key in wanted.items():
                known = next((engine for engine in self._models.running if engine.spec.key == key), None)
                engines[key[0]] = known or self._prepared.pop(key, None) or await self._models.prepare(_reference(key))
        except BaseException:
            await self.discard(engines)
            raise
        return engines

    async def discard(self, engines: Mapping[str, Engine]) -> None:
        """Close prepared engines that are not needed."""
        for engine in engines.values():
            if engine not in self._models.running:
                await engine.close()

    # announced by other replicas

    async def _follow(self) -> None:
        """Serve the config's models whenever another replica changes it."""
        while True:
            await asyncio.sleep(tuning.FOLLOW_SECONDS)
            async with self.lock:
                if self._tried_for != _asked(self._config.current) or time.monotonic() > self._retry_at:
                    await self._catch_up()
                await self._prepare_announced()

    async def _catch_up(self) -> bool:
        """Serve the config's models; returns whether that succeeded. Each reason for failure is logged once."""
        if self._models.applied.is_newest:
            self._obstacle = self._tried_for = None
            return True
        config = self._config.current
        follows = await self._serve(config)
        self._tried_for, self._retry_at = None if follows else _asked(config), time.monotonic() + tuning.RETRY_SECONDS
        await self._config.tell_serving(config.version)
        return follows

    async def _serve(self, config: RuntimeConfig) -> bool:
        """Serve what ``config`` names; whether that is so."""
        trial = config.trial
        try:
            engines = await self._prepare(config.models)
            try:
                tried = {} if trial is None else await self._prepare({trial.name: trial.version})
            except Exception:
                self._models.adopt(engines)
                raise
            self._models.adopt(engines, next(iter(tried.values()), None))
        except Exception as error:
            if str(error) != self._obstacle:
                logger.error("the model in the shared config cannot be served here: %s", error)
            self._obstacle = str(error)
            return False
        names = ", ".join(engine.spec.reference for engine in self._models.running)
        logger.info("serving %s, as the shared config names", names)
        self._obstacle = None
        return True

    async def _prepare_announced(self) -> None:
        """Prepare a model that another replica announces; discard it if the change does not come."""
        if self._config.announced is not self._announced:  # a repeated announcement is a new one
            self._announced = self._config.announced
            await self._forget()
            self._forget_at = time.monotonic() + tuning.PREPARED_SECONDS
            why_not = None
            for key in set(self._announced.items()) - {engine.spec.key for engine in self._models.running}:
                try:
                    self._prepared[key] = await self._models.prepare(_reference(key))
                except Draining:  # it is gone soon
                    break
                except Exception as error:
                    why_not = str(error)
                    logger.warning("%s, which another replica announced: %s", _reference(key), error)
                else:
                    if self._tried is None:
                        self._models.stand_by(self._prepared[key])
            await self._config.tell_prepared(self._announced, why_not)
        if time.monotonic() > self._forget_at:
            await self._forget()

    async def _forget(self) -> None:
        self._forget_at = math.inf
        if self._tried is None:
            self._models.stand_by(None)
        for key in list(self._prepared):
            if self._prepared[key] is not self._tried:  # else the config names it since a moment ago
                await self._prepared.pop(key).close()


def _asked(config: RuntimeConfig) -> object:
    """What is to be served, and tried."""
    return config.served, None if config.trial is None else config.trial.key


def _reference(key: tuple[str, int]) -> str:
    return "/".join(map(str, key))


def check_not_tried_beside(config: RuntimeConfig, old: Engine, reference: str) -> None:
    """Raise Conflict if a trial runs beside ``old``, which ``reference`` is to replace."""
    trial = config.trial
    if trial is not None and trial.beside == old.spec.name:
        raise Conflict(
            f"model is {reference!r}; {trial.reference} is the {trial.kind} beside {old.spec.reference}: promote or "
            "cancel it first",
            field="model",
            value=reference,
            bound=trial.reference,
        )


def solved_again(asked: ThresholdConfig, old: Engine, new: Engine) -> ThresholdConfig:
    """The goal of ``old``, solved for ``new``. If it was the default threshold of the old model, the new default.

    Raises:
        InvalidOption: ``new`` cannot reach the goal.
    """
    if asked == old.predictor.default_threshold:
        return new.predictor.default_threshold
    try:
        threshold = new.solve(asked.goal, asked.value) if asked.table == "stored" or asked.goal in BUDGETS else 1.0
    except InvalidOption:
        if asked.table == "stored":
            raise
        threshold = 1.0  # until the traffic tells
    floor = None if asked.floor is None else min(asked.floor, threshold)
    return replace(asked, threshold=threshold, floor=floor)
