"""Bodies of requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from service.engine.entry import Answer, Ranked, Reason
from service.errors import InvalidOption
from service.inference.calibration import Effect
from service.inference.latency import Stage
from service.state.base import GOALS, Goal

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Strict(BaseModel):
    """A body that may hold nothing it does not know."""

    model_config = ConfigDict(extra="forbid")


class ClassifyQuery(_Strict):
    """What a request wants of its images."""

    top_k: int | None = Field(None, ge=1, description="Labels to give; unset: 5, or all if there are fewer.")
    threshold: Share | None = Field(None, description="Threshold for this request only.")
    deadline_ms: float | None = Field(
        None, gt=0, le=3_600_000, allow_inf_nan=False, description="From the request's head to its answer."
    )
    model: str | None = Field(None, description="A served model, name or name/version; unset: the first.")
    passes: bool = Field(False, description="Tell what each pass that ran says; costs no compute.")


class ModelQuery(_Strict):
    """Which model a request is about."""

    model: str | None = Field(None, description="A served model, name or name/version; unset: the first.")


class PreviewQuery(ModelQuery):
    """Which threshold to look at."""

    threshold: Share


class JsonImage(_Strict):
    """The JSON form of one image."""

    image: str = Field(description="The encoded image in base64.")


class RankedLabel(BaseModel):
    """A class and its probability."""

    label: str
    index: int
    score: float

    @classmethod
    def all_of(cls, ranked: tuple[Ranked, ...]) -> list[RankedLabel]:
        """The engine's ranking as a body."""
        return [cls(label=r.label, index=r.index, score=r.score) for r in ranked]


class PassesAnswer(BaseModel):
    """What each pass says of the image; ``high`` is null where it did not run."""

    low: list[RankedLabel]
    high: list[RankedLabel] | None


class ModelName(BaseModel):
    """A model of the store."""

    name: str
    version: int


class TimingMs(BaseModel):
    """Milliseconds an image spent on its way; ``total`` from the request's head."""

    decode: float
    queue: float
    low: float
    high: float
    total: float


class ClassifyAnswer(BaseModel):
    """The answer to one image."""

    label: str
    score: float
    top_k: list[RankedLabel]
    exit: Stage = Field(description="The pass that answers.")
    reason: Reason = Field(description="Why it does.")
    confidence: float = Field(description="Largest probability of the low answer.")
    threshold: float = Field(description="What the confidence was compared with.")
    mmacs: float = Field(description="Millions of multiply-adds spent on this answer.")
    degraded: bool = Field(description="An unsure low answer, given because time ran out or the server is overloaded.")
    cached: bool
    model: ModelName
    config_version: int
    request_id: str
    timing_ms: TimingMs
    passes: PassesAnswer | None = Field(None, description="With `?passes=true`.")

    @property
    def server_timing(self) -> str:
        """The same as a ``Server-Timing`` header (W3C), for browsers and tracing proxies."""
        return ", ".join(f"{name};dur={spent:.2f}" for name, spent in self.timing_ms)

    @classmethod
    def of(cls, answer: Answer, request_id: str) -> ClassifyAnswer:
        """The engine's answer as a body."""
        timing = answer.timing
        best, passes = answer.top_k[0], answer.passes
        return cls(
            label=best.label,
            score=best.score,
            top_k=RankedLabel.all_of(answer.top_k),
            exit=answer.exit,
            reason=answer.reason,
            confidence=answer.confidence,
            threshold=answer.threshold,
            mmacs=answer.mmacs,
            degraded=answer.degraded,
            cached=answer.cached,
            model=ModelName(name=answer.model, version=answer.version),
            config_version=answer.config_version,
            request_id=request_id,
            timing_ms=TimingMs(
                decode=1e3 * timing.decode,
                queue=1e3 * timing.queue,
                low=1e3 * timing.low,
                high=1e3 * timing.high,
                total=1e3 * answer.seconds,
            ),
            passes=None
            if passes is None
            else PassesAnswer(
                low=RankedLabel.all_of(passes.low),
                high=None if passes.high is None else RankedLabel.all_of(passes.high),
            ),
        )


class ErrorDetail(BaseModel):
    """What went wrong: stable ``code``, words, and where they mean something the field, its value and its bound."""

    code: str
    message: str
    field: str | None = None
    value: Any = None
    bound: Any = None
    request_id: str


