"""A model at work beside the one that is served: which images it gets, and how it compares."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from service.engine.answer import Answer, Ask
from service.engine.applied import Applied
from service.engine.comparison import Comparison, Reply
from service.engine.engine import Engine
from service.engine.prediction import TimeSpent
from service.errors import DeviceFailed, Draining, LowfirstError
from service.log import logger
from service.metrics import Metrics
from service.state.base import Trial


class TrialRun:
    """One engine that is ready to be tried: it is, for as long as the runtime config says so. In the event loop.

    A canary answers its share of the images, and what is served runs them behind its answers; a shadow runs them behind
    the answers of what is served. Where a canary fails, what is served answers: no client gets its errors.

    Args:
        tried: the engine.
        applied: what the config says.
        metrics: where comparisons are counted.

    Attributes:
        is_halted: whether its guard ended it here, and the config does not say so yet.
    """

    def __init__(self, tried: Engine, applied: Applied, metrics: Metrics) -> None:
        self.tried = tried
        self._applied = applied
        self._metrics = metrics
        self.is_halted = False
        self._served: Engine | None = None
        self._trial: Trial | None = None  # that the counts are of
        self._counts = Comparison()
        self._before = (TimeSpent(0.0, 0.0, None),) * 2  # what both had computed when it began
        self._comparing: set[asyncio.Task[None]] = set()

    async def classify(self, engine: Engine, image: bytes, ask: Ask) -> Answer:
        """The answer to an encoded image that is asked of ``engine``. Raises as ``Engine.classify``."""
        trial = self._now(engine)
        if trial is None or not trial.picks(image):
            return await engine.classify(image, ask)
        if trial.is_shadow:
            return await self._answer_before(self.tried, engine, image, ask)
        if ask.names_version:
            return await engine.classify(image, ask)
        try:
            return await self._answer_before(engine, self.tried, image, ask)
        except (DeviceFailed, Draining) as error:
            logger.warning("the canary %s failed, and %s answers: %s", trial.reference, engine.spec.reference, error)
            return await engine.classify(image, ask)

    def comparison(self) -> Comparison:
        """What was counted in this process; not to be kept."""
        for side, engine, before in zip(
            (self._counts.served, self._counts.tried), (self._served, self.tried), self._before, strict=True
        ):
            if engine is not None:
                spent = engine.time_spent()
                behind = engine.behind
                side.computed = round(spent.images - before.images) + behind.computed
                side.compute = spent.seconds - before.seconds + behind.compute
        return self._counts

    @property
    def began(self) -> float | None:
        """Of the trial that the counts are of; None before the first image."""
        return None if self._trial is None else self._trial.began

    def end(self) -> None:
        """It is tried no longer."""
        for engine in (self.tried, self._served):
            if engine is not None:
                engine.behind.end()
        self._served = self._trial = None

    def _now(self, engine: Engine) -> Trial | None:
        """The trial beside ``engine`` that is to go on; None for none."""
        trial = self._applied.current.trial
        if trial is None or trial.key != self.tried.spec.key or trial.beside != engine.spec.name:
            return None
        if self._served is not engine or self._trial is None or self._trial.began != trial.began:
            self._begin(trial, engine)
        return None if self.is_halted else trial

    def _begin(self, trial: Trial, served: Engine) -> None:
        self.end()
        self.is_halted = False
        self._trial, self._served, self._counts = trial, served, Comparison()
        self._before = served.time_spent(), self.tried.time_spent()
        for engine, other in ((served, self.tried), (self.tried, served)):
            engine.behind.begin(other.behind)

    async def _answer_before(self, behind: Engine, first: Engine, image: bytes, ask: Ask) -> Answer:
        """The answer of ``first``; ``behind`` runs the image once the client has it."""
        try:
            answer = await first.classify(image, ask)
        except (DeviceFailed, Draining):
            self._failed(first)
            raise
        if not answer.degraded:
            self._spawn(self._compare(behind, Reply.of(answer, first.spec), image, ask))
        return answer

    async def _compare(self, behind: Engine, seen: Reply, image: bytes, ask: Ask) -> None:
        counts = self._counts
        threshold = behind.asked.threshold if ask.threshold is None else ask.threshold
        try:
            other = await behind.behind.run(image, threshold)
        except DeviceFailed:
            if counts is self._counts:
                self._failed(behind)
            return
        except LowfirstError:  # it stops
            return
        if counts is not self._counts:  # of a trial that is over
            return
        model = self.tried.spec.reference
        if other is None:
            counts.skipped += 1
            self._metrics.comparisons_skipped.labels(model).inc()
            return
        agree = counts.add(*((seen, other) if behind is self.tried else (other, seen)))
        self._metrics.comparisons.labels(model).inc()
        if not agree:
            self._metrics.comparison_disagreements.labels(model).inc()

    def _failed(self, engine: Engine) -> None:
        if engine is self.tried:
            self._counts.tried.errors += 1
            self._metrics.trial_errors.labels(engine.spec.reference).inc()
        else:
            self._counts.served.errors += 1

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._comparing.add(task)
        task.add_done_callback(self._comparing.discard)
