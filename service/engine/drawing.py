"""Which images a live table is counted of: each answer that is not degraded is drawn with one probability.

Those that exit are drawn to be audited. Those that escalate are drawn here with the same probability, and only while an
audit would find room too, so that neither kind is kept more often than the other. Left out are requests that name their
own threshold, which nothing asked for governs, and what was decided while overload held the threshold down: of the
images between both, none is seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from service.engine.decide import Policy
from service.engine.entry import Entry
from service.inference.live import Seen

# While nothing can exit, all images escalate, and so many are drawn at least: what was lost is found again sooner.
NOTHING_EXITS = 0.1


def probability(threshold: float, policy: Policy) -> float:
    """With which an image compared with ``threshold`` is drawn; 0 where nothing is audited."""
    audited = policy.audit_probability
    return max(audited, NOTHING_EXITS) if audited and threshold >= 1 else audited


def is_governed(entry: Entry) -> bool:
    """Whether the threshold that was asked for decided about it."""
    return not entry.is_fixed and entry.compared_with == entry.threshold


def is_drawn(entry: Entry, policy: Policy) -> bool:
    """Whether an image that reached the last stage is drawn."""
    return random.random() < probability(entry.threshold, policy) and is_governed(entry)


def seen(entry: Entry, policy: Policy, when: float, last_answers: Sequence[int] = ()) -> Seen:
    """What all stages said of a drawn entry; ``last_answers`` are those that are not among its outputs."""
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
