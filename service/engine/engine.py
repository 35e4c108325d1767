"""The way of one image: admitted, decoded, run, answered exactly once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache as memoise
from functools import partial
from hashlib import blake2b

import torch

from service.engine.audit import Audit
from service.engine.batch_runner import BatchRunner
from service.engine.brown_out import BrownOut, Load
from service.engine.decoding import decode_entry
from service.engine.entry import Answer, Ask, Entry, Passes, Ranked, Reason
from service.engine.features import FeaturePool
from service.engine.limits import Limits
from service.engine.recent import Recent
from service.engine.scheduler import Plan, Scheduler
from service.engine.workers import Workers
from service.errors import DeviceFailed, Draining
from service.inference.exit_rule import exits
from service.inference.latency import STAGES, LatencyTable, Stage
from service.inference.predictor import Predictor
from service.log import logger
from service.metrics import Metrics
from service.state.base import CachedPasses, ConfigSource, ResultCache, ThresholdConfig

# One of so many feature slots may hold an image that waits for its audit.
AUDIT_SLOTS = 8

# How often overload is looked at, and by how many of the latest confidences.
STEERING_SECONDS = 0.05
STEERING_CONFIDENCES = 1024


class Engine:
    """Classifies images with one model. ``start`` before use, ``close`` after; all methods in one event loop.

    Args:
        predictor: the model on its device.
        config: where the threshold stands.
        cache: results already computed; None keeps none.
        metrics: what is told of all that happens.
        limits: bounds of work in flight.
        on_answer: told of each answer, in the task that asked.
    """

    def __init__(
        self,
        predictor: Predictor,
        config: ConfigSource,
        cache: ResultCache | None,
        metrics: Metrics,
        limits: Limits,
        on_answer: Callable[[Answer], None] = lambda answer: None,
    ) -> None:
        spec = predictor.spec
        self.predictor = predictor
        self.spec = spec
        self.recent = Recent()
        self._on_answer = on_answer
        self._config = config
        self._cache = cache
        self._metrics = metrics
        self._model = spec.reference
        # replicas that share a cache may each have published another model under this name
        self._cached_as = f"{self._model}:{spec.weights_sha256[:16]}:{predictor.runtime}:{predictor.precision}"
        self._answered = memoise(partial(metrics.images.labels, self._model))
        self._confidence = metrics.confidence.labels(self._model)
        self._limits = limits
        self._pool = FeaturePool(limits.feature_slots)
        self._scheduler = Scheduler(
            Plan(limits.max_batch_size, limits.max_batch_size),
            limits.feature_slots,
            audit_backlog=limits.feature_slots // AUDIT_SLOTS,
            on_drop=lambda stage: metrics.dropped.labels(stage).inc(),
        )
        self._runner = BatchRunner(
            self._scheduler, predictor, self._pool, metrics, limits, self._threshold_for, self._audited
        )
        self._workers = Workers(
            self._scheduler, self._runner, limits.workers, on_failure=self._failed, on_recovery=self._recovered
        )
        self._decoders = _decode_threads(limits.decode_threads) if limits.decode_threads else None
        self._brown_out = BrownOut(limits.target_latency)
        self._lowered = math.inf
        self._steering: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[Entry] = set()
        self._running = False
        self._draining = False
        self._failure: BaseException | None = None
        self._asking = 0
        self._unused = asyncio.Event()
        self._unused.set()

    async def start(self, profile: LatencyTable | None = None) -> None:
        """Warm up and measure the passes (unless ``profile`` tells their times), then begin to answer.

        Raises: what a pass raised.
        """
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._workers.start, profile)
        self._running = True
        self._steer()

    @property
    def latency_table(self) -> LatencyTable:
        """Seconds of each pass by batch size."""
        return self._runner.table

    def drain(self) -> None:
        """Stop being ready. Requests are still answered until ``close``."""
        self._draining = True

    async def close(self) -> None:
        """Finish what was accepted, then stop every thread."""
        self._draining = True
        self._running = False
        if self._steering is not None:
            self._steering.cancel()
        if not self._workers.alive:  # nobody makes the room that decoders wait for
            self._scheduler.close()
        if self._decoders is not None:
            await asyncio.to_thread(self._decoders.shutdown)
        self._scheduler.close()
        await asyncio.to_thread(self._workers.join)
        self._fail_waiting()  # what a device that failed meanwhile left behind

    async def retire(self) -> None:
        """Close once nobody waits for an answer: new work goes elsewhere."""
        await self._unused.wait()
        await self.close()

    def why_not_ready(self) -> str | None:
        """What keeps new work away, in words; None when nothing does."""
        if self._failure is not None:
            return f"the device failed ({self._failure}) and is tried again"
        if self._draining:
            return "the server is stopping"
        return None if self._running else "the model is being loaded"

    async def classify(self, body: bytes, ask: Ask) -> Answer:
        """The answer to one encoded image.

        Args:
            body: JPEG, PNG, WebP, GIF or BMP.
            ask: what is wanted.

        Raises:
            InvalidImage: ``body`` cannot be read.
            DeadlinePassed: before any answer existed.
            Draining: the engine does not run, or stopped while the cache was asked.
            DeviceFailed: the network failed on this image, or the device on all.
        """
        self._check_running()
        with self._in_use():
            entry = self._entry(ask)
            key = self._key(body) if self._cache is not None else ""
            cached = await self._look_up(key, entry)
            if cached is not None:
                return self._answer(entry, cached, "cached", ask.passes)
            exit_, reason = await self._run(entry, body)
            await self._remember(key, entry)
            return self._answer(entry, exit_, reason, ask.passes)

    @property
    def asked(self) -> ThresholdConfig:
        """What the runtime config says of this model; its default where that says nothing."""
        return self._config.current.thresholds.get(self.spec.name) or self.predictor.default_threshold

    def queued_seconds(self) -> float:
        """How long the device needs for what is queued, if images go on escalating as they did."""
        load = self._load()
        escalating = load.escalated + load.undecided * self._scheduler.escalating
        return load.undecided * load.low_seconds + escalating * load.high_seconds

    @property
    def effective_threshold(self) -> float:
        """The threshold in force: lower than asked for while the server is overloaded."""
        return min(self._lowered, self.asked.threshold)

    def audit(self) -> Audit:
        """What audits say of the threshold that is asked for."""
        threshold, calibration = self.asked.threshold, self.predictor.calibration
        disagreements, images = self.recent.disagreement_at(threshold)
        rate, _ = self.recent.exit_rate_at(threshold)
        exit_rate = 0.0 if threshold >= 1 else rate or None  # that none of a few exits tells nothing
        return Audit(images, disagreements, exit_rate, None if calibration is None else calibration.promise(self.asked))

    def queue_depth(self) -> dict[Stage, int]:
        """Images waiting for each pass."""
        return {stage: self._scheduler.depth(stage) for stage in STAGES}

    def queue_age(self, stage: Stage) -> float:
        """Seconds since the oldest image that waits for ``stage`` arrived; 0 without any."""
        oldest = self._scheduler.oldest(stage)
        return 0.0 if oldest is None else time.monotonic() - oldest

    @property
    def feature_bytes(self) -> int:
        """What the low features that are kept for the high pass take."""
        return (self._limits.feature_slots - self._scheduler.free_slots) * self._pool.bytes_each

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        self._asking += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._asking -= 1
            if not self._asking:
                self._unused.set()

    def _check_running(self) -> None:
        if not self._running or (self._failure is not None and not self._workers.alive):
            raise Draining(f"not ready: {self.why_not_ready()}")

    def _entry(self, ask: Ask) -> Entry:
        assert self._loop is not None
        config = self._config.current
        return Entry(
            threshold=self.asked.threshold if ask.threshold is None else ask.threshold,
            config_version=config.version,
            top_k=min(ask.top_k, len(self.spec.classes)),
            arrival=ask.arrival,
            deadline=None if ask.deadline is None else ask.arrival + ask.deadline,
            loop=self._loop,
            future=self._loop.create_future(),
            is_fixed=ask.threshold is not None,
        )

    async def _run(self, entry: Entry, body: bytes) -> tuple[Stage, Reason]:
        """Send it on its way and wait. A cancelled caller leaves a dead entry, which is dropped where it is met."""
        self._check_running()
        timer = None
        if entry.deadline is not None:
            left = entry.deadline - time.monotonic()
            if left <= 0:
                entry.expire()
            timer = entry.loop.call_later(left, entry.expire)
        self._waiting.add(entry)
        entry.body = body
        try:
            self._submit(entry)
            return await entry.future
        finally:
            entry.body = None  # it may still stand in the decoders' queue, and counts as in flight no more
            self._waiting.discard(entry)
            if timer is not None:
                timer.cancel()

    def _submit(self, entry: Entry) -> None:
        """On to the low pass, by way of the decode threads if there are any."""
        if self._decoders is None:
            self._push(entry)
        else:
            self._decoders.submit(self._decode_ahead, entry)

    def _decode_ahead(self, entry: Entry) -> None:
        """In a decode thread."""
        if not entry.is_dead:
            self._scheduler.wait_for_room()
        if decode_entry(entry, self.spec.preprocessing, self._metrics):
            self._push(entry)

    def _push(self, entry: Entry) -> None:
        entry.enqueued = time.monotonic()
        self._scheduler.push([entry])

    def _answer(self, entry: Entry, exit_: Stage, reason: Reason, with_passes: bool) -> Answer:
        spec = self.spec
        ranked = self._ranked(entry.low if exit_ == "low" else entry.high, entry.top_k)
        computed = 0.0 if reason == "cached" else spec.low_mmacs + (spec.high_mmacs if exit_ == "high" else 0.0)
        answer = Answer(
            top_k=ranked,
            exit=exit_,
            reason=reason,
            confidence=entry.confidence,
            threshold=entry.threshold,
            mmacs=computed,
            degraded=reason in ("deadline", "brownout"),
            model=spec.name,
            version=spec.version,
            config_version=entry.config_version,
            timing=entry.timing,
            seconds=time.monotonic() - entry.arrival,
            passes=self._passes(entry, exit_, ranked) if with_passes else None,
        )
        self._answered(exit_, reason).inc()
        self._confidence.observe(entry.confidence)
        self.recent.add(answer)
        self._on_answer(answer)
        return answer

    def _passes(self, entry: Entry, exit_: Stage, ranked: tuple[Ranked, ...]) -> Passes:
        if exit_ == "low":  # an audit's high pass, if it is done already, is no part of the answer
            return Passes(low=ranked, high=None)
        return Passes(low=self._ranked(entry.low, entry.top_k), high=ranked)

    def _ranked(self, probabilities: torch.Tensor | None, top_k: int) -> tuple[Ranked, ...]:
        assert probabilities is not None
        scores, indices = probabilities.topk(top_k)
        return tuple(
            Ranked(self.spec.classes[index], index, score)
            for score, index in zip(scores.tolist(), indices.tolist(), strict=True)
        )

    def _key(self, body: bytes) -> str:
        digest = blake2b(body, digest_size=32).hexdigest()
        return f"{self._cached_as}:{digest}"

    async def _look_up(self, key: str, entry: Entry) -> Stage | None:
        """Fill ``entry`` from the cache; the pass that answers it from there, or None when both passes must run."""
        if self._cache is None:
            return None
        known = await self._cache.get(key)
        exit_: Stage | None = None
        if known is not None:
            entry.low = torch.tensor(known.low)
            entry.confidence = max(known.low)
            if exits(entry.confidence, entry.threshold):
                exit_ = "low"
            elif known.high is not None:
                entry.high = torch.tensor(known.high)
                exit_ = "high"
        self._metrics.cache_requests.labels("miss" if exit_ is None else "hit").inc()
        return exit_

    async def _remember(self, key: str, entry: Entry) -> None:
        if self._cache is not None and entry.low is not None:
            high = None if entry.high is None else tuple(entry.high.tolist())
            await self._cache.put(key, CachedPasses(tuple(entry.low.tolist()), high))

    def _load(self) -> Load:
        escalated = self._scheduler.depth("high")
        return Load(
            undecided=max(0, len(self._waiting) - escalated),
            escalated=escalated,
            low_seconds=self._runner.seconds("low"),
            high_seconds=self._runner.seconds("high"),
        )

    def _steer(self) -> None:
        """Every ``STEERING_SECONDS``, in the event loop's thread: what overload does to the threshold."""
        assert self._loop is not None
        config = self.asked
        confidences = self.recent.confidences(STEERING_CONFIDENCES)
        lowered = self._brown_out.steer(time.monotonic(), self._load(), confidences, config.threshold, config.floor)
        self._lowered = lowered if lowered < config.threshold else math.inf
        self._steering = self._loop.call_later(STEERING_SECONDS, self._steer)

    def _threshold_for(self, entry: Entry) -> float:
        return entry.threshold if entry.is_fixed else min(entry.threshold, self._lowered)

    def _audited(self, entry: Entry, agreed: bool) -> None:
        self._metrics.audits.labels(self._model).inc()
        if not agreed:
            self._metrics.audit_disagreements.labels(self._model).inc()
        self.recent.audit(entry.confidence, entry.audited_above, agreed)

    def _failed(self, error: BaseException, left: int) -> None:
        """In a worker's thread: not ready any more; if no worker is left, nobody waits for what cannot come."""
        self._failure = error
        if not left and self._loop is not None:
            self._loop.call_soon_threadsafe(self._fail_waiting)

    def _recovered(self) -> None:
        if self._failure is not None:
            logger.info("the device runs again")
        self._failure = None

    def _fail_waiting(self) -> None:
        for entry in list(self._waiting):
            entry.fail(DeviceFailed("the device failed"))
        if not self._running:  # closing: nobody makes the room that decoders wait for any more
            self._scheduler.close()


def _decode_threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="decode", initializer=torch.set_num_threads, initargs=(1,))
