"""Threads that run batches: each pulls one, runs its pass, answers or escalates its entries."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial

import torch

from service.engine.entry import Entry, Reason, Stage
from service.engine.scheduler import Batch, Scheduler
from service.errors import DeviceFailed, LowfirstError
from service.inference.exit_rule import confidence, exits, probabilities
from service.inference.predictor import Predictor
from service.log import logger
from service.metrics import Metrics
from service.networks.msnet import LowState

# Weight of the newest escalation in the running mean of how long one takes.
NEWEST = 0.2

# What remains of that mean after each escalation it rules out. Nothing else lowers it once none is run, and an
# overload long past would rule them out for ever.
FORGETTING = 0.98


class Workers:
    """Worker threads over one predictor. On a CPU each uses one core.

    Args:
        scheduler: where batches come from and escalated entries go.
        predictor: what runs them; shared.
        metrics: what is told of batches.
        model: the model's label in metrics.
        count: threads.
        on_death: told of the error that ended a thread.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        predictor: Predictor,
        metrics: Metrics,
        model: str,
        count: int,
        on_death: Callable[[BaseException], None],
    ) -> None:
        self._scheduler = scheduler
        self._predictor = predictor
        self._metrics = metrics
        self._model = model
        self._on_death = on_death
        self._threads = [threading.Thread(target=self._work, name=f"worker-{i}", daemon=True) for i in range(count)]
        self.escalation_seconds = 0.0

    def start(self) -> None:
        """Begin to pull batches."""
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Wait until every thread has run the closed scheduler empty."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _work(self) -> None:
        try:
            if self._predictor.device.type == "cpu":
                torch.set_num_threads(1)
            while (batch := self._scheduler.wait()) is not None:
                self._count(batch)
                self._run(batch.stage, batch.entries)
                del batch  # or its images live on while this thread waits
        except BaseException as error:
            self._on_death(error)

    def _count(self, batch: Batch) -> None:
        now = time.monotonic()
        self._metrics.batches.labels(batch.stage, batch.reason).inc()
        for entry in batch.entries:
            waited = now - entry.enqueued
            entry.timing.queue += waited
            self._metrics.queue_seconds.labels(batch.stage).observe(waited)

    def _run(self, stage: Stage, entries: list[Entry]) -> None:
        """One batch; if it raises, its entries one by one, so that only the one at fault fails."""
        try:
            (self._low if stage == "low" else self._high)(entries)
        except Exception as error:
            if len(entries) == 1:
                logger.exception("the %s pass failed", stage)
                self._scheduler.release(1)
                _hand_over(entries[0].loop, [partial(entries[0].fail, _translate(error, stage))])
                return
            for entry in entries:
                self._run(stage, [entry])

    def _low(self, entries: list[Entry]) -> None:
        began = time.monotonic()
        state = self._predictor.low(_stack(entries))
        low = probabilities(state.logits, self._predictor.spec.temperature.low).cpu()
        sure = confidence(low).tolist()
        spent = self._end("low", began, len(entries))
        escalated: list[Entry] = []
        answers: list[Callable[[], None]] = []
        for row, entry in enumerate(entries):
            entry.timing.low = spent
            entry.confidence = sure[row]
            entry.low = low[row]
            if entry.is_dead:
                self._metrics.dropped.labels("escalation").inc()
            elif (reason := self._decide(entry)) is not None:
                answers.append(partial(entry.resolve, "low", reason))
            else:
                entry.low_state = state.rows(torch.tensor([row], device=state.logits.device))
                escalated.append(entry)
        self._escalate(escalated)
        self._scheduler.release(len(entries) - len(escalated))
        _hand_over(entries[0].loop, answers)

    def _decide(self, entry: Entry) -> Reason | None:
        """Why the low answer is final, or None if it is not."""
        if exits(entry.confidence, entry.threshold):
            return "confident"
        if entry.deadline is not None and time.monotonic() + self.escalation_seconds > entry.deadline:
            self.escalation_seconds *= FORGETTING
            return "deadline"
        return None

    def _escalate(self, entries: list[Entry]) -> None:
        now = time.monotonic()
        for entry in entries:
            entry.enqueued = now
        self._scheduler.push("high", entries)

    def _high(self, entries: list[Entry]) -> None:
        began = time.monotonic()
        states = LowState.stack([entry.low_state for entry in entries if entry.low_state is not None])
        logits = self._predictor.high(_stack(entries), states)
        high = probabilities(logits, self._predictor.spec.temperature.high).cpu()
        spent = self._end("high", began, len(entries))
        self._scheduler.release(len(entries))
        for row, entry in enumerate(entries):
            if entry.is_dead:
                self._metrics.dropped.labels("answer").inc()
            entry.timing.high = spent
            entry.high = high[row]
            entry.low_state = None
            took = began + spent - entry.enqueued
            self.escalation_seconds += NEWEST * (took - self.escalation_seconds)
        _hand_over(entries[0].loop, [partial(entry.resolve, "high", "escalated") for entry in entries])

    def _end(self, stage: Stage, began: float, images: int) -> float:
        spent = time.monotonic() - began
        spec = self._predictor.spec
        self._metrics.compute_seconds.labels(stage).observe(spent)
        self._metrics.batch_size.labels(stage).observe(images)
        each = spec.low_mmacs if stage == "low" else spec.high_mmacs
        self._metrics.multiply_adds.labels(self._model, stage).inc(round(each * 1e6) * images)
        return spent


def _stack(entries: list[Entry]) -> torch.Tensor:
    return torch.stack([entry.image for entry in entries if entry.image is not None])  # (B, 3, R, R)


def _hand_over(loop: asyncio.AbstractEventLoop, calls: list[Callable[[], None]]) -> None:
    """Make ``calls`` in the event loop's thread, all at one wake-up."""

    def make() -> None:
        for call in calls:
            call()

    if calls:
        loop.call_soon_threadsafe(make)


def _translate(error: Exception, stage: Stage) -> LowfirstError:
    return error if isinstance(error, LowfirstError) else DeviceFailed(f"the {stage} pass failed on this image")
