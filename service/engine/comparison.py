"""Compares two models on the same images: agreement and cost. Counts of several processes can be added."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

from service.calibration.certify import lower_bound, upper_bound
from service.engine.answer import Answer
from service.engine.recent import PERCENTILES
from service.model_spec import ModelSpec
from service.state.base import Ending

# Times are counted in classes, each so many times as long as the one below: a percentile is off by 2.5 % at most.
LONGER = 1.05
SHORTEST_SECONDS = 1e-6


@dataclass(frozen=True, slots=True)
class Reply:
    """Answer and cost of one model for an image.

    Attributes:
        label: its answer. ``exited``: whether before the last stage.
        mmacs: of the stages that ran.
        seconds: to decode it and run its batches, without waiting; None if the cache answered.
    """

    label: str
    exited: bool
    mmacs: float
    seconds: float | None

    @classmethod
    def of(cls, answer: Answer, spec: ModelSpec) -> Reply:
        """From a client's ``answer`` by the model of ``spec``."""
        seconds = None if answer.cached else answer.timing.decode + sum(answer.timing.stages)
        return cls(answer.top_k[0].label, answer.exited, spec.mmacs_up_to[answer.stage], seconds)


@dataclass(slots=True)
class Side:
    """Counts of one of the two models.

    Attributes:
        images, exited, mmacs: over the images that both answered: number, early exits, cost.
        computed, compute: all images that it computed since the trial began, and worker seconds for them.
        errors: images on which it failed.
        times: number of these images by latency: powers of ``LONGER`` nearest to ``Reply.seconds``.
    """

    images: int = 0
    exited: int = 0
    mmacs: float = 0.0
    computed: int = 0
    compute: float = 0.0
    errors: int = 0
    times: dict[int, int] = field(default_factory=dict)

    def add(self, seen: Reply) -> None:
        """Count an image that both answered."""
        self.images += 1
        self.exited += seen.exited
        self.mmacs += seen.mmacs
        if seen.seconds is not None:
            power = round(math.log(max(seen.seconds, SHORTEST_SECONDS), LONGER))
            self.times[power] = self.times.get(power, 0) + 1

    def share(self, total: float) -> float | None:
        """``total`` of all images both answered, per image."""
        return total / self.images if self.images else None

    @property
    def mean_seconds(self) -> float | None:
        """Seconds of a worker per image."""
        return self.compute / self.computed if self.computed else None

    @property
    def latency_ms(self) -> dict[str, float | None]:
        """Percentiles of ``times`` by nearest rank."""
        return {f"p{q}": self._percentile_ms(q) for q in PERCENTILES}

    def _percentile_ms(self, q: int) -> float | None:
        ordered, total = sorted(self.times), sum(self.times.values())
        up_to = accumulate(self.times[power] for power in ordered)
        return next(
            (1e3 * LONGER**power for power, count in zip(ordered, up_to, strict=True) if 100 * count >= q * total), None
        )

    @property
    def errors_at_least(self) -> float:
        """Lower bound (95 %) of the share of images on which it fails."""
        return lower_bound(self.errors, self.images + self.errors)


@dataclass(slots=True)
class Comparison:
    """The model on trial compared with the served one. Bounds are one-sided Clopper-Pearson at 95 %.

    Attributes:
        images: answered by both, without degraded answers. ``disagreements``: of these.
        skipped: not compared for lack of room.
    """

    images: int = 0
    disagreements: int = 0
    skipped: int = 0
    served: Side = field(default_factory=Side)
    tried: Side = field(default_factory=Side)

    def add(self, served: Reply, tried: Reply) -> bool:
        """Count an image that both answered; whether they agree."""
        agree = served.label == tried.label
        self.images += 1
        self.disagreements += not agree
        self.served.add(served)
        self.tried.add(tried)
        return agree

    @property
    def agreement(self) -> float | None:
        """Share of the images."""
        return 1 - self.disagreements / self.images if self.images else None

    @property
    def agreement_at_least(self) -> float | None:
        """Its lower bound."""
        return 1 - upper_bound(self.disagreements, self.images) if self.images else None

    @property
    def disagreement_at_least(self) -> float:
        """Lower bound of the disagreement; 0 without images."""
        return lower_bound(self.disagreements, self.images)

    def verdict(self, most: float) -> Ending | None:
        """The reason to end a trial with the limit ``most``: a lower bound above it; None without a reason."""
        if self.disagreement_at_least > most:
            return "disagreement"
        return "errors" if self.tried.errors_at_least > most else None

    def as_json(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self)


def pooled(parts: Iterable[Mapping[str, Any]]) -> Comparison:
    """The sum of several processes' counts, each as JSON."""
    told = list(parts)
    return Comparison(
        images=sum(each["images"] for each in told),
        disagreements=sum(each["disagreements"] for each in told),
        skipped=sum(each["skipped"] for each in told),
        served=_pooled([each["served"] for each in told]),
        tried=_pooled([each["tried"] for each in told]),
    )


def _pooled(sides: Sequence[Mapping[str, Any]]) -> Side:
    return Side(
        images=sum(each["images"] for each in sides),
        exited=sum(each["exited"] for each in sides),
        mmacs=sum(each["mmacs"] for each in sides),
        computed=sum(each["computed"] for each in sides),
        compute=sum(each["compute"] for each in sides),
        errors=sum(each["errors"] for each in sides),
        times=_added([each["times"] for each in sides]),
    )


def _added(times: Sequence[Mapping[Any, int]]) -> dict[int, int]:
    together: Counter[int] = Counter()
    for each in times:
        together.update({int(power): count for power, count in each.items()})  # JSON's keys are strings
    return dict(together)
