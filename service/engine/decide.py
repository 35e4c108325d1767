"""Decides what happens to an image after a stage. This is the only place for that decision, and it is pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.calibration.exit_rule import exits
from service.engine.answer import Reason
from service.engine.entry import Entry


@dataclass(frozen=True, slots=True)
class Policy:
    """How images are decided now: an immutable snapshot.

    Attributes:
        last: index of the last stage.
        lowered: limit of thresholds during overload; infinite without overload.
        audit_probability: share of the confident answers that are audited.
    """

    last: int
    lowered: float = math.inf
    audit_probability: float = 0.0


@dataclass(frozen=True, slots=True)
class Exit:
    """The answer is final. ``threshold`` is what its confidence was compared with."""

    reason: Reason
    threshold: float


@dataclass(frozen=True, slots=True)
class Escalate:
    """The image continues to the next stage; it gets this answer if its deadline comes first."""

    threshold: float


@dataclass(frozen=True, slots=True)
class Drop:
    """No client waits for the image any more."""


Decision = Exit | Escalate | Drop


def decide(confidence: float, stage: int, entry: Entry, policy: Policy, next_answer_at: float) -> Decision:
    """What happens to ``entry`` after ``stage``.

    Args:
        confidence: of its answer there.
        next_answer_at: when the next stage would answer, on the clock of ``time.monotonic``.
    """
    if entry.is_dead:
        return Drop()
    if stage == policy.last:
        return Exit("escalated" if stage else "only", entry.threshold)
    threshold = entry.threshold if entry.is_fixed else min(entry.threshold, policy.lowered)
    if exits(confidence, threshold):
        return Exit("confident" if exits(confidence, entry.threshold) else "brownout", threshold)
    if next_answer_at > entry.due:
        return Exit("deadline", threshold)
    return Escalate(threshold)
