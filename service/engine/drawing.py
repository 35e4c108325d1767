"""Which images enter the live table: each answer that is not degraded is sampled with the same probability.

Exited images are sampled by audits. Escalated images are sampled here with the same probability, and only while an
audit would have room, so that neither kind is over-represented. Requests with their own threshold are left out, because
the goal does not govern them. So is everything decided while overload lowered the threshold, because the last stage's
answers for the images in between are unknown.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from service.calibration.live import Seen
from service.engine.decide import Policy
from service.engine.entry import Entry

# While nothing can exit, all images escalate, and at least this share is sampled to find a lost promise again soon.
NOTHING_EXITS = 0.1


def probability(threshold: float, policy: Policy) -> float:
    """Sampling probability of an image compared with ``threshold``; 0 without audits."""
    audited = policy.audit_probability
    return max(audited, NOTHING_EXITS) if audited and threshold >= 1 else audited


def is_governed(entry: Entry) -> bool:
    """Whether the threshold asked for decided about the image."""
    return not entry.is_fixed and entry.compared_with == entry.threshold


def is_drawn(entry: Entry, policy: Policy) -> bool:
    """Whether an image that reached the last stage is sampled."""
    return random.random() < probability(entry.threshold, policy) and is_governed(entry)


def seen(entry: Entry, policy: Policy, when: float, last_answers: Sequence[int] = ()) -> Seen:
    """Outputs of all stages for a sampled entry; ``last_answers`` are those not among its outputs."""
    return Seen(
        when,
        (*entry.confidences, *(confidence for confidence, _ in entry.audited)),
        (
            *(int(output.argmax()) for output in entry.outputs),
            *(answer for _, answer in entry.audited),
            *last_answers,
        ),
        probability(entry.threshold, policy),
    )
