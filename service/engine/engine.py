"""The path of one image: decoded, run stage by stage, answered exactly once."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from functools import partial

from service.calibration.audit import Audit
from service.calibration.live import Passed
from service.engine import tuning
from service.engine.answer import Answer, Ask, Reason
from service.engine.answering import Answering
from service.engine.asked import Asked
from service.engine.backlog import Backlog
from service.engine.behind import Behind
from service.engine.brown_out import BrownOut
from service.engine.cached import CachedAnswers
from service.engine.decide import Policy
from service.engine.decoding import Aside, DecodeAhead, decode_entry
from service.engine.entry import Entry, too_late
from service.engine.executor import Executor
from service.engine.features import FeaturePool
from service.engine.in_use import InUse
from service.engine.lanes import Lanes
from service.engine.limits import Limits
from service.engine.pace import Pace
from service.engine.periods import Periods, done_by
from service.engine.pick import Plan
from service.engine.prediction import Prediction, TimeSpent, costs, predict, solve
from service.engine.preparing import Preparation
from service.engine.recent import Recent, Totals
from service.engine.sampling import Sampling
from service.engine.steering import Steering
from service.engine.verdict import audit
from service.engine.workers import Workers
from service.errors import DeviceFailed, Draining
from service.inference.latency import LatencyTable
from service.inference.predictor import Predictor
from service.metrics import Metrics
from service.samples.log import SampleLog
from service.state.base import ConfigSource, Goal, ResultCache, ThresholdConfig


class Engine:
    """Classifies images with one model. ``start`` before use, ``close`` after; all methods run in one event loop.

    Args:
        predictor: the model on its device.
        single: the single-scale network, to be timed for comparison; None skips that.
        config: holds the threshold.
        cache: computed results; None disables it.
        metrics: count everything.
        limits: on work in flight.
        samples: the sample log; None disables it.
    """

    def __init__(
        self,
        predictor: Predictor,
        config: ConfigSource,
        cache: ResultCache | None,
        metrics: Metrics,
        limits: Limits,
        single: Predictor | None = None,
        samples: SampleLog | None = None,
    ) -> None:
        spec = predictor.spec
        self.predictor = predictor
        self.spec = spec
        self.recent = Recent()
        names = tuple(stage.name for stage in spec.stages)
        self._config = config
        self._metrics = metrics
        self._limits = limits
        self._cached = None if cache is None else CachedAnswers(cache, predictor, metrics)
        self._answering = Answering(spec, metrics, self.recent)
        sizes = (limits.max_batch_size,) * spec.depth
        self._pace = Pace(LatencyTable(({1: 1.0},) * spec.depth), sizes, limits.workers)
        self._pool = FeaturePool(limits.feature_slots)
        self._lanes = Lanes(
            Plan(sizes),
            limits.feature_slots,
            audit_backlog=limits.feature_slots // tuning.AUDIT_SLOTS,
            on_drop=lambda stage: metrics.dropped.labels(names[stage]).inc(),
            on_late=lambda stage: metrics.dropped.labels(names[stage] if stage else "deadline").inc(),
        )
        self._sampling = None if samples is None else Sampling(samples, predictor, self._lanes)
        policy = Policy(spec.depth - 1, audit_probability=limits.audit_probability)
        self._aside = Aside(spec, metrics, self._lanes.push)
        self._executor = Executor(
            self._lanes, predictor, self._pool, self._pace, self.recent, metrics, policy, self._aside.take
        )
        preparation = Preparation(predictor, single, limits)
        self._workers = Workers(self._lanes, self._executor, preparation, self._pace, limits.workers)
        decode = partial(decode_entry, spec=spec, metrics=metrics, aside=self._aside.take)
        self._ahead = DecodeAhead(limits.decode_threads, self._lanes, decode) if limits.decode_threads else None
        self._waiting: set[Entry] = set()
        self.backlog = Backlog(self._waiting, self._lanes, self._pace, names)
        self.behind = Behind(spec, self._lanes, self._waiting, max(1, limits.feature_slots // tuning.AUDIT_SLOTS))
        brown_out = BrownOut(limits.target_latency_seconds)
        self.wanted = Asked(config, predictor)
        self.periods = Periods(partial(done_by, self.recent, self._answering, self._lanes))
        self._steering = Steering(self._executor, brown_out, self.backlog, self.recent, self.wanted, self.periods)
        self._running = False
        self._draining = False
        self._in_use = InUse()

    async def start(self, profile: LatencyTable | None = None) -> None:
        """Warm up and measure the stages (unless ``profile`` has their times), then start answering.

        Raises: the exception of a stage.
        """
        await asyncio.to_thread(self._workers.start, profile)
        self._running = True
        self._steering.run()

    def reckon_with(self, table: LatencyTable) -> None:
        """Use these times in place of those measured at start-up."""
        self._workers.plan(table)

    def drain(self) -> None:
        """Become not ready. Requests are still answered until ``close``."""
        self._draining = True

    async def close(self) -> None:
        """Finish accepted images, then stop every thread."""
        self._draining = True
        self._running = False
        self._steering.stop()
        if self._ahead is not None:
            await asyncio.to_thread(self._ahead.close)
        await asyncio.to_thread(self._aside.close)
        self._lanes.close()
        await asyncio.to_thread(self._workers.join)
        self.behind.close()
        for entry in list(self._waiting):  # left behind by a device that failed meanwhile
            entry.fail(DeviceFailed("the device failed"))
        if self._sampling is not None:
            self._sampling.close()

    async def retire(self) -> None:
        """Close once no client waits for an answer; new work goes to another engine."""
        await self._in_use.wait_until_unused()
        await self.close()

    def why_not_ready(self) -> str | None:
        """Why the engine is not ready; None if it is."""
        if (reason := self._workers.why_not_ready()) is not None:
            return reason
        if self._draining:
            return "the server is stopping"
        return None if self._running else "the model is being loaded"

    def check_in_time(self, ask: Ask) -> None:
        """Raise DeadlinePassed if the queue already makes every answer too late. Called before a body is read.

        With a cache nothing is refused before the look-up.
        """
        if ask.deadline is not None and self._cached is None:
            self._check_deadline(ask.arrival, ask.arrival + ask.deadline)

    async def classify(self, body: bytes, ask: Ask) -> Answer:
        """Classify one encoded image.

        Args:
            body: JPEG, PNG, WebP, GIF or BMP.
            ask: options of the request.

        Raises:
            InvalidImage: ``body`` cannot be read.
            DeadlinePassed: before any answer existed, or none is possible in time.
            Draining: the engine does not run, or stopped during the cache look-up.
            DeviceFailed: the network failed on this image, or the device on all.
        """
        self._check_running()
        with self._in_use:
            entry = self._entry(ask)
            if self._sampling is None or not self._sampling.is_chosen():
                return await self._answer(entry, body, ask)
            with self._sampling.drawn(entry):
                answer = await self._answer(entry, body, ask)
            self._sampling.answered(entry, body, ask, answer)
            return answer

    async def _answer(self, entry: Entry, body: bytes, ask: Ask) -> Answer:
        """See ``classify``."""
        if self._cached is None:
            return self._answering.answer(entry, *await self._run(entry, body), ask.passes)
        key = self._cached.key(body)
        stage = await self._cached.look_up(key, entry, self._steering.lowered)
        if stage is not None:
            return self._answering.answer(entry, stage, "cached", ask.passes)
        stage, reason = await self._run(entry, body)
        await self._cached.remember(key, entry)
        return self._answering.answer(entry, stage, reason, ask.passes)

    def _check_running(self) -> None:
        if not self._running or (self._workers.failure is not None and not self._workers.alive):
            raise Draining(f"not ready: {self.why_not_ready()}")

    def _entry(self, ask: Ask) -> Entry:
        loop, config = asyncio.get_running_loop(), self._config.current
        return Entry(
            threshold=self.asked.threshold if ask.threshold is None else ask.threshold,
            config_version=config.version,
            top_k=min(ask.top_k, len(self.spec.classes)),
            arrival=ask.arrival,
            deadline=None if ask.deadline is None else ask.arrival + ask.deadline,
            loop=loop,
            future=loop.create_future(),
            is_fixed=ask.threshold is not None,
        )

    async def _run(self, entry: Entry, body: bytes) -> tuple[int, Reason]:
        """Queue the entry and wait. If the caller is cancelled, the entry is dropped at its next stage."""
        self._check_running()
        timer = None
        if entry.deadline is not None:
            self._check_deadline(entry.arrival, entry.deadline)
            timer = entry.loop.call_later(entry.deadline - time.monotonic(), entry.expire)
        self._waiting.add(entry)
        entry.body = body
        try:
            if self._ahead is not None:
                self._ahead.submit(entry)
            else:
                entry.enqueued = time.monotonic()
                self._lanes.push([entry])
            return await entry.answered()
        finally:
            entry.body = None  # it may still be in the decoders' queue, but no longer counts as in flight
            self._waiting.discard(entry)
            if timer is not None:
                timer.cancel()

    def _check_deadline(self, arrival: float, deadline: float) -> None:
        if deadline < time.monotonic() + self.backlog.first_answer():
            self._metrics.dropped.labels("deadline").inc()
            raise too_late(arrival, deadline)

    @property
    def asked(self) -> ThresholdConfig:
        """The current goal, with the threshold in force if it follows the traffic."""
        return self.wanted()

    @property
    def effective_threshold(self) -> float:
        """The threshold in force: lower than the one asked for while the server is overloaded."""
        return min(self._steering.lowered, self.asked.threshold)

    def solve(self, goal: Goal, value: float) -> float:
        """The threshold of a goal. Raises InvalidOption if it cannot be reached, or there is no table."""
        return solve(self.predictor, self._pace.table, self._limits.max_batch_size, goal, value)

    def predict(self, threshold: float) -> Prediction:
        """The predicted effect of a threshold."""
        return predict(self.predictor, self._pace.table, self._limits.max_batch_size, threshold)

    def time_spent(self) -> TimeSpent:
        """Compute time since the start, and the single-scale network's for the same images in the same batches."""
        single = self._lanes.single_scale_seconds if self._pace.table.single else None
        return TimeSpent(self._answering.computed, self._lanes.seconds, single)

    @property
    def has_cache(self) -> bool:
        """Whether results are cached."""
        return self._cached is not None

    def totals(self) -> Totals:
        """Totals since the start."""
        return replace(self.recent.totals(), batches=self._lanes.batches)

    def audit(self) -> Audit:
        """The verdict of audits and recent costs on the goal."""
        asked = self.asked
        self.periods.look(asked.threshold)
        return audit(asked, self.recent, self.periods, self.predictor.calibration, self.costs(asked.goal))

    def costs(self, goal: Goal) -> tuple[float, ...]:
        """Cost of each stage alone per image, in the unit of a budget, measured or counted."""
        return costs(self.predictor, self._pace.table, self._limits.max_batch_size, goal)

    def passed(self) -> Passed:
        """The latest images, for a live table."""
        minute = self.periods.last_minute()
        return self.recent.passed(self.asked.threshold, minute.images / max(minute.seconds, 1.0))

    @property
    def latency_table(self) -> LatencyTable:
        """Seconds of each stage by batch size."""
        return self._pace.table

    @property
    def feature_bytes(self) -> int:
        """Memory used by the features of escalated and audited images."""
        return (self._limits.feature_slots - self._lanes.free_slots) * self._pool.bytes_each
