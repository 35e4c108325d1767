"""What a worker does with a batch: a pass over it, and every entry answered, escalated, audited or failed."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
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

# How long a worker decodes images of one batch.
DECODE_SECONDS = 0.02


class BatchRunner:
    """Both passes of one predictor, run on the batches of one scheduler. Threads share it.

    Args:
        scheduler: where escalated entries and free slots go.
        predictor: what runs the passes.
        pool: where the low features of escalated entries are kept.
        metrics: what is told of batches.
        limits: how many workers share the device, how large a batch at most, how many audits.
        threshold_for: what an entry's confidence is to be compared with now; asked in the workers' threads.
        on_audit: told, in the event loop's thread, whether the high pass agreed with an entry that exited.

    Attributes:
        table: seconds of each pass by batch size.
        slowdown: running ratio of seconds taken to those that the table foretold.
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
    ) -> None:
        self.table = LatencyTable({1: 1.0}, {1: 1.0})
        self.slowdown = 1.0
        self._scheduler = scheduler
        self._predictor = predictor
        self._pool = pool
        self._metrics = metrics
        self._model = predictor.spec.reference
        self._limits = limits
        self._threshold_for = threshold_for
        self._on_audit = on_audit
        self._decode_seconds = 0.0
        self._wide = False
        self._lock = threading.Lock()
        self._busy = 0

    # before the first batch

    def use_one_core(self) -> None:
        """Let the calling thread compute as a worker does."""
        if self._predictor.device.type == "cpu":
            torch.set_num_threads(self._predictor.threads)

    def measure(self) -> LatencyTable:
        """The latency table, as the calling thread sees it, of sizes that batches may have."""
        most = min(self._limits.max_batch_size, SIZES[-1])
        return measure(self._predictor, sizes=[*(size for size in SIZES if size < most), most])

    def plan(self, table: LatencyTable) -> None:
        """Take ``table``, and what follows from it: how large batches are, and whether one image takes all cores."""
        self.table = table
        low, high = (table.best_size(stage, self._limits.max_batch_size) for stage in ("low", "high"))
        self._scheduler.plan = Plan(low, high, self._foretold)
        self._wide = self._limits.workers > 1 and self._is_wide_faster()

    def warm_up(self) -> None:
        """Run every batch size that may come once, so that no request pays for it."""
        plan = self._scheduler.plan
        for size in range(max(plan.low_size, plan.high_size), 0, -1):
            images = self._predictor.noise(size)
            state = self._predictor.low(images)
            if size <= plan.high_size:
                self._predictor.high(images, state).cpu()

    def probe(self) -> None:
        """Whether the device can run anything at all. Raises what it raises."""
        self._predictor.heads(self._predictor.noise(1))[1].cpu()

    def _is_wide_faster(self) -> bool:
        """Whether one image on all cores is answered sooner than on one; while the workers wait."""
        if self._predictor.device.type != "cpu":
            return False
        image = self._predictor.noise(1)
        seconds = []
        for _ in range(WIDE_RUNS):
            began = time.perf_counter()
            self._predictor.high(image, self._predictor.low(image, wide=True), wide=True)
            seconds.append(time.perf_counter() - began)
        return min(seconds) < WIDE_GAIN * (self.table.seconds("low", 1) + self.table.seconds("high", 1))

    # what passes take

    def seconds(self, stage: Stage) -> float:
        """What an image takes of the whole device in full batches, as it runs now, decoding included."""
        plan = self._scheduler.plan
        size = plan.low_size if stage == "low" else plan.high_size
        decoding = self._decode_seconds if stage == "low" else 0.0
        return (self.slowdown * self.table.seconds(stage, size) / size + decoding) / self._limits.workers

    def _foretold(self, stage: Stage, size: float) -> float:
        """Seconds of a batch on an undisturbed device, from its images' bytes on."""
        return self.table.seconds(stage, size) + (self._decode_seconds * size if stage == "low" else 0.0)

    def escalation_seconds(self) -> float:
        """How long an image that escalates now would take to its high answer."""
        waiting = self._scheduler.depth("high")
        size = min(waiting + 1, self._scheduler.plan.high_size)
        return waiting * self.seconds("high") + self.slowdown * self.table.seconds("high", size)

    # a batch

    def run(self, batch: Batch) -> None:
        """One batch; every entry of it is answered, or waits for its next pass.

        Raises: what the device raises, if it can run nothing at all any more.
        """
        with self._one_more_busy():
            self._note_waits(batch)
            if batch.work == "low":
                batch = self._decoded(batch)
            if batch.entries:
                self._run(batch)

    @contextmanager
    def _one_more_busy(self) -> Iterator[None]:
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1

    def _is_alone(self, entries: list[Entry]) -> bool:
        """Whether a pass may take every core: one image, and nothing else to run."""
        return self._wide and len(entries) == 1 and self._scheduler.is_idle and self._busy == 1

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

    def _decoded(self, batch: Batch) -> Batch:
        """What can run of a low batch: entries with their pixels that somebody waits for.

        Entries that come without are decoded here, for ``DECODE_SECONDS``; then the rest wait again, for any worker,
        so that an image that takes long to decode holds up nobody but the few decoded with it.
        """
        began = time.monotonic()
        ready: list[Entry] = []
        decoded = 0
        for index, entry in enumerate(batch.entries):
            if entry.image is not None:
                ready.append(entry)
                continue
            if decode_entry(entry, self._predictor.spec.preprocessing, self._metrics):
                ready.append(entry)
            decoded += 1
            if time.monotonic() > began + DECODE_SECONDS:
                self._wait_again(batch.entries[index + 1 :])
                break
        if decoded:
            self._decode_seconds += NEWEST * ((time.monotonic() - began) / decoded - self._decode_seconds)
        alive = [entry for entry in ready if not entry.is_dead]
        self._metrics.dropped.labels("low").inc(len(ready) - len(alive))
        self._scheduler.release(batch.slots[len(alive) :])
        return replace(batch, entries=alive, slots=batch.slots[: len(alive)])

    def _wait_again(self, entries: list[Entry]) -> None:
        now = time.monotonic()
        for entry in entries:
            entry.enqueued = now
        self._scheduler.push(entries)

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
            self.probe()
        except Exception:
            return True
        return False

    def _low(self, entries: list[Entry], slots: list[int]) -> None:
        began = time.monotonic()
        state = self._predictor.low(_stack(entries), self._is_alone(entries))
        low = probabilities(state.logits, self._predictor.spec.temperature.low).cpu()
        sure = confidence(low).tolist()
        spent = self._end("low", began, len(entries))
        kept: list[int] = []
        answers: list[Callable[[], None]] = []
        audits: list[Entry] = []
        thresholds: list[tuple[Entry, float]] = []
        for row, entry in enumerate(entries):
            entry.timing.low = spent
            entry.confidence = sure[row]
            if entry.is_dead:
                self._metrics.dropped.labels("escalation").inc()
                continue
            threshold, reason = self._decide(entry)
            thresholds.append((entry, threshold))
            entry.low_reason, entry.low = reason or "deadline", low[row]
            if reason is None:
                kept.append(row)
                continue
            answers.append(partial(entry.resolve, "low", reason))
            if reason == "confident" and random.random() < self._limits.audit_probability:
                entry.audited_above = entry.threshold  # overload lowers it for what exits, not for what is audited
                kept.append(row)
                audits.append(entry)
        if kept:
            self._pool.put(state, kept, [slots[row] for row in kept])
        for entry, threshold in thresholds:  # not before: had this raised, it would all be decided anew
            entry.threshold = threshold
        now = time.monotonic()
        for row in kept:
            entries[row].slot = slots[row]
            entries[row].enqueued = now
        _hand_over(entries[0].loop, answers)
        escalated = [entries[row] for row in kept if entries[row] not in audits]
        unused = [slot for row, slot in enumerate(slots) if row not in kept]
        self._scheduler.escalate(escalated, len(entries), unused + self._send_to_audit(audits))

    def _send_to_audit(self, entries: list[Entry]) -> list[int]:
        """The slots of those for whom there was no room."""
        refused = [entry for entry in entries if not self._scheduler.audit(entry)]
        self._metrics.audits_skipped.inc(len(refused))
        return [entry.slot for entry in refused if entry.slot is not None]

    def _decide(self, entry: Entry) -> tuple[float, Reason | None]:
        """What its confidence is compared with, and why the low answer is final, or None if it is not."""
        threshold = self._threshold_for(entry)
        if exits(entry.confidence, threshold):
            return threshold, "confident" if exits(entry.confidence, entry.threshold) else "brownout"
        if entry.deadline is not None and time.monotonic() + self.escalation_seconds() > entry.deadline:
            return threshold, "deadline"
        return threshold, None

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
