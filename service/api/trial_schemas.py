"""Schemas of ``/config/model``: the served model, and the model on trial."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from service.api.config_schemas import ConfigAnswer
from service.api.schemas import ModelName, Share, Strict
from service.api.stats_schemas import LatencyMs
from service.engine.comparison import Comparison, Side
from service.errors import InvalidOption
from service.hosting.trials import Wish
from service.state.base import EndedTrial, Ending, Trial

# Fields that exclude all others, and fields for which null is not allowed.
ENDS = ("promote", "cancel")
NOT_NULL = {
    "model": "a model of the store",
    "share": "between 0 and 1",
    "shadow": "true or false",
    "promote": "true, or left out",
    "cancel": "true, or left out",
}


class ModelPatch(Strict):
    """A model to serve or to try, or a change of the current trial."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "imagenette-resnet18/1"},
                {"model": "imagenette-resnet18/2", "share": 0.05, "max_disagreement": 0.02},
            ]
        }
    )

    model: str | None = Field(
        None,
        description="Model of the store: name (its newest version) or name/version. Without it: the model on trial.",
        json_schema_extra={"pattern": "^[a-z0-9][a-z0-9._-]{0,63}(/[1-9][0-9]{0,8})?$"},
    )
    share: Share | None = Field(
        None, strict=True, description="Share of the images in the trial, chosen by a hash of their bytes."
    )
    shadow: StrictBool | None = Field(
        None,
        description="Run the model in the background, so that clients never see its answers; without a "
        "share on all images.",
    )
    max_disagreement: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None = Field(
        None,
        strict=True,
        description="Cancel the trial as soon as the lower 95 % bound of the share of images on which the "
        "models differ, or on which the new one fails, exceeds this; null: never.",
    )
    promote: StrictBool | None = Field(None, description="Serve the model on trial.")
    cancel: StrictBool | None = Field(None, description="End the trial.")

    @model_validator(mode="after")
    def _one_thing(self) -> ModelPatch:
        named = self.model_fields_set
        for field, bound in NOT_NULL.items():
            if field in named and getattr(self, field) is None:
                raise InvalidOption(field, None, bound)
        for field in ENDS:
            if field in named and getattr(self, field) is not True:
                raise InvalidOption(field, False, NOT_NULL[field])
            if field in named and len(named) > 1:
                others = ", ".join(sorted(named - {field}))
                raise InvalidOption(field, True, f"alone, without {others}")
        if not named:
            raise InvalidOption("model", None, "a model of the store, where nothing else is asked")
        return self

    @property
    def is_switch(self) -> bool:
        """Whether it names a model to serve, and no trial."""
        return self.model_fields_set == {"model"}

    @property
    def wish(self) -> Wish:
        """The requested change of the trial."""
        is_guarded = "max_disagreement" in self.model_fields_set
        return Wish(self.model, self.share, self.shadow, self.max_disagreement, is_guarded)


class TrialSide(BaseModel):
    """Results of one of the two models, on the images that both answered; null without images."""

    model: ModelName
    exit_rate: float | None = Field(description="Share of images that exit before the last stage.")
    mean_mmacs: float | None
    mean_ms: float | None = Field(
        description="Milliseconds of one worker per image, over all images computed since the trial began."
    )
    errors: int = Field(description="Images on which the model failed.")
    latency_ms: LatencyMs = Field(description="Decoding and compute of an image, without waiting; within 2.5 %.")

    @classmethod
    def of(cls, name: str, version: int, side: Side) -> TrialSide:
        """Convert the counts of ``name/version``."""
        mean = side.mean_seconds
        return cls(
            model=ModelName(name=name, version=version),
            exit_rate=side.share(side.exited),
            mean_mmacs=side.share(side.mmacs),
            mean_ms=None if mean is None else 1e3 * mean,
            errors=side.errors,
            latency_ms=LatencyMs(**side.latency_ms),
        )


class TrialAnswer(BaseModel):
    """The model on trial compared with the served one.

    Counts are of all processes and replicas since the trial began. Each bound holds at 95 % on its own.
    """

    model: ModelName
    beside: ModelName
    kind: Literal["canary", "shadow"]
    share: float
    max_disagreement: float | None
    threshold: float = Field(
        description="Threshold of the model on trial: the goal of the served model, solved for this one."
    )
    began: float = Field(description="Seconds since 1970.")
    images: int = Field(description="Images that both models answered, without degraded answers.")
    disagreements: int = Field(description="Images with different labels.")
    skipped: int = Field(description="Images not compared for lack of time.")
    agreement: float | None
    agreement_at_least: float | None
    disagreement_at_least: float | None
    served: TrialSide
    tried: TrialSide

    @classmethod
    def of(cls, trial: Trial, beside: int, counts: Comparison) -> TrialAnswer:
        """Convert ``trial``; ``beside`` is the served version."""
        return cls(
            model=ModelName(name=trial.name, version=trial.version),
            beside=ModelName(name=trial.beside, version=beside),
            kind=trial.kind,
            share=trial.share,
            max_disagreement=trial.max_disagreement,
            threshold=trial.threshold.threshold,
            began=trial.began,
            images=counts.images,
            disagreements=counts.disagreements,
            skipped=counts.skipped,
            agreement=counts.agreement,
            agreement_at_least=counts.agreement_at_least,
            disagreement_at_least=counts.disagreement_at_least if counts.images else None,
            served=TrialSide.of(trial.beside, beside, counts.served),
            tried=TrialSide.of(trial.name, trial.version, counts.tried),
        )


class EndedAnswer(BaseModel):
    """How the latest trial ended; the guard causes the outcomes `disagreement` and `errors`."""

    model: ModelName
    beside: str
    outcome: Ending
    why: str
    at: float = Field(description="Seconds since 1970.")

    @classmethod
    def of(cls, ended: EndedTrial) -> EndedAnswer:
        """Convert."""
        model = ModelName(name=ended.name, version=ended.version)
        return cls(model=model, beside=ended.beside, outcome=ended.outcome, why=ended.why, at=ended.at)


class ModelConfigAnswer(ConfigAnswer):
    """The runtime config, and the trial beside the served models."""

    trial: TrialAnswer | None
    ended: EndedAnswer | None = Field(description="The latest trial that ended.")
