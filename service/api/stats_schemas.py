"""Schemas of monitoring: the snapshot, probes, and scrape targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.live_schemas import DriftAnswer, PeriodState
from service.api.schemas import ModelName, milliseconds
from service.calibration.certify import interval
from service.engine.prediction import TimeSpent
from service.state.base import Goal


class LatencyMs(BaseModel):
    """Percentiles over the last minute, from the request's head to the answer; null without requests."""

    p50: float | None
    p95: float | None
    p99: float | None


class QueueState(BaseModel):
    """Work in flight, and for each stage the number of waiting images."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int]

    images_in_flight: int
    bytes_in_flight: int


class BudgetState(BaseModel):
    """Recent cost of images, if the goal is a budget."""

    goal: Goal
    asked: float
    images: int = Field(
        description="Images of the last minute, or since the last change of the threshold if that is shorter."
    )
    mean: float | None
    kept: bool | None = Field(
        description="False if the budget is exceeded by more than chance (95 %); null with too few images."
    )


class AuditState(BaseModel):
    """Answers of the last stage for the latest audited images that exit at the threshold; null without audits."""

    images: int
    disagreements: int
    disagreement: float | None
    disagreement_at_most: float | None = Field(description="95 % bound.")
    overall_at_most: float | None = Field(description="The bound over all images: multiplied by the recent exit rate.")
    allowed: float | None = Field(description="1 minus the promised agreement; null without a calibration table.")
    promise_kept: bool | None = Field(
        description="For an agreement: true if the bound is within the promise, false if even the lower "
        "bound exceeds it, null with too few audits. For a budget see `budget`; also false if "
        "the agreement certified for its threshold is broken."
    )


class TimeState(BaseModel):
    """Worker time per image since the start, compared with the single-scale network.

    The latter is computed for the same images, in batches as large as those of the first stage. Null before the first
    image, or if the single-scale network was not measured. Costs need ``LOWFIRST_COST_PER_HOUR``.
    """

    images: int = Field(description="Computed images, without answers from the cache.")
    mean_ms: float | None
    single_scale_ms: float | None
    saved: float | None
    cost_per_million: float | None
    single_scale_cost_per_million: float | None

    @classmethod
    def of(cls, spent: TimeSpent, cost_per_hour: float | None) -> TimeState:
        """Convert the time spent."""
        return cls(
            images=round(spent.images),
            mean_ms=milliseconds(spent.mean_seconds),
            single_scale_ms=milliseconds(spent.single_scale_mean_seconds),
            saved=spent.saved,
            cost_per_million=spent.cost_per_million(spent.mean_seconds, cost_per_hour),
            single_scale_cost_per_million=spent.cost_per_million(spent.single_scale_mean_seconds, cost_per_hour),
        )


class Labelled(BaseModel):
    """Answers with feedback; null without any."""

    images: int
    right: int
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None = Field(description="95 % confidence interval.")

    @classmethod
    def of(cls, images: int, right: int) -> Labelled:
        """Compute it from counts."""
        if not images:
            return cls(images=0, right=0, accuracy=None, accuracy_interval=None)
        return cls(images=images, right=right, accuracy=right / images, accuracy_interval=interval(right, images))


class FeedbackState(Labelled):
    """Feedback (`POST /feedback`) on answers of this model, since the start of the processes that gave the answers.

    The last feedback on an image counts. Feedback is not a random sample, unless the clients draw one.
    """

    by_exit: dict[str, Labelled] = Field(description="The same for each stage that answered.")

    @classmethod
    def by(cls, stages: Iterable[str], images: Mapping[str, int], right: Mapping[str, int]) -> FeedbackState:
        """Compute it from counts by exit, for each of ``stages``."""
        total = Labelled.of(sum(images.values()), sum(right.values()))
        each = {stage: Labelled.of(images.get(stage, 0), right.get(stage, 0)) for stage in stages}
        return cls(**dict(total), by_exit=each)


class StatsAnswer(BaseModel):
    """A readable snapshot: totals since the start, rates and latencies of the last minute.

    It also has totals of the last minute, and since the last change of the threshold.
    """

    model: ModelName
    runtime: str
    precision: str
    device: str
    threshold: float = Field(description="The threshold asked for.")
    effective_threshold: float = Field(
        description="The threshold in force: lower than the one asked for while the server is overloaded."
    )
    config_version: int
    images: int
    time: TimeState
    exit_rate: float | None
    mean_mmacs: float | None
    low_mmacs: float
    single_scale_mmacs: float
    images_per_second: float = Field(description="Over the last minute.")
    requests_per_second: float = Field(description="The same under its former name.")
    latency_ms: LatencyMs
    queue: QueueState
    audit: AuditState
    last_minute: PeriodState
    since_change: PeriodState = Field(description="Since the last change of the threshold, or since the start.")
    budget: BudgetState | None = Field(description="Null if the goal is not a budget.")
    drift: DriftAnswer | None = Field(
        description="Result of the latest check, a few seconds ago; null without a table."
    )
    feedback: FeedbackState | None = Field(description="Null without a sample log.")


class MetricsTarget(BaseModel):
    """One replica in the format of Prometheus' HTTP service discovery."""

    targets: list[str]
    labels: dict[str, str]


class Processes(BaseModel):
    """The processes of a server that has several."""

    ready: int
    count: int


class Health(BaseModel):
    """Whether the server lives, or is ready for work."""

    status: Literal["ok"]
    processes: Processes | None = Field(None, description="Only for a server with several processes.")
