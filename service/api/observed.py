"""Monitoring of this server as a whole, over all its processes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import reduce
from typing import Any

from prometheus_client import generate_latest

from service.calibration.audit import Audit, Budget
from service.engine.admission import Admission
from service.engine.engine import Engine
from service.engine.periods import NOTHING, Done
from service.engine.prediction import TimeSpent
from service.engine.recent import CONFIDENCES, PERCENTILES, Totals
from service.hosting.models import Models
from service.metrics import Metrics
from service.processes.metrics import SharedMetrics
from service.processes.siblings import Siblings

# Most latencies that a process reports; if it has more, some represent several.
POINTS = 2000

ADDED = [each.name for each in fields(Totals) if each.name != "idle_seconds"]


@dataclass(frozen=True, slots=True)
class Share:
    """Counts of one process for one model.

    Attributes:
        images, exited, mmacs: since the start: answered; of these exited early; million multiply-adds of all.
        computed, seconds: since the start: images that were not cached; compute time for them.
        single_scale_seconds: time that the single-scale network would have taken for them; None if it was not measured.
        per_second: images, in the last minute.
        latencies: seconds in the last minute, each with the number of answers it represents.
        effective_threshold, images_in_flight, bytes_in_flight: now. ``waiting``: for each stage, by name.
        audited, disagreements, exit_rate, promised, budget: see ``Audit``.
        last_minute, since_change: totals of these periods.
    """

    images: int
    exited: float
    mmacs: float
    computed: float
    seconds: float
    single_scale_seconds: float | None
    per_second: float
    latencies: Sequence[tuple[float, float]]
    effective_threshold: float
    waiting: Mapping[str, int]
    images_in_flight: int
    bytes_in_flight: int
    audited: int
    disagreements: int
    exit_rate: float | None
    promised: float | None
    budget: Budget | None = None
    last_minute: Done = NOTHING
    since_change: Done = NOTHING

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> Share:
        """Inverse of ``asdict``, after JSON."""
        own = {name: Done(**told[name]) for name in ("last_minute", "since_change")}
        return cls(**{**told, **own, "budget": _budget(told)})


def _budget(told: Mapping[str, Any]) -> Budget | None:
    return None if told["budget"] is None else Budget(**told["budget"])


class Observed:
    """Asks the other processes and adds this one.

    During a switch some processes serve the new model a moment before the others: those without it are left out.

    Args:
        shared: the metrics of all; None if this is the only process.
    """

    def __init__(
        self, models: Models, admission: Admission, metrics: Metrics, siblings: Siblings, shared: SharedMetrics | None
    ) -> None:
        self._models = models
        self._admission = admission
        self._metrics = metrics
        self._siblings = siblings
        self._shared = shared
        siblings.answer("share", self._told)
        siblings.answer("totals", self._totals_told)
        siblings.answer("ends", self._ends_told)
        siblings.answer("sample", self._sampled)

    async def exposition(self) -> bytes:
        """Every metric, for Prometheus."""
        if self._shared is None:
            return generate_latest(self._metrics.registry)
        others = await self._siblings.others("sample")
        self._shared.sample()
        for engine in self._models.running:
            if engine.predictor.calibration is not None:
                audits = [
                    Audit(**{**each, "budget": _budget(each)})
                    for told in others
                    if (each := told.get(engine.spec.reference)) is not None
                ]
                kept = pooled([engine.audit(), *audits]).promise_kept
                self._metrics.promise_kept.labels(engine.spec.reference).set(float("nan") if kept is None else kept)
        return self._shared.exposition()

    async def shares(self, engine: Engine) -> list[Share]:
        """Counts of every process that serves the same model, this one's first."""
        others = await self._siblings.others("share", engine.spec.reference)
        return [self._share(engine), *(Share.of_json(told) for told in others)]

    async def totals(self, engine: Engine) -> Totals:
        """Sum over all processes that serve the same model."""
        others = await self._siblings.others("totals", engine.spec.reference)
        return together([engine.totals(), *(Totals(**told) for told in others)])

    async def ends_at(self, engine: Engine, threshold: float) -> tuple[int, ...]:
        """How many of the latest images of all processes would end at each stage at ``threshold``."""
        others = await self._siblings.others("ends", [engine.spec.reference, threshold])
        return tuple(map(sum, zip(_ends_at(engine, threshold), *others, strict=True)))

    def _ends_told(self, asked: Sequence[Any]) -> tuple[int, ...] | None:
        reference, threshold = asked
        engine = self._models.known(reference)
        return None if engine is None else _ends_at(engine, threshold)

    def _totals_told(self, reference: str) -> dict[str, Any] | None:
        engine = self._models.known(reference)
        return None if engine is None else asdict(engine.totals())

    def _sampled(self, _: Any) -> dict[str, Any]:
        assert self._shared is not None
        self._shared.sample()
        return {engine.spec.reference: asdict(engine.audit()) for engine in self._models.running}

    def _told(self, reference: str) -> dict[str, Any] | None:
        engine = self._models.known(reference)
        return None if engine is None else asdict(self._share(engine))

    def _share(self, engine: Engine) -> Share:
        summary, audit, spent = engine.recent.summary(), engine.audit(), engine.time_spent()
        return Share(
            images=summary.images,
            exited=summary.images * (summary.exit_rate or 0.0),
            mmacs=summary.images * (summary.mean_mmacs or 0.0),
            computed=spent.images,
            seconds=spent.seconds,
            single_scale_seconds=spent.single_scale_seconds,
            per_second=summary.images_per_second,
            latencies=thinned(summary.seconds),
            effective_threshold=engine.effective_threshold,
            waiting=engine.backlog.depths(),
            images_in_flight=self._admission.images,
            bytes_in_flight=self._admission.bytes,
            audited=audit.images,
            disagreements=audit.disagreements,
            exit_rate=audit.exit_rate,
            promised=audit.promised,
            budget=audit.budget,
            last_minute=engine.periods.last_minute(),
            since_change=engine.periods.since_change(),
        )


