"""What becomes of an image once a stage has answered: the one place where that is decided. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from service.engine.answer import Reason
from service.engine.entry import Entry
from service.inference.exit_rule import exits


@dataclass(frozen=True, slots=True)
class Policy:
    """How images are decided now. A snapshot, replaced whole.

    Attributes:
        last: index of the last stage.
        lowered: what overload lowers thresholds to; infinite while there is none.
        audit_probability: share of the sure answers that are audited.
    """

    last: int
    lowered: float = math.inf
    audit_probability: float = 0.0


@dataclass(frozen=True, slots=True)
class Exit:
    """Its answer is final. ``threshold`` is what its confidence was compared with."""

    reason: Reason
    threshold: float


@dataclass(frozen=True, slots=True)
class Escalate:
    """It goes on to the next stage, or gets this answer should its deadline come first."""

    threshold: float


@dataclass(frozen=True, slots=True)
class Drop:
    """Nobody waits for it any more."""


Decision = Exit | Escalate | Drop


def decide(confidence: float, stage: int, entry: Entry, policy: Policy, next_answer_at: float) -> Decision:
    """What becomes of ``entry`` after ``stage``.

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
