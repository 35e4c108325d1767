"""Bodies of requests and answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.config import JsonDict

from service.api.live_schemas import DriftAnswer, FollowedAnswer, PeriodState
from service.engine.answer import Reason
from service.engine.prediction import TimeSpent
from service.errors import InvalidOption
from service.inference.calibration import Effect
from service.state.base import GOALS, Goal, Table

UNKNOWN_TIME = TimeSpent(0, 0.0, None)

# A PNG of 8 x 8 pixels.
RED_SQUARE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mM8oaHBgA0wMeAAg1MCAOA4ASjhBhuDAAAAAElFTkSuQmCC"

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Strict(BaseModel):
    """A body that may hold nothing it does not know."""

    model_config = ConfigDict(extra="forbid")


# Of tests/examples/golf-ball.jpg.
ANSWER: JsonDict = {
    "label": "golf ball",
    "score": 0.97,
    "top_k": [{"label": "golf ball", "index": 7, "score": 0.97}, {"label": "parachute", "index": 9, "score": 0.02}],
    "exit": "low",
    "reason": "confident",
    "confidence": 0.97,
    "threshold": 0.91,
    "mmacs": 335.47,
    "degraded": False,
    "cached": False,
    "model": {"name": "imagenette-resnet18", "version": 1},
    "config_version": 1,
    "request_id": "4f6c1b1f6d9c4b7e8a0d2c3e5f708192",
    "timing_ms": {"decode": 0.9, "queue": 0.1, "low": 3.2, "high": 0.0, "total": 4.5},
    "passes": None,
}


class ClassifyQuery(Strict):
    """What a request wants of its images."""

    top_k: int | None = Field(None, ge=1, description="Labels to give, unset: 5; all if there are fewer.")
    threshold: Share | None = Field(None, description="Threshold for this request only.")
    deadline_ms: float | None = Field(
        None, gt=0, le=3_600_000, allow_inf_nan=False, description="From the request's head to its answer."
    )
    model: str | None = Field(None, description="A served model, name or name/version; unset: the first.")
    passes: bool = Field(False, description="Tell what each pass that ran says; costs no compute.")


class FeedbackBody(Strict):
    """What an image shows."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"request_id": "a1", "label": "church"}]})

    request_id: str = Field(min_length=1, max_length=128, description="Of the answer.")
    label: Annotated[str, Field(strict=True, max_length=256)] | Annotated[int, Field(strict=True)] = Field(
        description="The true class of the model that answered: its name, or its index."
    )
    index: int = Field(0, ge=0, strict=True, description="Which image of a request of several.")


class FeedbackAnswer(BaseModel):
    """It is logged. ``right``: whether the model had answered so."""

    model: str
    label: str
    answered: str
    right: bool


class ModelQuery(Strict):
    """Which model a request is about."""

    model: str | None = Field(None, description="A served model, name or name/version; unset: the first.")


class PreviewQuery(ModelQuery):
    """Which threshold to look at."""

    threshold: Share


class JsonImage(Strict):
    """The JSON form of one image."""

    image: str = Field(description="The encoded image in base64, or a data URI of it.", examples=[RED_SQUARE])


class RankedLabel(BaseModel):
    """A class and its probability."""

    label: str
    index: int
    score: float


class ModelName(BaseModel):
    """A model of the store."""

    name: str
    version: int


class ClassifyAnswer(BaseModel):
    """The answer to one image."""

    model_config = ConfigDict(json_schema_extra={"examples": [ANSWER]})

    label: str
    score: float
    top_k: list[RankedLabel]
    exit: str = Field(description="The stage that answers: `low` or `high` of a model with two.")
    reason: Reason = Field(description="Why it does.")
    confidence: float = Field(description="Of the last stage that could have ended it early: its largest probability.")
    threshold: float = Field(description="What the confidence was compared with.")
    mmacs: float = Field(description="Millions of multiply-adds spent on this answer.")
    degraded: bool = Field(description="An unsure answer, given because time ran out or the server is overloaded.")
    cached: bool
    model: ModelName
    config_version: int
    request_id: str
    timing_ms: dict[str, float] = Field(
        description="Milliseconds: `decode`, `queue`, each stage by its name (0 if it did not run), and `total` from "
        "the request's head."
    )
    passes: dict[str, list[RankedLabel] | None] | None = Field(
        None, description="With `?passes=true`: what each stage says, by its name; null of one that did not run."
    )


