"""Bodies of what the server does: its snapshot for people, probes, and where to scrape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.live_schemas import DriftAnswer, PeriodState
from service.api.schemas import ModelName, milliseconds
from service.engine.prediction import TimeSpent
from service.inference.calibration import interval
from service.state.base import Goal


class LatencyMs(BaseModel):
    """Percentiles over the last minute, from the request's head; null without requests."""

    p50: float | None
    p95: float | None
    p99: float | None


class QueueState(BaseModel):
    """Work in flight; beside it, by its name, how many images wait for each stage."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int]

    images_in_flight: int
    bytes_in_flight: int


class BudgetState(BaseModel):
    """What images cost lately, where a budget was asked for."""

    goal: Goal
    asked: float
    images: int = Field(description="Of the last minute; since the threshold was moved, where that is less.")
    mean: float | None
    kept: bool | None = Field(description="False: beyond it by more than chance (95 %). Null: too few images to tell.")


class AuditState(BaseModel):
    """What the last stage said of the latest audited images that exit at the threshold; null without any."""

    images: int
    disagreements: int
    disagreement: float | None
    disagreement_at_most: float | None = Field(description="Bound at 95 % confidence.")
    overall_at_most: float | None = Field(description="The same of all images: times the exit rate of late.")
    allowed: float | None = Field(description="1 less the agreement promised; null without a calibration table.")
    promise_kept: bool | None = Field(
        description="Of an agreement: true: the bound is within what is allowed; false: even the lower bound is "
        "beyond; null: too few. Of a budget: see `budget`; false too where the agreement certified for it is broken."
    )


class TimeState(BaseModel):
    """Compute of one worker per image since the start, and what the single-scale network would have taken for the same
    images, in batches as large as those of the first stage.

    Null before the first image, or where that network was not measured. Costs take ``LOWFIRST_COST_PER_HOUR``.
    """

    images: int = Field(description="Those that were computed: answers from the cache are left out.")
    mean_ms: float | None
    single_scale_ms: float | None
    saved: float | None
    cost_per_million: float | None
    single_scale_cost_per_million: float | None

    @classmethod
    def of(cls, spent: TimeSpent, cost_per_hour: float | None) -> TimeState:
        """What was spent as a body."""
        return cls(
            images=round(spent.images),
            mean_ms=milliseconds(spent.mean_seconds),
            single_scale_ms=milliseconds(spent.single_scale_mean_seconds),
            saved=spent.saved,
            cost_per_million=spent.cost_per_million(spent.mean_seconds, cost_per_hour),
            single_scale_cost_per_million=spent.cost_per_million(spent.single_scale_mean_seconds, cost_per_hour),
        )


class Labelled(BaseModel):
    """Answers whose truth was told; null without any."""

    images: int
    right: int
    accuracy: float | None
    accuracy_interval: tuple[float, float] | None = Field(description="Where it lies with 95 % confidence.")

    @classmethod
    def of(cls, images: int, right: int) -> Labelled:
        """Of so many."""
        if not images:
            return cls(images=0, right=0, accuracy=None, accuracy_interval=None)
        return cls(images=images, right=right, accuracy=right / images, accuracy_interval=interval(right, images))


class FeedbackState(Labelled):
    """What `POST /feedback` told of answers of this model, since the processes that gave them were started; the last
    word on an image counts. What is told is no random sample, unless whoever tells draws one."""

    by_exit: dict[str, Labelled] = Field(description="The same by the stage that answered.")

    @classmethod
    def by(cls, stages: Iterable[str], images: Mapping[str, int], right: Mapping[str, int]) -> FeedbackState:
        """By each of ``stages``, of so many images by exit."""
        total = Labelled.of(sum(images.values()), sum(right.values()))
        each = {stage: Labelled.of(images.get(stage, 0), right.get(stage, 0)) for stage in stages}
        return cls(**dict(total), by_exit=each)


class StatsAnswer(BaseModel):
    """A snapshot for people: totals since the start, rates and latencies of the last minute.

    Beside them what was done in the last minute, and since the threshold was moved last.
    """

    model: ModelName
    runtime: str
    precision: str
    device: str
    threshold: float = Field(description="The threshold asked.")
    effective_threshold: float = Field(
        description="The threshold in force: lower than the one asked while the server is overloaded."
    )
    config_version: int
    images: int
    time: TimeState
    exit_rate: float | None
    mean_mmacs: float | None
    low_mmacs: float
    single_scale_mmacs: float
    images_per_second: float = Field(description="Of the last minute.")
    requests_per_second: float = Field(description="The same, under its former name.")
    latency_ms: LatencyMs
    queue: QueueState
    audit: AuditState
    last_minute: PeriodState
    since_change: PeriodState = Field(description="Since the threshold was moved last, or the start.")
    budget: BudgetState | None = Field(description="Null where none was asked for.")
    drift: DriftAnswer | None = Field(description="At the latest look, a few seconds ago; null without a table.")
    feedback: FeedbackState | None = Field(description="Null where no sample log is kept.")


class MetricsTarget(BaseModel):
    """One replica as Prometheus' HTTP service discovery lists it."""

    targets: list[str]
    labels: dict[str, str]


class Processes(BaseModel):
    """The processes of a server that has several."""

    ready: int
    count: int


class Health(BaseModel):
    """Whether the server lives, or is ready for work."""

    status: Literal["ok"]
    processes: Processes | None = Field(None, description="Only of a server with several.")