class ErrorAnswer(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class BatchError(ErrorAnswer):
    """One image of a batch that could not be answered, with the status it would have had alone."""

    status: int


class BatchAnswer(BaseModel):
    """Answers in the order of the images."""

    results: list[ClassifyAnswer | BatchError]


class PredictedEffect(BaseModel):
    """What the calibration table expects of a threshold; bounds hold at 95 % confidence for images like its own, and
    say nothing (0 and 1) where the runtime and precision that serve have no table of their own."""

    exit_rate: float
    mean_mmacs: float
    accuracy: float
    agreement: float = Field(description="Share of images answered as the full-resolution pass would.")
    agreement_at_least: float
    accuracy_drop_at_most: float

    @classmethod
    def of(cls, effect: Effect) -> PredictedEffect:
        """A calibration's effect as a body."""
        return cls(**{name: getattr(effect, name) for name in cls.model_fields})


_ONE_OF_THE_GOALS: list[JsonValue] = [{"required": [goal]} for goal in GOALS]


class ThresholdPatch(_Strict):
    """Exactly one goal, and/or a floor."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"threshold": 0.6}, {"max_mean_mmacs": 60.0}, {"min_agreement": 0.98}],
            "oneOf": [*_ONE_OF_THE_GOALS, {"required": ["floor"], "maxProperties": 1}],
        }
    )

    threshold: Share | None = Field(None, strict=True, description="The threshold itself.")
    max_mean_mmacs: float | None = Field(
        None, gt=0, strict=True, allow_inf_nan=False, description="The highest threshold that costs at most this."
    )
    min_agreement: Share | None = Field(None, strict=True, description="The cheapest that agrees at least so often.")
    max_accuracy_drop: Share | None = Field(
        None, strict=True, description="The cheapest that loses at most this share of right answers."
    )
    floor: Share | None = Field(
        None, strict=True, description="How low overload may bring the threshold; null: not at all."
    )

    @model_validator(mode="after")
    def _one_goal(self) -> ThresholdPatch:
        named = [goal for goal in GOALS if goal in self.model_fields_set]
        empty = [goal for goal in named if getattr(self, goal) is None]
        if empty:
            raise InvalidOption(empty[0], None, "a number")
        if len(named) > 1 or (not named and "floor" not in self.model_fields_set):
            raise ValueError(f"{len(named)} goals are given; it must be exactly one of {', '.join(GOALS)}")
        return self

    @property
    def goal(self) -> tuple[Goal, float] | None:
        """The goal and its value, or None when only the floor changes."""
        for goal in GOALS:
            value = getattr(self, goal)
            if value is not None:
                return goal, float(value)
        return None


class ModelPatch(_Strict):
    """Which model to serve."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"model": "imagenette-mobilenet/2"}]})

    model: str = Field(
        description="Of the store: name (its newest version) or name/version.",
        json_schema_extra={"pattern": "^[a-z0-9][a-z0-9._-]{0,63}(/[1-9][0-9]{0,8})?$"},
    )


class ThresholdAnswer(BaseModel):
    """The threshold in force, what was asked for it, and its predicted effect (null without a calibration table)."""

    model: str
    goal: Goal
    value: float
    threshold: float
    floor: float | None
    version: int
    predicted: PredictedEffect | None


class ConfigAnswer(BaseModel):
    """The runtime config."""

    version: int
    models: list[ModelName] = Field(description="What is served; the first is meant where none is named.")
    thresholds: list[ThresholdAnswer]


class RecentEffect(BaseModel):
    """What a threshold would have done to the latest images; null without any."""

    images: int
    exit_rate: float | None
    mean_mmacs: float | None


class PreviewAnswer(BaseModel):
    """What a threshold would do; nothing is changed."""

    model: str
    threshold: float
    predicted: PredictedEffect | None
    recent: RecentEffect


class CurvePoint(PredictedEffect):
    """One threshold of the calibration table."""

    threshold: float


class ModelAnswer(BaseModel):
    """One version of a model in the store."""

    name: str
    version: int
    serving: bool
    network: str
    classes: list[str]
    resolution: int
    low_mmacs: float
    high_mmacs: float
    default_threshold: float | None
    dataset: str
    calibration_images: int
    curve: list[CurvePoint]


class ModelsAnswer(BaseModel):
    """The store, and as name/version what of it cannot be read (the log says why).

    Any picture at all gets one of a model's labels: it cannot say "none of these".
    """

    models: list[ModelAnswer]
    broken: list[str] = []


class LatencyMs(BaseModel):
    """Percentiles over the last minute, from the request's head; null without requests."""

    p50: float | None
    p95: float | None
    p99: float | None


class QueueState(BaseModel):
    """Work in flight."""

    low: int
    high: int
    images_in_flight: int
    bytes_in_flight: int


class AuditState(BaseModel):
    """What the high pass said of the latest audited images that exit at the threshold; null without any."""

    images: int
    disagreements: int
    disagreement: float | None
    disagreement_at_most: float | None = Field(description="Bound at 95 % confidence.")
    overall_at_most: float | None = Field(description="The same of all images: times the exit rate of late.")
    allowed: float | None = Field(description="1 less the agreement promised; null without a calibration table.")
    promise_kept: bool | None = Field(
        description="True: the bound is within what is allowed. False: even the lower bound is beyond. Null: too few."
    )


class StatsAnswer(BaseModel):
    """A snapshot for people: totals since the start, rates and latencies of the last minute."""

    model: ModelName
    runtime: str
    precision: str
    device: str
    threshold: float
    effective_threshold: float = Field(description="Lower than the threshold while the server is overloaded.")
    config_version: int
    images: int
    exit_rate: float | None
    mean_mmacs: float | None
    low_mmacs: float
    single_scale_mmacs: float
    requests_per_second: float
    latency_ms: LatencyMs
    queue: QueueState
    audit: AuditState


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
