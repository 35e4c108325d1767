"""The live tables of all processes of a server, and thresholds that follow them.

The first process checks the traffic every ``FOLLOW_SECONDS``, solves the goal with the live table, and informs the
others, so that all use one threshold. Each server follows its own traffic: others that share its config start from the
threshold that was solved when the goal was set.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from operator import attrgetter
from typing import Any

from service.calibration.drift import Drift, drift
from service.calibration.follow import Followed, begin, follow, solve_live
from service.calibration.live import BUDGET_IMAGES, WINDOW, LiveTable, Passed, Seen, check_follows, window
from service.engine.engine import Engine
from service.engine.periods import Done
from service.hosting.background import end
from service.hosting.models import Models
from service.log import logger
from service.metrics import Metrics
from service.processes.siblings import Siblings
from service.state.base import Goal, ThresholdConfig

FOLLOW_SECONDS = 2.0


class Following:
    """Follows the traffic of every served model. All methods run in one event loop.

    Args:
        models: the served models.
        siblings: the other processes.
        metrics: drift and lost promises, set only by the first process.
        audit_probability: probability that an exited image is audited.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        models: Models,
        siblings: Siblings,
        metrics: Metrics,
        audit_probability: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._models = models
        self._siblings = siblings
        self._metrics = metrics
        self._audit_probability = audit_probability
        self._clock = clock
        self._drifts: dict[str, Drift] = {}
        self._task: asyncio.Task[None] | None = None
        siblings.answer("traffic", self._told)
        siblings.answer("followed", self._take)
        siblings.answer("standing", self._stand)

    async def start(self) -> None:
        """Take over the state of the other processes; in the first one, check from now on."""
        for told in await self._siblings.others("standing"):
            self._take(told)
        await self._look()
        if self._siblings.index == 0:
            self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop checking."""
        await end(self._task)

    def drift_of(self, engine: Engine) -> Drift | None:
        """Drift at the last check; None before it, or without a calibration table."""
        return self._drifts.get(engine.spec.reference)

    async def table(self, engine: Engine, goal: Goal | None = None, value: float = 0.0) -> tuple[LiveTable, Done]:
        """Recent traffic of all processes, as many images as a goal needs, and recent totals."""
        count = WINDOW if goal is None else window(goal, value)
        others = await self._siblings.others("traffic", [engine.spec.reference, count])
        seen = [*engine.recent.drawn(count), *(_seen(*each) for told in others for each in told["drawn"])]
        drawn = sorted(seen, key=attrgetter("when"))[-count:]
        passed = Passed.together([engine.passed(), *(_passed(told["passed"]) for told in others)])
        lately = engine.periods.lately(BUDGET_IMAGES)
        for told in others:
            lately = lately.beside(Done(**told["lately"]))
        predictor = engine.predictor
        live = await asyncio.to_thread(
            LiveTable.of, drawn, passed, engine.spec.mmacs, predictor.runtime, predictor.precision
        )
        is_complete = len(others) >= self._siblings.ready - 1  # images of a busy process must not look lost
        return replace(live, is_complete=is_complete), lately

    async def solve(self, engine: Engine, asked: ThresholdConfig) -> float:
        """The threshold for recent traffic. Raises InvalidOption if it cannot be solved yet, saying what is missing."""
        live, lately = await self.table(engine, asked.goal, asked.value)
        check_follows(asked.goal, asked.value, live, self._audit_probability)
        return solve_live(asked, live, costs_now(engine, asked.goal, live, lately))

    async def ask(self, engine: Engine, asked: ThresholdConfig) -> None:
        """Follow a new goal in every process, before the first process checks."""
        self._begin(engine, asked)
        if asked.table == "live":
            own = {name: told for name, told in self._stand(None).items() if name == engine.spec.reference}
            await self._siblings.others("followed", own)

    def _begin(self, engine: Engine, asked: ThresholdConfig) -> None:
        before = engine.wanted.standing.followed
        if asked.table == "live" and (before is None or before.asked != asked):
            engine.wanted.standing.followed = begin(asked, self._clock(), before)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                await self._look()
                await self._siblings.others("followed", self._stand(None))
            except Exception:  # the next check may succeed; the threshold in force stays
                logger.exception("following the traffic failed")

    async def _look(self) -> None:
        for engine in self._models:
            if engine.spec.depth > 1:
                await self._look_at(engine)
        served = {engine.spec.reference for engine in self._models}
        self._drifts = {name: each for name, each in self._drifts.items() if name in served}

    async def _look_at(self, engine: Engine) -> None:
        asked = engine.wanted.first
        is_followed = asked.table == "live"
        live, lately = await self.table(engine, *((asked.goal, asked.value) if is_followed else ()))
        if is_followed and engine.wanted.first == asked and live.is_complete:
            self._move(engine, asked, live, lately)
        elif not is_followed:
            engine.wanted.standing.followed = None
        calibration, threshold = engine.predictor.calibration, engine.asked.threshold
        if calibration is not None:
            self._drifts[engine.spec.reference] = await asyncio.to_thread(drift, calibration, live, threshold)
        if self._siblings.index == 0:
            self._tell_metrics(engine)

    def _move(self, engine: Engine, asked: ThresholdConfig, live: LiveTable, lately: Done) -> None:
        self._begin(engine, asked)
        before = engine.wanted.standing.followed
        assert before is not None
        after = follow(before, live, costs_now(engine, asked.goal, live, lately), self._clock())
        if after.threshold != before.threshold:
            logger.info(
                "threshold of %s follows the traffic from %s to %s: %s",
                engine.spec.reference, before.threshold, after.threshold, after.changes[-1].why,
            )  # fmt: skip
        if after.lost and not before.lost:
            logger.warning("%s %s of %s cannot be kept: %s", asked.goal, asked.value, engine.spec.reference, after.lost)
        engine.wanted.standing.followed = after

    def _tell_metrics(self, engine: Engine) -> None:
        model, followed, found = engine.spec.reference, engine.wanted.standing.followed, self.drift_of(engine)
        self._metrics.promise_lost.labels(model).set(followed is not None and followed.lost is not None)
        self._metrics.drift.labels(model).set(found is not None and bool(found.differs))

    def _told(self, body: Sequence[Any]) -> dict[str, Any] | None:
        reference, count = body
        engine = self._models.known(reference)
        if engine is None:  # the asking process has switched a moment before this one
            return None
        drawn = [[each.when, each.confidences, each.answers, each.probability] for each in engine.recent.drawn(count)]
        lately = engine.periods.lately(BUDGET_IMAGES)
        return {"drawn": drawn, "passed": asdict(engine.passed()), "lately": asdict(lately)}

    def _stand(self, _: Any) -> dict[str, Any]:
        """The state of this process, for the others."""
        return {
            engine.spec.reference: {
                "followed": None
                if engine.wanted.standing.followed is None
                else engine.wanted.standing.followed.as_json(),
                "drift": None if (found := self.drift_of(engine)) is None else found.as_json(),
            }
            for engine in self._models
        }

    def _take(self, told: dict[str, Any]) -> None:
        for engine in self._models:
            known = told.get(engine.spec.reference)
            if known is not None:
                followed, found = known["followed"], known["drift"]
                engine.wanted.standing.followed = None if followed is None else Followed.of_json(followed)
                if found is not None:
                    self._drifts[engine.spec.reference] = Drift.of_json(found)


def costs_now(engine: Engine, goal: Goal, live: LiveTable, lately: Done) -> tuple[float, ...]:
    """Cost of each stage alone per image, in the unit of a budget.

    Milliseconds are those measured at start-up times the ratio of recent to predicted time: batches may be smaller than
    the best, and the machine busier.
    """
    costs = engine.costs(goal)
    if goal != "max_mean_ms" or lately.computed < BUDGET_IMAGES or live.missing(goal, 0.0) is not None:
        return costs
    expected = live.mean_cost(engine.asked.threshold, costs)
    slowness = 1e3 * lately.compute_seconds / lately.computed / expected
    return tuple(slowness * cost for cost in costs)


def _seen(when: float, confidences: Sequence[float], answers: Sequence[int], probability: float) -> Seen:
    return Seen(when, tuple(confidences), tuple(answers), probability)


def _passed(told: dict[str, Any]) -> Passed:
    return Passed(told["images"], tuple(told["first"]), told["exits"], told["per_second"])
