"""Canaries and shadows: started, changed, promoted, cancelled, and ended by their guard, in all replicas at once."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from service.engine.comparison import Comparison, pooled
from service.engine.engine import Engine
from service.errors import BrokenModel, ConfigConflict, Conflict, InvalidOption
from service.hosting.models import Models
from service.hosting.switching import Switching, solved_again
from service.hosting.trial import TrialRun
from service.log import logger
from service.model_spec import ModelSpec
from service.state.base import (
    ConfigStore,
    EndedTrial,
    Ending,
    RuntimeConfig,
    ThresholdConfig,
    Trial,
    check_expected_version,
)
from service.store import read_spec

# Most classes that an error names.
NAMED = 5

# A ``Comparison`` as JSON; and what tells that of this process, of the trial that began then, and gives all others'.
Counts = Mapping[str, Any]
Exchange = Callable[[float, Counts | None], Awaitable[Sequence[Counts]]]


@dataclass(frozen=True, slots=True)
class Wish:
    """A requested change of a trial; None keeps a value, or uses its default in a new trial.

    Attributes:
        reference: of the model; None is the model on trial.
        share, is_shadow: see ``Trial``.
        max_disagreement: see ``Trial``; None clears it if ``is_guarded``.
        is_guarded: whether the request names the guard.
    """

    reference: str | None = None
    share: float | None = None
    is_shadow: bool | None = None
    max_disagreement: float | None = None
    is_guarded: bool = False


class Trials:
    """At most one trial at a time. All methods run in one event loop.

    Args:
        models: the served models.
        config: holds the trial.
        switching: all changes of models wait for their turn there.
        exchange: with the other processes of this server and of its replicas.
    """

    def __init__(self, models: Models, config: ConfigStore, switching: Switching, exchange: Exchange) -> None:
        self._models = models
        self._config = config
        self._switching = switching
        self._exchange = exchange

    @property
    def current(self) -> Trial | None:
        """The current trial in the config."""
        return self._config.current.trial

    @property
    def version(self) -> int:
        """Of the config."""
        return self._config.current.version

    def counted(self, trial: Trial) -> Comparison | None:
        """Counts of ``trial`` in this process; None before its first image here."""
        run = self._run(trial.began)
        return None if run is None else run.comparison()

    async def comparison(self, trial: Trial) -> Comparison:
        """Counts of ``trial`` in all processes of all replicas."""
        own = self.told(trial.began)
        return pooled([*await self._exchange(trial.began, own), *([] if own is None else [own])])

    def told(self, began: float) -> Counts | None:
        """Counts of this process, for another one, of the trial that ``began`` at that time."""
        run = self._run(began)
        return None if run is None else run.comparison().as_json()

    def halt(self, trial: Trial, is_halted: bool) -> None:
        """Have no image of this process go to what is tried, whatever the config says: it cannot be changed now."""
        run = self._run(trial.began)
        if run is not None:
            run.is_halted = is_halted

    def _run(self, began: float) -> TrialRun | None:
        """What runs here of the trial that ``began`` at that time; None before its first image here."""
        run = self._models.trial
        return run if run is not None and run.began == began else None

    def following(self, config: RuntimeConfig, engine: Engine, chosen: ThresholdConfig) -> RuntimeConfig:
        """``config`` with the goal ``chosen`` for ``engine``'s model, solved again for the model on trial.

        If that model cannot reach a goal of this kind, it keeps its threshold.
        """
        name, trial, run = engine.spec.name, config.trial, self._models.trial
        if trial is not None and run is not None and trial.beside == name and trial.key == run.tried.spec.key:
            with suppress(InvalidOption):
                trial = replace(trial, threshold=solved_again(chosen, engine, run.tried))
        return replace(config, thresholds={**config.thresholds, name: chosen}, trial=trial)

    async def change(self, wish: Wish, instead_of: str | None = None, expected_version: int | None = None) -> None:
        """Start a trial, or change share, kind or guard of the running one.

        A new model is loaded, verified and warmed up in every replica before it gets an image.

        Raises:
            NotFound: no such model in the store, or ``instead_of`` is not served.
            InvalidOption: it cannot be tried: it is already served, has other classes, or cannot reach the goal.
            Conflict: another trial is running, or none.
            ConfigConflict: see ``ConfigStore.update``.
        """
        async with self._switching.turn():
            await self._ready(expected_version)
            on = self._config.current.trial
            key = None if wish.reference is None else self._models.store.locate(wish.reference)
            if on is not None and key in (None, on.key):
                await self._update(
                    lambda current: replace(current, trial=_changed(current, on, wish)), expected_version
                )
            elif on is not None:
                raise _taken(str(wish.reference), on)
            elif key is None:
                _none_is_on("model", None)
            else:
                await self._begin(key, wish, instead_of, expected_version)

    async def promote(self, expected_version: int | None = None) -> None:
        """Serve the model on trial in place of the one beside it. Raises as ``change``."""
        async with self._switching.turn():
            await self._ready(expected_version)
            on = self._on("promote")
            run = self._models.trial
            if run is None or run.tried.spec.key != on.key:
                raise Conflict(f"promote is true; {on.reference} could not be loaded here", field="promote", value=True)
            old, new = self._models.find(on.beside), run.tried

            def change(current: RuntimeConfig) -> RuntimeConfig:
                _check_still_on(current, on)
                models = dict(on.key if name == on.beside else (name, at) for name, at in current.models.items())
                kept = {name: asked for name, asked in current.thresholds.items() if name in models}
                asked = solved_again(current.thresholds.get(on.beside, old.asked), old, new)
                ended = _ended(on, "promoted", f"it replaces {old.spec.reference}")
                return replace(current, models=models, thresholds={**kept, on.name: asked}, trial=None, ended=ended)

            await self._update(change, expected_version)
            self._models.adopt({engine.spec.name: engine for engine in (new if e is old else e for e in self._models)})

    async def cancel(
        self, outcome: Ending = "cancelled", why: str = "as asked", expected_version: int | None = None
    ) -> None:
        """End the trial: from now on it gets no image of a client. Raises as ``change``.

        It waits for no turn: a guard must not wait until another replica has prepared a model.
        """
        async with self._switching.lock:
            await self._ready(expected_version)
            on = self._on("cancel")

            def change(current: RuntimeConfig) -> RuntimeConfig:
                _check_still_on(current, on)
                return replace(current, trial=None, ended=_ended(on, outcome, why))

            await self._update(change, expected_version)
            self._models.adopt({engine.spec.name: engine for engine in self._models})

    # steps of these changes

    async def _ready(self, expected_version: int | None) -> None:
        follows = await self._switching.begin(expected_version)
        check_expected_version(self._config.current, expected_version)
        if not follows and self._config.current.served != self._models.applied.served:
            raise Conflict(f"the model in the config cannot be served here: {self._switching.obstacle}")

    def _on(self, field: str) -> Trial:
        return self._config.current.trial or _none_is_on(field, True)

    async def _begin(
        self, key: tuple[str, int], wish: Wish, instead_of: str | None, expected_version: int | None
    ) -> None:
        name, version = key
        old = self._switching.replaced_by(name, instead_of)
        if wish.share is None and not wish.is_shadow:
            raise InvalidOption("share", None, "between 0 and 1 for a canary; for a shadow set shadow: true")
        self._check(key, old)
        before = self._models.applied.served
        engines = await self._switching.prepare_everywhere({name: version})
        new = engines[name]

        def change(current: RuntimeConfig) -> RuntimeConfig:
            if current.trial is not None:
                raise _taken(new.spec.reference, current.trial)
            if current.served != before:
                raise ConfigConflict("the models changed meanwhile", field="model", value=new.spec.reference)
            trial = Trial(
                name=name,
                version=version,
                beside=old.spec.name,
                share=1.0 if wish.share is None else wish.share,
                is_shadow=bool(wish.is_shadow),
                max_disagreement=wish.max_disagreement,
                threshold=solved_again(current.thresholds.get(old.spec.name, old.asked), old, new),
                began=time.time(),
            )
            return replace(current, trial=trial)

        try:
            await self._update(change, expected_version)
        except BaseException:
            await self._switching.discard(engines)
            raise
        self._models.adopt({engine.spec.name: engine for engine in self._models}, new)

    def _check(self, key: tuple[str, int], old: Engine) -> None:
        reference = "/".join(map(str, key))
        if key == old.spec.key:
            raise InvalidOption("model", reference, f"a model other than {old.spec.reference}, which is served already")
        try:
            check_classes(read_spec(self._models.store.find(reference)), old.spec)
        except BrokenModel as error:
            raise InvalidOption("model", reference, f"one that can be served: {error.message}") from error

    async def _update(self, change: Callable[[RuntimeConfig], RuntimeConfig], expected_version: int | None) -> None:
        config = await self._config.update(change, expected_version)
        if config.trial is not None:
            trial = config.trial
            logger.info("%s %s beside %s: share %s", trial.kind, trial.reference, trial.beside, trial.share)
        elif config.ended is not None:
            logger.info("the trial of %s/%d is over: %s", config.ended.name, config.ended.version, config.ended.why)


def check_classes(tried: ModelSpec, served: ModelSpec) -> None:
    """Raise InvalidOption, naming the differences, unless both models have the same classes in the same order."""
    if tried.classes == served.classes:
        return
    only_tried = [name for name in tried.classes if name not in served.classes]
    only_served = [name for name in served.classes if name not in tried.classes]
    if only_tried or only_served:
        differ = [
            f"it knows {_some(only_tried)}" if only_tried else "",
            f"not {_some(only_served)}" if only_served else "",
        ]
        why = " and ".join(filter(None, differ))
    else:
        at = next(i for i, pair in enumerate(zip(tried.classes, served.classes, strict=True)) if len(set(pair)) > 1)
        why = f"the order differs: class {at} is {tried.classes[at]!r}, not {served.classes[at]!r}"
    raise InvalidOption("model", tried.reference, f"one with the classes of {served.reference}; {why}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(map(repr, names[:NAMED])) + more


def _taken(reference: str, on: Trial) -> Conflict:
    return Conflict(
        f"model is {reference!r}; {on.reference} is the {on.kind} already: promote or cancel it first",
        field="model",
        value=reference,
        bound=on.reference,
    )


def _none_is_on(field: str, value: Any) -> NoReturn:
    raise Conflict(
        f"{field} is {'missing' if value is None else 'true'}; no trial is running: start one with a model and a "
        "share, or shadow: true",
        field=field,
        value=value,
        bound="a running canary or shadow",
    )


def _check_still_on(current: RuntimeConfig, on: Trial) -> None:
    if current.trial is None or current.trial.began != on.began:
        raise Conflict(f"{on.reference} is no longer on trial", field="model", value=on.reference)


def _changed(current: RuntimeConfig, on: Trial, wish: Wish) -> Trial:
    _check_still_on(current, on)
    assert current.trial is not None
    return replace(
        current.trial,
        share=current.trial.share if wish.share is None else wish.share,
        is_shadow=current.trial.is_shadow if wish.is_shadow is None else wish.is_shadow,
        max_disagreement=wish.max_disagreement if wish.is_guarded else current.trial.max_disagreement,
    )


def _ended(trial: Trial, outcome: Ending, why: str) -> EndedTrial:
    return EndedTrial(trial.name, trial.version, trial.beside, outcome, why, time.time())
