"""A model on trial beside the served one: which images it gets, and the comparison."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from service.engine.answer import Answer, Ask
from service.engine.comparison import Comparison, Reply
from service.engine.engine import Engine
from service.engine.prediction import TimeSpent
from service.errors import DeviceFailed, Draining, LowfirstError
from service.hosting.applied import Applied
from service.log import logger
from service.metrics import Metrics
from service.state.base import Trial


class TrialRun:
    """One engine that is ready for a trial, which runs while the runtime config says so. Used in the event loop.

    A canary answers its share of the images, and the served model runs them in the background; for a shadow it is the
    other way round. If a canary fails, the served model answers, so clients never get its errors.

    Args:
        tried: the engine.
        applied: the runtime config.
        metrics: count comparisons.

    Attributes:
        is_halted: whether its guard ended it here, while the config does not say so yet.
    """

    def __init__(self, tried: Engine, applied: Applied, metrics: Metrics) -> None:
        self.tried = tried
        self._applied = applied
        self._metrics = metrics
        self.is_halted = False
        self._served: Engine | None = None
        self._trial: Trial | None = None  # the trial that is counted
        self._counts = Comparison()
        self._before = (TimeSpent(0.0, 0.0, None),) * 2  # compute of both models before it began
        self._comparing: set[asyncio.Task[None]] = set()

    async def classify(self, engine: Engine, image: bytes, ask: Ask) -> Answer:
        """The answer to an encoded image sent to ``engine``. Raises as ``Engine.classify``."""
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
        """Counts of this process; a live object, not a copy."""
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
        """Start of the trial that is counted; None before the first image."""
        return None if self._trial is None else self._trial.began

    def end(self) -> None:
        """End the trial."""
        for engine in (self.tried, self._served):
            if engine is not None:
                engine.behind.end()
        self._served = self._trial = None

    def _now(self, engine: Engine) -> Trial | None:
        """The running trial beside ``engine``; None without one."""
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
        """The answer of ``first``; ``behind`` runs the image after the client has its answer."""
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
        if counts is not self._counts:  # of an ended trial
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
