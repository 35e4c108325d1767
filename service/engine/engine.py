"""The way of one image: admitted, decoded, run, answered exactly once."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b

import torch

from service.engine.admission import Admission
from service.engine.entry import Answer, Ask, Entry, Ranked, Reason, Stage
from service.engine.recent import Recent
from service.engine.scheduler import STAGES, Scheduler
from service.engine.workers import Workers
from service.errors import DeviceFailed, Draining, InvalidImage, LowfirstError
from service.images.decode import decode
from service.inference.exit_rule import exits
from service.inference.predictor import Predictor
from service.log import logger
from service.metrics import Metrics
from service.networks.msnet import LowState
from service.state.base import CachedPasses, ConfigStore, ResultCache


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of an engine: see the settings of the same names."""

    max_batch_size: int = 8
    max_images_in_flight: int = 256
    max_bytes_in_flight: int = 256 * 1024 * 1024
    feature_slots: int = 128
    workers: int = 1
    decode_threads: int = 1


class Engine:
    """Classifies images with one model. ``start`` before use, ``close`` after; all methods in one event loop.

    Args:
        predictor: the model on its device.
        config: where the threshold stands.
        cache: results already computed; None keeps none.
        metrics: what is told of all that happens.
        limits: bounds of work in flight.
    """

    def __init__(
        self, predictor: Predictor, config: ConfigStore, cache: ResultCache | None, metrics: Metrics, limits: Limits
    ) -> None:
        spec = predictor.spec
        self.predictor = predictor
        self.spec = spec
        self.recent = Recent()
        self.admission = Admission(
            limits.max_images_in_flight,
            limits.max_bytes_in_flight,
            wait_seconds=self.queued_seconds,
            on_reject=lambda reason: metrics.rejected.labels(reason).inc(),
        )
        self._config = config
        self._cache = cache
        self._metrics = metrics
        self._model = f"{spec.name}/{spec.version}"
        self._scheduler = Scheduler(
            limits.max_batch_size, limits.feature_slots, on_drop=lambda stage: metrics.dropped.labels(stage).inc()
        )
        self._workers = Workers(self._scheduler, predictor, metrics, self._model, limits.workers, self._die)
        self._decoders = ThreadPoolExecutor(limits.decode_threads, thread_name_prefix="decode")
        self._max_batch_size = limits.max_batch_size
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[Entry] = set()
        self._running = False
        self._draining = False
        self._death: BaseException | None = None
        self._watch()

    async def start(self) -> None:
        """Run every batch size once, so that no request pays for it, then begin to answer."""
        self._loop = asyncio.get_running_loop()
        await asyncio.to_thread(self._warm_up)
        self._workers.start()
        self._running = True

    def drain(self) -> None:
        """Stop being ready. Requests are still answered until ``close``."""
        self._draining = True

    async def close(self) -> None:
        """Finish what was accepted, then stop every thread."""
        self._draining = True
        self._running = False
        await asyncio.to_thread(self._decoders.shutdown)
        self._scheduler.close()
        await asyncio.to_thread(self._workers.join)

    def why_not_ready(self) -> str | None:
        """What keeps new work away, in words; None when nothing does."""
        if self._death is not None:
            return "a worker died"
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
            DeviceFailed: the network failed on this image, or a worker died.
        """
        self._check_running()
        entry = self._entry(ask)
        key = self._key(body) if self._cache is not None else ""
        cached = await self._look_up(key, entry)
        if cached is not None:
            return self._answer(entry, cached, "cached")
        exit_, reason = await self._run(entry, body)
        await self._remember(key, entry)
        return self._answer(entry, exit_, reason)

    def queued_seconds(self) -> float:
        """How long the oldest waiting image has waited."""
        return max(self._age(stage) for stage in STAGES)

    def queue_depth(self) -> dict[Stage, int]:
        """Images waiting for each pass."""
        return {stage: self._scheduler.depth(stage) for stage in STAGES}

    def _check_running(self) -> None:
        if not self._running or self._death is not None:
            raise Draining(f"not ready: {self.why_not_ready()}")

    def _entry(self, ask: Ask) -> Entry:
        assert self._loop is not None
        config = self._config.current
        return Entry(
            threshold=config.thresholds[self.spec.name].threshold if ask.threshold is None else ask.threshold,
            config_version=config.version,
            top_k=min(ask.top_k, len(self.spec.classes)),
            arrival=ask.arrival,
            deadline=None if ask.deadline is None else ask.arrival + ask.deadline,
            loop=self._loop,
            future=self._loop.create_future(),
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
            self._decoders.submit(self._decode, entry)
            return await entry.future
        finally:
            entry.body = None  # it may still stand in the decoders' queue, and counts as in flight no more
            self._waiting.discard(entry)
            if timer is not None:
                timer.cancel()

    def _decode(self, entry: Entry) -> None:
        """In a decode thread: bytes to pixels, then into the low lane."""
        body = entry.body
        if body is None or entry.is_dead:
            self._metrics.dropped.labels("decode").inc()
            return
        began = time.monotonic()
        try:
            entry.image = decode(body, self.spec.preprocessing)
        except LowfirstError as error:
            entry.loop.call_soon_threadsafe(entry.fail, error)
            return
        except BaseException:
            logger.exception("decoding failed")
            failure = InvalidImage("image cannot be decoded", field="image")
            entry.loop.call_soon_threadsafe(entry.fail, failure)
            return
        entry.enqueued = time.monotonic()
        entry.timing.decode = entry.enqueued - began
        self._metrics.decode_seconds.observe(entry.timing.decode)
        self._scheduler.push("low", [entry])

    def _answer(self, entry: Entry, exit_: Stage, reason: Reason) -> Answer:
        spec = self.spec
        answering = entry.low if exit_ == "low" else entry.high
        assert answering is not None
        scores, indices = answering.topk(entry.top_k)
        computed = 0.0 if reason == "cached" else spec.low_mmacs + (spec.high_mmacs if exit_ == "high" else 0.0)
        answer = Answer(
            top_k=tuple(
                Ranked(spec.classes[index], index, score)
                for score, index in zip(scores.tolist(), indices.tolist(), strict=True)
            ),
            exit=exit_,
            reason=reason,
            confidence=entry.confidence,
            threshold=entry.threshold,
            mmacs=computed,
            degraded=reason == "deadline",
            model=spec.name,
            version=spec.version,
            config_version=entry.config_version,
            timing=entry.timing,
            seconds=time.monotonic() - entry.arrival,
        )
        self._metrics.images.labels(self._model, exit_, reason).inc()
        self._metrics.confidence.labels(self._model).observe(entry.confidence)
        self.recent.add(answer)
        return answer

    def _key(self, body: bytes) -> str:
        digest = blake2b(body, digest_size=32).hexdigest()
        return f"{self._model}:{self.predictor.runtime}:{self.predictor.precision}:{digest}"

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

    def _warm_up(self) -> None:
        crop = self.spec.preprocessing.crop
        for size in range(self._max_batch_size, 0, -1):  # one image last: the first pass of all is no measure
            images = torch.zeros(size, 3, crop, crop, dtype=torch.uint8)
            state = self.predictor.low(images)
            rows = [state.rows(torch.tensor([row], device=state.logits.device)) for row in range(size)]
            began = time.monotonic()
            self.predictor.high(images, LowState.stack(rows)).cpu()
            self._workers.escalation_seconds = time.monotonic() - began

    def _die(self, error: BaseException) -> None:
        """In a worker's thread: not ready any more, and nobody waits for an answer that cannot come."""
        logger.critical("a worker died", exc_info=error)
        self._death = error
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._fail_waiting)

    def _fail_waiting(self) -> None:
        for entry in list(self._waiting):
            entry.fail(DeviceFailed("a worker died"))
        self._scheduler.close()  # the others leave too: they might wait for slots that the dead one held

    def _watch(self) -> None:
        metrics, spec = self._metrics, self.spec
        metrics.single_scale_multiply_adds.labels(self._model).set(round(spec.high_mmacs * 1e6))
        metrics.watch(metrics.in_flight, lambda: self.admission.images)
        metrics.watch(metrics.config_version, lambda: self._config.current.version)
        metrics.watch(
            metrics.threshold, lambda: self._config.current.thresholds[spec.name].threshold, model=self._model
        )
        for stage in STAGES:
            metrics.watch(metrics.queue_depth, partial(self._scheduler.depth, stage), stage=stage)
            metrics.watch(metrics.queued_seconds, partial(self._age, stage), stage=stage)

    def _age(self, stage: Stage) -> float:
        oldest = self._scheduler.oldest(stage)
        return 0.0 if oldest is None else time.monotonic() - oldest