def _ends_at(engine: Engine, threshold: float) -> tuple[int, ...]:
    return engine.recent.ends_at(threshold, engine.spec.depth)


def together(totals: Sequence[Totals]) -> Totals:
    """Sum over several processes."""
    idle = [each.idle_seconds for each in totals if each.idle_seconds is not None]
    sums = {name: sum(getattr(each, name) for each in totals) for name in ADDED}
    return Totals(**sums, idle_seconds=min(idle, default=None))


def thinned(ordered: Sequence[float], most: int = POINTS) -> list[tuple[float, float]]:
    """At most ``most`` values that represent ``ordered``, each with the number it represents.

    The largest half of them are exact, for the sake of p99; each other one is the middle of an equal part.
    """
    if len(ordered) <= most:
        return [(seconds, 1) for seconds in ordered]
    parts = most // 2
    rest = len(ordered) - (most - parts)
    middles = [ordered[(2 * i + 1) * rest // (2 * parts)] for i in range(parts)]
    return [*((seconds, rest / parts) for seconds in middles), *((seconds, 1) for seconds in ordered[rest:])]


def pooled(audits: Sequence[Audit], images: Sequence[int] | None = None) -> Audit:
    """The audits of several processes as one; exit rates are weighted by ``images``."""
    weights = [min(each, CONFIDENCES) for each in images] if images is not None else [1] * len(audits)
    first = audits[0]
    exit_rate = first.exit_rate
    total = sum(weights)
    if exit_rate != 0 and total:  # 0: nothing can exit at this threshold, in no process
        rates = [weight * (audit.exit_rate or 0.0) for weight, audit in zip(weights, audits, strict=True)]
        exit_rate = sum(rates) / total or None
    return Audit(
        images=sum(audit.images for audit in audits),
        disagreements=sum(audit.disagreements for audit in audits),
        exit_rate=exit_rate,
        promised=first.promised,
        budget=_pooled_budget([audit.budget for audit in audits]),
    )


def _pooled_budget(budgets: Sequence[Budget | None]) -> Budget | None:
    first, known = budgets[0], [each for each in budgets if each is not None]
    if first is None:
        return None
    return replace(first, spent=sum(each.spent for each in known), images=sum(each.images for each in known))


def periods(shares: Sequence[Share]) -> tuple[Done, Done]:
    """Totals of all in the last minute, and since the last change of the threshold."""
    return (
        reduce(Done.beside, [each.last_minute for each in shares]),
        reduce(Done.beside, [each.since_change for each in shares]),
    )


def audit_of(shares: Sequence[Share]) -> Audit:
    """The audit over all processes."""
    audits = [Audit(each.audited, each.disagreements, each.exit_rate, each.promised, each.budget) for each in shares]
    return pooled(audits, [each.images for each in shares])


def time_spent(shares: Sequence[Share]) -> TimeSpent:
    """Compute time since the start, over all processes."""
    single = [each.single_scale_seconds for each in shares if each.single_scale_seconds is not None]
    return TimeSpent(
        sum(each.computed for each in shares),
        sum(each.seconds for each in shares),
        sum(single) if len(single) == len(shares) else None,
    )


def latency_ms(shares: Iterable[Share]) -> dict[str, float | None]:
    """Nearest-rank percentiles of all latencies."""
    ordered = sorted((seconds, weight) for share in shares for seconds, weight in share.latencies)
    total = sum(weight for _, weight in ordered)
    found: dict[str, float | None] = {f"p{q}": None for q in PERCENTILES}
    passed, left = 0.0, list(PERCENTILES)
    for seconds, weight in ordered:
        passed += weight
        while left and passed * 100 >= left[0] * total * (1 - 1e-9):
            found[f"p{left.pop(0)}"] = 1e3 * seconds
    return found
