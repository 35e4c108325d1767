"""Recent rates, latencies and confidences for ``/stats``. Prometheus has its own counters."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from service.calibration.certify import THRESHOLDS
from service.calibration.exit_rule import end_stage, exits
from service.calibration.live import MOST, Passed, Seen
from service.engine.answer import Answer

WINDOW_SECONDS = 60.0
CONFIDENCES = 4096
ANSWERS = 20_000
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals since the start, and rates and latencies of the last ``WINDOW_SECONDS``; None without data.

    ``seconds`` are the latencies, sorted.
    """

    images: int
    exit_rate: float | None
    mean_mmacs: float | None
    images_per_second: float
    latency_ms: dict[str, float | None]
    seconds: Sequence[float] = ()


@dataclass(slots=True)
class Totals:
    """Totals since the start.

    Attributes:
        images: answered; ``cached``: of these from the cache.
        seconds: from the request's arrival to the answer, over all ``images``; including ``decode_seconds``,
            ``queue_seconds`` and ``compute_seconds`` (of whole batches, for each image in them).
        failed, failed_seconds: images that ended in an error.
        batches: run, without audits.
        idle_seconds: since the last answer; None before the first.
    """

    images: int = 0
    cached: int = 0
    seconds: float = 0.0
    decode_seconds: float = 0.0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0
    failed: int = 0
    failed_seconds: float = 0.0
    batches: int = 0
    idle_seconds: float | None = None

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        timing = answer.timing
        self.images += 1
        self.cached += answer.reason == "cached"
        self.seconds += answer.seconds
        self.decode_seconds += timing.decode
        self.queue_seconds += timing.queue
        self.compute_seconds += sum(timing.stages)


class Recent:
    """Used from the event loop's thread alone; bounded memory. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._answers: deque[tuple[float, float]] = deque(maxlen=ANSWERS)  # (when, seconds)
        self._confidences: deque[tuple[float, ...]] = deque(maxlen=CONFIDENCES)
        self._audits: deque[tuple[float, float, bool]] = deque(maxlen=CONFIDENCES)  # (confidence, above, agreed)
        self._totals = Totals()
        self._drawn: deque[Seen] = deque(maxlen=MOST)
        self._exited = 0
        self._mmacs = 0.0

    @property
    def counts(self) -> tuple[int, int, float]:
        """Since the start: images answered, of these exited early, and million multiply-adds of all."""
        return self._totals.images, self._exited, self._mmacs

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        self._totals.add(answer)
        self._exited += answer.exited
        self._mmacs += answer.mmacs
        self._answers.append((self._clock(), answer.seconds))
        self._confidences.append(answer.confidences)

    def fail(self, arrival: float) -> None:
        """Count an image that ended in an error; ``arrival`` is that of its request."""
        self._totals.failed += 1
        self._totals.failed_seconds += self._clock() - arrival

    def totals(self) -> Totals:
        """Totals since the start; batches are not counted here."""
        idle = self._clock() - self._answers[-1][0] if self._answers else None
        return replace(self._totals, idle_seconds=idle)

    def audit(self, confidence: float, above: float, agreed: bool) -> None:
        """Record whether the last stage agreed on an audited image; audits then covered confidences above ``above``."""
        self._audits.append((confidence, above, agreed))

    def draw(self, seen: Sequence[Seen]) -> None:
        """Record images sampled for the live table."""
        self._drawn.extend(seen)

    def drawn(self, count: int) -> list[Seen]:
        """The latest ``count`` samples, or all if fewer, oldest first."""
        return list(self._drawn)[-count:]

    def passed(self, threshold: float, per_second: float) -> Passed:
        """The latest images, for a live table; ``per_second`` is their rate."""
        first = np.sort([each[0] for each in self._confidences])
        above = len(first) - np.searchsorted(first, THRESHOLDS, side="right")
        exited = sum(any(exits(sure, threshold) for sure in each) for each in self._confidences)
        return Passed(len(first), tuple(above.tolist()), exited, per_second)

    def disagreement_at(self, threshold: float) -> tuple[int, int]:
        """Among recent audits of images that exit at ``threshold``: the number of disagreements, and of audits.

        Audits from a time with a higher threshold say nothing about less confident images, and are left out.
        """
        agreed = [agreed for sure, above, agreed in self._audits if exits(sure, threshold) and threshold >= above]
        return agreed.count(False), len(agreed)

    def confidences(self, count: int) -> list[float]:
        """The first stage's latest ``count`` confidences, or all if fewer."""
        return [each[0] for each in islice(reversed(self._confidences), count)]

    def ends_at(self, threshold: float, depth: int) -> tuple[int, ...]:
        """Number of recent images that would end at each of ``depth`` stages at ``threshold``.

        For an image that exited early the outputs of later stages are unknown. If it would have escalated, it is
        assumed to end at the next stage.
        """
        ends = Counter(min(end_stage(each, threshold), depth - 1) for each in self._confidences)
        return tuple(ends[stage] for stage in range(depth))

    def summary(self) -> Summary:
        """The current summary."""
        now, images = self._clock(), self._totals.images
        known_since = self._answers[0][0] if len(self._answers) == ANSWERS else self._started
        since = max(known_since, now - WINDOW_SECONDS)
        seconds = sorted(spent for when, spent in self._answers if when >= since)
        return Summary(
            images=images,
            exit_rate=self._exited / images if images else None,
            mean_mmacs=self._mmacs / images if images else None,
            images_per_second=len(seconds) / max(now - since, 1.0),
            latency_ms={f"p{q}": percentile_ms(seconds, q) for q in PERCENTILES},
            seconds=seconds,
        )


def percentile_ms(ordered: Sequence[float], q: int) -> float | None:
    """Nearest-rank percentile of sorted seconds, in milliseconds; None without any."""
    return 1e3 * ordered[max(0, -(-len(ordered) * q // 100) - 1)] if ordered else None