ERROR: JsonDict = {
    "error": {
        "code": "invalid_field",
        "message": "threshold is '2': Input should be less than or equal to 1",
        "field": "threshold",
        "value": "2",
        "bound": 1.0,
        "request_id": "4f6c1b1f6d9c4b7e8a0d2c3e5f708192",
    }
}


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

    model_config = ConfigDict(json_schema_extra={"examples": [ERROR]})

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

    exit_rate: float = Field(description="Share of images that end before the last stage.")
    ends: list[float] = Field(description="Share of images that end at each stage.")
    mean_mmacs: float
    mean_ms: float | None = Field(None, description="Compute of one worker per image on this machine.")
    single_scale_ms: float | None = Field(None, description="The same of the single-scale network.")
    saved: float | None = Field(None, description="Share of that time that is saved; negative: the cascade costs more.")
    accuracy: float | None = Field(description="Null where the calibration photographs had no labels.")
    accuracy_interval: tuple[float, float] | None = Field(None, description="Where it lies with 95 % confidence.")
    agreement: float = Field(description="Share of images answered as the last stage would.")
    agreement_at_least: float
    accuracy_drop_at_most: float | None

    @staticmethod
    def of(effect: Effect, time: TimeSpent = UNKNOWN_TIME) -> PredictedEffect:
        """A calibration's effect as a body, with its time where that is known."""
        return PredictedEffect(
            exit_rate=effect.exit_rate,
            ends=list(effect.ends),
            mean_mmacs=effect.mean_mmacs,
            mean_ms=milliseconds(time.mean_seconds),
            single_scale_ms=milliseconds(time.single_scale_mean_seconds),
            saved=time.saved,
            accuracy=effect.accuracy,
            accuracy_interval=effect.accuracy_interval,
            agreement=effect.agreement,
            agreement_at_least=effect.agreement_at_least,
            accuracy_drop_at_most=effect.accuracy_drop_at_most,
        )


def milliseconds(seconds: float | None) -> float | None:
    """Seconds, where they are known, for a body."""
    return None if seconds is None else 1e3 * seconds


class ThresholdPatch(Strict):
    """Exactly one goal, and/or a floor; with a goal other than the threshold, the table that it is held by.

    A goal that is null is not given; a floor that is null is cleared.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"threshold": 0.6},
                {"max_mean_ms": 0.5},
                {"max_mean_mmacs": 60.0},
                {"min_agreement": 0.98},
                {"min_agreement": 0.97, "table": "live"},
            ]
        }
    )

    threshold: Share | None = Field(None, strict=True, description="The threshold itself.")
    max_mean_mmacs: float | None = Field(
        None, gt=0, strict=True, allow_inf_nan=False, description="The highest threshold that costs at most this."
    )
    max_mean_ms: float | None = Field(
        None,
        gt=0,
        strict=True,
        allow_inf_nan=False,
        description="The highest that costs at most so many milliseconds of a core (or GPU) per image here.",
    )
    min_agreement: Share | None = Field(None, strict=True, description="The cheapest that agrees at least so often.")
    max_accuracy_drop: Share | None = Field(
        None, strict=True, description="The cheapest that loses at most this share of right answers."
    )
    floor: Share | None = Field(
        None, strict=True, description="How low overload may bring the threshold; null: not at all."
    )

    table: Table = Field(
        "stored",
        description="What the goal is held by: the model's calibration table, or live traffic, which the threshold "
        "follows from then on. Not with threshold or max_accuracy_drop.",
    )

    @model_validator(mode="after")
    def _one_goal(self) -> ThresholdPatch:
        named = [goal for goal in GOALS if getattr(self, goal) is not None]
        if not named and self.table == "live":
            raise InvalidOption("table", self.table, f"left out, or beside one of {', '.join(GOALS)}")
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} are given; it must be exactly one of {', '.join(GOALS)}")
        if not named and "floor" not in self.model_fields_set:
            for goal in self.model_fields_set:
                raise InvalidOption(goal, None, "a number")
            raise ValueError(f"no goal is given; it must be exactly one of {', '.join(GOALS)}")
        return self

    @property
    def goal(self) -> tuple[Goal, float] | None:
        """The goal and its value, or None when only the floor changes."""
        for goal in GOALS:
            value = getattr(self, goal)
            if value is not None:
                return goal, float(value)
        return None


class ThresholdAnswer(BaseModel):
    """The threshold asked, the goal it was asked by, and its predicted effect (null without a calibration table).

    Where ``table`` is live, the threshold follows the traffic and ``followed`` tells how. While the server is
    overloaded a lower one is in force: `effective_threshold` of `/stats`.
    """

    model: str
    goal: Goal
    value: float
    threshold: float
    floor: float | None
    version: int
    predicted: PredictedEffect | None
    table: Table = Field("stored", description="What the goal is held by.")
    followed: FollowedAnswer | None = None


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

    @classmethod
    def at(cls, threshold: float, effect: Effect, time: TimeSpent = UNKNOWN_TIME) -> CurvePoint:
        """The point of ``threshold``, with its time where that is known."""
        return cls(threshold=threshold, **dict(PredictedEffect.of(effect, time)))


class StageAnswer(BaseModel):
    """One stage of a model; ``mmacs`` of it alone, in millions."""

    name: str
    resolution: int
    mmacs: float


class ModelAnswer(BaseModel):
    """One version of a model in the store."""

    name: str
    version: int
    serving: bool
    network: str
    classes: list[str]
    resolution: int
    resize: int = Field(
        description="Pixels that the shorter side is resized to before the central square of `resolution` is cut out."
    )
    stages: list[StageAnswer]
    low_mmacs: float = Field(description="Of the first stage.")
    high_mmacs: float = Field(description="Of the last stage alone, as of the single-scale network.")
    default_threshold: float = Field(description="That a server starts with in its runtime and precision.")
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
