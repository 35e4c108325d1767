"""Bodies of requests and answers: what all share, images, feedback and errors."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.config import JsonDict

from service.engine.answer import Reason
from service.errors import InvalidOption

# A PNG of 8 x 8 pixels.
RED_SQUARE = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mM8oaHBgA0wMeAAg1MCAOA4ASjhBhuDAAAAAElFTkSuQmCC"

MOST_LABEL = 256

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
    label: Annotated[str, Field(strict=True, max_length=MOST_LABEL)] | Annotated[int, Field(strict=True)] = Field(
        description="The true class of the model that answered: its name, or its index."
    )
    index: int = Field(0, ge=0, strict=True, description="Which image of a request of several.")

    @field_validator("label", mode="before")
    @classmethod
    def _name_or_index(cls, label: object) -> object:
        is_name, is_index = isinstance(label, str), isinstance(label, int) and not isinstance(label, bool)
        if not (is_name or is_index) or (isinstance(label, str) and len(label) > MOST_LABEL):
            bound = f"a class by its name, of {MOST_LABEL} characters at most, or by its index"
            raise InvalidOption("label", label, bound)
        return label


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


def milliseconds(seconds: float | None) -> float | None:
    """Seconds, where they are known, for a body."""
    return None if seconds is None else 1e3 * seconds
