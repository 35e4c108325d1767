"""The methods of the protocol, with the same engine, schemas and errors as ``/v2`` over HTTP."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import ValidationError

import service
from service.api import tensors
from service.api.classifying import most_images
from service.api.dependencies import Parts
from service.api.protocol_schemas import OUTPUTS, AnswerParameters, InferRequest, RequestedOutput, RequestParameters
from service.api.routes.inference_protocol import EXTENSIONS, classify_all, deadline_ms_of, metadata, served
from service.api.routes.triton import statistics_of
from service.api.rpc.messages import METHODS, Message, parameters_of, set_parameters
from service.api.triton_schemas import ModelConfig
from service.engine.answer import Ask
from service.errors import Draining, ImageTooLarge, InvalidOption


@dataclass(frozen=True, slots=True)
class Call:
    """One call.

    Attributes:
        request_id: its id. ``arrival``: on the clock of ``time.monotonic``.
        seconds: until the client's deadline; None without one.
    """

    request_id: str
    arrival: float
    seconds: float | None


class Method(NamedTuple):
    """A method's implementation, and the HTTP request that needs the same key."""

    answer: Callable[[Parts, Message, Call], Awaitable[Message]]
    http: tuple[str, str]
    route: str  # in metrics


async def _server_live(parts: Parts, asked: Message, call: Call) -> Message:  # noqa: ARG001
    return _new("ServerLive", live=True)


async def _server_ready(parts: Parts, asked: Message, call: Call) -> Message:  # noqa: ARG001
    return _new("ServerReady", ready=_is_ready(parts))


async def _model_ready(parts: Parts, asked: Message, call: Call) -> Message:  # noqa: ARG001
    served(parts, asked.name, asked.version or None)
    return _new("ModelReady", ready=_is_ready(parts))


async def _server_metadata(parts: Parts, asked: Message, call: Call) -> Message:  # noqa: ARG001
    return _new("ServerMetadata", name="lowfirst", version=service.__version__, extensions=EXTENSIONS)


async def _model_metadata(parts: Parts, asked: Message, call: Call) -> Message:  # noqa: ARG001
    told = metadata(served(parts, asked.name, asked.version or None).spec)
    return _new("ModelMetadata", **told.model_dump())


async def _model_infer(parts: Parts, asked: Message, call: Call) -> Message:
    """Classify the images of the tensor `image`; if one fails, the call fails."""
    engine = served(parts, asked.model_name, asked.model_version or None)
    parts.admission.check()
    size = asked.ByteSize()
    if size > parts.settings.max_batch_bytes:
        raise ImageTooLarge(
            f"the request has {size} bytes; the limit is {parts.settings.max_batch_bytes}",
            field="request",
            value=size,
            bound=parts.settings.max_batch_bytes,
        )
    request, tail = _request(asked)
    images = tensors.images(request, tail, most_images(parts))
    wanted = request.parameters or RequestParameters()
    ask = Ask(
        arrival=call.arrival,
        threshold=wanted.threshold,
        deadline=_deadline(parts, wanted, call),
        top_k=len(engine.spec.classes),
        request_id=call.request_id,
        names_version=bool(asked.model_version) or "/" in asked.model_name,
    )
    with parts.admission.admit(images=len(images), size=size):
        answers = await classify_all(parts, engine, images, ask)
    told = _new("ModelInfer", model_name=answers[0].model, model_version=str(answers[0].version), id=asked.id)
    set_parameters(told.parameters, AnswerParameters.of(answers).model_dump())
    for output in request.outputs or [RequestedOutput(name=name) for name in OUTPUTS]:
        datatype, shape, data = tensors.packed(output, answers)
        told.outputs.add(name=output.name, datatype=datatype, shape=shape)
        told.raw_output_contents.append(data)
    return told


async def _model_config(parts: Parts, asked: Message, call: Call) -> Message:  # noqa: ARG001
    told = ModelConfig.of(metadata(served(parts, asked.name, asked.version or None).spec))
    return _new("ModelConfig", config=told.model_dump())


async def _model_statistics(parts: Parts, asked: Message, call: Call) -> Message:  # noqa: ARG001
    engines = [served(parts, asked.name, asked.version or None)] if asked.name else list(parts.models)
    told = [await statistics_of(parts, engine) for engine in engines]
    return _new("ModelStatistics", model_stats=[each.model_dump(exclude={"batch_stats"}) for each in told])


CALLS: Mapping[str, Method] = {
    "ServerLive": Method(_server_live, ("GET", "/v2/health/live"), "/v2/grpc/health/live"),
    "ServerReady": Method(_server_ready, ("GET", "/v2/health/ready"), "/v2/grpc/health/ready"),
    "ModelReady": Method(_model_ready, ("GET", "/v2/models"), "/v2/grpc/models/ready"),
    "ServerMetadata": Method(_server_metadata, ("GET", "/v2"), "/v2/grpc"),
    "ModelMetadata": Method(_model_metadata, ("GET", "/v2/models"), "/v2/grpc/models"),
    "ModelInfer": Method(_model_infer, ("POST", "/v2/models"), "/v2/grpc/infer"),
    "ModelConfig": Method(_model_config, ("GET", "/v2/models"), "/v2/grpc/models/config"),
    "ModelStatistics": Method(_model_statistics, ("GET", "/v2/models"), "/v2/grpc/models/stats"),
}


def _new(method: str, **fields: Any) -> Message:
    return METHODS[method][1](**fields)


def _is_ready(parts: Parts) -> bool:
    try:
        parts.check_ready()
    except Draining:
        return False
    return True


def _deadline(parts: Parts, wanted: RequestParameters, call: Call) -> float | None:
    """Seconds from the arrival to the earlier of both deadlines, the client's and the request's; otherwise the
    default."""
    asked = deadline_ms_of(wanted)
    known = [] if asked is None else [asked / 1e3]
    if call.seconds is not None:
        known.append(max(call.seconds, 0.0) + (time.monotonic() - call.arrival))
    if not known and parts.settings.deadline_ms is not None:
        known.append(parts.settings.deadline_ms / 1e3)
    return min(known, default=None)


def _request(asked: Message) -> tuple[InferRequest, bytes]:
    """The equivalent HTTP request, and its binary tensor. Raises InvalidOption: a wrong field."""
    raw, count = asked.raw_input_contents, len(asked.inputs)
    if raw and len(raw) != count:
        raise InvalidOption("raw_input_contents", len(raw), f"empty, or one per input ({count})")
    inputs, tail = [], b""
    for index, each in enumerate(asked.inputs):
        data = raw[index] if raw else _joined(each.contents.bytes_contents)
        tail += data
        inputs.append(
            {
                "name": each.name,
                "datatype": each.datatype,
                "shape": list(each.shape),
                "parameters": {**parameters_of(each.parameters), "binary_data_size": len(data)},
            }
        )
    outputs = [{"name": each.name, "parameters": parameters_of(each.parameters)} for each in asked.outputs]
    fields = {
        "id": asked.id or None,
        "inputs": inputs,
        "outputs": outputs or None,
        "parameters": parameters_of(asked.parameters),
    }
    try:
        return InferRequest.model_validate(fields), tail
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        bound = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        raise InvalidOption(where, first["input"], bound) from error


def _joined(elements: list[bytes]) -> bytes:
    """Join elements as in a raw tensor."""
    return b"".join(tensors.LENGTH.pack(len(each)) + each for each in elements)
