"""Bodies of the Open Inference Protocol, version 2, with Triton's extensions for binary tensors and classification."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from service.api.schemas import RED_SQUARE, Share
from service.engine.answer import Answer

PROBABILITIES = "probabilities"
MOST_ID = 2**64 - 1
WholeNumber = Annotated[int, Field(ge=0, le=MOST_ID)]

Datatype = Literal["BYTES", "BOOL", "FP32", "FP64", "INT64"]
OutputName = Literal["probabilities", "label", "exit", "reason", "confidence", "threshold", "mmacs", "degraded"]
Element = str | bool | int | float


class Scalar(NamedTuple):
    """An output with one element per image."""

    datatype: Datatype
    of: Callable[[Answer], Element]


# The fields of an answer of POST /classify, in double precision so that they are the same numbers.
SCALARS: dict[str, Scalar] = {
    "label": Scalar("BYTES", lambda answer: answer.top_k[0].label),
    "exit": Scalar("BYTES", lambda answer: answer.exit),
    "reason": Scalar("BYTES", lambda answer: answer.reason),
    "confidence": Scalar("FP64", lambda answer: answer.confidence),
    "threshold": Scalar("FP64", lambda answer: answer.threshold),
    "mmacs": Scalar("FP64", lambda answer: answer.mmacs),
    "degraded": Scalar("BOOL", lambda answer: answer.degraded),
}
OUTPUTS: tuple[OutputName, ...] = get_args(OutputName)


def _flat(data: Any) -> Any:
    """The elements of a tensor of shape [N, 1], possibly in nested lists, in memory order."""
    if isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [element for row in data for element in row]
    return data


def _as_text(id_: Any) -> Any:
    """Convert an id to text: Triton also accepts integers as ids, and returns them as strings."""
    is_number = isinstance(id_, int) and not isinstance(id_, bool)
    return str(id_) if is_number and 0 <= id_ <= MOST_ID else id_


class _Strict(BaseModel):
    """A body without unknown fields and without type conversion."""

    model_config = ConfigDict(extra="forbid", strict=True)


class InputParameters(_Strict):
    """How an input's data is sent."""

    binary_data_size: int | None = Field(None, ge=0, description="Bytes of the tensor that follow the JSON.")
    content_type: Literal["base64"] | None = Field(None, description="Encoding of `data`; always base64.")


class InferInput(_Strict):
    """The images: `shape` is [N] or [N, 1]; either `data` or the parameter `binary_data_size` is required."""

    name: Literal["image"]
    datatype: Literal["BYTES"]
    shape: list[Annotated[int, Field(ge=1)]] = Field(min_length=1, max_length=2)
    data: Annotated[list[str], BeforeValidator(_flat)] | None = Field(None, description="Encoded images in base64.")
    parameters: InputParameters | None = None


class OutputParameters(_Strict):
    """How an output is returned."""

    binary_data: bool | None = Field(None, description="Whether the output follows the JSON as binary data.")
    classification: int | None = Field(
        None, ge=1, description='For `probabilities`: return this many labels instead, as "score:index:label".'
    )


class RequestedOutput(_Strict):
    """A requested output."""

    name: OutputName
    parameters: OutputParameters | None = None


class RequestParameters(_Strict):
    """Parameters for all images of the request."""

    threshold: Share | None = Field(None, description="Threshold for this request only.")
    deadline_ms: float | None = Field(
        None,
        gt=0,
        le=3_600_000,
        allow_inf_nan=False,
        description="Deadline, counted from the arrival of the request's head.",
    )
    timeout: int | None = Field(
        None, gt=0, le=3_600_000_000, description="The deadline in microseconds (Triton's name for it)."
    )
    binary_data_output: bool = Field(
        False, description="Whether outputs without their own setting follow the JSON as binary data."
    )


REQUEST: JsonDict = {
    "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [RED_SQUARE]}],
    "outputs": [{"name": "label"}],
}


class InferRequest(_Strict):
    """Images to classify."""

    model_config = ConfigDict(json_schema_extra={"examples": [REQUEST]})

    id: Annotated[str, BeforeValidator(_as_text, str | WholeNumber)] | None = Field(
        None, description="Returned in the answer, as a string."
    )
    inputs: list[InferInput] = Field(min_length=1, max_length=1)
    outputs: list[RequestedOutput] | None = Field(
        None, max_length=len(OUTPUTS), description="Missing or empty: all outputs, as listed by /v2/models/{model}."
    )
    parameters: RequestParameters | None = None


class BinaryData(BaseModel):
    """End of an output in the binary data after the JSON."""

    binary_data_size: int


class OutputTensor(BaseModel):
    """An output in the order of the images: in `data`, or after the JSON."""

    name: str
    datatype: Datatype
    shape: list[int]
    parameters: BinaryData | None = None
    data: list[Element] | None = None


class AnswerParameters(BaseModel):
    """Outputs of one image as plain values; for several images their summary."""

    exit: str = Field(description="The last stage that any image reached.")
    confidence: float = Field(description="The lowest of all images.")
    threshold: float = Field(description="The lowest of all images.")
    mmacs: float = Field(description="The sum over all images.")
    degraded: bool = Field(description="Whether any answer is degraded.")
    config_version: int = Field(description="The oldest of all images.")

    @classmethod
    def of(cls, answers: list[Answer]) -> AnswerParameters:
        """Summarise one or more answers."""
        return cls(
            exit=max(answers, key=lambda answer: answer.stage).exit,
            confidence=min(answer.confidence for answer in answers),
            threshold=min(answer.threshold for answer in answers),
            mmacs=sum(answer.mmacs for answer in answers),
            degraded=any(answer.degraded for answer in answers),
            config_version=min(answer.config_version for answer in answers),
        )


class InferAnswer(BaseModel):
    """The answers to the images."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: AnswerParameters
    outputs: list[OutputTensor]


class TensorMetadata(BaseModel):
    """An input or output; -1 stands for the number of images."""

    name: str
    datatype: Datatype
    shape: list[int]


class ModelMetadata(BaseModel):
    """A served model."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]

    @classmethod
    def of(cls, name: str, version: int, classes: int) -> ModelMetadata:
        """Describe a model with this many classes."""
        scalars = [TensorMetadata(name=key, datatype=SCALARS[key].datatype, shape=[-1]) for key in SCALARS]
        return cls(
            name=name,
            versions=[str(version)],
            platform="lowfirst",
            inputs=[TensorMetadata(name="image", datatype="BYTES", shape=[-1])],
            outputs=[TensorMetadata(name=PROBABILITIES, datatype="FP32", shape=[-1, classes]), *scalars],
        )


class ServerMetadata(BaseModel):
    """This server."""

    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """The process answers."""

    live: bool = True


class ServerReady(BaseModel):
    """Work may be sent."""

    ready: bool = True


class ModelReady(ServerReady):
    """The model may be asked."""

    name: str


class ProtocolError(BaseModel):
    """The body of every error of the protocol."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"error": "image 0: image has 0 bytes"}]})

    error: str
