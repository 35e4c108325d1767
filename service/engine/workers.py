"""Threads that run batches: each pulls one, runs its pass, answers or escalates its entries."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch

from service.engine.decoding import decode_entry
from service.engine.entry import Entry, Reason
from service.engine.features import FeaturePool
from service.engine.limits import Limits
from service.engine.scheduler import Batch, Plan, Scheduler, Work
from service.errors import DeviceFailed, LowfirstError
from service.images.decode import stack
from service.inference.exit_rule import confidence, exits, probabilities
from service.inference.latency import SIZES, LatencyTable, Stage, measure
from service.inference.predictor import Predictor
from service.log import logger
from service.metrics import Metrics

# Weight of the newest batch in the running ratio of seconds taken to seconds foretold.
NEWEST = 0.1

# One image on all cores is worth it where it takes at most this share of its time on one; the best of so many runs.
WIDE_GAIN = 0.8
WIDE_RUNS = 5

# Seconds before a thread that replaces a failed one tries the device: doubled each time, up to the last.
FIRST_RETRY, LAST_RETRY = 0.1, 5.0


class Workers:
    """Worker threads over one predictor. On a CPU each uses one core.

    Args:
        scheduler: where batches come from and escalated entries go.
        predictor: what runs them; shared.
        pool: where the low features of escalated entries are kept.
        metrics: what is told of batches.
        limits: how many threads, how large a batch at most, how many audits.
        threshold_for: what an entry's confidence is to be compared with now; asked in the workers' threads.
        on_audit: told, in the event loop's thread, whether the high pass agreed with an entry that exited.
        on_failure: told, in the worker's thread, of the error that ended it and how many workers are left.
        on_recovery: told once all of them run.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        predictor: Predictor,
        pool: FeaturePool,
        metrics: Metrics,
        limits: Limits,
        threshold_for: Callable[[Entry], float] = lambda entry: entry.threshold,
        on_audit: Callable[[Entry, bool], None] = lambda entry, agreed: None,
        on_failure: Callable[[BaseException, int], None] = lambda error, left: None,
        on_recovery: Callable[[], None] = lambda: None,
    ) -> None:
        self.table = LatencyTable({1: 1.0}, {1: 1.0})
        self.slowdown = 1.0
        self._count = limits.workers
        self._scheduler = scheduler
        self._predictor = predictor
        self._pool = pool
        self._metrics = metrics
        self._model = f"{predictor.spec.name}/{predictor.spec.version}"
        self._limits = limits
        self._threshold_for = threshold_for
        self._on_audit = on_audit
        self._on_failure = on_failure
        self._on_recovery = on_recovery
        self._wide = False
        self._planned = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._threads: set[threading.Thread] = set()
        self._alive = 0
        self._busy = 0

    def start(self, profile: LatencyTable | None = None) -> None:
        """Warm up in all threads at once, as they will run, and measure (unless ``profile`` tells); then pull batches.

        Raises: what a pass raised.
        """
        tables: list[Future[LatencyTable]] = [Future() for _ in range(self._count)]
        warm: list[Future[None]] = [Future() for _ in range(self._count)]
        for measured, warmed in zip(tables, warm, strict=True):
            self._spawn(partial(self._first_life, profile, measured, warmed))
        try:
            self.table = LatencyTable.mean([future.result() for future in tables])
            low, high = (self.table.best_size(stage, self._limits.max_batch_size) for stage in ("low", "high"))
            self._scheduler.plan = Plan(low, high, self.table.seconds)
            self._wide = self._count > 1 and self._is_wide_faster()
            self._planned.set()
            for future in warm:
                future.result()
        except BaseException:
            self._scheduler.close()
            self._stopping.set()
            self._planned.set()
            self.join()
            raise

    def join(self) -> None:
        """Wait until every thread has run the closed scheduler empty."""
        self._stopping.set()
        while True:
            with self._lock:
                thread = next(iter(self._threads), None)
            if thread is None:
                return
            thread.join()

    @property
    def alive(self) -> int:
        """Threads that pull batches."""
        return self._alive

    def seconds(self, stage: Stage) -> float:
        """What an image takes of the whole device in full batches, as it runs now."""
        plan = self._scheduler.plan
        size = plan.low_size if stage == "low" else plan.high_size
        return self.slowdown * self.table.seconds(stage, size) / size / self._count

    def escalation_seconds(self) -> float:
        """How long an image that escalates now would take to its high answer."""
        waiting = self._scheduler.depth("high")
        size = min(waiting + 1, self._scheduler.plan.high_size)
        return waiting * self.seconds("high") + self.slowdown * self.table.seconds("high", size)

    # a thread's life

    def _spawn(self, life: Callable[[], None]) -> None:
        def live() -> None:
            try:
                if self._predictor.device.type == "cpu":
                    torch.set_num_threads(self._predictor.threads)
                life()
            finally:
                with self._lock:
                    self._threads.discard(threading.current_thread())

        with self._lock:
            thread = threading.Thread(target=live, name=f"worker-{len(self._threads)}", daemon=True)
            self._threads.add(thread)
            thread.start()  # here, or ``join`` could meet it before

    def _first_life(self, profile: LatencyTable | None, measured: Future[LatencyTable], warmed: Future[None]) -> None:
        try:
            measured.set_result(profile or measure(self._predictor, sizes=self._sizes()))
            self._planned.wait()
            if not self._stopping.is_set():
                self._warm_up()
        except BaseException as error:
            for future in (measured, warmed):
                if not future.done():
                    future.set_exception(error)
            return
        warmed.set_result(None)
        self._serve()

    def _sizes(self) -> list[int]:
        """What is worth measuring: no batch will be larger than the largest of these."""
        most = self._limits.max_batch_size
        return [*(size for size in SIZES if size < most), most] if most <= SIZES[-1] else list(SIZES)

    def _next_life(self, delay: float) -> None:
        """In place of a thread that the device failed. What a runtime keeps for a thread is made anew in a new one."""
        if self._stopping.wait(delay):
            return
        try:
            self._probe()
            self._warm_up()
        except BaseException as error:
            logger.error("the device still fails: %s", error)
            self._spawn(partial(self._next_life, min(2 * delay, LAST_RETRY)))
            return
        self._serve()

    def _serve(self) -> None:
        with self._lock:
            self._alive += 1
            if self._alive == self._count:
                self._on_recovery()
        try:
            while (batch := self._scheduler.wait()) is not None:
                with self._one_more_busy():
                    self._note_waits(batch)
                    self._run(batch)
                del batch  # or its images live on while this thread waits
        except BaseException as error:
            logger.critical("a worker failed", exc_info=error)
            self._on_failure(error, self._one_less_alive())
            self._spawn(partial(self._next_life, FIRST_RETRY))
        else:
            self._one_less_alive()

    def _one_less_alive(self) -> int:
        with self._lock:
            self._alive -= 1
            return self._alive

    @contextmanager
    def _one_more_busy(self) -> Iterator[None]:
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1

    def _warm_up(self) -> None:
        """Run every batch size that may come once, so that no request pays for it."""
        plan = self._scheduler.plan
        crop = self._predictor.spec.preprocessing.crop
        for size in range(max(plan.low_size, plan.high_size), 0, -1):
            images = torch.zeros(size, crop, crop, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
            state = self._predictor.low(images)
            if size <= plan.high_size:
                self._predictor.high(images, state).cpu()

    def _is_wide_faster(self) -> bool:
        """Whether one image on all cores is answered sooner than on one; while the workers wait."""
        if self._predictor.device.type != "cpu":
            return False
        crop = self._predictor.spec.preprocessing.crop
        image = torch.zeros(1, crop, crop, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        seconds = []
        for _ in range(WIDE_RUNS):
            began = time.perf_counter()
            self._predictor.high(image, self._predictor.low(image, wide=True), wide=True)
            seconds.append(time.perf_counter() - began)
        return min(seconds) < WIDE_GAIN * (self.table.seconds("low", 1) + self.table.seconds("high", 1))

    def _is_alone(self, entries: list[Entry]) -> bool:
        """Whether a pass may take every core: one image, and nothing else to run."""
        return self._wide and len(entries) == 1 and self._scheduler.is_idle and self._busy == 1

    def _probe(self) -> None:
        """Whether the device can run anything at all. Raises what it raises."""
        crop = self._predictor.spec.preprocessing.crop
        self._predictor.heads(torch.zeros(1, 3, crop, crop, dtype=torch.uint8))[1].cpu()

    # a batch

    def _note_waits(self, batch: Batch) -> None:
        now = time.monotonic()
        self._metrics.batches.labels(batch.work, batch.reason).inc()
        if batch.work == "audit":
            return
        waits = self._metrics.queue_seconds.labels(batch.work)
        for entry in batch.entries:
            waited = now - entry.enqueued
            entry.timing.queue += waited
            waits.observe(waited)

    def _run(self, batch: Batch) -> None:
        """One batch; if it raises, its entries one by one, so that only the one at fault fails.

        Raises: what the device raises, if it can run nothing at all any more; every entry is answered nevertheless.
        """
        run = {"low": self._low, "high": self._high, "audit": self._audit}[batch.work]
        try:
            run(batch.entries, batch.slots)
        except BaseException as error:
            is_broken = not isinstance(error, Exception) or self._is_broken()
            if is_broken or len(batch.entries) == 1:
                logger.exception("the %s pass failed", batch.work)
                self._abandon(batch, error)
            if is_broken:
                raise
            if len(batch.entries) > 1:
                self._run_singly(batch)

    def _run_singly(self, batch: Batch) -> None:
        for index, (entry, slot) in enumerate(zip(batch.entries, batch.slots, strict=True)):
            try:
                self._run(replace(batch, entries=[entry], slots=[slot]))
            except BaseException as error:
                rest = replace(batch, entries=batch.entries[index + 1 :], slots=batch.slots[index + 1 :])
                self._abandon(rest, error)
                raise

    def _abandon(self, batch: Batch, error: BaseException) -> None:
        failure = _translate(error, batch.work)
        self._scheduler.release(batch.slots)
        for entry in batch.entries:
            entry.loop.call_soon_threadsafe(entry.fail, failure)

    def _is_broken(self) -> bool:
        try:
            self._probe()
        except Exception:
            return True
        return False

    def _low(self, entries: list[Entry], slots: list[int]) -> None:
        entries = [entry for entry in entries if entry.image is not None or self._decode(entry)]
        if not entries:
            self._scheduler.release(slots)
            return
        began = time.monotonic()
        state = self._predictor.low(_stack(entries), self._is_alone(entries))
        low = probabilities(state.logits, self._predictor.spec.temperature.low).cpu()
        sure = confidence(low).tolist()
        spent = self._end("low", began, len(entries))
        kept: list[int] = []
        answers: list[Callable[[], None]] = []
        audits: list[Entry] = []
        for row, entry in enumerate(entries):
            entry.timing.low = spent
            entry.confidence = sure[row]
            entry.low = low[row]
            if entry.is_dead:
                self._metrics.dropped.labels("escalation").inc()
                continue
            reason = self._decide(entry)
            if reason is None:
                kept.append(row)
                continue
            answers.append(partial(entry.resolve, "low", reason))
            if reason == "confident" and random.random() < self._limits.audit_probability:
                kept.append(row)
                audits.append(entry)
        if kept:
            self._pool.put(state, kept, [slots[row] for row in kept])
        now = time.monotonic()
        for row in kept:
            entries[row].slot = slots[row]
            entries[row].enqueued = now
        _hand_over(entries[0].loop, answers)
        escalated = [entries[row] for row in kept if entries[row] not in audits]
        unused = [slot for row, slot in enumerate(slots) if row not in kept]
        self._scheduler.escalate(escalated, len(entries), unused + self._send_to_audit(audits))

    def _decode(self, entry: Entry) -> bool:
        return decode_entry(entry, self._predictor.spec.preprocessing, self._metrics)

    def _send_to_audit(self, entries: list[Entry]) -> list[int]:
        """The slots of those for whom there was no room."""
        refused = [entry for entry in entries if not self._scheduler.audit(entry)]
        self._metrics.audits_skipped.inc(len(refused))
        return [entry.slot for entry in refused if entry.slot is not None]

    def _decide(self, entry: Entry) -> Reason | None:
        """Why the low answer is final, or None if it is not."""
        asked = entry.threshold
        entry.threshold = self._threshold_for(entry)
        if exits(entry.confidence, entry.threshold):
            return "confident" if exits(entry.confidence, asked) else "brownout"
        if entry.deadline is not None and time.monotonic() + self.escalation_seconds() > entry.deadline:
            return "deadline"
        return None

    def _high(self, entries: list[Entry], slots: list[int]) -> None:
        began = time.monotonic()
        logits = self._predictor.high(_stack(entries), self._pool.take(slots), self._is_alone(entries))
        high = probabilities(logits, self._predictor.spec.temperature.high).cpu()
        spent = self._end("high", began, len(entries))
        self._scheduler.release(slots)
        for row, entry in enumerate(entries):
            if entry.is_dead:
                self._metrics.dropped.labels("answer").inc()
            entry.timing.high = spent
            entry.high = high[row]
            entry.slot = None
        _hand_over(entries[0].loop, [partial(entry.resolve, "high", "escalated") for entry in entries])

    def _audit(self, entries: list[Entry], slots: list[int]) -> None:
        began = time.monotonic()
        answers = self._predictor.high(_stack(entries), self._pool.take(slots)).argmax(1).tolist()
        self._end("audit", began, len(entries))
        self._scheduler.release(slots)
        for entry, answer in zip(entries, answers, strict=True):
            assert entry.low is not None
            agreed = answer == int(entry.low.argmax())
            entry.loop.call_soon_threadsafe(self._on_audit, entry, agreed)

    def _end(self, work: Work, began: float, images: int) -> float:
        spent = time.monotonic() - began
        spec = self._predictor.spec
        self._metrics.compute_seconds.labels(work).observe(spent)
        self._metrics.batch_size.labels(work).observe(images)
        each = spec.low_mmacs if work == "low" else spec.high_mmacs
        self._metrics.multiply_adds.labels(self._model, work).inc(round(each * 1e6) * images)
        self._scheduler.spent(work, spent)
        foretold = self.table.seconds("low" if work == "low" else "high", images)
        self.slowdown += NEWEST * (spent / foretold - self.slowdown)
        return spent


def _stack(entries: list[Entry]) -> torch.Tensor:
    return stack([entry.image for entry in entries if entry.image is not None])


def _hand_over(loop: asyncio.AbstractEventLoop, calls: list[Callable[[], None]]) -> None:
    """Make ``calls`` in the event loop's thread, all at one wake-up."""

    def make() -> None:
        for call in calls:
            call()

    if calls:
        loop.call_soon_threadsafe(make)


def _translate(error: BaseException, work: Work) -> LowfirstError:
    return error if isinstance(error, LowfirstError) else DeviceFailed(f"the {work} pass failed on this image")
