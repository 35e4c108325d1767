"""Runs a batch: computes one stage, then answers, escalates, audits or fails every entry."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from service.calibration.exit_rule import confidence
from service.engine.answer import Reason
from service.engine.batch_decoder import BatchDecoder
from service.engine.decide import Decision, Drop, Escalate, Exit, Policy, decide
from service.engine.drawing import is_drawn, is_governed, seen
from service.engine.entry import Entry
from service.engine.features import FeaturePool
from service.engine.lanes import Batch, Lanes
from service.engine.outcome import Outcome
from service.engine.pace import Pace
from service.engine.recent import Recent
from service.errors import DeviceFailed
from service.images.decode import stack
from service.inference.predictor import Predictor
from service.log import logger
from service.metrics import Metrics
from service.networks.cascade import Carried


class Executor:
    """Runs the stages of one predictor on batches. Shared by the worker threads.

    Args:
        lanes: receive escalated entries and free slots.
        predictor: runs the stages.
        pool: stores the features of escalated entries.
        pace: receives batch durations.
        recent: receives audit results, in the event loop's thread.
        metrics: count batches.
        aside: takes over images that are slow to decode.

    Attributes:
        policy: how images are decided now; replaced from the event loop's thread.
    """

    def __init__(
        self,
        lanes: Lanes,
        predictor: Predictor,
        pool: FeaturePool,
        pace: Pace,
        recent: Recent,
        metrics: Metrics,
        policy: Policy,
        aside: Callable[[Entry], bool] | None = None,
    ) -> None:
        self.policy = policy
        self._lanes = lanes
        self._predictor = predictor
        self._pool = pool
        self._pace = pace
        self._recent = recent
        self._metrics = metrics
        self._decoder = BatchDecoder(lanes, predictor.spec, pace, metrics, aside)
        self._model = predictor.spec.reference
        self._names = [stage.name for stage in predictor.spec.stages]

    def run(self, batch: Batch) -> None:
        """Run one batch; every entry is answered, or waits for its next stage.

        Raises: the device's exception, if it cannot run anything any more.
        """
        self._note_waits(batch)
        batch = self._decoder.ready(batch)
        if batch.entries:
            self._run(batch)

    def probe(self) -> None:
        """Check that the device can run. Raises its exception, or DeviceFailed if outputs are not finite."""
        for logits in self._predictor.answers(self._predictor.noise(1)):
            if not logits.isfinite().all():
                raise DeviceFailed("the network's outputs are not finite")

    def _work(self, batch: Batch) -> str:
        return "audit" if batch.is_audit else self._names[batch.stage]

    def _note_waits(self, batch: Batch) -> None:
        self._metrics.batches.labels(self._work(batch), batch.reason).inc()
        if batch.is_audit:
            return
        now = time.monotonic()
        waits = self._metrics.queue_seconds.labels(self._work(batch))
        for entry in batch.entries:
            waited = now - entry.enqueued
            entry.timing.queue += waited
            waits.observe(waited)

    def _run(self, batch: Batch) -> None:
        """Run one batch; if it raises, run its entries one by one, so that only the faulty one fails.

        Raises: the device's exception, if it cannot run anything any more; every entry is answered nevertheless.
        """
        try:
            outcome = self._compute(batch)
        except BaseException as error:
            is_broken = not isinstance(error, Exception) or self._is_broken()
            if is_broken or len(batch.entries) == 1:
                logger.exception("the %s stage failed", self._work(batch))
                self._abandon(batch, error)
            if is_broken:
                raise
            if len(batch.entries) > 1:
                self._run_singly(batch)
            return
        self._count(batch, outcome.seconds)
        (self._commit_audit if batch.is_audit else self._commit)(batch, outcome)

    def _compute(self, batch: Batch) -> Outcome:
        """May raise; changes no entry, so that the batch can be run again."""
        stage, entries = batch.stage, batch.entries
        began = time.monotonic()
        carried: Carried = self._pool.take(stage - 1, batch.slots) if stage else ()
        logits, handed_on = self._predictor.run(stage, stack([entry.pixels[stage] for entry in entries]), carried)
        probabilities = self._predictor.probabilities(stage, logits)
        confidences = confidence(probabilities).tolist()
        if not all(map(math.isfinite, confidences)):
            raise DeviceFailed(f"the {self._names[stage]} stage gave outputs that are not finite")
        seconds = time.monotonic() - began
        decisions = self._decide(batch, confidences)
        audited = [self._is_audited(batch, decision) for decision in decisions]
        completed = [self._is_completed(batch, *each) for each in zip(batch.entries, decisions, strict=True)]
        outcome = Outcome(probabilities, confidences, decisions, audited, completed, seconds)
        if outcome.kept:
            self._pool.put(stage, handed_on, outcome.kept, [batch.slots[row] for row in outcome.kept])
        return outcome

    def _decide(self, batch: Batch, confidences: Sequence[float]) -> list[Decision]:
        stage, policy = batch.stage, self.policy
        if batch.is_audit:
            return [
                self._decide_audit(sure, stage, entry) for sure, entry in zip(confidences, batch.entries, strict=True)
            ]
        next_answer_at = time.monotonic()
        if stage < policy.last:
            next_answer_at += self._pace.next_answer(stage + 1, self._lanes.depths[stage : stage + 2])
        return [
            decide(sure, stage, entry, policy, next_answer_at)
            for sure, entry in zip(confidences, batch.entries, strict=True)
        ]

    def _decide_audit(self, sure: float, stage: int, entry: Entry) -> Decision:
        """Background images end where they would end for a client; audited ones at the last stage."""
        if entry.is_behind:
            return decide(sure, stage, entry, self.policy, -math.inf)
        return Exit("escalated", 1.0) if stage == self.policy.last else Escalate(1.0)

    def _is_audited(self, batch: Batch, decision: Decision) -> bool:
        return (
            not batch.is_audit
            and isinstance(decision, Exit)
            and decision.reason == "confident"
            and random.random() < self.policy.audit_probability
        )

    def _is_completed(self, batch: Batch, entry: Entry, decision: Decision) -> bool:
        """Whether its remaining stages run for the sample log, whatever the reason of its exit."""
        return entry.is_drawn and not batch.is_audit and isinstance(decision, Exit) and batch.stage < self.policy.last

    def _run_singly(self, batch: Batch) -> None:
        for index, (entry, slot) in enumerate(zip(batch.entries, batch.slots, strict=True)):
            try:
                self._run(replace(batch, entries=[entry], slots=[slot]))
            except BaseException as error:
                rest = replace(batch, entries=batch.entries[index + 1 :], slots=batch.slots[index + 1 :])
                self._abandon(rest, error)
                raise

    def _abandon(self, batch: Batch, error: BaseException) -> None:
        self._lanes.release(batch.slots)
        for entry in batch.entries:
            failure = DeviceFailed(f"the {self._work(batch)} stage failed on this image")  # each its own
            own = type(error)(error.message) if type(error) is DeviceFailed else failure
            entry.loop.call_soon_threadsafe(entry.fail, own)
            if batch.is_audit:
                entry.loop.call_soon_threadsafe(entry.completed)

    def _is_broken(self) -> bool:
        try:
            self.probe()
        except BaseException:
            return True
        return False

    def _commit(self, batch: Batch, outcome: Outcome) -> None:
        """Apply the results to every entry; nothing here raises."""
        stage, now = batch.stage, time.monotonic()
        answered: list[tuple[Entry, Reason]] = []
        escalated: list[Entry] = []
        unused: list[int] = []
        drawn: list[Entry] = []
        for row, (entry, decision) in enumerate(zip(batch.entries, outcome.decisions, strict=True)):
            entry.slot, entry.enqueued = batch.slots[row], now
            if isinstance(decision, Drop):
                self._metrics.dropped.labels("answer" if stage == self.policy.last else "escalation").inc()
                unused.append(batch.slots[row])
                continue
            self._note(entry, row, stage, outcome)
            if isinstance(decision, Escalate):
                escalated.append(entry)
                continue
            answered.append((entry, decision.reason))
            entry.is_audited = outcome.is_audited[row]
            if decision.reason == "escalated" and is_drawn(entry, self.policy) and self._lanes.has_audit_room:
                drawn.append(entry)
            if not (outcome.runs_on(row) and self._send_to_audit(stage, entry)):
                unused.append(batch.slots[row])
                entry.slot = None
        if answered:
            answered[0][0].loop.call_soon_threadsafe(_resolve, stage, answered)
        if drawn:
            drawn[0].loop.call_soon_threadsafe(self._recent.draw, [seen(entry, self.policy, now) for entry in drawn])
        self._lanes.escalate(stage, escalated, len(batch.entries), unused)

    def _note(self, entry: Entry, row: int, stage: int, outcome: Outcome) -> None:
        decision = outcome.decisions[row]
        assert not isinstance(decision, Drop)
        entry.timing.stages.append(outcome.seconds)
        if stage < self.policy.last or not entry.outputs:
            entry.confidences.append(outcome.confidences[row])
            entry.compared_with = decision.threshold
        entry.outputs.append(outcome.probabilities[row])
        # last, because it may expire now
        entry.latest = stage, decision.reason if isinstance(decision, Exit) else "deadline"

    def _send_to_audit(self, stage: int, entry: Entry) -> bool:
        if self._lanes.audit(stage + 1, entry):
            entry.runs_on = True
            return True
        self._metrics.audits_skipped.inc()
        return False

    def _commit_audit(self, batch: Batch, outcome: Outcome) -> None:
        stage, answered, unused = batch.stage, list[tuple[Entry, Reason]](), list[int]()
        answers: list[int] = outcome.probabilities.argmax(1).tolist()
        for row, (entry, decision) in enumerate(zip(batch.entries, outcome.decisions, strict=True)):
            entry.slot = batch.slots[row]
            entry.outputs_behind.append(outcome.probabilities[row])
            if entry.is_behind and not isinstance(decision, Drop):
                self._note(entry, row, stage, outcome)
                entry.timing.compute += outcome.seconds / len(batch.entries)
            if isinstance(decision, Escalate):
                entry.audited.append((outcome.confidences[row], answers[row]))
                if self._send_to_audit(stage, entry):
                    continue
            unused.append(batch.slots[row])
            entry.loop.call_soon_threadsafe(entry.completed)
            if isinstance(decision, Exit):
                if entry.is_behind:
                    answered.append((entry, decision.reason))
                elif entry.is_audited:  # otherwise only the sample log needs it: the audit probability is unchanged
                    self._judge(entry, answers[row])
        self._lanes.release(unused)
        if answered:
            answered[0][0].loop.call_soon_threadsafe(_resolve, stage, answered)

    def _judge(self, entry: Entry, answer: int) -> None:
        """Count an audit by the last stage's answer."""
        agreed = answer == int(entry.outputs[-1].argmax())
        self._metrics.audits.labels(self._model).inc()
        if not agreed:
            self._metrics.audit_disagreements.labels(self._model).inc()
        entry.loop.call_soon_threadsafe(self._recent.audit, entry.confidence, entry.threshold, agreed)
        if is_governed(entry):
            counted = seen(entry, self.policy, time.monotonic(), [answer])
            entry.loop.call_soon_threadsafe(self._recent.draw, [counted])

    def _count(self, batch: Batch, seconds: float) -> None:
        work, images = self._work(batch), len(batch.entries)
        self._metrics.compute_seconds.labels(work).observe(seconds)
        self._metrics.batch_size.labels(work).observe(images)
        each = round(self._predictor.spec.stages[batch.stage].mmacs * 1e6)
        self._metrics.multiply_adds.labels(self._model, work).inc(each * images)
        single_scale = self._single_scale_seconds(batch)
        self._metrics.single_scale_compute_seconds.labels(self._model).inc(single_scale)
        self._lanes.spent(seconds, batch.is_audit, single_scale)
        self._pace.ran(batch.stage, images, seconds)

    def _single_scale_seconds(self, batch: Batch) -> float:
        """Seconds that the single-scale network would take for the new images of a batch, in a batch of the same size.

        The best batch size would flatter it when images arrive one at a time.
        """
        return 0.0 if batch.stage or batch.is_audit else self._pace.table.single_seconds(len(batch.entries))


def _resolve(stage: int, answered: Sequence[tuple[Entry, Reason]]) -> None:
    """Resolve all entries of a batch with one wake-up of the event loop's thread."""
    for entry, reason in answered:
        entry.resolve(stage, reason)
