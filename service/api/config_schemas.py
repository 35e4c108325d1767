"""Schemas of the runtime config, the predicted effect of a threshold, and the store."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.api.live_schemas import FollowedAnswer
from service.api.schemas import ModelName, Share, Strict, milliseconds
from service.calibration.certify import Effect
from service.engine.prediction import TimeSpent
from service.errors import InvalidOption
from service.stages import exit_rate, mean_cost
from service.state.base import BUDGETS, GOALS, Goal, Table

UNKNOWN_TIME = TimeSpent(0, 0.0, None)


class PredictedEffect(BaseModel):
    """Effect of a threshold, predicted by the calibration table. Bounds hold at 95 % confidence for similar images.

    Without a table for the active runtime and precision the bounds are 0 and 1.
    """

    exit_rate: float = Field(description="Share of images that exit before the last stage.")
    ends: list[float] = Field(description="Share of images that end at each stage.")
    mean_mmacs: float
    mean_ms: float | None = Field(None, description="Milliseconds of one worker per image on this machine.")
    single_scale_ms: float | None = Field(
        None, description="Milliseconds of one worker per image with the single-scale network."
    )
    saved: float | None = Field(
        None,
        description="Share of the single-scale network's time that is saved; negative if the cascade takes longer.",
    )
    accuracy: float | None = Field(description="Null if the calibration photographs had no labels.")
    accuracy_interval: tuple[float, float] | None = Field(None, description="Two-sided 95 % interval of the accuracy.")
    agreement: float = Field(description="Share of images with the same answer as the last stage.")
    agreement_at_least: float
    accuracy_drop_at_most: float | None

    @staticmethod
    def of(effect: Effect, time: TimeSpent = UNKNOWN_TIME) -> PredictedEffect:
        """Convert a calibration's effect, with its time if known."""
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


class ThresholdPatch(Strict):
    """Exactly one goal, a floor, or both; with a goal other than the threshold also the table that solves it.

    A goal that is null counts as absent; a floor that is null is cleared.
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
        None,
        gt=0,
        strict=True,
        allow_inf_nan=False,
        description="Use the highest threshold that costs at most this many million multiply-adds per image.",
    )
    max_mean_ms: float | None = Field(
        None,
        gt=0,
        strict=True,
        allow_inf_nan=False,
        description="Use the highest threshold that costs at most this many milliseconds of a core (or "
        "GPU) per image on this machine.",
    )
    min_agreement: Share | None = Field(
        None,
        strict=True,
        description="Use the cheapest threshold whose agreement with the last stage is at least this share.",
    )
    max_accuracy_drop: Share | None = Field(
        None, strict=True, description="Use the cheapest threshold that loses at most this share of correct answers."
    )
    floor: Share | None = Field(
        None, strict=True, description="Lowest threshold that overload may cause; null: overload does not lower it."
    )

    table: Table = Field(
        "stored",
        description="Table that solves the goal: the stored calibration table, or live traffic, which the "
        "threshold then follows. Not with threshold or max_accuracy_drop.",
    )

    @model_validator(mode="after")
    def _one_goal(self) -> ThresholdPatch:
        named = [goal for goal in GOALS if getattr(self, goal) is not None]
        if not named and self.table == "live":
            goals = (*BUDGETS, "min_agreement")
            raise InvalidOption("table", self.table, f"absent, or used with one of {', '.join(goals)}")
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
    """The threshold asked for, its goal, and its predicted effect (null without a calibration table).

    If ``table`` is live, the threshold follows the traffic and ``followed`` describes how. While the server is
    overloaded a lower threshold is in force: `effective_threshold` in `/stats`.
    """

    model: str
    goal: Goal
    value: float
    threshold: float
    floor: float | None
    version: int
    predicted: PredictedEffect | None
    table: Table = Field("stored", description="Table that solves the goal.")
    followed: FollowedAnswer | None = None


class ConfigAnswer(BaseModel):
    """The runtime config."""

    version: int
    models: list[ModelName] = Field(description="Served models; requests without a model use the first.")
    thresholds: list[ThresholdAnswer]


class RecentEffect(BaseModel):
    """Effect that a threshold would have had on the latest images of all processes; null without images."""

    images: int
    exit_rate: float | None
    mean_mmacs: float | None

    @staticmethod
    def of(ends: Sequence[int], mmacs: Sequence[float]) -> RecentEffect:
        """Compute it from the number of images that end at each stage; ``mmacs``: of each stage alone, in millions."""
        images = sum(ends)
        mean = mean_cost([each / images for each in ends], mmacs) if images else None
        return RecentEffect(images=images, exit_rate=exit_rate(ends), mean_mmacs=mean)


class PreviewAnswer(BaseModel):
    """Effect of a threshold; nothing is changed."""

    model: str
    threshold: float
    predicted: PredictedEffect | None
    recent: RecentEffect


class CurvePoint(PredictedEffect):
    """One threshold of the calibration table."""

    threshold: float

    @classmethod
    def at(cls, threshold: float, effect: Effect, time: TimeSpent = UNKNOWN_TIME) -> CurvePoint:
        """The point at ``threshold``, with its time if known."""
        return cls(threshold=threshold, **dict(PredictedEffect.of(effect, time)))


class StageAnswer(BaseModel):
    """One stage of a model; ``mmacs`` are its own million multiply-adds."""

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
        description="Pixels to which the shorter side is resized before the central square of `resolution` is cropped."
    )
    stages: list[StageAnswer]
    low_mmacs: float = Field(description="Million multiply-adds of the first stage.")
    high_mmacs: float = Field(
        description="Million multiply-adds of the last stage alone, which is the single-scale network."
    )
    default_threshold: float = Field(description="Threshold at start-up, in the active runtime and precision.")
    dataset: str
    calibration_images: int
    curve: list[CurvePoint]


class ModelsAnswer(BaseModel):
    """The models in the store, and the name/version of unreadable ones (the log says why).

    Any picture at all gets one of a model's labels; there is no answer "none of these".
    """

    models: list[ModelAnswer]
    broken: list[str] = []
