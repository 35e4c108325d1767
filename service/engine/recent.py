"""What happened lately, for people: rates, latencies, confidences. Prometheus has its own counters."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from service.engine.entry import Answer

WINDOW_SECONDS = 60.0
CONFIDENCES = 4096
ANSWERS = 20_000
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Summary:
    """Totals since the start, rates and latencies of the last ``WINDOW_SECONDS``; None where nothing is known.

    ``seconds`` are these latencies, in order of length.
    """

    images: int
    exit_rate: float | None
    mean_mmacs: float | None
    images_per_second: float
    latency_ms: dict[str, float | None]
    seconds: Sequence[float] = ()


class Recent:
    """Used from the event loop's thread alone; bounded memory. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._answers: deque[tuple[float, float]] = deque(maxlen=ANSWERS)  # (when, seconds)
        self._confidences: deque[float] = deque(maxlen=CONFIDENCES)
        self._audits: deque[tuple[float, float, bool]] = deque(maxlen=CONFIDENCES)  # (confidence, above, agreed)
        self._images = 0
        self._exited = 0
        self._mmacs = 0.0

    def add(self, answer: Answer) -> None:
        """Count an answer."""
        self._images += 1
        self._exited += answer.exit == "low"
        self._mmacs += answer.mmacs
        self._answers.append((self._clock(), answer.seconds))
        self._confidences.append(answer.confidence)

    def audit(self, confidence: float, above: float, agreed: bool) -> None:
        """Note what the high pass said of an image that exited when those of a confidence ``above`` were audited."""
        self._audits.append((confidence, above, agreed))

    def disagreement_at(self, threshold: float) -> tuple[int, int]:
        """Of the latest audited images that exit at ``threshold``: how many the high pass disagreed on; how many.

        Those of a time when only surer images were audited say nothing of the less sure, and are left out.
        """
        agreed = [agreed for confidence, above, agreed in self._audits if confidence > threshold >= above]
        return agreed.count(False), len(agreed)

    def confidences(self, count: int) -> list[float]:
        """The latest ``count`` confidences, or as many as are known."""
        return list(islice(reversed(self._confidences), count))

    def exit_rate_at(self, threshold: float) -> tuple[float | None, int]:
        """The share of the latest confidences above ``threshold`` (None without any), and how many those are."""
        count = len(self._confidences)
        above = sum(confidence > threshold for confidence in self._confidences)
        return (above / count if count else None), count

    def summary(self) -> Summary:
        """Now."""
        now = self._clock()
        known_since = self._answers[0][0] if len(self._answers) == ANSWERS else self._started
        since = max(known_since, now - WINDOW_SECONDS)
        seconds = sorted(spent for when, spent in self._answers if when >= since)
        return Summary(
            images=self._images,
            exit_rate=self._exited / self._images if self._images else None,
            mean_mmacs=self._mmacs / self._images if self._images else None,
            images_per_second=len(seconds) / max(now - since, 1.0),
            latency_ms={f"p{q}": _percentile_ms(seconds, q) for q in PERCENTILES},
            seconds=seconds,
        )


def _percentile_ms(ordered: list[float], q: int) -> float | None:
    """Nearest-rank percentile."""
    return 1e3 * ordered[max(0, -(-len(ordered) * q // 100) - 1)] if ordered else None
