"""Schemas of requests and answers: shared types, images, feedback and errors."""

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
    """A body without unknown fields."""

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
    """Options of a classification request."""

    top_k: int | None = Field(None, ge=1, description="Number of labels; default 5, at most all.")
    threshold: Share | None = Field(None, description="The threshold that the confidence was compared with.")
    deadline_ms: float | None = Field(
        None,
        gt=0,
        le=3_600_000,
        allow_inf_nan=False,
        description="Deadline, counted from the arrival of the request's head.",
    )
    model: str | None = Field(None, description="A served model, name or name/version; default: the first.")
    passes: bool = Field(
        False,
        description="Also return what each stage that ran predicted; costs no compute.",
    )


class FeedbackBody(Strict):
    """The true label of an image."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"request_id": "a1", "label": "church"}]})

    request_id: str = Field(min_length=1, max_length=128, description="Request id of the answer.")
    label: Annotated[str, Field(strict=True, max_length=MOST_LABEL)] | Annotated[int, Field(strict=True)] = Field(
        description="The true class, by name or index in the model that answered."
    )
    index: int = Field(0, ge=0, strict=True, description="Position of the image in a request with several images.")

    @field_validator("label", mode="before")
    @classmethod
    def _name_or_index(cls, label: object) -> object:
        is_name, is_index = isinstance(label, str), isinstance(label, int) and not isinstance(label, bool)
        if not (is_name or is_index) or (isinstance(label, str) and len(label) > MOST_LABEL):
            bound = f"a class by its name, of {MOST_LABEL} characters at most, or by its index"
            raise InvalidOption("label", label, bound)
        return label


class FeedbackAnswer(BaseModel):
    """Confirmation that feedback is stored; ``right``: whether the model's answer was right."""

    model: str
    label: str
    answered: str
    right: bool


class ModelQuery(Strict):
    """The model that a request is about."""

    model: str | None = Field(None, description="A served model, name or name/version; default: the first.")


class PreviewQuery(ModelQuery):
    """The threshold to preview."""

    threshold: Share


class JsonImage(Strict):
    """The JSON form of one image."""

    image: str = Field(description="The encoded image in base64, or as a data URI.", examples=[RED_SQUARE])


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
    exit: str = Field(description="The stage that answers; in a two-stage model `low` or `high`.")
    reason: Reason = Field(description="Why the image ended at this stage.")
    confidence: float = Field(
        description="The confidence last compared with the threshold: the largest probability of an early stage."
    )
    threshold: float = Field(description="The threshold that the confidence was compared with.")
    mmacs: float = Field(description="Millions of multiply-adds spent on this answer.")
    degraded: bool = Field(description="Whether this is an uncertain answer, given because of a deadline or overload.")
    cached: bool
    model: ModelName
    config_version: int
    request_id: str
    timing_ms: dict[str, float] = Field(
        description="Milliseconds: `decode`, `queue`, each stage by name (0 if it did not run), and "
        "`total` since the request's head."
    )
    passes: dict[str, list[RankedLabel] | None] | None = Field(
        None,
        description="With `?passes=true`: the prediction of each stage by name; null for a stage that did not run.",
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
    """An error: stable ``code``, message, and if they apply field, value and bound."""

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
    """An image of a batch that failed, with the status that it would have had alone."""

    status: int


class BatchAnswer(BaseModel):
    """Answers in the order of the images."""

    results: list[ClassifyAnswer | BatchError]


def milliseconds(seconds: float | None) -> float | None:
    """Seconds as milliseconds; None stays None."""
    return None if seconds is None else 1e3 * seconds
